"""Convert every network of the zoo in layered time with radix spikes; one table.

    python bench/zoo_layered.py [--material DIR] [--networks DIR] [--steps 8] [--only NAME]
        [--rows FILE] [--kept] [--write PAGE]

The networks are those of `bench/zoo.py`.  Each is compiled twice: calibrated as by default on up to 64
samples and run on up to 4 others; and with thresholds at the maxima of the samples that are run, so
that what is left is the rounding to levels alone.  Where that is above SMALL, it is measured with two
more digits, too: what comes of rounding falls to about a quarter.  A network that is refused is
compiled with --allow-analog.  With `--rows` every row is kept as soon as it is measured, and a run that
was cut goes on there; with `--kept` nothing is measured, and the page is of the rows that are there.
The exit code is 1 if an error above SMALL does not fall so, or if a network is
refused that need not be.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench import zoo  # noqa: E402

Row = dict[str, Any]

#: Relative errors of the outputs up to here are small.
SMALL = 0.03
TEST = 4
#: More digits that show whether an error comes of rounding, and to which part of it it falls at least.
FINER, FALLS = 2, 0.4


def measure(name: str, root: Path, steps: int, networks: Path | None) -> Row:
    """One network: errors, or why it is refused."""
    from snncompiler import Refused

    listed = zoo.entries(root) | (zoo.generated(networks) if networks else {})
    entry = listed.get(name)
    model = onnx.load(root / entry["model"]) if entry else zoo.light(name)
    row = {"name": name, "family": zoo.family(entry), **_must(zoo.describe(model, entry))}
    begun = time.perf_counter()
    for analog in (False, True):
        try:
            return row | _errors(model, entry, root, steps, analog) | {
                "analog": analog, "seconds": time.perf_counter() - begun
            }  # fmt: skip
        except Refused as refused:
            found = [one for one in refused.findings if one.severity == "error"]
            row.setdefault("reasons", sorted({f"{one.code} {one.message}" for one in found}))
    return row | {"result": "refused"}


def _must(described: Row) -> Row:
    return {"relu": described["relu"], "must_refuse": described["must_refuse"]}


def _errors(model: onnx.ModelProto, entry: Row | None, root: Path, steps: int, analog: bool) -> Row:
    from snncompiler.emission.compiled import read_compiled
    from snncompiler.ir.settings import Options
    from snncompiler.pipeline import calibrated, emit, prepare
    from snncompiler.runtime.session import create_session

    prepared = prepare(model, allow_analog=analog, layered=True)
    data = zoo.samples_of(entry, root, prepared)
    test = data.test.head(TEST)
    common = {"timing": "layered", "coding": "radix", "steps": steps, "allow_analog": analog}
    found: Row = {"result": "converted", "data": data.note}
    alone = {"threshold": "max", "correct": "none"}
    for what, samples, more in (
        ("error", data.calibration, {}),
        ("rounding", test, alone),
        ("finer", test, {**alone, "steps": steps + FINER}),
    ):
        if what == "finer" and not (found["rounding"] or 0) > SMALL:
            continue
        options = Options(**{**common, **more})  # type: ignore[arg-type]
        calibration = calibrated(prepared, options, samples)
        compiled = read_compiled(emit(prepared, calibration, options))
        ann = zoo.run_ann(model, test, compiled)
        session = create_session(compiled.model, threads=2)
        outputs = zoo.gathered(session, test, compiled, compiled.batch_size(TEST, test.values), {})
        found[what], _ = zoo.compare(ann, outputs, 0)
        found["layers"], found["depth"] = len(calibration.thresholds), compiled.depth
        reads = list(compiled.reads.values())
        found["reads"] = {kind: reads.count(kind) for kind in dict.fromkeys(reads)}
        found["coded"] = sorted({one["function"] for one in compiled.coded.values()})
    return found


def verdict(row: Row) -> str:
    if row["result"] == "refused":
        return "refused" if row["must_refuse"] else "wrongly refused"
    if row["rounding"] is None:
        return "no float output"
    if row["rounding"] <= SMALL:
        return "small"
    return "falls" if row["finer"] <= FALLS * row["rounding"] else "large"


def table(rows: Sequence[Row]) -> str:
    """The table, in Markdown."""
    titles = [
        "network",
        "layers",
        "depth",
        "error",
        "rounding alone",
        "real numbers read",
        "seconds",
    ]
    lines = ["| " + " | ".join(titles) + " |", "|---" + "|--:" * (len(titles) - 1) + "|"]
    for row in sorted(rows, key=lambda row: (row["family"], row["name"])):
        if row["result"] == "refused":
            lines.append(f"| `{row['name']}` | refused: {row['reasons'][0][:120]} | | | | | |")
            continue
        numbers = [
            "-" if row[what] is None else f"{row[what]:.4f}" for what in ("error", "rounding")
        ]
        reads = row["reads"]
        real = f"{reads.get('real numbers', 0)} of {sum(reads.values())}"
        name = f"`{row['name']}`" + (" with `--allow-analog`" if row["analog"] else "")
        name += f" (coded: {', '.join(row['coded'])})" if row.get("coded") else ""
        cells: list[Any] = [
            name,
            row["layers"],
            row["depth"],
            *numbers,
            real,
            f"{row['seconds']:.0f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


#: What a verdict says, in the page.
MEANS = {
    "small": "an error below {small:g} from rounding alone",
    "falls": "a larger one, which with {finer} more digits falls as that of rounding does",
    "no float output": "no output that could be compared",
    "refused": "refused for a true reason",
    "large": "an error that does not fall",
    "wrongly refused": "refused, and need not be",
}

INTRO = """# Networks in layered time

