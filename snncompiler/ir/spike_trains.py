"""Which values are spike trains: the outputs of neurons, chosen, moved and turned only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from snncompiler.ir.graph import Node, Tensor, constant_input, input_at, producer, value
from snncompiler.ir.operators import record


def turns_signs(node: Node) -> bool:
    """Whether the node multiplies its first input by constants of 1 and -1."""
    factors = value(node.inputs[1]) if node.op == "Mul" and not node.domain else None
    return factors is not None and bool(np.all(np.abs(factors) == 1))


def moves_spikes(node: Node) -> bool:
    """Whether the node chooses, moves, or turns the sign of what its data inputs are, or adds zeros."""
    if node.domain:
        return False
    kind = record(node.op).spikes
    if kind == "padded":
        fill = constant_input(node, 2)
        zeros = input_at(node, 2) is None or (fill is not None and not np.any(fill))
        return zeros or node.attrs.get("mode", "constant") != "constant"
    return kind in ("moved", "turned") or (kind == "signs" and turns_signs(node))


def carries_spikes(tensor: Tensor, fires: Callable[[Node], bool]) -> bool:
    """Whether every element is the output of a node that `fires`, chosen, moved and turned only."""
    pending = [tensor]
    seen: set[int] = set()
    while pending:
        source = producer(pending.pop())
        if source is None:
            return False
        if id(source) in seen or fires(source):
            continue
        if not moves_spikes(source):
            return False
        seen.add(id(source))
        pending += source.inputs if source.op == "Concat" else source.inputs[:1]
    return True
