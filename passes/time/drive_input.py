"""Let the input drive the network harder in the first steps, which is what growing thresholds come to.

Every current that no spike changes goes through Drive, which multiplies it by 1/g_t at step t (see
`snncompiler.ir.growth`), before the neurons that it flows into.  So does a value that no spike changes
and whose mean over time is read out, as that mean weighs its steps by g_t: there are some in a step
model, whose inputs may change with time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from snncompiler.ir import dialect
from snncompiler.ir.graph import Graph, Node, constant, is_live, tensor_names, unique_name
from snncompiler.ir.growth import Growth
from snncompiler.ir.phases import TIME_MEAN, analyze
from snncompiler.ir.whole import drive_of
from snncompiler.passes.base import Context, Pass


@dataclass(frozen=True)
class DriveInput(Pass):
    """A Drive on every static current of a neuron; `hindrance` made sure that this is enough.

    `whole`: the currents are whole numbers and stay so.
    """

    growth: Growth
    whole: bool = False

    name: ClassVar[str] = "drive-input"
    requires: ClassVar[frozenset[str]] = frozenset({"neurons"})
    ensures: ClassVar[frozenset[str]] = frozenset({"driven"})
    again: ClassVar[str] = "a current that is driven would be driven once more"

    def run(self, graph: Graph, context: Context) -> None:
        taken = tensor_names(graph)
        timing = analyze(graph, _fires)
        factors = drive_of(self.growth) if self.whole else self.growth.drive
        driven: dict[int, gs.Variable] = {}
        for node in list(graph.nodes):
            if not (node.domain == dialect.DOMAIN and node.op in (*dialect.NEURONS, TIME_MEAN)):
                continue
            current = node.inputs[0]
            if id(current) in timing.temporal or not is_live(current):
                continue
            if id(current) not in driven:
                name = unique_name(f"{current.name}/driven", taken)
                driven[id(current)] = gs.Variable(name, current.dtype, current.shape)
                drive = constant(f"{current.name}/drive", factors, taken)
                graph.nodes.append(
                    gs.Node(
                        "Drive",
                        unique_name(f"{current.name}/Drive", taken),
                        inputs=[current, drive],
                        outputs=[driven[id(current)]],
                        domain=dialect.DOMAIN,
                    )
                )
            node.inputs[0] = driven[id(current)]


def _fires(node: Node) -> bool:
    return bool(node.domain == dialect.DOMAIN and node.op != TIME_MEAN)
