"""Time and memory of a compilation with data, against the number of calibration samples.

    python bench/calibration.py [--only NAME,..] [--samples 16,64,256] [--repeat 2] [--material DIR]

Every compilation is a child process of its own, so that its peak memory is its own: it reads the
samples, which is not timed, and calls `snncompiler.compile` with the default setting on all cores.
The first N samples in a seeded order are taken of the set that calibrates in bench/accuracy.py, of
ImageNet's test pictures too, as no accuracy is measured.  Seconds are the median; `peak MiB` is the
largest of the process, with Python, onnxruntime and the samples; `one file` says whether each
repetition gave the same bytes.  Accuracy against N: `bench/accuracy.py --samples N`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from bench.accuracy import chosen, environment, numbers, positive
from bench.networks import CLASSIFIERS, REGRESSORS, Data
from bench.zoo import entries, material_root
from snncompiler.cli.tables import table

Row = dict[str, Any]
CASES = {**CLASSIFIERS, **REGRESSORS}


def measure(name: str, samples: int, root: Path) -> Row:
    """One compilation in this process.  Raises SystemExit where there are fewer samples."""
    import snncompiler

    data = Data(CASES[name], root)
    if samples > data.pool_set.count:
        raise SystemExit(f"{name}: {samples} samples, there are {data.pool_set.count}")
    loaded = data.stored(samples)
    started = time.perf_counter()
    model = snncompiler.compile(data.model, calibration=loaded, samples=None)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "data": sum(array.nbytes for array in loaded.feeds.values()) / 2**20,
        # Linux counts in KiB.
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "sha256": hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest(),
    }


def cell(name: str, samples: int, root: Path) -> Row:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--material", str(root), "--cell", name, str(samples)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(result.stderr)
    row: Row = json.loads(result.stdout)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--material", help="folder with material.json; default SNNC_MATERIAL")
    parser.add_argument("--only", default="digits-cnn,digits-resnet")
    parser.add_argument("--samples", type=numbers, default=(16, 64, 256))
    parser.add_argument("--repeat", type=positive, default=2)
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    root = material_root(options.material)
    if options.cell:
        print(json.dumps(measure(options.cell[0], int(options.cell[1]), root)))
        return
    cases = chosen(options.only, CASES)
    if not cases:
        parser.error(f"no network {options.only!r}; there are: {', '.join(CASES)}")
    if not entries(root) and not all(case.bundled for case in cases):
        parser.error(f"there is no material.json in {root}: set SNNC_MATERIAL")

    console = Console(width=140)
    found = ", ".join(f"{name} {value}" for name, value in environment(os.cpu_count()).items())
    console.print(found, highlight=False)
    rows = []
    for case in cases:
        for samples in options.samples:
            runs = [cell(case.name, samples, root) for _ in range(options.repeat)]
            rows.append(
                (
                    case.name,
                    samples,
                    f"{statistics.median(run['seconds'] for run in runs):.1f}",
                    f"{max(run['peak'] for run in runs):.0f}",
                    f"{runs[0]['data']:.0f}",
                    len({run["sha256"] for run in runs}) == 1 if len(runs) > 1 else None,
                )
            )
    columns = ("network", "samples", "seconds", "peak MiB", "samples MiB", "one file")
    console.print(table(f"Compilation with data, {options.repeat} runs each", columns, rows))


if __name__ == "__main__":
    main()
