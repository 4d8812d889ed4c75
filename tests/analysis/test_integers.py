"""Integers: what the spikes of a quantized source stand for, beside the source."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from helpers import parse, random
from onnx import numpy_helper

from snncompiler import pipeline
from snncompiler.analysis.integers import compare_integers
from snncompiler.analysis.verify import verify
from snncompiler.ir.settings import Options
from snncompiler.pipeline import Compiled

TEXT = """g (float[N,2,6,6] x) => (float[N,3,h,w] y) {
    c = Conv <pads = [1, 1, 1, 1]>(x, a)  r = Relu(c)
    q = QuantizeLinear(r, s, z)  d = DequantizeLinear(q, s, z)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]>(d)
    k = Conv <pads = [1, 1, 1, 1]>(p, b)  f = Relu(k)
    o = QuantizeLinear(f, t, z)  e = DequantizeLinear(o, t, z)  y = Conv(e, w3) }"""
X = random(9, 3, 2, 6, 6)


def compiled() -> tuple[onnx.ModelProto, Compiled]:
    """A max pooling of radix spikes: a neuron fires behind it."""
    given = {
        "a": random(1, 4, 2, 3, 3), "b": random(2, 4, 4, 3, 3), "w3": random(3, 3, 4, 1, 1),
        "s": np.float32(0.0471), "t": np.float32(0.093), "z": np.uint8(0),
    }  # fmt: skip
    model = parse(TEXT, {name: np.asarray(one) for name, one in given.items()})
    return model, pipeline.compile_model(model, Options(timing="layered", coding="radix"))


def test_all_layers_send_the_integers_of_the_source() -> None:
    _, result = compiled()
    found = compare_integers(result.prepared, result.model, {"x": X})
    assert [layer.values for layer in found.layers] == [3 * 4 * 9, 3 * 4 * 9]
    assert (found.different, found.largest) == (0, 0)
    assert str(found) == "same integers at all 216 values"


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (1.003, False)])
def test_verify_sees_a_wrong_threshold(factor: float, passes: bool) -> None:
    model, result = compiled()
    wrong = onnx.ModelProto()
    wrong.CopyFrom(result.model)
    neuron = next(node for node in wrong.graph.node if node.op_type == "LayeredRMPNeuron")
    for tensor in wrong.graph.initializer:
        if tensor.name == neuron.input[1]:
            tensor.CopyFrom(
                numpy_helper.from_array(
                    numpy_helper.to_array(tensor) * np.float32(factor), tensor.name
                )
            )
    checks = {check.name: check for check in verify(model, wrong).checks}
    integers = checks["integers of the quantized source"]
    assert integers.passed == passes
    assert ("source's: same integers at all" in integers.detail) == passes


def test_what_differs_is_counted() -> None:
    _, result = compiled()
    other = parse(TEXT, {tensor.name: numpy_helper.to_array(tensor) for tensor in _given(result)})
    for tensor in other.graph.initializer:
        if tensor.name == "a":
            values = numpy_helper.to_array(tensor).copy()
            values[0] *= np.float32(1.01)
            tensor.CopyFrom(numpy_helper.from_array(values, "a"))
    changed = pipeline.compile_model(other, Options(timing="layered", coding="radix"))
    found = compare_integers(result.prepared, changed.model, {"x": X})
    assert 0 < found.different < found.values and found.largest >= 1
    assert str(found).startswith(f"{found.different} of 216 integers differ, by at most")


@pytest.mark.parametrize(
    ("coding", "steps"), [("radix", 8), pytest.param("rate", 255, marks=pytest.mark.slow)]
)
def test_fed_with_the_integers_of_the_source_no_layer_hands_its_errors_on(
    coding: Any, steps: int
) -> None:
    """Of a changed first layer the second one makes other integers; fed with the source's, the same."""
    options = Options(timing="layered", coding=coding, steps=steps)
    model, _ = compiled()
    result = pipeline.compile_model(model, options)
    fed = compare_integers(result.prepared, result.model, {"x": X}, fed=True)
    # Rate spikes are pooled step by step, so that the first layer sends before that.
    assert [layer.values for layer in fed.layers][-1] == 3 * 4 * 9
    assert (fed.different, fed.largest, fed.from_half) == (0, 0, 0.0)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name == "a":
            values = numpy_helper.to_array(tensor) * np.float32(1.01)
            tensor.CopyFrom(numpy_helper.from_array(values, "a"))
    other = pipeline.compile_model(changed, options).model
    first, second = compare_integers(result.prepared, other, {"x": X}).layers
    assert first.different and second.different
    first, second = compare_integers(result.prepared, other, {"x": X}, fed=True).layers
    assert first.different and not second.different
    # 1 % of 100 levels is one of them, and nearly all of that off a half.
    assert first.from_half > 0.1


def test_a_value_that_is_rounded_without_spikes_is_fed_too() -> None:
    """Behind a shortcut the source rounds what has a sign, and a layer reads that."""
    text = """g (float[N,2,6,6] x) => (float[N,3,6,6] y) {
        c = Conv <pads = [1, 1, 1, 1]>(x, a)  r = Relu(c)
        q = QuantizeLinear(r, s, z)  d = DequantizeLinear(q, s, z)
        k = Conv <pads = [1, 1, 1, 1]>(d, b)  h = Sub(k, d)
        o = QuantizeLinear(h, t, n)  e = DequantizeLinear(o, t, n)
        l = Conv(e, w2)  f = Relu(l)  i = QuantizeLinear(f, s, z)  j = DequantizeLinear(i, s, z)
        y = Conv(j, w3) }"""
    given = {
        "a": random(1, 4, 2, 3, 3), "b": random(2, 4, 4, 3, 3), "w2": random(3, 4, 4, 1, 1),
        "w3": random(4, 3, 4, 1, 1), "s": np.float32(0.0471), "t": np.float32(0.093),
        "z": np.uint8(0), "n": np.uint8(120),
    }  # fmt: skip
    model = parse(text, {name: np.asarray(one) for name, one in given.items()})
    result = pipeline.compile_model(model, Options(timing="layered", coding="radix"))
    fed = compare_integers(result.prepared, result.model, {"x": X}, fed=True)
    assert len(fed.layers) == 3 and sum(layer.values for layer in fed.layers) == 3 * 3 * 4 * 36
    assert fed.largest <= 1


def _given(result: Compiled) -> list[onnx.TensorProto]:
    return list(result.prepared.source.model.graph.initializer)
