"""Weights as whole numbers: what an option asks for, and what a layer is made of in the end.

Per output channel o a *scale* s_o is chosen, so that the threshold of the neuron is a whole number of
it, and an odd one.  Everything that flows into the neuron is then a whole number of s_o, and a sum of
whole numbers is the same in any order as long as what adds it up holds every whole number up to its
size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snncompiler.ir.growth import Growth

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

#: Where thresholds grow, what is driven is a multiple of it, and the drive one of its inverse, so that
#: what is driven is whole at every step.
DRIVE_UNIT = 64


def drive_of(growth: Growth) -> NDArray[np.float32]:
    """`Growth.drive` in DRIVE_UNIT-ths, [D]."""
    return np.asarray(np.round(growth.drive * DRIVE_UNIT) / DRIVE_UNIT, np.float32)


@dataclass(frozen=True)
class LayerGrid:
    """What a spiking layer is in whole numbers.

    name: of its neuron.  bits: of its largest weight, and `largest` that.  step: weights are multiples
    of it.  coefficient: the largest of a residual spike, 0 without one.  threshold: the smallest and
    the largest of its thresholds.  bound: no sum of a time-step is larger in size, whatever arrives.
    reach: nor is a potential within the T steps of the file; exact_steps: within so many steps it stays
    below 2^24.  rounding: the largest change of a weight, as a part of the largest weight of its
    channel.  scale: what 1 stands for, [C] or [1], in units of the network's values.
    """

    name: str
    bits: int
    largest: int
    step: int
    coefficient: int
    threshold: tuple[int, int]
    bound: int
    reach: int
    exact_steps: int
    rounding: float
    scale: NDArray[np.float64]

    def as_dict(self) -> dict[str, Any]:
        content = {**vars(self), "threshold": list(self.threshold)}
        content["rounding"] = float(f"{self.rounding:.3g}")
        content["scale"] = self.scale.tolist()
        return content

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> LayerGrid:
        """Raises TypeError or ValueError where it is not what `as_dict` makes."""
        low, high = content["threshold"]
        scale = np.asarray(content["scale"], np.float64)
        return LayerGrid(**{**content, "threshold": (int(low), int(high)), "scale": scale})


@dataclass(frozen=True)
class Grid:
    """All layers of a network whose weights are whole numbers, in their order.

    read_out: how far behind the last spike all machines give the same bits, in words.
    """

    layers: tuple[LayerGrid, ...] = ()
    read_out: str = ""

    def of(self, name: str) -> LayerGrid:
        return next(layer for layer in self.layers if layer.name == name)

    def as_dict(self) -> dict[str, Any]:
        return {"read_out": self.read_out, "layers": [layer.as_dict() for layer in self.layers]}

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> Grid:
        """Raises KeyError, TypeError or ValueError where it is not what `as_dict` makes."""
        layers = tuple(LayerGrid.from_dict(layer) for layer in content["layers"])
        return Grid(layers, str(content["read_out"]))
