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
