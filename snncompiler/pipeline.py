"""The pipeline, read from top to bottom: load, normalize, calibrate, insert neurons, unroll, check.

prepare     source model -> normalized ANN, and what was found on the way (`network/prepare`)
calibrated  normalized ANN + data -> thresholds and corrections (`calibration/calibrate`)
emit        normalized ANN + calibration -> spiking ONNX model (`emission/emit`)
compile_model  the three together
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from snncompiler.analysis.parts import STATISTICS, Part, Shard, gathered
from snncompiler.analysis.statistics import observation_of, observe_part
from snncompiler.analysis.tally import Observed
from snncompiler.calibration.calibrate import Progress, calibrated
from snncompiler.calibration.record import Calibration, check_levels
from snncompiler.calibration.search import HELD_OUT, samples_of_a_run, searched_alpha
from snncompiler.emission.emit import emit
from snncompiler.errors import UsageError, refuse
from snncompiler.ir.grids import grids_of
from snncompiler.ir.growth import STEADY
from snncompiler.ir.option import check_range, check_type, flag_of
from snncompiler.ir.rectifiers import rectifiers_of
from snncompiler.ir.settings import Options
from snncompiler.network.checks import check_batch, check_folds, check_source, measure_folds
from snncompiler.network.data import Dataset, Preprocess, left_out, load_data
from snncompiler.network.pixels import with_preprocessing
from snncompiler.network.prepare import normalization_passes, prepare
from snncompiler.network.prepared import Prepared, synthetic_feeds
from snncompiler.network.task import resolve
from snncompiler.passes.base import Watch
from snncompiler.passes.time.unroll_time import NODE_BUDGET

__all__ = [
    "CALIBRATION_SAMPLES", "CalibrationLike", "Compiled", "Prepared", "Progress", "calibrated",
    "compile_model", "emit", "normalization_passes", "prepare", "synthetic_feeds",
]  # fmt: skip

Array = NDArray[Any]
#: Calibration takes at most this many samples, unless asked otherwise.
CALIBRATION_SAMPLES = 256


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
    watch: Watch | None = None,
    *,
    skip_damaged: bool = False,
    statistics: Sequence[str | os.PathLike[str]] = (),
) -> Compiled:
    """Compile and return everything; `snncompiler.compile` returns the model alone.

    `watch` is shown the network after every pass of the normalization and of the emission
    (`emission.stages`).  `skip_damaged`: calibrate without the images that cannot be read.
    `statistics`: files of `observed`, all parts of a whole, from which thresholds come then.
    """
    options.check()
    if samples is not None:
        check_type("samples", samples, int, "a whole number, or None for all")
        check_range("samples", samples, samples >= 1, "at least 1, or all")
    if preprocess is not None and not isinstance(preprocess, Preprocess):
        raise UsageError("preprocess is not a snncompiler.Preprocess")
    input_type, preprocess, notes = with_preprocessing(options.input_type, preprocess)
    options = replace(options, input_type=input_type)
    if preprocess not in (None, Preprocess()) and isinstance(calibration, Calibration | None):
        raise UsageError(
            "preprocessing is for calibration data, and none was given",
            hint="give --calibration DATA, or leave --scale and the like away",
        )
    if skip_damaged and isinstance(calibration, Calibration | None):
        raise UsageError("--skip-damaged is for images to calibrate with, and none were given")
    if statistics and isinstance(calibration, Calibration | None):
        raise UsageError(
            "--statistics gives thresholds; corrections and checks need samples to run",
            hint="give a few hundred with --calibration DATA, too",
        )
    prepared, options = _prepared(model, options, watch)
    # From here on T is a plain number: to numpy, one of another type is as wide as it can be.
    options = replace(options, steps=int(options.steps))
    prepared.context.findings += notes
    if options.unroll == "steps" and options.emit == "window":
        _check_steps_budget(prepared, options.steps)
    dataset = None
    if isinstance(calibration, Calibration):
        check_batch(prepared, options.seed)
        thresholds, options = _as_asked(calibration, options)
        options = resolve(prepared, options)
    else:
        if calibration is not None:
            loaded = load_data(calibration, prepared.inputs, preprocess, skip_damaged=skip_damaged)
            together = samples_of_a_run(prepared, loaded)
            dataset = loaded.sample(samples, options.seed, together).in_memory()
            prepared.context.findings += dataset.findings
            _warn_constant(prepared, dataset)
            prepared.take_sizes_of(dataset.feeds)
        check_batch(prepared, options.seed)
        how = preprocess or Preprocess()
        whole = gathered([Path(one) for one in statistics], STATISTICS) if statistics else None
        observation = None if whole is None else observation_of(whole, prepared, how)
        if whole is not None:
            prepared.context.findings += left_out(whole.tally.damaged)
        labels = dataset.labels if dataset else None
        options = resolve(prepared, options, data=dataset is not None, labels=labels)
        if options.alpha == "auto":
            if dataset is None:
                raise UsageError(
                    f"--alpha auto needs at least {HELD_OUT} calibration samples",
                    hint="give --calibration DATA, or a number for --alpha",
                )
            options, dataset = searched_alpha(
                prepared, options, dataset, emit, progress, observation
            )
        feeds = (
            dataset.feeds
            if dataset
            else synthetic_feeds(prepared, prepared.samples_of_source, options.seed)
        )
        if options.maxpool == "exact":
            check_source(prepared, feeds)
        measure_folds(prepared, feeds)
        if options.maxpool == "exact":
            check_folds(prepared)
        thresholds = calibrated(prepared, options, dataset, progress, observation)
        if whole is not None:
            both = f"{thresholds.data_sha256}{whole.about['data_sha256']}"
            thresholds = replace(thresholds, data_sha256=hashlib.sha256(both.encode()).hexdigest())
        if how != Preprocess():
            thresholds = replace(thresholds, preprocess=how.as_dict())
    spiking = emit(prepared, thresholds, options, prepared.findings, watch)
    return Compiled(spiking, prepared, thresholds)


def observed(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    options: Options,
    data: str | os.PathLike[str] | Array | Mapping[str, Array] | Dataset,
    shard: Shard,
    preprocess: Preprocess | None = None,
    progress: Progress | None = None,
    *,
    skip_damaged: bool = False,
) -> Part[Observed]:
    """The statistics of one shard of calibration data, for a compilation with the same options."""
    options.check()
    input_type, preprocess, notes = with_preprocessing(options.input_type, preprocess)
    prepared, options = _prepared(model, replace(options, input_type=input_type), None)
    dataset = load_data(data, prepared.inputs, preprocess, skip_damaged=skip_damaged)
    dataset = replace(dataset, findings=(*notes, *dataset.findings))
    prepared.take_sizes_of(dataset.head(1).in_memory().feeds)
    check_batch(prepared, options.seed)
    return observe_part(prepared, dataset, shard, preprocess or Preprocess(), progress)


def _prepared(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto, options: Options, watch: Watch | None
) -> tuple[Prepared, Options]:
    """The normalized ANN; in layered time it is rounded as a quantized source is, where spikes stand
    for as many levels.  The options, with as many digits as that needs where they were left open.

    Raises UsageError for a correction of what needs none, and where the digits are not known.
    """

    def again(keep_rounding: bool) -> Prepared:
        return prepare(
            model,
            strict=options.is_strict,
            allow_analog=options.allow_analog,
            maxpool=options.maxpool,
            pure=options.pure,
            keep_rounding=keep_rounding,
            layered=options.layered,
            input_type=options.input_type,
            watch=watch,
        )

    if not options.layered or options.weights:
        # Weights of whole numbers choose thresholds of their own.
        return again(False), options
    prepared = again(True)
    top = max((grid.top for grid in grids_of(prepared.graph).values()), default=0)
    if options.steps_are_open and top:
        options = replace(options, steps=top.bit_length())
        prepared.context.note("SNNC206", f"T = {options.steps}: the source has {top} levels")
    if options.radix:
        options.check_digits()
    if top > options.levels:
        prepared = again(False)
        digits = top.bit_length()
        prepared.context.warn(
            "SNNC206",
            f"the rounding of the source is dropped: its activations have {top} levels, and "
            f"T = {options.steps} gives {options.levels}",
            hint=f"with --coding radix -T {digits} it is converted exactly",
        )
    elif prepared.context.keeps_rounding and options.correct not in ("auto", "none"):
        raise UsageError(
            f"--correct {options.correct} would change the weights of a quantized source, which is "
            "converted exactly",
            hint="leave --correct away",
        )
    return prepared, options


def _as_asked(calibration: Calibration, options: Options) -> tuple[Calibration, Options]:
    """A calibration that is used again, and the options with its initial potential.

    With `correction` none its charges are left out, and θ is what it was before it grew.  Raises
    UsageError, which names every option that asks for another calibration.
    """
    check_levels(calibration, options)
    if options.correction == "none":
        last = np.float32(calibration.growth.last)
        thresholds = {name: theta / last for name, theta in calibration.thresholds.items()}
        calibration = replace(
            calibration,
            thresholds=thresholds,
            correction="none",
            schedules={},
            growth=STEADY,
            whole={},
        )
    names = ["threshold", "percentile", "tau", "per_channel", "alpha", "correction", "growth"]
    running = bool(calibration.schedules) or calibration.method == "vin-max"
    names += ["neuron", "initial", "reset"] * running
    names += ["schedule_steps"] * (calibration.correction == "schedule")
    names += ["correct"] * bool(calibration.levels)
    names += ["weights"] * bool(calibration.whole)
    if options.maxpool != calibration.maxpool:
        raise UsageError(
            f"the calibration is of the network with --maxpool {calibration.maxpool}, "
            f"--maxpool {options.maxpool} is another",
            hint="give the data, or the option of the calibration",
        )
    own = {name: getattr(calibration, _KEPT_AS.get(name, name)) for name in names}
    asked = {name: getattr(options, name) for name in names}
    # What has its default was left open, but a neuron never is.
    default = {**vars(Options()), "neuron": None, "reset": None}
    if options.paper and options.threshold == "auto":
        asked["threshold"] = "vin-max"
    other = [name for name in names if asked[name] not in (own[name], default[name])]
    if options.encoding == "poisson" and not calibration.input_scales:
        other, asked, own = (
            [*other, "encode"],
            {**asked, "encode": "poisson"},
            {**own, "encode": "constant"},
        )
    if options.encode == "constant" and running and calibration.input_scales:
        other, asked, own = (
            [*other, "encode"],
            {**asked, "encode": "constant"},
            {**own, "encode": "poisson"},
        )
    if other:
        wanted = ", ".join(f"{flag_of(name)} {asked[name]}" for name in other)
        raise UsageError(
            f"{wanted} needs data, a calibration with {', '.join(str(own[name]) for name in other)} "
            "was given",
            hint="give the data",
        )
    return calibration, replace(options, initial=own.get("initial", options.initial))


#: What options are called in a Calibration.
_KEPT_AS = {"threshold": "method"}


def _check_steps_budget(prepared: Prepared, steps: int) -> None:
    """Refuse early what `steps` would refuse after the calibration: a lower bound of its nodes."""
    neurons = len(rectifiers_of(prepared.graph))
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
