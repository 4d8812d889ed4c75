"""How values over time become one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from snncompiler.ir.growth import STEADY, Growth


@dataclass(frozen=True)
class ReadOut:
    """How a value over time becomes one value: Σ w_t·o_t / Σ w_t, with t from 1 to T.

    `mean`: w = 1.  `ramp`: w_t = t^power, so that the first steps, in which deep layers are still
    finding their rate, count little.  `delay`: w_t = 0 up to step `skipped`, then 1.  Where θ grows,
    o_t is worth g_t of what it is in the end: Σ w_t·g_t·o_t / Σ w_t.
    """

    kind: Literal["mean", "ramp", "delay"] = "mean"
    skipped: int = 0
    power: int = 1
    growth: Growth = STEADY

    @property
    def uniform(self) -> bool:
        """Whether every step counts alike."""
        return self.kind == "mean" and not self.growth

    def weights(self, times: NDArray[np.int64]) -> NDArray[np.float32]:
        """w_t·g_t of the given time-steps, counted from 1."""
        weights = (times > self.skipped).astype(np.float32)
        if self.kind == "ramp":
            powers = np.ones(len(times))
            for _ in range(self.power):
                powers = powers * times
            weights = powers.astype(np.float32)
        if self.growth:
            table = self.growth.table
            weights = weights * table[np.minimum(times, len(table)) - 1]
        return weights

    def total(self, steps: int) -> int:
        """Σ w_t over `steps` time-steps; 1 where none counts."""
        if self.kind == "ramp":
            return sum(time**self.power for time in range(1, steps + 1))
        return max(steps - self.skipped, 1)

    @staticmethod
    def parse(text: str) -> ReadOut:
        """From `mean`, `ramp`, `ramp:P` with P of 1 to 3, or `delay:D`.

        Raises ValueError for any other text.
        """
        kind, colon, number = text.partition(":")
        if kind == "mean" and not colon:
            return ReadOut()
        if kind == "ramp" and (not colon or number in ("1", "2", "3")):
            return ReadOut("ramp", power=int(number or 1))
        if kind == "delay" and number.isascii() and number.isdigit():
            return ReadOut("delay", int(number))
        raise ValueError(f"{text!r} is not one of mean, ramp, ramp:2, ramp:3, delay:D")

    def __str__(self) -> str:
        """The text that `parse` reads."""
        number = {"mean": "", "ramp": f":{self.power}", "delay": f":{self.skipped}"}
        return f"{self.kind}{number[self.kind]}"


MEAN = ReadOut()
