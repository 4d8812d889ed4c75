"""Rounding by error feedback, against small cases worked out by hand and against its definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from helpers import Array
from hypothesis import given, settings
from hypothesis import strategies as st

from snncompiler.calibration import rounding
from snncompiler.calibration.rounding import best_scales, nearest, output_error, with_feedback


def gram_of(seed: int, size: int, positions: int, groups: int = 0) -> Array:
    """The Gram matrix of correlated inputs that are never negative, as spikes are."""
    rng = np.random.default_rng(seed)
    shape = (groups or 1, positions, size)
    mixed = rng.standard_normal(shape) @ rng.standard_normal((size, size)) / size**0.5
    inputs = np.maximum(mixed + 0.3, 0)
    grams = inputs.transpose(0, 2, 1) @ inputs
    return grams if groups else grams[0]


def one_by_one(weights: Array, gram: Array, scale: Array, largest: int, damping: float) -> Array:
    """The definition: round an input, then set all inputs to come to the minimum of the error, given
    what was rounded (OBQ), for one row at a time and without any decomposition."""
    damped = gram + damping * np.diag(gram).mean() * np.eye(len(gram))
    order = np.argsort(-np.diag(gram), kind="stable")
    whole = np.zeros(weights.shape)
    for row, (original, unit) in enumerate(zip(weights, scale, strict=True)):
        current = original / unit
        for step, at in enumerate(order):
            whole[row, at] = np.clip(np.floor(current[at] + 0.5), -largest, largest)
            rest = order[step + 1 :]
            if len(rest):
                error = original / unit - whole[row]
                done = order[: step + 1]
                # The minimum over what is left, given the errors so far.
                push = damped[np.ix_(rest, done)] @ error[done]
                left = np.linalg.solve(damped[np.ix_(rest, rest)], -push)
                current[rest] = original[rest] / unit - left
    return whole


def test_two_inputs_that_always_come_together() -> None:
    """Only the sum of the two weights counts, so the second makes up for the first."""
    gram = np.ones((2, 2))
    weights = np.array([[0.4, 0.4], [1.4, -0.6], [0.3, 0.3]])
    whole = with_feedback(weights, gram, 1.0, 127, damping=1e-9)
    assert whole.tolist() == [[0, 1], [1, 0], [0, 1]]
    assert nearest(weights, 1.0, 127).tolist() == [[0, 0], [1, -1], [0, 0]]


def test_the_input_that_is_met_most_goes_first() -> None:
    """Its error goes into the rarer one: 1/4 of it, as they meet once in four times."""
    gram = np.array([[1.0, 1.0], [1.0, 4.0]])
    # 0.4 -> 0, and the first becomes 0.2 + 0.4·1; in their own order it would stay at 0.
    assert with_feedback(np.array([[0.2, 0.4]]), gram, 1.0, 7, damping=0.0).tolist() == [[1, 0]]


@pytest.mark.parametrize("seed", range(4))
def test_it_is_what_its_definition_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights, scales = rng.standard_normal((5, 12)), rng.uniform(0.05, 0.3, 5)
    gram = gram_of(seed, 12, 40)
    whole = with_feedback(weights, gram, scales, 15)
    assert np.array_equal(whole, one_by_one(weights, gram, scales, 15, rounding.DAMPING))


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_inputs_that_never_meet_are_rounded_to_the_nearest(seed: int, size: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((rows, size))
    # Some inputs are silent.
    gram = np.diag(rng.uniform(0, 1, size) * (rng.uniform(0, 1, size) > 0.2))
    scales = rng.uniform(0.01, 1, rows)
    expected = nearest(weights, scales, 7)
    assert np.array_equal(with_feedback(weights, gram, scales, 7), expected)


def test_groups_are_rounded_each_with_its_own_inputs() -> None:
    rng = np.random.default_rng(0)
    weights, grams = rng.standard_normal((6, 9)), gram_of(0, 9, 30, groups=3)
    scales = rng.uniform(0.05, 0.2, 6)
    together = with_feedback(weights, grams, scales, 7)
    for group, gram in enumerate(grams):
        rows = slice(2 * group, 2 * group + 2)
        alone = with_feedback(weights[rows], gram, scales[rows], 7)
        assert np.array_equal(together[rows], alone)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    weights, gram = rng.standard_normal((4, 150)), gram_of(3, 150, 400)
    whole = with_feedback(weights, gram, 0.05, 127)
    monkeypatch.setattr(rounding, "_BLOCK", 150)
    monkeypatch.setattr(rounding, "_INVERTED", 150)
    assert np.array_equal(with_feedback(weights, gram, 0.05, 127), whole)


def test_no_number_is_above_the_largest_of_its_row() -> None:
    rng = np.random.default_rng(1)
    weights, gram = rng.standard_normal((3, 20)), gram_of(1, 20, 60)
    largest = np.array([1, 7, 127])
    whole = with_feedback(weights, gram, 0.01, largest)
    assert (np.abs(whole).max(axis=1) <= largest).all()
    assert np.abs(whole[0]).max() == 1
    assert np.array_equal(whole, np.floor(whole))


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_it_leaves_less_error_than_the_nearest_numbers(bits: int) -> None:
    """Not for every row of every layer, as it looks no input ahead; but for these layers as a whole, at
    less than two thirds."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        weights, gram = rng.standard_normal((16, 48)), gram_of(seed, 48, 300)
        largest = 2 ** (bits - 1) - 1
        scales = np.abs(weights).max(axis=1) / largest
        left = {
            find: output_error(weights - whole * scales[:, None], gram).sum()
            for find, whole in (
                ("nearest", nearest(weights, scales, largest)),
                ("feedback", with_feedback(weights, gram, scales, largest)),
            )
        }
        assert left["feedback"] < left["nearest"] * 2 / 3


