"""Calibration on the running network: schedules, bias, potential, and the paper's thresholds.

What a compiled network does is read off its own file: in the cuda-graph form every current and every
spike of all time-steps is a tensor of the graph.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, op_counts, parse, random, run_model, told
from hypothesis import given, settings
from random_networks import ROUNDING, Network, error_bound, networks

from snncompiler import pipeline
from snncompiler.analysis.verify import verify
from snncompiler.calibration import calibrate as calibrating
from snncompiler.calibration import charges as running
from snncompiler.calibration.charges import Received, best_schedule, correct, mean_difference
from snncompiler.calibration.record import Calibration
from snncompiler.emission.save import serialize
from snncompiler.errors import Refused, UsageError
from snncompiler.ir import dialect
from snncompiler.ir.graph import with_outputs
from snncompiler.ir.readout import ReadOut
from snncompiler.ir.settings import Options
from snncompiler.network.data import Dataset
from snncompiler.runtime import Stream, reference


def dyadic(seed: int, *shape: int, parts: int = 4, most: int = 6) -> Array:
    """Multiples of 1/`parts`: sums and products of a few of them are exact in float32."""
    drawn = np.random.default_rng(seed).integers(-most, most + 1, shape)
    return (drawn / parts).astype(np.float32)


# --- the rule itself, on a layer's currents ---


def received(temporal: bool, *, levels: int = 1, signed: bool = False) -> Received:
    """A layer of 3 channels at 64 positions: currents around the ANN's activations."""
    rng = np.random.default_rng(3)
    analog = np.maximum(rng.standard_normal((3, 64)), 0).astype(np.float32)
    theta = (analog.max(axis=1, keepdims=True) * np.float32(0.8)).astype(np.float32)
    noise = rng.standard_normal((12, 3, 64)) * 0.5 * theta if temporal else 0.0
    current = np.broadcast_to(rng.standard_normal((1, 3, 64)) * 0.1 * theta + analog, (1, 3, 64))
    currents = np.asarray(current + noise, np.float32)
    quantum = theta / np.float32(levels)
    return Received(currents, analog, quantum, quantum / 2, levels, signed)


@dataclass
class Fired:
    """What a layer does with its charges, by the neuron's own equation."""

    counts: Array
    potentials: Array

    @staticmethod
    def of(layer: Received, charges: Array) -> Fired:
        theta = layer.quantum
        v = np.broadcast_to(layer.start, layer.analog.shape).astype(np.float32)
        sent, before = np.zeros_like(v), []
        counts = []
        for step, charge in enumerate(charges):
            u = v + layer.at(step)
            before.append(u)
            u = u + charge[:, None]
            k = np.clip(np.floor(u / theta), -layer.levels if layer.signed else 0, layer.levels)
            k = np.maximum(k, -sent)
            v, sent = u - theta * k, sent + k
            counts.append(k)
        return Fired(np.stack(counts), np.stack(before))


def by_reference(layer: Received, charges: Array) -> Array:
    """The spikes [S, C, P] of the operator that the layer's neurons are, by `runtime.reference`."""
    steps, (channels, positions) = len(charges), layer.analog.shape
    current = np.concatenate([layer.at(step).T for step in range(steps)])
    given: list[Any] = [charges, 0, steps]
    if layer.signed:
        given.insert(0, np.float32(0))
    if layer.signed or layer.levels > 1:
        given.append(layer.levels)
    run = reference.scheduled_rmp_neuron
    if layer.levels > 1:
        run = reference.burst_neuron
    if layer.signed:
        run = reference.signed_neuron
    spikes = run(current, layer.quantum.T, layer.start.T, *given)[0]
    return spikes.reshape(steps, positions, channels).transpose(0, 2, 1)


KINDS: dict[str, dict[str, Any]] = {
    "binary": {},
    "burst": {"levels": 4},
    "signed": {"levels": 1, "signed": True},
    "signed, four levels": {"levels": 4, "signed": True},
}


def objective(layer: Received, fired: Fired, step: int, charges: Array) -> Array:
    """Σ(θ·n - t·a)² + weight·(Σ(θ·n - t·a))²/P of every channel after `step`, [C]."""
    weight = running.BIAS_WEIGHT
    theta = layer.quantum.astype(np.float64)
    before = fired.counts[:step].sum(axis=0)
    k = np.floor((fired.potentials[step] + charges[:, None]) / layer.quantum)
    k = np.maximum(np.clip(k, -layer.levels if layer.signed else 0, layer.levels), -before)
    off = theta * (before + k) - (step + 1) * layer.analog.astype(np.float64)
    return np.asarray(np.square(off).sum(axis=1) + weight * off.sum(axis=1) ** 2 / off.shape[1])


def tried(layer: Received) -> Array:
    """The charges among which the best one is taken, in units of θ."""
    grid = layer.levels > 1 or layer.signed
    return np.linspace(-0.5, 0.5, 33 if grid else 257)


def is_best(layer: Received, charges: Array) -> Fired:
    """Every charge is the best of those that are tried, given the ones before it."""
    fired, theta = Fired.of(layer, charges), layer.quantum[:, 0]
    for step, chosen in enumerate(charges):
        found = objective(layer, fired, step, chosen)
        others = [objective(layer, fired, step, np.float32(part) * theta) for part in tried(layer)]
        # A potential within a rounding of an edge counts on one side or the other.
        slack = 1e-4 * theta.astype(np.float64) ** 2 + 1e-6 * found
        assert (found <= np.min(others, axis=0) + slack).all(), step
    return fired


