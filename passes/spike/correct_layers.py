"""Give layers the weights and the biases that a calibration has found for them.

Weights replace those of the layer.  A bias replaces that of a layer with weights; for a rectifier it is
added to what the rectifier receives: to the bias of the layer before it where this has no other
reader, else by an Add.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from snncompiler.errors import InternalError
from snncompiler.ir.graph import (
    Graph,
    Node,
    constant,
    constant_input,
    input_at,
    known_rank,
    producer,
    readers,
    sort_nodes,
    tensor_names,
    unique_name,
)
from snncompiler.ir.operators import record
from snncompiler.ir.rectifiers import rectified_input, rectifier
from snncompiler.passes.base import Context, Pass


@dataclass(frozen=True)
class CorrectLayers(Pass):
    """weights: node name -> weights in the shape of the node's own.  biases: node name -> [O] of a
    layer with weights, or [C] or [1] of a rectifier, to whose current it is added."""

    weights: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    biases: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    name: ClassVar[str] = "correct-layers"
    requires: ClassVar[frozenset[str]] = frozenset({"constraints-checked"})
    again: ClassVar[str] = "what a rectifier receives is added once more"

    def run(self, graph: Graph, context: Context) -> None:
        taken = tensor_names(graph)
        nodes = {node.name: node for node in graph.nodes}
        for name, weights in self.weights.items():
            node = nodes[name]
            own = constant_input(node, 1)
            if own is None or own.shape != weights.shape:
                raise InternalError(f"{name} has no weights of shape {weights.shape}")
            node.inputs[1] = constant(
                f"{node.inputs[1].name}_corrected", weights.astype(own.dtype), taken
            )
        for name, bias in self.biases.items():
            node = nodes[name]
            if rectifier(node) is not None:
                _add(graph, node, rectified_input(node), bias, taken)
            elif record(node.op).bias is not None:
                _replace(node, bias, taken)
            else:
                _add_behind(graph, node, bias, taken)
        sort_nodes(graph)


def _replace(node: Node, bias: NDArray[np.float32], taken: set[str]) -> None:
    tensor = constant(f"{node.name}/bias_corrected", bias.astype(np.float32), taken)
    if len(node.inputs) > 2:
        node.inputs[2] = tensor
    else:
        node.inputs.append(tensor)


def _add(graph: Graph, node: Node, index: int, bias: NDArray[np.float32], taken: set[str]) -> None:
    """Add to what a rectifier receives."""
    current = node.inputs[index]
    source = producer(current)
    if source is not None and readers(current, graph) == 1 and record(source.op).bias == 2:
        own, size = constant_input(source, 2), _outputs(source)
        none = input_at(source, 2) is None
        if size is not None and (none or (own is not None and own.size == size)):
            before = np.zeros(size, np.float32) if own is None else own.reshape(-1)
            total = (before + np.broadcast_to(bias, size)).astype(np.float32)
            _replace(source, total, taken)
            return
    spatial = [1] * max(known_rank(current) - 2, 0)
    added = bias.reshape(-1, *spatial) if bias.size > 1 else bias.reshape(())
    result = gs.Variable(unique_name(f"{node.name}/corrected", taken), current.dtype, current.shape)
    tensor = constant(f"{node.name}/offset", added.astype(np.float32), taken)
    graph.nodes.append(
        gs.Node("Add", f"{node.name}/correct", inputs=[current, tensor], outputs=[result])
    )
    node.inputs[index] = result


def _add_behind(graph: Graph, node: Node, bias: NDArray[np.float32], taken: set[str]) -> None:
    """Add to the output of a layer that has no bias of its own: MatMul, whose channels come last."""
    total = node.outputs[0]
    raw = gs.Variable(unique_name(f"{node.name}/raw", taken), total.dtype, total.shape)
    node.outputs[0] = raw
    tensor = constant(f"{node.name}/bias_corrected", bias.astype(np.float32), taken)
    graph.nodes.append(
        gs.Node("Add", f"{node.name}/correct", inputs=[raw, tensor], outputs=[total])
    )


def _outputs(node: Node) -> int | None:
    """The output channels of a layer whose bias has one number for each."""
    weights, layout = constant_input(node, 1), record(node.op).weights
    if weights is None or layout == "equation" or node.op == "MatMul":
        return None
    if layout == "inputs-first":
        return int(weights.shape[1]) * int(node.attrs.get("group", 1))
    return int(weights.shape[1 if layout == "matrix" else 0])
