"""whole-numbers: everything is whole, every way of running gives the same bits, and nothing is lost."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, codes, parse, random, told

import snncompiler
from snncompiler import pipeline
from snncompiler.analysis.instrument import Watched, watch
from snncompiler.analysis.whole import off_grid
from snncompiler.emission.metadata import grid_of
from snncompiler.errors import Refused
from snncompiler.ir.settings import Options
from snncompiler.ir.whole import EXACT
from snncompiler.passes.lower.lower_events import lower_events
from snncompiler.runtime.session import create_session

#: The ways of running a compiled network; the first is its specification.
WAYS: tuple[dict[str, Any], ...] = (
    {"native": False, "threads": 1},
    {"events": False, "threads": 1},
    {"events": False, "threads": 2},
    {"threads": 1},
    {"threads": 2},
)


def run(model: onnx.ModelProto, x: Array, **way: Any) -> list[Array]:
    """All outputs with the first two samples alone, then all samples together."""
    session = create_session(model, **way)
    found: list[Array] = session.run(None, {"x": x})
    alone = session.run(None, {"x": x[:2]})
    for first, whole in zip(alone, found, strict=True):
        assert np.array_equal(first, whole[:2], equal_nan=True)
    return found


def assert_same_bits(model: onnx.ModelProto, x: Array) -> list[Array]:
    wanted = run(model, x, **WAYS[0])
    for way in WAYS[1:]:
        for one, other in zip(run(model, x, **way), wanted, strict=True):
            assert one.tobytes() == other.tobytes(), way
    return wanted


def assert_whole(model: onnx.ModelProto, x: Array) -> None:
    """Every current, potential, threshold and charge is a whole number, and within its bound."""
    watched = watch(model, currents=True)
    names = [entry.name for entry in watched.model.graph.output]
    values = dict(zip(names, create_session(watched.model).run(None, {"x": x}), strict=True))
    grid = grid_of(model)
    for layer in watched.layers:
        told_of = grid.of(layer.name)
        numbers = [layer.threshold, layer.membrane_start, layer.schedule]
        numbers += [values[Watched.output(layer, w)] for w in ("current_sum", "membrane_end")]
        for array in numbers:
            assert array is None or np.array_equal(array, np.round(array)), layer.name
        assert (layer.threshold % 2 == 1).all()
        assert told_of.bound <= EXACT
        peak = values[Watched.output(layer, "membrane_max")].max(initial=0)
        assert peak <= told_of.reach, layer.name


#: Body from the spikes s [N,4,6,6] of the first rectifier to the current c of the second one.
BETWEEN: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "conv": ("c = Conv <pads = [1, 1, 1, 1]> (s, w, b)", {"w": (3, 4, 3, 3), "b": (3,)}),
    "depthwise": ("c = Conv <group = 4> (s, w)", {"w": (8, 1, 3, 3)}),
    "transposed, grouped": ("c = ConvTranspose <group = 2> (s, w)", {"w": (4, 3, 3, 3)}),
    "average": (
        "p = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (s)  c = Conv (p, w)",
        {"w": (3, 4, 1, 1)},
    ),
    "average with a border": (
        "p = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (s)  c = Conv (p, w)",
        {"w": (3, 4, 1, 1)},
    ),
    "average of currents": (
        "q = Conv (s, w)  c = AveragePool <kernel_shape = [3, 3], strides = [2, 2]> (q)",
        {"w": (3, 4, 1, 1)},
    ),
    "global average": ("p = GlobalAveragePool (s)  c = Conv (p, w)", {"w": (3, 4, 1, 1)}),
    "max": ("p = MaxPool <kernel_shape = [2, 2]> (s)  c = Conv (p, w)", {"w": (3, 4, 3, 3)}),
    "rows": ("f = Flatten (s)  c = Gemm (f, w, b)", {"w": (144, 5), "b": (5,)}),
    "residual": (
        "q = Conv <pads = [1, 1, 1, 1]> (s, w)  c = Add (q, s)",
        {"w": (4, 4, 3, 3)},
    ),
    "residual alone": ("c = Sub (s, b)", {"b": (4, 1, 1)}),
    "concat": ("q = Conv (s, w)  c = Concat <axis = 1> (q, s)", {"w": (3, 4, 1, 1)}),
    "a layer behind a layer": (
        "q = Conv (s, w)  c = Conv (q, v)",
        {"w": (64, 4, 1, 1), "v": (3, 64, 3, 3)},
    ),
    "scaled": ("q = Conv (s, w)  p = Mul (q, b)  c = Add (p, s)", {"w": (4, 4, 1, 1), "b": (4, 1, 1)}),
    "leaky": ("q = LeakyRelu <alpha = 0.2> (x1)  c = Conv (q, w)", {"w": (3, 4, 1, 1)}),
    "beside the input": ("q = Conv (s, w)  c = Add (q, x1)", {"w": (4, 4, 1, 1)}),
}  # fmt: skip


def between(name: str) -> tuple[onnx.ModelProto, Array]:
    body, shapes = BETWEEN[name]
    weights = {
        key: random(11 + index, *shape) / np.float32(np.sqrt(np.prod(shape[1:]) or 1))
        for index, (key, shape) in enumerate(shapes.items())
    }
    weights["first"], weights["bias"] = random(5, 4, 2, 3, 3) / 4, random(6, 4) / 4
    text = f"""g (float[N,2,6,6] x) => (float[N,k] y) {{
        x1 = Conv <pads = [1, 1, 1, 1]> (x, first, bias)  s = Relu (x1)
        {body}
        r = Relu (c)  f1 = Flatten (r)  y = ReduceMean <axes = [1]> (f1) }}"""
    return parse(text, weights), random(9, 8, 2, 6, 6)


@pytest.mark.parametrize("name", BETWEEN)
def test_every_kind_of_current_is_whole(name: str) -> None:
    model, x = between(name)
    # The charges would hide what is lost.
    plain: dict[str, Any] = {"steps": 24, "threshold": "max", "correction": "none"}
    compiled = pipeline.compile_model(model, Options(**plain, weights="int8"), x)
    assert_whole(compiled.model, x)
    whole = assert_same_bits(compiled.model, x)[0]
    real = pipeline.compile_model(model, Options(**plain), x)
    wanted = create_session(real.model, threads=1).run(None, {"x": x})[0]
    # Both are means over 24 steps; a spike that comes a step earlier or later moves one of its neurons'
    # values by 1/24 of θ, and the output is the mean of them.
    scale = np.abs(wanted).max()
    assert np.abs(whole - wanted).max() <= scale / 12, (np.abs(whole - wanted).max(), scale)


def test_weights_lie_on_the_grid_that_is_asked_for() -> None:
    model, x = between("residual")
    for bits, largest, step in (
        ("int8", 127, 1),
        ("int4", 7, 16),
        ("int2", 1, 64),
        ("int11", 1023, 1),
    ):
        made = snncompiler.compile(model, calibration=x, weights=bits, steps=4)
        second = grid_of(made).layers[1]
        assert (second.largest, second.step) == (largest * step, step)
        loop = next(node for node in made.graph.node if node.op_type == "Loop")
        held = {t.name: onnx.numpy_helper.to_array(t) for t in loop.attribute[0].g.initializer}
        weights = next(array for array in held.values() if array.shape == (4, 4, 3, 3))
        assert (weights % step == 0).all() and np.abs(weights).max() == largest * step
        # Of every channel the largest weight is within one step of the largest that there is.
        assert (np.abs(weights).max(axis=(1, 2, 3)) >= (largest - 1) * step).all()


def test_weights_of_16_bits_are_told_apart_from_coefficients_of_as_many() -> None:
    model, x = between("residual")
    made = snncompiler.compile(model, calibration=x, weights="int16", steps=4)
    layer = grid_of(made).layers[1]
    # Both have one scale: that of the larger one, which is the coefficient here.
    assert 1023 < layer.largest < layer.coefficient <= (1 << 15) - 1
    assert off_grid(made, grid_of(made)) == []


def test_spikes_are_worth_what_their_threshold_became() -> None:
    """Two neurons that read one current with thresholds of their own: the second one is rounded, and
    the weights behind it make up for that."""
    text = """g (float[N,4] x) => (float[N,4] y) {
        a = Gemm (x, w)  s = Relu (a)  c = Gemm (s, u)
        r = Relu (c)  n = Neg (c)  t = Relu (n)  d = Gemm (r, v)  e = Gemm (t, z)
        f = Add (d, e)  y = Relu (f) }"""
    weights = {name: random(20 + i, 4, 4) for i, name in enumerate("wuvz")}
    x = random(3, 64, 4)
    made = snncompiler.compile(parse(text, weights), calibration=x, weights="int8", steps=8)
    grid = grid_of(made)
    first, second = grid.layers[1], grid.layers[2]
    assert np.array_equal(first.scale, second.scale)
    assert_whole(made, x)
    assert_same_bits(made, x)


def test_what_has_no_whole_numbers_is_refused_with_everything_at_once() -> None:
    text = """g (float[N,4,4,4] x) => (float[N,4,8,8] y) {
        s = Relu (x)  c = Resize <mode = "linear"> (s, , scales)
        d = MatMul (w, s)  t = Resize <mode = "nearest"> (d, , scales)
        e = Add (c, t)  y = Relu (e) }"""
    model = parse(text, {"scales": np.float32([1, 1, 2, 2]), "w": random(1, 4, 4)})
    with pytest.raises(Refused) as caught:
        snncompiler.compile(model, calibration=random(2, 16, 4, 4, 4), weights="int8")
    assert [finding.code for finding in caught.value.findings] == ["SNNC223"] * 2
    assert sorted(f.node.split()[0] for f in caught.value.findings) == ["MatMul", "Resize"]
    assert snncompiler.compile(model, calibration=random(2, 16, 4, 4, 4)).graph.node


def test_a_calibration_without_the_range_of_the_input_is_refused() -> None:
    model, x = between("conv")
    calibration = pipeline.compile_model(model, Options(), x).calibration
    with pytest.raises(Refused) as caught:
        pipeline.compile_model(model, Options(weights="int8"), calibration)
    assert codes(caught.value.findings) == ["SNNC306"]


@pytest.mark.parametrize("how", [
    {"neuron": "burst:3"}, {"neuron": "signed:2"}, {"reset": "hard"}, {"encode": "poisson"},
    {"growth": "none"}, {"initial": 0.0}, {"emit": "cuda-graph", "batch": 8}, {"target": "cpu"},
    {"unroll": "steps"}, {"unroll": "loop"}, {"readout": "ramp:2"}, {"input_bits": 8},
], ids=str)  # fmt: skip
def test_it_works_with_every_option(how: dict[str, Any]) -> None:
    model, x = between("residual")
    made = snncompiler.compile(model, calibration=x, weights="int8", steps=6, **how)
    ways = [create_session(made, **way).run(None, {"x": x})[0].tobytes() for way in WAYS]
    assert len(set(ways)) == 1
    assert json.loads(told(made)["grid"])["layers"][1]["largest"] == 127


@pytest.mark.parametrize("side", [2, 3])
def test_averages_of_spikes_are_sums_by_events(side: int) -> None:
    """An average, multiplied again and rounded, is the whole sum that a layer by events reads."""
    text = f"""g (float[N,2,12,12] x) => (float[N,3] y)
    {{ c = Conv <pads = [1, 1, 1, 1]> (x, w)  r = Relu (c)
      p = AveragePool <kernel_shape = [{side}, {side}], strides = [{side}, {side}]> (r)
      d = Conv (p, v)  q = Relu (d)  m = GlobalAveragePool (q)  f = Flatten (m)  y = MatMul (f, z) }}"""
    weights = {"w": random(1, 16, 2, 3, 3), "v": random(2, 16, 16, 3, 3), "z": random(3, 16, 3)}
    x = random(4, 6, 2, 12, 12)
    snn = snncompiler.compile(parse(text, weights), calibration=x, steps=12, weights="int8")
    layers = lower_events(snn).layers
    assert [layer.reason for layer in layers] == ["", ""]
    dense = create_session(snn, native=False).run(None, {"x": x})[0]
    assert np.array_equal(create_session(snn).run(None, {"x": x})[0], dense)
