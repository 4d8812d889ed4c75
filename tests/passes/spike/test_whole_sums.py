"""whole-sums: the layers of a quantized source sum whole numbers, exact in any order."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, parse, random, run_model
from onnx import numpy_helper

from snncompiler import pipeline
from snncompiler.analysis.diagnose import Currents
from snncompiler.analysis.instrument import watch
from snncompiler.ir.settings import Options
from snncompiler.network.prepared import checking_session
from snncompiler.passes.spike.whole_sums import LARGEST, whole_rows

TEXT = """g (float[N,2,6,6] x) => (float[N,3] y) {
    xq = QuantizeLinear(x, is, iz)  xd = DequantizeLinear(xq, is, iz)
    c = Conv <pads = [1, 1, 1, 1]>(xd, a, ab)  q = QuantizeLinear(c, s, z)
    d = DequantizeLinear(q, s, z)
    k = Conv <pads = [1, 1, 1, 1]>(d, b)  kq = QuantizeLinear(k, u, uz)
    kd = DequantizeLinear(kq, u, uz)  r = Add(kd, d)
    o = QuantizeLinear(r, t, z)  e = DequantizeLinear(o, t, z)
    f = Flatten(e)  m = MatMul(f, w)  h = Relu(m)  p = QuantizeLinear(h, v, z)
    n = DequantizeLinear(p, v, z)  y = MatMul(n, l) }"""
SCALES = {"a": np.float32([0.0017, 0.0023, 0.0019, 0.0031]), "b": 0.0011, "w": 0.0009, "l": 0.0013}
SHAPES = {"a": (4, 2, 3, 3), "b": (4, 4, 3, 3), "w": (144, 5), "l": (5, 3)}
X = random(5, 8, 2, 6, 6)


def network() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The network, and the integers of its weights; one output channel of `a` is silent."""
    rng = np.random.default_rng(0)
    whole = {name: rng.integers(-127, 128, shape) for name, shape in SHAPES.items()}
    whole["a"][2] = 0
    given: dict[str, Any] = {
        "is": np.float32(0.0313), "iz": np.uint8(119), "s": np.float32(0.0117), "z": np.uint8(0),
        "u": np.float32(0.0231), "uz": np.uint8(128), "t": np.float32(0.0193),
        "v": np.float32(0.0291),
        "ab": (np.array([40, -200, 0, 90]) * SCALES["a"] * np.float32(0.0313)).astype(np.float32),
    }  # fmt: skip
    for name, integers in whole.items():
        scale = np.asarray(SCALES[name], np.float32)
        spread = scale.reshape(-1, 1, 1, 1) if scale.ndim else scale
        given[name] = (integers * spread).astype(np.float32)
    return parse(TEXT, {name: np.asarray(one) for name, one in given.items()}, opset=19), whole


def test_weights_and_sums_are_the_integers_of_the_source() -> None:
    """Every layer in front of a neuron or a rounding, whether it reads spikes or the input; the last
    one, which nothing rounds, stays as it is."""
    model, whole = network()
    result = pipeline.compile_model(model, Options(timing="layered", coding="radix"))
    arrays = {one.name: numpy_helper.to_array(one) for one in result.model.graph.initializer}
    layers = [
        node for node in result.model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm")
    ]
    found = [arrays[layer.input[1]] for layer in layers]
    for array, name in zip(found[:3], ("a", "b", "w"), strict=True):
        np.testing.assert_array_equal(array, whole[name])
    assert np.any(found[3] != np.rint(found[3]))
    currents = [layer.output[0] for layer in layers[:3]]
    typed = onnx.shape_inference.infer_shapes(result.model)
    for name in currents:
        typed.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    for current in run_model(typed, x=X)[-3:]:
        np.testing.assert_array_equal(current, np.rint(current))
    source = checking_session(model, optimize=False).run(None, {"x": X})[0]
    (output,) = run_model(result.model, x=X)
    # Sums of 5 products of float32.
    np.testing.assert_allclose(output, source, rtol=0, atol=16 * 2.0**-24 * np.abs(source).max())


def test_what_is_watched_is_in_units_of_the_source() -> None:
    model, _ = network()
    result = pipeline.compile_model(model, Options(timing="layered", coding="radix"))
    layers = {layer.name: layer.in_values() for layer in watch(result.model).layers}
    for name, theta in result.calibration.thresholds.items():
        np.testing.assert_allclose(np.ravel(layers[name].threshold), theta[0], rtol=2.0**-22)
    Currents(result.prepared, None, result.model)  # what --diagnose compares


@pytest.mark.parametrize("columns", [1, 3, 500])
def test_scales_are_found_in_the_weights(columns: int) -> None:
    rng = np.random.default_rng(columns)
    whole = rng.integers(-LARGEST, LARGEST + 1, (6, columns))
    scales = rng.uniform(0.001, 0.1, 6).astype(np.float32)
    rows = (whole * scales[:, None]).astype(np.float32) * np.float32(0.0371)
    found = whole_rows(np.asarray(rows, np.float64))
    assert found is not None
    scale, integers = found
    # They may have a common factor, which the scale has then.
    np.testing.assert_allclose(scale[:, None] * integers, rows, rtol=2.0**-22)
    assert np.abs(integers).max() <= np.abs(whole).max()


def test_weights_of_no_common_scale_have_none() -> None:
    assert whole_rows(np.asarray(random(1, 4, 40), np.float64)) is None
    found = whole_rows(np.zeros((2, 3)))
    assert found is not None and not found[1].any() and np.all(found[0] == 1)
