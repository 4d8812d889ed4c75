"""The calibration for levels: θ and shifts against a search by hand, and whole networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, parse, random, run_model
from random_networks import seeded

from snncompiler import pipeline
from snncompiler.calibration.histogram import Histogram
from snncompiler.calibration.level_network import (
    LevelNetwork,
    counts_of,
    level_model,
    shift_for_mean,
    squared_error,
    with_levels,
)
from snncompiler.calibration.levels import (
    Settled,
    calibrate_levels,
    layers_of,
    settle_levels,
)
from snncompiler.calibration.observe import bounded, observe
from snncompiler.calibration.record import Calibration
from snncompiler.calibration.thresholds import least_error
from snncompiler.errors import UsageError
from snncompiler.ir.graph import with_outputs
from snncompiler.ir.rectifiers import rectified_input, rectifiers_of
from snncompiler.ir.settings import Correct, Options
from snncompiler.network.data import Dataset
from snncompiler.network.prepared import Prepared, as_model
from snncompiler.passes.base import run_passes
from snncompiler.passes.spike.correct_layers import CorrectLayers

RESIDUAL = """
g (float[N,3,8,8] x) => (float[N,5] y) {
    c0 = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)  r0 = Relu (c0)
    c1 = Conv <pads = [1, 1, 1, 1]> (r0, w1, b1)  r1 = Relu (c1)
    c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2)  s2 = Add (c2, r0)  r2 = Relu (s2)
    c3 = Conv <group = 6, strides = [2, 2]> (r2, w3, b3)  r3 = Clip (c3, zero, six)
    m = GlobalAveragePool (r3)  f = Flatten (m)  y = Gemm (f, w4, b4) }
