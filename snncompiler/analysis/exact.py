"""Sums of floating-point numbers that are exact, so that they do not depend on any order.

Every finite float64 is a whole number of 2^-1074, the smallest one.  A sum of them as a whole number
is exact, and rounded once where it is read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: -log2 of the smallest positive float64.
_PLACES = 1074


@dataclass
class Exact:
    """A sum: a whole number of 2^-1074, and what infinities and NaN add up to beside it."""

    units: int = 0
    beyond: float = 0.0

    def add(self, value: float) -> None:
        if not math.isfinite(value):
            self.beyond += value
            return
        numerator, denominator = value.as_integer_ratio()  # which is a power of two
        self.units += numerator << (_PLACES + 1 - denominator.bit_length())

    def plus(self, other: Exact) -> Exact:
        return Exact(self.units + other.units, self.beyond + other.beyond)

    @property
    def value(self) -> float:
        """The float64 that is nearest to the sum."""
        if self.beyond:  # NaN, too
            return self.beyond
        try:
            return self.units / (1 << _PLACES)
        except OverflowError:
            return math.inf if self.units > 0 else -math.inf

    def written(self) -> list[str | int]:
        """As plain data: [m, e], for m·2^e with an odd m in hexadecimal; and what is beyond."""
        if self.beyond:
            return [f"{self.units:x}", -_PLACES, str(self.beyond)]
        zeros = (self.units & -self.units).bit_length() - 1 if self.units else 0
        return [f"{self.units >> zeros:x}", zeros - _PLACES]

    @staticmethod
    def read(written: list[str | int]) -> Exact:
        """The sum that `written` wrote.  Raises ValueError or TypeError."""
        odd, exponent, *beyond = written
        units = int(str(odd), 16) << (int(exponent) + _PLACES)
        return Exact(units, float(beyond[0]) if beyond else 0.0)
