"""Let the layers of a quantized source sum whole numbers, so that every machine gives the same bits.

Weights of a quantized layer are whole numbers of a scale for each output channel, and so is what the
layer reads: spikes, or integers that a rounding has made.  In units of that scale the sums are whole
numbers, exact in float32 up to 2^24 in any order, as they are in the source's own integer arithmetic.
What reads the sums has its constants divided by the scale: the threshold and the limit of a neuron,
which need not be whole then, or the divisor of a rounding.

The scales are found in the weights themselves: the largest of a channel is m of them, for the least m
with which all others are whole, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from snncompiler.ir import dialect
from snncompiler.ir.graph import (
    Graph,
    Node,
    Tensor,
    constant_input,
    drop_dead,
    input_at,
    is_live,
    known_rank,
    producer,
    readers,
    tensor_names,
    unique_name,
)
from snncompiler.ir.operators import record
from snncompiler.ir.spike_trains import carries_spikes
from snncompiler.passes.base import Context, Pass
from snncompiler.passes.grids import from_rows, rows_of

Floats = NDArray[np.float64]

NEURON = "LayeredRMPNeuron"
#: Integers of weights: of 8 bits, and less a zero point of 8 bits.
LARGEST = 255
#: A weight is two float32 products away from its whole number, which is at most LARGEST.
TOLERANCE = 4 * 2.0**-24
#: A bias, of 32 bits in the source, is as far away, and counts as whole up to here.
LARGEST_BIAS = 1 << 21
#: Weights of a channel on which every m is tried.
TRIED = 48


@dataclass(frozen=True)
class WholeSums(Pass):
    """Weights become whole numbers where they are whole numbers of a scale."""

    name: ClassVar[str] = "whole-sums"
    requires: ClassVar[frozenset[str]] = frozenset({"neurons", "binary-spikes"})

    def run(self, graph: Graph, context: Context) -> None:
        work = _Work(graph, context.sum_units, tensor_names(graph))
        for node in graph.nodes:
            if not node.domain and record(node.op).weights not in (None, "equation"):
                work.layer(node)
        drop_dead(graph)


@dataclass
class _Work:
    graph: Graph
    #: Name of a neuron -> what 1 stands for in its currents, [O].
    units: dict[str, Floats]
    taken: set[str]

    def layer(self, node: Node) -> None:
        weights, reader = constant_input(node, 1), self._reader(node.outputs[0])
        source = self._whole(node.inputs[0])
        if weights is None or reader is None or source is None or weights.dtype.kind != "f":
            return
        if node.op == "Gemm" and node.attrs:
            return
        tensor, unit = source
        rows = rows_of(node, weights) * unit
        found = whole_rows(rows)
        if found is None or np.all(rows == np.rint(rows)):
            return
        scale, whole = found
        bias = constant_input(node, 2)
        if input_at(node, 2) is not None and (bias is None or bias.size != len(scale)):
            return
        node.inputs[0] = tensor
        node.inputs[1] = self._constant(node.inputs[1], from_rows(node, whole, weights.shape))
        if bias is not None:
            divided = bias.reshape(-1) / scale
            near = np.rint(divided)
            close = np.abs(divided - near) <= TOLERANCE * np.maximum(np.abs(near), 1)
            kept = np.where(close & (np.abs(near) <= LARGEST_BIAS), near, divided)
            node.inputs[2] = self._constant(node.inputs[2], kept.reshape(bias.shape))
        channels = record(node.op).weights == "matrix"
        beside = 0 if channels else known_rank(node.outputs[0]) - 2
        self._divide(reader, scale, scale.reshape(-1, *[1] * beside))

    def _reader(self, current: Tensor) -> Node | None:
        """The only reader of a current, if its constants can be divided."""
        if readers(current, self.graph) != 1 or not current.outputs:
            return None
        node: Node = current.outputs[0]
        if node.inputs[0] is not current or any(is_live(one) for one in node.inputs[1:]):
            return None
        if node.domain:
            return node if node.domain == dialect.DOMAIN and node.op == NEURON else None
        follower = node.outputs[0].outputs
        if len(follower) != 1 or readers(node.outputs[0], self.graph) != 1:
            return None
        if node.op == "Min":
            return node if follower[0].op == NEURON else None
        return node if node.op == "Div" and follower[0].op == "Round" else None

    def _divide(self, reader: Node, scale: Floats, spread: Floats) -> None:
        nodes = [reader]
        if reader.op == "Min":
            nodes.append(reader.outputs[0].outputs[0])
        for node in nodes:
            for index in range(1, len(node.inputs)):
                values = constant_input(node, index)
                assert values is not None
                node.inputs[index] = self._constant(node.inputs[index], values / spread)
            if node.op == NEURON:
                self.units[node.name] = scale

    def _whole(self, tensor: Tensor) -> tuple[Tensor, float] | None:
        """The whole numbers that a value is a multiple of, and the factor; None where it is not."""
        if carries_spikes(tensor, lambda node: node.op == NEURON):
            return tensor, 1.0
        node = producer(tensor)
        if node is None or node.domain or node.op != "Mul":
            return None
        factor, limited = constant_input(node, 1), producer(node.inputs[0])
        if factor is None or factor.size != 1 or limited is None or limited.op != "Clip":
            return None
        rounded = producer(limited.inputs[0])
        if rounded is None or rounded.op != "Round":
            return None
        return node.inputs[0], float(factor.reshape(()))

    def _constant(self, like: Tensor, values: NDArray[Any]) -> gs.Constant:
        name = unique_name(f"{like.name}/whole", self.taken)
        return gs.Constant(name, np.asarray(values, np.float32))


def whole_rows(rows: Floats) -> tuple[Floats, Floats] | None:
    """Scales [O] and whole numbers [O, K], at most LARGEST in size, whose products are the rows up to
    float32's rounding; None where there are none."""
    largest = np.abs(rows).max(axis=1, initial=0.0)
    scale = np.where(largest > 0, largest, 1.0)
    counts = np.zeros(len(rows), np.int64)
    some = rows[:, :: max(1, rows.shape[1] // TRIED)]
    for m in range(1, LARGEST + 1):
        open_rows = np.flatnonzero((counts == 0) & (largest > 0))
        if not len(open_rows):
            break
        fits = _are_whole(some[open_rows] * (m / scale[open_rows, None]))
        for row in open_rows[fits]:
            if _are_whole(rows[None, row] * (m / scale[row]))[0]:
                counts[row] = m
    if np.any((counts == 0) & (largest > 0)):
        return None
    whole = np.rint(rows * (counts / scale)[:, None])
    squares = np.square(whole).sum(axis=1)
    fitted = (rows * whole).sum(axis=1) / np.where(squares > 0, squares, 1.0)
    return np.where(squares > 0, fitted, 1.0), whole


def _are_whole(values: Floats) -> NDArray[np.bool_]:
    near = np.rint(values)
    return np.asarray(
        (
            np.abs(values - near) <= TOLERANCE * np.maximum(np.abs(values).max(axis=1), 1)[:, None]
        ).all(axis=1)
    )
