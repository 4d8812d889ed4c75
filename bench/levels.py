"""Accuracy with few levels, as layered time has them: docs/explanation/levels.md, one command.

    python bench/levels.py [--only NAME,..] [--settings rate:4 radix:6 ..] [--draws 5] [--limit N]
                           [--correct weights bias none] [--weights float32 int8 int4 int4:nearest]
                           [--samples 256] [--held-out] --json FILE [--write PAGE.md]

Every network of bench/networks.py is calibrated for each setting, kind of correction and draw, and
runs on the same test samples as the ANN.  Draw k takes its calibration samples with seed k.  What runs
is the network that a layered spiking network computes: activations of L + 1 values, written with
operators of ONNX (`calibration/level_network.level_model`); with whole-number weights it is the emitted
file itself.  Weights of fewer than 8 bits are rounded by error feedback, those with `:nearest` are not.

    drop        the ANN's accuracy minus the network's, in points
    agreement   samples on which both have the same arg-max, in percent
    error       of the outputs, |y - y_ann| / |y_ann| over all samples
    lost        of networks without classes: dB of the peak (super-resolution), AUC (ToyCar)

The JSON file has one row for each.  It is written after each row, and a row that it has is not measured
again.  `--held-out` is for choosing constants: it leaves the test samples alone (`bench.networks`).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray

from bench.accuracy import (
    BATCH,
    chosen,
    command_line,
    environment,
    markdown,
    positive,
    read_json,
    reference,
    toycar_auc,
    write_json,
)
from bench.networks import CLASSIFIERS, REGRESSORS, Case, Data
from bench.zoo import material_root
from snncompiler.calibration.level_network import level_model
from snncompiler.calibration.levels import calibrate_levels
from snncompiler.emission.emit import emit
from snncompiler.ir.settings import Options
from snncompiler.ir.whole import Weights
from snncompiler.network.batching import batches, filled
from snncompiler.network.data import Dataset
from snncompiler.pipeline import prepare
from snncompiler.runtime.session import create_session

Array = NDArray[Any]
Row = dict[str, Any]

SETTINGS = ("rate:4", "rate:8", "rate:16", "radix:3", "radix:4", "radix:6", "radix:8")
#: Behind the bits of weights that are rounded without error feedback.
NEAREST = "nearest"
#: The largest value of a picture that the super-resolution network gives.
PEAK = 1.0


def measured(case: Case, data: Data, test: Dataset, ann: Any, given: Row, samples: int) -> Row:
    """Calibrate one network, run it, and compare it with the ANN."""
    coding, steps = given["setting"].split(":")
    weights, _, rounding = given["weights"].partition(":")
    options = Options(
        timing="layered",
        coding=coding,
        steps=int(steps),
        correct=given["correct"],
        seed=given["draw"],
        weights=Weights.parse(weights),
    )
    prepared = prepare(data.model)
    calibration_set = data.calibration(given["draw"], samples)
    started = time.perf_counter()
    feedback = rounding != NEAREST
    calibration = calibrate_levels(prepared, options, calibration_set, feedback=feedback)
    row = {
        **given,
        "correct": calibration.correct if given["correct"] == "auto" else given["correct"],
        "threshold": calibration.method,
        "calibration": len(calibration_set),
        "seconds": round(time.perf_counter() - started, 1),
        "images": len(test),
    }
    if options.weights:
        model = emit(prepared, calibration, options)
    else:
        model = level_model(prepared, calibration)
    outputs = run(model, test, prepared.fixed_batch)
    total = norm = 0.0
    for name, wanted in ann.outputs.items():
        there = np.asarray(wanted, np.float64)
        total += float(np.square(outputs[name].reshape(wanted.shape) - there).sum())
        norm += float(np.square(there).sum())
    row["error"] = round((total / norm) ** 0.5, 5)
    if case.name in CLASSIFIERS:
        found = outputs[ann.scores].argmax(axis=1)
        expected, labels = np.asarray(ann.predictions), np.asarray(test.labels)
        row["ann"] = round(100 * float((expected == labels).mean()), 2)
        row["drop"] = round(row["ann"] - 100 * float((found == labels).mean()), 2)
        row["agreement"] = round(100 * float((found == expected).mean()), 2)
    elif case.name == "superres":
        values = sum(wanted.size for wanted in ann.outputs.values())
        row["decibel"] = round(float(10 * np.log10(PEAK**2 * values / total)), 2)
    elif case.name == "toycar":
        (scores,) = ann.outputs.values()
        both = [toycar_auc(test, array) for array in (scores, next(iter(outputs.values())))]
        row["auc"], row["lost"] = round(both[0], 4), round(both[0] - both[1], 4)
    return row


def run(model: Any, test: Dataset, fixed: int | None) -> dict[str, Array]:
    """The outputs of a model on all samples, by name."""
    session = create_session(model)
    names = [entry.name for entry in session.get_outputs()]
    parts: dict[str, list[Array]] = {name: [] for name in names}
    for part in batches(len(test), fixed or BATCH):
        values = session.run(None, filled(test.feeds, part, fixed))
        for name, value in zip(names, values, strict=True):
            parts[name].append(np.atleast_1d(value)[: part.stop - part.start])
    return {name: np.concatenate(found) for name, found in parts.items()}


# --- the page ---


def cell(rows: Sequence[Row]) -> str:
    """What the rows of one network and setting say, as the mean over the draws."""

    def mean(name: str) -> float:
        return float(np.mean([row[name] for row in rows]))

    if not rows:
        return ""
    if "drop" in rows[0]:
        return f"{mean('drop'):.1f} ({mean('agreement'):.1f}; {mean('error'):.3f})"
    if "decibel" in rows[0]:
        return f"{mean('decibel'):.1f} dB"
    if "lost" in rows[0]:
        return f"AUC -{mean('lost'):.4f}"
    return f"{mean('error'):.4f}"


def page(content: Row) -> str:
    """The table of every kind of correction: networks by settings."""
    rows, settings = (
        content["rows"],
        sorted({row["setting"] for row in content["rows"]}, key=_order),
    )
    parts = []
    for correct, weights in sorted({(row["asked"], row["weights"]) for row in rows}):
        lines = []
        for name in {**CLASSIFIERS, **REGRESSORS}:
            own = [row for row in rows if row["case"] == name]
            own = [row for row in own if (row["asked"], row["weights"]) == (correct, weights)]
            if not own:
                continue
            told = f"{own[0]['ann']:.1f}" if "ann" in own[0] else ""
            draws = len({row["draw"] for row in own})
            by_setting = [[row for row in own if row["setting"] == one] for one in settings]
            lines.append([name, told, str(own[0]["images"]), str(draws), *map(cell, by_setting)])
        columns = ["network", "ANN", "samples", "draws", *settings]
        parts.append(f"## --correct {correct}, weights {weights}\n\n{markdown(columns, lines)}")
    environment_ = ", ".join(f"{k} {v}" for k, v in content["environment"].items())
    return f"`{content['command']}`\n\n{environment_}\n\n" + "\n\n".join(parts) + "\n"


def _order(setting: str) -> tuple[bool, int]:
    coding, steps = setting.split(":")
    return coding != "rate", int(steps)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--material", help="folder with material.json; default SNNC_MATERIAL")
    made.add_argument("--only", help="networks, by name or a part of it, with commas between")
    made.add_argument("--settings", nargs="+", default=SETTINGS, metavar="CODING:T")
    made.add_argument("--correct", nargs="+", default=["auto"])
    made.add_argument("--weights", nargs="+", default=["float32"])
    made.add_argument("--draws", type=positive, default=1, help="calibration draws")
    made.add_argument("--limit", type=positive, help="test samples, at most")
    made.add_argument("--samples", type=positive, default=256, help="calibration samples, at most")
    made.add_argument("--held-out", action="store_true", help="measure on calibration samples")
    made.add_argument("--json", type=Path, required=True, help="what is measured, and was before")
    made.add_argument("--write", type=Path, help="write the page here")
    return made


def main() -> None:
    options = parser().parse_args()
    root = material_root(options.material)
    content: Row = {"command": command_line("levels.py"), "environment": environment(None)}
    content["rows"] = read_json(options.json)["rows"] if options.json.is_file() else []
    cases = chosen(options.only, {**CLASSIFIERS, **REGRESSORS})
    if not cases:
        parser().error(f"no network {options.only!r}")
    for case in cases:
        measure(case, options, root, content)
    print(page(content))
    if options.write:
        options.write.write_text(page(content), encoding="utf-8")


def measure(case: Case, options: argparse.Namespace, root: Path, content: Row) -> None:
    """All rows of a network that are not there yet."""
    asked = [
        {
            "case": case.name,
            "setting": setting,
            "correct": correct,
            "weights": weights,
            "draw": draw,
        }
        for draw in range(options.draws)
        for weights in options.weights
        for correct in options.correct
        for setting in options.settings
    ]
    there = {_key(row) for row in content["rows"]}
    left = [given for given in asked if _key({**given, "asked": given["correct"]}) not in there]
    if not left:
        return
    data = Data(case, root, options.held_out)
    test = data.test(options.limit)
    ann = reference(data.model, test, None, "cpu")
    for given in left:
        row = measured(case, data, test, ann, given, options.samples)
        content["rows"].append({**row, "asked": given["correct"]})
        write_json(options.json, content)
        print(" ".join(f"{name}={value}" for name, value in row.items()), flush=True)


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["case"], row["setting"], row["asked"], row["weights"], row["draw"]


if __name__ == "__main__":
    main()
