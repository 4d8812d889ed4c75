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

In layered time nothing is left open: a neuron with the complete current X sends spikes that stand for
n = clip(floor((X + v(0)) / θ), 0, L), which is to say that its potential r = X + v(0) - θ·n ends

    below θ, unless n = L, and not below 0, unless n = 0.

|v| is largest before the first spike; adding v(0) rounds once, and each step does, at most 2^-24·|v|.
So r misses these ends by at most 2^-24·(T + 1)·max|v|, where X is what the neuron's own sum gives.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from snncompiler.analysis.instrument import Layer, Watched, watch
from snncompiler.analysis.integers import compare_integers
from snncompiler.analysis.whole import Way, bits_of, layered_ways, off_grid, ways
from snncompiler.calibration.calibrate import Progress
from snncompiler.emission.compiled import CompiledFile, read_compiled
from snncompiler.emission.emit import emit
from snncompiler.emission.metadata import METADATA_VERSION
from snncompiler.errors import InternalError, Refused, refuse
from snncompiler.ir import dialect
from snncompiler.ir.operators import record
from snncompiler.ir.settings import Unroll
from snncompiler.network.batching import filled
from snncompiler.network.checks import BATCH_TOLERANCE, check_batch
from snncompiler.network.data import Dataset, Preprocess
from snncompiler.network.prepare import prepared_again
from snncompiler.network.prepared import Prepared, synthetic_feeds
from snncompiler.passes.lower.collapse_levels import LevelNote
from snncompiler.passes.lower.collapse_time import collapse_time
from snncompiler.passes.lower.verify_output import verify_output
from snncompiler.runtime.library import library_path
from snncompiler.runtime.session import Device, create_session, runs_events, runs_on_cuda
from snncompiler.runtime.stream import Stream
from snncompiler.version import __version__

Array = NDArray[Any]

#: Samples that are run.
SAMPLES = 4
#: Of a pipeline of layers in real numbers beside its window, relative, root mean square: sums in
#: another order are off by 1e-6, and a neuron that is a level off for that changes little more; an
#: image or a delay that is wrong changes all.
PIPELINE_TOLERANCE = 1e-3
#: The same in float16, whose roundings onnxruntime leaves out on the CPU where it can.
HALF_TOLERANCE = 0.1
#: Time-steps at which the three ways are compared; `steps` writes a copy of the graph for each.
UNROLL_STEPS = 16


#: How far from half-way between two integers, in levels, may lie what a layer sends otherwise than the
#: source whose integers it is fed with: float32 sums in another order are off by 1e-5 levels.
FROM_HALF = 1e-3

