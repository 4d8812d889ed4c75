"""Exact sums: of any grouping, in any order, the same."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snncompiler.analysis.exact import Exact


def summed(values: list[float]) -> Exact:
    found = Exact()
    for value in values:
        found.add(value)
    return found


FINITE = st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=20)


@given(FINITE, st.integers(0, 20), st.randoms(use_true_random=False))
def test_a_sum_is_exact_whatever_the_parts_and_their_order(
    values: list[float], cut: int, order: random.Random
) -> None:
    whole = summed(values)
    assert Fraction(whole.units, 1 << 1074) == sum(map(Fraction, values))
    shuffled = values.copy()
    order.shuffle(shuffled)
    parts = summed(shuffled[cut:]).plus(summed(shuffled[:cut]))
    assert parts == whole and parts.written() == whole.written()
    assert Exact.read(whole.written()) == whole
    try:
        wanted = float(sum(map(Fraction, values)))
    except OverflowError:
        wanted = math.inf if whole.units > 0 else -math.inf
    assert whole.value == wanted


@pytest.mark.parametrize(
    ("values", "total"),
    [
        ([0.1] * 10, 1.0),
        ([1e308, 1e308, -1e308], 1e308),
        ([1e308, 1e308], math.inf),
        ([5e-324, 5e-324], 1e-323),
        ([1.0, math.inf], math.inf),
        ([-math.inf, 3.0], -math.inf),
        ([math.inf, -math.inf], math.nan),
        ([math.nan, 1.0], math.nan),
        ([], 0.0),
    ],
)
def test_sums_at_the_edges(values: list[float], total: float) -> None:
    found = summed(values)
    for one in (found, Exact.read(found.written())):
        assert one.value == total or (math.isnan(total) and math.isnan(one.value))
