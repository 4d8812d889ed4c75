"""check-constraints and swap-max-pool: what can be converted, what is kept, what is named."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import after, codes, ops, parse, random, refused, rewritten, run_model

from snncompiler import pipeline
from snncompiler.errors import Refused

# --- strict ---

STRICT = """g (float[N,2,4,4] x) => (float[N,3] y)
{
  [one] a = Conv (x, w, c)  p = Relu (a)
  [two] b = Conv (p, w)  n = BatchNormalization (b, g, h, m, v)  q = Relu (n)
  f = Flatten (q)  [three] d = MatMul (f, u)  e = Add (d, k)  r = Relu (e)
  [four] y = Gemm (r, o)
}"""
WEIGHTS = {
    "w": random(0, 2, 2, 1, 1),
    "c": random(1, 2),
    "g": np.ones(2, np.float32),
    "h": np.zeros(2, np.float32),
    "m": np.zeros(2, np.float32),
    "v": np.ones(2, np.float32),
    "u": random(2, 32, 3),
    "k": random(3, 3),
    "o": random(4, 3, 3),
}


def test_strict_names_every_bias_and_batch_norm() -> None:
    findings = refused(parse(STRICT, WEIGHTS), strict=True)
    assert sorted((f.code, f.node) for f in findings) == [
        ("SNNC203", "one"),
        ("SNNC203", "three"),
        ("SNNC204", "two"),
    ]


def test_not_strict_takes_the_same_network() -> None:
    prepared = pipeline.prepare(parse(STRICT, WEIGHTS))
    assert not [f for f in prepared.findings if f.severity != "note"]


def test_strict_takes_a_network_without_bias() -> None:
    text = "g (float[N,2] x) => (float[N,3] y) { h = Gemm (x, w, c)  y = Relu (h) }"
    weights = {"w": random(0, 2, 3), "c": np.zeros(3, np.float32)}
    prepared = pipeline.prepare(parse(text, weights), strict=True)
    assert not prepared.findings


def test_strict_names_a_batch_norm_that_is_kept() -> None:
    text = """g (float[N,2] x) => (float[N,2] y)
    { [norm] n = BatchNormalization (x, g, h, m, v)  y = Relu (n) }"""
    (finding,) = refused(parse(text, {k: WEIGHTS[k] for k in "ghmv"}), strict=True)
    assert finding.code == "SNNC204" and finding.node == "BatchNormalization 'norm'"


# --- between spiking layers ---


def test_every_offender_is_named_at_once() -> None:
    text = """g (float[N,2,4,4] x) => (float[N,2,2,2] y)
    {
      a = Relu (x)  [s] b = Sigmoid (a)  [t] c = Tanh (b)  [l] d = Elu (c)
      [m] e = Mul (d, a)  [p] f = MaxPool <kernel_shape = [3, 3]> (e)  [q] h = ReduceMax (f)
      i = Add (f, h)  y = Relu (i)
    }"""
    findings = refused(parse(text))
    assert codes(findings) == ["SNNC202"] * 5
    assert [f.node for f in findings] == [
        "Sigmoid 's'", "Tanh 't'", "Elu 'l'", "Mul 'm'", "ReduceMax 'q'",
    ]  # fmt: skip
    assert "a product of two values" in findings[3].message
    assert "reduces the batch axis" in findings[4].message


def test_strict_and_offenders_come_together() -> None:
    text = """g (float[N,2] x) => (float[N,2] y)
    { h = Gemm (x, w, c)  a = Relu (h)  b = Exp (a)  y = Relu (b) }"""
    found = refused(parse(text, {"w": random(0, 2, 2), "c": random(1, 2)}), strict=True)
    assert codes(found) == ["SNNC202", "SNNC203"]


@pytest.mark.parametrize(
    "step",
    [
        "Div (half, a)",
        "MatMul (a, a)",
        "Cast <to = 7> (a)",
        "MatMul (x, a)",
    ],
)
def test_what_looks_linear_and_is_not(step: str) -> None:
    text = f"""g (float[N,2,2] x) => (float[N,2,2] y) <float half = {{0.5}}>
    {{ a = Relu (x)  [bad] b = {step}  c = Cast <to = 1> (b)  y = Relu (c) }}"""
    bad = refused(parse(text))[0]
    assert bad.code == "SNNC202" and "'bad'" in bad.node


def test_indices_of_a_pooling_between_layers() -> None:
    text = """g (float[N,2,4,4] x) => (float[N,2,2,2] y)
    { a = Relu (x)  [pool] b, i = MaxPool <kernel_shape = [3, 3]> (a)  c = Cast <to = 1> (i)
      d = Add (b, c)  y = Relu (d) }"""
    findings = refused(parse(text))
    assert ("MaxPool 'pool'", "MaxPool stands between spiking layers: its indices are used") in [
        (f.node, f.message) for f in findings
    ]


def test_no_rectifier() -> None:
    (finding,) = refused(parse("g (float[N,2] x) => (float[N,2] y) { h = Neg (x)  y = Abs (h) }"))
    assert finding.code == "SNNC201" and "Abs x1, Neg x1" in finding.message


def test_no_nodes() -> None:
    (finding,) = refused(parse("g (float[N,2] x) => (float[N,2] x) { }"))
    assert finding.code == "SNNC201"


# --- kept ---


def test_functions_before_and_after_are_kept_and_noted() -> None:
    text = """g (float[N,2] x) => (float[N,2] y)
    { [early] a = Tanh (x)  b = Relu (a)  h = Gemm (b, w)  [late] y = Softmax (h) }"""
    prepared = pipeline.prepare(parse(text, {"w": random(0, 2, 2)}))
    notes = {f.node: f.message for f in prepared.findings}
    assert list(notes) == ["Tanh 'early'", "Softmax 'late'"]
    assert (
        "before the first" in notes["Tanh 'early'"] and "after the last" in notes["Softmax 'late'"]
    )
    assert {f.code for f in prepared.findings} == {"SNNC206"}


def test_linear_operators_are_not_noted() -> None:
    text = """g (float[N,2] x) => (float[N,2] y)
    { a = Neg (x)  b = Relu (a)  y = Gemm (b, w) }"""
    assert not pipeline.prepare(parse(text, {"w": random(0, 2, 2)})).findings


# --- swap-max-pool ---


@pytest.mark.parametrize("relu", ["Relu (p)", "Clip (p, zero, six)", "Max (zero, p)"])
def test_a_rectifier_goes_before_its_pooling(relu: str) -> None:
    text = f"""g (float[N,2,6,6] x) => (float[N,2,3,3] y) <float zero = {{0}}, float six = {{0.6}}>
    {{ c = Conv (x, w)  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (c)  y = {relu} }}"""
    model = parse(text, {"w": random(0, 2, 2, 1, 1)})
    result = rewritten(model, "swap-max-pool")
    assert ops(result) == ["Conv", relu.split(" ")[0], "MaxPool"]
    x = random(1, 2, 2, 6, 6)
    assert np.array_equal(run_model(result, x=x)[0], run_model(model, x=x)[0])


@pytest.mark.parametrize(
    "body",
    [
        "p = MaxPool <kernel_shape = [2, 2]> (x)  r = Relu (p)  y = Add (r, p)",
        "p, i = MaxPool <kernel_shape = [2, 2]> (x)  r = Relu (p)  j = Cast <to = 1> (i)"
        "  y = Add (r, j)",
        "p = AveragePool <kernel_shape = [2, 2]> (x)  y = Relu (p)",
    ],
)
def test_other_poolings_stay(body: str) -> None:
    graph, _ = after(
        parse(f"g (float[N,2,6,6] x) => (float[N,2,5,5] y) {{ {body} }}"), "swap-max-pool"
    )
    assert ops(graph).index("Relu") == 1


def test_padding_of_a_pooling_is_not_above_the_rectifier() -> None:
    # Max pooling pads with -inf: relu(max(-inf, x)) = max(relu(x)) only as every window sees a pixel.
    text = """g (float[N,1,4,4] x) => (float[N,1,3,3] y)
    { p = MaxPool <kernel_shape = [2, 2], strides = [2, 2], pads = [1, 1, 1, 1]> (x)  y = Relu (p) }"""
    model, x = parse(text), -np.ones((1, 1, 4, 4), np.float32)
    assert np.array_equal(run_model(rewritten(model), x=x)[0], run_model(model, x=x)[0])


def test_two_poolings_in_a_row_swap_both() -> None:
    text = """g (float[N,2,8,8] x) => (float[N,2,6,6] y)
    { a = Relu (x)  c = Conv (a, w)  p = MaxPool <kernel_shape = [2, 2]> (c)
      q = MaxPool <kernel_shape = [2, 2]> (p)  y = Relu (q) }"""
    model = parse(text, {"w": random(0, 2, 2, 1, 1)})
    result = rewritten(model)
    assert ops(result) == ["Relu", "Conv", "Relu", "MaxPool", "MaxPool"]
    x = random(1, 2, 2, 8, 8)
    np.testing.assert_array_equal(run_model(result, x=x)[0], run_model(model, x=x)[0])


# --- random operators ---

DRAWN = [
    "e = RandomNormalLike (h)",
    "e = RandomNormalLike <seed = 3.0> (h)",
    "e = RandomUniformLike (h)",
    "e = RandomNormal <shape = [1, 3]> ()",
    "e = RandomUniform <shape = [1, 3], seed = 1.0> ()",
    "p = Sigmoid (h)  e = Bernoulli (p)",
    "p = Sigmoid (constant)  e = Bernoulli (p)",
    "i = Multinomial <sample_size = 3> (h)  e = Cast <to = 1> (i)",
    "e = Dropout (h, half, yes)",
    "e = Dropout (constant, half, yes)",
    "e = Dropout (h, , yes)",
    "e = Dropout (h, half, train)",
]
DRAWN_FROM = {
    "half": np.float32(0.5),
    "yes": np.array(True),
    "none": np.float32(0),
    "constant": np.ones((1, 3), np.float32),
}
PLACES = {
    "input": "{ h = Identity (x) STEP  z = Add (x, e)  a = Relu (z)  y = MatMul (a, w) }",
    "middle": "{ h = Relu (x) STEP  z = Add (h, e)  a = Relu (z)  y = MatMul (a, w) }",
    "output": "{ a = Relu (x)  h = MatMul (a, w) STEP  y = Add (h, e) }",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("step", DRAWN)
def test_what_is_drawn_at_random_is_refused_wherever_it_stands(step: str, place: str) -> None:
    inputs = "float[N,3] x, bool train" if "train" in step else "float[N,3] x"
    text = f"g ({inputs}) => (float[N,3] y) {PLACES[place].replace('STEP', step)}"
    used = {n: a for n, a in DRAWN_FROM.items() if n in step}
    errors = refused(parse(text, {"w": random(0, 3, 3), **used}))
    (finding,) = [f for f in errors if f.code == "SNNC212"]
    assert finding.node.split(" ")[0] in step and "no function of the inputs" in finding.message


def test_what_is_drawn_and_not_used_is_nothing_to_refuse() -> None:
    text = """g (float[N,3] x) => (float[N,3] y, int64[2] s)
    { e = RandomNormalLike (x)  z = Dropout (x, none, yes)  d = Dropout (z, half, no)
      s = Shape (e)  t = Add (e, e)  a = Relu (d)  y = MatMul (a, w) }"""
    used = {**{n: DRAWN_FROM[n] for n in ("none", "half", "yes")}, "no": np.array(False)}
    model = parse(text, {"w": random(0, 3, 3), **used})
    del model.graph.output[1]
    prepared = pipeline.prepare(model)
    assert ops(prepared.graph) == ["Relu", "MatMul"] or ops(prepared.graph) == ["Relu", "Gemm"]


def test_analog_does_not_allow_what_is_random() -> None:
    text = f"g (float[N,3] x) => (float[N,3] y) {PLACES['middle'].replace('STEP', DRAWN[0])}"
    with pytest.raises(Refused) as caught:
        pipeline.prepare(parse(text, {"w": random(0, 3, 3)}), allow_analog=True)
    assert [f.code for f in caught.value.findings if f.severity == "error"] == ["SNNC212"]