#: In the names of checks.
ON: dict[Device, str] = {"cpu": "", "cuda": " on CUDA"}
#: What holds for a layer in layered time.
LEVELS = "Levels: 0 <= X + v(0) - θ·n < θ, but for n = 0 and n = L"


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
    and with v(T) < 0.  In layered time the deviation is what v(T) is outside of its range.
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
    """Every check with its result, and the soft-reset identity of every layer."""

    checks: tuple[Check, ...]
    layers: tuple[LayerIdentity, ...]
    #: What holds for each of the layers, as a formula.
    holds: str = "Soft-reset identity: θ·mean(s) = mean(x + b) - (v(T) - v(0))/T"

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

    data: samples to run, of which the first 4 are taken; by default seeded synthetic input.
    Raises Refused if `snn` is no compiled file, or one of another network.  A check that fails raises
    nothing: it is in the result.
    """
    compiled = read_compiled(snn)
    prepared = prepared_again(model, compiled.options, compiled.keeps_rounding)
    if not prepared.source.is_known_as(compiled.metadata["snnc.source_sha256"]):
        raise refuse(
            "SNNC402",
            f"{prepared.source.name} is not the network that the compiled file was made from",
            hint=f"that was {compiled.metadata['snnc.source']}",
        )
    if data is None:
        feeds: Mapping[str, Array] = synthetic_feeds(prepared, SAMPLES, compiled.options.seed)
    else:
        feeds = (
            compiled.data(data, preprocess, inputs=prepared.inputs).head(SAMPLES).in_memory().feeds
        )
        prepared.take_sizes_of(feeds)
    check_batch(prepared, compiled.options.seed)
    if compiled.fixed_batch is not None:
        have = min(len(next(iter(feeds.values()))), compiled.fixed_batch)
        feeds = filled(feeds, slice(0, have), compiled.fixed_batch)
    tell = progress or (lambda text, done, of: None)

    tell("emitting again", 0, 3)
    checks = [_valid(compiled)]
    if not checks[0].passed:
        return Verification(tuple(checks), ())
    try:
        layers = _run_checks(compiled, prepared, feeds, checks, tell)
    except Refused as refused:
        text = f"{refused.findings[0].node} {refused.findings[0].message}".strip()
        return Verification((*checks, Check("runs", False, text)), ())
    except Exception as error:  # onnxruntime's own classes have no common base
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        return Verification((*checks, Check("runs", False, str(error).splitlines()[0][:300])), ())
    if compiled.options.layered:
        return Verification(tuple(checks), layers, LEVELS)
    return Verification(tuple(checks), layers)


def _run_checks(
    compiled: CompiledFile,
    prepared: Prepared,
    feeds: Mapping[str, Array],
    checks: list[Check],
    tell: Progress,
) -> tuple[LayerIdentity, ...]:
    """Add the checks that run the network; the identity of every layer."""
    checks.append(_same_again(compiled, prepared, feeds))
    if compiled.options.layered and compiled.options.emit == "step":
        tell("pipeline of layers", 1, 3)
        return _run_pipeline_checks(compiled, prepared, feeds, checks)
    if compiled.options.layered:
        tell("levels", 1, 3)
        return _run_layered_checks(compiled, prepared, feeds, checks)
    tell("unrolling", 1, 3)
    if compiled.grid.layers:
        checks += _same_bits(compiled, prepared, feeds)
    else:
        checks += _same_in_every_way(compiled, prepared, feeds)
    if compiled.options.emit == "window" and not compiled.grid.layers:
        checks += _same_by_events(compiled, prepared, feeds)
    portable = _portable(compiled, prepared) if compiled.options.target == "cpu" else compiled
    tell("soft-reset identity", 2, 3)
    layers: tuple[LayerIdentity, ...] = ()
    if compiled.options.emit == "step":
        checks += [_stepped(compiled, prepared, feeds, where) for where in _devices(compiled)]
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
    return layers


def _devices(compiled: CompiledFile) -> list[Device]:
    """Where the outputs of a file have the same bits: on CUDA in whole numbers, where CUDA runs."""
    return ["cpu", "cuda"] if compiled.grid.read_out == "all" and runs_on_cuda() else ["cpu"]


def _run_pipeline_checks(
    compiled: CompiledFile,
    prepared: Prepared,
    feeds: Mapping[str, Array],
    checks: list[Check],
) -> tuple[LayerIdentity, ...]:
    """The window of the same layers, and the pipeline beside it, image behind image.

    In whole numbers their outputs are the same bits.  Elsewhere a product with more rows may add up in
    another order; what little that changes is allowed (`PIPELINE_TOLERANCE`).
    """
    options = replace(compiled.options, emit="window")
    window = read_compiled(emit(prepared, compiled.calibration, options))
    session = create_session(window.model, events=False, threads=1)
    images = [feeds, {name: array[::-1].copy() for name, array in feeds.items()}]
    half = compiled.options.precision == "fp16"
    allowed = HALF_TOLERANCE if half else PIPELINE_TOLERANCE
    if compiled.grid.read_out == "all":
        allowed = 0.0
    for device in _devices(compiled):
        stream = Stream(compiled.model, threads=1, device=device)
        largest, answered = 0.0, 0
        for image, outputs in zip(images, stream.answers(images), strict=True):
            answered += (
                stream.steps_done == compiled.latency(compiled.steps) + answered * compiled.steps
            )
            wanted = session.run(window.outputs, image)
            for name, value in zip(window.outputs, wanted, strict=True):
                largest = max(largest, _relative(outputs[name], np.asarray(value)))
        same = "the same bits"
        detail = same if not largest else f"a relative difference of {largest:.2g} at most"
        name = f"pipeline of layers{ON[device]} = window"
        checks.append(Check(name, largest <= allowed, detail))
        told = f"{answered} of {len(images)} images after {compiled.latency(compiled.steps)} steps"
        checks.append(Check(f"latency and period{ON[device]}", answered == len(images), told))
    return _run_layered_checks(window, prepared, feeds, checks)


def _relative(found: Array, wanted: Array) -> float:
    """The root mean square of a difference, over that of what is wanted; infinite where the two cannot
    be compared."""
    if found.shape != wanted.shape:
        return float("inf")
    if np.array_equal(found, wanted, equal_nan=wanted.dtype.kind == "f"):
        return 0.0
    wide, other = wanted.astype(np.float64), found.astype(np.float64)
    size = float(np.sqrt(np.mean(np.square(wide)))) or 1.0
    change = float(np.sqrt(np.mean(np.square(wide - other)))) / size
    return change if np.isfinite(change) else float("inf")


def _run_layered_checks(
    compiled: CompiledFile,
    prepared: Prepared,
    feeds: Mapping[str, Array],
    checks: list[Check],
) -> tuple[LayerIdentity, ...]:
    """The bodies against the kernels, and the levels of every neuron."""
    found = _counted(compiled.model, prepared, feeds, compiled.steps)
    # In float16 onnxruntime leaves out the roundings of currents on the CPU, where it has the bodies.
    if library_path() is not None and compiled.options.precision == "fp32":
        bodies = _counted(compiled.model, prepared, feeds, compiled.steps, native=False)
        checks.append(_compared("native kernels = function bodies", found, bodies))
    by_counts = _same_by_counts(compiled, feeds)
    if by_counts is not None:
        checks.append(by_counts)
    if compiled.keeps_rounding:
        checks.append(_integers(compiled, prepared, feeds))
    if compiled.grid.layers:
        off = off_grid(compiled.model, compiled.grid)
        told = "; ".join(off[:3]) or f"{len(compiled.grid.layers)} layers"
        checks.append(Check("all weights and charges lie on their grid", not off, told))
        every = layered_ways(compiled.model)
        checks.append(_same_bits_of(every, compiled, feeds, compiled.steps))
    layers = _levels(compiled, feeds)
    worst = max(layers, key=lambda layer: layer.deviation / layer.bound)
    detail = f"largest deviation / bound = {worst.deviation / worst.bound:.3f} in {worst.layer}"
    checks.append(Check("levels of complete currents", all(x.holds for x in layers), detail))
    return layers


def _same_by_counts(compiled: CompiledFile, feeds: Mapping[str, Array]) -> Check | None:
    """Whether the network whose time is collapsed gives the bits of the spiking file: its outputs, and
    what every layer sends.  None where no layer computes with counts."""
    alone = collapse_time(compiled.model)
    if not alone.changed:
        return None
    if any(isinstance(note, LevelNote) for note in alone.layers):
        return _near_by_levels(compiled, feeds)
    watched = watch(compiled.model)
    collapsed = collapse_time(watched.model)
    names = [entry.name for entry in watched.model.graph.output]
    mine, wanted = (
        create_session(model, events=False).run(names, dict(feeds))
        for model in (collapsed.model, watched.model)
    )
    different = [
        name
        for name, one, two in zip(names, mine, wanted, strict=True)
        if np.asarray(one).tobytes() != np.asarray(two).tobytes()
    ]
    done = sum(bool(layer.operator) for layer in collapsed.layers)
    layers = f"{done} of {len(collapsed.layers)} layers by counts"
    detail = f"differs in {different[0]}" if different else "the same bits"
    return Check("by counts = spiking file", not different, f"{detail}, {layers}")


def _near_by_levels(compiled: CompiledFile, feeds: Mapping[str, Array]) -> Check:
    """The network of real weights whose time is collapsed against the spiking file, layer by layer.

    A current X adds n products, which all steps share in one file, and which are added over T steps in
    the other; |x_1| + ... + |x_n| <= A, the largest that can arrive.  Each is off by at most
    (n + T)·2^-24·A, whatever the order, and from X a neuron subtracts at most T charges.  So the two
    currents differ by at most

        ε = 2·(n + T + 4)·2^-24·(A + |v(0)| + L·θ)

    and what a neuron sends may differ only where X + v(0) is within ε of a whole number of charges.  A
    spike that moves reaches the layers behind: they are compared for the samples in which all layers
    before them sent the same.  In every sample each neuron sends the level of its own current.
    """
    watched = watch(compiled.model, currents=True)
    seen = [Watched.output(x, what) for x in watched.layers for what in ("count", "current_sum")]
    names = [*compiled.outputs, *seen]
    spiking = _giving(watched.model, names)
    collapsed = collapse_time(spiking)
    found, wanted = (
        dict(zip(names, create_session(m, events=False).run(names, dict(feeds)), strict=True))
        for m in (collapsed.model, spiking)
    )
    notes = {note.name: note for note in collapsed.layers}
    batch = len(next(iter(feeds.values())))
    agreed, worst, where, moved, compared = np.ones(batch, bool), 0.0, "", 0, 0
    for layer in watched.layers:
        note = notes[layer.name]
        assert isinstance(note, LevelNote)
        count, total = (Watched.output(layer, what) for what in ("count", "current_sum"))
        theta, start = (x.astype(np.float64) for x in (layer.threshold, layer.membrane_start))
        share = 2 * (note.products + compiled.steps + 4) * 2.0**-24
        epsilon = share * (note.size * layer.levels + np.abs(start) + layer.levels * theta)
        one, two = (np.asarray(values[total], np.float64) for values in (found, wanted))
        sent, expected = (np.asarray(values[count], np.float64) for values in (found, wanted))
        different = sent != expected
        edge = np.abs(two + start - theta * np.maximum(sent, expected))
        off = np.where(different, np.maximum(np.abs(one - two), edge), np.abs(one - two))
        ratio = np.asarray(off / epsilon)
        moved += int(different.sum())
        if (compiled.layer_axes or {}).get(layer.name, 0) == 0 and len(ratio) == batch:
            ratio, same = ratio[agreed], ~different.reshape(batch, -1).any(axis=1)
        else:  # the samples cannot be told apart
            ratio, same = ratio[: None if agreed.all() else 0], ~different.any()
        compared += int(agreed.sum())
        if ratio.max(initial=0) > worst:
            worst, where = float(ratio.max()), f" in {layer.name}"
        agreed &= same
    change = _change(compiled, found, wanted) if agreed.all() else 0.0
    levels = all(layer.holds for layer in _levels_of(watched.layers, found, compiled.steps))
    detail = (
        f"currents differ by at most {worst:.3g} of what rounding can do{where}, outputs by "
        f"{change:.3g} of the largest; {moved:,} counts moved; {compared} of "
        f"{batch * len(watched.layers)} layers of samples compared"
    )
    passed = worst <= 1 and change <= BATCH_TOLERANCE and levels
    exact = bool(compiled.grid.layers)  # sums of whole numbers are the same in any order
    if exact:
        passed = passed and not moved and worst == 0
    name = "by counts = spiking file" + ("" if exact else ", but for rounding")
    return Check(name, passed, detail)


def _giving(model: onnx.ModelProto, outputs: Sequence[str]) -> onnx.ModelProto:
    """A copy that has these outputs only, and computes nothing else."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [entry for entry in copy.graph.output if entry.name in outputs]
    del copy.graph.output[:], copy.graph.node[:]
    copy.graph.output.extend(kept)
    read, nodes = set(outputs), []
    for node in reversed(model.graph.node):
        if read.intersection(node.output):
            read.update(node.input)
            nodes.append(node)
    copy.graph.node.extend(reversed(nodes))
    return copy


