"""Weights as whole numbers, rounded so that the errors of one input make up for those of others.

A row of weights w is rounded to ŵ = s·n with n whole.  What counts is not |w - ŵ| but what the layer
gives: with the Gram matrix H = Σ x·xᵀ of the layer's inputs, the squared error of the output is
(w - ŵ)·H·(w - ŵ)ᵀ.  Weights are rounded one input after the other; the error of each is fed back into
the inputs that are still to come, in the way that is best for this measure.

The step is that of the Optimal Brain Surgeon (Hassibi, Stork, 1993), applied to rounding by OBQ
(Frantar, Singh, Alistarh, "Optimal Brain Compression", 2022).  All rows take the same order here, so
that the steps of all inputs come from one Cholesky decomposition; this is GPTQ (Frantar, Ashkboos,
Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
2022, algorithm 1).

Everything is computed in float64 and in a fixed order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

#: What is added to the diagonal of a Gram matrix, as a part of its mean: inputs that are silent or
#: copies of each other would leave it without an inverse (GPTQ's "percdamp").
DAMPING = 0.01
#: Scales that are tried for a row, as parts of the scale with which its largest weight just fits.
FRACTIONS = np.linspace(0.3, 1.0, 29)
#: Inputs whose feedback to all inputs behind them is added at once.
_BLOCK = 128
#: A triangle of this size is inverted at once.
_INVERTED = 64


def nearest(weights: Floats, scales: ArrayLike, largest: ArrayLike) -> Floats:
    """Every weight for itself as a whole number of its row's scale, at most `largest` in size.

    weights: [..., O, K].  scales, largest: one number, or [..., O] for the rows.  Halves go up.
    """
    units = np.asarray(weights, np.float64) / _by_row(scales)
    return np.clip(np.floor(units + 0.5), -_by_row(largest), _by_row(largest))


def with_feedback(
    weights: Floats,
    gram: Floats,
    scales: ArrayLike,
    largest: ArrayLike,
    damping: float = DAMPING,
) -> Floats:
    """Weights as whole numbers of their row's scale, at most `largest` in size, by error feedback.

    weights: [O, K], or [G·O, K] for G groups of inputs, whose rows are one behind the other.
    gram: H of the inputs, [K, K] or [G, K, K], symmetric and positive semidefinite.
    scales, largest: one number, or one for each row of `weights`.
    Inputs are rounded in the order of falling diag(H), those that are equal in their own order.  Where
    H is diagonal the result is that of `nearest`.
    """
    values = np.array(weights, np.float64)
    grams = _grams(gram, values)
    groups, size = len(grams), values.shape[-1]
    rows = values.reshape(groups, -1, size)
    scale = np.broadcast_to(np.asarray(scales, np.float64), len(values)).reshape(groups, -1)
    most = np.broadcast_to(np.asarray(largest, np.float64), len(values)).reshape(groups, -1)
    order = np.argsort(-np.diagonal(grams, axis1=1, axis2=2), axis=1, kind="stable")
    units = np.take_along_axis(rows, order[:, None], axis=2) / scale[..., None]
    feedback = _feedback(grams, order, damping)
    whole = np.empty_like(units)
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        errors = np.empty_like(units[:, :, start:stop])
        for at in range(start, stop):
            column = units[:, :, at]
            whole[:, :, at] = np.clip(np.floor(column + 0.5), -most, most)
            errors[:, :, at - start] = column - whole[:, :, at]
            units[:, :, at + 1 : stop] -= (
                errors[:, :, at - start, None] * feedback[:, None, at, at + 1 : stop]
            )
        units[:, :, stop:] -= errors @ feedback[:, start:stop, stop:]
    result = np.empty_like(whole)
    np.put_along_axis(result, order[:, None], whole, axis=2)
    return result.reshape(values.shape)


def best_scales(
    weights: Floats,
    gram: Floats,
    largest: int,
    least: ArrayLike = 0.0,
    most: ArrayLike = np.inf,
) -> Floats:
    """For each row the scale with which rounding to the nearest leaves the least (w - ŵ)·H·(w - ŵ)ᵀ.

    weights, gram: as for `with_feedback`.  Tried are FRACTIONS of max|w| / largest; a small scale clips
    the largest weights and resolves the others.  least, most: bounds of the scales, one number or one
    for each row; `least` goes before `most`.  A row of zeros, or of weights too small to divide by, has
    the scale of the layer's largest weight.  Returns [O], positive.
    """
    values = np.asarray(weights, np.float64)
    grams = _grams(gram, values)
    top = np.abs(values).max(axis=1, initial=0.0)
    layer = top.max(initial=0.0)
    top = np.where(top > np.finfo(np.float32).eps * layer, top, layer if layer > 0 else 1.0)
    best = np.empty(len(values))
    smallest = np.full(len(values), np.inf)
    for fraction in FRACTIONS[::-1]:
        scale = np.maximum(np.minimum(fraction * top / largest, most), least)
        left = output_error(values - nearest(values, scale, largest) * scale[:, None], grams)
        better = left < smallest
        best[better], smallest[better] = scale[better], left[better]
    return best


def output_error(differences: Floats, gram: Floats) -> Floats:
    """d·H·dᵀ of every row d of differences [O, K] (or [G·O, K]): [O]."""
    grams = _grams(gram, differences)
    rows = differences.reshape(len(grams), -1, differences.shape[-1])
    errors: Floats = ((rows @ grams) * rows).sum(axis=2).reshape(-1)
    return errors


def _by_row(numbers: ArrayLike) -> Floats:
    """One number, or one for each row, so that it broadcasts to the rows."""
    array = np.asarray(numbers, np.float64)
    return array[..., None] if array.ndim else array


def _grams(gram: Floats, weights: Floats) -> Floats:
    """The Gram matrices as [G, K, K].  Raises ValueError where they don't fit the weights."""
    array = np.asarray(gram, np.float64)
    array = array if array.ndim == 3 else array[None]
    rows, size = weights.shape
    if array.shape[1:] != (size, size) or rows % len(array):
        raise ValueError(f"Gram matrices {array.shape} don't fit weights {weights.shape}")
    return array


