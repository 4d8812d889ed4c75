"""Thresholds that grow with time.

A small θ finds its rate in few time-steps and clips what is above it; a large one clips nothing and
needs more steps.  A window that starts with small thresholds and goes on with larger ones has both:
what is clipped in the first steps weighs less and less.

All thresholds grow by the same factor, and then nothing but the input has to know.  A ReLU network is
homogeneous: with g_t the factor at step t as a part of the last one, divide potentials and currents of
step t by g_t.  Thresholds and spikes are then what they are at the end, at every step; what comes from
outside is divided by g_t (`DriveInput`: the input's currents; the rows of a schedule: the biases, see
`calibration.charges.constant_currents`); and a spike of step t stands for g_t spikes of the end,
wherever spikes become a value (the read-out).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

#: What the text form of no growth is.
NONE = "none"
_CHANGE = re.compile(r"([0-9]+(?:\.[0-9]+)?)@([0-9]{1,9})")
#: The largest factor; its inverse is the smallest.
MOST = 1000.0
#: θ's last factor holds from this step on at the latest: a schedule as long as that is still small.
MAX_START = 1024


@dataclass(frozen=True)
class Growth:
    """By how much θ is multiplied: `changes` are (first step, counted from 1; factor), in order.

    Without changes, and before the first one, the factor is 1.
    """

    changes: tuple[tuple[int, float], ...] = ()

    @staticmethod
    def parse(text: str) -> Growth:
        """From `none` or `F@T,F@T,...`: factor F from step T on, in the order of steps.

        Raises ValueError for any other text, and where a factor is smaller than the one before.
        """
        if text == NONE:
            return Growth()
        changes = []
        for part in text.split(","):
            found = _CHANGE.fullmatch(part)
            if not found:
                raise ValueError(f"{text!r} is neither none nor like 1.15@33,1.3@65")
            changes.append((int(found[2]), float(found[1])))
        if not all(1 / MOST <= factor <= MOST for _, factor in changes):
            raise ValueError(f"{text!r}: a factor is from {1 / MOST:g} to {MOST:g}")
        if not all(1 <= start <= MAX_START for start, _ in changes):
            raise ValueError(f"{text!r}: a step is from 1 to {MAX_START}")
        whole = changes if changes[0][0] == 1 else [(1, 1.0), *changes]
        if any(one[0] >= two[0] or one[1] > two[1] for one, two in pairwise(whole)):
            raise ValueError(f"{text!r}: steps and factors rise")
        return Growth(tuple(changes))

    def __str__(self) -> str:
        """The text that `parse` reads, the same for the same factors."""
        return (
            ",".join(f"{factor!r}@{start}".replace(".0@", "@") for start, factor in self.changes)
            or NONE
        )

    def __bool__(self) -> bool:
        """Whether θ changes in the course of a window."""
        return float(self.table[0]) != 1.0

    @property
    def last(self) -> float:
        """The factor that holds in the end."""
        return self.changes[-1][1] if self.changes else 1.0

    def worth(self, steps: int) -> NDArray[np.float32]:
        """g_t of steps 1 to `steps`: what a spike is worth in spikes of the end, [steps]."""
        factors = np.ones(steps)
        for start, factor in self.changes:
            factors[start - 1 :] = factor
        return (factors / self.last).astype(np.float32)

    @property
    def table(self) -> NDArray[np.float32]:
        """g_t up to the step from which it is 1, which holds on: [D]."""
        return self.worth(self.changes[-1][0] if self.changes else 1)

    @property
    def drive(self) -> NDArray[np.float32]:
        """1/g_t, what the input's currents are multiplied by, [D]; 1 at the end, which holds on."""
        return np.asarray(np.float32(1) / self.table, np.float32)


#: θ stays as it is.
STEADY = Growth()
