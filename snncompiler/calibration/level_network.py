"""The network that a layered spiking network computes: the ANN with activations of L + 1 values.

A layered neuron sends n = clip(floor(x/q + 1/2), 0, L) quanta of size q, whatever the coding, once it
has received x completely.  So layers can be settled from the input on, each on what those before it
really send.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from snncompiler.calibration.record import Calibration
from snncompiler.ir.graph import Graph, Node, constant, known_rank, tensor_names, unique_name
from snncompiler.ir.operators import record
from snncompiler.ir.rectifiers import rectified_input, rectifiers_of
from snncompiler.network.prepared import Prepared, as_model
from snncompiler.passes.base import run_passes
from snncompiler.passes.spike.correct_layers import CorrectLayers
from snncompiler.runtime.session import LARGE_GRAPH, create_session

Array = NDArray[Any]
Floats = NDArray[np.float32]
Feeds = Mapping[str, Array]

#: Halvings of the interval, two quanta wide, in which a shift is searched.
HALVINGS = 14


def counts_of(currents: Floats, quantum: Floats, levels: int) -> Floats:
    """n = clip(floor(x/q + 1/2), 0, L), in float32."""
    counts = currents / quantum
    counts += np.float32(0.5)
    np.floor(counts, out=counts)
    return np.clip(counts, 0, levels, out=counts)


def spread(values: Floats, axes: int) -> Floats:
    """One number, or one for each channel, so that it broadcasts to an array of so many axes."""
    return values.reshape(-1, *[1] * max(axes - 2, 0)) if values.size > 1 else values.reshape(())


def shift_for_mean(currents: Floats, quantum: Floats, levels: int, mean: Floats) -> Floats:
    """The shift in ±q with which a rectifier sends in the mean what is wanted: [C].

    currents: at P positions, [P, C].  quantum, mean: [C].  The mean grows with the shift, so that
    the interval is halved again and again.
    """
    low, high = -quantum, quantum.copy()
    for _ in range(HALVINGS):
        middle = np.asarray((low + high) / 2, np.float32)
        sent = counts_of(currents + middle, quantum, levels).mean(axis=0, dtype=np.float64)
        short = sent * quantum < mean
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return np.asarray((low + high) / 2, np.float32)


def squared_error(currents: Floats, quantum: Floats, levels: int, wanted: Floats) -> float:
    """Σ (sent - wanted)² / Σ wanted² over all positions and channels, [P, C]; 0 where nothing is."""
    sent = counts_of(currents, quantum, levels) * quantum
    scale = float(np.square(wanted, dtype=np.float64).sum())
    return float(np.square(sent - wanted, dtype=np.float64).sum()) / scale if scale else 0.0


def places(count: int, most: int, parts: int, seed: tuple[int, int]) -> NDArray[np.int64]:
    """The positions of a batch that are looked at, `most` in all `parts` batches: seeded, in order."""
    quota = min(count, -(-most // parts))
    return np.sort(np.random.default_rng(seed).permutation(count)[:quota])


class LevelNetwork:
    """The network on fixed samples, in fixed batches, as far as its rectifiers are settled.

    ann: the normalized ANN.  feeds: samples by input name, [n, ...].  batch: samples that run at once.
    Counts are kept as long as a later layer reads them.
    """

    def __init__(self, ann: onnx.ModelProto, feeds: Feeds, levels: int, batch: int) -> None:
        self.nodes = [_copied(node) for node in ann.graph.node]
        self.opsets = ann.opset_import
        self.ir_version = ann.ir_version
        self.inputs = {entry.name: entry for entry in ann.graph.input}
        self.constants = {tensor.name: tensor for tensor in ann.graph.initializer}
        self.outputs = [entry.name for entry in ann.graph.output]
        self.feeds, self.levels = feeds, levels
        self._kind = np.uint8 if levels <= 255 else np.uint16 if levels <= 65535 else np.float32
        self.samples = len(next(iter(feeds.values())))
        starts = range(0, self.samples, batch)
        self.parts = [slice(at, min(at + batch, self.samples)) for at in starts]
        self.counts: dict[str, list[Array]] = {}
        self.quanta: dict[str, Floats] = {}

    def values(self, wanted: Sequence[str]) -> Iterator[list[Floats]]:
        """Tensors as they are now, batch by batch; those of settled rectifiers as quanta times q."""
        nodes, reads = self.before(wanted)
        computed = [name for name in dict.fromkeys(wanted) if name not in reads]
        session = self._session(nodes, sorted(reads), computed) if computed else None
        for index, part in enumerate(self.parts):
            given = {name: self._read(name, index, part) for name in sorted(reads)}
            results = dict(given)
            if session is not None:
                results |= zip(computed, session.run(computed, given), strict=True)
            yield [results[name] for name in wanted]

    def settle(
        self, output: str, quantum: Floats, currents: Iterator[Floats], worth: Floats | None = None
    ) -> None:
        """Let the rectifier with this output send quanta of the size [C] or [1] on its currents.

        worth: what the next layers read for each of them, where that is not the quantum.
        """
        parts = []
        for current in currents:
            q = spread(quantum, current.ndim)
            parts.append(counts_of(current, q, self.levels).astype(self._kind))
            self.quanta[output] = q if worth is None else spread(worth, current.ndim)
        self.counts[output] = parts

    def replace(self, name: str, weights: Floats | None, bias: Floats | None) -> None:
        """Give the node of this name other weights, and another bias [O]."""
        at, node = next((i, node) for i, node in enumerate(self.nodes) if node.name == name)
        if weights is not None:
            node.input[1] = self._constant(f"{name}/weights", weights)
        if bias is None:
            return
        if record(node.op_type).bias is not None:
            del node.input[2:]
            node.input.append(self._constant(f"{name}/bias", bias))
            return
        raw, total = f"{name}/raw", node.output[0]
        if total != raw:
            if any(other.name == f"{name}/add" for other in self.nodes):
                self._constant(f"{name}/bias", bias)
                return
            node.output[0] = raw
            added = self._constant(f"{name}/bias", bias)
            self.nodes.insert(at + 1, helper.make_node("Add", [raw, added], [total], f"{name}/add"))

    def forget(self, wanted: Sequence[str]) -> None:
        """Drop the counts that none of the wanted tensors is computed from."""
        _, reads = self.before(wanted)
        for name in set(self.counts) - reads:
            del self.counts[name], self.quanta[name]

    def _constant(self, name: str, values: Floats) -> str:
        key = f"{name}/corrected"
        self.constants[key] = numpy_helper.from_array(np.asarray(values, np.float32), key)
        return key

    def before(self, wanted: Sequence[str]) -> tuple[list[onnx.NodeProto], set[str]]:
        """The nodes that compute tensors from inputs and settled rectifiers, and what they read."""
        stops = set(self.inputs) | set(self.counts)
        needed = set(wanted) - stops
        reads = set(wanted) & stops
        nodes = []
        for node in reversed(self.nodes):
            if any(name in needed for name in node.output):
                nodes.append(node)
                reads.update(name for name in node.input if name in stops)
                needed.update(name for name in node.input if name not in stops)
        return nodes[::-1], reads - set(self.constants)

    def _read(self, name: str, index: int, part: slice) -> Array:
        if name in self.counts:
            return self.counts[name][index].astype(np.float32) * self.quanta[name]
        return self.feeds[name][part]

    def _session(
        self, nodes: Sequence[onnx.NodeProto], reads: Sequence[str], wanted: Sequence[str]
    ) -> Any:
        used = {name for node in nodes for name in node.input}
        graph = helper.make_graph(
            nodes,
            "segment",
            [
                self.inputs.get(name)
                or helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
                for name in reads
            ],
            [onnx.ValueInfoProto(name=name) for name in wanted],
            initializer=[self.constants[name] for name in sorted(used & set(self.constants))],
        )
        model = helper.make_model(graph, opset_imports=self.opsets, ir_version=self.ir_version)
        return create_session(model, optimize=len(nodes) <= LARGE_GRAPH)


def _copied(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def level_model(prepared: Prepared, calibration: Calibration) -> onnx.ModelProto:
    """The network that a layered spiking network computes, with operators of ONNX alone."""
    apart = prepared.apart()
    graph = apart.graph.copy()
    corrections = CorrectLayers(calibration.corrected_weights, calibration.corrected_biases)
    run_passes([corrections], graph, apart.context)
    with_levels(graph, calibration.thresholds, calibration.levels)
    return as_model(graph)


def with_levels(graph: Graph, quanta: Mapping[str, Floats], levels: int) -> None:
    """Give every rectifier of the graph L + 1 values: y = q·clip(floor(x/q + 1/2), 0, L).

    quanta: rectifier name -> q, [C] or [1].
    """
    taken = tensor_names(graph)
    for node in rectifiers_of(graph):
        current, result = node.inputs[rectified_input(node)], node.outputs[0]
        q = spread(np.asarray(quanta[node.name], np.float32), known_rank(current))
        node.inputs.clear()
        node.outputs.clear()
        chain: list[tuple[str, list[Floats]]] = [
            ("Div", [q]),
            ("Add", [np.array(0.5, np.float32)]),
            ("Floor", []),
            ("Clip", [np.array(0, np.float32), np.array(levels, np.float32)]),
            ("Mul", [q]),
        ]
        value = current
        for op, constants in chain:
            last = op == "Mul"
            name = f"{node.name}/{op.lower()}"
            inputs = [value, *(constant(name, array, taken) for array in constants)]
            value = (
                result
                if last
                else type(result)(unique_name(f"{name}/output", taken), np.float32, current.shape)
            )
            graph.nodes.append(Node(op, name, inputs=inputs, outputs=[value]))
    graph.cleanup()
