"""Layered time with weights that are whole numbers: the same bits in every way of running."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, parse, random, run_model
from onnx import numpy_helper

from snncompiler import pipeline
from snncompiler.analysis.evaluate import evaluate
from snncompiler.analysis.verify import verify
from snncompiler.emission.compiled import read_compiled
from snncompiler.ir.settings import Options
from snncompiler.ir.whole import EXACT
from snncompiler.runtime import create_session, library_path

CODES = [("rate", 6), ("radix", 4)]
NETWORK = """g (float[N,2,8,8] x) => (float[N,3] y) {
    c = Conv <pads = [1, 1, 1, 1]> (x, w, b)  r = Relu (c)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
    d = Conv <pads = [1, 1, 1, 1]> (p, v, e)  q = Relu (d)  a = Conv (q, u)  s = Add (a, p)
    t = Relu (s)  k = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (t)  h = Conv (k, u)
    i = Conv (h, u)  o = Clip (i, lo, hi)  m = GlobalAveragePool (o)  f = Flatten (m)
    y = Gemm (f, z) }"""
MLP = """g (float[N,5] x) => (float[N,3] y) {
    a = Gemm (x, w, b)  r = Relu (a)  c = Gemm (r, v, d)  q = Relu (c)  y = Gemm (q, z) }"""


def network() -> onnx.ModelProto:
    weights = {
        "w": random(1, 4, 2, 3, 3), "b": random(2, 4), "v": random(3, 4, 4, 3, 3) / 4,
        "e": random(4, 4), "u": random(5, 4, 4, 1, 1), "z": random(6, 4, 3),
        "lo": np.float32(0), "hi": np.float32(2),
    }  # fmt: skip
    return parse(NETWORK, weights)


def compiled(
    model: onnx.ModelProto, x: Array, coding: Any, steps: int, weights: Any = "int8"
) -> onnx.ModelProto:
    options = Options(timing="layered", coding=coding, steps=steps, weights=weights)
    return pipeline.compile_model(model, options, x).model


@pytest.mark.parametrize(("coding", "steps"), CODES)
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_every_way_gives_the_same_bits(coding: str, steps: int, weights: str) -> None:
    x = random(7, 32, 2, 8, 8)
    snn = compiled(network(), x, coding, steps, weights)
    grid = read_compiled(snn).grid
    assert len(grid.layers) >= 4
    assert all(layer.bound < EXACT and layer.reach < EXACT for layer in grid.layers)
    assert [entry.name for entry in snn.graph.input] == ["x"]  # T is baked in
    wanted = _spikes(snn, x, native=False)
    ways: list[dict[str, Any]] = [{"native": False, "threads": 2}]
    ways += [{"native": True, "threads": n} for n in (1, 2)] if library_path() is not None else []
    for way in ways:
        for one, other in zip(_spikes(snn, x, **way), wanted, strict=True):
            assert one.tobytes() == other.tobytes(), way
    # Sums of other sizes of a batch are made in another order, and are the same.
    for sample in range(3):
        for one, other in zip(_spikes(snn, x[sample : sample + 1]), wanted, strict=True):
            assert (one == other.reshape(steps, len(x), *other.shape[1:])[:, sample]).all()
    assert verify(network(), snn).passed


def _spikes(snn: onnx.ModelProto, x: Array, **how: Any) -> list[Array]:
    twin = onnx.ModelProto()
    twin.CopyFrom(snn)
    for node in snn.graph.node:
        if node.op_type == "LayeredRMPNeuron":
            twin.graph.output.add(name=node.output[0])
    values: list[Array] = create_session(twin, **{"threads": 1, **how}).run(None, {"x": x})
    return values[1:]


@pytest.mark.parametrize(("coding", "steps"), CODES)
def test_spikes_are_those_of_an_integer_network(coding: str, steps: int) -> None:
    weights = {
        "w": random(1, 5, 6), "b": random(2, 6), "v": random(3, 6, 4), "d": random(4, 4),
        "z": random(5, 4, 3),
    }  # fmt: skip
    x = random(6, 40, 5)
    snn = compiled(parse(MLP, weights), x, coding, steps)
    first, second = (
        spikes.reshape(steps, len(x), -1).astype(np.int64) for spikes in _spikes(snn, x)
    )
    worth = 2 ** np.arange(steps)[::-1] if coding == "radix" else np.ones(steps, np.int64)
    count, sent = (np.tensordot(worth, part, 1) for part in (first, second))
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in snn.graph.initializer}
    made = {name: node for node in snn.graph.node for name in node.output}
    neuron = [node for node in snn.graph.node if node.op_type == "LayeredRMPNeuron"][1]
    matrix = values[made[neuron.input[0]].input[1]].astype(np.int64)
    theta, start = (values[neuron.input[at]].reshape(-1).astype(np.int64) for at in (1, 2))
    assert 100 < np.abs(matrix).max() <= 127 and (theta % 2 == 1).all()
    levels = 2**steps - 1 if coding == "radix" else steps
    np.testing.assert_array_equal(sent, np.clip((count @ matrix + start) // theta, 0, levels))


def test_weights_of_8_bits_lose_next_to_nothing() -> None:
    x = random(7, 64, 2, 8, 8)
    errors = []
    for weights in ("float32", "int8", "int4"):
        snn = compiled(network(), x[:48], "radix", 8, weights)
        (result,) = evaluate(network(), snn, x[48:]).results
        assert result.relative_error is not None
        errors.append(result.relative_error)
        (found,), (wanted,) = run_model(snn, x=x[48:]), run_model(network(), x=x[48:])
        assert found.shape == wanted.shape
    # The rounding of weights of 8 bits is about that of activations of 255 levels; of 4, 16 times it.
    assert errors[1] < 3 * errors[0] + 0.02 and errors[1] < errors[2]
