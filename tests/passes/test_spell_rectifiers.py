"""spell-rectifiers and to-float32: exact in the ANN, spiking afterwards, types of the source kept."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import (
    assert_close,
    codes,
    compile_text,
    op_counts,
    parse,
    random,
    refused,
    rewritten,
    run_model,
)
from onnx import numpy_helper

from snncompiler import pipeline
from snncompiler.report import constraints

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
        # C/T, as for the networks of test_spikes: C was at most 4 here.
        assert_close(decoded, wanted, relative=10 / steps)


def test_every_function_ran() -> None:
    assert len(PIECEWISE) == 14


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
    assert op_counts(result)["Clip"] == (attributes in ("min = 0.0", "min = -1.0"))
    np.testing.assert_array_equal(run_model(result, x=x)[0], run_model(model, x=x)[0])


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
