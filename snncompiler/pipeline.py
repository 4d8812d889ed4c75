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
from snncompiler import dialect, running
from snncompiler.calibration import Calibration
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
    with_outputs,
)
from snncompiler.io import Source, load
from snncompiler.options import MaxPooling, Options, check_range, check_type
from snncompiler.passes.attach_functions import attach_functions
from snncompiler.passes.average_max_pool import AverageMaxPool
from snncompiler.passes.base import Context, Pass, run_passes
from snncompiler.passes.check_constraints import CheckConstraints
from snncompiler.passes.drop_fake_quant import DropFakeQuant
from snncompiler.passes.encode_poisson import EncodePoisson
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
from snncompiler.passes.unroll_time import NODE_BUDGET, ReadOut, UnrollTime, unfoldable
from snncompiler.passes.verify_input import verify_input
from snncompiler.passes.verify_output import verify_output
from snncompiler.runtime.session import create_session
from snncompiler.thresholds import Settings
from snncompiler.version import __version__

Array = NDArray[Any]
#: Called with what is being done and how far it is: (text, done, of).
Progress = Callable[[str, int, int], None]

#: Calibration takes at most this many samples, unless asked otherwise.
CALIBRATION_SAMPLES = 256
SYNTHETIC_SAMPLES = 32
#: The running network is corrected on at least and at most so many samples, and between them on as
#: many as keep the spikes of all neurons, steps and samples below CORRECTION_VALUES.
CORRECTION_SAMPLES = (16, 128)
CORRECTION_VALUES = 1 << 32
#: `--alpha auto` tries these on one of HELD_OUT samples, so many at once.
ALPHAS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
HELD_OUT = 4
ALPHA_BATCH = 16
#: The paper's thresholds are observed over so many time-steps and samples.
VIN_MAX_STEPS = 256
VIN_MAX_SAMPLES = 64
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
    before = _checking(with_outputs(prepared.checked_model, names)).run(names, one)
    after = _checking(with_outputs(prepared.ann, names)).run(names, one)
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
    """Thresholds and corrections for every rectifier: from data, else batch-norm statistics, else
    synthetic input.  The options are resolved ones."""
    calibration = Calibration(
        thresholds={},
        method=options.threshold,
        percentile=options.percentile,
        tau=options.tau,
        per_channel=bool(options.per_channel),
        alpha=float(options.alpha),
        source="data",
        samples=0,
        seed=options.seed,
        model_sha256=prepared.source.sha256,
        data_sha256=dataset.sha256() if dataset else "",
    )
    if dataset is None:
        return _without_data(prepared, calibration, options, progress)
    calibration = _from_data(prepared, calibration, options, dataset.feeds, progress)
    if options.correction == "none":
        return calibration
    return _corrected(prepared, calibration, options, dataset.feeds, progress)


def _from_data(
    prepared: Prepared,
    calibration: Calibration,
    options: Options,
    feeds: Mapping[str, Array],
    progress: Progress | None,
) -> Calibration:
    """With thresholds from real or synthetic data."""
    observation = calib.observe(
        prepared.ann,
        prepared.graph,
        feeds,
        batch=prepared.fixed_batch,
        progress=_telling(progress, "calibrating"),
    )
    from_running = options.threshold == "vin-max"
    thresholds, findings = calib.calibrate(
        observation,
        calib.rectifiers_of(prepared.graph),
        method="max" if from_running else options.threshold,
        settings=Settings(options.percentile, options.tau, options.steps),
        per_channel=bool(options.per_channel),
        alpha=float(options.alpha),
    )
    prepared.context.findings += findings
    scales = {}
    if options.encode == "poisson":
        scales = {name: float(np.abs(array).max(initial=0)) or 1.0 for name, array in feeds.items()}
    calibration = replace(
        calibration, thresholds=thresholds, samples=observation.samples, input_scales=scales
    )
    if not from_running:
        return calibration
    found = _largest_currents(prepared, calibration, options, feeds, progress)
    return replace(calibration, thresholds={**thresholds, **found})


