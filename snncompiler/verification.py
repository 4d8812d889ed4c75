"""Verify a compiled file: that it is what the compiler would write, that every way to unroll it gives
the same result, and that every neuron obeys the soft-reset identity.

The identity holds for soft reset, per neuron, for any input order (Han, Srinivasan, Roy, RMP-SNN,
CVPR 2020: the residual potential is kept), with the charge b of a schedule and with k spikes a step:

    θ·mean(k) = mean(x) + mean(b) - (v(T) - v(0)) / T

In float32 every operation of a step rounds by at most 2^-24 of its result, and with G the most spikes
that a step can send, u = v_next + θ·k gives |u| <= |v| + G·θ:

    without a schedule, k is 0 or 1     with one
    u = v + x       |v| + θ             w = v + x        |u| + |b| <= |v| + G·θ + |b|
    v = u - θ·s     |v|                 u = w + b        |v| + G·θ
                                        p = θ·k          G·θ, and exact for G = 1
                                        v = u - p        |v|

So with sums in float64 the mean deviation of a neuron is at most 2^-24·(2·max|v| + θ) without a
schedule, and 2^-24·(3·max|v| + (2 or, for G > 1, 3)·G·θ + max|b|) with one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from snncompiler.calibrating import Progress
from snncompiler.compiled import CompiledFile, filled, read_compiled
from snncompiler.data import Dataset, Preprocess, load_data
from snncompiler.emission import emit
from snncompiler.errors import InternalError, refuse
from snncompiler.passes.unroll_time import Unroll
from snncompiler.passes.verify_output import verify_output
from snncompiler.preparation import (
    BATCH_TOLERANCE,
    Prepared,
    check_batch,
    prepare,
    synthetic_feeds,
)
from snncompiler.runtime.session import create_session
from snncompiler.runtime.stream import Stream
from snncompiler.version import __version__
from snncompiler.watch import Layer, Watched, watch

Array = NDArray[Any]

#: Samples that are run.
SAMPLES = 4
#: Time-steps at which the three ways are compared; `steps` writes a copy of the graph for each.
UNROLL_STEPS = 16
#: Convolutions over K·N and over N samples may sum in another order, and a current that lands within
#: a rounding of θ then moves a spike.  That is rare: at most this share of the neurons may count
#: other spikes.
MOVED_SHARE = 1e-3


@dataclass(frozen=True)
class Check:
    """One check: its name, whether it passed, and what was seen."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class LayerIdentity:
    """The soft-reset identity in one layer: largest deviation, the bound there, and max|v|.

    `above` and `below` are the shares of neurons that end with more than one step can send, v(T) > θ,
    and with v(T) < 0.
    """

    layer: str
    deviation: float
    bound: float
    membrane_max: float
    holds: bool
    above: float
    below: float


