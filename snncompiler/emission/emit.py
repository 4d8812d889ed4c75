"""From the normalized ANN and its calibration to the spiking network as an ONNX model."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import onnx

from snncompiler.calibration.observe import bounded
from snncompiler.calibration.record import Calibration, check_levels
from snncompiler.calibration.window import driving, spiking_graph, whole_read_out
from snncompiler.emission.metadata import metadata_of, tell_lowered, twin_metadata
from snncompiler.errors import Refused, UsageError, refuse
from snncompiler.findings import Finding
from snncompiler.ir.graph import (
    Graph,
    Tensor,
    infer_shapes,
    is_live,
    known,
    label,
)
from snncompiler.ir.grids import grids_of
from snncompiler.ir.growth import STEADY
from snncompiler.ir.rectifiers import rectified_channels, rectifier, rectifiers_of
from snncompiler.ir.settings import Options, chosen
from snncompiler.network.prepared import Prepared
from snncompiler.network.task import resolve
from snncompiler.passes.base import Context, Watch, run_passes
from snncompiler.passes.lower.attach_functions import attach_functions
from snncompiler.passes.lower.chunks import MAX_CHUNK
from snncompiler.passes.lower.collapse_time import collapse_time
from snncompiler.passes.lower.compact import compact
from snncompiler.passes.lower.lower_events import Lowered, lower_events
from snncompiler.passes.lower.lower_precision import LowerPrecision
from snncompiler.passes.lower.lower_windows import LowerWindows
from snncompiler.passes.lower.verify_output import verify_output
from snncompiler.passes.lower.write_twin import write_twin
from snncompiler.passes.normalize.track_batch import name_batch
from snncompiler.passes.time.layer_time import LayerTime
from snncompiler.passes.time.sink_time_mean import SinkTimeMean
from snncompiler.passes.time.unroll_time import UnrollTime, unfoldable
from snncompiler.passes.time.write_stages import write_stages
from snncompiler.passes.time.write_window import write_window
from snncompiler.version import __version__

#: Bytes of spikes and currents that one chunk may hold for one sample.
CHUNK_BYTES = 16 << 20


def emit(
    prepared: Prepared,
    calibration: Calibration,
    options: Options,
    findings: list[Finding] | None = None,
    watch: Watch | None = None,
) -> onnx.ModelProto:
    """The spiking network as an ONNX model.  The prepared network is not changed.

    What there is to say of the emission is added to `findings`; `watch` is shown the network after
    every pass.
    Raises Refused where the calibration is of another model.
    """
    if not prepared.source.is_known_as(calibration.model_sha256):
        raise refuse(
            "SNNC306",
            f"the calibration is of the model {calibration.model_sha256[:12]}, "
            f"this one is {prepared.source.sha256[:12]}",
            hint="calibrate this model",
        )
    _check_fit(prepared, calibration, options.levels if options.layered else 1)
    observer = watch("emit") if watch else _unobserved
    prepared, before = prepared.apart(observer), len(prepared.findings)
    # Thresholds grow as they do in the calibration, whose schedules are for that.
    found: Any = {"correction": calibration.correction, "growth": calibration.growth}
    if options.layered:
        found["correct"] = calibration.correct
    options = resolve(prepared, replace(options, **found))
    _check_options(prepared, calibration, options)
    graph = spiking_graph(prepared, calibration, options)
    if options.layered:
        model = _layered(graph, prepared, calibration, options)
        observer("layer-time", model)
        if options.compact:
            compact(model)
            observer("compact", model)
        if options.emit == "counts":
            model = _twin(model)
            observer("write-twin", model)
        verify_output(model)
        if findings is not None:
            findings += prepared.findings[before:]
        return model
    run_passes(
        [
            SinkTimeMean(inputs_vary=options.emit == "step"),
            *whole_read_out(options),
            *driving(calibration, options),
            *([LowerPrecision()] if options.precision == "fp16" else []),
        ],
        graph,
        prepared.context,
    )
    infer_shapes(graph)
    options = _unrollable(graph, prepared, options)
    chunk = _chunk(graph, options)
    unroll = UnrollTime(
        options.unroll,
        options.steps,
        chunk,
        options.emit,
        replace(chosen(options.readout), growth=chosen(options.growth)),
        options.seed,
    )
    unrolled, names = unroll.emit(graph)
    name_batch(unrolled, options.batch)
    model = attach_functions(unrolled, prepared.checked_model.opset_import)
    model.producer_version = __version__
    open_chunk = "chunk" in names and options.chunk is None
    step_bytes = _step_bytes(graph) if open_chunk else None
    metadata = metadata_of(prepared, calibration, options, chunk, step_bytes, names)
    onnx.helper.set_model_props(model, metadata)
    observer("unroll-time", model)
    if options.target == "cpu":
        lowered = lower_events(model, longer_chunks=options.chunk is None)
        model = lowered.model
        _tell_lowering(lowered, prepared.context)
        tell_lowered(model, lowered.layers)
        observer("lower-events", model)
    if options.compact:
        compact(model)
        observer("compact", model)
    verify_output(model)
    if findings is not None:
        findings += prepared.findings[before:]
    return model


def _layered(
    graph: Graph, prepared: Prepared, calibration: Calibration, options: Options
) -> onnx.ModelProto:
    """The network of layered time, which has no loop.  Raises Refused where a batch cannot be fixed."""
    fixed = options.emit == "cuda-graph"
    if fixed and not prepared.any_batch:
        lost = next(iter(prepared.context.batch_lost), "")
        raise refuse("SNNC205", "the batch axis is lost, which --emit cuda-graph needs", node=lost)
    half = options.precision == "fp16"
    if half and prepared.context.keeps_rounding:
        raise UsageError(
            "--precision fp16 beside a quantized source, which is converted exactly: float16 holds "
            "whole numbers up to 2,048 only, and sums are larger",
            hint="leave --precision away",
        )
    passes = [
        LayerTime(options.radix),
        *whole_read_out(options),
        *([LowerWindows()] if half else []),
    ]
    run_passes(passes, graph, prepared.context)
    _share_grids(prepared.context)
    infer_shapes(graph)
    stages = options.emit == "step"
    if stages:
        written, names = write_stages(graph, options.steps, radix=options.radix)
    else:
        written, names = write_window(
            graph,
            options.steps,
            radix=options.radix,
            # Whole numbers are exact for so many levels, and what comes once is cut off at the top one.
            overridable=not (
                fixed or options.emit == "counts" or _capped(prepared) or options.weights
            ),
        )
    name_batch(written, options.batch)
    model = attach_functions(written, prepared.checked_model.opset_import)
    model.producer_version = __version__
    chunk = 1 if stages else options.steps
    metadata = metadata_of(prepared, calibration, options, chunk, None, names)
    onnx.helper.set_model_props(model, metadata)
    return model


def _twin(spiking: onnx.ModelProto) -> onnx.ModelProto:
    """The integer twin of a layered network.  Raises Refused with all layers that have no counts."""
    collapsed = collapse_time(spiking)
    lost = [note for note in collapsed.layers if not note.operator.startswith("Count")]
    if lost or not collapsed.layers:
        raise Refused(
            *(
                Finding(
                    "SNNC223",
                    note.reason or "it has real weights",
                    node=note.name,
                    hint="--emit counts needs whole numbers of 8 bits: --weights int8",
                )
                for note in lost
            )
        )
    twin = write_twin(collapsed.model)
    told = {entry.key: entry.value for entry in spiking.metadata_props}
    del twin.metadata_props[:]
    onnx.helper.set_model_props(twin, twin_metadata(told))
    return twin


def _share_grids(context: Context) -> None:
    """What fires for a layer behind a pooling has the layer's grid."""
    known = {layer.name for layer in context.grid.layers}
    more = [
        replace(context.grid.of(relu), name=name)
        for name, (relu, _) in context.pooled.items()
        if relu in known and name not in known
    ]
    context.grid = replace(context.grid, layers=(*context.grid.layers, *more))