def _without_data(
    prepared: Prepared, calibration: Calibration, options: Options, progress: Progress | None
) -> Calibration:
    """Thresholds from batch-norm statistics, and from seeded random input where they do not reach."""
    found = calib.gaussian_thresholds(
        prepared.graph,
        prepared.context,
        method=options.threshold,
        percentile=options.percentile,
        per_channel=bool(options.per_channel),
        alpha=float(options.alpha),
    )
    names = [node.name for node in calib.rectifiers_of(prepared.graph)]
    missing = [name for name in names if name not in found]
    source = " and ".join(["batch-norm"] * bool(found) + ["synthetic"] * bool(missing))
    prepared.context.warn(
        "SNNC304",
        f"there is no calibration data: thresholds come from {_SOURCES[source]}",
        hint="give --calibration DATA; a few hundred real samples are enough",
    )
    if missing or options.encode == "poisson":
        feeds = synthetic_feeds(prepared, SYNTHETIC_SAMPLES, options.seed)
        calibration = _from_data(prepared, calibration, options, feeds, progress)
    thresholds = {**calibration.thresholds, **found}
    return replace(
        calibration, source=source, thresholds={name: thresholds[name] for name in names}
    )


def _telling(progress: Progress | None, text: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, of: progress(text, done, of)


_SOURCES = {
    "batch-norm": "the batch-norm statistics",
    "synthetic": "seeded random input",
    "batch-norm and synthetic": "the batch-norm statistics and seeded random input",
}


# --- the scale of the thresholds, by search ---


def _searched(
    prepared: Prepared, options: Options, dataset: Dataset, progress: Progress | None
) -> tuple[Options, Dataset]:
    """The options with the best α, and the part of the data that thresholds come from.

    One of HELD_OUT samples is held out.  On these every α of ALPHAS is tried at T/4, T/2 and T steps;
    the one with the best mean agreement with the ANN is taken (of equals the one nearest 1), for
    regression the one with the least relative error.
    """
    numbers = np.arange(len(dataset))
    trial = dataset.take(numbers[::HELD_OUT])
    rest = dataset.take(numbers[numbers % HELD_OUT > 0])
    findings = list(prepared.context.findings)
    window = replace(options, emit="window", batch=None, unroll="fold", chunk=None)
    steps = sorted({max(1, options.steps // part) for part in (4, 2, 1)})
    wanted = _outputs(prepared.ann, trial.feeds, prepared.fixed_batch)

    def score(model: onnx.ModelProto, count: int) -> float:
        given = {"snnc_steps": np.array(count)}
        found = _outputs(model, trial.feeds, prepared.fixed_batch, given)
        pairs = list(zip(wanted, found, strict=True))
        if options.task == "classification":
            scores = [(a, b) for a, b in pairs if a.ndim == 2]
            return float(np.mean([(a.argmax(1) == b.argmax(1)).mean() for a, b in scores]))
        error = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in pairs)
        norm = sum(float(np.square(a.astype(np.float64)).sum()) for a, _ in pairs)
        return -float(np.sqrt(error / norm)) if norm else 0.0

    tried: list[tuple[float, float]] = []
    for alpha in sorted(ALPHAS, key=lambda value: abs(value - 1)):
        with_alpha = replace(window, alpha=alpha)
        model = emit(prepared, calibrated(prepared, with_alpha, rest), with_alpha)
        tried.append((float(np.mean([score(model, count) for count in steps])), alpha))
        if progress:
            progress("searching α", len(tried), len(ALPHAS))
    prepared.context.findings[:] = findings
    best, alpha = max(tried, key=lambda entry: entry[0])
    what = "agreement with the ANN" if options.task == "classification" else "minus relative error"
    prepared.context.note(
        "SNNC308",
        f"α = {alpha:g} was chosen of {', '.join(f'{a:g}' for a in ALPHAS)}: {what} {best:.3f}, the "
        f"mean over T = {', '.join(map(str, steps))} on {len(trial)} held-out samples",
    )
    return replace(options, alpha=alpha), rest


def _outputs(
    model: onnx.ModelProto,
    feeds: Mapping[str, Array],
    fixed_batch: int | None,
    given: Mapping[str, Array] | None = None,
) -> list[Array]:
    """The float outputs of a model on all samples, in batches; a rest that fills none is left out."""
    session = create_session(model)
    size, count = fixed_batch or ALPHA_BATCH, len(next(iter(feeds.values())))
    runs = [
        session.run(None, {**{k: v[at : at + size] for k, v in feeds.items()}, **(given or {})})
        for at in range(0, count - (count % fixed_batch if fixed_batch else 0), size)
    ]
    outputs = [
        np.concatenate([np.atleast_1d(part) for part in parts]) for parts in zip(*runs, strict=True)
    ]
    return [output for output in outputs if output.dtype.kind == "f"]


# --- calibration on the running network ---


def _running_layers(prepared: Prepared) -> list[running.Layer]:
    return [
        running.Layer(node.name, node.outputs[0].name, calib.channels_of(node))
        for node in calib.rectifiers_of(prepared.graph)
    ]


def _window(
    prepared: Prepared, calibration: Calibration, options: Options, steps: int
) -> running.Window:
    """The spiking network over `steps` time-steps without control flow.

    Raises Refused where time cannot be folded into the batch.
    """
    graph = _spiking_graph(prepared, calibration, options)
    infer_shapes(graph)
    blocking = unfoldable(graph)
    if blocking:
        raise refuse(
            "SNNC205", "time cannot be folded into the batch here", node=label(blocking[0])
        )
    unrolled, _ = UnrollTime("fold", steps, steps, "cuda-graph").emit(graph)
    return running.Window(unrolled, prepared.checked_model.opset_import, steps)


def _some(prepared: Prepared, feeds: Mapping[str, Array], most: int) -> dict[str, Array]:
    """About `most` of the samples; whole batches where the network takes no other."""
    total = len(next(iter(feeds.values())))
    count = min(most, total)
    if prepared.fixed_batch:
        count = max(count - count % prepared.fixed_batch, prepared.fixed_batch)
    # Evenly spread: data often comes sorted by class.
    chosen = np.arange(count) * total // count
    return {name: array[chosen] for name, array in feeds.items()}


def _corrected(
    prepared: Prepared,
    calibration: Calibration,
    options: Options,
    feeds: Mapping[str, Array],
    progress: Progress | None,
) -> Calibration:
    """The calibration with the charges that correct the running network.

    Where time cannot be folded there is no correction, and a note says so.
    """
    steps = options.schedule_steps if options.correction == "schedule" else options.steps
    layers = _running_layers(prepared)
    none = {layer.name: np.zeros((1, layer.channels), np.float32) for layer in layers}
    try:
        window = _window(prepared, replace(calibration, schedules=none), options, steps)
    except Refused as refused:
        prepared.context.note(
            "SNNC205",
            f"the running network is not corrected: {refused.findings[0].message}",
            node=refused.findings[0].node,
        )
        return calibration
    values = sum(calib.values_of(node) for node in calib.rectifiers_of(prepared.graph))
    most = CORRECTION_VALUES // max(values * steps, 1)
    chosen = _some(prepared, feeds, min(max(most, CORRECTION_SAMPLES[0]), CORRECTION_SAMPLES[1]))
    schedules = running.settle_corrections(
        window,
        prepared.ann,
        layers,
        chosen,
        options.correction,
        batch=prepared.fixed_batch,
        seed=options.seed,
        progress=_telling(progress, "correcting"),
    )
    return replace(calibration, correction=options.correction, schedules=schedules)


def _largest_currents(
    prepared: Prepared,
    calibration: Calibration,
    options: Options,
    feeds: Mapping[str, Array],
    progress: Progress | None,
) -> dict[str, NDArray[np.float32]]:
    """Thresholds by the paper, V_in^max of the running network.

    Raises Refused where time cannot be folded into the batch.
    """

    def make_window(thresholds: Mapping[str, NDArray[np.float32]]) -> running.Window:
        return _window(
            prepared, replace(calibration, thresholds=thresholds), options, VIN_MAX_STEPS
        )

    return running.settle_largest_currents(
        make_window,
        _running_layers(prepared),
        _some(prepared, feeds, VIN_MAX_SAMPLES),
        per_channel=bool(options.per_channel),
        alpha=float(options.alpha),
        batch=prepared.fixed_batch,
        progress=_telling(progress, "largest currents"),
    )


# --- emission ---


def _spiking_graph(prepared: Prepared, calibration: Calibration, options: Options) -> Graph:
    """The normalized ANN with neurons for its rectifiers and spikes between its layers."""
    graph = prepared.graph.copy()
    context = replace(prepared.context, findings=prepared.context.findings)
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
            FoldAmplitude(options.allow_analog),
            *([TelescopeAnalog()] if options.allow_analog else []),
        ],
        graph,
        context,
    )
    return graph


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
    options = options.resolved(task_of(prepared, options, None), data=True)
    graph = _spiking_graph(prepared, calibration, options)
    context = replace(prepared.context, findings=prepared.context.findings)
    run_passes(
        [
            SinkTimeMean(inputs_vary=options.emit == "step"),
            *([LowerPrecision()] if options.precision == "fp16" else []),
        ],
        graph,
        context,
    )
    infer_shapes(graph)
    options = _unrollable(graph, prepared, options)
    chunk = _chunk(graph, options)
    unroll = UnrollTime(
        options.unroll,
        options.steps,
        chunk,
        options.emit,
        ReadOut.parse(options.readout),
        options.seed,
    )
    unrolled, names = unroll.emit(graph)
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
        "snnc.task": options.task,
        "snnc.paper": str(options.paper).lower(),
        "snnc.encode": options.encode,
        "snnc.image_input": names.get("first_image", ""),
        "snnc.seed_input": names.get("seed", ""),
        "snnc.neuron": options.neuron,
        "snnc.reset": options.reset,
        "snnc.initial": repr(options.initial),
        "snnc.correction": calibration.correction,
        "snnc.readout": options.readout,
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
        check_type("samples", samples, int, "a whole number, or None for all")
        check_range("samples", samples, samples >= 1, "at least 1, or all")
    if preprocess is not None and not isinstance(preprocess, Preprocess):
        raise UsageError("preprocess is not a snncompiler.Preprocess")
    prepared = prepare(
        model,
        strict=options.strict or options.paper,
        allow_analog=options.allow_analog,
        maxpool=options.maxpool,
    )
    if options.unroll == "steps" and options.emit == "window":
        _check_steps_budget(prepared, options.steps)
    check_batch(prepared, options.seed)
    dataset = None
    if isinstance(calibration, Calibration):
        thresholds = calibration
        options = options.resolved(task_of(prepared, options, None), data=True)
    else:
        if calibration is not None:
            loaded = load_data(calibration, prepared.inputs, preprocess)
            prepared.context.findings += loaded.findings
            dataset = loaded.sample(samples, options.seed)
            _warn_constant(prepared, dataset)
        task = task_of(prepared, options, dataset.labels if dataset else None)
        options = options.resolved(task, data=dataset is not None)
        if options.alpha == "auto":
            if dataset is None or len(dataset) < HELD_OUT:
                raise UsageError(
                    f"--alpha auto needs at least {HELD_OUT} calibration samples",
                    hint="give --calibration DATA, or a number for --alpha",
                )
            options, dataset = _searched(prepared, options, dataset, progress)
        feeds = dataset.feeds if dataset else synthetic_feeds(prepared, 1, options.seed)
        if options.maxpool == "exact":
            check_source(prepared, feeds)
        measure_folds(prepared, feeds)
        thresholds = calibrated(prepared, options, dataset, progress)
    return Compiled(emit(prepared, thresholds, options), prepared, thresholds)


#: What a classifier's scores end in.
_CLASS_FUNCTIONS = ("Softmax", "LogSoftmax", "ArgMax", "Hardmax", "TopK")


def task_of(
    prepared: Prepared, options: Options, labels: Array | None
) -> Literal["classification", "regression"]:
    """Whether the network's outputs are class scores, of which only the largest matters.

    They are if the user says so; if a Softmax or an arg-max is computed from them; or if they are
    [N, classes] and the calibration data has labels, or they come from an image or a sequence.  An
    output of the size of the input is a reconstruction, and all else is regression.
    """
    if options.task != "auto":
        return options.task
    if any(node.op in _CLASS_FUNCTIONS for node in prepared.graph.nodes):
        return "classification"
    sizes = {prod(dim or 0 for dim in spec.shape[1:]) for spec in prepared.inputs}
    flat = [output.shape for output in prepared.graph.outputs if len(output.shape or ()) == 2]
    scores = [shape[1] for shape in flat if known(shape[1]) and 1 < shape[1] not in sizes]
    structured = any(len(spec.shape) > 2 for spec in prepared.inputs)
    return "classification" if scores and (labels is not None or structured) else "regression"


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
