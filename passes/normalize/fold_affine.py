"""Fold Mul, Div, Add and Sub by constants per channel into the linear layer before them.

This is how Keras and others spell batch-norm and bias.  A step folds if it alone reads the layer's
output and its constant has one value per output channel, or one for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from snncompiler.ir.graph import (
    Graph,
    Node,
    Tensor,
    rank,
    readers,
    remove_node,
    tensor_names,
    value,
)
from snncompiler.ir.operators import record
from snncompiler.passes.base import Context, Pass
from snncompiler.passes.normalize.fold_batch_norm import (
    channels_of,
    foldable,
    scale_layer,
    shift_layer,
)


@dataclass(frozen=True)
class FoldAffine(Pass):
    """Constant Mul, Div, Add, Sub behind a Conv, ConvTranspose or Gemm disappear into it."""

    name: ClassVar[str] = "fold-affine"
    requires: ClassVar[frozenset[str]] = frozenset({"linear-unified", "no-batch-norm"})
    ensures: ClassVar[frozenset[str]] = frozenset({"affine-folded"})

    def run(self, graph: Graph, context: Context) -> None:
        taken = tensor_names(graph)
        for node in list(graph.nodes):
            while node.outputs and foldable(node) and _fold_next(node, graph, context, taken):
                pass
        graph.nodes = [node for node in graph.nodes if node.outputs]


def _fold_next(node: Node, graph: Graph, context: Context, taken: set[str]) -> bool:
    result = node.outputs[0]
    if readers(result, graph) != 1 or not result.outputs:
        return False
    step: Node = result.outputs[0]
    other = _other_operand(step, result)
    if other is None:
        return False
    channels = channels_of(node)
    amount = _per_channel(value(other), channels, rank(result))
    if amount is None:
        return False
    ones = np.ones(channels)
    if step.op == "Mul":
        scale_layer(node, amount, taken)
    elif step.op == "Div":
        if not np.all(amount):
            return False
        scale_layer(node, 1.0 / amount, taken)
    elif step.op == "Add":
        shift_layer(node, amount, taken)
    elif step.inputs[0] is result:
        shift_layer(node, -amount, taken)
    else:
        scale_layer(node, -ones, taken)
        shift_layer(node, amount, taken)
    final = step.outputs[0]
    remove_node(step)
    node.outputs[0] = final
    facts = context.layers[node.name]
    facts.output = final.name
    facts.folded.append(step.op)
    if step.op in ("Add", "Sub") and np.any(amount):
        facts.bias = True
    return True


def _other_operand(step: Node, result: Tensor) -> Tensor | None:
    """The constant operand of a Mul, Div, Add or Sub that reads `result`, None if there is none."""
    if step.domain or not record(step.op).arithmetic:
        return None
    first, second = step.inputs
    if first is result and value(second) is not None:
        return second
    # c / x is not linear.
    if second is result and value(first) is not None and step.op != "Div":
        return first
    return None


def _per_channel(
    array: NDArray[Any] | None, channels: int, result_rank: int | None
) -> NDArray[np.float64] | None:
    """`array` as one value per channel of an [N, C, ...] tensor, None where it is not that."""
    if array is None or result_rank is None or array.ndim > result_rank:
        return None
    if array.size == 1:
        return np.full(channels, float(array.reshape(())))
    shape = (1,) * (result_rank - array.ndim) + array.shape
    if array.size == channels and shape[1] == channels:
        return np.asarray(array, np.float64).reshape(-1)
    return None
