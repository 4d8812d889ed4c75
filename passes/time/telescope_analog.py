"""Keep a nonlinear operator between spiking layers exact through time, on request.

With m_t the running mean of its input, out_t = t·f(m_t) - (t-1)·f(m_{t-1}): these sum to t·f(m_t), so
the time-mean of the output is f of the time-mean of the input, at every t.  The operator itself runs
on RunningMean and is followed by Telescope; it computes on analog values at every step and is reported
as not spiking.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from snncompiler.errors import refuse
from snncompiler.ir import dialect
from snncompiler.ir.graph import Graph, Node, Tensor, constant, label, tensor_names, unique_name
from snncompiler.ir.linear import linear_reason
from snncompiler.ir.operators import record
from snncompiler.ir.phases import analyze
from snncompiler.passes.base import Context, Pass


@dataclass(frozen=True)
class TelescopeAnalog(Pass):
    """RunningMean before, Telescope behind every nonlinear temporal operator."""

    name: ClassVar[str] = "telescope-analog"
    requires: ClassVar[frozenset[str]] = frozenset({"neurons", "binary-spikes"})
    ensures: ClassVar[frozenset[str]] = frozenset({"linear-in-time"})

    def run(self, graph: Graph, context: Context) -> None:
        taken = tensor_names(graph)
        timing = analyze(graph, lambda node: node.domain == dialect.DOMAIN)
        means: dict[int, Tensor] = {}
        for node in list(graph.nodes):
            if timing.phase(node) != "temporal" or node.domain == dialect.DOMAIN:
                continue
            varies = any(timing.inputs(node)) and not record(node.op).shape_only
            if not varies or not linear_reason(node, timing.inputs(node)):
                continue
            for index, tensor in enumerate(node.inputs):
                if id(tensor) in timing.temporal:
                    if id(tensor) not in means:
                        means[id(tensor)] = _add(graph, "RunningMean", tensor, taken)
                    node.inputs[index] = means[id(tensor)]
            for index, tensor in enumerate(list(node.outputs)):
                if tensor.outputs or any(output is tensor for output in graph.outputs):
                    _behind(graph, node, index, taken)


def _zero(name: str, taken: set[str]) -> gs.Constant:
    return constant(name, np.zeros((), np.float32), taken)


def _add(graph: Graph, op: str, tensor: Tensor, taken: set[str]) -> Tensor:
    result = gs.Variable(unique_name(f"{tensor.name}/mean", taken), tensor.dtype, tensor.shape)
    name = unique_name(f"{tensor.name}/{op}", taken)
    state = _zero(f"{name}/start", taken)
    graph.nodes.append(
        gs.Node(op, name, inputs=[tensor, state], outputs=[result], domain=dialect.DOMAIN)
    )
    return result


def _behind(graph: Graph, node: Node, index: int, taken: set[str]) -> None:
    result = node.outputs[index]
    if result.dtype is None or np.dtype(result.dtype).kind != "f":
        raise refuse(
            "SNNC202",
            f"{node.op} stands between spiking layers and its output is {result.dtype}",
            node=label(node),
            hint="only operators with float outputs can be kept analog",
        )
    raw = gs.Variable(unique_name(f"{result.name}/analog", taken), result.dtype, result.shape)
    node.outputs[index] = raw
    name = unique_name(f"{node.name}/Telescope", taken)
    state = _zero(f"{name}/start", taken)
    graph.nodes.append(
        gs.Node("Telescope", name, inputs=[raw, state], outputs=[result], domain=dialect.DOMAIN)
    )
