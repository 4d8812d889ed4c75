"""Calibration for layered time, in which an activation has L + 1 values: few steps, few values.

Layers are settled from the input on, in one pass, each on what the layers before it send:

1. θ = q·L, per channel, leaves the least squared error of the ANN's activations (`thresholds.levels`).
2. A layer with weights gets those that make up best for the errors of its inputs (`regression`).
3. What a rectifier receives is shifted, per channel, so that in the mean it sends what the ANN sends.
4. Weights of few bits are rounded by error feedback, and the means mended again (`level_rounding`).

Nothing is trained: the network runs forwards, and each step has a closed form or is a search for one
number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from snncompiler.calibration.feedback import FEW_BITS
from snncompiler.calibration.gram import Reading, of_positions
from snncompiler.calibration.level_network import (
    LevelNetwork,
    places,
    shift_for_mean,
    spread,
    squared_error,
)
from snncompiler.calibration.level_rounding import rounded_levels
from snncompiler.calibration.observe import Observation, calibrate, observe
from snncompiler.calibration.record import Calibration
from snncompiler.calibration.regression import Wanted, outputs, regressed
from snncompiler.ir.graph import (
    Graph,
    Node,
    Tensor,
    constant_input,
    input_at,
    is_live,
    rank,
    reachable_from,
    readers,
    value,
    with_outputs,
)
from snncompiler.ir.operators import record
from snncompiler.ir.rectifiers import (
    rectified_channels,
    rectified_input,
    rectifier,
    rectifiers_of,
    values_of,
)
from snncompiler.ir.settings import Correct, Options
from snncompiler.network.data import Dataset
from snncompiler.network.prepared import Prepared
from snncompiler.network.task import resolve
from snncompiler.runtime.session import LARGE_GRAPH, create_session

Floats = NDArray[np.float32]
Feeds = Mapping[str, NDArray[Any]]

#: Positions at which a layer is looked at, over all samples, and the most values of its inputs there.
POSITIONS = 40_000
SAMPLED_VALUES = 1 << 26
#: A layer that is seen at fewer positions stays as it is: they do not tell what others need.
LEAST_POSITIONS = 32
#: Bytes of the activations of the samples that run at once.
_BATCH_BYTES = 64 << 20
#: Currents of a rectifier are held where they take at most so many bytes, else computed twice.
_HELD_BYTES = 256 << 20


@dataclass(frozen=True)
class Layer:
    """A layer with constant weights that reads what neurons send.

    bias: its own, zeros where it has none, [O].  target: the tensor that should be right: the output of
    the layer, or the sum that a residual Add makes of it.  added: the other operand of that Add.
    rectifier: the one that reads the target, where nothing else does.  last: no rectifier comes behind.
    """

    node: Node
    reading: Reading
    bias: Floats
    target: str
    added: str = ""
    rectifier: str = ""
    cap: float = np.inf
    last: bool = False

    @property
    def source(self) -> str:
        return str(self.node.inputs[0].name)

    @property
    def matrix(self) -> Floats:
        weights = value(self.node.inputs[1])
        assert weights is not None
        return np.asarray(self.reading.matrix(weights), np.float32)


@dataclass
class LayerReport:
    """What each part brings for one rectifier: the squared error of what it sends, over the squared
    activations of the ANN, at the positions that are looked at.

    threshold: with θ alone, bias: with the shift that mends the mean, weights: with that and other
    weights of the layer right before it; None where this was not done.  note: why not.
    """

    name: str
    threshold: float | None = None
    bias: float | None = None
    weights: float | None = None
    note: str = ""

    def parts(self) -> dict[str, float]:
        """What was measured, in three digits."""
        found = {"threshold": self.threshold, "bias": self.bias, "weights": self.weights}
        return {name: float(f"{left:.3g}") for name, left in found.items() if left is not None}


@dataclass
class Settled:
    """What a calibration for levels finds: weights by the name of the layer, in the shape of its own;
    biases [O] of layers, and shifts [C] of rectifiers, by their names."""

    weights: dict[str, Floats] = field(default_factory=dict)
    biases: dict[str, Floats] = field(default_factory=dict)
    report: dict[str, LayerReport] = field(default_factory=dict)


def calibrate_levels(
    prepared: Prepared,
    options: Options,
    dataset: Dataset,
    progress: Callable[[str, int, int], None] | None = None,
    feedback: bool = True,
    observation: Observation | None = None,
) -> Calibration:
    """The calibration of a network for layered time: thresholds, then what `--correct` corrects.

    observation: from which thresholds come, where it is there already.
    feedback: weights of few bits are rounded by error feedback; without it, to the nearest.
    Called with what is being done and how far it is, `progress` tells of it.
    """

    def telling(text: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, of: progress(text, done, of)

    options = resolve(prepared, options, labels=dataset.labels)
    graph, batch = prepared.graph, prepared.fixed_batch
    feeds: Feeds = dataset.feeds
    if batch is not None:
        whole = len(dataset) - len(dataset) % batch
        feeds = {name: array[:whole] for name, array in feeds.items()}
    observation = observation or observe(
        prepared.ann, graph, feeds, batch=batch, progress=telling("calibrating")
    )
    thresholds, findings = calibrate(observation, rectifiers_of(graph), options)
    prepared.context.findings += findings
    settled = Settled()
    if options.correct != "none":
        settled = settle_levels(
            prepared.ann,
            graph,
            feeds,
            thresholds,
            options.levels,
            options.correct,
            batch=batch,
            seed=options.seed,
            progress=telling("correcting"),
        )
        _tell(settled, prepared)
    levels = np.float32(options.levels)
    ranges = {name: found or 1.0 for name, found in observation.largest.items()}
    calibration = Calibration(
        thresholds={
            name: np.maximum(theta / levels, np.finfo(np.float32).tiny)
            for name, theta in thresholds.items()
        },
        method=options.threshold,
        percentile=options.percentile,
        tau=options.tau,
        per_channel=bool(options.per_channel),
        alpha=float(options.alpha),
        maxpool=options.maxpool,
        source="data",
        samples=observation.samples,
        seed=options.seed,
        model_sha256=prepared.source.sha256,
        data_sha256=dataset.sha256(),
        weights=options.weights,
        input_ranges=ranges if options.weights else {},
        levels=options.levels,
        correct=options.correct,
        corrected_weights=settled.weights,
        corrected_biases=settled.biases,
        report={name: report.parts() for name, report in settled.report.items()},
    )
    bits = options.weights.bits
    if not feedback or bits is None or bits >= FEW_BITS or options.correct == "none":
        return calibration
    size = samples_at_once(graph, batch)
    return rounded_levels(prepared, calibration, options, feeds, size, telling("rounding"))


def samples_at_once(graph: Graph, batch: int | None) -> int:
    """How many samples run at once: all that the network takes, or as many as memory bears."""
    activations = sum(values_of(node) for node in rectifiers_of(graph))
    return batch or max(1, min(32, _BATCH_BYTES // max(4 * activations, 1)))


def _tell(settled: Settled, prepared: Prepared) -> None:
    """A note where layers are not corrected."""
    left = [report for report in settled.report.values() if report.note]
    if left:
        prepared.context.note(
            "SNNC309",
            f"{len(left)} of {len(settled.report)} layers are not corrected: {left[0].note}",
            node=left[0].name,
            hint="give more calibration samples",
        )


# --- the network ---


def settle_levels(
    ann: onnx.ModelProto,
    graph: Graph,
    feeds: Feeds,
    thresholds: Mapping[str, Floats],
    levels: int,
    correct: Correct,
    *,
    batch: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Settled:
    """Correct the layers of a network whose activations have L + 1 values.

    ann, graph: the normalized ANN.  feeds: samples by input name, [n, ...].  thresholds: θ of every
    rectifier, [C] or [1].  batch: the only batch size that the network takes, of which n is a multiple.
    """
    settling = _Settling(ann, graph, feeds, thresholds, levels, correct, batch, seed)
    for done, node in enumerate(settling.order):
        settling.settle(node)
        if progress:
            progress(done + 1, len(settling.order))
    return settling.settled


class _Settling:
    """A run of `settle_levels`: the network as far as it is settled, and what the ANN does."""

    def __init__(
        self,
        ann: onnx.ModelProto,
        graph: Graph,
        feeds: Feeds,
        thresholds: Mapping[str, Floats],
        levels: int,
        correct: Correct,
        batch: int | None,
        seed: int,
    ) -> None:
        self.graph, self.levels, self.correct, self.seed = graph, levels, correct, seed
        self.quanta = {
            name: np.asarray(theta, np.float32) / np.float32(levels)
            for name, theta in thresholds.items()
        }
        self.network = LevelNetwork(ann, feeds, levels, samples_at_once(graph, batch))
        self.layers = layers_of(graph)
        self.order = [
            node for node in graph.nodes if rectifier(node) is not None or node.name in self.layers
        ]
        self.settled = Settled()
        self.before: dict[str, Floats] = {}
        self.analog = {} if correct == "none" else self._sampled(ann)

    # What the ANN does.

    def _sampled(self, ann: onnx.ModelProto) -> dict[tuple[str, int], Floats]:
        """Run the ANN, and keep what should be right at the positions that are looked at: (tensor, axis
        of its channels) -> [P, C]."""
        wanted = {(layer.target, layer.reading.axis): None for layer in self.layers.values()}
        for node in rectifiers_of(self.graph):
            wanted[(node.inputs[rectified_input(node)].name, _axis(node))] = None
        names = list(dict.fromkeys(name for name, _ in wanted))
        session = create_session(
            with_outputs(ann, names), optimize=len(ann.graph.node) <= LARGE_GRAPH
        )
        parts: dict[tuple[str, int], list[Floats]] = {key: [] for key in wanted}
        given = self.network.feeds
        for index, part in enumerate(self.network.parts):
            feeds = {name: array[part] for name, array in given.items()}
            results = dict(zip(names, session.run(names, feeds), strict=True))
            for key in wanted:
                parts[key].append(self._at(results[key[0]], key, index))
        return {key: np.concatenate(found) for key, found in parts.items()}

    def _at(self, array: Floats, key: tuple[str, int], index: int) -> Floats:
        """An array [N, ...] of batch `index` at the positions at which the tensor is looked at."""
        return of_positions(array, key[1], self._places(array.shape, key, index))

    def _places(self, shape: Sequence[int], key: tuple[str, int], index: int) -> NDArray[np.int64]:
        """Those positions, for a tensor of this shape: seeded, and in their order."""
        channels = shape[key[1]]
        count = int(np.prod(shape, dtype=np.int64)) // max(channels, 1)
        inputs = [
            layer.reading.groups * layer.reading.inputs
            for layer in self.layers.values()
            if (layer.target, layer.reading.axis) == key
        ]
        most = min(POSITIONS, SAMPLED_VALUES // max([channels, *inputs]))
        return places(count, most, len(self.network.parts), (self.seed, index))

    # What is done to a layer.

    def settle(self, node: Node) -> None:
        if rectifier(node) is not None:
            self._fire(node)
        elif self.correct != "none":
            self._mend(self.layers[node.name])

    def _mend(self, layer: Layer) -> None:
        """Correct the weights of a layer, or where no rectifier follows at once its bias alone."""
        alone = layer.last or self.correct == "bias"
        if alone and layer.rectifier:
            return
        key = (layer.target, layer.reading.axis)
        analog = self.analog[key]
        if len(analog) < LEAST_POSITIONS:
            return
        rows, added = [], []
        wanted = [layer.source, *([layer.added] if layer.added else [])]
        for index, (values, *more) in enumerate(self.network.values(wanted)):
            places = self._places(self._shape(layer, values.shape), key, index)
            rows.append(layer.reading.rows(values, places))
            added += [of_positions(more[0], key[1], places)] if more else []
        inputs = np.concatenate(rows, axis=1)
        others = np.concatenate(added) if added else np.zeros_like(analog)
        matrix = layer.matrix
        base = outputs(inputs, matrix, layer.bias) + others
        if layer.rectifier:
            self.before[layer.rectifier] = base
        if alone:
            shift = (analog - base).mean(axis=0, dtype=np.float64)
            bias = np.asarray(layer.bias + shift, np.float32)
            self.settled.biases[layer.node.name] = bias
            self.network.replace(layer.node.name, None, bias)
            return
        goal = Wanted(analog, others, bool(layer.rectifier), layer.cap)
        matrix, bias = regressed(inputs, matrix, layer.bias, goal)
        weights = layer.reading.weights(matrix)
        self.settled.weights[layer.node.name] = weights
        self.settled.biases[layer.node.name] = bias
        self.network.replace(layer.node.name, weights, bias)

    def _shape(self, layer: Layer, source: Sequence[int]) -> tuple[int, ...]:
        """A shape with as many positions and channels as the layer's output for such an input."""
        count, channels = layer.reading.positions(source), layer.reading.outputs
        return (count, channels)

    def _fire(self, node: Node) -> None:
        """Shift what a rectifier receives, and let it send."""
        current, output = node.inputs[rectified_input(node)].name, node.outputs[0].name
        quantum = self.quanta[node.name]
        report = LayerReport(node.name)
        self.settled.report[node.name] = report
        shift = np.zeros(1, np.float32)
        held: list[Floats] = []
        if self.correct != "none":
            shift = self._shift(node, report, held)
            if shift.any():
                self.settled.biases[node.name] = shift

        def currents() -> Iterator[Floats]:
            for values in held or (one for (one,) in self.network.values([current])):
                yield values + spread(shift, values.ndim)

        self.network.settle(output, quantum, currents())
        left = self.order[self.order.index(node) + 1 :]
        reads = [tensor.name for later in left for tensor in later.inputs if is_live(tensor)]
        self.network.forget([*reads, *(layer.added for layer in self._ahead(left) if layer.added)])

    def _ahead(self, nodes: Sequence[Node]) -> list[Layer]:
        return [self.layers[node.name] for node in nodes if node.name in self.layers]

    def _shift(self, node: Node, report: LayerReport, held: list[Floats]) -> Floats:
        """The shift of a rectifier.  Its currents are put into `held` where they are few enough."""
        key = (node.inputs[rectified_input(node)].name, _axis(node))
        cap = rectifier(node).cap  # type: ignore[union-attr]
        analog = np.clip(self.analog[key], 0, np.inf if cap is None else cap)
        one = rectified_channels(node) == 1
        if len(analog) < LEAST_POSITIONS:
            report.note = f"{len(analog)} positions of a channel are too few to correct it"
            return np.zeros(1, np.float32)
        hold = 4 * values_of(node) * self.network.samples <= _HELD_BYTES
        parts = []
        for index, (values,) in enumerate(self.network.values([key[0]])):
            parts.append(self._at(values, key, index))
            if hold:
                held.append(values)
        received = np.concatenate(parts)
        if one:
            analog, received = analog.reshape(-1, 1), received.reshape(-1, 1)
        quantum = np.broadcast_to(self.quanta[node.name], received.shape[1:])
        mean = analog.mean(axis=0, dtype=np.float64)
        shift = shift_for_mean(received, quantum, self.levels, mean)

        def left(currents: Floats) -> float:
            return squared_error(currents, quantum, self.levels, analog)

        before = self.before.pop(node.name, None)
        if before is None:
            report.threshold, report.bias = left(received), left(received + shift)
        else:
            report.threshold = left(before)
            report.bias = left(before + shift_for_mean(before, quantum, self.levels, mean))
            report.weights = left(received + shift)
        return shift