def _capped(prepared: Prepared) -> bool:
    """Whether a rectifier has an upper bound, or a grid, whose top level is right for one T only."""
    found = [rectifier(node) for node in rectifiers_of(prepared.graph)]
    capped = any(one is not None and one.cap is not None for one in found)
    return capped or bool(grids_of(prepared.graph))


def _unobserved(name: str, network: Graph | onnx.ModelProto) -> None:
    """Where nobody watches."""


def rehearse(prepared: Prepared, options: Options) -> None:
    """Raise what emission would refuse, whatever the data are: with stand-ins for thresholds, another
    one for each channel.  Nothing of it is noted."""
    thresholds = {}
    levels = options.levels if options.layered else 1
    for node in rectifiers_of(prepared.graph):
        found = rectifier(node)
        top = (1.0 if found is None or found.cap is None else found.cap) / levels
        spread = np.linspace(0.5, 1.0, max(rectified_channels(node), 1)) * top
        thresholds[node.name] = spread.astype(np.float32)
    stand_in = Calibration(
        thresholds=thresholds,
        method="max",
        percentile=options.percentile,
        per_channel=True,
        alpha=1.0,
        source="synthetic",
        samples=1,
        seed=options.seed,
        model_sha256=prepared.source.sha256,
        weights=options.weights,
        input_ranges={spec.name: 1.0 for spec in prepared.inputs},
        levels=levels if options.layered else 0,
    )
    quiet = replace(prepared, context=replace(prepared.context, findings=[]))
    emit(quiet, stand_in, options)


