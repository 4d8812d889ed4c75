"""The rounding of a quantized network: what a rectifier sends on a grid, and values that are rounded.

Where its rounding is kept (`passes/source/drop_fake_quant.py`), a value is rounded by QuantizeLinear, a
Clip of integers where it has fewer of them than its type, and DequantizeLinear.  Right behind a
rectifier, from zero point 0 on, this is what a neuron of layered time does: its spikes stand for the
integer, and the scale is its threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snncompiler.ir.graph import Graph, Node, Tensor, constant_input, input_at, producer
from snncompiler.ir.operators import record
from snncompiler.ir.rectifiers import clip_bounds, rectifier

#: The largest number that radix spikes can stand for (`settings.MAX_DIGITS`).
MAX_TOP = (1 << 16) - 1


@dataclass(frozen=True)
class Grid:
    """What a rectifier sends: n·scale, n = 0 to top.  scale: [C] or [1].

    nodes: those that round behind the rectifier; the last one has the rounded values.
    """

    scale: NDArray[np.float32]
    top: int
    nodes: tuple[Node, ...]

    @property
    def rounded(self) -> Tensor:
        return self.nodes[-1].outputs[0]


def grid_of(node: Node) -> Grid | None:
    """The grid of a rectifier that is rounded, and read no other way; None where it is not."""
    found = rectifier(node)
    first = _only_reader(node.outputs[0], "QuantizeLinear")
    if found is None or first is None:
        return None
    scale, zero = constant_input(first, 1), constant_input(first, 2)
    if scale is None or zero is None or zero.dtype.kind != "u" or np.any(zero):
        return None
    nodes, top = [first], int(np.iinfo(zero.dtype).max)
    last = _only_reader(first.outputs[0], "Clip")
    if last is not None:
        low, high = clip_bounds(last)
        if low is None or low > 0 or high is None:
            return None
        nodes, top = [*nodes, last], min(top, int(high))
    last = _only_reader(nodes[-1].outputs[0], "DequantizeLinear")
    if last is None or not _same(scale, constant_input(last, 1)):
        return None
    if input_at(last, 2) is not None and not _same(zero, constant_input(last, 2)):
        return None
    if scale.size > 1 and any(one.attrs.get("axis", 1) != 1 for one in (first, last)):
        return None
    if found.cap is not None:
        if scale.size > 1:
            return None
        # As the file divides and rounds: the cap in float32, to the nearest even integer.
        top = min(top, int(np.rint(np.float32(found.cap) / scale.reshape(-1)[0])))
    return Grid(scale.reshape(-1).astype(np.float32), top, (*nodes, last))


def grids_of(graph: Graph) -> dict[str, Grid]:
    """The grids of all rectifiers that have one, by their names."""
    found = {node.name: grid_of(node) for node in graph.nodes if rectifier(node) is not None}
    return {name: grid for name, grid in found.items() if grid is not None}


def rounded_from(node: Node) -> Tensor | None:
    """The values that a DequantizeLinear has rounded, None where it is not the end of a rounding."""
    if node.domain or node.op != "DequantizeLinear":
        return None
    before = producer(node.inputs[0])
    if before is not None and before.op == "Clip" and not before.domain:
        before = producer(before.inputs[0])
    if before is None or before.domain or before.op != "QuantizeLinear":
        return None
    return before.inputs[0]


def is_rounded(tensor: Tensor) -> bool:
    """Whether a value was rounded to a grid, and chosen and moved at most since."""
    node = producer(tensor)
    while node is not None and not node.domain and record(node.op).spikes == "moved":
        node = producer(node.inputs[0])
    return node is not None and rounded_from(node) is not None


def step_of(tensor: Tensor) -> tuple[NDArray[np.float32], int, int] | None:
    """The grid of a value that was rounded, and moved at most since: its scale, and the least and the
    largest number.  None where it was not rounded, or has several scales."""
    node = producer(tensor)
    while node is not None and not node.domain and record(node.op).spikes == "moved":
        node = producer(node.inputs[0])
    if node is None or rounded_from(node) is None:
        return None
    before = producer(node.inputs[0])
    assert before is not None
    scale, zero = constant_input(node, 1), constant_input(node, 2)
    if scale is None or zero is None or scale.size != 1 or zero.size != 1:
        return None
    limits = np.iinfo(zero.dtype)
    low, high = float(limits.min), float(limits.max)
    if before.op == "Clip":
        least, most = clip_bounds(before)
        if least is None or most is None:
            return None
        low, high = max(low, least), min(high, most)
    shift = int(zero.reshape(()))
    return scale.reshape(()).astype(np.float32), int(low) - shift, int(high) - shift


def rounds(node: Node) -> bool:
    """Whether a node is part of a rounding: computed on complete values, without spikes."""
    if node.domain:
        return False
    if node.op == "QuantizeLinear" or rounded_from(node) is not None:
        return True
    before = producer(node.inputs[0]) if node.inputs else None
    return node.op == "Clip" and before is not None and before.op == "QuantizeLinear"


def _only_reader(tensor: Tensor, op: str) -> Node | None:
    if len(tensor.outputs) != 1:
        return None
    node = tensor.outputs[0]
    return node if node.op == op and not node.domain and node.inputs[0] is tensor else None


def _same(first: NDArray[Any], second: NDArray[Any] | None) -> bool:
    return second is not None and np.array_equal(first, second)
