"""Batch-norm at inference is an affine step: fold it into the layer before it, where that is exact.

y = s·x + b with s = γ/√(σ² + ε) and b = β - s·μ, computed in float64.  It folds into the linear layer
that produces x if nobody else reads x; otherwise (after an Add, with several readers, before any
convolution) it stays, as a Mul and an Add of constants, until `fold_forward` sees whether the layers
behind can take them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from snncompiler.errors import Refused
from snncompiler.findings import Finding
from snncompiler.ir.graph import (
    Graph,
    Node,
    constant,
    constant_input,
    input_at,
    known_rank,
    label,
    producer,
    readers,
    remove_node,
    tensor_names,
    unique_name,
    value,
)
from snncompiler.ir.operators import record
from snncompiler.passes.base import Context, Pass


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold BatchNormalization into the Conv, ConvTranspose or Gemm before it, or make it affine."""

    name: ClassVar[str] = "fold-batch-norm"
    requires: ClassVar[frozenset[str]] = frozenset({"linear-unified"})
    ensures: ClassVar[frozenset[str]] = frozenset({"no-batch-norm"})

    def run(self, graph: Graph, context: Context) -> None:
        taken = tensor_names(graph)
        refused: list[Finding] = []
        for node in [node for node in graph.nodes if node.op == "BatchNormalization"]:
            reason = _not_affine(node)
            if reason:
                refused.append(Finding("SNNC207", reason, node=label(node)))
                continue
            gamma, beta, mean, var = (constant_input(node, i) for i in range(1, 5))
            epsilon = node.attrs.get("epsilon", 1e-5)
            wide = [np.asarray(a, np.float64) for a in (gamma, beta, mean, var)]
            scale = wide[0] / np.sqrt(wide[3] + epsilon)
            shift = wide[1] - scale * wide[2]
            context.moments[node.outputs[0].name] = (wide[1], np.abs(wide[0]))
            before = producer(node.inputs[0])
            if before is not None and readers(node.inputs[0], graph) == 1 and foldable(before):
                scale_layer(before, scale, taken)
                shift_layer(before, shift, taken)
                result = node.outputs[0]
                remove_node(node)
                before.outputs[0] = result
                facts = context.layers[before.name]
                facts.batch_norm, facts.output = "folded", result.name
                facts.folded.append("BatchNormalization")
            else:
                where = label(node)
                for left in _make_affine(graph, node, scale, shift, taken):
                    context.norms[left.name] = where
                context.note(
                    "SNNC207",
                    "batch-norm is kept as an affine step: no layer that it alone reads stands "
                    "before it",
                    node=where,
                )
        graph.nodes = [node for node in graph.nodes if node.outputs]
        if refused:
            raise Refused(*refused)


def _not_affine(node: Node) -> str:
    """Why the batch-norm is not a fixed affine step; empty if it is one."""
    if node.attrs.get("training_mode", 0):
        return (
            "training_mode = 1 normalizes by the statistics of each batch: export it for inference"
        )
    if any(not tensor.is_empty() and tensor.outputs for tensor in node.outputs[1:]):
        return "its running statistics are used as outputs"
    parameters = [constant_input(node, index) for index in range(1, 5)]
    if any(parameter is None for parameter in parameters):
        return "its parameters are computed at run time or are inputs of the model"
    variance = parameters[3]
    assert variance is not None
    if np.any(variance + node.attrs.get("epsilon", 1e-5) <= 0):
        return "variance + epsilon is not positive"
    return ""


def foldable(node: Node) -> bool:
    """Whether an affine step per output channel can be folded into the node's weights."""
    nature = record(node.op)
    if node.domain or nature.bias is None:
        return False
    if nature.weights == "matrix" and node.attrs:
        return False
    if value(node.inputs[1]) is None:
        return False
    if input_at(node, 2) is None:
        return True
    bias = constant_input(node, 2)
    # A Gemm may also add a value per row, that is, per sample.
    return (
        bias is not None and bias.size in (1, channels_of(node)) and bias.shape[:-1] in ((), (1,))
    )


def channels_of(node: Node) -> int:
    """How many output channels (or features) a foldable layer has."""
    weights = value(node.inputs[1])
    assert weights is not None
    layout = record(node.op).weights
    if layout == "outputs-first":
        return int(weights.shape[0])
    if layout == "inputs-first":
        return int(weights.shape[1]) * int(node.attrs.get("group", 1))
    return int(weights.shape[1])


def scale_layer(node: Node, scale: NDArray[np.float64], taken: set[str]) -> None:
    """Multiply the output of a foldable layer by `scale`, of shape [channels]."""
    weights = value(node.inputs[1])
    assert weights is not None
    layout = record(node.op).weights
    if layout == "outputs-first":
        factor = scale.reshape(-1, *[1] * (weights.ndim - 1))
    elif layout == "inputs-first":
        # Weights are [C_in, C_out/group, ...]; input channel c belongs to group c // (C_in/group).
        groups = int(node.attrs.get("group", 1))
        per_group = scale.reshape(groups, -1)
        factor = np.repeat(per_group, weights.shape[0] // groups, axis=0)
        factor = factor.reshape(*factor.shape, *[1] * (weights.ndim - 2))
    else:
        factor = scale.reshape(1, -1)
    node.inputs[1] = _rounded(node.inputs[1].name, weights * factor, weights.dtype, taken)
    bias = constant_input(node, 2)
    if bias is not None:
        scaled = np.asarray(bias, np.float64).reshape(-1) * scale
        node.inputs[2] = _rounded(node.inputs[2].name, scaled, bias.dtype, taken)


def shift_layer(node: Node, shift: NDArray[np.float64], taken: set[str]) -> None:
    """Add `shift`, of shape [channels], to the output of a foldable layer."""
    weights = value(node.inputs[1])
    assert weights is not None
    bias = constant_input(node, 2)
    total = shift if bias is None else np.asarray(bias, np.float64).reshape(-1) + shift
    tensor = _rounded(f"{node.name}_bias", total, weights.dtype, taken)
    if len(node.inputs) > 2:
        node.inputs[2] = tensor
    else:
        node.inputs.append(tensor)


def _rounded(name: str, array: NDArray[Any], dtype: Any, taken: set[str]) -> gs.Constant:
    return constant(name.removesuffix("_folded") + "_folded", array.astype(dtype), taken)


def _make_affine(
    graph: Graph,
    node: Node,
    scale: NDArray[np.float64],
    shift: NDArray[np.float64],
    taken: set[str],
) -> list[Node]:
    """Replace a BatchNormalization by Mul and Add, which are returned."""
    source, result = node.inputs[0], node.outputs[0]
    dtype = source.dtype or np.float32
    spread = (-1, *[1] * (known_rank(source) - 2))
    scaled = gs.Variable(unique_name(f"{result.name}_scaled", taken), source.dtype, source.shape)
    factor = constant(f"{node.name}_scale", scale.reshape(spread).astype(dtype), taken)
    offset = constant(f"{node.name}_shift", shift.reshape(spread).astype(dtype), taken)
    at = next(index for index, other in enumerate(graph.nodes) if other is node)
    remove_node(node)
    made = [
        gs.Node("Mul", f"{node.name}_mul", inputs=[source, factor], outputs=[scaled]),
        gs.Node("Add", f"{node.name}_add", inputs=[scaled, offset], outputs=[result]),
    ]
    graph.nodes[at : at + 1] = made
    return made
