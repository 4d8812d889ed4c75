"""From the normalized ANN and its calibration to the spiking network as an ONNX model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from math import prod
from typing import Any

import numpy as np
import onnx

from snncompiler import calibration as calib
from snncompiler import dialect
from snncompiler.batching import Axis
from snncompiler.calibration import Calibration
from snncompiler.diagnostics import Finding
from snncompiler.errors import Refused, UsageError, refuse
from snncompiler.graph import (
    Graph,
    Tensor,
    infer_shapes,
    is_live,
    known,
    label,
)
from snncompiler.growth import NONE, Growth
from snncompiler.operators import rectified_channels, rectifier
from snncompiler.options import Options
from snncompiler.passes.attach_functions import attach_functions
from snncompiler.passes.base import Context, Pass, run_passes
from snncompiler.passes.drive_input import DriveInput
from snncompiler.passes.encode_poisson import EncodePoisson
from snncompiler.passes.fold_amplitude import FoldAmplitude
from snncompiler.passes.insert_neurons import InsertNeurons
from snncompiler.passes.lower_events import Lowered, lower_events
from snncompiler.passes.lower_precision import LowerPrecision
from snncompiler.passes.sink_time_mean import SinkTimeMean
from snncompiler.passes.telescope_analog import TelescopeAnalog
from snncompiler.passes.track_batch import name_batch
from snncompiler.passes.unroll_time import ReadOut, UnrollTime, unfoldable
from snncompiler.passes.verify_output import verify_output
from snncompiler.preparation import Prepared, resolve
from snncompiler.running import Window
from snncompiler.version import __version__

#: Bytes of spikes and currents that one chunk may hold for one sample.
CHUNK_BYTES = 16 << 20
#: More steps than this in a chunk gain nothing (docs/explanation/performance.md).
MAX_CHUNK = 16


def spiking_graph(prepared: Prepared, calibration: Calibration, options: Options) -> Graph:
    """The normalized ANN with neurons for its rectifiers and spikes between its layers.

    `prepared` is one's own (`Prepared.apart`): what the passes learn of the copied graph goes into it.
    """
    graph = prepared.graph.copy()
    run_passes(
        [
            *([EncodePoisson(calibration.input_scales)] if options.encode == "poisson" else []),
            InsertNeurons(
                calibration.thresholds,
                float(options.initial or 0.0),
                options.reset,
                options.spikes,
                calibration.schedules,
            ),
            FoldAmplitude(),
            *([TelescopeAnalog()] if options.allow_analog else []),
        ],
        graph,
        prepared.context,
    )
    return graph


def emit(
    prepared: Prepared,
    calibration: Calibration,
    options: Options,
    findings: list[Finding] | None = None,
) -> onnx.ModelProto:
    """The spiking network as an ONNX model.  The prepared network is not changed.

    What there is to say of the emission is added to `findings`.
    Raises Refused where the calibration is of another model.
    """
    if not prepared.source.is_known_as(calibration.model_sha256):
        raise refuse(
            "SNNC306",
            f"the calibration is of the model {calibration.model_sha256[:12]}, "
            f"this one is {prepared.source.sha256[:12]}",
            hint="calibrate this model",
        )
    _check_fit(prepared, calibration)
    prepared, before = prepared.apart(), len(prepared.findings)
    # Thresholds grow as they do in the calibration, whose schedules are for that.
    correction: Any = calibration.correction
    options = resolve(prepared, replace(options, growth=calibration.growth, correction=correction))
    _check_options(prepared, calibration, options)
    graph = spiking_graph(prepared, calibration, options)
    run_passes(
        [
            SinkTimeMean(inputs_vary=options.emit == "step"),
            *_drive(calibration),
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
        replace(ReadOut.parse(options.readout), growth=Growth.parse(options.growth)),
        options.seed,
    )
    unrolled, names = unroll.emit(graph)
    name_batch(unrolled, options.batch)
    model = attach_functions(unrolled, prepared.checked_model.opset_import)
    model.producer_version = __version__
    metadata = _metadata(prepared, calibration, options, chunk, names)
    if "copies" in names:
        metadata["snnc.copies"] = names["copies"]
    onnx.helper.set_model_props(model, metadata)
    if options.target == "cpu":
        lowered = lower_events(model, longer_chunks=options.chunk is None)
        model = lowered.model
        _tell_lowering(lowered, prepared.context)
        events = json.dumps([asdict(layer) for layer in lowered.layers])
        next(e for e in model.metadata_props if e.key == "snnc.events").value = events
    verify_output(model)
    if findings is not None:
        findings += prepared.findings[before:]
    return model


def rehearse(prepared: Prepared, options: Options) -> None:
    """Raise what emission would refuse, whatever the data are: with stand-ins for thresholds, another
    one for each channel.  Nothing of it is noted."""
    thresholds = {}
    for node in calib.rectifiers_of(prepared.graph):
        found = rectifier(node)
        top = 1.0 if found is None or found.cap is None else found.cap
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


def _drive(calibration: Calibration) -> list[Pass]:
    """The pass that lets thresholds grow, where they do."""
    growth = Growth.parse(calibration.growth)
    return [DriveInput(growth)] if growth else []


def window_of(prepared: Prepared, calibration: Calibration, options: Options, steps: int) -> Window:
    """The spiking network over `steps` time-steps without control flow.

    Raises Refused where time cannot be folded into the batch.
    """
    prepared = prepared.apart()
    graph = spiking_graph(prepared, calibration, options)
    run_passes(_drive(calibration), graph, prepared.context)
    infer_shapes(graph)
    blocking = unfoldable(graph)
    if blocking:
        raise refuse(
            "SNNC205", "time cannot be folded into the batch here", node=label(blocking[0])
        )
    unrolled, names = UnrollTime("fold", steps, steps, "cuda-graph").emit(graph)
    return Window(
        unrolled, prepared.checked_model.opset_import, steps, names.get("first_image", "")
    )


def _check_options(prepared: Prepared, calibration: Calibration, options: Options) -> None:
    """Raises UsageError or Refused where a calibration does not fit the options."""
    if calibration.schedules and options.reset == "hard":
        raise UsageError("--reset hard takes no correction, the calibration has one")
    if calibration.growth != NONE and not calibration.schedules:
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


def _check_fit(prepared: Prepared, calibration: Calibration) -> None:
    """Raises Refused where a calibration does not fit the network's rectifiers."""
    nodes = {node.name: node for node in calib.rectifiers_of(prepared.graph)}
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
        elif (theta > calib.bounded(nodes[name], theta)).any():
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
    largest = max(
        sum(_bytes(tensor) for tensor in (*node.inputs, *node.outputs)) for node in graph.nodes
    )
    most = max(1, min(options.steps, MAX_CHUNK, CHUNK_BYTES // max(largest, 1)))
    return -(-options.steps // -(-options.steps // most))


def _bytes(tensor: Tensor) -> int:
    """Bytes of a run-time tensor for one sample; unknown sizes count as 64, constants as none."""
    if not is_live(tensor) or not tensor.shape:
        return 0
    return 4 * prod(int(dim) if known(dim) else 64 for dim in tensor.shape[1:])


def _not_leading(axes: Mapping[str, Axis]) -> str:
    """Where the batch is not the first axis."""
    return json.dumps({name: axis for name, axis in axes.items() if axis != 0})


def _metadata(
    prepared: Prepared,
    calibration: Calibration,
    options: Options,
    chunk: int,
    names: dict[str, str],
) -> dict[str, str]:
    text = calibration.to_json()
    return {
        "snnc.version": __version__,
        "snnc.dialect": f"{dialect.DOMAIN} {dialect.VERSION}",
        "snnc.source": prepared.source.name,
        "snnc.source_sha256": prepared.source.sha256,
        "snnc.steps": str(options.steps),
        "snnc.steps_input": names.get("steps", ""),
        "snnc.chunk": str(chunk),
        "snnc.chunk_input": names.get("chunk", ""),
        "snnc.unroll": options.unroll,
        "snnc.emit": options.emit,
        "snnc.batch": "" if options.batch is None else str(options.batch),
        "snnc.precision": options.precision,
        "snnc.target": options.target,
        "snnc.events": "",
        "snnc.step_input": names.get("step", ""),
        "snnc.states": json.dumps(
            {k.removeprefix("state:"): v for k, v in names.items() if k.startswith("state:")}
        ),
        "snnc.output_axes": _not_leading(prepared.output_axes),
        "snnc.layer_axes": _not_leading(prepared.layer_axes),
        "snnc.task": options.task,
        "snnc.paper": str(options.paper).lower(),
        "snnc.encode": options.encode,
        "snnc.image_input": names.get("first_image", ""),
        "snnc.seed_input": names.get("seed", ""),
        "snnc.neuron": options.neuron,
        "snnc.reset": options.reset,
        "snnc.initial": repr(options.initial),
        "snnc.correction": calibration.correction,
        "snnc.growth": options.growth,
        "snnc.readout": options.readout,
        "snnc.strict": str(options.strict).lower(),
        "snnc.allow_analog": str(options.allow_analog).lower(),
        "snnc.maxpool": options.maxpool,
        "snnc.seed": str(options.seed),
        "snnc.threshold": calibration.method,
        "snnc.calibration": text,
        "snnc.calibration_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
