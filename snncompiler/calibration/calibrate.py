"""From the normalized ANN and data to its calibration: thresholds, then what corrects them.

Thresholds come from the ANN's activations, from the running spiking network (the paper's), or without
data from batch-norm statistics and seeded random input; corrections always from the running network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snncompiler.calibration.charges import (
    LEAST_POSITIONS,
    Floats,
    Layer,
    constant_currents,
    settle_corrections,
    settle_largest_currents,
)
from snncompiler.calibration.feedback import FEW_BITS
from snncompiler.calibration.levels import calibrate_levels
from snncompiler.calibration.observe import Observation, bounded, calibrate, observe
from snncompiler.calibration.record import Calibration
from snncompiler.calibration.statistics import gaussian_thresholds
from snncompiler.calibration.window import Window, window_of
from snncompiler.errors import Refused, UsageError
from snncompiler.ir.grids import Grid, grids_of
from snncompiler.ir.growth import STEADY, Growth
from snncompiler.ir.rectifiers import rectified_channels, rectifiers_of, values_of
from snncompiler.ir.settings import DEFAULT_GROWTH, Options, no_growth
from snncompiler.network.data import Dataset
from snncompiler.network.prepared import Prepared, synthetic_feeds
from snncompiler.network.task import resolve

Array = NDArray[Any]
#: Called with what is being done and how far it is: (text, done, of).
Progress = Callable[[str, int, int], None]

SYNTHETIC_SAMPLES = 32
#: The running network is corrected on at least and at most so many samples, and between them on as
#: many as keep the spikes of all neurons, steps and samples below CORRECTION_VALUES.
CORRECTION_SAMPLES = (16, 128)
CORRECTION_VALUES = 1 << 32
#: The paper's thresholds are observed over so many time-steps and samples.
VIN_MAX_STEPS = 256
VIN_MAX_SAMPLES = 64


def calibrated(
    prepared: Prepared,
    options: Options,
    dataset: Dataset | None,
    progress: Progress | None = None,
    observation: Observation | None = None,
) -> Calibration:
    """Thresholds and corrections for every rectifier: from data, else batch-norm statistics, else
    synthetic input.  observation: of more data, from which thresholds come then; what needs the running
    network is done on the data that is given."""
    grids = grids_of(prepared.graph)
    if options.layered and dataset is not None and not grids:
        return calibrate_levels(prepared, options, dataset, progress, observation=observation)
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
        weights=options.weights,
        source="data",
        samples=0,
        seed=options.seed,
        model_sha256=prepared.source.sha256,
        data_sha256=dataset.sha256() if dataset else "",
    )
    if grids:
        calibration = replace(calibration, levels=options.levels)
        return _on_grids(prepared, calibration, options, dataset, progress, grids, observation)
    if dataset is None:
        return _in_levels(_without_data(prepared, calibration, options, progress), options)
    calibration = _from_data(prepared, calibration, options, dataset.feeds, progress, observation)
    if options.correction == "none":
        return calibration
    return _corrected(prepared, calibration, options, dataset.feeds, progress)


def _on_grids(
    prepared: Prepared,
    calibration: Calibration,
    options: Options,
    dataset: Dataset | None,
    progress: Progress | None,
    grids: Mapping[str, Grid],
    observation: Observation | None = None,
) -> Calibration:
    """The scales of a quantized source as thresholds; data is for the rectifiers that have none."""
    scales = {name: grid.scale for name, grid in grids.items()}
    nodes = rectifiers_of(prepared.graph)
    if all(node.name in scales for node in nodes):
        return replace(calibration, thresholds=scales, source="quantized source", data_sha256="")
    if dataset is None:
        found = _without_data(prepared, calibration, options, progress)
    else:
        found = _from_data(prepared, calibration, options, dataset.feeds, progress, observation)
    found = _in_levels(found, options)
    return replace(found, thresholds={**found.thresholds, **scales})


def _in_levels(calibration: Calibration, options: Options) -> Calibration:
    """In layered time θ is what one of L levels is worth, where it was the largest value."""
    if not options.layered:
        return calibration
    thresholds = {
        name: np.maximum(theta / np.float32(options.levels), np.finfo(np.float32).tiny)
        for name, theta in calibration.thresholds.items()
    }
    return replace(calibration, thresholds=thresholds, levels=options.levels)


def _from_data(
    prepared: Prepared,
    calibration: Calibration,
    options: Options,
    feeds: Mapping[str, Array],
    progress: Progress | None,
    observation: Observation | None = None,
) -> Calibration:
    """With thresholds from real or synthetic data, or from an observation that there is already."""
    observation = observation or observe(
        prepared.ann,
        prepared.graph,
        feeds,
        batch=prepared.fixed_batch,
        progress=_telling(progress, "calibrating"),
    )
    from_running = options.threshold == "vin-max"
    seen = replace(options, threshold="max") if from_running else options
    thresholds, findings = calibrate(observation, rectifiers_of(prepared.graph), seen)
    prepared.context.findings += findings
    largest = {name: found or 1.0 for name, found in observation.largest.items()}
    calibration = replace(
        calibration,
        thresholds=thresholds,
        samples=observation.samples,
        input_scales=largest if options.encode == "poisson" else {},
        input_ranges=largest if options.weights else {},
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
    found = gaussian_thresholds(prepared.graph, prepared.context, options)
    if found and options.threshold not in ("percentile", "max"):
        raise UsageError(
            f"--threshold {options.threshold} needs calibration data: batch-norm statistics, "
            "which replace it, give percentiles only",
            hint="give --calibration DATA",
        )
    names = [node.name for node in rectifiers_of(prepared.graph)]
    missing = [name for name in names if name not in found]
    source = " and ".join(["batch-norm"] * bool(found) + ["synthetic"] * bool(missing))
    prepared.context.warn(
        "SNNC304",
        f"there is no calibration data: thresholds come from {_SOURCES[source]}",
        hint="give --calibration DATA; a few hundred real samples are enough",
    )
    if missing or options.encode == "poisson" or options.weights:
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


# --- calibration on the running network ---


def _running_layers(prepared: Prepared) -> list[Layer]:
    return [
        Layer(node.name, node.outputs[0].name, rectified_channels(node))
        for node in rectifiers_of(prepared.graph)
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
    growth = DEFAULT_GROWTH if options.growth == "auto" else options.growth
    try:
        corrected, window = _grown(prepared, calibration, options, growth, steps)
    except Refused as refused:
        reason = refused.findings[0]
        if growth and options.growth != "auto":
            raise no_growth(growth, f"{reason.node}: {reason.message}") from None
        prepared.context.note(
            "SNNC205", f"the running network is not corrected: {reason.message}", node=reason.node
        )
        return calibration
    values = sum(values_of(node) for node in rectifiers_of(prepared.graph))
    most = CORRECTION_VALUES // max(values * steps, 1)
    chosen = _some(prepared, feeds, min(max(most, CORRECTION_SAMPLES[0]), CORRECTION_SAMPLES[1]))
    biases: dict[str, Floats] = {}
    if growth:
        biases, uneven = constant_currents(window, layers, chosen, prepared.fixed_batch)
        if uneven:
            reason_text = f"the bias of {uneven[0]} is not the same all over a channel"
            if options.growth != "auto":
                raise no_growth(growth, reason_text)
            prepared.context.note("SNNC310", f"thresholds do not grow: {reason_text}")
            growth, biases = STEADY, {}
            corrected, window = _grown(prepared, calibration, options, growth, steps)
    few = options.weights.bits is not None and options.weights.bits < FEW_BITS
    whole: dict[str, NDArray[np.int8]] | None = {} if few else None
    schedules, left = settle_corrections(
        window,
        prepared.ann,
        layers,
        chosen,
        options.correction,
        growth=growth,
        biases=biases,
        batch=prepared.fixed_batch,
        seed=options.seed,
        whole=whole,
        progress=_telling(progress, "correcting"),
    )
    if left:
        count = len(next(iter(chosen.values())))
        prepared.context.note(
            "SNNC309",
            f"{len(left)} of {len(schedules)} layers are not corrected: {count} samples show fewer "
            f"than {LEAST_POSITIONS} positions of a channel",
            hint="give more calibration samples",
        )
    return replace(corrected, schedules=schedules, whole=whole or {})


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
        growth=growth,
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

    nodes = {node.name: node for node in rectifiers_of(prepared.graph)}
    return settle_largest_currents(
        make_window,
        _running_layers(prepared),
        _some(prepared, feeds, VIN_MAX_SAMPLES),
        per_channel=bool(options.per_channel),
        alpha=float(options.alpha),
        bounded=lambda name, theta: bounded(nodes[name], theta),
        batch=prepared.fixed_batch,
        progress=_telling(progress, "largest currents"),
    )
