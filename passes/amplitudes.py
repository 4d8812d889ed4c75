"""How the amplitudes of spike trains move through operators that are linear in time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snncompiler.ir.graph import (
    Node,
    Tensor,
    axes_of,
    axis_factors,
    constant_input,
    input_at,
    known,
    known_rank,
    producer,
)
from snncompiler.ir.grids import rounded_from
from snncompiler.ir.operators import Amplitude, record
from snncompiler.ir.rectifiers import rectified_channels, rectifier
from snncompiler.ir.spike_trains import moves_spikes, turns_signs

#: An amplitude as an array of the rank of its tensor: [1, C, 1, 1], or all ones in shape.
Scale = NDArray[Any]


def joined(node: Node, scales: Sequence[Scale | None]) -> Scale | None:
    """The amplitude behind a Concat; None where one before it, or its size, is not known."""
    axis = int(node.attrs["axis"]) % known_rank(node.outputs[0])
    parts: list[Scale] = []
    for tensor, scale in zip(node.inputs, scales, strict=True):
        if scale is None or not known(tensor.shape[axis]):
            return None
        shape = list(scale.shape)
        shape[axis] = tensor.shape[axis]
        parts.append(np.broadcast_to(scale, shape))
    spread = np.broadcast_shapes(
        *((*part.shape[:axis], 1, *part.shape[axis + 1 :]) for part in parts)
    )
    wide = [
        np.broadcast_to(part, (*spread[:axis], part.shape[axis], *spread[axis + 1 :]))
        for part in parts
    ]
    return np.concatenate(wide, axis=axis)


def varies(scale: Scale) -> set[int]:
    """The axes along which the amplitude is not the same."""
    return {axis for axis, size in enumerate(scale.shape) if size > 1}


def channels_only(scale: Scale) -> bool:
    """Whether the amplitude depends on axis 1 alone."""
    return varies(scale) <= {1}


def _beside_space(node: Node, scale: Scale) -> Scale | None:
    """Pooling works along the axes from 2 on."""
    return scale if max(varies(scale), default=0) < 2 else None


def _if_channels_only(node: Node, scale: Scale) -> Scale | None:
    return scale if channels_only(scale) and scale.ndim > 1 else None


def _if_uniform(node: Node, scale: Scale) -> Scale | None:
    return scale.reshape((1,) * known_rank(node.outputs[0])) if scale.size == 1 else None


def _through_resize(node: Node, scale: Scale) -> Scale | None:
    """Resize and Upsample sample along the axes whose size they change, and only along these."""
    if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return None
    before, after = node.inputs[0].shape, node.outputs[0].shape
    factors = axis_factors(node)
    named = axes_of(node, scale.ndim, input_index=len(node.inputs))
    axes = list(range(scale.ndim)) if named is None else named
    for axis in varies(scale) & set(axes):
        if factors is not None and factors.size:
            kept = factors[axes.index(axis)] == 1
        else:
            kept = known(before[axis]) and before[axis] == after[axis]
        if not kept:
            return None
    return scale


def _through_reshape(node: Node, scale: Scale) -> Scale | None:
    """Flatten and Reshape, row by row where axis 0 keeps its size, else over all axes."""
    before, after = node.inputs[0].shape, node.outputs[0].shape
    if scale.size == 1:
        return scale.reshape((1,) * len(after))
    if not before or not after or not all(known(dim) for dim in (*before[1:], *after[1:])):
        return None
    if scale.shape[0] == 1 and prod(before[1:]) == prod(after[1:]):
        full = np.broadcast_to(scale, (1, *before[1:])).reshape(1, *after[1:])
    elif known(before[0]) and known(after[0]):
        full = np.broadcast_to(scale, before).reshape(after)
    else:
        return None
    # Axes on which it does not vary shrink to 1 again.
    for axis in range(full.ndim):
        first = np.take(full, [0], axis=axis)
        if np.array_equal(np.broadcast_to(first, full.shape), full):
            full = first
    return full


def _through_squeeze(node: Node, scale: Scale) -> Scale | None:
    axes = axes_of(node, scale.ndim)
    if axes is None:
        return _through_reshape(node, scale)
    return np.squeeze(scale, tuple(axes))


def _through_unsqueeze(node: Node, scale: Scale) -> Scale | None:
    axes = axes_of(node, known_rank(node.outputs[0]))
    return np.expand_dims(scale, tuple(axes or ()))


def _through_transpose(node: Node, scale: Scale) -> Scale | None:
    order = node.attrs.get("perm") or list(range(scale.ndim))[::-1]
    return scale.transpose(order)


def _through_slice(node: Node, scale: Scale) -> Scale | None:
    starts, ends = constant_input(node, 1), constant_input(node, 2)
    steps = constant_input(node, 4)
    if starts is None or ends is None or (input_at(node, 4) is not None and steps is None):
        return _if_uniform(node, scale)
    axes = axes_of(node, scale.ndim, input_index=3) or list(range(starts.size))
    chosen = [slice(None)] * scale.ndim
    for place, axis in enumerate(axes):
        if scale.shape[axis] > 1:
            stride = 1 if steps is None else int(steps[place])
            if stride < 0:
                return None
            chosen[axis] = slice(int(starts[place]), int(ends[place]), stride)
    return scale[tuple(chosen)]


def _through_pad(node: Node, scale: Scale) -> Scale | None:
    pads, fill = constant_input(node, 1), constant_input(node, 2)
    if pads is None:
        return None
    named = axes_of(node, scale.ndim, input_index=3)
    axes = list(range(scale.ndim)) if named is None else named
    widths = [(0, 0)] * scale.ndim
    for place, axis in enumerate(axes):
        widths[axis] = (int(pads[place]), int(pads[place + len(axes)]))
    moved = [axis for axis in varies(scale) if any(widths[axis])]
    if node.attrs.get("mode", "constant") != "constant":
        return None if moved else scale
    if input_at(node, 2) is not None and (fill is None or np.any(fill)):
        return None
    if any(min(widths[axis]) < 0 for axis in moved):
        return None
    spread = [widths[axis] if axis in moved else (0, 0) for axis in range(scale.ndim)]
    return np.pad(scale, spread, constant_values=1.0)


def _through_reduce(node: Node, scale: Scale) -> Scale | None:
    axes = axes_of(node, scale.ndim) or []
    if not axes and node.attrs.get("noop_with_empty_axes", 0):
        return scale
    axes = axes or list(range(scale.ndim))
    if varies(scale) & set(axes):
        return None
    return scale if node.attrs.get("keepdims", 1) else np.squeeze(scale, tuple(axes))


def _through_signs(node: Node, scale: Scale) -> Scale | None:
    """Mul by constants of 1 and -1, which max pooling puts around itself."""
    return scale if turns_signs(node) else None


_RULES: dict[Amplitude, Callable[[Node, Scale], Scale | None]] = {
    "same": lambda node, scale: scale,
    "signs": _through_signs,
    "pool": _beside_space,
    "channels": _if_channels_only,
    "resize": _through_resize,
    "reshape": _through_reshape,
    "squeeze": _through_squeeze,
    "unsqueeze": _through_unsqueeze,
    "transpose": _through_transpose,
    "slice": _through_slice,
    "pad": _through_pad,
    "reduce": _through_reduce,
    "uniform": _if_uniform,
    # Of several amplitudes: `joined`.
    "joined": lambda node, scale: None,
}


def moved(node: Node, scale: Scale) -> Scale | None:
    """The amplitude behind a node whose first input has `scale`; None where it stays before it."""
    kind = record(node.op).amplitude
    return None if kind is None else _RULES[kind](node, scale)


def poolable(tensor: Tensor) -> bool:
    """Whether a value of the normalized network will be spikes of one amplitude in each channel."""
    scale = _Amplitudes().of(tensor)
    return scale is not None and scale.ndim > 2 and channels_only(scale)


class _Amplitudes:
    """The amplitudes of future spike trains: every channel of every rectifier has one of its own.

    They move as those of the neurons will.
    """

    def __init__(self) -> None:
        self.found: dict[int, Scale | None] = {}
        self.numbers = 0

    def of(self, tensor: Tensor) -> Scale | None:
        """As an array of the tensor's rank; None where it is no spike train, or amplitudes mix."""
        if id(tensor) not in self.found:
            node = producer(tensor)
            self.found[id(tensor)] = None if node is None else self._behind(node)
        return self.found[id(tensor)]

    def _behind(self, node: Node) -> Scale | None:
        result = node.outputs[0]
        if node.domain or result.shape is None:
            return None
        if rectifier(node) is not None:
            channels = rectified_channels(node)
            self.numbers += channels
            own = np.arange(self.numbers - channels, self.numbers, dtype=np.float32) + 1
            spread = (1, channels, *[1] * (len(result.shape) - 2)) if channels > 1 else 1
            return own.reshape(spread if channels > 1 else (1,) * len(result.shape))
        rounded = rounded_from(node)
        if rounded is not None:
            return self.of(rounded)
        if not moves_spikes(node):
            return None
        kind = record(node.op).amplitude
        if kind == "joined":
            parts = [self.of(part) for part in node.inputs]
            twice = len({id(part) for part in node.inputs}) < len(parts)
            return None if twice else joined(node, parts)
        if kind is None or any(tensor is node.inputs[0] for tensor in node.inputs[1:]):
            return None
        scale = self.of(node.inputs[0])
        return None if scale is None else moved(node, scale)
