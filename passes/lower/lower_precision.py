"""Weights and currents in float16, for GPUs; membrane potentials, thresholds and sums stay float32.

The static and the temporal part are computed in float16, the read-out in float32: it runs once, and on
time-means, whose integers float16 could not hold.  Inputs and outputs keep their types.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from snncompiler.errors import refuse
from snncompiler.ir import dialect
from snncompiler.ir.graph import (
    Graph,
    Node,
    Tensor,
    constant,
    label,
    tensor_names,
    unique_name,
    value,
)
from snncompiler.ir.operators import record
from snncompiler.ir.phases import TIME_MEAN, analyze
from snncompiler.passes.base import Context, Pass


@dataclass(frozen=True)
class LowerPrecision(Pass):
    """float16 weights and currents before the read-out."""

    name: ClassVar[str] = "lower-precision"
    requires: ClassVar[frozenset[str]] = frozenset({"decoded"})
    ensures: ClassVar[frozenset[str]] = frozenset({"float16"})
    again: ClassVar[str] = "the inputs, which stay float32, would be rounded to float16 once more"

    def run(self, graph: Graph, context: Context) -> None:
        taken = tensor_names(graph)
        timing = analyze(graph, lambda node: _is_ours(node) and node.op != TIME_MEAN)
        early = [node for node in graph.nodes if timing.phase(node) != "read-out"]
        late = [node for node in graph.nodes if timing.phase(node) == "read-out"]
        halves: dict[str, gs.Constant] = {}
        for node in early:
            if not _is_ours(node):
                _halve_constants(node, halves, taken)
            for tensor in node.outputs:
                if tensor.dtype == np.float32:
                    tensor.dtype = np.dtype(np.float16)
        _cast_inputs(graph, early, taken)
        for node in late:
            if node.op == TIME_MEAN and _is_ours(node):
                # TimeSum takes float16 and sums in float32.
                node.outputs[0].dtype = np.dtype(np.float32)
        _cast_back(graph, early, [node for node in late if not _is_ours(node)], taken)


def _is_ours(node: Node) -> bool:
    return bool(node.domain == dialect.DOMAIN)


def _halve_constants(node: Node, halves: dict[str, gs.Constant], taken: set[str]) -> None:
    for index, tensor in enumerate(node.inputs):
        array = value(tensor)
        # ONNX wants the factors of each axis in float32 whatever the data is.
        if array is None or array.dtype != np.float32 or index == record(node.op).factors:
            continue
        if np.abs(array).max(initial=0) > np.finfo(np.float16).max:
            raise refuse(
                "SNNC109",
                f"weight '{tensor.name}' does not fit float16",
                node=label(node),
                hint="compile with --precision fp32",
            )
        if tensor.name not in halves:
            halves[tensor.name] = constant(f"{tensor.name}_fp16", array.astype(np.float16), taken)
        node.inputs[index] = halves[tensor.name]
    if node.op == "Cast" and node.attrs["to"] == onnx.TensorProto.FLOAT:
        node.attrs["to"] = int(onnx.TensorProto.FLOAT16)


def _cast(tensor: Tensor, dtype: type, name: str, taken: set[str]) -> Node:
    result = gs.Variable(unique_name(name, taken), np.dtype(dtype), tensor.shape)
    kind = int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    return gs.Node("Cast", result.name, attrs={"to": kind}, inputs=[tensor], outputs=[result])


def _cast_inputs(graph: Graph, early: list[Node], taken: set[str]) -> None:
    for tensor in graph.inputs:
        readers = [node for node in early if any(other is tensor for other in node.inputs)]
        if tensor.dtype != np.float32 or not readers:
            continue
        cast = _cast(tensor, np.float16, f"{tensor.name}/fp16", taken)
        _read_instead(readers, tensor, cast.outputs[0])
        graph.nodes.append(cast)


def _cast_back(graph: Graph, early: list[Node], late: list[Node], taken: set[str]) -> None:
    """Static float16 values that the read-out or the user reads become float32 again."""
    for tensor in [tensor for node in early for tensor in node.outputs]:
        readers = [node for node in late if any(other is tensor for other in node.inputs)]
        places = [index for index, output in enumerate(graph.outputs) if output is tensor]
        if tensor.dtype != np.float16 or not (readers or places):
            continue
        cast = _cast(tensor, np.float32, f"{tensor.name}/fp32", taken)
        _read_instead(readers, tensor, cast.outputs[0])
        for place in places:
            tensor.name, cast.outputs[0].name = cast.outputs[0].name, tensor.name
            graph.outputs[place] = cast.outputs[0]
        graph.nodes.append(cast)


def _read_instead(readers: list[Node], old: Tensor, new: Tensor) -> None:
    for node in readers:
        for index, other in enumerate(node.inputs):
            if other is old:
                node.inputs[index] = new
