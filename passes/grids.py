"""Whole numbers, as passes that make them see a network: ranges of values, and weights as rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import lcm, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snncompiler.ir.graph import Node, axes_of, known
from snncompiler.ir.operators import record
from snncompiler.ir.spike_trains import moves_spikes

Floats = NDArray[np.float64]

#: Operators that work element by element, with the same bits on every machine.
BY_ELEMENT = frozenset(
    {
        "Add", "Sub", "Mul", "Div", "Neg", "Abs", "Clip", "Max", "Min", "Cast", "Identity", "Round",
        "Floor", "Ceil",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Real:
    """Numbers from `low` to `high`, the same bits on every machine; `whole` where they are whole."""

    low: float
    high: float
    whole: bool = False


def moves(node: Node) -> bool:
    """Whether a node only chooses, moves or repeats what it reads, or adds zeros."""
    if node.op in ("Resize", "Upsample"):
        return bool(node.attrs.get("mode", "nearest") == "nearest")
    return moves_spikes(node) or node.op in ("Expand", "Tile", "Dropout", "Identity")


def places_of(node: Node) -> int | None:
    """L of an average: a multiple of the number of places of every window."""
    shape = node.inputs[0].shape
    if node.op == "AveragePool":
        kernel = [int(extent) for extent in node.attrs["kernel_shape"]]
        plain = (
            not any(node.attrs.get("pads", ()))
            and not node.attrs.get("ceil_mode", 0)
            and node.attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
        )
        if plain or (node.attrs.get("count_include_pad", 0) and not node.attrs.get("ceil_mode", 0)):
            return prod(kernel)
        found = 1
        for extent in kernel:
            found *= lcm(*range(1, extent + 1))
        return found
    if node.op == "GlobalAveragePool":
        sizes = list(shape or [None])[2:]
    else:
        axes = axes_of(node, len(shape or ()))
        sizes = (
            []
            if shape is None
            else [shape[axis] for axis in (range(len(shape)) if axes is None else axes)]
        )
    return (
        prod(int(size) for size in sizes) if sizes and all(known(size) for size in sizes) else None
    )


def interval(node: Node, ranges: Sequence[Real]) -> Real | None:
    """What an operator gives of values within ranges, element by element."""
    ends = [np.array([one.low, one.high]) for one in ranges]
    whole = all(one.whole for one in ranges)
    first = ranges[0]
    if node.op in ("Identity", "Cast"):
        return first
    if node.op in ("Round", "Floor", "Ceil"):
        return Real(float(np.floor(first.low)), float(np.ceil(first.high)), True)
    if node.op == "Neg":
        return Real(-first.high, -first.low, whole)
    if node.op == "Abs":
        top = max(abs(first.low), abs(first.high))
        return Real(
            0.0 if first.low <= 0 <= first.high else min(abs(first.low), abs(first.high)),
            top,
            whole,
        )
    if node.op == "Clip":
        low = ranges[1].low if len(ranges) > 1 and np.isfinite(ranges[1].low) else -np.inf
        high = ranges[2].high if len(ranges) > 2 and np.isfinite(ranges[2].high) else np.inf
        return Real(min(max(first.low, low), high), max(min(first.high, high), low), whole)
    functions: dict[str, Callable[..., Any]] = {
        "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide,
        "Max": np.maximum, "Min": np.minimum,
    }  # fmt: skip
    found, total = ends[0], ends[0]
    for other in ends[1:]:
        if node.op == "Div" and other[0] <= 0 <= other[1]:
            return None
        total = functions[node.op](found[:, None], other[None, :]).reshape(-1)
        found = np.array([total.min(), total.max()])
    return Real(float(found[0]), float(found[1]), whole and node.op != "Div")


def rows_of(node: Node, weights: NDArray[Any]) -> Floats:
    """Weights as [O, K], the inputs of a group only."""
    layout = record(node.op).weights
    if layout == "outputs-first":
        return np.asarray(weights.reshape(len(weights), -1), np.float64)
    if layout == "inputs-first":
        groups = int(node.attrs.get("group", 1))
        inputs, outputs = weights.shape[0] // groups, weights.shape[1]
        split = weights.reshape(groups, inputs, outputs, -1).transpose(0, 2, 1, 3)
        return np.asarray(split.reshape(groups * outputs, -1), np.float64)
    assert layout == "matrix"
    return np.asarray(weights.T, np.float64)


def from_rows(node: Node, rows: Floats, shape: Sequence[int]) -> Floats:
    """Weights of the given shape from their rows: the inverse of `rows_of`."""
    layout = record(node.op).weights
    if layout == "outputs-first":
        return rows.reshape(shape)
    if layout == "matrix":
        return rows.T
    groups = int(node.attrs.get("group", 1))
    inputs, outputs = shape[0] // groups, shape[1]
    split = rows.reshape(groups, outputs, inputs, -1).transpose(0, 2, 1, 3)
    return split.reshape(shape)