@dataclass(frozen=True)
class Verification:
    checks: tuple[Check, ...]
    layers: tuple[LayerIdentity, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        return {"passed": self.passed, **asdict(self)}


def verify(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    snn: str | os.PathLike[str] | bytes | onnx.ModelProto,
    *,
    data: str | os.PathLike[str] | Array | Mapping[str, Array] | Dataset | None = None,
    preprocess: Preprocess | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Verify the compiled file `snn` of the source network `model`.

    data: samples to run, the first 4 are taken; default seeded synthetic input.
    Raises Refused where `snn` is no compiled file or of another network.  A check that fails is in
    the result, not raised.
    """
    compiled = read_compiled(snn)
    prepared = prepare(
        model, allow_analog=compiled.options.allow_analog, maxpool=compiled.options.maxpool
    )
    if prepared.source.sha256 != compiled.metadata["snnc.source_sha256"]:
        raise refuse(
            "SNNC402",
            f"{prepared.source.name} is not the network that the compiled file was made from",
            hint=f"that was {compiled.metadata['snnc.source']}",
        )
    check_batch(prepared, compiled.options.seed)
    if data is None:
        feeds: Mapping[str, Array] = synthetic_feeds(prepared, SAMPLES, compiled.options.seed)
    else:
        feeds = load_data(data, prepared.inputs, preprocess).head(SAMPLES).feeds
    if compiled.fixed_batch is not None:
        have = min(len(next(iter(feeds.values()))), compiled.fixed_batch)
        feeds = filled(feeds, slice(0, have), compiled.fixed_batch)
    tell = progress or (lambda text, done, of: None)

    tell("emitting again", 0, 3)
    checks = [_valid(compiled)]
    if not checks[0].passed:
        return Verification(tuple(checks), ())
    checks.append(_same_again(compiled, prepared, feeds))
    tell("unrolling", 1, 3)
    checks += _same_in_every_way(compiled, prepared, feeds)
    portable = compiled
    if compiled.options.target == "cpu":
        portable = _portable(compiled, prepared)
        checks.append(_same_by_events(compiled, portable, prepared, feeds))
    tell("soft-reset identity", 2, 3)
    layers: tuple[LayerIdentity, ...] = ()
    if compiled.options.emit == "step":
        checks.append(_stepped(compiled, prepared, feeds))
    elif compiled.options.reset == "soft":
        layers = _identity(portable, feeds)
        worst = max(layers, key=lambda layer: layer.deviation / layer.bound)
        checks.append(
            Check(
                "soft-reset identity",
                all(layer.holds for layer in layers),
                f"largest deviation / bound = {worst.deviation / worst.bound:.3f} in {worst.layer}",
            )
        )
    tell("soft-reset identity", 3, 3)
    return Verification(tuple(checks), layers)


def _valid(compiled: CompiledFile) -> Check:
    name = "valid ONNX, own rules"
    try:
        verify_output(compiled.model)
    except InternalError as error:
        return Check(name, False, error.findings[0].message)
    return Check(name, True, "checker, strict shape inference, thresholds")


def _same_again(compiled: CompiledFile, prepared: Prepared, feeds: Mapping[str, Array]) -> Check:
    """What the compiler emits from the same calibration: the same bytes, or of another version the
    same outputs."""
    again = emit(prepared, compiled.calibration, compiled.options)
    version = compiled.metadata["snnc.version"]
    if version == __version__:
        # The source's file name may have changed since; it is only a remark.
        for entry in again.metadata_props:
            if entry.key == "snnc.source":
                entry.value = compiled.metadata["snnc.source"]
        raw = [model.SerializeToString(deterministic=True) for model in (compiled.model, again)]
        same = raw[0] == raw[1]
        return Check("emits the same bytes again", same, "identical" if same else "different")
    names = compiled.outputs
    mine, other = (create_session(m).run(names, dict(feeds)) for m in (compiled.model, again))
    largest = scale = 0.0
    for first, second in zip(mine, other, strict=True):
        wide = np.asarray(second, np.float64)
        largest = max(largest, float(np.abs(np.asarray(first) - wide).max(initial=0)))
        scale = max(scale, float(np.abs(wide).max(initial=0)))
    detail = (
        f"compiled by {version}, this is {__version__}; outputs differ by at most {largest:.3g}"
    )
    return Check("computes what is emitted again", largest <= BATCH_TOLERANCE * scale, detail)


def _stepped(compiled: CompiledFile, prepared: Prepared, feeds: Mapping[str, Array]) -> Check:
    """A step model, stepped, against `loop` with as many time-steps, from the first to the last."""
    steps = min(compiled.steps, UNROLL_STEPS)
    window = replace(compiled.options, emit="window", unroll="loop", steps=steps)
    whole = emit(prepared, compiled.calibration, window)
    name = read_compiled(whole).metadata["snnc.steps_input"]
    session = create_session(whole)
    stream = Stream(compiled.model)
    largest = 0.0
    for done in range(1, steps + 1):
        outputs = stream.step(feeds)
        expected = session.run(None, {**feeds, name: np.array(done)})
        for key, reference in zip(stream.outputs, expected, strict=True):
            difference = np.abs(outputs[key].astype(np.float64) - reference)
            largest = max(largest, float(difference.max(initial=0)))
    detail = f"outputs after 1 to {steps} steps differ by at most {largest:.3g}"
    return Check("stepped = loop", largest == 0.0, detail)


def _same_in_every_way(
    compiled: CompiledFile, prepared: Prepared, feeds: Mapping[str, Array]
) -> list[Check]:
    """`fold` with several K, `loop` and `steps` against each other, at the same T."""
    steps = min(compiled.steps, UNROLL_STEPS)
    ways: list[tuple[Unroll, int | None]] = [("loop", None), ("steps", None)]
    window = replace(compiled.options, emit="window", batch=None, target="portable")
    fold = replace(window, unroll="fold", chunk=None)
    if read_compiled(emit(prepared, compiled.calibration, fold)).options.unroll == "fold":
        ways += [("fold", chunk) for chunk in sorted({min(4, steps), steps})]
    checks = []
    reference: list[Array] | None = None
    for unroll, chunk in ways:
        options = replace(window, unroll=unroll, chunk=chunk, steps=steps)
        emitted = emit(prepared, compiled.calibration, options)
        counts, outputs = _spike_counts(emitted, prepared, feeds)
        if reference is None:
            reference, expected = counts, outputs
            continue
        name = f"{unroll}{f' (K = {chunk})' if chunk else ''} = loop at T = {steps}"
        checks.append(_compared(name, (counts, outputs), (reference, expected)))
    return checks


def _portable(compiled: CompiledFile, prepared: Prepared) -> CompiledFile:
    """The file from which this one was lowered: it has the neurons' currents."""
    options = replace(compiled.options, target="portable")
    return read_compiled(emit(prepared, compiled.calibration, options))


def _same_by_events(
    compiled: CompiledFile, portable: CompiledFile, prepared: Prepared, feeds: Mapping[str, Array]
) -> Check:
    """The lowered file against the file that it was lowered from, at its own T."""
    lowered, plain = (
        _spike_counts(file.model, prepared, feeds, events=False) for file in (compiled, portable)
    )
    return _compared(f"lowered = portable at T = {compiled.steps}", lowered, plain)


#: Spike counts by layer, and the network's float outputs.
Counted = tuple[list[Array], list[Array]]


def _compared(name: str, found: Counted, expected: Counted) -> Check:
    moved = sum(
        int((a.reshape(b.shape) != b).sum()) for a, b in zip(found[0], expected[0], strict=True)
    )
    total = sum(count.size for count in found[0])
    largest = max(
        float(np.abs(a - b).max(initial=0)) for a, b in zip(found[1], expected[1], strict=True)
    )
    detail = f"{moved} of {total:,} spike counts differ, outputs by at most {largest:.3g}"
    return Check(name, moved <= MOVED_SHARE * total, detail)


def _spike_counts(
    model: onnx.ModelProto, prepared: Prepared, feeds: Mapping[str, Array], events: bool = True
) -> Counted:
    watched = watch(model)
    values = create_session(watched.model, events=events).run(None, dict(feeds))
    names = [entry.name for entry in watched.model.graph.output]
    by_name = dict(zip(names, values, strict=True))
    own = [by_name[entry.name] for entry in prepared.graph.outputs]
    counts = [by_name[Watched.output(layer, "count")] for layer in watched.layers]
    return counts, [np.asarray(output) for output in own if np.asarray(output).dtype.kind == "f"]


def _identity(compiled: CompiledFile, feeds: Mapping[str, Array]) -> tuple[LayerIdentity, ...]:
    """The identity on every neuron of the given file.

    Two runs where the chunk can be chosen: one step at a time, which shows every membrane potential,
    and as the file stands.
    """
    watched = watch(compiled.model, currents=True)
    session = create_session(watched.model)
    names = [entry.name for entry in watched.model.graph.output]
    single = compiled.overrides(chunk=1) if compiled.metadata["snnc.chunk_input"] else {}
    runs = [
        dict(zip(names, session.run(None, {**feeds, **chosen}), strict=True))
        for chosen in ([single, {}] if single else [{}])
    ]
    found = []
    for layer in watched.layers:
        theta = layer.threshold.astype(np.float64)
        start = layer.membrane_start.astype(np.float64)
        largest_v = np.maximum(np.abs(start), runs[0][Watched.output(layer, "membrane_max")])
        bound = _bound(layer, largest_v)
        charge = layer.charge(compiled.steps) / compiled.steps
        deviation = np.zeros_like(bound)
        for run in runs:
            count, total, end = (
                run[Watched.output(layer, what)].astype(np.float64)
                for what in ("count", "current_sum", "membrane_end")
            )
            mean_x, rate = total / compiled.steps, count / compiled.steps
            left = np.abs(theta * rate - (mean_x + charge - (end - start) / compiled.steps))
            deviation = np.maximum(deviation, left)
        at = np.unravel_index(int(np.argmax(deviation / bound)), bound.shape)
        found.append(
            LayerIdentity(
                layer=layer.name,
                deviation=float(deviation[at]),
                bound=float(bound[at]),
                membrane_max=float(largest_v.max()),
                holds=bool((deviation <= bound).all()),
                above=float((end > layer.largest).mean()),
                below=float((end < 0).mean()),
            )
        )
    return tuple(found)


def _bound(layer: Layer, largest_v: Array) -> Array:
    """The largest deviation that float32 allows (see the head of this file)."""
    theta = layer.largest.astype(np.float64)
    if layer.schedule is None:
        return np.asarray(2.0**-24 * (2 * largest_v + theta))
    products = 2 if layer.levels == 1 else 3
    return np.asarray(
        2.0**-24 * (3 * largest_v + products * theta + layer.largest_charge.astype(np.float64))
    )
