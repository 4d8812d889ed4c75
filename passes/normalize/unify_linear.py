"""Bring the spellings of a linear layer into one form, and list the layers for the report.

MatMul with a constant matrix, a following Add of a constant row, and Gemm with alpha, beta and
transposed operands all become Gemm(x, B, C) with B of shape [features in, features out].  MatMul on
more than two dimensions stays as it is: it is linear too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from snncompiler.ir.graph import (
    Graph,
    Node,
    Tensor,
    constant,
    constant_input,
    rank,
    readers,
    remove_node,
    tensor_names,
    value,
)
from snncompiler.ir.operators import record
from snncompiler.passes.base import Context, LayerFacts, Pass


@dataclass(frozen=True)
class UnifyLinear(Pass):
    """MatMul, MatMul + Add and every Gemm become the plain Gemm(x, B, C)."""

    name: ClassVar[str] = "unify-linear"
    requires: ClassVar[frozenset[str]] = frozenset({"shapes", "constants-folded"})
    ensures: ClassVar[frozenset[str]] = frozenset({"linear-unified"})

    def run(self, graph: Graph, context: Context) -> None:
        taken = tensor_names(graph)
        for node in graph.nodes:
            if node.op == "Gemm":
                _plain_gemm(node, taken)
            elif node.op == "MatMul" and _is_layer(node):
                node.op = "Gemm"
                _take_bias(node, graph, taken)
        graph.nodes = [node for node in graph.nodes if node.outputs]
        for node in graph.nodes:
            layout = None if node.domain else record(node.op).weights
            if layout is not None and layout != "equation":
                bias = constant_input(node, 2)
                context.layers[node.name] = LayerFacts(
                    name=node.name,
                    op=node.op,
                    output=node.outputs[0].name,
                    bias=(bias is not None and bool(np.any(bias))) or _adds_constant(node),
                )


def _is_layer(node: Node) -> bool:
    weights = value(node.inputs[1])
    return weights is not None and weights.ndim == 2 and rank(node.inputs[0]) == 2


def _adds_constant(node: Node) -> bool:
    """Whether a MatMul that stays one is followed by the Add of a constant, its bias."""
    if node.op != "MatMul":
        return False
    return any(
        reader.op == "Add"
        and any(np.any(value(other)) for other in reader.inputs if value(other) is not None)
        for reader in node.outputs[0].outputs
    )


def _plain_gemm(node: Node, taken: set[str]) -> None:
    weights, bias = constant_input(node, 1), constant_input(node, 2)
    alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
    constant_bias = bias is not None or len(node.inputs) < 3
    if weights is None or node.attrs.get("transA", 0) or not constant_bias:
        return
    if node.attrs.get("transB", 0) or alpha != 1.0:
        plain = weights.T if node.attrs.get("transB", 0) else weights
        scaled = plain if alpha == 1.0 else plain * np.asarray(alpha, plain.dtype)
        node.inputs[1] = constant(f"{node.inputs[1].name}_plain", scaled, taken)
    if bias is not None and beta != 1.0:
        scaled = bias * np.asarray(beta, bias.dtype)
        node.inputs[2] = constant(f"{node.inputs[2].name}_plain", scaled, taken)
    node.attrs.clear()


def _take_bias(node: Node, graph: Graph, taken: set[str]) -> None:
    """Let the new Gemm take over a following Add of a constant row."""
    result = node.outputs[0]
    if readers(result, graph) != 1 or not result.outputs or result.outputs[0].op != "Add":
        return
    add: Node = result.outputs[0]
    other: Tensor = add.inputs[1] if add.inputs[0] is result else add.inputs[0]
    row = value(other)
    features = value(node.inputs[1]).shape[1]  # type: ignore[union-attr]
    if row is None or row.ndim > 2 or row.size not in (1, features):
        return
    if row.ndim == 2 and row.shape[0] != 1:
        return
    total = add.outputs[0]
    remove_node(add)
    spread = np.broadcast_to(row.reshape(-1), (features,))
    node.inputs.append(constant(f"{node.name}_bias", spread, taken))
    node.outputs[0] = total
