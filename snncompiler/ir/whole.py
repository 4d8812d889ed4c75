"""Weights as whole numbers: what an option asks for, and what a layer is made of in the end.

Per output channel o a *scale* s_o is chosen, so that the threshold of the neuron is a whole number of
it, and an odd one.  Everything that flows into the neuron is then a whole number of s_o, and a sum of
whole numbers is the same in any order as long as what adds it up holds every whole number up to its
size.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: What the text form of weights that stay real numbers is.
FLOAT = "float32"
_WHOLE = re.compile(r"int([0-9]{1,2})")
#: Fewer bits than the first leave -1, 0 and 1; more than the last are no two digits of 8 bits.
FEWEST_BITS, MOST_BITS = 2, 16
#: float32 holds every whole number up to this size, float16 up to the second.
EXACT = 1 << 24
EXACT_HALF = 1 << 11


@dataclass(frozen=True)
class Weights:
    """What weights are: real numbers (`bits` is None), or whole numbers of so many bits."""

    bits: int | None = None

    @staticmethod
    def parse(text: str) -> Weights:
        """From `float32` or `intB`, with B from 2 to 16.  Raises ValueError for any other text."""
        found = _WHOLE.fullmatch(text)
        if text == FLOAT:
            return Weights()
        if found and FEWEST_BITS <= int(found[1]) <= MOST_BITS and found[1][0] != "0":
            return Weights(int(found[1]))
        raise ValueError(
            f"{text!r} is neither {FLOAT} nor int8, int4, or intB with B from {FEWEST_BITS} to "
            f"{MOST_BITS}"
        )

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return FLOAT if self.bits is None else f"int{self.bits}"

    def __bool__(self) -> bool:
        """Whether weights are whole numbers."""
        return self.bits is not None


REAL = Weights()
