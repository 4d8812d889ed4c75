"""Time and memory of the three ways to unroll, measured side by side in one run.

    python bench/unroll.py [MODEL.onnx] [--threads 1]

Every cell is a child process of its own, so that its peak memory is its own: it compiles the model,
creates a session and runs one sample.  Two tables: session creation and peak memory against T for
`fold`, and the three ways against each other.  These machines are noisy: medians of `--repeat` runs,
and ratios.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from snncompiler.cli.tables import table
from snncompiler.models import path

Row = dict[str, Any]


def measure(model: str, unroll: str, steps: int, chunk: int, threads: int, repeat: int) -> Row:
    """In this process: session creation and run time in seconds, peak memory in MiB."""
    from snncompiler.ir.settings import Options
    from snncompiler.pipeline import compile_model, synthetic_feeds
    from snncompiler.runtime.session import create_session

    options = Options(steps=steps, unroll=unroll, chunk=chunk or None)  # type: ignore[arg-type]
    compiled = compile_model(model, options)
    raw = compiled.model.SerializeToString()
    created = []
    for _ in range(repeat):
        started = time.perf_counter()
        session = create_session(raw, threads=threads)
        created.append(time.perf_counter() - started)
    feeds = synthetic_feeds(compiled.prepared, 1, 0)
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - started)
    return {
        "create": statistics.median(created),
        "run": statistics.median(times),
        "peak": peak(),
        "bytes": len(raw),
    }


def peak() -> float:
    """Largest resident memory of this process so far, in MiB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cell(options: argparse.Namespace, unroll: str, steps: int, chunk: int) -> Row:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, options.model, "--cell", unroll, str(steps), str(chunk)]
    command += ["--threads", str(options.threads), "--repeat", str(options.repeat)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(result.stderr)
    row: Row = json.loads(result.stdout)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", nargs="?", default=str(path("digits-resnet")))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        unroll, steps, chunk = options.cell
        found = measure(
            options.model, unroll, int(steps), int(chunk), options.threads, options.repeat
        )
        print(json.dumps(found))
        return

    import onnx
    import onnxruntime

    console = Console(width=140)
    console.print(
        f"{Path(options.model).name}, onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}, "
        f"Python {platform.python_version()}, {options.threads} thread(s), {platform.machine()}",
        highlight=False,
    )
    rows = []
    first: Row = {}
    for steps in (32, 128, 512, 1024, 2048):
        row = cell(options, "fold", steps, 32)
        first = first or row
        rows.append(
            (
                steps,
                f"{1e3 * row['create']:.1f}",
                f"{row['create'] / first['create']:.2f}",
                f"{row['peak']:.0f}",
                f"{row['peak'] / first['peak']:.2f}",
                f"{1e3 * row['run']:.1f}",
                f"{row['run'] / first['run'] / (steps / 32):.2f}",
            )
        )
    columns = ("T", "session ms", "ratio", "peak MiB", "ratio", "run ms", "run per step, ratio")
    console.print(table("fold, K = 32: against T", columns, rows))

    rows = []
    for unroll, steps, chunk in (
        ("fold", 32, 1), ("fold", 32, 4), ("fold", 32, 8), ("fold", 32, 16), ("fold", 32, 32),
        ("loop", 32, 0), ("steps", 32, 0),
    ):  # fmt: skip
        row = cell(options, unroll, steps, chunk)
        rows.append(
            (
                unroll,
                chunk or "-",
                f"{1e3 * row['create']:.1f}",
                f"{row['create'] / first['create']:.2f}",
                f"{1e3 * row['run']:.1f}",
                f"{row['run'] / first['run']:.2f}",
                f"{row['bytes'] / 1024:.0f}",
            )
        )
    columns = ("way", "K", "session ms", "ratio", "run ms", "ratio", "KiB")
    console.print(table("T = 32: the three ways (ratios to fold, K = 32)", columns, rows))


if __name__ == "__main__":
    main()
