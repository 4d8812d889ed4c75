"""Put a rectifier before the max pooling that it follows: max(relu(x)) = relu(max(x)).

Max pooling is exact on spike trains, not on currents, so the rectifier has to come first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from snncompiler.graph import (
    Graph,
    infer_node,
    readers,
    tensor_names,
    unique_name,
)
from snncompiler.operators import rectified_input, rectifier
from snncompiler.passes.base import Context, Pass


@dataclass(frozen=True)
class SwapMaxPool(Pass):
    """MaxPool then Relu becomes Relu then MaxPool."""

    name: ClassVar[str] = "swap-max-pool"
    requires: ClassVar[frozenset[str]] = frozenset({"shapes"})
    ensures: ClassVar[frozenset[str]] = frozenset({"rectifiers-before-max-pool"})

    def run(self, graph: Graph, context: Context) -> None:
        taken = tensor_names(graph)
        # Poolings in a row: the rectifier moves in front of the last one first.
        for pool in reversed(list(graph.nodes)):
            if pool.op != "MaxPool" or len(pool.outputs) != 1:
                continue
            pooled = pool.outputs[0]
            if readers(pooled, graph) != 1 or not pooled.outputs:
                continue
            relu = pooled.outputs[0]
            if rectifier(relu) is None:
                continue
            at = rectified_input(relu)
            source, result = pool.inputs[0], relu.outputs[0]
            rectified = gs.Variable(
                unique_name(f"{result.name}_unpooled", taken), source.dtype, source.shape
            )
            pool.inputs[0], pool.outputs[0] = rectified, result
            relu.inputs[at], relu.outputs[0] = source, rectified
            if source.name in context.batch_axis:
                context.batch_axis[rectified.name] = context.batch_axis[source.name]
            infer_node(relu, graph.opset)
            infer_node(pool, graph.opset)
