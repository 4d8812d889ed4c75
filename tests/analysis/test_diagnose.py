"""The split of a layer's error: exact, blames what is to blame; and the quantised ANN."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, assert_close, compile_text, parse, random, run_model
from hypothesis import given
from hypothesis import strategies as st

import snncompiler
from snncompiler import models, pipeline
from snncompiler.analysis.diagnose import (
    OWN,
    PARTS,
    Currents,
    Diagnosis,
    LayerError,
    quantise,
    quantised_ann,
    split,
)
from snncompiler.analysis.instrument import Layer, Watched
from snncompiler.analysis.walk import Walk
from snncompiler.emission.compiled import read_compiled
from snncompiler.errors import Refused, UsageError

CNN, RESNET = models.path("digits-cnn"), models.path("digits-resnet")
ONE = "g (float[N,3] x) => (float[N,3] y) { y = Relu (x) }"
TWO = (
    "g (float[N,3] x) => (float[N,3] y) { h = Relu (x)  n = Neg (h)  s = Sub (x, n)  y = Relu (s) }"
)


def digits(which: str, count: int) -> tuple[Array, Array]:
    with np.load(models.path(which)) as archive:
        images = archive["x"][:count].transpose(0, 3, 1, 2).astype(np.float32) / 16
        return np.ascontiguousarray(images), archive["y"][:count]


IMAGES, LABELS = digits("digits-test", 32)
CALIBRATION, _ = digits("digits-train", 64)


def diagnosed(model: Any, snn: onnx.ModelProto, data: Any, steps: int) -> Diagnosis:
    found = snncompiler.evaluate(model, snn, data, steps=[steps], diagnose=True)
    diagnosis = found.results[0].diagnosis
    assert diagnosis is not None
    return diagnosis


def layer(theta: float, start: float, levels: int = 1, schedule: Array | None = None) -> Layer:
    return Layer("l", "BurstNeuron", np.float32([theta]), np.float32([start]), levels, schedule)


# --- what a user sees ---


def test_the_parts_of_a_real_network() -> None:
    snn = snncompiler.compile(CNN, calibration=CALIBRATION, steps=16)
    found = snncompiler.evaluate(
        CNN, snn, {"x": IMAGES, "y": LABELS}, steps=[4, 16, 64], diagnose=True
    )
    for result in found.results:
        assert result.diagnosis is not None
        layers, blame = result.diagnosis.layers, result.diagnosis.blame
        assert [entry.layer for entry in layers] == [entry.layer for entry in result.layers]
        worst = max(layers, key=lambda entry: entry.own)
        assert (blame.layer, blame.own, blame.part) == (worst.layer, worst.own, worst.largest)
        for entry in layers:
            parts = [getattr(entry, part) for part in PARTS]
            # Norms obey the triangle inequality, of the whole and of the layer's own.
            assert entry.total <= sum(parts) + 1e-12
            assert entry.own <= sum(parts[:3]) + 1e-12
            assert entry.total <= entry.own + entry.inherited + 1e-12
    # Rounding is at most half a level: it halves with every doubling of T.
    rounding = [
        [entry.rounding for entry in result.diagnosis.layers]
        for result in found.results
        if result.diagnosis
    ]
    assert (np.array(rounding[0]) > 3 * np.array(rounding[1])).all()
    assert (np.array(rounding[1]) > 3 * np.array(rounding[2])).all()
    content = json.loads(json.dumps(found.as_dict()))
    entry = content["results"][0]["diagnosis"]
    assert set(entry) == {"layers", "blame", "quantised"}
    assert set(entry["layers"][0]) == {"layer", "operator", "total", "own", *PARTS}


def test_the_same_accuracy_with_and_without_a_diagnosis() -> None:
    snn = snncompiler.compile(RESNET, calibration=CALIBRATION, steps=16)
    data = {"x": IMAGES, "y": LABELS}
    plain, more = (
        snncompiler.evaluate(RESNET, snn, data, steps=[4, 16], diagnose=diagnose)
        for diagnose in (False, True)
    )
    for mine, wanted in zip(more.results, plain.results, strict=True):
        assert mine.predictions == wanted.predictions and wanted.diagnosis is None
        for one, other in zip(mine.layers, wanted.layers, strict=True):
            assert one.firing_rate == pytest.approx(other.firing_rate, rel=1e-3)


# --- which part is to blame ---


def test_thresholds_that_are_too_low_clip() -> None:
    x = random(0, 64, 3)
    snn = compile_text(parse(TWO), x, alpha=0.3, correction="none", readout="mean")
    found = diagnosed(parse(TWO), snn, x, 256)
    assert found.blame.part == "clipping"
    assert all(entry.clipping > 10 * entry.rounding > 0 for entry in found.layers)
    assert found.quantised.relative_error > 0.3


def test_few_levels_round() -> None:
    x = random(0, 64, 3)
    snn = compile_text(parse(TWO), x, threshold="max", correction="none", readout="mean")
    found = diagnosed(parse(TWO), snn, x, 2)
    assert found.blame.part == "rounding" and all(entry.clipping == 0 for entry in found.layers)


def test_a_constant_current_is_even_and_inherits_nothing() -> None:
    x = random(0, 64, 3)
    for neuron in ("binary", "burst:4", "signed:2"):
        snn = compile_text(parse(ONE), x, neuron=neuron, correction="none", readout="mean")
        (entry,) = diagnosed(parse(ONE), snn, x, 8).layers
        # Both are exact here: v and the sum of float32 currents stay below 2^24 units.
        assert (entry.unevenness, entry.inherited, entry.clipping) == (0.0, 0.0, 0.0)
        assert 0 < entry.rounding == entry.total == entry.own


def test_hard_reset_throws_charge_away() -> None:
    x = random(0, 64, 3)
    snn = compile_text(parse(ONE), x, reset="hard", readout="mean")
    found = diagnosed(parse(ONE), snn, x, 64)
    (entry,) = found.layers
    assert (found.blame.part, entry.operator) == ("unevenness", "HardResetNeuron")
    assert entry.unevenness > 5 * entry.rounding


def test_a_schedule_counts_as_received() -> None:
    x = random(0, 64, 3)
    snn = compile_text(parse(ONE), x, correction="schedule", threshold="balance", readout="mean")
    (entry,) = diagnosed(parse(ONE), snn, x, 16).layers
    assert entry.operator == "ScheduledRMPNeuron" and entry.inherited > 0


POOLED = """g (float[N,2,6,6] x) => (float[N,3] y)
{ c = Conv <pads = [1, 1, 1, 1]> (x, a)  r = Relu (c)
  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)  d = Conv (p, b)  q = Relu (d)
  m = ReduceMean <axes = [2, 3], keepdims = 0> (q)  y = Gemm (m, o) }"""
FORMS: list[dict[str, Any]] = [
    {"correction": "none", "readout": "mean"},
    {"correction": "schedule", "readout": "ramp"},
    {"correction": "potential"},
    {"neuron": "burst:3", "per_channel": False},
    {"neuron": "signed:2", "readout": "delay:2"},
    {"maxpool": "average"},
    {"precision": "fp16", "correction": "none"},
    {"unroll": "loop", "correction": "none"},
]


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_every_part_vanishes_as_time_grows(options: dict[str, Any]) -> None:
    """With thresholds that do not clip."""
    weights = {
        "a": random(1, 4, 2, 3, 3) / 3,
        "b": random(2, 5, 4, 3, 3) / 4,
        "o": random(3, 5, 3),
    }
    model, x = parse(POOLED, weights), random(4, 12, 2, 6, 6)
    snn = compile_text(model, x, threshold="max", alpha=1.1, **options)
    few, many = (diagnosed(model, snn, x, steps) for steps in (8, 512))
    for before, after in zip(few.layers, many.layers, strict=True):
        assert before.total > 0.02
        # 64 times as many steps; what is left of a schedule and of rounding to float16 is 2^-10.
        assert after.total < before.total / 16 + 2.0**-10
    if options.get("maxpool") != "average":
        assert many.quantised.relative_error < 0.02


def test_an_analog_operator_between_layers() -> None:
    text = "g (float[N,3] x) => (float[N,3] y) { h = Relu (x)  g = Sigmoid (h)  y = Relu (g) }"
    x = random(0, 40, 3)
    snn = compile_text(parse(text), x, allow_analog=True, correction="none", readout="mean")
    found = diagnosed(parse(text), snn, x, 512)
    assert len(found.layers) == 2 and all(entry.total < 0.01 for entry in found.layers)


# --- the split itself ---

numbers = st.floats(-4, 4, width=32)


@given(
    st.lists(st.tuples(numbers, numbers, st.integers(0, 60)), min_size=1, max_size=20),
    st.floats(0.0625, 3, width=32),
    st.floats(0, 0.9),
    st.integers(1, 40),
    st.integers(1, 5),
    st.sampled_from([None, 1.0, 6.0]),
)
def test_the_parts_sum_to_the_error_element_by_element(
    cells: list[tuple[float, float, int]],
    theta: float,
    start: float,
    steps: int,
    levels: int,
    cap: float | None,
) -> None:
    z, a, spikes = (np.array(column) for column in zip(*cells, strict=True))
    count = np.minimum(spikes, levels * steps).astype(np.float32)
    schedule = np.float32([[0.5], [-0.25], [0.125]])
    neuron = layer(theta, start * theta, levels, schedule)
    parts = split(neuron, count, z * steps, a.astype(np.float32), steps, cap)
    relu = np.clip(a.astype(np.float32).astype(np.float64), 0, cap)
    assert np.array_equal(parts["activation"], relu)
    error = np.float64(np.float32(theta)) * count / steps - relu
    # Four float64 roundings of numbers of some 10.
    assert np.abs(sum(parts[part] for part in PARTS) - error).max() < 1e-13
    # Each does what its name says.
    received = z + neuron.charge(steps) / steps
    assert (parts["clipping"] <= 0).all()
    high = np.float64(np.float32(theta)) * levels
    # No threshold is above the bound of its rectifier, but the split itself need not know.
    high = min(high, cap or high)
    assert (parts["clipping"] == 0)[received < high - 1e-9].all()
    inside = (received >= 0) & (received < high)
    assert (np.abs(parts["rounding"])[inside] <= theta / steps).all()


@given(st.floats(0.0625, 3, width=32), st.integers(1, 32), st.integers(1, 4), st.data())
def test_the_quantiser_is_what_a_neuron_does_with_a_constant_current(
    theta: float, steps: int, levels: int, data: Any
) -> None:
    # Multiples of 2^-10: every sum is exact.
    values = data.draw(st.lists(st.integers(-4096, 8192), min_size=1, max_size=8))
    theta = max(round(theta * 1024), 1) / 1024
    x = np.array(values) / 1024
    v, sent = np.full(x.shape, theta / 2), np.zeros(x.shape)
    for _ in range(steps):
        u = v + x
        k = np.clip(np.floor(u / theta), 0, levels)
        v, sent = u - theta * k, sent + k
    neuron = layer(theta, theta / 2, levels)
    assert np.array_equal(quantise(neuron, x * steps, steps), theta * sent / steps)


def test_the_charge_of_a_schedule_holds_its_last_row() -> None:
    rows = random(0, 5, 3, 1)
    neuron = layer(1.0, 0.5, 1, rows)
    for steps in (1, 4, 5, 6, 50):
        wanted = sum(rows[min(t, 4)].astype(np.float64) for t in range(steps))
        assert np.allclose(neuron.charge(steps), wanted, rtol=0, atol=1e-12)
    assert np.array_equal(neuron.largest_charge, np.abs(rows).max(axis=0))
    assert layer(1.0, 0.5).charge(7) == 0


def test_the_largest_part_is_named() -> None:
    for index, part in enumerate(OWN):
        sizes = [0.1, 0.1, 0.1]
        sizes[index] = 0.2
        assert LayerError("l", "RMPNeuron", 1.0, 0.3, *sizes, inherited=5.0).largest == part


def test_currents_are_those_of_the_ann() -> None:
    text = """g (float[N,2] x) => (float[N,2] y, float[N,2] w)
    <float zero = {0}, float six = {1.5}>
    { h = Relu (x)  s = Add (h, x)  y = Clip (s, zero, six)  m = Max (zero, s)  w = Neg (m) }"""
    model, x = parse(text), random(0, 9, 2)
    currents = Currents(pipeline.prepare(model))
    received = currents.run({"x": x})
    assert len(received) == 3 and sorted(currents.caps.values(), key=str) == [1.5, None, None]
    s = np.maximum(x, 0) + x
    wanted = [x, s, s]
    for values, want in zip(received.values(), wanted, strict=True):
        assert np.array_equal(values, want)


# --- the quantised ANN ---


@pytest.mark.parametrize("neuron", ["binary", "burst:4"])
def test_the_quantised_ann_by_hand(neuron: str) -> None:
    model, x = parse(TWO), random(0, 50, 3)
    snn = compile_text(model, x, alpha=0.8, neuron=neuron, correction="none")
    layers = Walk(read_compiled(snn)).layers
    quantised = quantised_ann(pipeline.prepare(model), layers)
    for steps in (1, 4, 32):
        (found,) = run_model(
            quantised, x=x, **{quantised.graph.input[-1].name: np.array(steps, np.float32)}
        )
        h = quantise(layers[0], np.maximum(x, 0) * np.float64(steps), steps)
        y = quantise(layers[1], np.maximum(x + h, 0) * steps, steps)
        # float32 may put a value that lies on the edge of two levels on the other one.
        level = layers[1].threshold / steps
        assert (np.abs(found - y) < 1e-5).mean() > 0.98
        assert (np.abs(found - y) < level + 1e-5).all()


def test_with_many_levels_the_quantised_ann_is_the_ann_or_clips() -> None:
    model = onnx.load(RESNET)
    steps = np.array(1 << 16, np.float32)
    prepared = pipeline.prepare(model)
    wide = compile_text(model, IMAGES, threshold="max")
    quantised = quantised_ann(prepared, Walk(read_compiled(wide)).layers)
    (found,) = run_model(quantised, input=IMAGES, **{quantised.graph.input[-1].name: steps})
    (wanted,) = run_model(model, input=IMAGES)
    # 2^-17 of θ a rectifier, five of them.
    assert_close(found, wanted, relative=1e-3)
    low = compile_text(model, IMAGES, threshold="max", alpha=0.5)
    found = diagnosed(model, low, IMAGES, 256).quantised.relative_error
    assert found > 0.05


def test_a_rectifier_that_is_an_output_is_quantised_too() -> None:
    text = """g (float[N,3] x) => (float[N,3] h, float[N,3] y)
    { h = Relu (x)  n = Neg (h)  y = Relu (n) }"""
    model, x = parse(text), random(0, 20, 3)
    snn = compile_text(model, x, task="classification")
    found = diagnosed(model, snn, x, 1)
    layers = Walk(read_compiled(snn)).layers
    quantised = quantised_ann(pipeline.prepare(model), layers)
    (h, _) = run_model(quantised, x=x, **{quantised.graph.input[-1].name: np.array(1, np.float32)})
    assert set(np.unique(np.where(h == 0, 0, h / layers[0].threshold))) == {0.0, 1.0}
    assert found.quantised.agreement is not None


def test_layers_of_another_network_are_refused() -> None:
    layers = Walk(read_compiled(compile_text(parse(ONE), random(0, 4, 3)))).layers
    with pytest.raises(Refused, match="SNNC402"):
        quantised_ann(pipeline.prepare(parse(TWO)), layers)


def test_a_silent_layer_has_no_relative_error() -> None:
    model = parse("g (float[N,2] x) => (float[N,2] y) { a = Abs (x)  n = Neg (a)  y = Relu (n) }")
    x = random(0, 5, 2)
    found = diagnosed(model, compile_text(model, x), x, 8)
    assert [entry.total for entry in found.layers] == [0.0]


@pytest.mark.parametrize(("growth", "factor"), [("none", 1.0), ("0.8@1,1@4,1.25@9", 0.64)])
def test_the_split_follows_the_running_network(growth: str, factor: float) -> None:
    """The norms that evaluate tells are those of the parts, from the counts and currents themselves."""
    model = onnx.load(CNN)
    snn = compile_text(model, IMAGES, correction="schedule", threshold="percentile", growth=growth)
    compiled, prepared = read_compiled(snn), pipeline.prepare(model)
    grown = compiled.calibration.growth
    assert grown.worth(12)[0] == pytest.approx(factor)
    walk, currents = Walk(compiled, currents=True), Currents(prepared)
    received = currents.run({"input": IMAGES})
    before: dict[str, Array] = {}
    sums: dict[str, Array] = {}
    for step, values in walk.run({"input": IMAGES}, range(1, 13)):
        worth = np.float64(grown.worth(step)[-1])
        for name in (Watched.output(n, w) for n in walk.layers for w in ("count", "current_sum")):
            now = values[name].astype(np.float64)
            sums[name] = sums.get(name, 0) + worth * (now - before.get(name, 0))
            before[name] = now
    found = diagnosed(model, snn, IMAGES, 12)
    for entry, neuron in zip(found.layers, walk.layers, strict=True):
        count, total = (sums[Watched.output(neuron, w)] for w in ("count", "current_sum"))
        parts = split(neuron, count, total, received[neuron.name], 12, None, grown)
        norm = np.linalg.norm(parts["activation"])
        for part in PARTS:
            wanted = np.linalg.norm(parts[part]) / norm
            assert getattr(entry, part) == pytest.approx(wanted, rel=1e-3)


def test_a_file_whose_thresholds_grow_is_split_step_by_step_only() -> None:
    model = onnx.load(CNN)
    options: dict[str, Any] = {"correction": "schedule", "unroll": "steps", "steps": 8}
    snn = compile_text(model, IMAGES, growth="1.5@5", **options)
    with pytest.raises(UsageError, match="--unroll fold"):
        diagnosed(model, snn, IMAGES[:2], 8)
    # Before the first change there is nothing to weigh.
    short = compile_text(model, IMAGES, growth="1.5@9", **options)
    assert diagnosed(model, short, IMAGES[:2], 8).layers
