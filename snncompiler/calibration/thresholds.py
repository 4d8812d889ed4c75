"""How thresholds follow from activations: each method a small strategy over one streaming histogram.

All of them read the ANN's activations only; the paper's own method (`vin-max`), which needs the running
spiking network, is in `snncompiler.calibration.charges`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from snncompiler.calibration.histogram import BINS, Histogram
from snncompiler.ir.settings import Options

#: Thresholds that `mmse` tries, as parts of the largest activation.
_MMSE_GRID = np.linspace(1.0, 0.02, 99)
#: Neighbouring bins that `mmse` joins: 512 levels are far finer than its grid.
_MMSE_JOIN = 4


#: θ of `headroom`, as a multiple of the largest activation (docs/explanation/levels.md).
HEADROOM = np.float32(1.25)
#: The same of `least_error`, and the parts of a step between them that are tried around the best.
_PARTS = np.linspace(1.0, 0.04, 49)
_BETWEEN = (-0.66, -0.33, 0.33, 0.66)
#: Up to so many levels neighbouring bins may be joined; more than the others bins don't resolve.
FEW_LEVELS, MOST_LEVELS = 31, 255


#: From what a layer was seen to do, and the options (percentile, tau, T) to θ, [C].
Strategy = Callable[[Histogram, Options], NDArray[np.float32]]


def largest(histogram: Histogram, options: Options) -> NDArray[np.float32]:
    """The largest activation seen, per channel: nothing is clipped."""
    return histogram.maximum


def headroom(histogram: Histogram, options: Options) -> NDArray[np.float32]:
    """More than the largest activation seen, per channel: other data may give larger ones."""
    return HEADROOM * histogram.maximum


def percentile(histogram: Histogram, options: Options) -> NDArray[np.float32]:
    """The given percentile of all activations, per channel."""
    return histogram.percentile(options.percentile)


def mmse(histogram: Histogram, options: Options) -> NDArray[np.float32]:
    """The θ that minimises E(a - clip(round(T·a/θ), 0, T)·θ/T)² for T steps, per channel.

    In layered time as `least_error` finds it.
    """
    if options.layered:
        return least_error(histogram, options.levels)
    levels = options.steps
    values = histogram.centres.reshape(histogram.channels, -1, _MMSE_JOIN).mean(axis=2)
    weights = histogram.counts.reshape(histogram.channels, -1, _MMSE_JOIN).sum(axis=2)
    best = histogram.maximum.astype(np.float64)
    error = np.full(histogram.channels, np.inf)
    for part in _MMSE_GRID:
        theta = histogram.maximum.astype(np.float64)[:, None] * part
        safe = np.where(theta > 0, theta, 1.0)
        decoded = np.clip(np.floor(levels * values / safe + 0.5), 0, levels) * theta / levels
        here = (weights * np.square(values - decoded)).sum(axis=1)
        better = here < error
        best[better], error[better] = theta[better, 0], here[better]
    return best.astype(np.float32)


def least_error(histogram: Histogram, levels: int) -> NDArray[np.float32]:
    """The θ with the least E(a - θ/L·clip(floor(L·a/θ + 1/2), 0, L))² for L levels, per channel.

    Tried are _PARTS of the largest activation, then what lies between the best and its neighbours.
    More than MOST_LEVELS levels are finer than the histogram; θ is then that for so many.
    """
    largest_ = histogram.maximum.astype(np.float64)
    count = min(levels, MOST_LEVELS)
    join = 1 if count > FEW_LEVELS else _MMSE_JOIN
    shape = (histogram.channels, -1, join)
    values = histogram.centres.reshape(shape).mean(axis=2)
    weights = histogram.counts.reshape(shape).sum(axis=2).astype(np.float64)
    used = int(np.nonzero(weights.any(axis=0))[0].max(initial=-1)) + 1
    values, weights = values[:, :used], weights[:, :used]

    def left(theta: NDArray[np.float64]) -> NDArray[np.float64]:
        quantum = np.where(theta > 0, theta, 1.0)[:, None] / count
        sent = np.clip(np.floor(values / quantum + 0.5), 0, count) * quantum
        error: NDArray[np.float64] = (weights * np.square(values - sent)).sum(axis=1)
        return error

    best, error = largest_.copy(), left(largest_)
    step = _PARTS[0] - _PARTS[1]
    for part in _PARTS[1:]:
        here = left(largest_ * part)
        better = here < error
        best[better], error[better] = (largest_ * part)[better], here[better]
    middle = best.copy()
    for aside in _BETWEEN:
        theta = np.minimum(middle + aside * step * largest_, largest_)
        here = left(theta)
        better = here < error
        best[better], error[better] = theta[better], here[better]
    return best.astype(np.float32)


def balance(histogram: Histogram, options: Options) -> NDArray[np.float32]:
    """Local threshold balancing in the limit of small updates, per channel.

    Integrates dθ/dτ = 2·E[(x - θ)·1(x > θ)] from θ = 0 to τ.  Its only fixed point is the maximum, so
    τ is the method's parameter: the number of updates times their rate.  (Local threshold balancing:
    CVPR 2025, where θ follows from a number of stochastic updates.)
    """
    excess, edges = histogram.excess(), histogram.edges
    before, after = excess[:, :-1], excess[:, 1:]
    slope = (before - after) / np.diff(edges, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        # The excess is taken as linear between two edges: the time from one to the next.  It falls
        # wherever there is any.
        spent = np.where(before <= 0, np.inf, np.log(before / after) / (2 * slope))
        total = np.concatenate([np.zeros((histogram.channels, 1)), np.cumsum(spent, axis=1)], 1)
        at = np.minimum((total <= options.tau).sum(axis=1) - 1, BINS - 1)
        rows = np.arange(histogram.channels)
        start, rate, left = before[rows, at], slope[rows, at], options.tau - total[rows, at]
        inside = start * -np.expm1(-2 * rate * left) / rate
    theta = edges[rows, at] + np.where(start > 0, inside, 0.0)
    return np.asarray(np.minimum(theta, histogram.maximum), np.float32)


STRATEGIES: dict[str, Strategy] = {
    "max": largest,
    "headroom": headroom,
    "percentile": percentile,
    "mmse": mmse,
    "balance": balance,
}