def _feedback(grams: Floats, order: NDArray[np.int64], damping: float) -> Floats:
    """[G, K, K], strictly above the diagonal: by how much an error of 1 of the input in the row changes
    the inputs behind it, in the given order.

    With the damped H⁻¹ = Uᵀ·U, U upper triangular, this is U_ij / U_ii.  U is the inverse of R, the
    upper triangle with H = R·Rᵀ: the Cholesky decomposition from the last input on.
    """
    rows = np.take_along_axis(grams, order[:, :, None], axis=1)
    sorted_ = np.take_along_axis(rows, order[:, None, :], axis=2)
    diagonal = np.arange(sorted_.shape[1])
    mean = sorted_[:, diagonal, diagonal].mean(axis=1)
    # Without any input every rounding is as good: feed nothing back.
    sorted_[:, diagonal, diagonal] += np.where(mean > 0, damping * mean, 1.0)[:, None]
    root = np.linalg.cholesky(sorted_[:, ::-1, ::-1])[:, ::-1, ::-1]
    inverse = _inverse(np.asarray(root, np.float64))
    inverse /= inverse[:, diagonal, diagonal][:, :, None].copy()
    inverse[:, diagonal, diagonal] = 0.0
    return inverse


def _inverse(upper: Floats) -> Floats:
    """The inverses of upper triangles [G, K, K], by halves: most of it is products of matrices."""
    size = upper.shape[1]
    result = np.zeros(upper.shape)
    if size <= _INVERTED:
        result[:] = np.triu(np.linalg.inv(upper))
        return result
    half = size // 2
    first, last = _inverse(upper[:, :half, :half]), _inverse(upper[:, half:, half:])
    result[:, :half, :half], result[:, half:, half:] = first, last
    result[:, :half, half:] = -first @ upper[:, :half, half:] @ last
    return result
