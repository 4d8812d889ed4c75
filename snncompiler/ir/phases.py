"""The two analyses that make folded time cheap: what depends on time, and what comes after it.

*Static*: does not depend on a spiking neuron; with a constant input it is computed once per image.
*Temporal*: depends on a neuron, and a neuron depends on it; computed at every time-step.
*Read-out*: depends on a neuron, and no neuron depends on it; computed once, on time-means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from snncompiler.ir.graph import Graph, Node, reachable_from, sort_nodes
from snncompiler.ir.operators import record

#: Stands for "mean over all time-steps" until `unroll_time` lowers it; never in an emitted file.
TIME_MEAN = "TimeMean"

Phase = Literal["static", "temporal", "read-out"]


@dataclass(frozen=True)
class Timing:
    """The phase of every node and the temporal tensors (by id)."""

    phases: dict[int, Phase]
    temporal: set[int]

    def phase(self, node: Node) -> Phase:
        return self.phases[id(node)]

    def inputs(self, node: Node) -> list[bool]:
        """Which inputs of the node are temporal."""
        return [id(tensor) in self.temporal for tensor in node.inputs]


def analyze(graph: Graph, fires: Callable[[Node], bool], *, inputs_vary: bool = False) -> Timing:
    """Sort the graph and find the phase of every node; `fires` tells the spiking nodes.

    `inputs_vary`: the inputs of the network change with time (a stream), so nothing is static that
    depends on them.
    """
    sort_nodes(graph)
    temporal = {id(tensor) for tensor in graph.inputs} if inputs_vary else set()
    sources = set(temporal)
    temporal |= reachable_from(graph, fires, sources, lambda node: not record(node.op).shape_only)
    # The shape of a temporal value does not change with time, but it is known only where that is.
    placed = temporal | reachable_from(graph, fires, sources, lambda node: True)
    feeds_neuron: set[int] = set()
    phases: dict[int, Phase] = {}
    for node in reversed(graph.nodes):
        firing = fires(node)
        if firing or any(id(tensor) in feeds_neuron for tensor in node.outputs):
            feeds_neuron.update(id(tensor) for tensor in node.inputs)
            before_neuron = True
        else:
            before_neuron = False
        if firing:
            phases[id(node)] = "temporal"
        elif not any(id(tensor) in placed for tensor in node.inputs):
            phases[id(node)] = "static"
        else:
            phases[id(node)] = "temporal" if before_neuron else "read-out"
    return Timing(phases, temporal)
