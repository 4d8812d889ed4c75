"""What a network takes: its input as the source has it, or pixels of 8 bits.

Pixels become the source's input inside the network, ((p / scale) - mean) / std, element by element in
float32, as `Preprocess` does it outside.  So they are padded, cropped and added up as the source's
values are, and a padded zero is the mean of the pictures, not a pixel of 0.
"""

from __future__ import annotations

from dataclasses import dataclass

REAL_KIND, PIXEL_KIND = "float32", "uint8"
#: What pixels are divided by where nothing is said.
FULL_SCALE = 255.0


@dataclass(frozen=True)
class InputType:
    """`pixels`: the network takes uint8.  scale is None where it is still to be said; mean and std have
    one number, or one for each channel, or none."""

    pixels: bool = False
    scale: float | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @staticmethod
    def parse(text: str) -> InputType:
        """From `float32`, `uint8` or `uint8:SCALE:MEAN:STD`, where MEAN and STD are empty, M or M,M,M.

        Raises ValueError for any other text.
        """
        kind, *rest = text.split(":")
        if kind == REAL_KIND and not rest:
            return InputType()
        if kind != PIXEL_KIND or len(rest) not in (0, 3):
            raise ValueError(f"{text!r} is neither {REAL_KIND} nor {PIXEL_KIND}")
        if not rest:
            return InputType(True)
        mean, std = (tuple(map(float, part.split(","))) if part else () for part in rest[1:])
        scale = float(rest[0])
        if not 0 < scale < float("inf") or not all(0 < one < float("inf") for one in std):
            raise ValueError(f"a scale or a deviation of {text!r} is not positive and finite")
        return InputType(True, scale, mean, std)

    def __str__(self) -> str:
        """The text that `parse` reads."""
        if not self.pixels:
            return REAL_KIND
        if self.scale is None:
            return PIXEL_KIND
        mean, std = (",".join(map(repr, given)) for given in (self.mean, self.std))
        return f"{PIXEL_KIND}:{self.scale!r}:{mean}:{std}"

    def __bool__(self) -> bool:
        return self.pixels


REAL_INPUT = InputType()
