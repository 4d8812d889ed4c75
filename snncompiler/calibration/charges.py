"""Calibration on the running spiking network, layer by layer.

What a layer receives depends on the spikes of the layers before it, so layers are settled from the
input on: a *segment* of the network computes a layer's currents at every time-step from the recorded
spikes of earlier layers, the layer is settled on them, and then it fires.  Every layer runs once or
twice, so the whole costs about two forward passes.  Spikes are kept as bits, and only as long as a
later layer reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from snncompiler.calibration.feedback import round_weights
from snncompiler.calibration.window import Window
from snncompiler.ir import dialect
from snncompiler.ir.graph import with_outputs
from snncompiler.ir.growth import STEADY, Growth
from snncompiler.ir.settings import Correction
from snncompiler.passes.lower.attach_functions import attach_functions
from snncompiler.runtime.reference import (
    binary_spikes,
    burst_spikes,
    signed_spikes,
    soft_reset,
)
from snncompiler.runtime.session import create_session

Array = NDArray[Any]
Floats = NDArray[np.float32]
Feeds = Mapping[str, Array]

#: Currents of a layer are held where they take at most this many bytes, else computed twice.
_HELD_BYTES = 384 << 20
#: What a batch of a segment may take: its currents and the spikes that it reads.
_BATCH_BYTES = 128 << 20
#: Images that run through the ANN at once.
ANN_BATCH = 8
#: Positions of a channel, over all images, on which a layer is settled.
POSITIONS = 4096
#: A layer seen at fewer positions is not corrected: they do not tell what others need.
LEAST_POSITIONS = 32
#: Biases of a channel that differ by more than this part of θ do not count as one value.
UNEVEN = 1e-3
#: Weight of the mean against the single neurons, in `best_schedule`
#: (docs/explanation/accuracy-choices.md).
BIAS_WEIGHT = 4.0
#: Charges that are tried for binary neurons, and for those of several levels.
_CUTS, _GRID = 256, 33


@dataclass(frozen=True)
class Layer:
    """A rectifier of the ANN that becomes a neuron layer: its name, its output, its channels."""

    name: str
    output: str
    channels: int


@dataclass
class Recording:
    """The spikes of one layer over all time-steps: bits, or bytes where a step has several levels."""

    binary: bool
    shape: tuple[int, ...] = ()
    parts: list[tuple[int, Array]] = field(default_factory=list)

    def add(self, spikes: Floats) -> None:
        """Add the folded spikes [steps*m, ...] of m images."""
        self.shape = spikes.shape[1:]
        packed = np.packbits(spikes > 0) if self.binary else spikes.astype(np.int8)
        self.parts.append((spikes.size, packed))

    def take(self, index: int) -> Floats:
        size, packed = self.parts[index]
        values = np.unpackbits(packed, count=size) if self.binary else packed
        return values.astype(np.float32).reshape(-1, *self.shape)


class RunningNetwork:
    """The spikes of the layers settled so far, on fixed images in fixed batches.

    feeds: images by input name, [n, ...].  batch: images that run at once.
    """

    def __init__(self, feeds: Feeds, batch: int) -> None:
        self.feeds = feeds
        count = len(next(iter(feeds.values())))
        self.parts = [slice(at, min(at + batch, count)) for at in range(0, count, batch)]
        self.recordings: dict[str, Recording] = {}

    def currents(self, window: Window, node: onnx.NodeProto) -> Iterator[Floats]:
        """What a layer receives, batch by batch: [steps*m, ...], or [m, ...] where it is static."""
        return self.values(window, node.input[0])

    def values(self, window: Window, wanted: str) -> Iterator[Floats]:
        """What a tensor is, batch by batch."""
        if wanted in self.recordings:
            for index in range(len(self.parts)):
                yield self.recordings[wanted].take(index)
            return
        nodes, reads = window.before(wanted)
        spiking = [name for name in reads if name not in window.inputs]
        model = _model(window, nodes, reads, [wanted])
        session = create_session(model)
        for index, part in enumerate(self.parts):
            given = {name: self.recordings[name].take(index) for name in spiking}
            for name in reads:
                if name in self.feeds:
                    given[name] = self.feeds[name][part]
                elif name == window.first_image:
                    given[name] = np.array(part.start, np.int64)
            yield session.run(None, given)[0]

    def fire(
        self,
        window: Window,
        node: onnx.NodeProto,
        schedule: Floats | None,
        currents: Iterator[Floats],
    ) -> None:
        """Let a layer fire on its currents, with a schedule [S, C, ...] if it takes one; record it."""
        names = [node.input[0]]
        given: dict[str, Array] = {}
        if schedule is not None:
            ports = [port.name for port in dialect.OPERATORS[node.op_type].inputs]
            names.append(node.input[ports.index("schedule")])
            given[names[1]] = schedule
        session = create_session(_model(window, [node], names, [node.output[0]]))
        binary = _attribute(node, "levels") <= 1 and node.op_type != "SignedNeuron"
        recording = Recording(binary)
        for current in currents:
            recording.add(session.run(None, {**given, names[0]: current})[0])
        self.recordings[node.output[0]] = recording

    def forget(self, window: Window, settled: set[str]) -> None:
        """Drop the recordings that no layer outside `settled` reads."""
        needed: set[str] = set()
        for node in window.neurons():
            if node.name not in settled:
                needed.update(window.before(node.input[0])[1])
        for name in set(self.recordings) - needed:
            del self.recordings[name]


def _model(
    window: Window, nodes: Sequence[onnx.NodeProto], inputs: Sequence[str], outputs: Sequence[str]
) -> onnx.ModelProto:
    """Some nodes of the window as a model of their own."""
    read = {name for node in nodes for name in node.input} - set(inputs)
    kinds = {entry.name: entry for entry in window.graph.input}

    def entry(name: str) -> onnx.ValueInfoProto:
        return kinds.get(name) or helper.make_tensor_value_info(name, TensorProto.FLOAT, None)

    graph = helper.make_graph(
        nodes,
        "segment",
        [entry(name) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        initializer=[tensor for tensor in window.graph.initializer if tensor.name in read],
    )
    return attach_functions(graph, window.opsets)


# --- sampling ---


@dataclass(frozen=True)
class Sampling:
    """Which positions of a layer are looked at: for every image the same number, seeded."""

    channels: int
    places: NDArray[np.int64]

    @staticmethod
    def draw(shape: Sequence[int], channels: int, images: int, seed: int) -> Sampling:
        """For a layer whose output has `shape` [C, ...] for one image."""
        size = int(np.prod(shape, dtype=np.int64)) // channels
        count = min(size, -(-POSITIONS // images))
        rng = np.random.default_rng(seed)
        places = np.stack([rng.permutation(size)[:count] for _ in range(images)])
        return Sampling(channels, places)

    def take(self, values: Floats, part: slice) -> Floats:
        """From [k*m, ...], k steps of the m images of `part`, to [k, C, P]."""
        places = self.places[part]
        images = len(places)
        steps = len(values) // images
        split = values.reshape(steps, images, self.channels, -1)
        picked = np.take_along_axis(split, places[None, :, None, :], axis=3)
        return np.ascontiguousarray(picked.transpose(0, 2, 1, 3)).reshape(steps, self.channels, -1)


# --- corrections ---


@dataclass(frozen=True)
class Received:
    """What a layer received at the sampled positions, and what it should give.

    currents: [steps or 1, C, P], one step where it is static.  analog: the ANN's activations there,
    [C, P].  quantum: θ, or θ/G of a neuron with G levels, [C, 1].  start: potential at the start,
    [C, 1].  levels: G.  signed: negative spikes may take back earlier ones.  Where θ grows: worth: what
    a spike of each step is worth in spikes of the end, [steps]; driven: what comes on top of the
    currents (`driven_bias`), [S, C].
    """

    currents: Floats
    analog: Floats
    quantum: Floats
    start: Floats
    levels: int = 1
    signed: bool = False
    worth: Floats | None = None
    driven: Floats | None = None

    def at(self, step: int) -> Floats:
        current = np.asarray(self.currents[0 if len(self.currents) == 1 else step], np.float32)
        return current if self.driven is None else current + self.driven[step][:, None]

    def worth_at(self, step: int) -> np.float32:
        return np.float32(1) if self.worth is None else np.float32(self.worth[step])

    def spikes(self, u: Floats, balance: Floats) -> Floats:
        """k of every neuron at a potential u after its current, [C, P]; balance: sent so far."""
        if self.signed:
            return signed_spikes(u, self.quantum, balance, self.levels)
        if self.levels == 1:
            return binary_spikes(u, self.quantum)
        return burst_spikes(u, self.quantum, self.levels)


def best_schedule(received: Received, steps: int) -> Floats:
    """Charges b [steps, C] that keep every channel's output so far as near to the ANN's as it can be.

    After t steps a neuron has sent θ·n, with n what its spikes are worth, where the ANN has t·a.  At
    each step the charge, the same for a whole channel, is the one in ±θ/2 with the least
    Σ(θ·n - t·a)² + BIAS_WEIGHT·(Σ(θ·n - t·a))²/P over the P sampled positions: the first term asks for
    the right neurons, the second for the right mean.
    """
    theta = received.quantum
    v = np.broadcast_to(received.start, received.analog.shape).astype(np.float32)
    count, sent = np.zeros_like(v), np.zeros_like(v)
    charges = np.zeros((steps, len(theta)), np.float32)
    for step in range(steps):
        u, worth = v + received.at(step), received.worth_at(step)
        # In what a spike of this step takes away.
        owed = np.asarray(((step + 1) * received.analog - theta * sent) / worth, np.float32)
        find = _best_binary if received.levels == 1 and not received.signed else _best_of_grid
        charges[step] = find(received, u, owed, count)
        u = u + charges[step][:, None]
        k = received.spikes(u, count)
        v = soft_reset(u, theta, k)
        count, sent = count + k, sent + worth * k
    return charges


def _best_binary(received: Received, u: Floats, owed: Floats, count: Floats) -> Floats:
    """Of the neurons with the largest potentials, how many to let fire: [C].

    `owed` is t·a - θ·n.  A spike changes its square by θ² - 2·θ·owed, so sums over the neurons above
    each of _CUTS potentials between θ/2 and 3θ/2 are enough.
    """
    theta = received.quantum.astype(np.float64)
    channels, positions = u.shape
    # Bin _CUTS + 1 fires whatever the charge, bin 0 never.
    place = np.clip(np.floor((u / theta - 0.5) * _CUTS) + 1, 0, _CUTS + 1).astype(np.int64)
    flat = (place + (_CUTS + 2) * np.arange(channels)[:, None]).ravel()
    size = channels * (_CUTS + 2)
    gain = (theta * (theta - 2.0 * owed)).ravel()
    gains = np.bincount(flat, gain, size).reshape(channels, -1)[:, ::-1]
    fires = np.bincount(flat, minlength=size).reshape(channels, -1)[:, ::-1]
    # Entry i: everything down to bin _CUTS + 1 - i fires.
    squares, fired = np.cumsum(gains, axis=1)[:, :-1], np.cumsum(fires, axis=1)[:, :-1]
    short = owed.sum(axis=1, keepdims=True, dtype=np.float64) - theta * fired
    best = (squares + BIAS_WEIGHT * short**2 / positions).argmin(axis=1)
    # The lower edge of the last bin that fires comes to lie on θ.
    cut = 0.5 + (_CUTS - best) / _CUTS
    return np.asarray(theta[:, 0] * (1.0 - cut), np.float32)


def _best_of_grid(received: Received, u: Floats, owed: Floats, count: Floats) -> Floats:
    """The same for neurons of several levels, among _GRID charges: [C]."""
    theta = received.quantum
    best = np.zeros(len(theta), np.float32)
    least = np.full(len(theta), np.inf)
    for part in np.linspace(-0.5, 0.5, _GRID, dtype=np.float32):
        left = owed - theta * received.spikes(u + part * theta, count)
        bias = left.sum(axis=1, dtype=np.float64)
        error = np.square(left).sum(axis=1, dtype=np.float64) + BIAS_WEIGHT * bias**2 / u.shape[1]
        better = error < least
        best[better], least[better] = (part * theta[:, 0])[better], error[better]
    return best


def mean_difference(received: Received, steps: int) -> Floats:
    """ANN minus SNN: mean activation minus mean output over `steps` steps without a charge, [C]."""
    theta = received.quantum
    v = np.broadcast_to(received.start, received.analog.shape).astype(np.float32)
    balance = np.zeros_like(v)
    for step in range(steps):
        u = v + received.at(step)
        k = received.spikes(u, balance)
        v = soft_reset(u, theta, k)
        balance = balance + k
    given = (theta * balance).mean(axis=1, dtype=np.float64) / steps
    return np.asarray(received.analog.mean(axis=1, dtype=np.float64) - given, np.float32)


def constant_currents(
    window: Window, layers: Sequence[Layer], feeds: Feeds, batch: int | None
) -> tuple[dict[str, Floats], list[str]]:
    """What every layer receives where nothing fires and the input drives nothing, its biases: the mean
    of each channel, [C]; and the layers where they are not the same all over a channel.

    window: a network whose thresholds grow.  feeds: images, of which one is enough.  batch: the only
    batch size that the network takes.
    """
    by_name = {layer.name: layer for layer in layers}
    nodes = [node for node in window.neurons() if node.name in by_name]
    wanted = list(dict.fromkeys(node.input[0] for node in nodes))
    model = _model(window, window.graph.node, sorted(window.inputs), wanted)
    changed = {node.input[1]: 0.0 for node in window.graph.node if node.op_type == "Drive"}
    # No potential reaches that.
    changed |= {node.input[1]: float(np.finfo(np.float32).max) for node in nodes}
    theta = {}
    for tensor in model.graph.initializer:
        if tensor.name in changed:
            theta[tensor.name] = numpy_helper.to_array(tensor)
            other = np.full_like(theta[tensor.name], changed[tensor.name])
            tensor.CopyFrom(numpy_helper.from_array(other, tensor.name))
    given = {name: array[: batch or 1] for name, array in feeds.items()}
    received = dict(zip(wanted, create_session(model).run(wanted, given), strict=True))
    biases: dict[str, Floats] = {}
    uneven = []
    for node in nodes:
        channels = by_name[node.name].channels
        current = received[node.input[0]]
        split = current.reshape(len(current), channels, -1).astype(np.float64)
        mean = split.mean(axis=(0, 2))
        biases[node.name] = np.asarray(mean, np.float32)
        spread = np.abs(split - mean[:, None]).max(axis=(0, 2), initial=0.0)
        if (spread > UNEVEN * theta[node.input[1]].reshape(-1)).any():
            uneven.append(node.name)
    return biases, uneven


def driven_bias(bias: Floats, growth: Growth, steps: int) -> Floats:
    """What growing thresholds add to a constant current [C] at each of the first steps, [S, C]: times
    1/g_t instead of 1.  S is at least `steps`."""
    drive = growth.drive
    driven = np.outer(drive - np.float32(1), bias)
    return np.pad(driven, ((0, max(steps - len(drive), 0)), (0, 0))).astype(np.float32)


def correct(received: Received, correction: Correction, steps: int) -> Floats:
    """The schedule [S, C] of a layer; its last row holds for all later steps.

    `schedule`: the best charge for each of the first `steps` steps, and none later, so that what they
    add to the decoded value vanishes as 1/T.  `bias`: the mean difference to the ANN, over as many
    steps, at every step.  `potential`: the same charge, all at the first step.
    """
    if correction == "bias":
        return mean_difference(received, steps)[None]
    if correction == "potential":
        charges = steps * mean_difference(received, steps)[None]
    else:
        charges = best_schedule(received, steps)
        if received.driven is not None:
            rest = received.driven[steps:]
            charges = np.concatenate([charges + received.driven[:steps], rest])
    return np.concatenate([charges, np.zeros_like(charges[:1])])


@dataclass(frozen=True)
class Sampled:
    """The ANN's activations of one layer at the sampled positions, [C, P]; `shape` of one image."""

    sampling: Sampling
    shape: tuple[int, ...]
    activations: Floats

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


