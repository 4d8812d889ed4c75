"""Replace every rectifier by a spiking neuron with its calibrated threshold.

y = relu(x) becomes s = RMPNeuron(x, θ) and y = θ·s: the spikes are binary, the amplitude θ is an
explicit Mul that `fold_amplitude` moves into the next linear layer.  A residual Add stays in front
of its neuron, so both currents meet there.  A neuron of G levels fires up to G spikes of θ/G a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from snncompiler.errors import InternalError
from snncompiler.ir import dialect
from snncompiler.ir.graph import (
    Graph,
    Tensor,
    constant,
    known_rank,
    remove_node,
    tensor_names,
    unique_name,
)
from snncompiler.ir.grids import grid_of
from snncompiler.ir.rectifiers import rectified_input, rectifier
from snncompiler.ir.settings import Coding
from snncompiler.ir.spikes import BINARY, Spikes
from snncompiler.passes.base import Context, Pass


@dataclass(frozen=True)
class InsertNeurons(Pass):
    """Rectifiers become neurons.

    thresholds: layer name -> θ, [C] or [1], finite and positive.  initial: membrane potential at the
    start, in units of θ (of θ/G for G levels).  reset: soft (RMP) or hard.  spikes: what a step sends.
    schedules: layer name -> charge b [S, C] or [S, 1] of each step, the last for all later ones.
    layered: how the neurons of layered time code values; None for those of streaming time.
    levels: the largest number that their spikes stand for.
    """

    thresholds: Mapping[str, NDArray[np.float32]]
    initial: float
    reset: str = "soft"
    spikes: Spikes = BINARY
    schedules: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    layered: Coding | None = None
    levels: int = 0

    name: ClassVar[str] = "insert-neurons"
    requires: ClassVar[frozenset[str]] = frozenset({"constraints-checked"})
    ensures: ClassVar[frozenset[str]] = frozenset({"neurons"})

    def run(self, graph: Graph, context: Context) -> None:
        taken = tensor_names(graph)
        for index, node in enumerate(graph.nodes):
            if rectifier(node) is None:
                continue
            theta = np.asarray(self.thresholds[node.name], np.float32)
            if not (np.all(np.isfinite(theta)) and np.all(theta > 0)):
                raise InternalError(f"threshold of {node.name} is not finite and positive")
            current, result = node.inputs[rectified_input(node)], node.outputs[0]
            grid = grid_of(node)
            if grid is not None:
                # The neuron rounds as the source does, and its top level is the source's.
                result = grid.rounded
                for part in grid.nodes:
                    remove_node(part)
            spatial = [1] * max(known_rank(current) - 2, 0)
            theta = theta.reshape(-1, *spatial) if theta.size > 1 else theta.reshape(())
            theta = np.asarray(theta / np.float32(self.spikes.levels))
            threshold = constant(f"{node.name}/threshold", theta, taken)
            if grid is not None and grid.top < self.levels:
                current = self._limited(graph, node.name, current, theta * grid.top, taken)
            start = np.asarray(theta * np.float32(self.initial))
            membrane = constant(f"{node.name}/membrane_start", start, taken)
            spikes = gs.Variable(
                unique_name(f"{node.name}/spikes", taken), current.dtype, current.shape
            )
            remove_node(node)
            graph.nodes[index] = gs.Node(
                self._operator(),
                node.name,
                self._attributes(),
                inputs=[current, threshold, membrane, *self._further(node.name, spatial, taken)],
                outputs=[spikes],
                domain=dialect.DOMAIN,
            )
            graph.nodes.append(
                gs.Node(
                    "Mul",
                    f"{node.name}/amplitude",
                    inputs=[spikes, threshold],
                    outputs=[result],
                )
            )

        graph.nodes = [node for node in graph.nodes if node.outputs]

    def _limited(
        self,
        graph: Graph,
        layer: str,
        current: Tensor,
        most: NDArray[np.float32],
        taken: set[str],
    ) -> Tensor:
        """A current that is no more than a neuron answers with its top level."""
        name = unique_name(f"{layer}/limited", taken)
        result = gs.Variable(name, current.dtype, current.shape)
        limit = constant(f"{layer}/top", np.asarray(most, np.float32), taken)
        graph.nodes.append(gs.Node("Min", name, inputs=[current, limit], outputs=[result]))
        return result

    def _attributes(self) -> dict[str, int]:
        if self.layered is not None:
            return {"radix": int(self.layered == "radix")}
        return {} if self.spikes.kind == "binary" else {"levels": self.spikes.levels}

    def _operator(self) -> str:
        if self.layered is not None:
            return "LayeredRMPNeuron"
        if self.spikes.kind == "burst":
            return "BurstNeuron"
        if self.spikes.kind == "signed":
            return "SignedNeuron"
        if self.schedules:
            return "ScheduledRMPNeuron"
        return "RMPNeuron" if self.reset == "soft" else "HardResetNeuron"

    def _further(self, layer: str, spatial: list[int], taken: set[str]) -> list[gs.Constant]:
        """The inputs behind the membrane potential: the balance of a signed neuron, the schedule."""
        operator = dialect.OPERATORS[self._operator()]
        inputs = []
        for port in operator.inputs[3:]:
            if port.name == "balance":
                start = np.zeros((), np.float32)
                inputs.append(constant(f"{layer}/balance_start", start, taken))
            elif port.name == "schedule":
                charges = self.schedules.get(layer, np.zeros((1, 1), np.float32))
                spread = charges.reshape(*charges.shape, *spatial).astype(np.float32)
                inputs.append(constant(f"{layer}/schedule", spread, taken))
        return inputs