def _integers(compiled: CompiledFile, prepared: Prepared, feeds: Mapping[str, Array]) -> Check:
    """Whether each layer, fed with the integers of a quantized source, sends the source's: where sums
    of floats in another order fall to the other side of a half, a level more or less."""
    alone = compare_integers(prepared, compiled.model, feeds, fed=True)
    whole = compare_integers(prepared, compiled.model, feeds)
    passed = alone.largest <= 1 and alone.from_half <= FROM_HALF
    near = f", {alone.from_half:.1g} levels from a half" if alone.from_half else ""
    detail = f"each layer fed with the source's: {alone}{near}; in the whole network: {whole}"
    return Check("integers of the quantized source", passed, detail)


def _levels(compiled: CompiledFile, feeds: Mapping[str, Array]) -> tuple[LayerIdentity, ...]:
    """Whether every neuron of layered time sends the level of its current (the head of this file)."""
    watched = watch(compiled.model, currents=True)
    session = create_session(watched.model, events=False)
    names = [entry.name for entry in watched.model.graph.output]
    values = dict(zip(names, session.run(None, dict(feeds)), strict=True))
    return _levels_of(watched.layers, values, compiled.steps)


def _levels_of(
    layers: Sequence[Layer], values: Mapping[str, Array], steps: int
) -> tuple[LayerIdentity, ...]:
    """Whether the count of every neuron is the level of its current; of a watched file's outputs."""
    found = []
    for layer in layers:
        theta, start = (x.astype(np.float64) for x in (layer.threshold, layer.membrane_start))
        count, total = (
            np.asarray(values[Watched.output(layer, what)], np.float64)
            for what in ("count", "current_sum")
        )
        left = total + start - theta * count
        outside = np.maximum(
            np.where(count < layer.levels, left - theta, 0), np.where(count > 0, -left, 0)
        )
        outside = np.where((count < 0) | (count > layer.levels), np.inf, np.maximum(outside, 0))
        largest_v = np.maximum(np.abs(total + start), np.finfo(np.float32).tiny)
        bound = 2.0**-24 * (steps + 1) * largest_v
        at = np.unravel_index(int(np.argmax(outside / bound)), bound.shape)
        found.append(
            LayerIdentity(
                layer=layer.name,
                deviation=float(outside[at]),
                bound=float(bound[at]),
                membrane_max=float(largest_v.max()),
                holds=bool((outside <= bound).all()),
                above=float((left > theta + bound).mean()),
                below=float((left < -bound).mean()),
            )
        )
    return tuple(found)


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
    if version == __version__ and compiled.metadata_version == METADATA_VERSION:
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


