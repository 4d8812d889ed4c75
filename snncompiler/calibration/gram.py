"""What a linear layer reads, as rows of a matrix, and what such rows add up to.

Every output position of a convolution is the product of its weights with a row of inputs: those under
its kernel.  So a convolution of any kind is a matrix, W [O, K], times the rows X [P, K] of P positions,
for each of its groups.  Two sums over rows say all that a change of the weights needs to know: the Gram
matrix Σ x·xᵀ and Σ x.  Sums of parts of the data are added up to those of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snncompiler.ir.operators import record
from snncompiler.ir.synapses import Axis, axes_of

Array = NDArray[Any]
Floats = NDArray[np.float64]

#: Rows whose products are summed at once in float32, before they go into the float64 sum.  So whole
#: numbers up to 64, as spikes are, are summed exactly.
_ROWS = 4096


@dataclass(frozen=True)
class Reading:
    """How a layer with constant weights reads its input.

    layout: of the weights (`ir.operators`).  shape: of the weights.  groups: G, of inputs and outputs.
    axes: of a convolution, one for each spatial axis; none for a matrix.

    A row has K = taps · (C / G) inputs, with the channels innermost.
    """

    layout: str
    shape: tuple[int, ...]
    groups: int = 1
    axes: tuple[Axis, ...] = ()

    @staticmethod
    def of(op: str, attributes: Mapping[str, Any], shape: Sequence[int]) -> Reading | None:
        """Of an operator whose input 1 are weights of this shape, None where it is no such matrix: an
        Einsum, a Gemm with other attributes, a product with a stack of matrices."""
        layout = record(op).weights
        if layout == "matrix":
            return None if len(shape) != 2 or attributes else Reading(layout, tuple(shape))
        if layout not in ("outputs-first", "inputs-first") or len(shape) < 3:
            return None
        axes = axes_of(shape[2:], attributes, transposed=layout == "inputs-first")
        return Reading(layout, tuple(shape), int(attributes.get("group", 1)), axes)

    @property
    def outputs(self) -> int:
        """O, the output channels of all groups."""
        if self.layout == "inputs-first":
            return self.shape[1] * self.groups
        return self.shape[1 if self.layout == "matrix" else 0]

    @property
    def inputs(self) -> int:
        """K, the inputs of one group."""
        if self.layout == "matrix":
            return self.shape[0]
        channels = self.shape[1 if self.layout == "outputs-first" else 0]
        if self.layout == "inputs-first":
            channels //= self.groups
        return channels * prod(self.shape[2:])

    @property
    def axis(self) -> int:
        """The axis of the channels, of inputs and outputs."""
        return -1 if self.layout == "matrix" else 1

    def matrix(self, weights: Array) -> Array:
        """Weights as the node has them, as [O, K]: the rows of a group one behind the other."""
        if self.layout == "matrix":
            return np.ascontiguousarray(weights.T)
        if self.layout == "inputs-first":  # [C, O/G, ...]
            grouped = weights.reshape(self.groups, -1, *self.shape[1:])
            weights = np.moveaxis(grouped, 1, 2).reshape(self.outputs, -1, *self.shape[2:])
        return np.ascontiguousarray(np.moveaxis(weights, 1, -1)).reshape(self.outputs, -1)

    def weights(self, matrix: Array) -> Array:
        """Back from [O, K] to the weights of the node."""
        if self.layout == "matrix":
            return np.ascontiguousarray(matrix.T)
        spread = matrix.reshape(self.outputs, *self.shape[2:], -1)
        weights = np.moveaxis(spread, -1, 1)  # [O, C/G, ...]
        if self.layout == "inputs-first":
            grouped = weights.reshape(self.groups, -1, *weights.shape[1:])
            weights = np.moveaxis(grouped, 2, 1).reshape(self.shape)
        return np.ascontiguousarray(weights)

    def positions(self, shape: Sequence[int]) -> int:
        """How many output positions an input of this shape gives, over all its samples."""
        if self.layout == "matrix":
            return prod(shape[:-1])
        spatial = zip(self.axes, shape[2:], strict=True)
        return shape[0] * prod(len(axis.taps(size)) for axis, size in spatial)

    def rows(self, values: Array, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """What the output positions `places` [P] read of an input [N, C, ...], or [..., K] of a matrix:
        [G, P, K].  Positions are counted over samples and spatial axes together."""
        if self.layout == "matrix":
            taken = values.reshape(-1, self.shape[0])[places]
            return np.asarray(taken, np.float32)[None]
        samples, channels, *sizes = values.shape
        inside = prod(sizes)
        # One more place for what is read in the padding.
        flat = np.zeros((samples, inside + 1, channels), np.float32)
        flat[:, :inside] = values.reshape(samples, channels, inside).transpose(0, 2, 1)
        taps = self._taps(sizes)
        sample, place = np.divmod(places, len(taps))
        read = sample[:, None] * (inside + 1) + taps[place]
        rows = flat.reshape(-1, channels).take(read, axis=0)  # [P, taps, C]
        split = rows.reshape(len(places), -1, self.groups, channels // self.groups)
        return np.ascontiguousarray(np.moveaxis(split, 2, 0)).reshape(self.groups, len(places), -1)

    def _taps(self, sizes: Sequence[int]) -> NDArray[np.int64]:
        """Which place of a sample each output position reads with each tap, [positions, taps]; one
        behind the last where that is none."""
        flat, valid = np.zeros((1, 1), np.int64), np.ones((1, 1), bool)
        for axis, size in zip(self.axes, sizes, strict=True):
            read = axis.taps(size)
            joined = flat[:, None, :, None] * size + read[None, :, None, :]
            inside = valid[:, None, :, None] & (read >= 0)[None, :, None, :]
            shape = (len(flat) * len(read), flat.shape[1] * axis.kernel)
            flat, valid = joined.reshape(shape), inside.reshape(shape)
        return np.where(valid, flat, prod(sizes))


def of_positions(values: Array, axis: int, places: NDArray[np.int64]) -> Array:
    """The values of all channels at some positions, [P, C], of an array whose channels are `axis`, 1 or
    -1.  Positions are counted over all other axes together."""
    if axis == -1:
        return values.reshape(-1, values.shape[-1])[places]
    split = values.reshape(values.shape[0], values.shape[1], -1)
    sample, place = np.divmod(places, split.shape[2])
    return split[sample, :, place]


@dataclass
class Gram:
    """Σ x·xᵀ [G, K, K], Σ x [G, K] and the number of rows of each group."""

    products: Floats
    sums: Floats
    count: int = 0

    @staticmethod
    def empty(groups: int, size: int) -> Gram:
        return Gram(np.zeros((groups, size, size)), np.zeros((groups, size)))

    def add(self, rows: Array) -> None:
        """Add rows [G, P, K]."""
        for at in range(0, rows.shape[1], _ROWS):
            part = np.asarray(rows[:, at : at + _ROWS], np.float32)
            if len(part) == 1:
                # Of one matrix numpy computes one half only.
                self.products[0] += part[0].T @ part[0]
            else:
                self.products += part.transpose(0, 2, 1) @ part
            self.sums += part.sum(axis=1, dtype=np.float64)
        self.count += rows.shape[1]

    def merge(self, other: Gram) -> Gram:
        """The sums over both."""
        products, sums = self.products + other.products, self.sums + other.sums
        return Gram(products, sums, self.count + other.count)

    @property
    def mean(self) -> Floats:
        """[G, K]."""
        return self.sums / max(self.count, 1)

    @property
    def centred(self) -> Floats:
        """Σ (x - mean)·(x - mean)ᵀ, [G, K, K]."""
        mean = self.mean
        return self.products - self.count * mean[:, :, None] * mean[:, None, :]
