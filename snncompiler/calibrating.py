"""From the normalized ANN and data to its calibration: thresholds, then what corrects them.

Thresholds come from the ANN's activations, from the running spiking network (the paper's), or without
data from batch-norm statistics and seeded random input; corrections always from the running network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from snncompiler import calibration as calib
from snncompiler import running
from snncompiler.batching import Gathered, one_by_one, squares
from snncompiler.calibration import Calibration
from snncompiler.compiled import batches, filled
from snncompiler.data import Dataset
from snncompiler.emission import emit, window_of
from snncompiler.errors import Refused, UsageError
from snncompiler.growth import STEADY, Growth
from snncompiler.operators import rectified_channels
from snncompiler.options import DEFAULT_GROWTH, Options, no_growth
from snncompiler.passes.unroll_time import ReadOut
from snncompiler.preparation import Prepared, resolve, synthetic_feeds
from snncompiler.running import Window
from snncompiler.runtime.session import create_session
from snncompiler.thresholds import Settings

Array = NDArray[Any]
#: Called with what is being done and how far it is: (text, done, of).
Progress = Callable[[str, int, int], None]

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


def calibrated(
    prepared: Prepared,
    options: Options,
    dataset: Dataset | None,
    progress: Progress | None = None,
) -> Calibration:
    """Thresholds and corrections for every rectifier: from data, else batch-norm statistics, else
    synthetic input."""
    labels = dataset.labels if dataset else None
    options = resolve(prepared, options, data=dataset is not None, labels=labels)
    calibration = Calibration(
        thresholds={},
        method=options.threshold,
        percentile=options.percentile,
        tau=options.tau,
        per_channel=bool(options.per_channel),
        alpha=float(options.alpha),
        neuron=options.neuron,
        initial=float(options.initial or 0.0),
        reset=options.reset,
        schedule_steps=options.schedule_steps,
        maxpool=options.maxpool,
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
    """Thresholds from batch-norm statistics, and from seeded random input where they do not reach.

    Raises UsageError where these statistics cannot do what the method does.
    """
    found = calib.gaussian_thresholds(
        prepared.graph,
        prepared.context,
        method=options.threshold,
        percentile=options.percentile,
        per_channel=bool(options.per_channel),
        alpha=float(options.alpha),
    )
    if found and options.threshold not in ("percentile", "max"):
        raise UsageError(
            f"--threshold {options.threshold} needs calibration data: batch-norm statistics, which "
            "stand in for it, give percentiles alone",
            hint="give --calibration DATA",
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


def searched_alpha(
    prepared: Prepared, options: Options, dataset: Dataset, progress: Progress | None
) -> tuple[Options, Dataset]:
    """The options with the best α, and the part of the data that thresholds come from.

    One of HELD_OUT samples is held out.  On these every α of ALPHAS is tried at T/4, T/2 and T steps,
    of those beyond the delay of the read-out; the one with the best mean agreement with the ANN is
    taken (of equals the one nearest 1), for regression the one with the least relative error.
    """
    numbers = np.arange(len(dataset) // dataset.rows)
    trial = dataset.take(numbers[::HELD_OUT])
    rest = dataset.take(numbers[numbers % HELD_OUT > 0])
    findings = list(prepared.context.findings)
    window = replace(options, emit="window", batch=None, unroll="fold", chunk=None)
    skipped = ReadOut.parse(options.readout).skipped
    steps = sorted({t for part in (4, 2, 1) if (t := max(1, options.steps // part)) > skipped})
    wanted = _outputs(prepared.ann, trial.feeds, prepared)

    def score(model: onnx.ModelProto, count: int) -> float:
        properties = {entry.key: entry.value for entry in model.metadata_props}
        given = {properties["snnc.steps_input"]: np.array(count)}
        found = _outputs(model, trial.feeds, prepared, given)
        pairs = list(zip(wanted, found, strict=True))
        if options.task == "classification":
            return float(np.mean([_agreement(a.parts, b.parts) for a, b in pairs]))
        error, norm = np.sum([squares(b, a.parts) for a, b in pairs], axis=0)
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


def _agreement(found: Sequence[Array], wanted: Sequence[Array]) -> float:
    """The share of equal arg-maxima; where the shapes of a sample differ, it has none."""
    return float(
        np.mean(
            [
                (a.argmax(-1) == b.argmax(-1)).mean() if a.shape == b.shape else 0.0
                for a, b in zip(map(np.atleast_1d, found), map(np.atleast_1d, wanted), strict=True)
            ]
        )
    )


def _outputs(
    model: onnx.ModelProto,
    feeds: Mapping[str, Array],
    prepared: Prepared,
    given: Mapping[str, Array] | None = None,
) -> list[Gathered]:
    """The float outputs of a model on all samples, in batches."""
    session, axes = create_session(model), prepared.output_axes
    count, fixed = len(next(iter(feeds.values()))), prepared.fixed_batch
    outputs = [Gathered(axis) for axis in axes.values()]
    for part in batches(count, fixed or (1 if one_by_one(axes) else ALPHA_BATCH)):
        values = session.run(None, {**filled(feeds, part, fixed), **(given or {})})
        taken = part.stop - part.start
        for output, value in zip(outputs, values, strict=True):
            output.add(value, taken, fixed or taken)
    return [output for output in outputs if output.parts[0].dtype.kind == "f"]


# --- calibration on the running network ---


def _running_layers(prepared: Prepared) -> list[running.Layer]:
    return [
        running.Layer(node.name, node.outputs[0].name, rectified_channels(node))
        for node in calib.rectifiers_of(prepared.graph)
    ]


def _some(prepared: Prepared, feeds: Mapping[str, Array], most: int) -> dict[str, Array]:
    """About `most` of the samples; whole batches where the network takes no other."""
    total = len(next(iter(feeds.values())))
    count = min(most, total)
    if prepared.fixed_batch:
        count = max(count - count % prepared.fixed_batch, prepared.fixed_batch)
    # Evenly spread, as data often comes sorted by class; what runs at once stays together.
    size = prepared.fixed_batch or 1
    first = np.arange(count // size) * (total // size) // (count // size)
    chosen = (size * first[:, None] + np.arange(size)).reshape(-1)
    return {name: array[chosen] for name, array in feeds.items()}


def _corrected(
    prepared: Prepared,
    calibration: Calibration,
    options: Options,
    feeds: Mapping[str, Array],
    progress: Progress | None,
) -> Calibration:
    """The calibration with the charges that correct the running network, and with the thresholds that
    its own grow to.

    Where time cannot be folded there is no correction, and a note says so.  Raises UsageError where
    thresholds cannot grow as asked.
    """
    steps = options.schedule_steps if options.correction == "schedule" else options.steps
    layers = _running_layers(prepared)
    growth = Growth.parse(DEFAULT_GROWTH if options.growth == "auto" else options.growth)
    try:
        corrected, window = _grown(prepared, calibration, options, growth, steps)
    except Refused as refused:
        reason = refused.findings[0]
        if growth and options.growth != "auto":
            raise no_growth(options.growth, f"{reason.node}: {reason.message}") from None
        prepared.context.note(
            "SNNC205", f"the running network is not corrected: {reason.message}", node=reason.node
        )
        return calibration
    values = sum(calib.values_of(node) for node in calib.rectifiers_of(prepared.graph))
    most = CORRECTION_VALUES // max(values * steps, 1)
    chosen = _some(prepared, feeds, min(max(most, CORRECTION_SAMPLES[0]), CORRECTION_SAMPLES[1]))
    biases: dict[str, running.Floats] = {}
    if growth:
        biases, uneven = running.constant_currents(window, layers, chosen, prepared.fixed_batch)
        if uneven:
            reason_text = f"the bias of {uneven[0]} is not the same all over a channel"
            if options.growth != "auto":
                raise no_growth(options.growth, reason_text)
            prepared.context.note("SNNC310", f"thresholds do not grow: {reason_text}")
            growth, biases = STEADY, {}
            corrected, window = _grown(prepared, calibration, options, growth, steps)
    schedules, left = running.settle_corrections(
        window,
        prepared.ann,
        layers,
        chosen,
        options.correction,
        growth=growth,
        biases=biases,
        batch=prepared.fixed_batch,
        seed=options.seed,
        progress=_telling(progress, "correcting"),
    )
    if left:
        count = len(next(iter(chosen.values())))
        prepared.context.note(
            "SNNC309",
            f"{len(left)} of {len(schedules)} layers are not corrected: {count} samples show fewer "
            f"than {running.LEAST_POSITIONS} positions of a channel",
            hint="give more calibration samples",
        )
    return replace(corrected, schedules=schedules)


def _grown(
    prepared: Prepared, calibration: Calibration, options: Options, growth: Growth, steps: int
) -> tuple[Calibration, Window]:
    """The calibration with what its thresholds grow to and no charges yet, and its running network.

    Raises Refused where time cannot be folded into the batch.
    """
    last = np.float32(growth.last)
    grown = replace(
        calibration,
        thresholds={name: theta * last for name, theta in calibration.thresholds.items()},
        growth=str(growth),
        correction=options.correction,
        schedules={
            layer.name: np.zeros((1, layer.channels), np.float32)
            for layer in _running_layers(prepared)
        },
    )
    return grown, window_of(prepared, grown, options, steps)


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

    def make_window(thresholds: Mapping[str, NDArray[np.float32]]) -> Window:
        return window_of(
            prepared, replace(calibration, thresholds=thresholds), options, VIN_MAX_STEPS
        )

    nodes = {node.name: node for node in calib.rectifiers_of(prepared.graph)}
    return running.settle_largest_currents(
        make_window,
        _running_layers(prepared),
        _some(prepared, feeds, VIN_MAX_SAMPLES),
        per_channel=bool(options.per_channel),
        alpha=float(options.alpha),
        bounded=lambda name, theta: calib.bounded(nodes[name], theta),
        batch=prepared.fixed_batch,
        progress=_telling(progress, "largest currents"),
    )