def _stepped(
    compiled: CompiledFile,
    prepared: Prepared,
    feeds: Mapping[str, Array],
    device: Device,
) -> Check:
    """A step model, stepped, against `loop` with as many time-steps, from the first to the last."""
    steps = min(compiled.steps, UNROLL_STEPS)
    window = replace(compiled.options, emit="window", unroll="loop", steps=steps)
    whole = emit(prepared, compiled.calibration, window)
    name = read_compiled(whole).metadata["snnc.steps_input"]
    session = create_session(whole)
    stream = Stream(compiled.model, device=device)
    largest = 0.0
    for done in range(1, steps + 1):
        outputs = stream.step(feeds)
        expected = session.run(None, {**feeds, name: np.array(done)})
        for key, reference in zip(stream.outputs, expected, strict=True):
            difference = np.abs(outputs[key].astype(np.float64) - reference)
            largest = max(largest, float(difference.max(initial=0)))
    detail = f"outputs after 1 to {steps} steps differ by at most {largest:.3g}"
    return Check(f"stepped{ON[device]} = loop", largest == 0.0, detail)


def _same_in_every_way(
    compiled: CompiledFile, prepared: Prepared, feeds: Mapping[str, Array]
) -> list[Check]:
    """The file as it stands, `steps`, and `fold` with several K, each against `loop` at the same T.

    All of them dense, where every value is the sum of the same products in the same order: time that is
    folded into the batch adds rows to a product, and no terms.  So all is equal to the last bit.
    """
    steps = min(compiled.steps, UNROLL_STEPS)
    window = replace(compiled.options, emit="window", batch=None, target="portable")
    loop = emit(prepared, compiled.calibration, replace(window, unroll="loop", chunk=None))
    checks = []
    if compiled.options.target == "portable" and compiled.options.emit != "step":
        own = compiled.steps if not compiled.metadata["snnc.steps_input"] else steps
        wanted = _counted(loop, prepared, feeds, own)
        found = _counted(compiled.model, prepared, feeds, own)
        checks.append(_compared(f"this file = loop at T = {own}", found, wanted))
    wanted = _counted(loop, prepared, feeds, steps)
    ways: list[tuple[Unroll, int | None]] = [("steps", None)]
    fold = replace(window, unroll="fold", chunk=None)
    if read_compiled(emit(prepared, compiled.calibration, fold)).options.unroll == "fold":
        ways += [("fold", chunk) for chunk in sorted({min(4, steps), steps})]
    for unroll, chunk in ways:
        options = replace(window, unroll=unroll, chunk=chunk, steps=steps)
        found = _counted(emit(prepared, compiled.calibration, options), prepared, feeds, steps)
        name = f"{unroll}{f' (K = {chunk})' if chunk else ''} = loop at T = {steps}"
        checks.append(_compared(name, found, wanted))
    return checks


