"""Replace every rectifier by a spiking neuron with its calibrated threshold.

y = relu(x) becomes s = RMPNeuron(x, θ) and y = θ·s: the spikes are binary, the amplitude θ is an
explicit Mul that `fold_amplitude` moves into the next linear layer.  A residual Add stays in front
of its neuron, so both currents meet there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from snncompiler import dialect
from snncompiler.errors import InternalError
from snncompiler.graph import Graph, constant, known_rank, remove_node, tensor_names, unique_name
from snncompiler.operators import rectified_input, rectifier
from snncompiler.passes.base import Context, Pass


@dataclass(frozen=True)
class InsertNeurons(Pass):
    """Rectifiers become neurons.

    `thresholds`: layer name -> θ, [C] or [1], finite and positive.  `initial`: membrane potential at
    the start, in units of θ.  `reset`: soft (RMP) or hard.
    """

    thresholds: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    initial: float = 0.5
    reset: str = "soft"

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
            spatial = [1] * max(known_rank(current) - 2, 0)
            theta = theta.reshape(-1, *spatial) if theta.size > 1 else theta.reshape(())
            threshold = constant(f"{node.name}/threshold", theta, taken)
            start = np.asarray(theta * np.float32(self.initial))
            membrane = constant(f"{node.name}/membrane_start", start, taken)
            spikes = gs.Variable(
                unique_name(f"{node.name}/spikes", taken), current.dtype, current.shape
            )
            remove_node(node)
            graph.nodes[index] = gs.Node(
                "RMPNeuron" if self.reset == "soft" else "HardResetNeuron",
                node.name,
                inputs=[current, threshold, membrane],
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
