"""Numpy reference of the operators of `ai.snnc`: their meaning, one short function each.

Arrays are as in `snncompiler.ir.dialect`: temporal ones `[steps*N, ...]` with the time-steps outermost,
static ones and states `[N, ...]`.  All arithmetic is float32, in the order that is written here;
the function bodies and the native kernels give the same bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def _steps_of(values: Array, steps: int) -> Array:
    """`[steps*N, ...]` as `[steps, N, ...]` in float32."""
    samples = values.shape[0] // steps
    return values.reshape(steps, samples, *values.shape[1:]).astype(np.float32)


# --- the dynamics of one time-step, which calibration takes from here, too ---


def binary_spikes(u: Array, threshold: Array) -> Array:
    """`u >= θ` as 0 or 1: what a neuron sends at the potential u after its current."""
    return (u >= threshold).astype(np.float32)


def burst_spikes(u: Array, threshold: Array, levels: int) -> Array:
    """`min(max(floor(u / θ), 0), levels)`; NaN is 0."""
    return _floor(u / threshold, 0, levels)


def signed_spikes(u: Array, threshold: Array, balance: Array, levels: int) -> Array:
    """`max(min(max(floor(u / θ), -levels), levels), -n)`, where n spikes were sent so far."""
    k = _floor(u / threshold, -levels, levels)
    np.fmax(k, np.float32(0) - balance, out=k)
    return k


def soft_reset(u: Array, threshold: Array, spikes: Array) -> Array:
    """`v = u - θ·k`: the residual potential is kept."""
    return u - threshold * spikes


def _floor(x: Array, least: int, most: int) -> Array:
    """x rounded down, between two whole numbers; NaN is the least of them, -0 is 0.  Overwrites x."""
    np.fmax(x, np.float32(least), out=x)
    np.fmin(x, np.float32(most), out=x)
    np.floor(x, out=x)
    x += np.float32(0)
    return x


def _neuron(
    current: Array, threshold: Array, membrane: Array, steps: int, static_current: bool, soft: bool
) -> tuple[Array, Array]:
    held = _steps_of(current, 1 if static_current else steps)
    v = np.broadcast_to(np.float32(membrane), held.shape[1:]).copy()
    theta = np.broadcast_to(np.float32(threshold), held.shape[1:])
    spikes = np.empty((steps, *held.shape[1:]), np.float32)
    for t in range(steps):
        u = v + held[0 if static_current else t]
        spikes[t] = binary_spikes(u, theta)
        v = soft_reset(u, theta, spikes[t]) if soft else np.where(spikes[t] > 0, np.float32(0), u)
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


def _scheduled(
    current: Array,
    threshold: Array,
    membrane: Array,
    schedule: Array,
    start: int,
    steps: int,
    static_current: bool,
    quanta: Callable[[Array, Array], Array],
) -> tuple[Array, Array]:
    """Soft reset by as many thresholds as `quanta(u, θ)` says, with the schedule's row added."""
    held = _steps_of(current, 1 if static_current else steps)
    v = np.broadcast_to(np.float32(membrane), held.shape[1:]).copy()
    theta = np.broadcast_to(np.float32(threshold), held.shape[1:])
    spikes = np.empty((steps, *held.shape[1:]), np.float32)
    for t in range(steps):
        u = (v + held[0 if static_current else t]) + schedule[min(start + t, len(schedule) - 1)]
        spikes[t] = quanta(u, theta)
        v = soft_reset(u, theta, spikes[t])
    folded = spikes.reshape(steps * held.shape[1], *held.shape[2:])
    return folded.astype(current.dtype), v


def scheduled_rmp_neuron(
    current: Array,
    threshold: Array,
    membrane: Array,
    schedule: Array,
    start: int,
    steps: int,
    static_current: bool = False,
) -> tuple[Array, Array]:
    """Soft reset with a current `b_t = schedule[min(t, S-1)]` of each step t, from `start` on.

    `u = (v + x) + b_t; s = (u >= θ); v = u - θ·s`.  Returns (spikes, membrane).
    """
    return _scheduled(
        current, threshold, membrane, schedule, start, steps, static_current, binary_spikes
    )


def drive(values: Array, factors: Array, start: int, steps: int) -> Array:
    """`x · d_t` with `d_t = factors[min(t, D-1)]` at each step t, from `start` on: [steps*N, ...]."""
    places = np.minimum(min(start, len(factors)) + np.arange(steps), len(factors) - 1)
    column = factors[places].reshape(steps, *[1] * values.ndim)
    driven = values.astype(np.float32) * column
    return np.asarray(driven.reshape(steps * len(values), *values.shape[1:]).astype(values.dtype))