def _same_bits(
    compiled: CompiledFile, prepared: Prepared, feeds: Mapping[str, Array]
) -> list[Check]:
    """Of a file in whole numbers: all weights lie on their grid, and every way of running the network
    gives the same bits.  Nothing is left to rounding, so nothing is allowed for."""
    portable = _portable(compiled, prepared, compact=False)
    off = off_grid(portable.model, compiled.grid)
    told = "; ".join(off[:3]) or f"{len(compiled.grid.layers)} layers"
    checks = [Check("all weights and charges lie on their grid", not off, told)]
    window = replace(compiled.options, emit="window", batch=None, target="portable", compact=False)

    def form(**more: Any) -> onnx.ModelProto:
        return emit(prepared, compiled.calibration, replace(window, **more))

    steps = min(compiled.steps, UNROLL_STEPS)
    own = compiled.options.emit != "step" and compiled.steps == steps
    folds = read_compiled(form(unroll="fold", chunk=None)).options.unroll == "fold"
    lowered = compiled.options.target == "cpu"
    every = ways(compiled.model, form, steps, folds, own, lowered)
    return [*checks, _same_bits_of(every, compiled, feeds, steps)]


def _same_bits_of(
    every: Iterable[Way], compiled: CompiledFile, feeds: Mapping[str, Array], steps: int
) -> Check:
    """Whether all ways of running a network give the bits of the first one."""
    outputs = compiled.outputs if compiled.grid.read_out == "all" else []
    wanted: list[bytes] = []
    count, different, devices = 0, [], {"cpu"}
    for way in every:
        found = bits_of(way, feeds, outputs)
        wanted = wanted or found
        count += 1
        devices.add(way.device)
        if found != wanted:
            different.append(way.name)
    what = "spikes and outputs" if outputs else "spikes"
    where = " on CPU and CUDA" if "cuda" in devices else ""
    detail = f"{what} of {count} ways{where} at T = {steps}"
    if different:
        detail = f"{len(different)} of {count} ways have other {what}: {'; '.join(different[:4])}"
    return Check("the same bits in every way", not different, detail)