@pytest.mark.parametrize("temporal", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_charge_is_the_best_of_those_that_are_tried(kind: str, temporal: bool) -> None:
    layer = received(temporal, **KINDS[kind])
    charges = best_schedule(layer, 12)
    assert charges.shape == (12, 3) and charges.dtype == np.float32
    assert (abs(charges) <= layer.quantum[:, 0] / 2).all() and charges.any()
    is_best(layer, charges)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_fires_as_its_operator_does(kind: str) -> None:
    """What calibration takes for the spikes of a layer, step by step, is what its operator sends."""
    layer = received(True, **KINDS[kind])
    charges = best_schedule(layer, 12)
    v = np.broadcast_to(layer.start, layer.analog.shape).astype(np.float32)
    sent, spikes = np.zeros_like(v), []
    for step, charge in enumerate(charges):
        u = (v + layer.at(step)) + charge[:, None]
        spikes.append(layer.spikes(u, sent))
        v, sent = u - layer.quantum * spikes[-1], sent + spikes[-1]
    assert np.array_equal(np.stack(spikes), by_reference(layer, charges))
    assert np.max(spikes) == layer.levels and (np.min(spikes) < 0) == layer.signed
    off = mean_difference(layer, 12)
    plain = by_reference(layer, np.zeros((12, 3), np.float32)).mean(axis=(0, 2), dtype=np.float64)
    mean = layer.analog.mean(axis=1, dtype=np.float64)
    assert np.allclose(off, mean - layer.quantum[:, 0] * plain, rtol=0, atol=2.0**-20)


@pytest.mark.parametrize("temporal", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_channel_keeps_nearer_to_the_ann_with_its_charges(kind: str, temporal: bool) -> None:
    layer = received(temporal, **KINDS[kind])
    error, bias = [], []
    for charges in (np.zeros((12, 3), np.float32), best_schedule(layer, 12)):
        sent = Fired.of(layer, charges).counts.cumsum(axis=0) * layer.quantum
        off = sent - np.arange(1, 13)[:, None, None] * layer.analog
        error.append(np.square(off).mean())
        bias.append(np.abs(off.mean(axis=2)).mean())
    assert error[1] < 0.95 * error[0] and bias[1] < 0.95 * bias[0]


def test_a_schedule_ends_in_nothing() -> None:
    layer = received(True)
    one = replace(layer, quantum=layer.quantum * np.array([[2], [0.5], [2]], np.float32))
    assert (one.analog.max(axis=1) > one.quantum[:, 0]).tolist() == [False, True, False]
    charges = correct(one, "schedule", 12)
    assert charges.shape == (13, 3)
    assert np.array_equal(charges[:-1], best_schedule(one, 12))
    assert not charges[-1].any()


def test_a_dead_channel_is_left_silent() -> None:
    layer = replace(received(True), analog=np.zeros((3, 64), np.float32))
    charges = best_schedule(layer, 12)
    quiet = replace(layer, currents=np.zeros((1, 3, 64), np.float32))
    assert not Fired.of(quiet, best_schedule(quiet, 12)).counts.any()
    assert (charges >= -layer.quantum[:, 0] / 2).all()


# --- in compiled networks ---

MLP = """g (float[N,4] x) => (float[N,3] y)
{ a = MatMul (x, w1)  [one] r1 = Relu (a)  b = MatMul (r1, w2)  [two] r2 = Relu (b)
  c = MatMul (r2, w3)  [three] r3 = Relu (c)  y = MatMul (r3, w4) }"""


MLP_SHAPES: dict[str, tuple[int, ...]] = {"w1": (4, 8), "w2": (8, 8), "w3": (8, 6), "w4": (6, 3)}


def mlp() -> onnx.ModelProto:
    weights = {
        "w1": dyadic(1, 4, 8),
        "w2": dyadic(2, 8, 8),
        "w3": dyadic(3, 8, 6),
        "w4": dyadic(4, 6, 3),
    }
    return parse(MLP, weights)


def images(count: int = 48) -> Array:
    return dyadic(5, count, 4, parts=8, most=8)


#: Networks, what to feed, and how to compile them.
CASES: dict[str, tuple[str, dict[str, tuple[int, ...]], dict[str, Any]]] = {
    "residual": (
        """g (float[N,2,4,4] x) => (float[N,3,4,4] y)
        { a = Conv <pads = [1, 1, 1, 1]> (x, w0)  [one] p = Relu (a)
          b = Conv <pads = [1, 1, 1, 1]> (p, w1)  s = Add (b, p)  [two] q = Relu (s)
          c = Conv (q, w2)  [three] y = Relu (c) }""",
        {"w0": (3, 2, 3, 3), "w1": (3, 3, 3, 3), "w2": (3, 3, 1, 1)}, {}),
    "max pooling": (
        """g (float[N,2,4,4] x) => (float[N,3,2,2] y)
        { a = Conv <pads = [1, 1, 1, 1]> (x, w0)  [one] p = Relu (a)
          m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (p)
          b = Conv <pads = [1, 1, 1, 1]> (m, w1)  [two] y = Relu (b) }""",
        {"w0": (3, 2, 3, 3), "w1": (3, 3, 3, 3)}, {}),
    "two inputs": (
        """g (float[N,4] x, float[N,4] z) => (float[N,5] y)
        { a = MatMul (x, w0)  [one] p = Relu (a)  d = MatMul (z, w1)  [two] q = Relu (d)
          t = Sub (p, q)  s = Add (t, z)  [three] u = Relu (s)  e = MatMul (u, w2)
          [four] y = Relu (e) }""",
        {"w0": (4, 4), "w1": (4, 4), "w2": (4, 5)}, {}),
    "analog operator": (
        """g (float[N,4] x) => (float[N,5] y)
        { a = MatMul (x, w0)  [one] p = Relu (a)  b = MatMul (p, w1)  t = Tanh (b)
          c = MatMul (t, w2)  [two] y = Relu (c) }""",
        {"w0": (4, 6), "w1": (6, 6), "w2": (6, 5)}, {"allow_analog": True}),
    "a static branch": (
        """g (float[N,4] x) => (float[N,4] y)
        { a = MatMul (x, w0)  [one] p = Relu (a)  g = Sigmoid (x)  m = Mul (g, p)
          [two] q = Relu (m)  b = MatMul (q, w1)  t = Sub (b, x)  [three] y = Relu (t) }""",
        {"w0": (4, 4), "w1": (4, 4)}, {}),
    "burst": (MLP, MLP_SHAPES, {"neuron": "burst:3"}),
    "signed": (MLP, MLP_SHAPES, {"neuron": "signed:2"}),
    "per layer": (MLP, MLP_SHAPES, {"per_channel": False}),
}  # fmt: skip


def case(name: str, count: int = 48) -> tuple[onnx.ModelProto, dict[str, Array], dict[str, Any]]:
    text, shapes, options = CASES[name]
    weights = {
        key: random(10 + i, *shape) / np.float32(np.sqrt(np.prod(shape[1:])))
        for i, (key, shape) in enumerate(shapes.items())
    }
    model = parse(text, weights)
    feeds = {}
    for index, entry in enumerate(model.graph.input):
        sizes = [dim.dim_value for dim in entry.type.tensor_type.shape.dim][1:]
        feeds[entry.name] = random(20 + index, count, *sizes)
    return model, feeds, options


def compiled(model: onnx.ModelProto, data: Any, **options: Any) -> pipeline.Compiled:
    chosen = {"threshold": "max", "readout": "mean", "schedule_steps": 8, **options}
    return pipeline.compile_model(model, Options(**chosen), data)


@dataclass
class Layer:
    """One layer over all time-steps: [T, N, C, positions] each; θ of a level, [C]."""

    currents: Array
    spikes: Array
    theta: Array


def layers_of(
    made: pipeline.Compiled, feeds: dict[str, Array], steps: int, **options: Any
) -> dict[str, Layer]:
    """What every layer of a calibrated network does over `steps` steps."""
    count = len(next(iter(feeds.values())))
    chosen = {"steps": steps, "emit": "cuda-graph", "batch": count, **options}
    model = pipeline.emit(made.prepared, made.calibration, Options(**chosen))
    nodes = [n for n in model.graph.node if n.op_type in dialect.NEURONS]
    names = [name for node in nodes for name in (node.input[0], node.output[0])]
    watched = with_outputs(model, names)
    found = dict(
        zip([o.name for o in watched.graph.output], run_model(watched, **feeds), strict=True)
    )
    found |= feeds
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    result = {}
    for node in nodes:
        spikes = found[node.output[0]]
        channels = spikes.shape[1]
        current = found[node.input[0]]
        split = current.reshape(len(current) // count, count, channels, -1)
        theta = np.broadcast_to(tensors[node.input[1]].ravel(), channels)
        result[node.name] = Layer(
            np.broadcast_to(split, (steps, *split.shape[1:])),
            spikes.reshape(steps, count, channels, -1),
            theta,
        )
    return result


def activations(made: pipeline.Compiled, feeds: dict[str, Array]) -> dict[str, Array]:
    """The ANN's rectifiers: [N, C, positions] by layer."""
    names = {node.name: node.outputs[0].name for node in made.prepared.graph.nodes}
    wanted = {layer: names[layer] for layer in made.calibration.thresholds}
    model = with_outputs(made.prepared.ann, list(wanted.values()))
    found = dict(zip([o.name for o in model.graph.output], run_model(model, **feeds), strict=True))
    return {
        layer: found[name].reshape(*found[name].shape[:2], -1) for layer, name in wanted.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_the_layers_of_a_network_get_their_best_charges(name: str) -> None:
    """Every charge is the best one for the currents that the layer gets in the compiled file."""
    model, feeds, options = case(name)
    made = compiled(model, feeds, **options)
    emitted = {key: value for key, value in options.items() if key != "per_channel"}
    signed = emitted.get("neuron", "").startswith("signed")
    levels = int(emitted.get("neuron", "binary:1").partition(":")[2])
    analog = activations(made, feeds)
    ran = layers_of(made, feeds, 8, **emitted)
    assert set(ran) == set(made.calibration.thresholds) == set(made.calibration.schedules)
    for layer, found in ran.items():
        charges = made.calibration.schedules[layer]
        assert charges.shape == (9, len(found.theta))
        given, theta = charges[:-1], found.theta[:, None]
        assert given.any() and (abs(given) <= found.theta / 2).all()
        rule = Received(
            by_position(found.currents), by_position(analog[layer][None])[0], theta, theta / 2,
            levels, signed,
        )  # fmt: skip
        # 48 images of at most 16 positions: the layer was settled on every one of them.
        assert rule.analog.shape[1] <= running.POSITIONS
        fired = is_best(rule, given)
        assert np.array_equal(fired.counts, by_position(found.spikes))
    assert made.calibration.correction == "schedule"
    assert verify(model, made.model).passed


@pytest.mark.parametrize(
    "neuron",
    [
        "binary", "burst:4",
        # 3·(θ/3) is rounded below θ.
        "burst:3", "signed:3",
    ],
)  # fmt: skip
def test_thresholds_at_the_maxima_leave_no_charge_for_later_steps(neuron: str) -> None:
    """Else the output would be off by that charge for any T."""
    for name in ("residual", "two inputs", "burst"):
        model, feeds, options = case(name)
        made = compiled(model, feeds, **{**options, "neuron": neuron})
        for layer, charges in made.calibration.schedules.items():
            assert not charges[-1].any(), layer
        assert any(charges.any() for charges in made.calibration.schedules.values())


def by_position(values: Array) -> Array:
    """[T, N, C, positions] as [T, C, N·positions]."""
    steps, _, channels, _ = values.shape
    moved = np.moveaxis(values, 2, 1).reshape(steps, channels, -1)
    return np.ascontiguousarray(moved, np.float32)


def test_corrected_layers_are_nearer_to_the_ann_than_others() -> None:
    model, feeds, _ = case("residual")
    error = {}
    for correction in ("none", "schedule"):
        made = compiled(model, feeds, correction=correction, steps=8)
        analog = activations(made, feeds)
        for layer, found in layers_of(made, feeds, 8).items():
            decoded = found.spikes.mean(axis=0) * found.theta[:, None]
            error[layer, correction] = np.square(decoded - analog[layer]).sum()
    # The first layer's currents are constant: from θ/2 on it is as right as it can be.
    for layer, share in {"one": 1.01, "two": 0.97, "three": 0.97}.items():
        assert error[layer, "schedule"] < share * error[layer, "none"], layer


def test_later_layers_are_settled_on_the_corrected_earlier_ones() -> None:
    """With the schedule of the first layer only, the second is settled as in the whole network."""
    model, x = mlp(), images()
    made = compiled(model, x)
    alone = layers_of(
        replace(
            made,
            calibration=replace(
                made.calibration,
                schedules={
                    layer: charges if layer == "one" else np.zeros_like(charges)
                    for layer, charges in made.calibration.schedules.items()
                },
            ),
        ),
        {"x": x},
        8,
    )["two"]
    analog = activations(made, {"x": x})["two"]
    layer = Received(
        np.ascontiguousarray(alone.currents[..., 0].transpose(0, 2, 1)),
        np.ascontiguousarray(analog[..., 0].T),
        alone.theta[:, None],
        alone.theta[:, None] / 2,
    )
    charges = made.calibration.schedules["two"][:-1]
    assert np.array_equal(best_schedule(layer, 8), charges)


@pytest.mark.parametrize("correction", ["bias", "potential"])
def test_bias_and_potential_give_what_is_missing_in_the_mean(correction: str) -> None:
    model, feeds, _ = case("residual")
    made = compiled(model, feeds, correction=correction, steps=12)
    order = ["one", "two", "three"]
    analog = activations(made, feeds)
    for number, layer in enumerate(order):
        charges = made.calibration.schedules[layer]
        before = {
            name: array if order.index(name) < number else np.zeros_like(array)
            for name, array in made.calibration.schedules.items()
        }
        without = replace(made, calibration=replace(made.calibration, schedules=before))
        found = layers_of(without, feeds, 12)[layer]
        decoded = found.spikes.mean(axis=(0, 1, 3)) * found.theta
        missing = analog[layer].mean(axis=(0, 2)) - decoded
        assert abs(missing).max() > 1e-3
        wanted = missing[None] if correction == "bias" else np.stack([12 * missing, 0 * missing])
        # One spike of 48·16 over 12 steps, where a current is within a rounding of θ.
        slack = found.theta.max() / 700 / 12 * (1 if correction == "bias" else 12)
        np.testing.assert_allclose(charges, wanted, atol=slack)
    assert made.calibration.correction == correction


@pytest.mark.parametrize("correction", ["bias", "potential"])
def test_bias_and_potential_bring_the_first_layer_nearer(correction: str) -> None:
    model, feeds, _ = case("residual")
    error = []
    for chosen in ("none", correction):
        made = compiled(model, feeds, correction=chosen, steps=12)
        found = layers_of(made, feeds, 12)["one"]
        decoded = found.spikes.mean(axis=(0, 1, 3)) * found.theta
        error.append(abs(decoded - activations(made, feeds)["one"].mean(axis=(0, 2))).sum())
    assert error[1] < 0.7 * error[0]


# --- what it is for, and what it may not break ---


@settings(max_examples=12)
@given(network=networks())
def test_a_schedule_vanishes_as_one_over_t(network: Network) -> None:
    """Within the bound of random_networks.py, with S charges of at most θ/2 more at every neuron.

    Charges count like currents that are off by their sum: D grows by S·θ/2, and so E = D + θ/2.
    """
    model, x = network.model, network.x
    options = Options(threshold="max", correction="schedule", schedule_steps=4, readout="mean")
    options = options.resolved("regression", data=True, depth=3)
    prepared = pipeline.prepare(model)
    calibration = pipeline.calibrated(prepared, options, Dataset({"x": x}))
    snn = pipeline.emit(prepared, calibration, options)
    (wanted,) = run_model(model, x=x)
    count = 1 + (4 if calibration.schedules else 0)
    bound = error_bound(prepared.ann, {n: t * count for n, t in calibration.thresholds.items()}, x)
    scale = max(float(np.abs(wanted).max()), 1e-6)
    errors = {}
    for steps in (32, 512):
        (decoded,) = run_model(snn, x=x, snnc_steps=np.array(steps))
        errors[steps] = np.abs(decoded - wanted.astype(np.float64))
        slack = ROUNDING * (scale + float(bound.max()) / steps)
        assert (errors[steps] <= bound / steps + slack).all(), steps
    # A sixteenth, or lost in the roundings.
    assert errors[512].max() <= errors[32].max() / 2 + ROUNDING * scale + bound.max() * 2.0**-14


def test_few_steps_are_better_with_a_schedule() -> None:
    model, feeds, _ = case("residual")
    (wanted,) = run_model(model, **feeds)
    error = []
    for correction in ("none", "schedule"):
        snn = compiled(model, feeds, correction=correction).model
        (found,) = run_model(snn, **feeds, snnc_steps=np.array(8))
        error.append(float(np.square(found - wanted).sum()))
    assert error[1] < error[0]


def test_a_seed_gives_its_bytes() -> None:
    model, feeds, _ = case("residual", 300)
    made = {seed: compiled(model, feeds, seed=seed) for seed in (0, 1)}
    again = compiled(model, feeds, seed=0)
    assert serialize(again.model) == serialize(made[0].model)
    assert made[0].calibration.to_json() != made[1].calibration.to_json()


def test_positions_are_sampled_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, feeds, _ = case("residual")
    whole = compiled(model, feeds).calibration
    monkeypatch.setattr(running, "POSITIONS", 96)
    one, again, other = (compiled(model, feeds, seed=seed).calibration for seed in (0, 0, 1))
    assert one.to_json() == again.to_json()
    # The same thresholds, from all of the data; other charges, from a part of the positions.
    assert one.thresholds["one"].tolist() == whole.thresholds["one"].tolist()
    for layer in ("one", "two", "three"):
        charges = [made.schedules[layer] for made in (one, other, whole)]
        assert not np.array_equal(charges[0], charges[1])
        assert not np.array_equal(charges[0], charges[2])


@pytest.mark.parametrize("correction", ["schedule", "bias", "potential"])
@pytest.mark.parametrize("neuron", ["binary", "signed:2"])
def test_memory_limits_do_not_change_the_result(
    correction: str, neuron: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = mlp(), images()
    roomy = compiled(model, x, correction=correction, neuron=neuron).calibration
    monkeypatch.setattr(running, "_BATCH_BYTES", 8 * 8 * 8 * 5)
    monkeypatch.setattr(running, "_HELD_BYTES", 0)
    monkeypatch.setattr(running, "ANN_BATCH", 7)
    narrow = compiled(model, x, correction=correction, neuron=neuron).calibration
    assert narrow.to_json() == roomy.to_json()
    monkeypatch.setattr(running, "_BATCH_BYTES", 1)
    single = compiled(model, x, correction=correction, neuron=neuron).calibration
    assert single.to_json() == roomy.to_json()


def test_at_most_so_many_samples_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layer's charges are those of samples spread evenly over the data."""
    model, x = mlp(), images(40)
    monkeypatch.setattr(calibrating, "CORRECTION_SAMPLES", (4, 10))
    monkeypatch.setattr(running, "LEAST_POSITIONS", 1)
    few = compiled(model, x)
    thinned = replace(few, calibration=few.calibration)
    layer = layers_of(
        replace(
            thinned,
            calibration=replace(
                few.calibration,
                schedules={n: np.zeros_like(s) for n, s in few.calibration.schedules.items()},
            ),
        ),
        {"x": x[::4]},
        8,
    )["one"]
    analog = activations(few, {"x": x[::4]})["one"]
    theta = layer.theta[:, None]
    again = Received(
        np.ascontiguousarray(layer.currents[:1, ..., 0].transpose(0, 2, 1)),
        np.ascontiguousarray(analog[..., 0].T),
        theta,
        theta / 2,
    )
    assert np.array_equal(best_schedule(again, 8), few.calibration.schedules["one"][:-1])


#: What the default suite tries of them: each neuron, and each kind of read-out.
OFTEN = {("binary", "mean"), ("binary", "ramp"), ("burst:3", "ramp:2"), ("signed:2", "delay:3")}


@pytest.mark.parametrize(
    ("neuron", "readout"),
    [
        pytest.param(neuron, readout, marks=[] if (neuron, readout) in OFTEN else pytest.mark.slow)
        for neuron in ("binary", "burst:3", "signed:2")
        for readout in ("mean", "ramp", "ramp:2", "delay:3")
    ],
)
def test_every_way_of_unrolling_gives_the_same_bits(neuron: str, readout: str) -> None:
    model, x = mlp(), images(6)
    made = compiled(model, x, neuron=neuron)

    def emitted(**options: Any) -> onnx.ModelProto:
        chosen = {"steps": 13, "readout": readout, "neuron": neuron, **options}
        return pipeline.emit(made.prepared, made.calibration, Options(**chosen))

    (wanted,) = run_model(emitted(unroll="steps"), x=x)
    assert np.abs(wanted).max() > 0
    (loop,) = run_model(emitted(unroll="loop"), x=x)
    assert np.array_equal(loop, wanted)
    fold = emitted(unroll="fold")
    for chunk in (1, 3, 8, 13, 50):
        (found,) = run_model(fold, x=x, snnc_chunk=np.array(chunk))
        assert np.array_equal(found, wanted), chunk
    (window,) = run_model(emitted(emit="cuda-graph", batch=6), x=x)
    assert np.array_equal(window, wanted)
    stream = Stream(emitted(emit="step"))
    outputs = [stream.step(x)["y"] for _ in range(13)]
    assert np.array_equal(outputs[-1], wanted)
    # Within and behind the schedule of 8 steps.
    for steps in (1, 5, 9):
        (found,) = run_model(fold, x=x, snnc_steps=np.array(steps))
        assert np.array_equal(found, outputs[steps - 1]), steps


def test_a_calibration_with_schedules_is_read_back_exactly() -> None:
    made = compiled(mlp(), images())
    read = Calibration.from_json(made.calibration.to_json())
    assert set(read.schedules) == {"one", "two", "three"}
    for layer, charges in made.calibration.schedules.items():
        assert np.array_equal(read.schedules[layer], charges)
        assert read.schedules[layer].dtype == np.float32
    again = pipeline.emit(made.prepared, read, Options(threshold="max", readout="mean"))
    assert serialize(again) == serialize(made.model)


WRONG_SCHEDULES: dict[str, tuple[dict[str, Array], str]] = {
    "of another layer": ({"other": np.zeros((2, 8), np.float32)}, "SNNC306"),
    "of other channels": ({"one": np.zeros((2, 5), np.float32)}, "SNNC306"),
    "of no rows": ({"one": np.zeros((0, 8), np.float32)}, "SNNC306"),
    "of one axis": ({"one": np.zeros(8, np.float32)}, "SNNC306"),
    "not finite": ({"one": np.full((2, 8), np.nan, np.float32)}, "SNNC306"),
}


@pytest.mark.parametrize("name", WRONG_SCHEDULES)
def test_a_calibration_with_schedules_that_cannot_be_is_refused(name: str) -> None:
    charges, code = WRONG_SCHEDULES[name]
    made = compiled(mlp(), images())
    wrong = replace(made.calibration, schedules={**made.calibration.schedules, **charges})
    read = Calibration.from_json(wrong.to_json())
    with pytest.raises(Refused, match=code):
        pipeline.compile_model(mlp(), Options(), read)


def test_a_hard_reset_does_not_become_a_soft_one_by_a_calibration_with_schedules() -> None:
    made = compiled(mlp(), images())
    try:
        hard = pipeline.compile_model(mlp(), Options(reset="hard"), made.calibration).model
    except (Refused, UsageError):
        return
    assert op_counts(hard)["HardResetNeuron"] == 3 and op_counts(hard)["ScheduledRMPNeuron"] == 0
    assert verify(mlp(), hard).passed


# --- networks that are special ---


def test_where_time_cannot_be_folded_nothing_is_corrected() -> None:
    text = """g (float[N,2,3] x) => (float[N,2,3] y)
    { h = Relu (x)  t = Transpose <perm = [1, 0, 2]> (h)  [turned] r = Relu (t)
      n = Neg (r)  b = Transpose <perm = [1, 0, 2]> (n)  s = Sub (x, b)  y = Relu (s) }"""
    x = random(0, 6, 2, 3)
    made = compiled(parse(text), x, correction="schedule")
    assert made.calibration.correction == "none" and not made.calibration.schedules
    notes = [f for f in made.prepared.findings if "not corrected" in f.message]
    assert [(f.code, f.severity) for f in notes] == [("SNNC205", "note")]
    (found,) = run_model(made.model, x=x, snnc_steps=np.array(512))
    (wanted,) = run_model(parse(text), x=x)
    assert abs(found - wanted).max() <= 6 / 512 * abs(wanted).max()
    plain = compiled(parse(text), x, correction="none")
    assert made.calibration.thresholds.keys() == plain.calibration.thresholds.keys()
    for layer, theta in made.calibration.thresholds.items():
        assert np.array_equal(theta, plain.calibration.thresholds[layer])


FIXED = """g (float[4,3] x) => (float[1,5] y)
{ a = MatMul (x, w0)  [one] p = Relu (a)  b = MatMul (p, w1)  [two] q = Relu (b)
  y = ReduceMean <axes = [0], keepdims = 1> (q) }"""


def test_a_network_that_takes_one_batch_size_is_not_corrected() -> None:
    model = parse(FIXED, {"w0": random(1, 3, 6), "w1": random(2, 6, 5)})
    x = random(3, 23, 3)
    made = compiled(model, x, correction="schedule")
    assert made.prepared.fixed_batch == 4 and made.calibration.samples == 20
    assert made.calibration.correction == "none"
    notes = [f for f in made.prepared.findings if "not corrected" in f.message]
    assert [(f.code, f.severity) for f in notes] == [("SNNC205", "note")]
    (found,) = run_model(made.model, x=x[:4], snnc_steps=np.array(2048))
    (wanted,) = run_model(model, x=x[:4])
    # Two layers, some θ/T each.
    assert abs(found - wanted).max() <= 8 / 2048 * abs(wanted).max()
    with pytest.raises(Refused, match="SNNC205"):
        compiled(model, x, threshold="vin-max")


def test_a_network_exported_for_one_sample_is_corrected() -> None:
    """Its batch axis is free, so it is as if it had been exported with any batch."""
    text = MLP.replace("N,", "1,")
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in mlp().graph.initializer}
    one, many = (compiled(parse(text, weights), images()) for text in (text, MLP))
    assert one.prepared.any_batch and one.calibration.correction == "schedule"
    for layer, charges in many.calibration.schedules.items():
        assert np.array_equal(one.calibration.schedules[layer], charges)


@pytest.mark.parametrize("correction", ["schedule", "bias", "potential"])
def test_layers_that_few_positions_show_are_not_corrected(correction: str) -> None:
    """Eight samples of an MLP say nothing of others; a note says how many layers that concerns."""
    few, enough = (compiled(mlp(), images(n), correction=correction) for n in (8, 40))
    assert all(not charges.any() for charges in few.calibration.schedules.values())
    assert all(charges.any() for charges in enough.calibration.schedules.values())
    notes = [f.message for f in few.prepared.findings if f.code == "SNNC309"]
    assert len(notes) == 1 and "3 of 3 layers" in notes[0]
    assert "SNNC309" not in {f.code for f in enough.prepared.findings}


def test_a_dead_layer_and_a_single_sample() -> None:
    weights = {"w0": -abs(random(1, 4, 4)), "w1": random(2, 4, 4)}
    text = """g (float[N,4] x) => (float[N,4] y)
    { a = MatMul (x, w0)  [dead] p = Relu (a)  b = MatMul (p, w1)  t = Add (b, x)
      [live] y = Relu (t) }"""
    x = abs(random(3, 1, 4))
    made = compiled(parse(text, weights), x)
    (found,) = run_model(made.model, x=x, snnc_steps=np.array(1024))
    assert np.isfinite(found).all() and abs(found - x).max() <= x.max() * 8 / 1024
    spikes = layers_of(made, {"x": x}, 8)["dead"].spikes
    assert not spikes.any()


# --- burst and signed neurons ---


def simulated(x: Array, theta: dict[str, Array], levels: int, signed: bool, steps: int) -> Array:
    """The network of three layers in numpy: the decoded output after `steps` steps, initial 1/2."""
    weights = [dyadic(1, 4, 8), dyadic(2, 8, 8), dyadic(3, 8, 6)]
    quanta = [theta[name] / np.float32(levels) for name in ("one", "two", "three")]
    v = [np.tile(q / 2, (len(x), 1)) for q in quanta]
    sent = [np.zeros_like(one) for one in v]
    for _ in range(steps):
        value = x
        for layer, (w, q) in enumerate(zip(weights, quanta, strict=True)):
            u = v[layer] + value @ w
            k = np.clip(np.floor(u / q), -levels if signed else 0, levels)
            k = np.maximum(k, -sent[layer])
            v[layer], sent[layer] = u - q * k, sent[layer] + k
            value = k * q
    mean: Array = (sent[-1] / np.float32(steps)) * quanta[-1]
    return mean @ dyadic(4, 6, 3)


@pytest.mark.parametrize(("neuron", "levels", "signed"), [
    ("binary", 1, False), ("burst:1", 1, False), ("burst:4", 4, False), ("signed:1", 1, True),
    ("signed:8", 8, True),
])  # fmt: skip
def test_neurons_of_several_levels_do_as_numpy_does(neuron: str, levels: int, signed: bool) -> None:
    model, x = mlp(), images(16)
    made = compiled(model, x, neuron=neuron, correction="none", steps=11)
    assert told(made.model)["neuron"] == neuron
    operators = {"binary": "RMPNeuron", "burst": "BurstNeuron", "signed": "SignedNeuron"}
    operator = operators[neuron.partition(":")[0]]
    (loop,) = [node for node in made.model.graph.node if node.op_type == "Loop"]
    nodes = [n for n in loop.attribute[0].g.node if n.op_type in dialect.NEURONS]
    assert [node.op_type for node in nodes] == [operator] * 3
    given = [{a.name: a.i for a in node.attribute}.get("levels") for node in nodes]
    assert given == [None if neuron == "binary" else levels] * 3
    (found,) = run_model(made.model, x=x)
    wanted = simulated(x, dict(made.calibration.thresholds), levels, signed, 11)
    assert abs(wanted).max() > 0
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * abs(wanted).max())
    for layer in layers_of(made, {"x": x}, 11, neuron=neuron).values():
        low, high = layer.spikes.min(), layer.spikes.max()
        assert high <= levels and low >= (-levels if signed else 0)
        assert (layer.spikes.cumsum(axis=0) >= 0).all()


@pytest.mark.parametrize("levels", [1, 3, 16, 127])
def test_one_step_of_a_burst_is_a_quantized_layer(levels: int) -> None:
    text = "g (float[N,5] x) => (float[N,5] y) { [act] y = Relu (x) }"
    x = random(1, 200, 5)
    made = compiled(parse(text), x, neuron=f"burst:{levels}", correction="none", steps=1, alpha=0.5)
    theta = made.calibration.thresholds["act"]
    quantum = theta / np.float32(levels)
    (found,) = run_model(made.model, x=x)
    wanted = np.clip(np.floor(x / quantum + 0.5), 0, levels) * quantum
    # A value within a rounding of the middle between two levels may take either.
    assert (abs(found - wanted) <= 1e-6).mean() > 0.99
    assert abs(found - np.clip(x, 0, theta)).max() <= quantum.max() / 2 * (1 + 1e-5)


def test_signed_spikes_take_back_what_was_too_much() -> None:
    """After a wrong start, the signed neuron returns to the ANN's value, the binary one does not."""
    text = """g (float[N,1] x) => (float[N,1] y)
    { n = Neg (x)  [up] p = Relu (x)  a = Mul (p, w)  s = Sub (a, x)  [out] y = Relu (s) }"""
    model = parse(text, {"w": np.array([0.9], np.float32)})
    x = np.array([[1.0], [0.31], [0.05]], np.float32)
    error = {}
    for neuron in ("binary", "signed:1"):
        made = compiled(model, x, neuron=neuron, correction="none", steps=64, initial=0.9)
        (found,) = run_model(made.model, x=x)
        error[neuron] = abs(found).max()
    assert error["signed:1"] <= error["binary"] and error["signed:1"] <= 1 / 64


# --- the read-out ---

ONE_LAYER = """g (float[N,4] x) => (float[N,6] y)
{ a = MatMul (x, w0)  [one] p = Relu (a)  b = MatMul (p, w1)  [two] y = Relu (b) }"""


def single_steps(made: pipeline.Compiled, x: Array, steps: int) -> Array:
    """The output's own value at each step, from the stream's running means: θ times 0 or 1."""
    chosen = Options(threshold="max", readout="mean", emit="step")
    stream = Stream(pipeline.emit(made.prepared, made.calibration, chosen))
    theta = made.calibration.thresholds["two"].astype(np.float64)
    counts = [np.rint(stream.step(x)["y"] * t / theta) for t in range(1, steps + 1)]
    spikes = np.diff(np.stack([np.zeros_like(counts[0]), *counts]), axis=0)
    assert set(np.unique(spikes)) == {0, 1}
    values: Array = spikes * theta
    return values


@pytest.mark.parametrize(
    "readout",
    [
        *("mean", "ramp:2", "delay:6"),
        *(
            pytest.param(readout, marks=pytest.mark.slow)
            for readout in ("ramp", "ramp:3", "delay:0", "delay:1", "delay:18")
        ),
    ],
)
def test_a_read_out_is_a_weighted_mean_of_the_steps(readout: str) -> None:
    model = parse(ONE_LAYER, {"w0": random(1, 4, 6), "w1": random(2, 6, 6)})
    x = random(3, 9, 4)
    made = compiled(model, x, steps=19, readout=readout)
    values = single_steps(made, x, 40)
    parsed = ReadOut.parse(readout)
    for steps in (1, 2, 7, 19, 40):
        times = np.arange(1, steps + 1)
        weights = {
            "mean": np.ones(steps),
            "ramp": times.astype(float) ** parsed.power,
            "delay": (times > parsed.skipped).astype(float),
        }[parsed.kind]
        # Without any step that counts there is nothing to say: 0.
        total = weights.sum() or 1.0
        wanted = np.tensordot(weights, values[:steps], 1) / total
        for chunk in (1, 5):
            given = {"snnc_steps": np.array(steps), "snnc_chunk": np.array(chunk)}
            (found,) = run_model(made.model, x=x, **given)
            np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
    for unroll in ("steps", "loop"):
        options = Options(steps=19, readout=readout, unroll=unroll)  # type: ignore[arg-type]
        (found,) = run_model(pipeline.emit(made.prepared, made.calibration, options), x=x)
        (again,) = run_model(made.model, x=x)
        np.testing.assert_allclose(found, again, rtol=1e-6, atol=1e-6)


def test_constant_parts_of_the_read_out_keep_their_weight() -> None:
    """A bias behind the neurons counts once, whatever the weights of the steps are."""
    text = """g (float[N,3] x) => (float[N,2] y)
    { p = Relu (x)  y = Gemm (p, w, bias) }"""
    model = parse(text, {"w": random(1, 3, 2), "bias": np.array([5, -7], np.float32)})
    x = np.zeros((2, 3), np.float32)
    for readout in ("mean", "ramp", "ramp:2", "ramp:3", "delay:3"):
        made = pipeline.compile_model(
            model,
            Options(readout=readout, correction="none", initial=0.0, steps=9),
            random(2, 8, 3),
        )
        (found,) = run_model(made.model, x=x)
        assert found.tolist() == [[5, -7]] * 2, readout


# --- the paper's thresholds ---


def largest_currents(
    x: Array, steps: int, initial: float, alpha: float, per_channel: bool
) -> dict[str, Array]:
    """Layer by layer in numpy, each with the thresholds of the layers before it."""
    weights = [dyadic(1, 4, 8), dyadic(2, 8, 8), dyadic(3, 8, 6)]
    values, found = np.broadcast_to(x, (steps, *x.shape)), {}
    for name, w in zip(("one", "two", "three"), weights, strict=True):
        currents = values @ w
        top = currents.max(axis=(0, 1)) if per_channel else currents.max(keepdims=True).ravel()
        theta = (np.where(top > 0, top, top.max()) * np.float32(alpha)).astype(np.float32)
        found[name] = theta
        v = np.broadcast_to(theta * np.float32(initial), currents.shape[1:]).astype(np.float32)
        spikes = []
        for current in currents:
            u = v + current
            s = (u >= theta).astype(np.float32)
            v = u - theta * s
            spikes.append(s * theta)
        values = np.stack(spikes)
    return found


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("alpha", [1.0, 0.5, 2.0])
def test_vin_max_is_the_largest_current_layer_by_layer(alpha: float, per_channel: bool) -> None:
    model, x = mlp(), images(24)
    made = compiled(model, x, threshold="vin-max", alpha=alpha, per_channel=per_channel)
    assert made.calibration.correction == "none" and made.calibration.method == "vin-max"
    wanted = largest_currents(x, calibrating.VIN_MAX_STEPS, 0.5, alpha, per_channel)
    assert set(made.calibration.thresholds) == set(wanted)
    for layer, theta in wanted.items():
        np.testing.assert_allclose(made.calibration.thresholds[layer], theta, rtol=1e-6)


@pytest.mark.parametrize("encode", ["constant", "poisson"])
@pytest.mark.parametrize("name", ["residual", "max pooling", "two inputs", "a static branch"])
def test_no_current_is_above_its_vin_max(name: str, encode: str) -> None:
    """In the compiled network itself, on the samples that the thresholds were seen on."""
    model, feeds, options = case(name, 10)
    made = compiled(
        model, feeds, threshold="vin-max", per_channel=False, encode=encode, initial=0.0, **options
    )
    ran = layers_of(made, feeds, calibrating.VIN_MAX_STEPS, encode=encode, initial=0.0)
    assert len(ran) == len(made.calibration.thresholds) >= 2
    for layer, found in ran.items():
        (theta,) = made.calibration.thresholds[layer]
        # Convolutions of another batch size may sum in another order.
        assert found.currents.max() == pytest.approx(theta, rel=1e-4), layer


def test_vin_max_takes_a_correction_if_one_is_asked_for() -> None:
    made = compiled(mlp(), images(), threshold="vin-max", correction="schedule")
    assert made.calibration.method == "vin-max" and set(made.calibration.schedules) == {
        "one", "two", "three",
    }  # fmt: skip


def test_a_layer_that_receives_nothing_positive_keeps_the_threshold_of_a_dead_one() -> None:
    weights = {"w0": -abs(random(1, 4, 4)), "w1": random(2, 4, 4)}
    text = """g (float[N,4] x) => (float[N,4] y)
    { a = MatMul (x, w0)  [dead] p = Relu (a)  b = MatMul (p, w1)  t = Add (b, x)
      [live] y = Relu (t) }"""
    x = abs(random(3, 9, 4))
    made = compiled(parse(text, weights), x, threshold="vin-max", per_channel=False)
    assert made.calibration.thresholds["dead"].tolist() == [1.0]
    assert made.calibration.thresholds["live"] == pytest.approx(x.max())
    assert [f.code for f in made.prepared.findings if f.severity == "warning"] == ["SNNC305"]
