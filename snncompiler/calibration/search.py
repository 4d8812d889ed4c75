"""The scale of the thresholds, by search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from snncompiler.calibration.calibrate import Progress, calibrated
from snncompiler.calibration.observe import Observation
from snncompiler.calibration.record import Calibration
from snncompiler.errors import UsageError
from snncompiler.ir.settings import Options, chosen
from snncompiler.network.batching import Gathered, batches, filled, one_by_one, squares
from snncompiler.network.data import Dataset
from snncompiler.network.prepared import Prepared
from snncompiler.runtime.session import create_session

Array = NDArray[Any]

#: Makes the spiking network of a calibration.
Emit = Callable[[Prepared, Calibration, Options], onnx.ModelProto]
#: `--alpha auto` tries these on one of HELD_OUT samples, so many at once.
ALPHAS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)


HELD_OUT = 4


ALPHA_BATCH = 16


def searched_alpha(
    prepared: Prepared,
    options: Options,
    dataset: Dataset,
    emit: Emit,
    progress: Progress | None,
    observation: Observation | None = None,
) -> tuple[Options, Dataset]:
    """The options with the best α, and the part of the data that thresholds come from.

    One of HELD_OUT samples is held out.  On these every α of ALPHAS is tried at T/4, T/2 and T steps,
    of those beyond the delay of the read-out, and in layered time at T alone.  The one with the best
    mean agreement with the ANN is taken (of equals the one nearest 1), for regression the one with the
    least relative error.  `emit` makes the spiking network of a calibration: its emission stands above
    calibration.

    What runs at once stays together.  Raises UsageError where there are fewer than HELD_OUT of these.
    """
    together = samples_of_a_run(prepared, dataset)
    runs = np.arange(dataset.groups(together))
    if len(runs) < HELD_OUT:
        whole = f" times the {together} of a run" if together > 1 else ""
        raise UsageError(
            f"--alpha auto needs at least {HELD_OUT} calibration samples{whole}",
            hint="give more with --calibration, or a number for --alpha",
        )
    trial = dataset.take(runs[::HELD_OUT], together)
    rest = dataset.take(runs[runs % HELD_OUT > 0], together)
    findings = list(prepared.context.findings)
    window = replace(options, emit="window", batch=None, unroll="fold", chunk=None)
    skipped = chosen(options.readout).skipped
    parts = (1,) if options.layered else (4, 2, 1)  # the levels of a window are those of its T
    steps = sorted({t for part in parts if (t := max(1, options.steps // part)) > skipped})
    wanted = _outputs(prepared.ann, trial.feeds, prepared)

    def score(model: onnx.ModelProto, count: int) -> float:
        properties = {entry.key: entry.value for entry in model.metadata_props}
        name = properties["snnc.steps_input"]
        given = {name: np.array(count)} if name else {}
        found = _outputs(model, trial.feeds, prepared, given)
        pairs = list(zip(wanted, found, strict=True))
        if options.task == "classification":
            return float(np.mean([_agreement(a.parts, b.parts) for a, b in pairs]))
        error, norm = np.sum([squares(b, a.parts) for a, b in pairs], axis=0)
        return -float(np.sqrt(error / norm)) if norm else 0.0

    tried: list[tuple[float, float]] = []
    for alpha in sorted(ALPHAS, key=lambda value: abs(value - 1)):
        with_alpha = replace(window, alpha=alpha)
        model = emit(
            prepared,
            calibrated(prepared, with_alpha, rest, observation=observation),
            with_alpha,
        )
        tried.append((float(np.mean([score(model, count) for count in steps])), alpha))
        if progress:
            progress("searching α", len(tried), len(ALPHAS))
    prepared.context.findings[:] = findings
    best, alpha = max(tried, key=lambda entry: entry[0])
    what = "agreement with the ANN" if options.task == "classification" else "minus relative error"
    prepared.context.note(
        "SNNC308",
        f"α = {alpha:g} was chosen of {', '.join(f'{a:g}' for a in ALPHAS)}: {what} {best:.3f}, the "
        f"mean over T = {', '.join(map(str, steps))} on {trial.groups(1)} held-out samples",
    )
    return replace(options, alpha=alpha), rest


def samples_of_a_run(prepared: Prepared, dataset: Dataset) -> int:
    """How many samples follow each other in one run of the network: a fixed batch may be a sequence."""
    return max((prepared.fixed_batch or 1) // dataset.rows, 1)


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
