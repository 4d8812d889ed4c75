"""The page of `bench/zoo.py`: its rows as one table, with the counts and the reasons above it.

What is here does not change what is measured, so rows that are kept stay valid when it changes.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from snncompiler.version import __version__

Row = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent


def cells(name: str, row: Row, steps: list[str]) -> list[str]:
    counts = row.get("operators", {})
    shown = " ".join(f"{op} {count}" for op, count in list(counts.items())[:6])
    if len(counts) > 6:
        shown += f" and {len(counts) - 6} more"
    head = [name, row.get("exporter", ""), str(row.get("opset", "")), shown]
    if row["result"] != "converted":
        reasons = row.get("reasons", [])
        text = f"{row['result']}: {reasons[0]}" if reasons else row["result"]
        if len(reasons) > 1:
            text += f" (and {len(reasons) - 1} more)"
        return [*head, text, *[""] * (4 + 2 * len(steps))]
    data = f"{row['samples']} {row['data']}, {row['calibration']} for θ"
    found = [row["results"].get(total) for total in steps]
    agree = [
        "not run" if one is None else "" if one["agreement"] is None else f"{one['agreement']:.0%}"
        for one in found
    ]
    errors = [
        "not run" if one is None else "" if one["error"] is None else f"{one['error']:.2g}"
        for one in found
    ]
    result = "converges" if row["converged"] else "converted, convergence not shown"
    result += " (loop)" if row["loop"] else ""
    ladder = f"{row['own']} sample{'s' * (row['own'] > 1)}; "
    ladder += ", ".join(f"{total}: {error:.2g}" for total, error in row["ladder"])
    return [*head, result, f"{row['compile']:.1f}", data, *agree, *errors, ladder]


INTRO = """# Networks that were converted

Written by `make zoo`, that is

    {command}

with snnc {snnc} at commit {commit}, onnx {onnx}, onnxruntime {onnxruntime}, Python {python},
{machine}. Every row was measured with these very sources, libraries and options (a run that was
cut goes on where it was); all of them add up to {minutes:.0f} minutes, on a machine busy with other
work. The real networks are not part of this repository; `SNNC_MATERIAL` names the folder with them.

{summary}

## The table

The `light_*` networks are inside the `onnx` package; their weights are seeded random ones (He-scaled).
Names with `_ts17`, `_dynamo20` (both exporters of PyTorch) and `_tf15` (tf2onnx) are those of
`tests/zoo/generate.py`: structures of torchvision (`_tv`), `keras.applications` (`_keras`) and the
literature, with seeded weights. Their channels are divided by 8 (ShuffleNet by 2, VGG-16-BN by 16), the
structure stays; batch-norm's statistics are those of noise.

Thresholds are the maxima per channel over the calibration samples; the samples that were run are
others, unless it says "the same". "Agree" is the share of samples on which SNN and ANN have the same
arg-max, "error" is |SNN - ANN| / |ANN| over all float outputs. Random networks have nearly equal class
scores, so there the agreement says less than the error. "Not run": it would have taken more than
{seconds:g} seconds, {real:g} for a real network; such networks also got fewer samples. "(loop)": time
is a loop in the file, not folded into the batch.

Samples that go beyond the calibration maxima clip, and that part of the error stays at any T. The last
column is without it: the error on one sample or four, with thresholds at their maxima, for T = 32 and
on, each four times the one before, until the error is at most {small:g} and at most half of that before
it, or is that of rounding (up to {least} in any case where that takes no longer than those seconds).
Then the network "converges". Deep, narrow networks with random weights need many steps: batch-norm
magnifies what little differs between samples of noise, and with it what is quantized.

"""


def right(row: Row) -> bool:
    """A ReLU network that converges, or another one that is refused."""
    if row.get("relu", True):
        return bool(row.get("converged"))
    return bool(row["result"] == "refused")


def summary(rows: Mapping[str, Row]) -> str:
    """The counts of every family, what was refused and why, and what went wrong, as Markdown."""
    good = sum(map(right, rows.values()))
    lines = [
        f"{good} of {len(rows)} networks ({good / max(len(rows), 1):.0%}) convert and converge, or are "
        "refused for a true reason.",
        "",
        "| family | networks | converge | refused for a true reason | neither |",
        "|---|---|---|---|---|",
    ]
    families: dict[str, list[Row]] = {}
    for row in rows.values():
        families.setdefault(row.get("family", "failed"), []).append(row)
    for kind, members in [*families.items(), ("all", list(rows.values()))]:
        done = sum(right(row) and row["result"] == "converted" for row in members)
        refused = sum(right(row) and row["result"] == "refused" for row in members)
        numbers = (len(members), done, refused, len(members) - done - refused)
        lines.append(f"| {kind} | " + " | ".join(map(str, numbers)) + " |")
    factors = [
        row["ladder"][-2][1] / row["ladder"][-1][1]
        for row in rows.values()
        if row.get("converged") and row["ladder"][-1][1]
    ]
    if factors:
        lines += [
            "",
            "From the last T but one to the last, four times as long, the error falls by a factor of "
            f"{np.median(factors):.2g} in the median",
            f"({min(factors):.2g} to {max(factors):.2g}); 1/T makes it 4.",
        ]
    refusals = [name for name, row in rows.items() if row["result"] == "refused" and right(row)]
    if refusals:
        lines += ["", "Refused, as they must be:", ""]
    for name in refusals:
        row = rows[name]
        counts: Counter[str] = Counter(row["reasons"])
        reasons = "; ".join(f"{text} (x{n})" if n > 1 else text for text, n in counts.items())
        lines.append(f"- `{name}` holds {row['must_refuse']}: {reasons}")
    wrong = [name for name, row in rows.items() if not right(row)]
    if wrong:
        lines += ["", "Neither:", ""]
    for name in wrong:
        row = rows[name]
        said = row.get("reasons") or [f"converted; its errors by T: {row['ladder']}"]
        lines.append(f"- `{name}`: {said[0]}")
    return "\n".join(lines)


def commit() -> str:
    """The commit that was measured; "-dirty" where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def page(
    rows: Mapping[str, Row],
    command: str,
    *,
    steps: list[str],
    seconds: tuple[float, float],
    small: float,
    least: int,
) -> str:
    """The page; `small` and `least` are those of the ladder, the others the options of the run.

    `seconds` are those that a network may run for, and those of a real one.
    """
    columns = ["network", "exporter", "opset", "operators", "result", "compile, CPU s", "samples"]
    columns += [f"agree T={total}" for total in steps] + [f"error T={total}" for total in steps]
    columns.append("θ at the maxima of the samples run: error by T")
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for name, row in rows.items():
        shown = [cell.replace("|", "\\|").replace("\n", " ") for cell in cells(name, row, steps)]
        lines.append("| " + " | ".join(shown) + " |")
    intro = INTRO.format(
        command=command,
        snnc=__version__,
        commit=commit(),
        onnx=onnx.__version__,
        onnxruntime=onnxruntime.__version__,
        python=platform.python_version(),
        machine=f"{os.cpu_count()} cores, {platform.machine()}",
        minutes=sum(row.get("seconds", 0) for row in rows.values()) / 60,
        seconds=seconds[0],
        real=seconds[1],
        small=small,
        least=least,
        summary=summary(rows),
    )
    return intro + "\n".join(lines) + "\n"