def _portable(compiled: CompiledFile, prepared: Prepared, **more: Any) -> CompiledFile:
    """The file from which this one was lowered: it has the neurons' currents."""
    options = replace(compiled.options, target="portable", **more)
    return read_compiled(emit(prepared, compiled.calibration, options))


#: Spike counts by layer, and the network's outputs.
Counted = tuple[list[Array], list[Array]]


def _compared(name: str, found: Counted, expected: Counted) -> Check:
    moved = sum(int((a != b).sum()) for a, b in zip(found[0], expected[0], strict=True))
    total = sum(count.size for count in found[0])
    shapes = [a.shape == b.shape for a, b in zip(found[1], expected[1], strict=True)]
    if not all(shapes):
        return Check(name, False, "the outputs have other shapes")
    pairs = list(zip(found[1], expected[1], strict=True))
    same = all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)
    largest = max(
        float(np.abs(a - b).max(initial=0)) if a.dtype.kind == "f" else float((a != b).any())
        for a, b in pairs
    )
    detail = f"{moved} of {total:,} spike counts differ, outputs by at most {largest:.3g}"
    return Check(name, moved == 0 and same, detail)


def _counted(
    model: onnx.ModelProto,
    prepared: Prepared,
    feeds: Mapping[str, Array],
    steps: int,
    native: bool | Literal["auto"] = "auto",
) -> Counted:
    """What a file gives at `steps` time-steps, which may be its own, dense and on one thread."""
    watched = watch(model)
    name = next(e.value for e in model.metadata_props if e.key == "snnc.steps_input")
    asked = {name: np.array(steps)} if name else {}
    session = create_session(watched.model, events=False, threads=1, native=native)
    values = session.run(None, {**feeds, **asked})
    names = [entry.name for entry in watched.model.graph.output]
    by_name = dict(zip(names, map(np.asarray, values), strict=True))
    counts = [by_name[Watched.output(layer, "count")] for layer in watched.layers]
    return counts, [by_name[entry.name] for entry in prepared.graph.outputs]


# --- by events ---


def _same_by_events(
    compiled: CompiledFile, prepared: Prepared, feeds: Mapping[str, Array]
) -> list[Check]:
    """The network by events against the dense one, step by step, each step from the dense states.

    Kernels that run by events add the same products in another order.  Let x be a sum of n products,
    and A the sum of their sizes: in any order it is off by at most n·r·A, where r = 2^-24 (2^-11 in
    float16) is what one operation rounds by.  So the potentials u from which neurons fire differ by at
    most

        ε = 2·(n + 4)·r·(A + |u| + G·θ + |b|)

    where the 4 holds the roundings of the neuron itself (the head of this file).  A spike can move only
    where u is within ε of the charge at which it is sent.  It reaches the layers behind in the same
    step; these are compared for the samples in which all layers before them sent the same.  The next
    step starts from the dense states again, so nothing adds up, however deep the network is.  Where no
    spike moved, the outputs are the same up to the order of sums in the read-out (`BATCH_TOLERANCE`).

    No check where nothing runs by events.
    """
    lower = compiled.options.target == "portable"
    events = watch(compiled.model, events=lower, resume=True)
    notes = events.events if lower else compiled.lowered
    if (lower and not runs_events()) or not any(note.operator for note in notes):
        return []
    looped = _portable(compiled, prepared, unroll="loop", chunk=None)
    dense = watch(looped.model, resume=True)
    steps = min(compiled.steps, UNROLL_STEPS)
    sizes = _magnitudes(looped.model, feeds)
    unit = 2.0**-11 if compiled.options.precision == "fp16" else 2.0**-24
    plain, other = _Stepper(dense, looped), _Stepper(events, compiled)
    states = {plain.inside(entry): first for entry, (first, _) in dense.states.items()}
    batch = len(next(iter(feeds.values())))
    worst, where, moved, change = 0.0, "", 0, 0.0
    for done in range(steps):
        wanted, after = plain.step(feeds, done, states)
        found, _ = other.step(feeds, done, states)
        agreed = np.ones(batch, bool)
        for layer in dense.layers:
            before = states[f"{layer.root}/in/{layer.name}/count_before"]
            ends = [_Fired.of(layer, values, before, wanted) for values in (wanted, found)]
            size, products = sizes[layer.name]
            ratio = ends[0].against(ends[1], layer, size, 2 * (products + 4) * unit)
            different = ends[0].spikes != ends[1].spikes
            moved += int(different.sum())
            if (compiled.layer_axes or {}).get(layer.name, 0) == 0 and len(ratio) == batch:
                ratio, same = ratio[agreed], ~different.reshape(batch, -1).any(axis=1)
            else:  # the samples cannot be told apart
                ratio, same = ratio[: None if agreed.all() else 0], ~different.any()
            if ratio.max(initial=0) > worst:
                worst, where = float(ratio.max()), f" in {layer.name} at step {done + 1}"
            agreed &= same
        if agreed.all():
            change = max(change, _change(compiled, found, wanted))
        states = after
    detail = (
        f"potentials differ by at most {worst:.3g} of what rounding can do{where}, outputs by "
        f"{change:.3g} of the largest; {moved:,} spikes moved"
    )
    passed = worst <= 1 and change <= BATCH_TOLERANCE
    return [Check(f"by events = dense in {steps} steps", passed, detail)]