def _axis(node: Node) -> int:
    """The axis of the channels of a rectifier; a vector of one channel has the axis of its numbers."""
    return 1 if (rank(node.outputs[0]) or 0) > 1 else -1


# --- where layers stand ---


def layers_of(graph: Graph) -> dict[str, Layer]:
    """The layers with weights that read what neurons send, by name, in the order of the graph."""
    coded = reachable_from(
        graph, lambda node: rectifier(node) is not None, set(), lambda node: True
    )
    leading = _leading(graph)
    before: set[int] = set()
    found: dict[str, Layer] = {}
    for node in graph.nodes:
        if node.inputs and id(node.inputs[0]) in coded:
            layer = _layer(node, graph, before)
            if layer is not None:
                last = id(node.outputs[0]) not in leading
                found[node.name] = replace(layer, last=last)
        before.update(id(tensor) for tensor in node.outputs)
    return found


def _leading(graph: Graph) -> set[int]:
    """ids of the tensors from which a way leads to a rectifier."""
    found: set[int] = set()
    for node in reversed(graph.nodes):
        if rectifier(node) is not None or any(id(tensor) in found for tensor in node.outputs):
            found.update(id(tensor) for tensor in node.inputs)
    return found


def _layer(node: Node, graph: Graph, before: set[int]) -> Layer | None:
    """A node as a layer with weights, None where it is none, or its bias is no constant row.

    before: ids of the tensors that are computed earlier.
    """
    weights = None if node.domain else constant_input(node, 1)
    layout = record(node.op).weights
    if weights is None or layout is None or not is_live(node.inputs[0]):
        return None
    reading = Reading.of(node.op, node.attrs, weights.shape)
    if reading is None:
        return None
    bias = np.zeros(reading.outputs, np.float32)
    if record(node.op).bias is not None and input_at(node, 2) is not None:
        own = constant_input(node, 2)
        if own is None or own.size != reading.outputs:
            return None
        bias = np.asarray(own, np.float32).reshape(-1)
    target, added = node.outputs[0], ""
    if readers(target, graph) == 1 and target.outputs and target.outputs[0].op == "Add":
        add = target.outputs[0]
        other = add.inputs[1] if add.inputs[0] is target else add.inputs[0]
        settled = id(other) in before or (is_live(other) and not other.inputs)
        if settled and _alike(other, target):
            target, added = add.outputs[0], str(other.name)
    layer = Layer(node, reading, bias, str(target.name), added)
    if readers(target, graph) != 1 or not target.outputs:
        return layer
    reader = target.outputs[0]
    found = rectifier(reader)
    if found is None or _axis(reader) % len(target.shape) != reading.axis % len(target.shape):
        return layer
    return replace(layer, rectifier=reader.name, cap=found.cap or np.inf)


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same known shape."""
    return one.shape is not None and other.shape is not None and one.shape == other.shape
