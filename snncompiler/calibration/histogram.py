"""Streaming histograms of activations: one pass over the data, any number of threshold strategies."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

#: Histogram bins per channel.  The range is a power of two above the maximum, so that a bin is at
#: most 1/1024 of the maximum wide: an error of 0.1 % in θ, far below what moves an accuracy.
BINS = 2048


@dataclass
class Histogram:
    """Streaming histogram of the non-negative activations of every channel of one layer.

    The range [0, 2^exponent) of a channel grows by doubling, merging bins in pairs.  Bin edges depend
    on the final range alone, so the result does not depend on the order or the batches of the data.
    """

    channels: int
    #: Of the range, per channel; meaningless where the maximum is 0.
    exponent: NDArray[np.int64] = field(init=False)
    counts: NDArray[np.int64] = field(init=False)
    #: Values per channel, zeros included.
    total: int = 0
    maximum: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        self.exponent = np.zeros(self.channels, np.int64)
        self.counts = np.zeros((self.channels, BINS), np.int64)
        self.maximum = np.zeros(self.channels, np.float32)

    def add(self, activations: NDArray[np.float32]) -> None:
        """Add activations [N, C, ...] (or [N] of one channel)."""
        by_channel = activations.reshape(activations.shape[0], self.channels, -1)
        rows = np.moveaxis(by_channel, 1, 0).reshape(self.channels, -1)
        top = rows.max(axis=1, initial=0.0)
        if not np.isfinite(top).all() or np.isnan(rows).any():
            raise ValueError("an activation is infinite or not a number")
        self.total += rows.shape[1]
        # top < 2^exponent strictly.
        needed = np.frexp(top)[1].astype(np.int64)
        fresh = (self.maximum == 0) & (top > 0)
        self.exponent[fresh] = needed[fresh]
        self.maximum = np.maximum(self.maximum, top)
        self._widen(np.where(top > 0, needed, self.exponent))
        channel, place = np.nonzero(rows > 0)
        # By powers of two, which is exact and does not overflow.
        shift = BINS.bit_length() - 1 - self.exponent[channel]
        bins = np.ldexp(rows[channel, place].astype(np.float64), shift).astype(np.int64)
        np.minimum(bins, BINS - 1, out=bins)
        flat = np.bincount(channel * BINS + bins, minlength=self.channels * BINS)
        self.counts += flat.reshape(self.channels, BINS)

    def plus(self, other: Histogram) -> Histogram:
        """The histogram of the values of both.  Raises ValueError where their channels differ."""
        if self.channels != other.channels:
            raise ValueError(f"there are {self.channels} and {other.channels} channels")
        both = Histogram(self.channels, self.total + other.total)
        both.maximum = np.maximum(self.maximum, other.maximum)
        # A channel that was always 0 has no range yet.
        ranges = [
            np.where(one.maximum > 0, one.exponent, np.iinfo(np.int64).min) for one in (self, other)
        ]
        both.exponent = np.where(both.maximum > 0, np.maximum(*ranges), 0)
        for one in (self, other):
            wide = Histogram(self.channels)
            wide.counts = one.counts.copy()
            wide.exponent = np.where(one.maximum > 0, one.exponent, both.exponent)
            wide._widen(both.exponent)
            both.counts += wide.counts
        return both

    def _widen(self, needed: NDArray[np.int64]) -> None:
        """Double ranges until every exponent is at least the needed one."""
        while (short := self.exponent < needed).any():
            merged = self.counts[short].reshape(-1, BINS // 2, 2).sum(axis=2)
            self.counts[short] = np.concatenate([merged, np.zeros_like(merged)], axis=1)
            self.exponent[short] += 1

    def pooled(self) -> Histogram:
        """The histogram of the whole layer as one channel."""
        alive = self.maximum > 0
        one = Histogram(1, self.total * self.channels)
        if not alive.any():
            return one
        common = Histogram(self.channels)
        common.counts, common.exponent = self.counts.copy(), self.exponent.copy()
        widest = self.exponent[alive].max()
        common._widen(np.where(alive, widest, self.exponent))
        one.exponent[:] = widest
        one.counts = common.counts[alive].sum(axis=0, keepdims=True)
        one.maximum = self.maximum.max(keepdims=True)
        return one

    def percentile(self, percent: float) -> NDArray[np.float32]:
        """The activation below which `percent` of all values (zeros included) lie, per channel.

        Linear within a bin; never above the maximum; 0 where so many values are 0.
        """
        # How many of the largest values lie above it.
        above = self.total * (1.0 - percent / 100.0)
        tail = np.cumsum(self.counts[:, ::-1], axis=1)[:, ::-1]
        result = np.zeros(self.channels, np.float64)
        for channel in range(self.channels):
            # The last bin with more than `above` values at or beyond its lower edge.
            reached = np.nonzero(tail[channel] > above)[0]
            if reached.size:
                at = int(reached[-1])
                beyond = tail[channel, at] - self.counts[channel, at]
                inside = (above - beyond) / self.counts[channel, at]
                result[channel] = (at + 1 - inside) * self._width[channel, 0]
        return np.minimum(result, self.maximum).astype(np.float32)

    @property
    def centres(self) -> NDArray[np.float64]:
        """The middle of every bin, [C, BINS]."""
        return np.asarray((np.arange(BINS) + 0.5) * self._width, np.float64)

    @property
    def edges(self) -> NDArray[np.float64]:
        """The edges of the bins, [C, BINS + 1]."""
        return np.asarray(np.arange(BINS + 1) * self._width, np.float64)

    @property
    def _width(self) -> NDArray[np.float64]:
        """The width of a bin, [C, 1]."""
        return np.ldexp(1.0 / BINS, self.exponent)[:, None]

    def excess(self) -> NDArray[np.float64]:
        """E[(x - θ)·1(x > θ)] for θ at every edge of the bins, zeros included, [C, BINS + 1].

        Values count as spread evenly over their bin.
        """
        beyond = np.zeros((self.channels, BINS + 1))
        beyond[:, :-1] = np.cumsum(self.counts[:, ::-1], axis=1)[:, ::-1]
        # Between two edges the integral of the tail: a trapezoid, as the tail is linear there.
        parts = (beyond[:, 1:] + beyond[:, :-1]) * (self._width / 2)
        excess = np.zeros((self.channels, BINS + 1))
        excess[:, :-1] = np.cumsum(parts[:, ::-1], axis=1)[:, ::-1]
        return np.asarray(excess / max(self.total, 1), np.float64)