def test_of_all_roundings_it_finds_one_near_the_best() -> None:
    """Three inputs, each rounded up or down: the best of all eight leaves at least half of what is left
    here, on these seeds."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        weights, gram = rng.uniform(-2, 2, (1, 3)), gram_of(seed, 3, 20)
        found = float(output_error(weights - with_feedback(weights, gram, 1.0, 7), gram)[0])
        every = np.array(list(itertools.product((0, 1), repeat=3))) + np.floor(weights)
        best = output_error(weights - every, gram).min()
        assert best <= found * (1 + 1e-12) and found <= 2 * best + 1e-12


def test_a_layer_that_receives_nothing_is_rounded_to_the_nearest() -> None:
    weights = np.random.default_rng(0).standard_normal((3, 5))
    none = np.zeros((5, 5))
    assert np.array_equal(with_feedback(weights, none, 0.1, 127), nearest(weights, 0.1, 127))


def test_the_scale_of_a_row_is_the_best_of_those_tried() -> None:
    rng = np.random.default_rng(5)
    weights, gram = rng.standard_normal((6, 20)) ** 3, gram_of(5, 20, 60)
    scales = best_scales(weights, gram, 7)
    top = np.abs(weights).max(axis=1) / 7

    def left(scale: Array) -> Array:
        return output_error(weights - nearest(weights, scale, 7) * scale[:, None], gram)

    tried = np.stack([left(fraction * top) for fraction in rounding.FRACTIONS])
    # The products that make a scale may be rounded in another order.
    np.testing.assert_allclose(left(scales), tried.min(axis=0), rtol=1e-9)
    # Heavy tails are clipped.
    assert (scales < top).any()


def test_rows_of_zeros_and_bounds_of_the_scale() -> None:
    weights = np.array([[0.0, 0.0], [1e-30, 0.0], [1.0, -7.0]])
    gram = np.eye(2)
    scales = best_scales(weights, gram, 7)
    assert (scales[:2] >= 0.3 * 1 - 1e-12).all() and scales[2] == 1.0
    assert best_scales(weights, gram, 7, least=2.0).tolist() == [2.0, 2.0, 2.0]
    assert best_scales(weights, gram, 7, most=[0.5, 0.5, 0.1]).max() <= 0.5


def test_gram_matrices_of_another_size_are_an_error() -> None:
    with pytest.raises(ValueError, match="don't fit"):
        with_feedback(np.zeros((3, 4)), np.zeros((5, 5)), 1.0, 7)
    with pytest.raises(ValueError, match="don't fit"):
        with_feedback(np.zeros((3, 4)), np.zeros((2, 4, 4)), 1.0, 7)
