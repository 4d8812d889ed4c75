"""Accuracy of compiled networks against time-steps: docs/explanation/accuracy.md, one command.

    python bench/accuracy.py [--only NAME,..] [--settings NAME ..] [--draws 5] [--steps 4,8,..]
                             [--limit N] [--samples 256] [--held-out]
                             [--json FILE] [--keep] [--write PAGE.md]

Every network of bench/networks.py is compiled once for each setting and calibration draw, and that
one file runs at every T, on the same test images as the ANN.  A setting is a name of SETTINGS, or
options of `snncompiler.compile` such as `threshold=max,per_channel=false`.  Draw k takes its
calibration samples with seed k.  Networks without class scores have a table of their own.

    drop        the ANN's accuracy minus the SNN's, in points
    interval    95 %, paired: each image gives d = 1 where only the ANN is right, -1 where only the
                SNN is, else 0.  Normal approximation after Bonett and Price (2012): one image of
                either disagreement is added, so n + 2 images, with D the sum of d and Q that of d²,
                plus 2, and D / (n + 2) ± 1.96·sqrt(Q - D² / (n + 2)) / (n + 2).  So an SNN that
                never differs still has an interval.  With several draws, d is an image's mean over
                them: the interval is about the images, the deviation about the draws.
    agreement   images on which both have the same arg-max
    firing      spikes per neuron and step
    divergence  Kullback-Leibler, of the SNN's class probabilities from the ANN's, times 100; it tells
                settings apart where few images change their class (of one network: see
                `log_probabilities`)

`--held-out` is for choosing between settings: it leaves the test images alone, calibrates on one half
of the calibration samples and measures on the other, with the divergence; no target is compared.

`--json` keeps every prediction, so that all of this can be computed again; it is written after each
compiled network, and `--keep` goes on from there, or only writes the page; a row says nothing of the
version that it was measured with, so begin anew where the compiler has changed.  Without `--limit`,
most of the time goes into the 10,000 JPEG pictures.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray

import snncompiler
from bench.networks import CLASSIFIERS, REGRESSORS, WINDOWS, Case, Data
from bench.zoo import entries, material_root
from snncompiler.analysis.instrument import Watched, watch
from snncompiler.emission.compiled import CompiledFile, read_compiled
from snncompiler.errors import Refused, UsageError
from snncompiler.ir import settings
from snncompiler.network.batching import batches, filled
from snncompiler.network.data import Dataset
from snncompiler.network.load import load
from snncompiler.runtime import library
from snncompiler.runtime.session import create_session

Array = NDArray[Any]
Row = dict[str, Any]
Say = Callable[[str], None]

#: Without a correction, with the mean of all steps as the read-out.
_PLAIN = {"correction": "none", "readout": "mean"}
_STEADY = {"correction": "schedule", "growth": "none"}
_SCHEDULE = {**_STEADY, "readout": "mean"}
#: Named settings: options of `snncompiler.compile`.
SETTINGS: dict[str, Row] = {
    "default": {},
    # Thresholds alone.
    "max-layer": {"threshold": "max", "per_channel": False, **_PLAIN},
    "max": {"threshold": "max", **_PLAIN},
    "percentile-layer": {"threshold": "percentile", "per_channel": False, **_PLAIN},
    "percentile": {"threshold": "percentile", **_PLAIN},
    "mmse": {"threshold": "mmse", **_PLAIN},
    "balance": {"threshold": "balance", **_PLAIN},
    "vin-max": {"threshold": "vin-max", "initial": 0.0, **_PLAIN},
    # Initial potential, corrections and read-outs.
    "percentile-v0": {"threshold": "percentile", "initial": 0.0, **_PLAIN},
    "percentile-delay8": {"threshold": "percentile", "correction": "none", "readout": "delay:8"},
    "percentile-bias": {"threshold": "percentile", "correction": "bias", "readout": "mean"},
    "percentile-schedule": {"threshold": "percentile", **_SCHEDULE},
    "balance-bias": {"threshold": "balance", "correction": "bias", "readout": "mean"},
    "balance-ramp": {"threshold": "balance", "correction": "none", "readout": "ramp"},
    "balance-schedule": {"threshold": "balance", **_SCHEDULE},
    "balance-schedule-ramp": {"threshold": "balance", "readout": "ramp", **_STEADY},
    "balance1000-schedule": {"threshold": "balance", "tau": 1000.0, **_SCHEDULE},
    "max-schedule": {"threshold": "max", **_SCHEDULE},
    "max-schedule-ramp": {"threshold": "max", "readout": "ramp", **_STEADY},
    # θ that does not grow.
    "steady": {"growth": "none"},
    # Not binary.
    "burst2": {"neuron": "burst:2"},
    "burst4": {"neuron": "burst:4"},
    "burst8": {"neuron": "burst:8"},
    "signed1": {"neuron": "signed:1"},
    "signed4": {"neuron": "signed:4"},
}
#: How the reason begins where a network without figures is a result.
NO_FAILURE = "cannot be converted"
STEPS = (4, 8, 16, 32, 64, 128)
OUTPUT_STEPS = (32, 64, 128, 256)
#: Samples that run at once, and the most bytes of one such batch.
BATCH, BATCH_BYTES = 50, 12 << 20
#: The goals: (networks, setting, figure, bound by T).  A drop at most, an agreement at
#: least.
_CIFAR = tuple(
    name
    for name in CLASSIFIERS
    if name not in ("resnet20-jpeg", "resnet20", "resnet18", "squeezenet", "mobilenet")
)
TARGETS: tuple[tuple[tuple[str, ...], str, str, dict[int, float]], ...] = (
    (("resnet20-jpeg",), "default", "drop", {8: 8, 16: 2, 32: 1, 64: 0.5, 128: 0.2}),
    (("resnet20",), "default", "agreement", {8: 88, 16: 94, 32: 96, 64: 97.5}),
    (_CIFAR, "default", "drop", {16: 3, 32: 1, 64: 0.5}),
    (("resnet18",), "default", "drop", {32: 3, 64: 1, 128: 0.5}),
    (("squeezenet", "mobilenet"), "default", "drop", {64: 8, 128: 4}),
    (("resnet20",), "burst4", "drop", {2: 3, 4: 0.5}),
)


# --- statistics ---

#: Of the normal distribution, two-sided.
Z95 = 1.959964


@dataclass(frozen=True)
class Figures:
    """Of one network, setting and T, over all draws; in points and percent.

    `spread` is the standard deviation of the drop over the draws, None for a single one.
    `divergence` is times 100; None where only classes were kept.
    """

    ann: float
    snn: float
    drop: float
    low: float
    high: float
    spread: float | None
    agreement: float
    firing: float | None
    divergence: float | None


def paired_interval(differences: Array) -> tuple[float, float]:
    """The 95 % interval of a mean of paired differences in [-1, 1], as shares (see the module).

    For differences of -1, 0 and 1 it is that of `snncompiler.analysis.evaluate.paired_interval`.
    """
    d = np.asarray(differences, np.float64)
    count, total, squares = d.size + 2, d.sum(), np.square(d).sum() + 2
    middle = total / count
    half = Z95 * np.sqrt(squares - total * total / count) / count
    return max(float(middle - half), -1.0), min(float(middle + half), 1.0)


def figures(
    labels: Sequence[int],
    ann: Sequence[int],
    draws: Sequence[Sequence[int]],
    firing: Sequence[float | None] = (),
    divergence: Sequence[float | None] = (),
) -> Figures:
    """From the labels and all predictions: of the ANN, and of the SNN in each draw."""
    truth, of_ann, of_snn = np.asarray(labels), np.asarray(ann), np.asarray(draws)
    right = of_snn == truth
    differences = (of_ann == truth).astype(np.float64) - right
    low, high = paired_interval(differences.mean(axis=0))
    drops = 100 * differences.mean(axis=1)
    return Figures(
        ann=100 * float((of_ann == truth).mean()),
        snn=100 * float(right.mean()),
        drop=float(drops.mean()),
        low=100 * low,
        high=100 * high,
        spread=float(drops.std(ddof=1)) if len(drops) > 1 else None,
        agreement=100 * float((of_snn == of_ann).mean()),
        firing=hundredfold_mean(firing),
        divergence=hundredfold_mean(divergence),
    )


def hundredfold_mean(values: Sequence[float | None]) -> float | None:
    """Of those that there are; None where there are none."""
    there = [value for value in values if value is not None]
    return 100 * float(np.mean(there)) if there else None


def log_probabilities(scores: Array) -> Array:
    """Of class scores [n, classes]: by Softmax, unless they are probabilities already.

    A given probability is taken as at least 1e-5, as float32's may be 0, and one class must not decide
    the mean.  So only settings of one network can be compared, not networks with a Softmax and without.
    """
    values = scores.astype(np.float64)
    if (values >= 0).all() and np.allclose(values.sum(axis=1), 1, atol=1e-3):
        values = np.log(np.maximum(values, 1e-5))
    values = values - values.max(axis=1, keepdims=True)
    found: Array = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    return found


def divergence(ann: Array, snn: Array) -> float:
    """Σ p·log(p / q), p the ANN's probabilities and q the SNN's, the mean over images."""
    p, q = log_probabilities(ann), log_probabilities(snn)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def area_under_curve(scores: Array, positive: Array) -> float:
    """The share of (positive, negative) pairs in which the positive one scores higher."""
    high, low = scores[positive][:, None], scores[~positive][None]
    return float((high > low).mean() + 0.5 * (high == low).mean())


# --- settings ---


def setting(text: str) -> tuple[str, Row]:
    """A name of SETTINGS, or `option=value,...` with values as in JSON, or as they stand."""
    if "=" not in text:
        if text not in SETTINGS:
            raise ValueError(f"no setting {text!r}; there are: {', '.join(SETTINGS)}")
        return text, SETTINGS[text]
    options: Row = {}
    # A value may have commas itself.
    for part in re.split(r",(?=\s*\w+=)", text):
        name, _, value = part.partition("=")
        try:
            options[name.strip()] = json.loads(value)
        except json.JSONDecodeError:
            options[name.strip()] = value
    return text, options


def described(options: Mapping[str, Any]) -> str:
    """A setting in words, for the page."""
    if not options:
        return "`snncompiler.compile` without options"
    return ", ".join(f"{name} {value}" for name, value in options.items())


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raises ValueError where this version of `snncompiler.compile` lacks an option."""
    known = inspect.signature(snncompiler.compile).parameters
    missing = [option for option in options if option not in known]
    if missing:
        raise ValueError(
            f"setting {name!r} needs {', '.join(missing)}, which snncompiler.compile of version "
            f"{snncompiler.__version__} does not have"
        )


