"""Let weights read spikes alone: what else they would multiply is sent by a population for each sign.

x behind a linear layer, or behind an operator that is kept analog, becomes relu(x) - relu(-x), and a
layer of weights that reads it reads both halves with the same weights:

    W·x + b = (W·relu(x) + b) - W·relu(-x)

The second half is left out where x is never negative.  Each half is a spiking layer of its own, which
rounds what it sends: the network stays the same, but its spiking form has more layers and more error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from snncompiler.ir.graph import (
    Graph,
    Node,
    Tensor,
    export_model,
    is_live,
    tensor_names,
    unique_name,
)
from snncompiler.ir.grids import grids_of, step_of
from snncompiler.ir.operators import record
from snncompiler.ir.reads import reads_of
from snncompiler.ir.rectifiers import rectifier
from snncompiler.ir.signs import never_negative
from snncompiler.passes.base import Context, Pass
from snncompiler.passes.rewriting import Writer


@dataclass(frozen=True)
class PureSpikes(Pass):
    """No weights multiply real numbers but those of the input."""

    name: ClassVar[str] = "pure-spikes"
    requires: ClassVar[frozenset[str]] = frozenset({"affine-folded", "max-pool-of-spikes"})
    ensures: ClassVar[frozenset[str]] = frozenset({"spikes-read"})

    def run(self, graph: Graph, context: Context) -> None:
        grids = grids_of(graph)
        firing = {node.name for node in graph.nodes if rectifier(node) is not None}
        firing |= {grid.nodes[-1].name for grid in grids.values()}
        apart = graph.copy()
        reads = reads_of(export_model(apart).graph, lambda node: node.name in firing)
        writer = Writer(graph, context, tensor_names(graph))
        halves: dict[int, tuple[Tensor, Tensor | None]] = {}
        for node in list(graph.nodes):
            if reads.get(node.name) != "real numbers" or node.domain:
                continue
            at = next(index for index, tensor in enumerate(node.inputs[:2]) if is_live(tensor))
            source = node.inputs[at]
            if id(source) not in halves:
                halves[id(source)] = _halves(writer, node, source)
            above, below = halves[id(source)]
            node.inputs[at] = above
            number = "two spiking layers send" if below is not None else "a spiking layer sends"
            context.note("SNNC221", f"{number} what it reads, of '{source.name}'", node=node.name)
            if below is not None:
                _subtract(writer, node, at, below)


def _halves(writer: Writer, node: Node, source: Tensor) -> tuple[Tensor, Tensor | None]:
    """relu(x), and relu(-x) where there can be any."""
    batch = writer.context.batch_axis.get(source.name, 0)
    step = step_of(source)
    above = writer.node(node.name, "Relu", [source], batch=batch)
    if step is not None:
        above = _rounded(writer, node, above, step[0], step[2], batch)
    if never_negative(source):
        return above, None
    turned = writer.node(node.name, "Neg", [source], batch=batch)
    below = writer.node(node.name, "Relu", [turned], batch=batch)
    if step is not None:
        below = _rounded(writer, node, below, step[0], -step[1], batch)
    return above, below


def _rounded(
    writer: Writer, node: Node, x: Tensor, scale: NDArray[np.float32], top: int, batch: int
) -> Tensor:
    """A half of what a quantized source has rounded, n·scale with n = 0 to top: so is its neuron."""
    kind = np.uint8 if top <= np.iinfo(np.uint8).max else np.uint16

    def number(value: object, dtype: Any) -> gs.Constant:
        return gs.Constant(unique_name(f"{node.name}/grid", writer.taken), np.array(value, dtype))

    grid = [number(scale, x.dtype), number(0, kind)]
    value = writer.node(node.name, "QuantizeLinear", [x, *grid], batch=batch)
    if top < np.iinfo(kind).max:
        bounds = [number(0, kind), number(top, kind)]
        value = writer.node(node.name, "Clip", [value, *bounds], batch=batch)
    return writer.node(node.name, "DequantizeLinear", [value, *grid], batch=batch)


def _subtract(writer: Writer, node: Node, at: int, below: Tensor) -> None:
    """Let the layer's output be what it makes of the first half minus what it makes of the second."""
    result = node.outputs[0]
    batch = writer.context.batch_axis.get(result.name, 0)
    bias = record(node.op).bias
    inputs = [below if index == at else tensor for index, tensor in enumerate(node.inputs)]
    second = writer.node(node.name, node.op, inputs[:bias], node.attrs, batch)
    first = gs.Variable(unique_name(f"{node.name}/above", writer.taken), result.dtype, result.shape)
    writer.context.batch_axis[first.name] = batch
    node.outputs[0] = first
    difference = writer.node(node.name, "Sub", [first, second], batch=batch)
    difference.inputs[0].outputs[0] = result