Written by

    {command}

with snnc {snnc} at commit {commit}, onnx {onnx}, onnxruntime {onnxruntime}, Python {python},
{machine}. Rows are kept as they were measured, some at an earlier commit; all of them add up to
{minutes:.0f} minutes, on a machine busy with other work. The networks are those of
[the zoo in streaming time](zoo.md), as far as they were at hand; the real ones are not part of this
repository, `SNNC_MATERIAL` names the folder with them.

Of {count} networks, with radix spikes and T = {steps}:

{summary}

{refused}

"Rounding alone" is the relative error |SNN - ANN| / |ANN| over all float outputs, on up to {test}
samples, with thresholds at the maxima of these samples: it is what {levels} levels leave. "Error" is
the same with the default calibration, on up to 64 other samples; for seeded weights these are noise.
"Real numbers read" are layers of weights that read neither spikes nor the input. "Depth" is the number
of layers that fire one after the other: the answer comes after (depth + 1)·T steps. A network that is
refused as it is was compiled with `--allow-analog`; "coded" are its activations that spikes carry with
an offset.

"""


def page(rows: Sequence[Row], steps: int, command: str) -> str:
    """The page, in Markdown."""
    import os
    import platform

    import onnxruntime

    from bench.zoo_page import commit
    from snncompiler.version import __version__

    verdicts = [verdict(row) for row in rows]
    summary = [
        f"- {verdicts.count(one)}: {text.format(small=SMALL, finer=FINER)}"
        for one, text in MEANS.items()
        if one in verdicts
    ]
    above = [
        f"- `{row['name']}`: {row['rounding']:.3g}, with T = {steps + FINER} {row['finer']:.3g}"
        for row, one in zip(rows, verdicts, strict=True)
        if one in ("falls", "large")
    ]
    refused = [
        f"- `{row['name']}` holds {row['must_refuse']}: {'; '.join(row['reasons'])}"
        for row in rows
        if row["result"] == "refused"
    ]
    parts = ["Refused:", "", *refused] * bool(refused)
    parts += ["", f"Above {SMALL:g}:", "", *above] * bool(above)
    intro = INTRO.format(
        command=command,
        snnc=__version__,
        commit=commit(),
        onnx=onnx.__version__,
        onnxruntime=onnxruntime.__version__,
        python=platform.python_version(),
        machine=f"{os.cpu_count()} cores, {platform.machine()}",
        minutes=sum(row.get("seconds", 0) for row in rows) / 60,
        count=len(rows),
        steps=steps,
        summary="\n".join(summary),
        refused="\n".join(parts).strip(),
        test=TEST,
        levels=(1 << steps) - 1,
    )
    return f"{intro}{table(rows)}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--material")
    parser.add_argument("--networks", type=Path)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", action="append")
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--kept", action="store_true")
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    root = zoo.material_root(given.material)
    names = [*zoo.entries(root), *zoo.light_names()]
    names += list(zoo.generated(given.networks)) if given.networks else []
    rows: dict[str, Row] = {}
    if given.rows and given.rows.exists():
        rows = {row["name"]: row for row in map(json.loads, given.rows.read_text().splitlines())}
    if given.kept:
        names = [name for name in names if name in rows]
    for name in given.only or names:
        if name in rows:
            continue
        rows[name] = measure(name, root, given.steps, given.networks)
        print(f"{name}: {verdict(rows[name])} {rows[name].get('rounding')}", flush=True)
        if given.rows:
            with given.rows.open("a") as file:
                file.write(json.dumps(rows[name]) + "\n")
    chosen = [rows[name] for name in given.only or names]
    verdicts = [verdict(row) for row in chosen]
    told = ", ".join(f"{verdicts.count(one)} {one}" for one in dict.fromkeys(verdicts))
    print(table(chosen))
    print(f"{len(chosen)} networks with radix spikes, T = {given.steps}: {told}")
    if given.write:
        shown = [one for one in sys.argv[1:] if not one.startswith("/")]
        command = f"python bench/zoo_layered.py {' '.join(shown)}"
        given.write.write_text(page(chosen, given.steps, command), encoding="utf-8")
    return int("large" in verdicts or "wrongly refused" in verdicts)


if __name__ == "__main__":
    sys.exit(main())