# --- running ---


def batch_size(data: Dataset) -> int:
    one = max(1, sum(array[:1].nbytes for array in data.feeds.values()))
    return max(1, min(BATCH, BATCH_BYTES // one))


def passes(
    session: Any, data: Dataset, size: int, fixed: int | None, extra: Mapping[str, Array]
) -> Iterator[tuple[slice, dict[str, Array]]]:
    """The outputs of a session by name, batch after batch."""
    names = [entry.name for entry in session.get_outputs()]
    for part in batches(len(data), fixed or size):
        values = session.run(None, {**filled(data.feeds, part, fixed), **extra})
        count = part.stop - part.start
        yield part, {n: np.atleast_1d(v)[:count] for n, v in zip(names, values, strict=True)}


@dataclass(frozen=True)
class Reference:
    """What the ANN says: all its float outputs, and which of them are class scores."""

    outputs: Mapping[str, Array]
    scores: str | None

    @property
    def predictions(self) -> list[int]:
        assert self.scores is not None
        found: list[int] = self.outputs[self.scores].argmax(axis=1).tolist()
        return found


def reference(model: Path, data: Dataset, threads: int | None, device: Any) -> Reference:
    session = create_session(load(model).model, threads=threads, device=device)
    dims = [entry.shape[0] for entry in session.get_inputs() if entry.shape]
    fixed = next((dim for dim in dims if isinstance(dim, int) and dim > 0), None)
    parts: dict[str, list[Array]] = {}
    for _, values in passes(session, data, batch_size(data), fixed, {}):
        for name, value in values.items():
            if value.dtype.kind == "f":
                parts.setdefault(name, []).append(value)
    outputs = {name: np.concatenate(found) for name, found in parts.items()}
    scores = [name for name, v in outputs.items() if v.ndim == 2 and v.shape[1] > 1]
    return Reference(outputs, scores[0] if scores else None)


def run_snn(
    session: Any, compiled: CompiledFile, watched: Watched | None, data: Dataset, steps: int
) -> tuple[dict[str, Array], float | None]:
    """All float outputs at one T, and the spikes per neuron and step."""
    # Of neurons that take spikes back, what is sent, not what is left of it.
    counts = [
        Watched.output(layer, "events" if layer.signed else "count")
        for layer in (watched.layers if watched else ())
    ]
    parts: dict[str, list[Array]] = {}
    spikes, neurons = 0.0, 0
    extra = compiled.overrides(steps=steps)
    if any(axis != 0 for axis in compiled.output_axes.values()):
        raise UsageError("the outputs that are measured here have the samples on their first axis")
    size = compiled.batch_size(batch_size(data))
    for _, values in passes(session, data, size, compiled.fixed_batch, extra):
        for name in compiled.outputs:
            if values[name].dtype.kind == "f":
                parts.setdefault(name, []).append(values[name])
        for name in counts:
            spikes += float(values[name].sum(dtype=np.float64))
            neurons += values[name].size
    outputs = {name: np.concatenate(found) for name, found in parts.items()}
    return outputs, spikes / (neurons * steps) if neurons else None


def watched_session(model: Any, threads: int | None, device: Any) -> tuple[Any, Watched | None]:
    """A session that counts spikes too, where the network has neurons that can be watched."""
    try:
        watched = watch(model)
    except Refused:
        return create_session(model, threads=threads, device=device), None
    return create_session(watched.model, threads=threads, device=device), watched


class Bench:
    """Measures, and keeps what is found as plain data: `content` is what --json writes."""

    def __init__(self, options: argparse.Namespace, content: Row, say: Say) -> None:
        self.options = options
        self.content = content
        self.say = say

    def case(self, case: Case) -> None:
        """All settings and draws of one network."""
        options = self.options
        todo = [
            (name, given, draw)
            for name, given in options.settings
            for draw in range(options.draws)
            if not any(same(row, case.name, name, draw, given) for row in self.content["rows"])
        ]
        if not todo:
            return
        try:
            data = Data(case, options.root, options.held_out)
            test = data.test(options.limit)
            ann = reference(data.model, test, options.threads, options.device)
        except (snncompiler.SnncError, OSError, KeyError) as error:
            self.failed({"case": case.name, "setting": "", "draw": 0}, error)
            return
        self.content["cases"][case.name] = found = about(case, data, test, ann)
        rows = self.content["rows"]
        self.content["rows"] = [row for row in rows if key(row) != (case.name, "", 0)]
        for name, given, draw in todo:
            row = {"case": case.name, "setting": name, "options": given, "draw": draw}
            try:
                row |= self.draw(case, data, test, ann, given, draw)
            except Exception as error:  # one network must not end the run of all
                self.failed(row, error)
                continue
            self.keep(row)
            for steps in row["results"]:
                self.say(f"{case.name} {name} draw {draw} T={steps}: {told(found, row, steps)}")
            self.write()

    def draw(
        self, case: Case, data: Data, test: Dataset, ann: Reference, given: Row, draw: int
    ) -> Row:
        """Compile once, run at every T."""
        options = self.options
        calibration = data.calibration(draw, options.samples)
        started = time.perf_counter()
        model = snncompiler.compile(
            data.model, calibration=calibration, samples=None, **{"seed": draw, **given}
        )
        row: Row = {
            "calibration": len(calibration),
            "compile_seconds": round(time.perf_counter() - started, 2),
            "bytes": model.ByteSize(),
            "results": {},
        }
        started = time.perf_counter()
        labelled = case.name in CLASSIFIERS
        skipped = settings.chosen(read_compiled(model).options.readout).skipped
        wanted = options.steps or (STEPS if labelled else OUTPUT_STEPS)
        steps = [count for count in wanted if count > skipped]
        if labelled and options.device == "cpu" and not options.held_out:
            found = snncompiler.evaluate(
                data.model, model, test, steps=steps, threads=options.threads
            )
            for one in found.results:
                assert one.predictions is not None
                result = {"firing": one.firing_rate, "predictions": list(one.predictions)}
                row["results"][str(one.steps)] = result
        else:
            self.outputs(row, case, test, ann, model, steps)
        row["seconds"] = round(time.perf_counter() - started, 2)
        return row

    def outputs(
        self, row: Row, case: Case, test: Dataset, ann: Reference, model: Any, steps: Sequence[int]
    ) -> None:
        """The same from all outputs, which `evaluate` does not return: one run for every T."""
        compiled = read_compiled(model)
        session, watched = watched_session(model, self.options.threads, self.options.device)
        for count in steps:
            outputs, firing = run_snn(session, compiled, watched, test, count)
            result: Row = {"firing": firing}
            if case.name in CLASSIFIERS and ann.scores is not None:
                scores = outputs[ann.scores]
                result["predictions"] = scores.argmax(axis=1).tolist()
                result["divergence"] = divergence(ann.outputs[ann.scores], scores)
            else:
                result |= errors(case, test, ann, outputs)
            row["results"][str(count)] = result

    def failed(self, row: Row, error: Exception) -> None:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        row = {**row, "failed": f"{getattr(error, 'says', type(error).__name__)}: {text}"}
        self.keep(row)
        self.say(f"{row['case']} {row['setting']} draw {row['draw']}: {row['failed']}")
        self.write()

    def keep(self, row: Row) -> None:
        """In place of an older row of the same network, setting and draw."""
        rows = [one for one in self.content["rows"] if key(one) != key(row)]
        self.content["rows"] = [*rows, row]

    def write(self) -> None:
        if self.options.json:
            write_json(self.options.json, self.content)


def about(case: Case, data: Data, test: Dataset, ann: Reference) -> Row:
    """What belongs to a network alone, for the JSON."""
    found: Row = {"model": case.model, "images": len(test)}
    found |= {"test": data.tests, "calibration_set": data.calibrates}
    if case.name in CLASSIFIERS:
        assert test.labels is not None
        return found | {"labels": test.labels.tolist(), "ann": ann.predictions}
    norms = [np.square(v.astype(np.float64)).reshape(len(v), -1) for v in ann.outputs.values()]
    found["norms"] = sum(norm.sum(axis=1) for norm in norms).tolist()
    if case.name == "toycar":
        found["auc"] = toycar_auc(test, next(iter(ann.outputs.values())))
    return found


def errors(case: Case, test: Dataset, ann: Reference, outputs: Mapping[str, Array]) -> Row:
    """Squared errors of every sample over all outputs, and what belongs to the network."""
    total = sum(
        np.square(outputs[name].reshape(wanted.shape) - wanted.astype(np.float64))
        .reshape(len(wanted), -1)
        .sum(axis=1)
        for name, wanted in ann.outputs.items()
    )
    found: Row = {"errors": np.asarray(total).tolist()}
    if case.name == "toycar":
        found["auc"] = toycar_auc(test, next(iter(outputs.values())))
    return found


def toycar_auc(test: Dataset, outputs: Array) -> float:
    """Area under the curve of the reconstruction error, its mean over a recording's windows."""
    (inputs,) = test.feeds.values()
    error = np.square(inputs.astype(np.float64) - outputs).mean(axis=1).reshape(-1, WINDOWS)
    assert test.labels is not None
    return area_under_curve(error.mean(axis=1), test.labels > 0)


# --- the tables ---


def key(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["case"], row["setting"], row["draw"]


def same(row: Row, case: str, name: str, draw: int, given: Row) -> bool:
    """Whether a row of an earlier run is the one asked for."""
    return key(row) == (case, name, draw) and row["options"] == given and "failed" not in row


def told(case: Row, row: Row, steps: str) -> str:
    """One result in words."""
    result = row["results"][steps]
    if "predictions" not in result:
        auc = f", AUC {result['auc']:.4f} (ANN {case['auc']:.4f})" if "auc" in result else ""
        return f"relative error {relative_error(case, result):.3g}{auc}"
    of_draw = [result.get("divergence")]
    one = figures(case["labels"], case["ann"], [result["predictions"]], divergence=of_draw)
    more = "" if one.divergence is None else f", divergence {one.divergence:.2f}"
    return (
        f"drop {one.drop:.2f} [{one.low:.2f}, {one.high:.2f}], agreement {one.agreement:.1f}{more}"
    )


def relative_error(case: Row, result: Row) -> float:
    return float(np.sqrt(np.sum(result["errors"]) / np.sum(case["norms"])))


Groups = dict[tuple[str, str], list[Row]]


def groups(content: Row, names: Sequence[str]) -> Groups:
    """The draws of each network and setting, in the order of `names` and of the rows."""
    found: Groups = {}
    for row in sorted(
        (row for row in content["rows"] if row["case"] in names and "failed" not in row),
        key=lambda row: names.index(row["case"]),
    ):
        found.setdefault((row["case"], row["setting"]), []).append(row)
    return found


def all_figures(content: Row) -> dict[tuple[str, str], dict[int, Figures]]:
    """Every figure: by network and setting, then by T."""
    found = {}
    for (name, given), rows in groups(content, list(CLASSIFIERS)).items():
        case = content["cases"][name]
        found[name, given] = {
            int(steps): figures(
                case["labels"],
                case["ann"],
                [row["results"][steps]["predictions"] for row in rows],
                [row["results"][steps]["firing"] for row in rows],
                [row["results"][steps].get("divergence") for row in rows],
            )
            for steps in rows[0]["results"]
            if all(steps in row["results"] for row in rows)
        }
    return found


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of markdown; bars inside a cell are escaped."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        shown = [cell.replace("|", "\\|").replace("\n", " ") for cell in row]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def drop_cell(one: Figures) -> str:
    spread = "" if one.spread is None else f" ± {one.spread:.2f}"
    return f"{one.drop:.2f}{spread} [{one.low:.2f}, {one.high:.2f}]"


SHOWN: tuple[tuple[str, Callable[[Figures], str]], ...] = (
    ("Drop in points, ± deviation over the draws, [95 % interval]", drop_cell),
    ("Accuracy of the SNN, %", lambda one: f"{one.snn:.2f}"),
    ("Agreement with the ANN, %", lambda one: f"{one.agreement:.1f}"),
    (
        "Firing rate, spikes per 100 neurons and step",
        lambda one: "" if one.firing is None else f"{one.firing:.1f}",
    ),
    (
        "Divergence from the ANN's class probabilities, times 100",
        lambda one: "" if one.divergence is None else f"{one.divergence:.2f}",
    ),
)


def classifier_tables(content: Row) -> str:
    """One table each for drop, accuracy, agreement, firing rate and divergence, where measured."""
    found = all_figures(content)
    if not found:
        return ""
    steps = sorted({count for by_steps in found.values() for count in by_steps})
    drawn = {key: len(rows) for key, rows in groups(content, list(CLASSIFIERS)).items()}
    texts = []
    for title, show in SHOWN:
        columns = ["network", "setting", "images", "draws", "ANN %", *(f"T = {t}" for t in steps)]
        rows = []
        for (name, given), by_steps in found.items():
            one = next(iter(by_steps.values()))
            head = [name, given, str(content["cases"][name]["images"]), str(drawn[name, given])]
            cells = [show(by_steps[t]) if t in by_steps else "" for t in steps]
            rows.append([*head, f"{one.ann:.2f}", *cells])
        if any(any(row[len(columns) - len(steps) :]) for row in rows):
            texts.append(f"## {title}\n\n{markdown(columns, rows)}")
    return "\n".join(texts)


@dataclass(frozen=True)
class Beside:
    """What a setting loses beside another one on the same images and draws, in points, with the 95 %
    interval of what it loses in accuracy."""

    drop: float
    low: float
    high: float
    agreement: float


def beside(content: Row, name: str, given: str, first: str, steps: str) -> Beside | None:
    """Of one network and T; None where no draw has both settings."""
    case = content["cases"][name]
    by_draw: dict[str, dict[int, Any]] = {first: {}, given: {}}
    for row in content["rows"]:
        if row["case"] == name and row["setting"] in by_draw and steps in row.get("results", {}):
            by_draw[row["setting"]][row["draw"]] = row["results"][steps]["predictions"]
    draws = sorted(set(by_draw[first]) & set(by_draw[given]))
    if not draws:
        return None
    one, other = (np.asarray([by_draw[which][d] for d in draws]) for which in (first, given))
    truth, ann = np.asarray(case["labels"]), np.asarray(case["ann"])
    lost = (one == truth).astype(np.float64) - (other == truth)
    low, high = paired_interval(lost.mean(axis=0))
    agreement = float((one == ann).mean() - (other == ann).mean())
    return Beside(100 * float(lost.mean()), 100 * low, 100 * high, 100 * agreement)


def beside_table(content: Row) -> str:
    """What every other setting loses beside the first one; empty where there is but one."""
    settings = list(dict.fromkeys(row["setting"] for row in content["rows"]))
    names = [name for name in CLASSIFIERS if name in content["cases"]]
    lines = []
    steps = sorted({t for row in content["rows"] for t in row.get("results", {})}, key=int)
    for name in names:
        for given in settings[1:]:
            cells = []
            for count in steps:
                found = beside(content, name, given, settings[0], count)
                text = ""
                if found is not None:
                    text = f"{found.drop:.2f} [{found.low:.2f}, {found.high:.2f}]; "
                    text += f"{found.agreement:.2f}"
                cells.append(text)
            if any(cells):
                lines.append([name, given, *cells])
    if not lines:
        return ""
    columns = ["network", "setting", *(f"T = {count}" for count in steps)]
    title = (
        f"## Lost beside {settings[0]}, on the same images and draws: points of accuracy [95 % "
        "interval, paired]; points of agreement"
    )
    return f"{title}\n\n{markdown(columns, lines)}"


def regressor_table(content: Row) -> str:
    """Relative errors; for the autoencoder, the area under the curve."""
    found = groups(content, list(REGRESSORS))
    if not found:
        return ""
    steps = sorted({int(count) for rows in found.values() for count in rows[0]["results"]})
    lines = []
    for (name, given), rows in found.items():
        case = content["cases"][name]
        by_steps = {t: [row["results"][str(t)] for row in rows] for t in steps}
        head = [name, given, str(case["images"]), str(len(rows))]
        errors = [[relative_error(case, one) for one in by_steps[t]] for t in steps]
        lines.append([*head, "error", *(f"{np.mean(cell):.3g}" for cell in errors)])
        if "auc" in case:
            areas = [np.mean([one["auc"] for one in by_steps[t]]) for t in steps]
            what = f"AUC (ANN {case['auc']:.4f})"
            lines.append([*head, what, *(f"{area:.4f}" for area in areas)])
    columns = ["network", "setting", "samples", "draws", "figure", *(f"T = {t}" for t in steps)]
    title = "## Networks without classes: |SNN - ANN| / |ANN| over all outputs"
    return f"{title}\n\n{markdown(columns, lines)}"


def verdict(content: Row) -> list[str]:
    """The goals, whether they are reached, and on how many images."""
    found = all_figures(content)
    lines = []
    for names, given, figure, bounds in TARGETS:
        for name in names:
            for steps, bound in bounds.items():
                one = found.get((name, given), {}).get(steps)
                if one is None:
                    continue
                value = getattr(one, figure)
                images = content["cases"][name]["images"]
                good = value <= bound if figure == "drop" else value >= bound
                word = "at most" if figure == "drop" else "at least"
                lines.append(
                    f"{'reached' if good else 'MISSED'}: {name}, {given}, {figure} at T = {steps}: "
                    f"{value:.2f} ({word} {bound:g}), {images} images"
                )
    return lines


INTRO = """# {title}

Generated by `{command}`, with {environment}.

One converted network for all T; ANN and SNN run on the same {images}, none of which calibrates. The
interval is paired: the normal approximation of Bonett and Price (2012; `bench/accuracy.py` has the
formula).

"""


def page(content: Row, title: str) -> str:
    """All tables as markdown, with what failed and what was reached."""
    environment = ", ".join(f"{name} {value}" for name, value in content["environment"].items())
    held_out = content["asked"].get("held_out")
    intro = INTRO.format(
        title=title,
        command=content["command"],
        environment=environment,
        images="held-out samples" if held_out else "test images",
    )
    parts = [classifier_tables(content), beside_table(content), regressor_table(content)]
    if settings := content.get("settings"):
        lines = [f"- `{name}`: {text}" for name, text in settings.items()]
        parts.append("## Settings\n\n" + "\n".join(lines) + "\n")
    described = [
        f"- {name}: {case['images']} of `{case['test']}`; calibrated on {case['calibration_set']}"
        for name, case in content["cases"].items()
    ]
    parts.append("## Images\n\n" + "\n".join(described) + "\n")
    failed = [
        f"- {r['case']}, {r['setting']}: {r['failed']}" for r in content["rows"] if "failed" in r
    ]
    if failed:
        parts.append("## No figure\n\n" + "\n".join(dict.fromkeys(failed)) + "\n")
    if not held_out and (lines := verdict(content)):
        parts.append("## Targets\n\n" + "\n".join(f"- {line}" for line in lines) + "\n")
    return intro + "\n".join(part for part in parts if part)


# --- the command ---


def environment(threads: int | None, *packages: str) -> dict[str, str]:
    """Versions, threads and kernels."""
    found = {"Python": platform.python_version()}
    for package in ("snnc", "onnxruntime", "onnxruntime-gpu", "onnx", "numpy", *packages):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    found.setdefault("snnc", snncompiler.__version__)
    found["threads"] = str(threads or os.cpu_count())
    found["native kernels"] = "yes" if library.library_path() else "no"
    return found


def write_json(path: Path, content: Row) -> None:
    """One row a line, in place of the old file only once it is whole."""
    rows = ",\n".join(json.dumps(row) for row in content["rows"])
    head = json.dumps({name: value for name, value in content.items() if name != "rows"})
    part = path.with_name(path.name + ".part")
    part.write_text(f'{head[:-1]}, "rows": [\n{rows}\n]}}\n', encoding="utf-8")
    part.replace(path)


def read_json(path: Path) -> Row:
    content: Row = json.loads(path.read_text(encoding="utf-8"))
    return content


def command_line(script: str) -> str:
    """The command, without what names folders of this machine."""
    given, shown = list(sys.argv[1:]), []
    while given:
        one = given.pop(0)
        if one in ("--material", "--json", "--write", "--threads"):
            given = given[1:]
        elif one != "--keep" and not one.startswith(("--material=", "--json=", "--write=")):
            shown.append(one)
    return " ".join([f"python bench/{script}", *shown])


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def numbers(text: str) -> tuple[int, ...]:
    return tuple(positive(part) for part in text.split(","))


def chosen(only: str | None, cases: Mapping[str, Case]) -> list[Case]:
    """The networks of these names, or whose names contain them; none where a name fits nothing."""
    if not only:
        return list(cases.values())
    wanted = only.split(",")
    if not all(any(part in name for name in cases) for part in wanted):
        return []
    return [
        case
        for name, case in cases.items()
        if name in wanted or any(part in name for part in wanted if part not in cases)
    ]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that this command and that for SpikingJelly share."""
    parser.add_argument("--material", help="folder with material.json; default SNNC_MATERIAL")
    parser.add_argument("--only", help="networks, by name or a part of it, with commas between")
    parser.add_argument("--draws", type=positive, default=1, help="calibration draws")
    parser.add_argument("--steps", type=numbers, help="T, one or more, with commas between")
    parser.add_argument("--limit", type=positive, help="test images, at most")
    parser.add_argument(
        "--samples", type=positive, default=256, help="calibration samples, at most"
    )
    parser.add_argument("--held-out", action="store_true", help="measure on calibration samples")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="write all predictions here")
    parser.add_argument("--keep", action="store_true", help="go on with what --json has already")
    parser.add_argument("--write", type=Path, help="write the page here")


def begin(options: argparse.Namespace, script: str, found: dict[str, str]) -> Row:
    """An empty content, or that of the JSON file to go on with."""
    names = ("limit", "samples", "steps", "held_out")
    asked = json.loads(json.dumps({name: getattr(options, name) for name in names}))
    content: Row = {
        "command": command_line(script),
        "environment": found,
        "asked": asked,
        "cases": {},
        "rows": [],
    }
    if options.keep and options.json and options.json.is_file():
        old = read_json(options.json)
        measured = {"held_out": False, **old["asked"]}  # older files do not say
        if measured != asked:
            raise SystemExit(f"{options.json} was measured with {measured}, not {asked}")
        content |= {"cases": old["cases"], "rows": old["rows"]}
    return content


def end(options: argparse.Namespace, content: Row, title: str) -> None:
    """Print the page, and write it where asked."""
    text = page(content, title)
    print("\n" + text)
    if options.json:
        write_json(options.json, content)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    reasons = [row["failed"] for row in content["rows"] if "failed" in row]
    if not all(reason.startswith(NO_FAILURE) for reason in reasons):
        raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument(
        "--settings", nargs="+", default=["default"], metavar="NAME|OPTION=VALUE,.."
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    options.root = material_root(options.material)
    try:
        options.settings = [setting(text) for text in options.settings]
        for name, given in options.settings:
            check_options(name, given)
    except ValueError as error:
        parser.error(str(error))
    cases = chosen(options.only, {**CLASSIFIERS, **REGRESSORS})
    if not cases:
        parser.error(f"no network {options.only!r}: {', '.join({**CLASSIFIERS, **REGRESSORS})}")
    if not entries(options.root) and not all(case.bundled for case in cases):
        parser.error(f"there is no material.json in {options.root}: set SNNC_MATERIAL")
    content = begin(options, "accuracy.py", environment(options.threads))
    content["settings"] = {name: described(given) for name, given in options.settings}
    bench = Bench(options, content, lambda text: print(text, flush=True))
    for case in cases:
        bench.case(case)
    end(options, content, "Accuracy against time-steps")


if __name__ == "__main__":
    main()
