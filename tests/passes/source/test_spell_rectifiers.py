"""spell-rectifiers and to-float32: exact in the ANN, spiking afterwards, types of the source kept."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from helpers import (
    assert_close,
    codes,
    compile_text,
    op_counts,
    ops,
    parse,
    random,
    refused,
    rewritten,
    run_model,
)
from onnx import numpy_helper

from snncompiler import pipeline
from snncompiler.analysis.constraints import constraints

#: A sum of two rectifiers of one value: each is exact, their scaling and sum round twice.
EXACT = 4 * 2.0**-24

PIECEWISE = {
    "LeakyRelu <alpha = 0.3> (h)": 2,
    "PRelu (h, slopes)": 2,
    "PRelu (h, none)": 1,
    "Clip (h, low, high)": 1,
    "Clip (h, low)": 1,
    "Clip (h, , high)": 1,
    "HardSigmoid <alpha = 0.25> (h)": 1,
    "Abs (h)": 2,
    "Max (h, g)": 1,
    "Min (h, g)": 1,
    "Max (h, low)": 1,
    "Min (high, h)": 1,
    "Where (positive, h, zero)": 1,
    "ThresholdedRelu <alpha = 0.0> (h)": 1,
}


def network(step: str) -> str:
    return f"""g (float[N,3,4,4] x) => (float[N,3,4,4] y)
    <float low = {{-0.5}}, float high = {{0.75}}, float zero = {{0}},
     float[3,1,1] slopes = {{0.1, 0, 2}}, float[1] none = {{0}}>
    {{ c = Conv <pads = [1, 1, 1, 1]> (x, w)  f = Relu (c)
       h = Conv (f, v)  g = Conv (f, u)  positive = Greater (h, zero)
       p = {step}
       q = Conv (p, v)  y = Relu (q) }}"""


def weights() -> dict[str, np.ndarray]:
    return {"w": random(1, 3, 3, 3, 3) / 3, "v": random(2, 3, 3, 1, 1), "u": random(3, 3, 3, 1, 1)}


@pytest.mark.parametrize("step", PIECEWISE)
def test_piecewise_linear_functions_become_rectifiers(step: str) -> None:
    model, x = parse(network(step), weights()), random(4, 4, 3, 4, 4)
    (wanted,) = run_model(model, x=x)
    result = rewritten(model)
    # The last convolution sums three values of this size.
    assert_close(run_model(result, x=x)[0], wanted, relative=16 * EXACT)
    counts = op_counts(result)
    assert counts["Relu"] + counts["Clip"] == 2 + PIECEWISE[step]
    snn = compile_text(model, x)
    assert op_counts(snn)["RMPNeuron"] == 2 + PIECEWISE[step]
    for steps in (64, 1024):
        (decoded,) = run_model(snn, x=x, snnc_steps=np.array(steps))
        # C/T, as for the networks of test_fold_amplitude: C was at most 4 here.
        assert_close(decoded, wanted, relative=10 / steps)


def test_every_function_ran() -> None:
    assert len(PIECEWISE) == 14


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 1, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("op", ["Min (r, c)", "Min (c, r)", "Max (r, c)", "Max (c, r)"])
def test_a_bound_of_more_axes_gives_the_result_as_many(op: str, shape: tuple[int, ...]) -> None:
    text = f"""g (float[N,4] x) => (float y)
    {{ a = MatMul (x, w)  r = Relu (a)  b = {op}  y = MatMul (b, v) }}"""
    weights = {"w": random(1, 4, 5), "v": random(2, 5, 3), "c": np.ones(shape, "f4")}
    model, x = parse(text, weights), random(3, 6, 4)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    (wanted,) = run_model(model, x=x)
    (found,) = run_model(compile_text(model, x, steps=512), x=x)
    # C/T, with C of 10.
    assert_close(found, wanted, relative=10 / 512)


@pytest.mark.parametrize("kind", ["float16", "double"])
def test_other_float_types_are_computed_in_float32(kind: str) -> None:
    dtype = {"float16": np.float16, "double": np.float64}[kind]
    text = f"""g ({kind}[N,4] x) => ({kind}[N,3] y, {kind}[N,5] h)
    {{ a = MatMul (x, w)  h = Relu (a)  b = MatMul (h, v)
       c = Clip (b, zero, six)  y = Softmax (c) }}"""
    model = parse(text)
    arrays = {"w": random(1, 4, 5), "v": random(2, 5, 3), "zero": np.zeros(()), "six": np.array(6)}
    for name, array in arrays.items():
        model.graph.initializer.append(numpy_helper.from_array(array.astype(dtype), name))
    x = random(3, 6, 4).astype(dtype)
    before, result = run_model(model, x=x), rewritten(model)
    for now, then in zip(run_model(result, x=x), before, strict=True):
        assert now.dtype == then.dtype == dtype
        # float16 sums of five products: five roundings of 2^-11 in the source; float32: 2^-24.
        assert_close(now, then, relative=8 * (2.0**-11 if kind == "float16" else 2.0**-24))
    for decoded, then in zip(
        run_model(compile_text(model, x, steps=1024), x=x), before, strict=True
    ):
        assert decoded.dtype == dtype
        assert_close(decoded, then, relative=20 / 1024)


@pytest.mark.parametrize("bounds", ["value_float = nan", "value_floats = [nan]"])
def test_a_bound_that_is_no_number_is_refused_and_ends(bounds: str) -> None:
    """It was rewritten into another Clip of the same kind, without end."""
    text = f"""g (float[N,2] x) => (float[N,2] y)
    {{ r = Relu (x)  lo = Constant <{bounds}> ()  hi = Constant <value_float = 6.0> ()
      c = Clip (r, lo, hi)  y = Relu (c) }}"""
    assert codes(refused(parse(text))) == ["SNNC108"]


#: Comparisons of h with 0 that hold where h is positive, and where it is negative.
POSITIVE = (
    "Greater (h, zero)",
    "GreaterOrEqual (h, zero)",
    "Less (zero, h)",
    "LessOrEqual (zero, h)",
)
NEGATIVE = (
    "Less (h, zero)",
    "LessOrEqual (h, zero)",
    "Greater (zero, h)",
    "GreaterOrEqual (zero, h)",
)


@pytest.mark.parametrize("other", ["zero", "low"])
@pytest.mark.parametrize("test", POSITIVE + NEGATIVE)
@pytest.mark.parametrize("kept", ["h, o", "o, h"])
def test_a_choice_by_sign_is_a_rectifier(kept: str, test: str, other: str) -> None:
    """Where x is kept that is positive, the other part 0 or a share of x; else it is a minimum, or a
    leaky rectifier that is steeper below 0, and stays a choice."""
    other = "Identity (zero)" if other == "zero" else "Mul (h, low)"
    text = f"""g (float[N,24] x) => (float[N,24] y) <float low = {{0.25}}, float zero = {{0}}>
    {{ h = Neg (x)  o = {other}  t = {test}  y = Where (t, {kept}) }}"""
    model, x = parse(text), random(4, 1, 24)
    result = rewritten(model, "spell-rectifiers")
    rectifies = (test in POSITIVE) == (kept == "h, o")
    assert ("Relu" in ops(result), "Where" in ops(result)) == (rectifies, not rectifies)
    assert_close(run_model(result, x=x)[0], run_model(model, x=x)[0], relative=EXACT)


@pytest.mark.parametrize("order", ["h, m", "m, h"])
@pytest.mark.parametrize("test", POSITIVE + NEGATIVE)
def test_a_mask_of_what_is_positive_is_a_rectifier(order: str, test: str) -> None:
    text = f"""g (float[N,24] x) => (float[N,24] y) <float zero = {{0}}>
    {{ h = Neg (x)  t = {test}  m = Cast <to = 1> (t)  y = Mul ({order}) }}"""
    model, x = parse(text), random(4, 1, 24)
    result = rewritten(model, "spell-rectifiers")
    assert ("Relu" in ops(result)) == (test in POSITIVE)
    assert np.array_equal(run_model(result, x=x)[0], run_model(model, x=x)[0])


@pytest.mark.parametrize(("attributes", "rectifies"), [("alpha = 0.0", True), ("", False)])
def test_a_threshold_of_zero_is_a_rectifier(attributes: str, rectifies: bool) -> None:
    """Without an attribute it is 1, where the values jump."""
    end = f" <{attributes}>" if attributes else ""
    text = f"g (float[N,4] x) => (float[N,4] y) {{ h = Neg (x)  y = ThresholdedRelu{end} (h) }}"
    wanted = ["Neg", "Relu" if rectifies else "ThresholdedRelu"]
    assert ops(rewritten(parse(text), "spell-rectifiers")) == wanted


@pytest.mark.parametrize(
    ("step", "bounded"),
    [("r = Relu (x)", True), ("r = Neg (x)", False), ("r = Sigmoid (x)", False)],
)
@pytest.mark.parametrize("order", ["r, high", "high, r"])
def test_only_a_rectifier_is_bounded(order: str, step: str, bounded: bool) -> None:
    text = f"""g (float[N,4] x) => (float[N,4] y) <float high = {{0.5}}>
    {{ {step}  y = Min ({order}) }}"""
    assert ("Clip" in ops(rewritten(parse(text), "spell-rectifiers"))) == bounded


# --- Clip without bounds ---

UNBOUNDED = {
    "float16": (np.finfo(np.float16).max, np.inf),
    "float": (np.finfo(np.float32).max, np.inf),
    "double": (np.finfo(np.float64).max, np.float64(1e300), np.inf),
}


@pytest.mark.parametrize(("kind", "high"), [(k, h) for k, ends in UNBOUNDED.items() for h in ends])
def test_a_clip_up_to_the_end_of_its_type_is_a_relu(kind: str, high: float) -> None:
    dtype = {"float16": np.float16, "float": np.float32, "double": np.float64}[kind]
    text = f"""g ({kind}[N,4] x) => ({kind}[N,3] y)
    {{ a = MatMul (x, w)  b = Clip (a, low, high)  c = Clip (b, zero, high)  y = MatMul (c, v) }}"""
    arrays = {"w": random(1, 4, 5), "v": random(2, 5, 3), "low": -high, "zero": 0, "high": high}
    model = parse(text)
    for name, array in arrays.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array, dtype), name))
    x = random(3, 6, 4).astype(dtype)
    result = rewritten(model)
    assert op_counts(result)["Clip"] == 1 and op_counts(result)["Identity"] == 0
    (cap,) = [r["upper_bound"] for r in constraints(pipeline.prepare(model))["rectifiers"]]
    assert cap is None
    # float16 sums of five products: five roundings of 2^-11 in the source.
    assert_close(
        run_model(result, x=x)[0],
        run_model(model, x=x)[0],
        relative=8 * (2.0**-11 if kind == "float16" else 2.0**-24),
    )


def test_a_real_bound_near_the_end_of_float16_stays_in_float32() -> None:
    text = """g (float[N,4] x) => (float[N,4] y) <float zero = {0}, float high = {65504}>
    { a = MatMul (x, w)  y = Clip (a, zero, high) }"""
    model, x = parse(text, {"w": 1e5 * np.eye(4, dtype=np.float32)}), random(3, 6, 4)
    assert run_model(rewritten(model), x=x)[0].max() == 65504


@pytest.mark.parametrize(
    "attributes",
    ["max = 3.4028234663852886e38", "min = -3.4028234663852886e38", "min = 0.0", "min = -1.0"],
)
def test_bounds_as_attributes_of_old_opsets(attributes: str) -> None:
    text = f"""g (float[N,4] x) => (float[N,3] y)
    {{ a = MatMul (x, w)  b = Relu (a)  c = Clip <{attributes}> (b)  y = MatMul (c, v) }}"""
    weights = {"w": random(1, 4, 5), "v": random(2, 5, 3)}
    model, x = parse(text, weights, opset=10), random(3, 6, 4)
    result = rewritten(model)
    assert op_counts(result)["Clip"] == (attributes == "min = 0.0")
    # A shifted Clip rounds twice.
    assert_close(run_model(result, x=x)[0], run_model(model, x=x)[0], relative=EXACT)


@pytest.mark.parametrize("step", ["Max (h, none)", "Max (none, h, g)", "Min (h, top)"])
def test_an_infinite_operand_of_max_and_min_costs_no_neuron(step: str) -> None:
    text = network(step).replace(", float[1] none = {0}", "")
    ends = {"none": np.float32(-np.inf), "top": np.float32(np.inf)}
    used = {n: a for n, a in ends.items() if n in step}
    model, x = parse(text, {**weights(), **used}), random(4, 4, 3, 4, 4)
    snn = compile_text(model, x)
    assert op_counts(snn)["RMPNeuron"] == (3 if "g)" in step else 2)
    (wanted,) = run_model(model, x=x)
    # C/T with C at most 4, as above.
    assert_close(run_model(snn, x=x, snnc_steps=np.array(1024))[0], wanted, relative=10 / 1024)


# --- activations, preprocessing and read-out ---

#: Statements that make `a` of `h` [N,6], what of it spikes, and how many channels come out.
ACTIVATIONS = {
    "hardtanh": ("a = Clip (h, down, up)", 1, 6),
    "bounded above": ("a = Clip (h, , up)", 1, 6),
    "absolute value": ("a = Abs (h)", 2, 6),
    "maxout": ("u, v = Split <axis = 1> (h)  a = Max (u, v)", 1, 3),
    "maxout of three": ("u, v, t = Split <axis = 1> (h)  a = Max (u, v, t)", 2, 2),
    "minimum": ("u, v = Split <axis = 1> (h)  a = Min (u, v)", 1, 3),
    "hard sigmoid": ("a = HardSigmoid (h)", 1, 6),
    "soft shrink": ("a = Shrink <lambd = 0.3, bias = 0.3> (h)", 2, 6),
    "leaky": ("a = LeakyRelu (h)", 2, 6),
    "parametric": ("a = PRelu (h, slopes)", 2, 6),
    "leaky by a choice": ("m = Mul (h, tenth)  t = Greater (h, zero)  a = Where (t, h, m)", 2, 6),
    "leaky by the larger": ("m = Mul (h, tenth)  a = Max (h, m)", 1, 6),
    "times its sign": ("t = Greater (h, zero)  c = Cast <to = 1> (t)  a = Mul (h, c)", 1, 6),
    "with its size": ("b = Abs (h)  s = Add (h, b)  a = Mul (s, half)", 1, 6),
    "PACT": (
        "b = Abs (h)  m = Sub (h, top)  c = Abs (m)  d = Sub (b, c)  e = Add (d, top)"
        "  a = Mul (e, half)", 1, 6),
    "PACT in another order": (
        "m = Sub (h, top)  b = Abs (h)  c = Abs (m)  d = Sub (b, c)  e = Mul (half, d)"
        "  a = Add (e, bottom)", 1, 6),
}  # fmt: skip
BOUNDS = {
    "down": np.float32(-0.6), "up": np.float32(0.6), "zero": np.float32(0), "tenth": np.float32(0.1),
    "half": np.float32(0.5), "top": np.float32(0.75), "bottom": np.float32(0.375),
    "slopes": np.array([0.1, 0, 0.3, -0.2, 0.5, 1.5], np.float32),
}  # fmt: skip


def of_layers(step: str, width: int, depth: int, end: str, front: str = "") -> onnx.ModelProto:
    """`depth` layers with the activation behind each, and a linear one that ends it."""
    body, before = (front or "n = Identity (x)"), "n"
    constants = dict(BOUNDS)
    for index in range(depth):
        own = step
        for name in ("h", "a", "b", "c", "d", "e", "m", "s", "t", "u", "v"):
            own = re.sub(rf"\b{name}\b", f"{name}{index}", own)
        constants[f"w{index}"] = random(index, width if index else 5, 6) * np.float32(0.6)
        body += f"  h{index} = MatMul ({before}, w{index})  {own}"
        before = f"a{index}"
    constants["last"] = random(9, width, 4)
    text = f"g (float[N,5] x) => (float[N,M] y) {{ {body}  {end.format(before)} }}"
    used = {n: a for n, a in constants.items() if re.search(rf"\b{n}\b", text)}
    model = parse(text, used)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_an_activation_spikes_as_the_first_one_and_as_the_only_kind(kind: str) -> None:
    step, neurons, width = ACTIVATIONS[kind]
    model, x = of_layers(step, width, 3, "y = MatMul ({}, last)"), random(7, 4, 5)
    (wanted,) = run_model(model, x=x)
    snn = compile_text(model, x)
    assert op_counts(snn)["RMPNeuron"] == 3 * neurons
    for steps in (64, 1024):
        (decoded,) = run_model(snn, x=x, snnc_steps=np.array(steps))
        # C/T: three layers, each off by θ/T of up to six values with weights below 2.
        assert_close(decoded, wanted, relative=40 / steps)


@pytest.mark.parametrize("kind", [k for k in ACTIVATIONS if k != "maxout of three"])
def test_the_only_activation_spikes_though_nothing_follows_it(kind: str) -> None:
    step, neurons, width = ACTIVATIONS[kind]
    model, x = of_layers(step, width, 1, "y = Softmax ({})"), random(7, 4, 5)
    (wanted,) = run_model(model, x=x)
    snn = compile_text(model, x)
    assert op_counts(snn)["RMPNeuron"] == neurons
    # C/T: one layer, off by θ/T.
    assert_close(run_model(snn, x=x, snnc_steps=np.array(1024))[0], wanted, relative=5 / 1024)


#: Statements before the first layer and behind the last one, with the operators that are kept.
KEPT = [
    ("n = Clip (x, down, up)", "y = MatMul ({}, last)", "Clip", "before the first"),
    ("n = Abs (x)", "y = MatMul ({}, last)", "Abs", "before the first"),
    ("i = Mul (x, half)  n = Max (i, down)", "y = MatMul ({}, last)", "Max", "before the first"),
    ("", "z = MatMul ({}, last)  y = Clip (z, down, up)", "Clip", "after the last"),
    ("", "z = MatMul ({}, last)  y = HardSigmoid (z)", "HardSigmoid", "after the last"),
    ("", "z = MatMul ({}, last)  q = Abs (z)  y = Softmax (q)", "Abs", "after the last"),
    ("", "z = MatMul ({}, last)  q = Min (z, up)  y = Mul (q, half)", "Min", "after the last"),
]


@pytest.mark.parametrize(("front", "end", "op", "where"), KEPT)
def test_preprocessing_and_read_out_are_kept_as_they_are(
    front: str, end: str, op: str, where: str
) -> None:
    model = of_layers("a = Clip (h, down, up)", 6, 2, end, front)
    prepared, x = pipeline.prepare(model), random(7, 4, 5)
    (note,) = [f for f in prepared.findings if f.code == "SNNC206" and f.node.startswith(op + " ")]
    assert where in note.message
    (wanted,) = run_model(model, x=x)
    snn = compile_text(model, x)
    assert op_counts(snn)["RMPNeuron"] == 2
    # C/T: two layers, as above.
    assert_close(run_model(snn, x=x, snnc_steps=np.array(1024))[0], wanted, relative=30 / 1024)


GATED = {
    "norm": "p = Mul (h, h)  q = ReduceSum <keepdims = 1> (p)  n = Clip (q, up)  a = Div (h, n)",
    "attention": "s = Clip (h, down, up)  a = Softmax (s)",
}


@pytest.mark.parametrize("kind", GATED)
def test_what_leads_to_a_static_operator_that_is_not_linear_stays_static(kind: str) -> None:
    text = f"""g (float[N,5] x) => (float[N,4] y)
    {{ g = MatMul (x, v)  h = Softmax (g)  {GATED[kind]}  b = MatMul (a, w)  r = Relu (b)
       y = MatMul (r, last) }}"""
    arrays = {"v": random(1, 5, 6), "w": random(2, 6, 6), "last": random(3, 6, 4), **BOUNDS}
    used = {n: a for n, a in arrays.items() if re.search(rf"\b{n}\b", text)}
    prepared = pipeline.prepare(parse(text, used))
    assert [r["name"] for r in constraints(prepared)["rectifiers"]] == [
        "Relu_" + str([node.op_type for node in prepared.checked_model.graph.node].index("Relu"))
    ]


#: Bounds of norms over what the last rectifier gave, with a trained layer behind: SSD, embeddings.
NORMS = {
    "L2": "q = ReduceL2 <axes = [1]> (r)  n = Clip (q, tenth)  a = Div (r, n)",
    "by a square root": "p = Mul (r, r)  q = ReduceSum (p, axis)  n = Max (q, tenth)  m = Sqrt (n)"
    "  a = Div (r, m)",
    "range": "q = ReduceMax <axes = [1]> (r)  s = Sqrt (q)  n = Clip (s, tenth, top)  a = Div (r, n)",
}


@pytest.mark.parametrize("kind", NORMS)
def test_the_bound_of_a_norm_in_the_read_out_is_no_activation(kind: str) -> None:
    text = f"""g (float[N,5] x) => (float[N,4] y)
    {{ h = MatMul (x, w)  r = Relu (h)  {NORMS[kind]}  y = MatMul (a, last) }}"""
    arrays = {"w": random(2, 5, 6), "last": random(3, 6, 4), "axis": np.array([1]), **BOUNDS}
    used = {n: a for n, a in arrays.items() if re.search(rf"\b{n}\b", text)}
    model, x = parse(text, used), random(7, 4, 5)
    (wanted,) = run_model(model, x=x)
    snn = compile_text(model, x)
    assert op_counts(snn)["RMPNeuron"] == 1
    # C/T: one layer, off by θ/T, and a quotient of it.
    assert_close(run_model(snn, x=x, snnc_steps=np.array(1024))[0], wanted, relative=10 / 1024)


def test_whole_numbers_are_not_rectified() -> None:
    text = """g (int64[N,4] i) => (float[N,3] y) <int64 low = {-1}, int64 high = {3}, int64 zero = {0}>
    { c = Clip (i, low, high)  t = Greater (c, zero)  k = Cast <to = 7> (t)  d = Mul (c, k)
      e = Abs (d)  f = Cast <to = 1> (e)  h = MatMul (f, w)  r = Relu (h)  y = MatMul (r, v) }"""
    model = parse(text, {"w": random(1, 4, 5), "v": random(2, 5, 3)})
    prepared = pipeline.prepare(model)
    assert [r["operator"] for r in constraints(prepared)["rectifiers"]] == ["Relu"]
    ids = np.array([[-2, 1, 7, 3]])
    np.testing.assert_array_equal(run_model(prepared.ann, i=ids)[0], run_model(model, i=ids)[0])
