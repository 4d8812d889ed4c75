"""What the pass `whole-numbers` notes of a network on its way: which values are whole, which layers and
roundings make them, and which of their channels share a scale."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snncompiler.ir import dialect
from snncompiler.ir.graph import Node, Tensor, input_at
from snncompiler.passes.grids import Floats, Real, rows_of
from snncompiler.passes.spike.fold_amplitude import into_weights

Labels = NDArray[np.int64]

#: Bits of the coefficient of a residual spike, whatever the bits of weights.
COEFFICIENT = (1 << 15) - 1
#: The least threshold: with a smaller one there would be no half of it, and no charge.
LEAST_THRESHOLD = 7
#: The label of what has any scale: zeros that were added by padding.
FREE = 1


@dataclass(frozen=True)
class Whole:
    """n at most `bound` in size, that stands for unit·r·n: `unit` and `trains` have the rank of the
    tensor; `trains` says from which spikes n comes, and so by how much a threshold was rounded, r.
    `signed`: n may be negative."""

    unit: Floats
    trains: Labels
    bound: float
    signed: bool = False


@dataclass(frozen=True)
class Current:
    """Sums with weights; the labels have the rank of the tensor.  `static`: no neuron changes it."""

    labels: Labels
    static: bool


Kind = Real | Whole | Current


class LabelTable:
    """Labels that were joined (union-find), and what is known of each."""

    def __init__(self) -> None:
        self.parents: list[int] = [0, FREE]

    def fresh(self, shape: tuple[int, ...]) -> Labels:
        size = prod(shape)
        first = len(self.parents)
        self.parents += range(first, first + size)
        return np.arange(first, first + size).reshape(shape)

    def root(self, one: int) -> int:
        while self.parents[one] != one:
            self.parents[one] = self.parents[self.parents[one]]
            one = self.parents[one]
        return one

    def roots(self, labels: Labels) -> Labels:
        return np.array([self.root(int(one)) for one in labels.reshape(-1)]).reshape(labels.shape)

    def join(self, first: Labels, second: Labels) -> Labels:
        """One label for what is added up, place by place."""
        one, two = np.broadcast_arrays(first, second)
        for a, b in zip(one.reshape(-1), two.reshape(-1), strict=True):
            if a != FREE and b != FREE:
                self.parents[self.root(int(b))] = self.root(int(a))
        return np.where(one == FREE, two, one)

    def uniform(self, labels: Labels) -> Labels:
        """One label for all of them, where a scale of each channel cannot pass."""
        own = labels[labels != FREE]
        if not own.size:
            return np.full((1,) * labels.ndim, FREE)
        for other in own[1:]:
            self.parents[self.root(int(other))] = self.root(int(own[0]))
        return np.full((1,) * labels.ndim, own[0])


@dataclass
class Layer:
    """A node whose weights, with those of its input's unit, become whole numbers.

    labels: of its output channels, flat, one for each row; those of a Mul as they are.  weights: the
    real numbers; rows: these as [O, K], with the unit of the input.  Whole weights are step·w, with w
    at most `most` in size.  bound: Σ over a row of |weight| · the largest input, in real numbers, [O].
    """

    node: Node
    source: Kind
    labels: Labels
    weights: Floats
    most: int
    step: int = 1
    rows: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    bound: Floats = field(default_factory=lambda: np.zeros(0))

    @property
    def is_coefficient(self) -> bool:
        """Whether its weights multiply spikes one by one."""
        return bool(self.node.op == "Mul")


@dataclass
class Rounded:
    """A Mul and a Round that bring a value onto the scale of `labels`: value · factor / scale.

    reader: the layer behind it, where it is left out if that layer needs none.
    places: of the source, which are added up in the value.
    unit: what it gives is a multiple of that.  ends: the lowest and the highest that it gives, where it
    has no need to give more, [2, ...].
    """

    node: Node
    round: Node
    source: Kind
    labels: Labels
    factor: Floats
    bound: Floats = field(default_factory=lambda: np.zeros(0))
    reader: Node | None = None
    places: int = 1
    unit: int = 1
    ends: Floats | None = None


@dataclass
class Neuron:
    """A neuron, the labels of its current, and the numbers of its spikes in the table of ratios."""

    node: Node
    labels: Labels
    trains: Labels
    rounded: Rounded | None


def place_of(node: Node, port: str) -> int:
    return [one.name for one in dialect.OPERATORS[node.op].inputs].index(port)


def port_of(node: Node, port: str) -> Tensor | None:
    """What a neuron reads at a port, None where it has no such port."""
    names = [one.name for one in dialect.OPERATORS[node.op].inputs]
    return input_at(node, names.index(port)) if port in names else None


def odd(numbers: Floats) -> Floats:
    """The nearest odd numbers, LEAST_THRESHOLD at least."""
    return np.asarray(np.maximum(2 * np.floor(numbers / 2 + 1e-9) + 1, LEAST_THRESHOLD))


def spread(held: NDArray[Any] | None, size: int) -> Floats:
    """A constant with `size` axes."""
    assert held is not None
    array = np.asarray(held, np.float64)
    return array.reshape((1,) * (size - array.ndim) + array.shape)


def rows_with(
    node: Node, weights: Floats, unit: NDArray[Any], shape: tuple[int, ...] = ()
) -> Floats:
    """The rows of weights times the unit of their inputs; those of a Mul have one input each."""
    if node.op == "Mul":
        return np.broadcast_to(weights * unit, shape).reshape(-1, 1).astype(np.float64)
    factor = into_weights(node, unit)
    assert factor is not None
    return rows_of(node, weights * factor)
