"""Convert every network of the zoo in layered time with radix spikes; one table.

    python bench/zoo_layered.py [--material DIR] [--networks DIR] [--steps 8] [--only NAME]
        [--rows FILE] [--write PAGE]

The networks are those of `bench/zoo.py`.  Each is compiled twice: calibrated as by default on up to 64
samples and run on up to 4 others; and with thresholds at the maxima of the samples that are run, so
that what is left is the rounding to levels alone.  A network that is refused is compiled with
--allow-analog.  With `--rows` every row is kept as soon as it is measured, and a run that was cut goes
on there.  The exit code is 1 if the rounding alone makes an error above SMALL anywhere, or if one is
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
    for what, samples, more in (
        ("error", data.calibration, {}),
        ("rounding", test, {"threshold": "max", "correct": "none"}),
    ):
        options = Options(**common, **more)  # type: ignore[arg-type]
        calibration = calibrated(prepared, options, samples)
        compiled = read_compiled(emit(prepared, calibration, options))
        ann = zoo.run_ann(model, test, compiled)
        session = create_session(compiled.model, threads=2)
        outputs = zoo.gathered(session, test, compiled, compiled.batch_size(TEST, test.values), {})
        found[what], _ = zoo.compare(ann, outputs, 0)
        found["layers"], found["depth"] = len(calibration.thresholds), compiled.depth
        reads = list(compiled.reads.values())
        found["reads"] = {kind: reads.count(kind) for kind in dict.fromkeys(reads)}
    return found


def verdict(row: Row) -> str:
    if row["result"] == "refused":
        return "refused" if row["must_refuse"] else "wrongly refused"
    if row["rounding"] is None:
        return "no float output"
    return "small" if row["rounding"] <= SMALL else "large"


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


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--material")
    parser.add_argument("--networks", type=Path)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", action="append")
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    root = zoo.material_root(given.material)
    names = [*zoo.entries(root), *zoo.light_names()]
    names += list(zoo.generated(given.networks)) if given.networks else []
    rows: dict[str, Row] = {}
    if given.rows and given.rows.exists():
        rows = {row["name"]: row for row in map(json.loads, given.rows.read_text().splitlines())}
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
        given.write.write_text(f"{table(chosen)}\n")
    return int("large" in verdicts or "wrongly refused" in verdicts)


if __name__ == "__main__":
    sys.exit(main())
