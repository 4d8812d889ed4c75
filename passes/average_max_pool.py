"""On request, replace max pooling by average pooling, as the paper's networks have it.

This changes the ANN, so it is never done by default, and every replacement is reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from snncompiler.graph import Graph, label
from snncompiler.passes.base import Context, Pass


@dataclass(frozen=True)
class AverageMaxPool(Pass):
    """MaxPool and GlobalMaxPool become their averages."""

    name: ClassVar[str] = "average-max-pool"
    ensures: ClassVar[frozenset[str]] = frozenset({"no-max-pool"})

    def run(self, graph: Graph, context: Context) -> None:
        for node in graph.nodes:
            indices = len(node.outputs) > 1 and not node.outputs[1].is_empty()
            if node.domain or node.op not in ("MaxPool", "GlobalMaxPool") or indices:
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
            node.attrs.pop("storage_order", None)
            if not dilated:
                node.attrs.pop("dilations", None)
