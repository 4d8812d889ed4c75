"""Remove what does nothing at inference: Identity, Dropout, and Cast to the type that is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx

from snncompiler.ir.graph import (
    Graph,
    Node,
    drop_dead,
    remove_node,
    replace_uses,
)
from snncompiler.ir.randomness import random_reason
from snncompiler.passes.base import Context, Pass


@dataclass(frozen=True)
class RemoveNoops(Pass):
    """Identity, inference-time Dropout and casts that change nothing disappear."""

    name: ClassVar[str] = "remove-noops"
    requires: ClassVar[frozenset[str]] = frozenset({"shapes"})
    ensures: ClassVar[frozenset[str]] = frozenset({"no-noops"})

    def run(self, graph: Graph, context: Context) -> None:
        named = {id(tensor) for tensor in (*graph.inputs, *graph.outputs)}
        for node in list(graph.nodes):
            if not _does_nothing(node):
                continue
            source, result = node.inputs[0], node.outputs[0]
            # An input or output that is passed on as an output: each keeps a name of its own.
            if id(result) in named and (id(source) in named or not source.inputs):
                continue
            if id(result) in named:
                named.add(id(source))
            remove_node(node)
            replace_uses(result, source, graph)
        drop_dead(graph)


def _does_nothing(node: Node) -> bool:
    if node.domain:
        return False
    if node.op == "Identity":
        return True
    if node.op == "Dropout":
        mask_read = len(node.outputs) > 1 and node.outputs[1].outputs
        return not mask_read and not random_reason(node)
    if node.op == "Cast":
        source = node.inputs[0].dtype
        target = onnx.helper.tensor_dtype_to_np_dtype(node.attrs["to"])
        return source is not None and source == target
    return False
