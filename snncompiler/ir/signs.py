"""Signs and slopes of values, read off the graph: what max pooling may be exchanged with."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snncompiler.ir.graph import (
    Node,
    Tensor,
    constant_input,
    input_at,
    known,
    producer,
    rank,
    value,
)
from snncompiler.ir.operators import record
from snncompiler.ir.rectifiers import rectified_input, rectifier


def per_channel(tensor: Tensor, like: Tensor) -> NDArray[np.float64] | None:
    """A constant that has one value per channel of `like`, or one for all: [C, 1, ...] or [1, ...].

    None where the tensor is no constant, varies along another axis, or would change the shape.
    """
    array, size = value(tensor), rank(like)
    if array is None or array.dtype.kind != "f" or size is None or size < 2 or array.ndim > size:
        return None
    shape = (1,) * (size - array.ndim) + array.shape
    channels = like.shape[1]
    fits = shape[1] == 1 or (known(channels) and shape[1] == int(channels))
    if not fits or any(dim != 1 for axis, dim in enumerate(shape) if axis != 1):
        return None
    return np.asarray(array.reshape(shape[1:]), np.float64)


def never_negative(tensor: Tensor) -> bool:
    """Whether no element of a value can be negative."""
    pending, seen = [(tensor, 1)], {(id(tensor), 1)}
    while pending:
        needed = _needed(*pending.pop())
        if needed is None:
            return False
        for other, sign in needed:
            if (id(other), sign) not in seen:
                seen.add((id(other), sign))
                pending.append((other, sign))
    return True


def _needed(tensor: Tensor, sign: int) -> list[tuple[Tensor, int]] | None:
    """What no element of `sign` times a value can be negative follows from: other values, and the
    signs with which none of theirs may be negative either.  None where it does not follow."""
    array, node = value(tensor), producer(tensor)
    if array is not None:
        return [] if np.all(sign * array >= 0) else None
    if node is None or node.domain:
        return None
    kind = record(node.op).sign
    if kind == "turned":
        return [(node.inputs[0], -sign)]
    if sign < 0:
        # Only what can be seen at once: x·c with a constant c.
        first, second = node.inputs if node.op == "Mul" else (tensor, tensor)
        if value(first) is not None:
            first, second = second, first
        factor = value(second)
        return [(first, 1)] if factor is not None and np.all(factor <= 0) else None
    if rectifier(node) is not None or kind == "positive":
        return []
    if kind == "all":
        return [(other, 1) for other in node.inputs]
    if kind == "difference":
        return [(node.inputs[0], 1), (node.inputs[1], -1)]
    kept = [(node.inputs[0], 1)] if node.inputs else None
    if kind == "quotient":
        divisor = value(node.inputs[1])
        return kept if divisor is not None and np.all(divisor > 0) else None
    if kind == "padded":
        fill = constant_input(node, 2)
        filled = input_at(node, 2) is None or (fill is not None and np.all(fill >= 0))
        return kept if filled else None
    if kind == "resized":
        return kept if node.attrs.get("mode") != "cubic" else None
    return kept if kind == "first" else None


@dataclass(frozen=True)
class Step:
    """An operator that is affine in `source`, with one slope of sign ±1 for each channel."""

    source: Tensor
    #: [C, 1, ...] or [1, ...], -1 or 1; a slope of 0 counts as rising.
    signs: NDArray[np.float64]

    @property
    def uniform(self) -> int:
        """The sign of all slopes, 0 where they differ."""
        return int(self.signs.flat[0]) if np.all(self.signs == self.signs.flat[0]) else 0


def affine_step(node: Node) -> Step | None:
    """The node as an affine function of one live value, channel by channel; None if it is not one."""
    if node.domain or not node.outputs:
        return None
    rising = np.ones(())
    if node.op == "Neg":
        return Step(node.inputs[0], -rising)
    if node.op == "BatchNormalization":
        gamma = constant_input(node, 1)
        if gamma is None or node.attrs.get("training_mode", 0) or len(node.outputs) != 1:
            return None
        spread = gamma.reshape(-1, *[1] * max((rank(node.inputs[0]) or 2) - 2, 0))
        return Step(node.inputs[0], _signs(spread))
    if not record(node.op).arithmetic or len(node.inputs) != 2:
        return None
    for source, other in (node.inputs, reversed(node.inputs)):
        factors = per_channel(other, source)
        if factors is None or value(source) is not None:
            continue
        if node.op == "Add":
            return Step(source, rising)
        if node.op == "Mul":
            return Step(source, _signs(factors))
        if node.op == "Sub":
            return Step(source, rising if source is node.inputs[0] else -rising)
        if source is node.inputs[0] and np.all(factors):
            return Step(source, _signs(factors))
    return None


def _signs(factors: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.where(factors < 0, -1.0, 1.0)


@dataclass(frozen=True)
class Course:
    """A value as a function of another one, element by element: rising (1) or falling (-1)."""

    of: Hashable
    direction: int


def course(tensor: Tensor) -> Course:
    """The value that `tensor` rises or falls with, as far back as that can be seen.

    Two values with the same course take their maximum at the same place of every window.  `of` holds
    ids of tensors, so it is good while the graph is not changed.
    """
    found: dict[int, Course] = {}
    pending = [tensor]
    while pending:
        here = pending[-1]
        before = _before(here)
        missing = [other for other in before if id(other) not in found]
        if missing:
            pending += missing
        else:
            found[id(pending.pop())] = _next(here, [found[id(other)] for other in before])
    return found[id(tensor)]


def _before(tensor: Tensor) -> list[Tensor]:
    """The values whose courses the course of `tensor` follows from."""
    node = producer(tensor)
    if node is None or node.domain:
        return []
    if rectifier(node) is not None:
        return [node.inputs[rectified_input(node)]]
    step = affine_step(node)
    if step is not None:
        return [step.source] if step.uniform else []
    if node.op in ("Add", "Sub"):
        return list(node.inputs)
    return [node.inputs[0]] if node.op == "MaxPool" else []


def _next(tensor: Tensor, before: list[Course]) -> Course:
    """The course of a value from those of `_before`."""
    here, node = Course(id(tensor), 1), producer(tensor)
    if not before or node is None:
        return here
    first = before[0]
    if rectifier(node) is not None:
        return first
    if node.op == "MaxPool":
        # f(x) that rises with x has f(max x) as its maximum, one that falls f(min x).
        window = repr(sorted(node.attrs.items()))
        return Course((first.of, first.direction, window), first.direction)
    step = affine_step(node)
    if step is not None:
        return Course(first.of, first.direction * step.uniform)
    turn = -1 if node.op == "Sub" else 1
    same = first.of == before[1].of and first.direction == turn * before[1].direction
    return first if same else here
