"""On request, replace max pooling by average pooling, as the paper's networks have it.

This changes the ANN, so it is never done by default, and every replacement is reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from snncompiler.ir.graph import Graph, label, tensor_names
from snncompiler.ir.operators import record
from snncompiler.passes.base import Context, Pass
from snncompiler.passes.padding import absorb_pad, padded_with_lowest
from snncompiler.passes.rewriting import Writer


@dataclass(frozen=True)
class AverageMaxPool(Pass):
    """MaxPool and GlobalMaxPool become their averages."""

    name: ClassVar[str] = "average-max-pool"
    requires: ClassVar[frozenset[str]] = frozenset({"shapes", "constants-folded"})
    ensures: ClassVar[frozenset[str]] = frozenset({"no-max-pool"})

    def run(self, graph: Graph, context: Context) -> None:
        writer = Writer(graph, context, tensor_names(graph))
        for node in graph.nodes:
            indices = len(node.outputs) > 1 and not node.outputs[1].is_empty()
            nature = record(node.op)
            if node.domain or nature.pools != "maximum" or nature.over == "axes" or indices:
                continue
            if padded_with_lowest(node):
                # Padding that a maximum ignores would dominate an average.
                absorb_pad(writer, node)
                if padded_with_lowest(node):
                    continue
            dilated = any(step != 1 for step in node.attrs.get("dilations", []))
            if dilated and graph.opset < 19:
                continue
            context.warn(
                "SNNC206",
                "max pooling was replaced by average pooling, as asked; this changes the network",
                node=label(node),
            )
            node.op = node.op.replace("Max", "Average")
            node.outputs = node.outputs[:1]  # the indices, which nothing reads
            node.attrs.pop("storage_order", None)
            if not dilated:
                node.attrs.pop("dilations", None)