def burst_neuron(
    current: Array,
    threshold: Array,
    membrane: Array,
    schedule: Array,
    start: int,
    steps: int,
    levels: int,
    static_current: bool = False,
) -> tuple[Array, Array]:
    """Up to `levels` spikes at a step, sent as one number.

    `u = (v + x) + b_t; k = min(max(floor(u / θ), 0), levels); v = u - θ·k`.
    Returns (k `[steps*N, ...]`, membrane `[N, ...]`).
    """

    def quanta(u: Array, theta: Array) -> Array:
        return burst_spikes(u, theta, levels)

    return _scheduled(current, threshold, membrane, schedule, start, steps, static_current, quanta)


def signed_neuron(
    current: Array,
    threshold: Array,
    membrane: Array,
    balance: Array,
    schedule: Array,
    start: int,
    steps: int,
    levels: int,
    static_current: bool = False,
) -> tuple[Array, Array, Array]:
    """Up to `levels` spikes of either sign at a step; negative ones take back no more than was sent.

    `k = max(min(max(floor(u / θ), -levels), levels), -n); v = u - θ·k; n += k`.
    Returns (k `[steps*N, ...]`, membrane `[N, ...]`, balance n `[N, ...]`).
    """
    leading = current.shape[0] if static_current else current.shape[0] // steps
    n = np.broadcast_to(np.float32(balance), (leading, *current.shape[1:])).copy()

    def quanta(u: Array, theta: Array) -> Array:
        k = signed_spikes(u, theta, n, levels)
        n[...] = n + k
        return k

    spikes, v = _scheduled(
        current, threshold, membrane, schedule, start, steps, static_current, quanta
    )
    return spikes, v, n


def layered_rmp_neuron(
    current: Array,
    threshold: Array,
    membrane: Array,
    steps: int,
    static_current: bool = False,
    radix: bool = False,
) -> Array:
    """A whole window of current first, then a whole window of spikes, with soft reset.

    `X = Σ w_t·x_t; v = v_0 + X`, then `s = (v >= w_t·θ); v = v - w_t·θ·s` for every t, where w_t is 1,
    or `2^(T-t)` with `radix`.  Returns spikes `[steps*N, ...]`.
    """
    held = _steps_of(current, 1 if static_current else steps)
    weights = [np.float32(2.0 ** (steps - t) if radix else 1.0) for t in range(1, steps + 1)]
    x: Array = np.zeros(held.shape[1:], dtype=np.float32)
    for w, part in zip(weights[steps - len(held) :], held, strict=True):
        x = x + w * part
    v: Array = np.broadcast_to(np.float32(membrane), x.shape) + x
    spikes = np.empty((steps, *x.shape), np.float32)
    for t, w in enumerate(weights):
        level = np.broadcast_to(w * np.float32(threshold), x.shape)
        spikes[t] = binary_spikes(v, level)
        v = soft_reset(v, level, spikes[t])
    return spikes.reshape(steps * x.shape[0], *x.shape[1:]).astype(current.dtype)


def time_sum(values: Array, total: Array, steps: int) -> Array:
    """`total` plus the values of every step, one step after the other.  Returns `[N, ...]`."""
    held = _steps_of(values, steps)
    y = np.broadcast_to(np.float32(total), held.shape[1:]).copy()
    for x in held:
        y = y + x
    return y


def weighted_time_sum(values: Array, weights: Array, total: Array, steps: int) -> Array:
    """`y = y + w_t·x_t`, one step after the other, each product rounded.  Returns `[N, ...]`."""
    held = _steps_of(values, steps)
    y = np.broadcast_to(np.float32(total), held.shape[1:]).copy()
    for w, x in zip(weights.astype(np.float32), held, strict=True):
        y = y + w * x
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


_MIX_ROUNDS = 6
_MIX_KEY = 0x9E3779B9


def _mix(a: Any, b: Any, number: Any) -> tuple[Any, Any]:
    """Adds a number of 64 bits to a state of two words, and mixes."""
    low = np.uint64(0xFFFFFFFF)
    a, b = a + (number & low), b + (number >> np.uint64(32))
    for i in range(_MIX_ROUNDS):
        key = np.uint64((i + 1) * _MIX_KEY % 2**32)
        root = ((a + key) & low).astype(np.uint32).view(np.int32).astype(np.int64)
        middle = (root * root).view(np.uint64) >> np.uint64(16)
        a, b = (b + middle) & low, a & low
    return a, b


