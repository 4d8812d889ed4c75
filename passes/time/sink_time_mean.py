"""Take the time-mean as early as possible: before everything that no neuron depends on.

The mean over time commutes with affine operators, so the read-out layers (global pooling, the last
Gemm) run once, on mean spikes, and a Softmax behind them is applied to the decoded value exactly as
in the ANN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from snncompiler.errors import refuse
from snncompiler.ir import dialect
from snncompiler.ir.graph import Graph, tensor_names, unique_name
from snncompiler.ir.phases import TIME_MEAN, analyze
from snncompiler.passes.base import Context, Pass


@dataclass(frozen=True)
class SinkTimeMean(Pass):
    """Insert a TimeMean on every temporal tensor that the read-out or the user reads.

    `inputs_vary`: the inputs of the network are temporal too.
    """

    inputs_vary: bool = False

    name: ClassVar[str] = "sink-time-mean"
    requires: ClassVar[frozenset[str]] = frozenset({"neurons"})
    ensures: ClassVar[frozenset[str]] = frozenset({"decoded"})
    again: ClassVar[str] = "the mean over time of a mean over time would be taken"

    def run(self, graph: Graph, context: Context) -> None:
        taken = tensor_names(graph)
        timing = analyze(
            graph, lambda node: node.domain == dialect.DOMAIN, inputs_vary=self.inputs_vary
        )
        temporal = [node for node in graph.nodes if timing.phase(node) == "temporal"]
        tensors = [tensor for node in temporal for tensor in node.outputs]
        if self.inputs_vary:
            tensors += graph.inputs
        for tensor in tensors:
            late = [reader for reader in tensor.outputs if timing.phase(reader) == "read-out"]
            places = [i for i, output in enumerate(graph.outputs) if output is tensor]
            if not late and not places:
                continue
            if tensor.dtype is not None and np.dtype(tensor.dtype).kind != "f":
                raise refuse(
                    "SNNC202",
                    f"the shape '{tensor.name}' of a spiking value is read by spiking layers and by "
                    "the read-out",
                    hint="export the network with a fixed input size",
                )
            mean = gs.Variable(
                unique_name(f"{tensor.name}/mean", taken), tensor.dtype, tensor.shape
            )
            for reader in late:
                for index, other in enumerate(reader.inputs):
                    if other is tensor:
                        reader.inputs[index] = mean
            for place in places:
                # The user's name goes to what the user reads.
                tensor.name, mean.name = mean.name, tensor.name
                graph.outputs[place] = mean
            graph.nodes.append(
                gs.Node(
                    TIME_MEAN,
                    f"{mean.name}/time_mean",
                    inputs=[tensor],
                    outputs=[mean],
                    domain=dialect.DOMAIN,
                )
            )