def _change(
    compiled: CompiledFile, found: Mapping[str, Array], wanted: Mapping[str, Array]
) -> float:
    """The largest difference of a float output, relative to its largest value."""
    largest = 0.0
    for name in compiled.outputs:
        a, b = found[name], wanted[name]
        if b.dtype.kind == "f" and a.shape == b.shape:
            scale = float(np.abs(b).max(initial=0)) or 1.0
            largest = max(largest, float(np.abs(a - b).max(initial=0)) / scale)
    return largest


@dataclass(frozen=True)
class _Fired:
    """What a layer did in one step: its spikes, and u, the potentials from which it fired."""

    spikes: Array
    full: Array

    @staticmethod
    def of(
        layer: Layer, values: Mapping[str, Array], before: Array, like: Mapping[str, Array]
    ) -> _Fired:
        count, end = (Watched.output(layer, what) for what in ("count", "membrane_end"))
        shape = like[count].shape
        spikes = values[count].reshape(shape) - before
        left = values[end].reshape(shape).astype(np.float64)
        return _Fired(spikes, left + layer.threshold.astype(np.float64) * spikes)

    def against(self, other: _Fired, layer: Layer, size: Array, share: float) -> Array:
        """How far the two are apart, in units of ε = share·(A + |u| + G·θ + |b|): in u, and where the
        spikes are not the same, in what was missing to send or not to send one."""
        theta = layer.threshold.astype(np.float64)
        most = layer.largest.astype(np.float64) + layer.largest_charge.astype(np.float64)
        edge = np.abs(self.full - theta * np.maximum(self.spikes, other.spikes))
        off = np.abs(self.full - other.full)
        off = np.where(self.spikes != other.spikes, np.maximum(off, edge), off)
        return np.asarray(off / (share * (size + np.abs(self.full) + most)))