def random_words(seed: int, image: Any, step: Any, element: Any) -> NDArray[np.uint32]:
    """32 random bits for a seed and numbers that broadcast: the first word of a state of two, to
    which seed, image, step and element are added, each followed by six rounds of a Feistel network.

    A round is `(a, b) = (b + (s·s >> 16), a)` modulo 2^32 with s = a + key as a signed word.
    """
    a = b = np.zeros((), np.uint64)
    for number in (np.uint64(seed % 2**64), image, step, element):
        a, b = _mix(a, b, np.asarray(number).astype(np.uint64))
    return a.astype(np.uint32)


def poisson_encoder(
    values: Array, scale: Array, seed: int, first_image: int, start: int, steps: int
) -> Array:
    """Spikes of the sign of x, with the probability |x| / scale.  Returns `[steps*N, ...]`.

    Image n of this call is number `first_image + n` of all, its step t number `start + t`.
    """
    images = values.shape[0]
    x = values.astype(np.float32).reshape(images, -1 if values.size else 0)
    uint64 = np.uint64
    words = random_words(
        int(seed),
        (uint64(int(first_image) % 2**64) + np.arange(images, dtype=uint64))[None, :, None],
        (uint64(int(start)) + np.arange(steps, dtype=uint64))[:, None, None],
        np.arange(x.shape[1], dtype=uint64)[None, None, :],
    )
    uniform = (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
    fires = uniform < np.abs(x) / np.float32(scale)
    spikes = np.where(fires, np.where(x < 0, np.float32(-1), np.float32(1)), np.float32(0))
    return spikes.reshape(steps * images, *values.shape[1:]).astype(values.dtype)


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


def spike_convolution(
    spikes: Array,
    weights: Array,
    group: int = 1,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
) -> Array:
    """Convolution of bytes `[steps*N, H, W, C]` with `[KH, KW, C/group, M]`, channels last."""
    rows, columns, each, channels = weights.shape
    top, left, bottom, right = pads
    padded = np.pad(spikes.astype(np.float32), ((0, 0), (top, bottom), (left, right), (0, 0)))
    height = (padded.shape[1] - dilations[0] * (rows - 1) - 1) // strides[0] + 1
    width = (padded.shape[2] - dilations[1] * (columns - 1) - 1) // strides[1] + 1
    out = np.zeros((len(spikes), max(height, 0), max(width, 0), channels), np.float32)
    share = channels // group
    for y, x, g in itertools.product(range(rows), range(columns), range(group)):
        below, beside = y * dilations[0], x * dilations[1]
        seen = padded[:, below:, beside:, g * each : (g + 1) * each]
        seen = seen[:, :: strides[0], :: strides[1]][:, : out.shape[1], : out.shape[2]]
        own = slice(g * share, (g + 1) * share)
        out[..., own] += seen @ weights[y, x, :, own]
    return out


def event_layer(
    current: Array,
    convolved: Sequence[Array],
    threshold: Array,
    membrane: Array,
    schedule: Array,
    start: int,
    steps: int,
    factors: Array | None = None,
) -> tuple[Array, Array]:
    """The neurons of the event-driven operators: bytes, and the membrane.

    `convolved` holds what flows in beside the static `current`: `[steps*N, H, W, M]` each.  Without it
    the current is driven by `factors`.
    """
    if factors is not None:
        driven = drive(current, factors, start, steps)
        fired, after = scheduled_rmp_neuron(driven, threshold, membrane, schedule, start, steps)
        return fired.astype(np.uint8), after
    total = _steps_of(convolved[0], steps) + current
    for more in convolved[1:]:
        total = total + _steps_of(more, steps)
    fired, after = scheduled_rmp_neuron(
        total.reshape(convolved[0].shape), threshold, membrane, schedule, start, steps
    )
    return fired.astype(np.uint8), after


def count_neuron(potential: Array, threshold: Array, levels: int) -> Array:
    """Spike counts of layered neurons whose potential after the window is a whole number, as bytes.

    `n = min(max(floor(v / θ), 0), levels)`, in exact arithmetic.
    """
    whole = potential.astype(np.int64) // np.asarray(threshold, np.int64)
    return np.clip(whole, 0, levels).astype(np.uint8)


def time_steps(iteration: int, done: int, total: int, chunk: int) -> tuple[int, int, int, bool]:
    """The time-steps of one trip through a loop: (start, steps, end, going).

    `start = done + iteration·chunk; steps = min(chunk, total - start); end = start + steps;
    going = end < total`.
    """
    start = done + iteration * chunk
    steps = min(chunk, total - start)
    return start, steps, start + steps, start + steps < total
