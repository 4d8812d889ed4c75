"""check-constraints: what can be converted, what is kept, what is named."""

from __future__ import annotations

import re

import numpy as np
import pytest
from helpers import (
    assert_close,
    codes,
    compile_text,
    ops,
    parse,
    random,
    refused,
    run_model,
)

from snncompiler import pipeline
from snncompiler.errors import Refused
from snncompiler.runtime.session import create_session

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
    "s = ReduceMax <keepdims = 0> (x)  t = Greater (s, none)  e = Dropout (h, half, t)",
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
    text = f"g (float[N,3] x) => (float[N,3] y) {PLACES[place].replace('STEP', step)}"
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


# --- one factor depends on time, the other one does not ---

#: Statements that make `p` of `s` [N,5,4], which spikes, and of a second input `e` and its shape.
BILINEAR = {
    "graph": ("p = MatMul (e, s)", "N,5,5"),
    "graph of rank 2, normalized": (
        "d = ReduceSum (e, last)  q = Div (e, d)  p = MatMul (q, s)",
        "N,5,5",
    ),
    "weights of each sample": ("p = MatMul (s, e)", "N,4,3"),
    "graph of heads": (
        "u = Unsqueeze (s, one)  v = Expand (u, heads)  p = MatMul (e, v)",
        "N,2,5,5",
    ),
    "Einsum": ('p = Einsum <equation = "nvf,nwv->nwf"> (s, e)', "N,5,5"),
    "Einsum that puts them last": ('p = Einsum <equation = "nvf,vn->nfv"> (s, t)', "N,5"),
    "mask": ("m = Greater (e, zero)  p = Where (m, s, zero)", "N,5,4"),
    "softmax of another input": ("a = Softmax (e)  p = MatMul (a, s)", "N,5,5"),
    "divided": ("a = Exp (e)  p = Div (s, a)", "N,5,1"),
    "scatter": ("p = ScatterElements <axis = 1> (s, places, e)", "N,2,4"),
}


@pytest.mark.parametrize("options", [{}, {"unroll": "loop"}, {"unroll": "steps", "steps": 64}])
@pytest.mark.parametrize("kind", BILINEAR)
def test_a_product_with_what_does_not_depend_on_time_is_linear(
    kind: str, options: dict[str, object]
) -> None:
    step, shape = BILINEAR[kind]
    if "(s, t)" in step:
        step = "t = Transpose (e)  " + step
    text = f"""g (float[N,5,3] x, float[{shape}] e) => (float[N,A,B] y)
    {{ c = MatMul (x, w)  s = Relu (c)  {step}  b = Add (p, shift)  y = Relu (b) }}"""
    constants = {
        "w": random(0, 3, 4),
        "shift": np.float32(0.5),
        "zero": np.float32(0),
        "one": np.array([1]),
        "last": np.array([-1]),
        "heads": np.array([1, 2, 5, 4]),
        "places": np.tile(np.array([[[0], [3]]]), (1, 1, 4)),
    }
    used = {n: a for n, a in constants.items() if re.search(rf"\b{n}\b", text)}
    model = parse(text, used)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    rng = np.random.default_rng(1)
    feeds = {
        "x": random(2, 3, 5, 3),
        "e": rng.uniform(0.1, 0.4, [3, *map(int, shape.split(",")[1:])]).astype(np.float32),
    }
    wanted = np.concatenate(
        [run_model(model, **{n: a[i : i + 1] for n, a in feeds.items()})[0] for i in range(3)]
    )
    snn = compile_text(model, feeds, **options)
    rows = (
        [feeds]
        if "scatter" not in kind
        else [{n: a[i : i + 1] for n, a in feeds.items()} for i in range(3)]
    )
    for native, events in ((False, False), *([] if options else [(True, False), (True, True)])):
        session = create_session(snn, threads=1, native=native, events=events)
        for steps in (64,) if options.get("steps") else (64, 1024):
            more = {} if options.get("steps") else {"snnc_steps": np.array(steps)}
            decoded = np.concatenate([session.run(None, {**row, **more})[0] for row in rows])
            # C/T: a neuron is off by θ/T; at most five of them are summed with weights below 1.
            assert_close(decoded, wanted, relative=10 / steps)
