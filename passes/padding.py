"""Padding in front of max pooling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from snncompiler.ir.graph import (
    Node,
    axes_of,
    constant_input,
    infer_node,
    input_at,
    known,
    producer,
    rank,
)
from snncompiler.ir.signs import never_negative
from snncompiler.passes.rewriting import Writer

#: A fill that stands for minus infinity: exporters write the lowest float32, or the lowest float16.
_LOWEST = -1e30


_LOWEST_HALF = float(np.finfo(np.float16).min)


def padded_with_lowest(pool: Node) -> bool:
    """Whether a Pad with what stands for minus infinity comes right before the pooling."""
    pad = producer(pool.inputs[0])
    return pad is not None and pad.op == "Pad" and not pad.domain and fills_with_lowest(pad)


def fills_with_lowest(pad: Node) -> bool:
    fill = _fill(pad)
    return fill is not None and (fill <= _LOWEST or fill == _LOWEST_HALF)


def absorb_pad(writer: Writer, pool: Node) -> None:
    """Move constant padding that is never above the values into the pooling, which ignores its own."""
    pad = producer(pool.inputs[0])
    if pad is None or pad.op != "Pad" or pad.domain or "SAME" in pool.attrs.get("auto_pad", ""):
        return
    widths, fill = _spatial_pads(pad), _fill(pad)
    if widths is None or fill is None:
        return
    x = pad.inputs[0]
    if pool.op == "GlobalMaxPool" and fills_with_lowest(pad):
        pool.inputs[0] = x
        return
    positive = never_negative(x)
    if not (fills_with_lowest(pad) or (positive and fill <= 0)):
        return
    count = len(pool.attrs["kernel_shape"])
    own = pool.attrs.get("pads") or [0] * 2 * count
    axes = [_Axis.of(pool, index, own, x.shape[2 + index], widths[index]) for index in range(count)]
    if not all(axis.reaches() for axis in axes):
        return
    if all(axis.fits() for axis in axes):
        pool.inputs[0] = x
        pool.attrs.pop("auto_pad", None)
        pool.attrs["pads"] = [axis.begin for axis in axes] + [axis.end for axis in axes]
        infer_node(pool, writer.graph.opset)
    elif positive and fill < 0:
        # Every window sees a value, and none is below 0: padding with 0 is the same.
        attrs = {"mode": "constant"}
        inputs = [x, pad.inputs[1], writer.numbers(pad.name, 0.0, x), *list(pad.inputs)[3:]]
        pool.inputs[0] = writer.node(pad.name, "Pad", inputs, attrs)


def _fill(pad: Node) -> float | None:
    """The one constant that a Pad fills with; None for other modes."""
    if pad.attrs.get("mode", "constant") != "constant":
        return None
    if input_at(pad, 2) is None:
        return 0.0
    fill = constant_input(pad, 2)
    return None if fill is None or fill.size != 1 else float(fill.reshape(()))


def _spatial_pads(pad: Node) -> list[tuple[int, int]] | None:
    """(begin, end) of every axis from 2 on; None where others are padded, or something is cut."""
    pads, size = constant_input(pad, 1), rank(pad.inputs[0])
    if pads is None or size is None or size < 3:
        return None
    try:
        axes = axes_of(pad, size, input_index=3) or list(range(size))
    except ValueError:
        return None
    widths = [(0, 0)] * size
    for place, axis in enumerate(axes):
        widths[axis] = int(pads[place]), int(pads[place + len(axes)])
    if any(min(width) < 0 for width in widths) or any(any(width) for width in widths[:2]):
        return None
    return widths[2:]


@dataclass(frozen=True)
class _Axis:
    """One axis of a pooling of a padded value of `size` elements (None: unknown) before padding."""

    size: int | None
    kernel: int
    stride: int
    dilation: int
    #: Padding of both together; of the Pad alone.
    begin: int
    end: int
    padded: tuple[int, int]
    ceil: bool

    @staticmethod
    def of(pool: Node, index: int, own: list[int], size: object, padded: tuple[int, int]) -> _Axis:
        count = len(pool.attrs["kernel_shape"])
        return _Axis(
            size=int(size) if known(size) else None,  # type: ignore[call-overload]
            kernel=int(pool.attrs["kernel_shape"][index]),
            stride=int((pool.attrs.get("strides") or [1] * count)[index]),
            dilation=int((pool.attrs.get("dilations") or [1] * count)[index]),
            begin=own[index] + padded[0],
            end=own[count + index] + padded[1],
            padded=padded,
            ceil=bool(pool.attrs.get("ceil_mode", 0)),
        )

    def windows(self, size: int, inside: int) -> int:
        """How many windows lie on `size` values; they start before the values or in `inside` ones."""
        room = size + self.begin + self.end - self.dilation * (self.kernel - 1) - 1
        count = (-(-room // self.stride) if self.ceil else room // self.stride) + 1
        return count - (self.ceil and (count - 1) * self.stride >= inside + self.begin)

    def reaches(self) -> bool:
        """Whether every window has a tap on a value."""
        if self.size is None:
            # Windows start at -begin at the earliest, and end at size + end at the latest.
            inside = max(self.begin, self.end) < self.kernel
            return inside and self.dilation == 1 and not self.ceil
        starts = np.arange(self.windows(self.size, self.size + self.padded[1])) * self.stride
        taps = starts[:, None] - self.begin + np.arange(self.kernel) * self.dilation
        return bool(((taps >= 0) & (taps < self.size)).any(axis=1).all())

    def fits(self) -> bool:
        """Whether MaxPool itself may have this padding.

        It has as many windows with it: it drops those that start behind the values, which reach none.
        """
        return max(self.begin, self.end) < self.kernel