"""


def residual() -> onnx.ModelProto:
    shapes = {
        "w0": (6, 3, 3, 3), "b0": (6,), "w1": (6, 6, 3, 3), "b1": (6,), "w2": (6, 6, 3, 3),
        "w3": (6, 1, 3, 3), "b3": (6,), "w4": (6, 5), "b4": (5,),
    }  # fmt: skip
    weights = {
        name: random(seed, *shape) / np.float32(max(np.prod(shape[1:]), 1) ** 0.5)
        for seed, (name, shape) in enumerate(shapes.items())
    }
    return parse(RESIDUAL, {**weights, "zero": np.float32(0), "six": np.float32(1.5)})


def thresholds(prepared: Prepared, x: Array, levels: int) -> dict[str, Array]:
    """θ of every rectifier with the least error of its activations."""
    batch = prepared.fixed_batch
    observed = observe(prepared.ann, prepared.graph, {"x": x}, batch=batch).histograms
    found = {name: least_error(histogram, levels) for name, histogram in observed.items()}
    return {
        node.name: bounded(node, np.where(found[node.name] > 0, found[node.name], np.float32(1)))
        for node in rectifiers_of(prepared.graph)
    }


def leveled(
    prepared: Prepared, thetas: dict[str, Array], settled: Settled, levels: int
) -> onnx.ModelProto:
    """The network that the emitted one computes, with operators of ONNX."""
    apart = prepared.apart()
    graph = apart.graph.copy()
    run_passes([CorrectLayers(settled.weights, settled.biases)], graph, apart.context)
    quanta = {name: theta / np.float32(levels) for name, theta in thetas.items()}
    with_levels(graph, quanta, levels)
    return as_model(graph)


# --- θ ---


@pytest.mark.parametrize("levels", [1, 8, 63])
def test_no_other_threshold_leaves_less_error(levels: int) -> None:
    """Of 100 thresholds none leaves 1 % less than the one found, which knows values by bins."""
    rng = np.random.default_rng(levels)
    values = np.maximum(rng.standard_normal((2000, 2)), 0) ** np.array([1, 2])
    values = values.astype(np.float32)
    histogram = Histogram(2)
    histogram.add(values)
    theta = least_error(histogram, levels)

    def left(thetas: Array) -> Array:
        quantum = (thetas / levels).astype(np.float32)
        return np.square(values - counts_of(values, quantum, levels) * quantum).sum(axis=0)

    tried = np.stack([left(part * values.max(axis=0)) for part in np.linspace(0.01, 1, 100)])
    assert (left(theta) <= 1.01 * tried.min(axis=0)).all()
    assert (theta <= values.max(axis=0)).all()


def test_channels_that_are_silent() -> None:
    histogram = Histogram(2)
    histogram.add(np.float32([[0, 4], [0, 2]]))
    assert least_error(histogram, 63)[0] == 0
    assert least_error(Histogram(3), 8).tolist() == [0, 0, 0]


# --- one rectifier ---


def test_the_shift_makes_the_mean_right() -> None:
    """As near as 1/8192 of a quantum and the jumps of 500 counts allow."""
    currents = random(0, 500, 3) * np.float32(2)
    quantum = np.float32([0.5, 0.7, 1.1])
    wanted = np.maximum(currents + np.float32([0.2, -0.3, 0.1]), 0).clip(max=4 * quantum)
    mean = wanted.mean(axis=0, dtype=np.float64)
    shift = shift_for_mean(currents, quantum, 4, mean)
    sent = (counts_of(currents + shift, quantum, 4) * quantum).mean(axis=0)
    assert (np.abs(sent - mean) <= 3 * quantum / 500).all()
    assert (np.abs(shift) <= quantum).all()


def test_a_mean_out_of_reach_shifts_by_one_quantum() -> None:
    shift = shift_for_mean(
        np.zeros((9, 2), np.float32), np.ones(2, np.float32), 4, np.array([9, -9])
    )
    np.testing.assert_allclose(shift, [1, -1], atol=2.0**-13)


def test_the_error_of_what_is_sent() -> None:
    quantum = np.float32([1.0])
    wanted = np.float32([[2], [0]])
    assert squared_error(np.float32([[1.6], [0.4]]), quantum, 4, wanted) == 0
    assert squared_error(np.float32([[1.0], [1.0]]), quantum, 4, wanted) == 0.5
    assert squared_error(wanted, quantum, 4, np.zeros_like(wanted)) == 0


# --- where layers stand ---


def test_what_should_be_right_behind_each_layer() -> None:
    prepared = pipeline.prepare(residual())
    layers = list(layers_of(prepared.graph).values())
    told = [
        (layer.node.op, layer.reading.groups, bool(layer.added), bool(layer.rectifier), layer.last)
        for layer in layers
    ]
    assert told == [
        ("Conv", 1, False, True, False),
        ("Conv", 1, True, True, False),  # its sum with the residual is what counts
        ("Conv", 6, False, True, False),
        ("Gemm", 1, False, False, True),
    ]
    assert [layer.cap for layer in layers] == [np.inf, np.inf, 1.5, np.inf]
    assert layers[1].target == layers[1].node.outputs[0].outputs[0].outputs[0].name


def test_a_branch_that_is_not_settled_yet_is_not_made_up_for() -> None:
    """Of two branches with layers, the one that comes last sees the other."""
    prepared = pipeline.prepare(
        parse(
            "g (float[N,4] x) => (float[N,4] y) { a = Gemm (x, w)  r = Relu (a)"
            "  b = Gemm (r, w)  c = Gemm (r, v)  s = Add (b, c)  y = Relu (s) }",
            {"w": random(0, 4, 4), "v": random(1, 4, 4)},
        )
    )
    layers = list(layers_of(prepared.graph).values())
    assert [bool(layer.added) for layer in layers] == [False, True]
    assert [bool(layer.rectifier) for layer in layers] == [False, True]


# --- whole networks ---


@pytest.mark.parametrize("levels", [4, 300])
def test_the_network_runs_as_the_emitted_one(levels: int) -> None:
    """Sums run in another order: to float32's rounding, but where a value lies at the border of two
    counts.  One of them moves an output by less than 1/1000 here; 1 sample in 20 may have such."""
    prepared = pipeline.prepare(residual())
    x = random(9, 40, 3, 8, 8)
    thetas = thresholds(prepared, x, levels)
    settled = settle_levels(
        prepared.ann, prepared.graph, {"x": x}, thetas, levels, "weights", seed=3
    )
    network = LevelNetwork(prepared.ann, {"x": x}, levels, 5)
    for name, weights in settled.weights.items():
        network.replace(name, weights, settled.biases[name])
    for node in rectifiers_of(prepared.graph):
        shift = settled.biases[node.name].reshape(-1, 1, 1)
        current = node.inputs[rectified_input(node)].name
        shifted = (values + shift for (values,) in network.values([current]))
        network.settle(node.outputs[0].name, thetas[node.name] / np.float32(levels), shifted)
    last = next(layer for layer in layers_of(prepared.graph).values() if layer.last)
    network.replace(last.node.name, None, settled.biases[last.node.name])
    found = np.concatenate([values for (values,) in network.values(network.outputs)])
    (expected,) = run_model(leveled(prepared, thetas, settled, levels), x=x)
    off = np.abs(found - expected).max(axis=1) / np.abs(expected).max()
    assert off.max() <= 1e-3
    assert (off > 1e-5).sum() <= len(x) / 20


@pytest.mark.parametrize("correct", ["bias", "weights"])
def test_every_rectifier_sends_in_the_mean_what_the_ann_sends(correct: Correct) -> None:
    """To 1/8192 of a quantum, and to what a few values at the border of two counts do."""
    levels = 5
    prepared = pipeline.prepare(residual())
    x = random(8, 40, 3, 8, 8)
    thetas = thresholds(prepared, x, levels)
    settled = settle_levels(prepared.ann, prepared.graph, {"x": x}, thetas, levels, correct)
    model = leveled(prepared, thetas, settled, levels)
    for node in rectifiers_of(prepared.graph):
        name = node.outputs[0].name
        (found,) = run_model(with_outputs(model, [name]), x=x)[1:]
        (wanted,) = run_model(with_outputs(prepared.ann, [name]), x=x)[1:]
        off = np.abs(found.mean(axis=(0, 2, 3)) - wanted.mean(axis=(0, 2, 3)))
        values = len(x) * wanted[0, 0].size
        assert (off <= thetas[node.name] / levels * (2.0**-12 + 4 / values)).all()
    assert bool(settled.weights) == (correct == "weights")


def test_other_weights_leave_less_error_in_every_layer_and_the_report_says_so() -> None:
    prepared = pipeline.prepare(residual())
    x = random(8, 40, 3, 8, 8)
    thetas = thresholds(prepared, x, 3)
    settled = settle_levels(prepared.ann, prepared.graph, {"x": x}, thetas, 3, "weights")
    first, *others = settled.report.values()
    assert first.weights is None  # its input is exact
    for report in others:
        assert report.threshold is not None and report.weights is not None
        assert report.weights < report.threshold


def test_the_same_samples_give_the_same_bits() -> None:
    prepared = pipeline.prepare(residual())
    x = random(7, 10, 3, 8, 8)
    thetas = thresholds(prepared, x, 4)
    first, second = (
        settle_levels(prepared.ann, prepared.graph, {"x": x}, thetas, 4, "weights", seed=5)
        for _ in range(2)
    )
    for kind in ("weights", "biases"):
        one, other = getattr(first, kind), getattr(second, kind)
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("seed", range(6))
def test_random_networks_come_near_the_ann_with_many_levels(seed: int) -> None:
    """Whatever operators stand between the rectifiers: with 255 levels at most 3 % is left on the
    samples that are seen."""
    network = seeded(seed)
    prepared = pipeline.prepare(network.model)
    x = np.concatenate([network.x, random(seed, 28, *network.x.shape[1:])])
    batch = prepared.fixed_batch
    thetas = thresholds(prepared, x, 255)
    settled = settle_levels(
        prepared.ann, prepared.graph, {"x": x}, thetas, 255, "weights", batch=batch
    )
    model = leveled(prepared, thetas, settled, 255)
    x = x[:batch]
    (right,), (y,) = run_model(prepared.ann, x=x), run_model(model, x=x)
    assert np.linalg.norm(y - right) <= 0.03 * np.linalg.norm(right)


# --- the calibration as a whole ---


def test_a_calibration_is_read_as_it_was_written() -> None:
    prepared = pipeline.prepare(residual())
    options = Options(timing="layered", coding="radix", steps=3, task="classification")
    dataset = Dataset({"x": random(6, 40, 3, 8, 8)})
    made = calibrate_levels(prepared, options, dataset)
    assert (made.levels, made.method, made.correct) == (7, "mmse", "weights")
    assert made.corrected_weights.keys() == {layer for layer in layers_of(prepared.graph)} - {
        layer.node.name for layer in layers_of(prepared.graph).values() if layer.last
    }
    assert all(0 <= parts["bias"] <= 1 for parts in made.report.values())
    assert [sorted(parts) for parts in made.report.values()] == [
        ["bias", "threshold"],
        *[["bias", "threshold", "weights"]] * 3,
    ]
    read = Calibration.from_json(made.to_json())
    assert read.report == made.report
    for kind in ("thresholds", "corrected_weights", "corrected_biases"):
        one, other = getattr(made, kind), getattr(read, kind)
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)
    assert read.to_json() == made.to_json()


def test_the_top_level_of_a_bounded_rectifier_is_at_most_its_bound() -> None:
    prepared = pipeline.prepare(residual())
    dataset = Dataset({"x": 4 * random(6, 40, 3, 8, 8)})
    options = Options(timing="layered", steps=7, task="regression", threshold="headroom")
    made = calibrate_levels(prepared, options, dataset)
    capped = next(node for node in rectifiers_of(prepared.graph) if node.op == "Clip")
    top = made.thresholds[capped.name] * 7
    # One quantum is a seventh in float32.
    assert (top <= 1.5 * (1 + 2.0**-23)).all() and top.max() > 1.49


@pytest.mark.parametrize(
    ("task", "steps", "expected"),
    [
        ("classification", 63, ("mmse", "weights")),
        ("regression", 62, ("mmse", "bias")),
        ("regression", 63, ("headroom", "bias")),
    ],
)
def test_what_is_chosen_by_task(task: Any, steps: int, expected: tuple[str, str]) -> None:
    chosen = Options(timing="layered", steps=steps).resolved(task, True, 3)
    assert (chosen.threshold, chosen.correct) == expected


def test_without_data_nothing_can_be_corrected() -> None:
    chosen = Options(timing="layered", steps=4).resolved("classification", False, 3)
    assert (chosen.threshold, chosen.correct) == ("percentile", "none")
    with pytest.raises(UsageError, match="--correct bias needs calibration data"):
        Options(timing="layered", correct="bias").resolved("classification", False, 3)


@pytest.mark.parametrize(("coding", "steps"), [("rate", 5), ("radix", 3)])
def test_the_compiled_network_is_the_one_that_was_calibrated(coding: Any, steps: int) -> None:
    """The emitted spikes give what `level_model` gives: to float32's rounding, but where a value lies
    at the border of two counts, which at most 1 sample in 20 may have."""
    model, x = residual(), random(6, 40, 3, 8, 8)
    options = Options(timing="layered", coding=coding, steps=steps, task="classification")
    compiled = pipeline.compile_model(model, options, x)
    assert compiled.calibration.correct == "weights"
    (found,) = run_model(compiled.model, x=x)[:1]
    (expected,) = run_model(level_model(compiled.prepared, compiled.calibration), x=x)
    off = np.abs(found - expected).max(axis=1) / np.abs(expected).max()
    assert (off > 1e-5).sum() <= len(x) / 20
    again = pipeline.compile_model(model, options, compiled.calibration)
    assert again.model.SerializeToString() == compiled.model.SerializeToString()


def test_a_calibration_with_other_corrections_is_not_taken_for_those_asked_for() -> None:
    model, x = residual(), random(6, 40, 3, 8, 8)
    made = pipeline.compile_model(
        model, Options(timing="layered", steps=3, correct="bias", task="classification"), x
    )
    with pytest.raises(UsageError, match="--correct weights needs data"):
        pipeline.compile_model(
            model,
            Options(timing="layered", steps=3, correct="weights", task="classification"),
            made.calibration,
        )