class _Stepper:
    """Runs a resumable file one step from given states."""

    def __init__(self, watched: Watched, compiled: CompiledFile) -> None:
        self.watched = watched
        self.names = [entry.name for entry in watched.model.graph.output]
        self.steps = compiled.metadata["snnc.steps_input"]
        self._session = create_session(watched.model, events=False, threads=1)

    def inside(self, name: str) -> str:
        return self.watched.carried[name][0]

    def step(
        self, feeds: Mapping[str, Array], done: int, states: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Every output, and the states after it, [N, C, ...]; `states`: by their name inside."""
        given = {}
        for name, (inside, last) in self.watched.carried.items():
            first, _ = self.watched.states[name]
            # The start of a state is a constant that has its own form in either file.
            given[name] = (
                first if done == 0 else _channels_last(states[inside]) if last else states[inside]
            )
        asked = {self.watched.start: np.array(done), self.steps: np.array(done + 1)}
        values = self._session.run(None, {**feeds, **asked, **given})
        found = dict(zip(self.names, map(np.asarray, values), strict=True))
        after = {self.inside(n): found[out] for n, (_, out) in self.watched.states.items()}
        return found, after


def _channels_last(state: Array) -> Array:
    """A state [N, C, H, W] or [N, C] as event-driven operators hold it."""
    if state.ndim == 4:
        return np.ascontiguousarray(state.transpose(0, 2, 3, 1))
    return state.reshape(len(state), 1, 1, -1)


def _magnitudes(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, tuple[Array, int]]:
    """For every layer of a `loop` file: A, the sum of the sizes of the products in its current,
    [N, ...], and n, the most products in one sum, or in several that follow one another.

    A is what the layers give with the sizes of all weights, the sizes of all that does not change with
    time, and as many spikes everywhere as a neuron can send.
    """
    sized = _Sized(model)
    layers = {
        node.name: sized.size(node.input[0])
        for node in sized.body.node
        if node.domain == dialect.DOMAIN and node.op_type in dialect.NEURONS
    }
    values = create_session(sized.model(list(dict.fromkeys(layers.values()))), threads=1).run(
        list(layers.values()), dict(feeds)
    )
    return {
        layer: (np.asarray(value, np.float64), sized.products[name])
        for (layer, name), value in zip(layers.items(), values, strict=True)
    }


class _Sized:
    """Writes the graph of `_magnitudes`: the sizes of the tensors in the body of a Loop."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.whole = model
        loop = next(node for node in model.graph.node if node.op_type == "Loop")
        self.body: onnx.GraphProto = next(a.g for a in loop.attribute if a.name == "body")
        tensors = (*model.graph.initializer, *self.body.initializer)
        self.constants = {tensor.name: tensor for tensor in tensors}
        self.made = {name: node for node in self.body.node for name in node.output}
        self.nodes: list[onnx.NodeProto] = []
        self.added: dict[str, onnx.TensorProto] = {}
        #: How many products there are in the sums that a size stands for, by its name.
        self.products: dict[str, int] = {}

    def size(self, name: str) -> str:
        """The name of the sizes of a tensor's elements; adds what makes them."""
        sizes = f"snnc_size/{name}"
        if sizes in self.products:
            return sizes
        self.products[sizes] = 0
        if name in self.constants:
            array = numpy_helper.to_array(self.constants[name])
            if array.dtype.kind == "f":
                array = np.abs(array)
            self.added[sizes] = numpy_helper.from_array(array, sizes)
        elif name in self.made:
            self._make(self.made[name], name)
        else:  # from outside of the Loop: it does not change with time
            self.nodes.append(onnx.helper.make_node("Abs", [name], [sizes]))
        return sizes

    def _make(self, node: onnx.NodeProto, name: str) -> None:
        sizes = f"snnc_size/{name}"
        if node.domain == dialect.DOMAIN:
            self._ours(node, sizes)
            return
        inputs = [self.size(one) if one else "" for one in node.input]
        outputs = [f"snnc_size/{one}" if one else "" for one in node.output]
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.op_type = {"Sub": "Add", "Neg": "Identity"}.get(node.op_type, node.op_type)
        del copy.input[:], copy.output[:]
        copy.input.extend(inputs)
        copy.output.extend(outputs)
        self.nodes.append(copy)
        before = max((self.products[one] for one in inputs if one), default=0)
        for one in outputs:
            self.products[one] = before + _products(node, self.constants)

    def _ours(self, node: onnx.NodeProto, sizes: str) -> None:
        """Spikes are as many as can be, a running mean and what is driven are no more than their
        input, and of the differences of Telescope none is above 2·UNROLL_STEPS times it."""
        source = self.size(node.input[0])
        if node.op_type == "SpikeMaxPool":
            pooled = onnx.helper.make_node("MaxPool", [source], [sizes])
            pooled.attribute.extend(node.attribute)
            self.nodes.append(pooled)
            return
        spiking = node.op_type in (*dialect.NEURONS, "PoissonEncoder")
        factor, most = (0, 1) if spiking else (1, 0)
        if node.op_type == "Telescope":
            factor = 2 * UNROLL_STEPS
        if spiking:
            most = next((int(a.i) for a in node.attribute if a.name == "levels"), 1)
        for what, number in (("factor", factor), ("most", most)):
            name = f"{sizes}/{what}"
            self.added[name] = numpy_helper.from_array(np.array(number, np.float32), name)
        scaled = f"{sizes}/scaled"
        self.nodes += [
            onnx.helper.make_node("Mul", [source, f"{sizes}/factor"], [scaled]),
            onnx.helper.make_node("Add", [scaled, f"{sizes}/most"], [sizes]),
        ]

    def model(self, wanted: list[str]) -> onnx.ModelProto:
        """The model with the sizes as outputs, which reads the network's inputs."""
        copy = onnx.ModelProto()
        copy.CopyFrom(self.whole)
        graph = copy.graph
        after: set[str] = set()
        static = []
        for node in graph.node:  # what the Loop reads, and nothing that reads its results
            if node.op_type == "Loop" or after & set(node.input):
                after.update(node.output)
            else:
                static.append(node)
        del graph.node[:], graph.output[:]
        graph.node.extend([*static, *self.nodes])
        graph.initializer.extend(self.added.values())
        graph.output.extend(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            for name in wanted
        )
        return copy


def _products(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> int:
    """How many products at most a node adds up in one element of its output."""
    shapes = [list(constants[name].dims) for name in node.input if name in constants]
    kernel = next((list(a.ints) for a in node.attribute if a.name == "kernel_shape"), [1])
    layout = record(node.op_type).weights
    if layout == "outputs-first" and shapes:
        return prod(shapes[0][1:])
    if layout == "inputs-first" and shapes:
        return int(prod(shapes[0]) // shapes[0][1])
    if layout in ("matrix", "equation"):
        return max((max(shape, default=1) for shape in shapes), default=1) + 1
    return prod(kernel)


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
