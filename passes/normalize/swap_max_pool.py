"""Put a rectifier before the max pooling that it follows: max(relu(x)) = relu(max(x)).

Max pooling is exact on spike trains, not on currents, so the rectifier has to come first.  Between
spiking layers what is affine and stands between the two goes with it, as a batch-norm: where it falls
(γ < 0), relu(s·max(x) + b) is the minimum of relu(s·x + b), which is written as -max(-relu(s·x + b)).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from snncompiler.ir.graph import (
    Graph,
    Node,
    Tensor,
    infer_node,
    readers,
    sort_nodes,
    tensor_names,
    unique_name,
    value,
)
from snncompiler.ir.grids import is_rounded
from snncompiler.ir.phases import analyze
from snncompiler.ir.rectifiers import rectified_input, rectifier
from snncompiler.ir.signs import affine_step
from snncompiler.passes.amplitudes import poolable
from snncompiler.passes.base import Context, Pass
from snncompiler.passes.rewriting import Writer

#: Between a pooling and the rectifiers that it may be exchanged with, so many affine steps are looked
#: through.
MAX_STEPS = 64


@dataclass(frozen=True)
class SwapMaxPool(Pass):
    """MaxPool then Relu becomes Relu then MaxPool."""

    name: ClassVar[str] = "swap-max-pool"
    requires: ClassVar[frozenset[str]] = frozenset({"shapes", "max-pool-spelled"})
    ensures: ClassVar[frozenset[str]] = frozenset({"rectifiers-before-max-pool"})

    def run(self, graph: Graph, context: Context) -> None:
        writer = Writer(graph, context, tensor_names(graph))
        timing = analyze(graph, lambda node: rectifier(node) is not None)
        # Poolings in a row: the rectifier moves in front of the last one first.
        for pool in reversed(list(graph.nodes)):
            if pool.op != "MaxPool" or pool.domain or len(pool.outputs) != 1:
                continue
            if is_rounded(pool.inputs[0]):
                continue  # it pools spikes, or complete values
            pooled: Tensor = pool.outputs[0]
            alone = readers(pooled, graph) == 1 and len(pooled.outputs) == 1
            if alone and rectifier(pooled.outputs[0]) is not None:
                _swap(writer, pool, pooled.outputs[0])
            elif timing.phase(pool) == "temporal" and not poolable(pool.inputs[0]):
                _swap_all(writer, pool)
        sort_nodes(graph)


def _swap(writer: Writer, pool: Node, relu: Node) -> None:
    """The pooling alone is read by the rectifier."""
    at = rectified_input(relu)
    source, result = pool.inputs[0], relu.outputs[0]
    rectified = _unpooled(writer, result, source)
    pool.inputs[0], pool.outputs[0] = rectified, result
    relu.inputs[at], relu.outputs[0] = source, rectified
    _take_no_shape(relu)
    infer_node(relu, writer.graph.opset)
    infer_node(pool, writer.graph.opset)


def _unpooled(writer: Writer, result: Tensor, source: Tensor) -> Tensor:
    name = unique_name(f"{result.name}_unpooled", writer.taken)
    if source.name in writer.context.batch_axis:
        writer.context.batch_axis[name] = writer.context.batch_axis[source.name]
    return gs.Variable(name, source.dtype, source.shape)


def _take_no_shape(relu: Node) -> None:
    """Max(x, zeros of the pooled shape) is a Relu in any shape."""
    if relu.op == "Max" and any(array is not None and array.size > 1 for array in _values(relu)):
        live = relu.inputs[rectified_input(relu)]
        relu.op = "Relu"
        relu.inputs = [live]


def _values(node: Node) -> Iterator[NDArray[np.generic] | None]:
    return (value(tensor) for tensor in node.inputs)


@dataclass(frozen=True)
class _Way:
    """Affine steps from a pooling to a rectifier, and the signs of their slope together."""

    steps: tuple[Node, ...]
    relu: Node
    signs: NDArray[np.float64]


def _ways(
    tensor: Tensor, graph: Graph, signs: NDArray[np.float64], depth: int = 0
) -> list[_Way] | None:
    """All that follows a pooling, up to rectifiers; None where something else reads it."""
    if depth > MAX_STEPS or not tensor.outputs or readers(tensor, graph) != len(tensor.outputs):
        return None
    ways: list[_Way] = []
    for reader in tensor.outputs:
        if rectifier(reader) is not None:
            ways.append(_Way((), reader, signs))
            continue
        step = affine_step(reader)
        if step is None or step.source is not tensor:
            return None
        further = _ways(reader.outputs[0], graph, signs * step.signs, depth + 1)
        if further is None:
            return None
        ways += [_Way((reader, *way.steps), way.relu, way.signs) for way in further]
    return ways


def _swap_all(writer: Writer, pool: Node) -> None:
    """Rectifiers that are reached from the pooling by affine steps, all of them at once."""
    ways = _ways(pool.outputs[0], writer.graph, np.ones(()))
    if ways is None:
        return
    source, pooled = pool.inputs[0], pool.outputs[0]
    named = {node.outputs[0].name for way in ways for node in way.steps}
    for way in ways:
        for node in (*way.steps, way.relu):
            for index, tensor in enumerate(node.inputs):
                if tensor is pooled:
                    node.inputs[index] = source
            if node is not way.relu and node.outputs[0].name in named:
                # Its output has another value than the tensor of this name in the source.
                named.discard(node.outputs[0].name)
                node.outputs[0].name = _unpooled(writer, node.outputs[0], source).name
            _take_no_shape(node)
            infer_node(node, writer.graph.opset)
    for way in ways:
        result, relu = way.relu.outputs[0], way.relu
        rectified = _unpooled(writer, result, relu.inputs[rectified_input(relu)])
        relu.outputs[0] = rectified
        made = max_over(writer, pool, rectified, way.signs)
        result.shape = made.shape
        made.inputs[0].outputs[0] = result
    pool.inputs.clear()
    pool.outputs.clear()
    writer.graph.nodes = [node for node in writer.graph.nodes if node.outputs]


def max_over(writer: Writer, pool: Node, x: Tensor, signs: NDArray[np.float64]) -> Tensor:
    """The pooling of `x` where `signs` is 1, and where it is -1 the minimum: σ·max(σ·x).

    signs: [C, 1, ...] or one for all.
    """
    base = pool.name
    if np.all(signs == 1):
        return writer.node(base, "MaxPool", [x], pool.attrs)
    if np.all(signs == -1):
        turned = writer.node(base, "Neg", [x])
        return writer.node(base, "Neg", [writer.node(base, "MaxPool", [turned], pool.attrs)])
    turned = writer.node(base, "Mul", [x, writer.numbers(base, signs, x)])
    most = writer.node(base, "MaxPool", [turned], pool.attrs)
    return writer.node(base, "Mul", [most, writer.numbers(base, signs, x)])
