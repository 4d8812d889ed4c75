"""What a neuron sends in one time-step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Spikes:
    """What a neuron sends in one time-step: `binary` 0 or 1; `burst` 0 to `levels`; `signed` -`levels`
    to `levels`, where a negative spike only takes back an earlier one.
    """

    kind: Literal["binary", "burst", "signed"] = "binary"
    levels: int = 1

    @staticmethod
    def parse(text: str) -> Spikes:
        """From `binary`, `burst:G` or `signed:G`.  Raises ValueError for any other text."""
        kind, _, number = text.partition(":")
        if text == "binary":
            return Spikes()
        good = number.isascii() and number.isdigit() and 1 <= int(number) <= MAX_LEVELS
        if good and kind == "burst":
            return Spikes("burst", int(number))
        if good and kind == "signed":
            return Spikes("signed", int(number))
        raise ValueError(
            f"{text!r} is not one of binary, burst:G, signed:G with G from 1 to {MAX_LEVELS}"
        )

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return self.kind if self.kind == "binary" else f"{self.kind}:{self.levels}"


#: A spike count of one step must fit the bytes in which spikes are recorded.
MAX_LEVELS = 127


BINARY = Spikes()