def _tell_lowering(lowered: Lowered, context: Context) -> None:
    """A note for every layer that stays as it is, and a warning where all do."""
    for layer in lowered.layers:
        if not layer.operator:
            context.note("SNNC210", f"not computed by events: {layer.reason}", node=layer.name)
    if not lowered.changed:
        context.warn(
            "SNNC211",
            "--target cpu changes nothing: no layer is computed by events",
            hint="the notes say why",
        )


def _check_options(prepared: Prepared, calibration: Calibration, options: Options) -> None:
    """Raises UsageError or Refused where a calibration does not fit the options."""
    check_levels(calibration, options)
    if calibration.schedules and options.reset == "hard":
        raise UsageError("--reset hard takes no correction, the calibration has one")
    if calibration.growth != STEADY and not calibration.schedules:
        raise refuse(
            "SNNC306",
            f"the calibration's thresholds grow ({calibration.growth}), but there are no schedules",
            hint="calibrate again",
        )
    floats = [spec.name for spec in prepared.inputs if spec.dtype.kind == "f"]
    missing = [name for name in floats if not calibration.input_scales.get(name, 0) > 0]
    if options.encode == "poisson" and missing:
        raise refuse(
            "SNNC306",
            f"the calibration has no scale of the input '{missing[0]}', which --encode poisson needs",
            hint="calibrate with --encode poisson",
        )


