"""The pipeline, read from top to bottom: load, normalize, calibrate, insert neurons, unroll, check.

prepare   source model -> normalized ANN, with everything that was found on the way
calibrated  normalized ANN + data -> thresholds
emit      normalized ANN + thresholds -> spiking ONNX model
compile   the three together
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from snncompiler import calibration as calib
from snncompiler import dialect
from snncompiler.calibration import Calibration, Method
from snncompiler.data import Dataset, InputSpec, Preprocess, load_data
from snncompiler.diagnostics import Finding
from snncompiler.errors import EnvironmentMissing, Refused, UsageError, refuse
from snncompiler.graph import (
    Graph,
    Tensor,
    export_model,
    import_model,
    infer_shapes,
    is_live,
    known,
    label,
)
from snncompiler.io import Source, load
from snncompiler.passes.attach_functions import attach_functions
from snncompiler.passes.average_max_pool import AverageMaxPool
from snncompiler.passes.base import Context, Pass, run_passes
from snncompiler.passes.check_constraints import CheckConstraints
from snncompiler.passes.drop_fake_quant import DropFakeQuant
from snncompiler.passes.fold_affine import FoldAffine
from snncompiler.passes.fold_amplitude import FoldAmplitude
from snncompiler.passes.fold_batch_norm import FoldBatchNorm
from snncompiler.passes.fold_constants import FoldConstants
from snncompiler.passes.insert_neurons import InsertNeurons
from snncompiler.passes.lower_precision import LowerPrecision
from snncompiler.passes.remove_noops import RemoveNoops
from snncompiler.passes.sink_time_mean import SinkTimeMean
from snncompiler.passes.spell_rectifiers import SpellRectifiers
from snncompiler.passes.swap_max_pool import SwapMaxPool
from snncompiler.passes.telescope_analog import TelescopeAnalog
from snncompiler.passes.to_float32 import ToFloat32
from snncompiler.passes.track_batch import BATCH, TrackBatch
from snncompiler.passes.unify_linear import UnifyLinear
from snncompiler.passes.unroll_time import NODE_BUDGET, Emit, Unroll, UnrollTime, unfoldable
from snncompiler.passes.verify_input import verify_input
from snncompiler.passes.verify_output import verify_output
from snncompiler.runtime.session import create_session
from snncompiler.version import __version__

Array = NDArray[Any]
MaxPooling = Literal["exact", "average"]
#: Called with what is being done and how far it is: (text, done, of).
Progress = Callable[[str, int, int], None]

DEFAULT_STEPS = 64
#: More steps than this are a slip of the finger: float32 counts end at 2^24.
MAX_STEPS = 1 << 24
#: Calibration takes at most this many samples, unless asked otherwise.
CALIBRATION_SAMPLES = 256
SYNTHETIC_SAMPLES = 32
#: Bytes of spikes and currents that one chunk may hold for one sample.
CHUNK_BYTES = 16 << 20
#: More steps than this in a chunk gain nothing (docs/performance.md).
MAX_CHUNK = 16
#: Relative tolerance of the batch check.  Convolutions and matrix products of other batch sizes may
#: sum in another order: a few hundred float32 roundings of 2^-24 each, with room to spare.
BATCH_TOLERANCE = 1e-4


#: Relative tolerance against the source: folding rounds every weight once, and the roundings of tens of
#: layers add up; float16 sources are computed in float32 on purpose, and keep 11 bits.
SOURCE_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Options:
    """How to compile.  The fields are the options of `snnc compile`."""

    steps: int = DEFAULT_STEPS
    threshold: Method = "percentile"
    percentile: float = 99.9
    per_channel: bool = True
    alpha: float = 1.0
    unroll: Unroll = "fold"
    chunk: int | None = None
    reset: Literal["soft", "hard"] = "soft"
    initial: float = 0.5
    encode: Literal["constant"] = "constant"
    strict: bool = False
    seed: int = 0
    allow_analog: bool = False
    maxpool: MaxPooling = "exact"
    emit: Emit = "window"
    batch: int | None = None
    precision: Literal["fp32", "fp16"] = "fp32"

    def __post_init__(self) -> None:
        """numpy's numbers become Python's, so that they can be written into the metadata."""
        for name, number in vars(self).items():
            if isinstance(number, np.generic):
                object.__setattr__(self, name, number.item())

    def check(self) -> None:
        """Raises UsageError for the first value that is of a wrong type or out of range."""
        for option in ("steps", "seed", "chunk", "batch"):
            _type(option, getattr(self, option), int, "a whole number", optional=True)
        for option in ("percentile", "alpha", "initial"):
            _type(option, getattr(self, option), (int, float), "a number")
        for option in ("per_channel", "strict", "allow_analog"):
            _type(option, getattr(self, option), bool, "True or False")
        _choice("--threshold", self.threshold, ("max", "percentile"))
        _choice("--unroll", self.unroll, ("fold", "loop", "steps"))
        _choice("--reset", self.reset, ("soft", "hard"))
        _choice("--encode", self.encode, ("constant",))
        _choice("--maxpool", self.maxpool, ("exact", "average"))
        _choice("--emit", self.emit, ("window", "step", "cuda-graph"))
        _choice("--precision", self.precision, ("fp32", "fp16"))
        _range("-T", self.steps, 1 <= self.steps <= MAX_STEPS, f"1 to {MAX_STEPS:,} time-steps")
        _range("--percentile", self.percentile, 0 < self.percentile <= 100, "above 0, at most 100")
        _range("--alpha", self.alpha, 0 < self.alpha < float("inf"), "positive and finite")
        _range("--initial", self.initial, 0 <= self.initial < 1, "0 to below 1, in units of θ")
        _range("--seed", self.seed, 0 <= self.seed < 1 << 63, "0 to 2^63 - 1")
        if self.chunk is not None:
            _range("--chunk", self.chunk, 1 <= self.chunk <= MAX_STEPS, "at least 1 time-step")
            if self.unroll != "fold" or self.emit != "window":
                form = self.unroll if self.emit == "window" else self.emit
                raise UsageError(f"--chunk belongs to --unroll fold, not to {form}")
        if self.batch is not None:
            _range("--batch", self.batch, 1 <= self.batch <= 1 << 20, "at least 1 sample")
        if (self.batch is None) == (self.emit == "cuda-graph"):
            raise UsageError("--emit cuda-graph and --batch N belong together")


def _type(
    option: str, given: object, kind: type | tuple[type, ...], text: str, optional: bool = False
) -> None:
    none = optional and given is None and option not in ("steps", "seed")
    truth = isinstance(given, bool) and kind is not bool
    if not none and (truth or not isinstance(given, kind)):
        raise UsageError(f"{option} is {given!r}, it should be {text}")


def _choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{option} {value} is unknown", hint=f"one of {', '.join(choices)}")


def _range(option: str, value: float, good: bool, allowed: str) -> None:
    if not good:
        raise UsageError(f"{option} {value} is out of range", hint=f"allowed: {allowed}")


@dataclass
class Prepared:
    """The normalized ANN and what is known of it."""

    source: Source
    graph: Graph
    ann: onnx.ModelProto
    context: Context
    inputs: list[InputSpec]
    #: Whether any batch size works: proved, and checked where onnxruntime is there.
    any_batch: bool = True
    checked_model: onnx.ModelProto = field(default_factory=onnx.ModelProto)

    @property
    def fixed_batch(self) -> int | None:
        """The only batch size that the network takes, None where it takes any."""
        if self.any_batch:
            return None
        return next((spec.shape[0] for spec in self.inputs if spec.shape and spec.shape[0]), 1)

    @property
    def findings(self) -> list[Finding]:
        return self.context.findings


def normalization_passes(
    *,
    strict: bool = False,
    allow_analog: bool = False,
    maxpool: MaxPooling = "exact",
    freeze_batch: bool = True,
) -> list[Pass]:
    """The graph passes from the checked source to the normalized ANN, in order."""
    return [
        ToFloat32(),
        *([AverageMaxPool()] if maxpool == "average" else []),
        FoldConstants(freeze_batch),
        DropFakeQuant(),
        SpellRectifiers(),
        RemoveNoops(),
        TrackBatch(),
        UnifyLinear(),
        FoldBatchNorm(),
        FoldAffine(),
        SwapMaxPool(),
        CheckConstraints(strict, allow_analog),
    ]


def prepare(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    *,
    strict: bool = False,
    allow_analog: bool = False,
    maxpool: MaxPooling = "exact",
) -> Prepared:
    """Load, verify and normalize a model.  Raises Refused with every finding."""
    source = load(model)
    checked, findings = verify_input(source.model)
    options: dict[str, Any] = {"strict": strict, "allow_analog": allow_analog, "maxpool": maxpool}
    graph, context = _normalized(checked, findings, options)
    prepared = _prepared(source, checked, graph, context, any_batch=not context.batch_lost)
    if prepared.any_batch:
        return prepared
    leading = [tensor.shape[0] for tensor in import_model(checked).inputs if tensor.shape]
    if not all(known(dim) for dim in leading):
        # The source takes any batch by arithmetic on shapes at run time.  That stays in the graph
        # then, and the time-steps run one by one, if three samples at once are right.
        graph, kept = _normalized(checked, findings, {**options, "freeze_batch": False})
        lost, kept.batch_lost = kept.batch_lost, {}
        whole = _prepared(source, checked, graph, kept, any_batch=True)
        if _same_for_three(whole):
            for where, reason in lost.items():
                kept.note("SNNC205", f"the batch axis is not followed: {reason}", node=where)
            return whole
    for where, reason in context.batch_lost.items():
        context.warn(
            "SNNC205",
            f"the batch axis is lost here: {reason}; the model takes one sample at a time",
            node=where,
            hint="export it with a dynamic batch axis",
        )
    return prepared


def _same_for_three(prepared: Prepared) -> bool:
    """Whether any batch size can be shown to work, which needs onnxruntime."""
    try:
        check_batch(prepared, 0)
    except (Refused, EnvironmentMissing):
        return False
    return True


def _prepared(
    source: Source, checked: onnx.ModelProto, graph: Graph, context: Context, any_batch: bool
) -> Prepared:
    return Prepared(
        source=source,
        graph=graph,
        ann=_as_model(graph),
        context=context,
        inputs=[_spec(tensor) for tensor in graph.inputs],
        any_batch=any_batch,
        checked_model=checked,
    )


def _normalized(
    checked: onnx.ModelProto, findings: list[Finding], options: dict[str, Any]
) -> tuple[Graph, Context]:
    context = Context(findings=list(findings))
    graph = import_model(checked)
    context.output_types = {
        output.name: np.dtype(output.dtype) for output in graph.outputs if output.dtype is not None
    }
    run_passes(normalization_passes(**options), graph, context)
    infer_shapes(graph)
    return graph, context


def _as_model(graph: Graph) -> onnx.ModelProto:
    model = export_model(graph)
    model.ir_version = dialect.MAX_IR_VERSION
    return model


def _spec(tensor: Tensor) -> InputSpec:
    shape = tuple(int(dim) if known(dim) else None for dim in tensor.shape or ())
    return InputSpec(tensor.name, shape, np.dtype(tensor.dtype))


# --- checks that run the network ---


def _checking(model: onnx.ModelProto) -> Any:
    """A session that runs a few times only, on one thread."""
    return create_session(model, threads=1, optimize=len(model.graph.node) <= calib.LARGE_GRAPH)


def synthetic_feeds(prepared: Prepared, samples: int, seed: int) -> dict[str, Array]:
    """Seeded standard-normal inputs; unknown sizes are taken as 32."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for spec in prepared.inputs:
        shape = [32 if dim is None else dim for dim in spec.shape]
        if shape:
            shape[0] = samples if prepared.any_batch else prepared.fixed_batch or 1
        if spec.dtype.kind == "f":
            feeds[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        else:
            feeds[spec.name] = np.zeros(shape, spec.dtype)
    return feeds


def check_batch(prepared: Prepared, seed: int) -> None:
    """Compare three samples at once with the same three one by one, in onnxruntime.

    Where they differ, the proof of `track_batch` was wrong for this network: Refused.
    """
    if not prepared.any_batch:
        return
    feeds = synthetic_feeds(prepared, 3, seed)
    session = _checking(prepared.ann)
    try:
        together = session.run(None, feeds)
        alone = [session.run(None, {n: a[i : i + 1] for n, a in feeds.items()}) for i in range(3)]
    except Exception as error:  # onnxruntime's own classes have no common base
        raise refuse(
            "SNNC205",
            f"the network does not run with three samples: {str(error).splitlines()[0][:300]}",
            hint="export the model with a dynamic batch axis",
        ) from None
    for index, output in enumerate(prepared.graph.outputs):
        axis = prepared.context.batch_axis.get(output.name, 0)
        joined = np.concatenate([np.atleast_1d(run[index]) for run in alone], axis=axis)
        if joined.dtype.kind != "f":
            continue
        scale = float(np.abs(joined).max(initial=0.0))
        same_shape = joined.shape == together[index].shape
        bound = BATCH_TOLERANCE * scale
        if not same_shape or np.abs(joined - together[index]).max(initial=0) > bound:
            raise refuse(
                "SNNC205",
                f"three samples at once give another '{output.name}' than one by one",
                hint="export the model with a dynamic batch axis",
            )


def check_source(prepared: Prepared, feeds: Mapping[str, Array]) -> None:
    """Compare the normalized ANN with the source file itself, on one sample, in onnxruntime.

    Where they differ, a pass or the opset conversion was wrong for this network: Refused, naming the
    output, rather than converting another network than the one given.
    """
    count = prepared.fixed_batch or 1
    one = {name: array[:count] for name, array in feeds.items()}
    try:
        expected = _checking(prepared.source.model).run(None, one)
    except Exception as error:  # onnxruntime's own classes have no common base
        prepared.context.note(
            "SNNC208",
            "the source was not compared with the normalized network, because onnxruntime does not "
            f"run it: {str(error).splitlines()[0][:200]}",
        )
        return
    found = _checking(prepared.ann).run(None, one)
    for output, first, second in zip(prepared.graph.outputs, expected, found, strict=True):
        wide = np.asarray(first, np.float64)
        if np.asarray(first).dtype.kind != "f" or not np.isfinite(wide).all():
            continue
        scale = float(np.abs(wide).max(initial=0))
        change = float(np.abs(wide - second).max(initial=0)) if wide.size else 0.0
        if wide.shape != np.shape(second) or change > SOURCE_TOLERANCE * scale:
            raise refuse(
                "SNNC208",
                f"the normalized network gives another '{output.name}' than the source: "
                f"{change:.3g} of {scale:.3g}",
                hint="please report it with the model",
            )


def measure_folds(prepared: Prepared, feeds: Mapping[str, Array]) -> None:
    """Measure what folding changed: every layer's output in the source and in the normalized ANN.

    Fills `LayerFacts.change` with (largest |change|, that over the largest |output|).
    """
    layers = [layer for layer in prepared.context.layers.values() if layer.folded]
    made = {name for node in prepared.checked_model.graph.node for name in node.output}
    made &= {tensor.name for node in prepared.graph.nodes for tensor in node.outputs}
    names = [layer.output for layer in layers if layer.output in made]
    if not names:
        return
    one = {name: array[:1] for name, array in feeds.items()}
    before = _checking(calib.with_outputs(prepared.checked_model, names)).run(names, one)
    after = _checking(calib.with_outputs(prepared.ann, names)).run(names, one)
    for layer in layers:
        if layer.output in made:
            at = names.index(layer.output)
            change = float(np.abs(before[at] - after[at]).max(initial=0.0))
            largest = float(np.abs(before[at]).max(initial=0.0))
            layer.change = (change, change / largest if largest else 0.0)


# --- calibration ---


def calibrated(
    prepared: Prepared,
    options: Options,
    dataset: Dataset | None,
    progress: Progress | None = None,
) -> Calibration:
    """Thresholds for every rectifier: from data, else batch-norm statistics, else synthetic input."""
    nodes = calib.rectifiers_of(prepared.graph)
    how: dict[str, Any] = {
        "method": options.threshold,
        "percentile": options.percentile,
        "per_channel": options.per_channel,
        "alpha": options.alpha,
    }
    source, samples, digest = "data", 0, ""
    thresholds: dict[str, NDArray[np.float32]] = {}
    if dataset is None:
        thresholds = calib.gaussian_thresholds(prepared.graph, prepared.context, **how)
        missing = [node for node in nodes if node.name not in thresholds]
        source = " and ".join(["batch-norm"] * bool(thresholds) + ["synthetic"] * bool(missing))
        prepared.context.warn(
            "SNNC304",
            f"there is no calibration data: thresholds come from {_SOURCES[source]}",
            hint="give --calibration DATA; a few hundred real samples are enough",
        )
    else:
        missing = nodes
    if missing:
        synthetic = synthetic_feeds(prepared, SYNTHETIC_SAMPLES, options.seed)
        feeds = dataset.feeds if dataset else synthetic
        observation = calib.observe(
            prepared.ann,
            prepared.graph,
            feeds,
            batch=prepared.fixed_batch,
            progress=(lambda done, of: progress("calibrating", done, of)) if progress else None,
        )
        found, findings = calib.calibrate(observation, missing, **how)
        prepared.context.findings += findings
        thresholds = {**thresholds, **found}
        samples = observation.samples
        digest = dataset.sha256() if dataset else ""
    return Calibration(
        thresholds={node.name: thresholds[node.name] for node in nodes},
        method=options.threshold,
        percentile=options.percentile,
        per_channel=options.per_channel,
        alpha=options.alpha,
        source=source,
        samples=samples,
        seed=options.seed,
        model_sha256=prepared.source.sha256,
        data_sha256=digest,
    )


_SOURCES = {
    "batch-norm": "the batch-norm statistics",
    "synthetic": "seeded random input",
    "batch-norm and synthetic": "the batch-norm statistics and seeded random input",
}


# --- emission ---


def emit(prepared: Prepared, calibration: Calibration, options: Options) -> onnx.ModelProto:
    """The spiking network as an ONNX model.  The prepared graph is not changed.

    Raises Refused where the calibration is of another model.
    """
    if calibration.model_sha256 != prepared.source.sha256:
        raise refuse(
            "SNNC306",
            f"the calibration is of the model {calibration.model_sha256[:12]}, "
            f"this one is {prepared.source.sha256[:12]}",
            hint="calibrate this model",
        )
    _check_thresholds(prepared, calibration)
    graph = prepared.graph.copy()
    context = replace(prepared.context, findings=prepared.context.findings)
    run_passes(
        [
            InsertNeurons(calibration.thresholds, options.initial, options.reset),
            FoldAmplitude(options.allow_analog),
            *([TelescopeAnalog()] if options.allow_analog else []),
            SinkTimeMean(inputs_vary=options.emit == "step"),
            *([LowerPrecision()] if options.precision == "fp16" else []),
        ],
        graph,
        context,
    )
    infer_shapes(graph)
    options = _unrollable(graph, prepared, options)
    chunk = _chunk(graph, options)
    unrolled, names = UnrollTime(options.unroll, options.steps, chunk, options.emit).emit(graph)
    if options.batch is not None:
        _fix_batch(unrolled, options.batch)
    model = attach_functions(unrolled, prepared.checked_model.opset_import)
    model.producer_version = __version__
    metadata = _metadata(prepared, calibration, options, chunk, names)
    onnx.helper.set_model_props(model, metadata)
    verify_output(model)
    return model


def _check_thresholds(prepared: Prepared, calibration: Calibration) -> None:
    """Raises Refused where a calibration does not fit the network's rectifiers."""
    nodes = {node.name: node for node in calib.rectifiers_of(prepared.graph)}
    findings = []
    for name in sorted(set(nodes) ^ set(calibration.thresholds)):
        text = "no threshold" if name in nodes else "a threshold, but no such rectifier"
        findings.append(Finding("SNNC306", f"the calibration has {text} for it", node=name))
    for name in [name for name in nodes if name in calibration.thresholds]:
        theta = np.asarray(calibration.thresholds[name], np.float32)
        sizes = (1, calib.channels_of(nodes[name]))
        if theta.ndim != 1 or theta.size not in sizes:
            text = f"its thresholds have shape {list(theta.shape)}, not [1] or [{sizes[1]}]"
            findings.append(Finding("SNNC306", text, node=name))
        elif not (np.isfinite(theta).all() and (theta > 0).all()):
            findings.append(Finding("SNNC306", "a threshold is not finite and positive", node=name))
    if findings:
        raise Refused(*findings)


def _fix_batch(graph: onnx.GraphProto, batch: int) -> None:
    """Write the batch size into the inputs and outputs."""
    for entry in (*graph.input, *graph.output):
        for dim in entry.type.tensor_type.shape.dim:
            if dim.dim_param == BATCH:
                dim.dim_value = batch


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
        "snnc.step_input": names.get("step", ""),
        "snnc.states": json.dumps(
            {k.removeprefix("state:"): v for k, v in names.items() if k.startswith("state:")}
        ),
        "snnc.encode": options.encode,
        "snnc.reset": options.reset,
        "snnc.initial": repr(options.initial),
        "snnc.strict": str(options.strict).lower(),
        "snnc.allow_analog": str(options.allow_analog).lower(),
        "snnc.maxpool": options.maxpool,
        "snnc.seed": str(options.seed),
        "snnc.threshold": calibration.method,
        "snnc.calibration": text,
        "snnc.calibration_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


# --- the whole ---


@dataclass(frozen=True)
class Compiled:
    """The result of a compilation: the model, and what there is to report."""

    model: onnx.ModelProto
    prepared: Prepared
    calibration: Calibration


CalibrationLike = (
    str | os.PathLike[str] | Array | Mapping[str, Array] | Dataset | Calibration | None
)


def compile_model(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    options: Options,
    calibration: CalibrationLike = None,
    preprocess: Preprocess | None = None,
    samples: int | None = CALIBRATION_SAMPLES,
    progress: Progress | None = None,
) -> Compiled:
    """Compile and return everything; `snncompiler.compile` returns the model alone."""
    options.check()
    if samples is not None:
        _type("samples", samples, int, "a whole number, or None for all")
        _range("samples", samples, samples >= 1, "at least 1, or all")
    if preprocess is not None and not isinstance(preprocess, Preprocess):
        raise UsageError("preprocess is not a snncompiler.Preprocess")
    prepared = prepare(
        model, strict=options.strict, allow_analog=options.allow_analog, maxpool=options.maxpool
    )
    if options.unroll == "steps" and options.emit == "window":
        _check_steps_budget(prepared, options.steps)
    check_batch(prepared, options.seed)
    dataset = None
    if isinstance(calibration, Calibration):
        thresholds = calibration
    else:
        if calibration is not None:
            loaded = load_data(calibration, prepared.inputs, preprocess)
            prepared.context.findings += loaded.findings
            dataset = loaded.sample(samples, options.seed)
            _warn_constant(prepared, dataset)
        feeds = dataset.feeds if dataset else synthetic_feeds(prepared, 1, options.seed)
        if options.maxpool == "exact":
            check_source(prepared, feeds)
        measure_folds(prepared, feeds)
        thresholds = calibrated(prepared, options, dataset, progress)
    return Compiled(emit(prepared, thresholds, options), prepared, thresholds)


def _check_steps_budget(prepared: Prepared, steps: int) -> None:
    """Refuse early what `steps` would refuse after the calibration: a lower bound of its nodes."""
    neurons = len(calib.rectifiers_of(prepared.graph))
    if steps * neurons > NODE_BUDGET:
        raise refuse(
            "SNNC209",
            f"unrolling {steps:,} steps of {neurons} spiking layers would write more than "
            f"{NODE_BUDGET:,} nodes",
            hint="use --unroll fold or loop, which write the step graph once",
        )


def _warn_constant(prepared: Prepared, dataset: Dataset) -> None:
    if all(np.all(array == array.reshape(-1)[:1]) for array in dataset.feeds.values()):
        prepared.context.warn("SNNC303", "the calibration data is one constant value")
