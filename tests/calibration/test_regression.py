"""The regression of weights against small cases, and against what it promises."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import Array

from snncompiler.calibration import regression
from snncompiler.calibration.regression import Wanted, outputs, regressed


def coded(seed: int, positions: int, inputs: int, groups: int = 1) -> tuple[Array, Array]:
    """Rows of activations [G, P, K], and the same with few levels, too small on purpose."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((groups, positions, inputs)) @ rng.standard_normal((inputs, inputs))
    exact = np.maximum(mixed, 0).astype(np.float32)
    few = np.floor(exact / np.float32(0.8)) * np.float32(0.8)
    return exact, few


def test_inputs_that_are_right_leave_the_weights_alone() -> None:
    """To the rounding of float32 sums of 8 products of numbers up to some ten."""
    exact, _ = coded(0, 200, 8)
    rng = np.random.default_rng(1)
    matrix, bias = rng.standard_normal((5, 8), np.float32), rng.standard_normal(5, np.float32)
    values = outputs(exact, matrix, bias)
    found, shift = regressed(exact, matrix, bias, Wanted(values, np.zeros_like(values), True))
    np.testing.assert_allclose(found, matrix, atol=1e-5)
    np.testing.assert_allclose(shift, bias, atol=1e-4)


def test_inputs_of_half_the_size_need_weights_of_twice_the_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a ridge this is the exact solution; the constant part goes into the bias."""
    monkeypatch.setattr(regression, "RIDGE", 1e-9)
    exact, _ = coded(2, 500, 6)
    rng = np.random.default_rng(3)
    matrix, bias = rng.standard_normal((4, 6), np.float32), rng.standard_normal(4, np.float32)
    values = outputs(exact, matrix, bias)
    found, shift = regressed(
        exact / 2 + np.float32(1), matrix, bias, Wanted(values, np.zeros_like(values))
    )
    # Solved from float32 sums over 500 positions.
    np.testing.assert_allclose(found, 2 * matrix, atol=1e-3)
    np.testing.assert_allclose(shift, bias - 2 * matrix.sum(axis=1), atol=1e-2)


@pytest.mark.parametrize("groups", [1, 3])
def test_less_error_than_the_weights_of_the_ann_leave(groups: int) -> None:
    """A ridge never does worse than no change, on the positions that it sees; groups are apart."""
    exact, few = coded(4, 400, 6, groups)
    rng = np.random.default_rng(5)
    matrix = rng.standard_normal((2 * groups, 6), np.float32)
    bias = rng.standard_normal(2 * groups, np.float32)
    values, none = outputs(exact, matrix, bias), np.zeros((400, 2 * groups), np.float32)
    found, shift = regressed(few, matrix, bias, Wanted(values, none))
    before = np.square(outputs(few, matrix, bias) - values).sum(axis=0)
    left = np.square(outputs(few, found, shift) - values).sum(axis=0)
    assert (left < before).all()
    for group in range(groups):
        rows = slice(2 * group, 2 * group + 2)
        alone, its = regressed(
            few[group : group + 1], matrix[rows], bias[rows], Wanted(values[:, rows], none[:, rows])
        )
        # The same sums, perhaps in another order.
        np.testing.assert_allclose(alone, found[rows], atol=1e-5)
        np.testing.assert_allclose(its, shift[rows], atol=1e-4)


def test_behind_a_rectifier_only_what_it_lets_through_has_to_be_right() -> None:
    exact, few = coded(6, 3000, 6)
    rng = np.random.default_rng(7)
    matrix, bias = rng.standard_normal((4, 6), np.float32), np.full(4, -1.0, np.float32)
    values = outputs(exact, matrix, bias)
    none = np.zeros_like(values)

    def left(wanted: Wanted) -> float:
        given = outputs(few, *regressed(few, matrix, bias, wanted))
        sent, right = (np.clip(array, 0, wanted.cap) for array in (given, values))
        return float(np.square(sent - right).sum())

    assert left(Wanted(values, none, True)) < left(Wanted(values, none))
    capped = Wanted(values, none, True, cap=2.0)
    assert left(capped) < left(Wanted(values, none, cap=2.0))


def test_what_is_added_counts() -> None:
    """The layer makes up for the error of the other branch as far as its inputs tell of it."""
    exact, few = coded(8, 600, 6)
    rng = np.random.default_rng(9)
    matrix, bias = rng.standard_normal((3, 6), np.float32), np.zeros(3, np.float32)
    other = exact[0, :, :3]
    values = outputs(exact, matrix, bias) + other
    rough = np.floor(other)
    found, shift = regressed(few, matrix, bias, Wanted(values, rough))
    alone, its = regressed(few, matrix, bias, Wanted(values - other, np.zeros_like(other)))
    right = np.square(outputs(few, found, shift) + rough - values).sum()
    assert right < np.square(outputs(few, alone, its) + rough - values).sum()


def test_inputs_that_are_constant_tell_nothing() -> None:
    rows = np.ones((1, 50, 3), np.float32)
    matrix, bias = np.ones((2, 3), np.float32), np.zeros(2, np.float32)
    values = np.full((50, 2), 5.0, np.float32)
    found, shift = regressed(rows, matrix, bias, Wanted(values, np.zeros_like(values)))
    assert np.array_equal(found, matrix)
    assert shift.tolist() == [2.0, 2.0]