def _check_fit(prepared: Prepared, calibration: Calibration, levels: int) -> None:
    """Raises Refused where a calibration does not fit the network's rectifiers.  `levels`: how many
    thresholds an activation has at most; their sum is rounded where there are several."""
    slack = np.float32(1 if levels == 1 else 1 + 2.0**-22)
    nodes = {node.name: node for node in rectifiers_of(prepared.graph)}
    grids = grids_of(prepared.graph)
    findings = []
    for name in sorted(set(nodes) ^ set(calibration.thresholds)):
        text = "no threshold" if name in nodes else "a threshold, but no such rectifier"
        findings.append(Finding("SNNC306", f"the calibration has {text} for it", node=name))
    for name in [name for name in nodes if name in calibration.thresholds]:
        theta = np.asarray(calibration.thresholds[name], np.float32)
        sizes = (1, rectified_channels(nodes[name]))
        if theta.ndim != 1 or theta.size not in sizes:
            text = f"its thresholds have shape {list(theta.shape)}, not [1] or [{sizes[1]}]"
            findings.append(Finding("SNNC306", text, node=name))
        elif not (np.isfinite(theta).all() and (theta > 0).all()):
            findings.append(Finding("SNNC306", "a threshold is not finite and positive", node=name))
        elif name in grids:
            if not np.array_equal(theta, grids[name].scale) or grids[name].top > levels:
                text = f"the quantized source has {grids[name].top} levels of its own there"
                findings.append(Finding("SNNC306", text, node=name, hint="calibrate again"))
        elif (theta * levels > bounded(nodes[name], theta * levels) * slack).any():
            text = f"a threshold of {theta.max():g} is above the upper bound of its rectifier"
            findings.append(Finding("SNNC306", text, node=name, hint="calibrate again"))
    if calibration.schedules:
        for name in sorted(set(nodes) ^ set(calibration.schedules)):
            text = "no schedule" if name in nodes else "a schedule, but no such rectifier"
            findings.append(Finding("SNNC306", f"the calibration has {text} for it", node=name))
    for name in [name for name in nodes if name in calibration.schedules]:
        charges, channels = calibration.schedules[name], rectified_channels(nodes[name])
        if charges.ndim != 2 or charges.shape[0] < 1 or charges.shape[1] != channels:
            text = f"its schedule has shape {list(charges.shape)}, not [S, {channels}]"
            findings.append(Finding("SNNC306", text, node=name))
        elif not np.isfinite(charges).all():
            findings.append(Finding("SNNC306", "a charge is not finite", node=name))
    if findings:
        raise Refused(*findings)


def _unrollable(graph: Graph, prepared: Prepared, options: Options) -> Options:
    """`fold` needs the batch on the leading axis of every temporal tensor; else `loop`."""
    if options.emit == "step" or (options.unroll != "fold" and options.emit == "window"):
        return options
    blocking = unfoldable(graph)
    if not blocking:
        return options
    if options.emit == "cuda-graph":
        raise refuse(
            "SNNC205",
            "time cannot be folded into the batch here, which --emit cuda-graph needs",
            node=label(blocking[0]),
        )
    if options.chunk not in (None, 1):
        raise UsageError(
            f"--chunk {options.chunk} is not possible: the batch is not the leading axis of "
            f"{label(blocking[0])}"
        )
    prepared.context.note(
        "SNNC205",
        "time cannot be folded into the batch here, so the steps run one by one (loop)",
        node=label(blocking[0]),
    )
    return replace(options, unroll="loop", chunk=None)


def _chunk(graph: Graph, options: Options) -> int:
    """K: the memory budget over the bytes of one step, evened out over the chunks."""
    if options.emit == "cuda-graph":
        return options.steps
    if options.unroll != "fold" or options.emit == "step":
        return 1
    if options.chunk is not None:
        return min(options.chunk, options.steps)
    most = max(1, min(options.steps, MAX_CHUNK, CHUNK_BYTES // max(_step_bytes(graph), 1)))
    return -(-options.steps // -(-options.steps // most))


def _step_bytes(graph: Graph) -> int:
    """What the largest layer reads and writes at one step, for one sample."""
    return max(
        sum(_bytes(tensor) for tensor in (*node.inputs, *node.outputs)) for node in graph.nodes
    )


def _bytes(tensor: Tensor) -> int:
    """Bytes of a run-time tensor for one sample; unknown sizes count as 64, constants as none."""
    if not is_live(tensor) or not tensor.shape:
        return 0
    return 4 * prod(int(dim) if known(dim) else 64 for dim in tensor.shape[1:])
