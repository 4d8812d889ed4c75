"""Numpy reference of the operators of `ai.snnc`: their meaning, one short function each.

Arrays are as in `snncompiler.dialect`: temporal ones `[steps*N, ...]` with the time-steps outermost,
static ones and states `[N, ...]`.  All arithmetic is float32, in the order that is written here;
the function bodies and the native kernels give the same bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def _steps_of(values: Array, steps: int) -> Array:
    """`[steps*N, ...]` as `[steps, N, ...]` in float32."""
    samples = values.shape[0] // steps
    return values.reshape(steps, samples, *values.shape[1:]).astype(np.float32)


def _neuron(
    current: Array, threshold: Array, membrane: Array, steps: int, static_current: bool, soft: bool
) -> tuple[Array, Array]:
    held = _steps_of(current, 1 if static_current else steps)
    v = np.broadcast_to(np.float32(membrane), held.shape[1:]).copy()
    theta = np.broadcast_to(np.float32(threshold), held.shape[1:])
    spikes = np.empty((steps, *held.shape[1:]), np.float32)
    for t in range(steps):
        u = v + held[0 if static_current else t]
        spikes[t] = u >= theta
        v = u - theta * spikes[t] if soft else np.where(spikes[t] > 0, np.float32(0), u)
    folded = spikes.reshape(steps * held.shape[1], *held.shape[2:])
    return folded.astype(current.dtype), v


def rmp_neuron(
    current: Array, threshold: Array, membrane: Array, steps: int, static_current: bool = False
) -> tuple[Array, Array]:
    """Soft reset (Han, Srinivasan, Roy, RMP-SNN, CVPR 2020): the residual potential is kept.

    `u = v + x; s = (u >= θ); v = u - θ·s`.  Returns (spikes `[steps*N, ...]`, membrane `[N, ...]`).
    """
    return _neuron(current, threshold, membrane, steps, static_current, soft=True)


def hard_reset_neuron(
    current: Array, threshold: Array, membrane: Array, steps: int, static_current: bool = False
) -> tuple[Array, Array]:
    """Hard reset, the paper's baseline: `u = v + x; s = (u >= θ); v = 0 if s else u`."""
    return _neuron(current, threshold, membrane, steps, static_current, soft=False)


def time_sum(values: Array, total: Array, steps: int) -> Array:
    """`total` plus the values of every step, one step after the other.  Returns `[N, ...]`."""
    held = _steps_of(values, steps)
    y = np.broadcast_to(np.float32(total), held.shape[1:]).copy()
    for x in held:
        y = y + x
    return y


def running_mean(values: Array, total: Array, start: int, steps: int) -> tuple[Array, Array]:
    """Mean over all steps so far: `y_t = y_{t-1} + x_t; mean_t = y_t / t`, after `start` steps.

    Returns (means `[steps*N, ...]`, total `[N, ...]`).
    """
    held = _steps_of(values, steps)
    y = np.broadcast_to(np.float32(total), held.shape[1:]).copy()
    means = np.empty_like(held)
    for t, x in enumerate(held, start + 1):
        y = y + x
        means[t - start - 1] = y / np.float32(t)
    return means.reshape(values.shape).astype(values.dtype), y


def telescope(values: Array, previous: Array, start: int, steps: int) -> tuple[Array, Array]:
    """`out_t = t·x_t - (t-1)·x_{t-1}`, after `start` steps.

    Returns (increments `[steps*N, ...]`, the last values `[N, ...]`).
    """
    held = _steps_of(values, steps)
    p = np.broadcast_to(np.float32(previous), held.shape[1:]).copy()
    out = np.empty_like(held)
    for t, x in enumerate(held, start + 1):
        out[t - start - 1] = np.float32(t) * x - np.float32(t - 1) * p
        p = x
    return out.reshape(values.shape).astype(values.dtype), p


def spike_max_pool(
    spikes: Array,
    counts: Array,
    steps: int,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    ceil_mode: int = 0,
) -> tuple[Array, Array]:
    """Increments of the max-pooled running spike counts (explicit `pads`, as in ONNX MaxPool).

    `c_t = c_{t-1} + s_t; out_t = maxpool(c_t) - maxpool(c_{t-1})`.
    Returns (pooled `[steps*N, C, ...]`, counts `[N, C, ...]`).
    """
    held = _steps_of(spikes, steps)
    c = np.broadcast_to(np.float32(counts), held.shape[1:]).copy()
    window = (kernel_shape, strides, pads, dilations, ceil_mode)
    before = _max_pool(c, *window)
    out = np.empty((steps, *before.shape), np.float32)
    for t in range(steps):
        c = c + held[t]
        after = _max_pool(c, *window)
        out[t] = after - before
        before = after
    return out.reshape(steps * before.shape[0], *before.shape[1:]).astype(spikes.dtype), c


def _max_pool(
    x: Array,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    ceil_mode: int,
) -> Array:
    """ONNX MaxPool of `[N, C, ...]` with explicit padding."""
    rank = len(kernel)
    begins, ends = pads[:rank], pads[rank:]
    sizes: list[int] = []
    for axis in range(rank):
        room = x.shape[2 + axis] + begins[axis] + ends[axis]
        span = room - dilations[axis] * (kernel[axis] - 1) - 1
        size = (-(-span // strides[axis]) if ceil_mode else span // strides[axis]) + 1
        # A window that starts in the padding at the end sees nothing and is dropped.
        if ceil_mode and (size - 1) * strides[axis] >= x.shape[2 + axis] + begins[axis]:
            size -= 1
        sizes.append(size)
    out = np.full((*x.shape[:2], *sizes), -np.inf, np.float32)
    for place in itertools.product(*(range(size) for size in sizes)):
        taps = [
            [
                index
                for tap in range(kernel[axis])
                if 0
                <= (index := place[axis] * strides[axis] - begins[axis] + tap * dilations[axis])
                < x.shape[2 + axis]
            ]
            for axis in range(rank)
        ]
        if all(taps):
            window = x[np.ix_(range(x.shape[0]), range(x.shape[1]), *taps)]
            here: Any = (..., *place)
            out[here] = window.max(axis=tuple(range(2, window.ndim)))
    return out
