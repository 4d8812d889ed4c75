"""Code the input as random spikes whose mean over time is the input: the paper's Poisson input.

x becomes s = PoissonEncoder(x, c) and c·s with c the largest |x|; the amplitude c disappears into the
first weights like that of any spike.  The spikes are signed, as the input is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from snncompiler.ir import dialect
from snncompiler.ir.graph import Graph, constant, replace_uses, tensor_names, unique_name
from snncompiler.passes.base import Context, Pass


@dataclass(frozen=True)
class EncodePoisson(Pass):
    """Every float input becomes spikes.  `scales`: input name -> largest |x|, positive."""

    scales: Mapping[str, float] = field(default_factory=dict)

    name: ClassVar[str] = "encode-poisson"
    requires: ClassVar[frozenset[str]] = frozenset({"constraints-checked"})
    ensures: ClassVar[frozenset[str]] = frozenset({"spiking-input"})

    def run(self, graph: Graph, context: Context) -> None:
        taken = tensor_names(graph)
        for tensor in list(graph.inputs):
            if tensor.dtype is None or np.dtype(tensor.dtype).kind != "f":
                continue
            if all(node.op == "PoissonEncoder" and node.domain for node in tensor.outputs):
                continue  # it is spikes already, or nobody reads it
            scale = constant(
                f"{tensor.name}/scale", np.array(self.scales[tensor.name], np.float32), taken
            )
            spikes, values = (
                gs.Variable(unique_name(f"{tensor.name}/{what}", taken), tensor.dtype, tensor.shape)
                for what in ("spikes", "decoded")
            )
            replace_uses(tensor, values, graph)
            graph.nodes += [
                gs.Node(
                    "PoissonEncoder",
                    f"{tensor.name}/encoder",
                    inputs=[tensor, scale],
                    outputs=[spikes],
                    domain=dialect.DOMAIN,
                ),
                gs.Node(
                    "Mul", f"{tensor.name}/amplitude", inputs=[spikes, scale], outputs=[values]
                ),
            ]
