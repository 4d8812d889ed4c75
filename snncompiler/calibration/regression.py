"""The weights and the bias with which a layer gives what the ANN's layer gives, on coded inputs.

Spikes give a layer other inputs than the ANN gives it, and these differences are not noise: they depend
on the inputs.  So part of what they do to the output can be undone by other weights.  Which ones is a
linear regression, solved in closed form from the Gram matrix of the inputs; a ridge keeps them near
the ANN's (Hoerl, Kennard, "Ridge Regression", 1970).

Where a rectifier follows, only what it lets through has to be right.  So a second regression asks
nothing of an output that is below 0 both in the ANN and in the prediction of the first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snncompiler.calibration.gram import Gram

Floats = NDArray[np.float64]

#: The ridge, as a part of the mean of the Gram matrix's diagonal, and by how much it grows with the
#: number of inputs for each position seen (docs/explanation/levels.md).
RIDGE = 0.3
RIDGE_PER_INPUT = 10.0


@dataclass(frozen=True)
class Wanted:
    """What is asked of the outputs of a layer at P positions.

    values: of the ANN, [P, O].  added: what is added to the layer's output before it is compared,
    [P, O].  rectified: whether a rectifier follows at once, and nothing else reads the values.
    cap: its upper bound, infinite for a plain ReLU.
    """

    values: NDArray[np.float32]
    added: NDArray[np.float32]
    rectified: bool = False
    cap: float = np.inf

    def given(self, predicted: NDArray[np.float32]) -> NDArray[np.float32]:
        """The values that are asked for where a prediction is at hand."""
        allowed = np.where(self.values > 0, self.values, np.minimum(predicted, np.float32(0)))
        if np.isfinite(self.cap):
            above = np.maximum(predicted, np.float32(self.cap))
            allowed = np.where(self.values > self.cap, above, allowed)
        return allowed


def regressed(
    rows: NDArray[np.float32],
    matrix: NDArray[np.float32],
    bias: NDArray[np.float32],
    wanted: Wanted,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights [O, K] and bias [O] that give the least squared error with a ridge.

    rows: inputs of G groups at P positions, [G, P, K].  matrix, bias: those of the ANN, from which the
    ridge holds the weights back; the bias is free.
    """
    gram = Gram.empty(rows.shape[0], rows.shape[2])
    gram.add(rows)
    count, size = gram.count, rows.shape[2]
    system = gram.centred
    diagonal = np.arange(size)
    mean = system[:, diagonal, diagonal].mean(axis=1)
    ridge = RIDGE * (1 + RIDGE_PER_INPUT * size / count) * mean
    # Where all inputs are constant no weights are better than those there are.
    system[:, diagonal, diagonal] += np.where(ridge > 0, ridge, 1.0)[:, None]
    base = outputs(rows, matrix, bias) + wanted.added
    target = wanted.values
    change: Floats = np.zeros(matrix.shape)
    shift: Floats = np.zeros(bias.shape)
    for _ in range(2 if wanted.rectified else 1):
        left = target - base
        middle = left.mean(axis=0, dtype=np.float64)
        centred = np.asarray(left - middle, np.float32)
        products = _products(rows, centred, gram)
        solved = np.asarray(np.linalg.solve(system, products), np.float64)
        change = solved.transpose(0, 2, 1).reshape(matrix.shape)
        shift = middle - _of_mean(change, gram)
        if wanted.rectified:
            target = wanted.given(np.asarray(base + outputs(rows, change, shift), np.float32))
    return np.asarray(matrix + change, np.float32), np.asarray(bias + shift, np.float32)


def outputs(
    rows: NDArray[np.float32], matrix: NDArray[np.floating], bias: NDArray[np.floating]
) -> NDArray[np.float32]:
    """What a layer gives at P positions, [P, O]."""
    groups, positions, size = rows.shape
    grouped = np.asarray(matrix, np.float32).reshape(groups, -1, size)
    given = rows @ grouped.transpose(0, 2, 1)  # [G, P, O/G]
    return given.transpose(1, 0, 2).reshape(positions, -1) + np.asarray(bias, np.float32)


def _products(rows: NDArray[np.float32], left: NDArray[np.float32], gram: Gram) -> Floats:
    """Σ (x - mean)·r of every group, [G, K, O/G]; r [P, O] has mean 0."""
    groups, positions, _ = rows.shape
    grouped = left.reshape(positions, groups, -1).transpose(1, 0, 2)
    products = (rows.transpose(0, 2, 1) @ grouped).astype(np.float64)
    # float32 leaves a little of the mean.
    rest = grouped.sum(axis=1, dtype=np.float64)
    return np.asarray(products - gram.mean[:, :, None] * rest[:, None, :])


def _of_mean(change: Floats, gram: Gram) -> Floats:
    """What a change of the weights [O, K] gives for the mean input, [O]."""
    groups, size = gram.mean.shape
    grouped = change.reshape(groups, -1, size)
    return np.asarray(np.einsum("gok,gk->go", grouped, gram.mean).reshape(-1))
