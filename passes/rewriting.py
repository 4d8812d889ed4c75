"""Writing new nodes in the middle of a graph: named, inferred, with their batch axis known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from snncompiler.ir.graph import Graph, Node, Tensor, constant, infer_node, unique_name
from snncompiler.passes.base import Context


@dataclass
class Writer:
    """Writes nodes in the place of one node, and lets the last of them make what it made."""

    graph: Graph
    context: Context
    taken: set[str]

    def node(
        self,
        base: str,
        op: str,
        inputs: list[Tensor],
        attrs: Mapping[str, Any] | None = None,
        batch: int = 0,
    ) -> Tensor:
        """The output of a new node, named after `base`, with the batch on axis `batch`."""
        result = gs.Variable(unique_name(f"{base}/{op.lower()}", self.taken))
        made = gs.Node(op, result.name, attrs=dict(attrs or {}), inputs=inputs, outputs=[result])
        infer_node(made, self.graph.opset)
        self.graph.nodes.append(made)
        self.context.batch_axis[result.name] = batch
        return result

    def numbers(self, base: str, values: object, like: Tensor) -> gs.Constant:
        """A constant of the type of `like`."""
        return constant(
            f"{base}/constant", np.asarray(values, like.dtype or np.float32), self.taken
        )

    def whole_numbers(self, base: str, values: object) -> gs.Constant:
        return constant(f"{base}/numbers", np.asarray(values, np.int64), self.taken)

    def replace(self, node: Node, result: Tensor) -> None:
        """Let `result`, which a node written here made, take the place of the node's output."""
        output: Tensor = node.outputs[0]
        node.inputs.clear()
        node.outputs.clear()
        result.inputs[0].outputs[0] = output