def sample_ann(
    ann: onnx.ModelProto, layers: Sequence[Layer], feeds: Feeds, batch: int, seed: int
) -> dict[str, Sampled]:
    """Run the normalized ANN and keep its activations at the positions on which layers are settled."""
    names = [layer.output for layer in layers]
    session = create_session(with_outputs(ann, names))
    images = len(next(iter(feeds.values())))
    samplings: dict[str, Sampling] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    picked: dict[str, list[Floats]] = {layer.name: [] for layer in layers}
    for at in range(0, images, batch):
        part = slice(at, min(at + batch, images))
        values = session.run(names, {name: array[part] for name, array in feeds.items()})
        for layer, value in zip(layers, values, strict=True):
            if layer.name not in samplings:
                shapes[layer.name] = value.shape[1:]
                samplings[layer.name] = Sampling.draw(value.shape[1:], layer.channels, images, seed)
            picked[layer.name].append(samplings[layer.name].take(value, part)[0])
    return {
        layer.name: Sampled(
            samplings[layer.name], shapes[layer.name], np.concatenate(picked[layer.name], axis=1)
        )
        for layer in layers
    }


def settle_corrections(
    window: Window,
    ann: onnx.ModelProto,
    layers: Sequence[Layer],
    feeds: Feeds,
    correction: Correction,
    *,
    growth: Growth = STEADY,
    biases: Mapping[str, Floats] | None = None,
    batch: int | None = None,
    seed: int = 0,
    whole: dict[str, NDArray[np.int8]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Floats], list[str]]:
    """The schedules [S, C] of all layers, settled from the input on, as `correct` says, and the names
    of those that are not corrected.

    window: the network with its thresholds set, over the steps of the correction; its neurons take a
    schedule.  ann: the normalized ANN.  feeds: images by input name, [n, ...].  growth: of the window's
    thresholds; schedules then hold what drives the `biases`, too.  batch: the only batch size that the
    network takes, of which n is a multiple.  whole: where given, weights are rounded by error feedback,
    each layer before its charges are found, and what that changes is put there.  A layer of which the
    images show fewer than LEAST_POSITIONS positions of a channel gets no charge.
    """
    by_name = {layer.name: layer for layer in layers}
    order = [node for node in window.neurons() if node.name in by_name]
    sampled = sample_ann(ann, [by_name[n.name] for n in order], feeds, batch or ANN_BATCH, seed)
    largest = max(one.size for one in sampled.values())
    size = batch or max(1, _BATCH_BYTES // (8 * window.steps * largest))
    network = RunningNetwork(feeds, size)
    worth = growth.worth(window.steps) if growth else None
    constants = {tensor.name: tensor for tensor in window.graph.initializer}
    images = len(next(iter(feeds.values())))

    def seen_by(name: str) -> Iterator[tuple[Floats, int]]:
        for part, value in zip(network.parts, network.values(window, name), strict=True):
            yield value, part.stop - part.start

    schedules: dict[str, Floats] = {}
    left: list[str] = []
    for done, node in enumerate(order):
        layer, seen = by_name[node.name], sampled[node.name]
        if whole is not None:
            before = window.before(node.input[0])[0]
            round_weights(before, window.units, constants, seen_by, whole, seed)
        steps = 1 if _attribute(node, "static_current") else window.steps
        held: list[Floats] = []
        hold = 4 * seen.size * images * steps <= _HELD_BYTES
        parts = []
        for part, current in zip(network.parts, network.currents(window, node), strict=True):
            parts.append(seen.sampling.take(current, part))
            if hold:
                held.append(current)
        driven = None
        if growth and biases is not None:
            driven = driven_bias(biases[node.name], growth, window.steps)
        unit = window.unit(layer.name, layer.channels)
        received = Received(
            currents=np.concatenate(parts, axis=2),
            analog=seen.activations if unit is None else seen.activations / unit,
            quantum=_column(constants[node.input[1]], layer.channels),
            start=_column(constants[node.input[2]], layer.channels),
            levels=_attribute(node, "levels") or 1,
            signed=node.op_type == "SignedNeuron",
            worth=worth,
            driven=driven,
        )
        positions = received.analog.shape[1]
        if positions < LEAST_POSITIONS:
            left.append(layer.name)
            schedule = np.zeros((1, layer.channels), np.float32)
            if driven is not None:
                schedule = np.concatenate([driven, schedule])
        else:
            schedule = correct(received, correction, window.steps)
        if unit is None:
            schedules[layer.name] = schedule
        else:
            schedule = np.floor(schedule + np.float32(0.5))
            schedules[layer.name] = np.asarray(schedule * unit[:, 0], np.float32)
        spread = schedule.reshape(*schedule.shape, *[1] * (len(seen.shape) - 1))
        network.fire(window, node, spread, iter(held) if hold else network.currents(window, node))
        network.forget(window, set(schedules))
        if progress:
            progress(done + 1, len(order))
    return schedules, left


def settle_largest_currents(
    make_window: Callable[[Mapping[str, Floats]], Window],
    layers: Sequence[Layer],
    feeds: Feeds,
    *,
    per_channel: bool,
    alpha: float,
    bounded: Callable[[str, Floats], Floats],
    batch: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Floats]:
    """Thresholds by the paper: the largest current of each layer in the running spiking network.

    Layer by layer, with the thresholds of earlier layers already set, θ = α·max(current) over all steps
    and images (Han, Srinivasan, Roy, RMP-SNN, CVPR 2020, V_in^max).  `make_window` makes the network
    with the given thresholds over the steps of the observation.  `bounded` keeps a layer's θ within the
    upper bound of its rectifier.  A layer that receives nothing positive gets no threshold.
    """
    by_name = {layer.name: layer for layer in layers}
    thresholds: dict[str, Floats] = {layer.name: np.ones(1, np.float32) for layer in layers}
    window = make_window(thresholds)
    order = [node.name for node in window.neurons() if node.name in by_name]
    found: dict[str, Floats] = {}
    network: RunningNetwork | None = None
    for done, name in enumerate(order):
        node = next(node for node in window.neurons() if node.name == name)
        if network is None:
            network = RunningNetwork(feeds, batch or 1)
        largest = np.zeros(by_name[name].channels if per_channel else 1, np.float32)
        for part, current in zip(network.parts, network.currents(window, node), strict=True):
            images = part.stop - part.start
            split = current.reshape(len(current) // images, images, len(largest), -1)
            largest = np.maximum(largest, split.max(axis=(0, 1, 3)))
        if (largest > 0).any():
            theta = np.where(largest > 0, largest, largest.max()) * np.float32(alpha)
            thresholds[name] = found[name] = bounded(name, theta)
        window = make_window(thresholds)
        node = next(node for node in window.neurons() if node.name == name)
        network.fire(window, node, None, network.currents(window, node))
        network.forget(window, set(order[: done + 1]))
        if progress:
            progress(done + 1, len(order))
    return found


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), 0)


def _column(tensor: onnx.TensorProto, channels: int) -> Floats:
    """A scalar or per-channel constant as [C, 1]."""
    values = numpy_helper.to_array(tensor).reshape(-1, 1)
    return np.broadcast_to(values, (channels, 1)).astype(np.float32)
