"""Synaptic operations per second of single layers against the measured limit of additions.

    python bench/roofline.py [--density 10] [--repeat 5] [--json FILE]

A synaptic operation by events is one addition of a weight, so the limit is how fast rows of weights
can be added up from the memory that they lie in (`bench/additions.cc`, compiled here for this
machine; rows of 64 floats in random order, as many as the layer has in a block of 64 output channels).
Narrow layers have tables instead: one addition stands for eight inputs, whether they spike or not, so
that their share may exceed 100 %.  One thread, one image, 16 time-steps, random spikes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from bench import events
from snncompiler.report import table
from snncompiler.runtime import build

#: A layer has tables up to so many inputs of a neuron times channels (event_kernels.cc).
LARGEST_TABLE = 320 * 32


def limits(rows: list[int]) -> dict[int, float]:
    """Additions per second from as many rows of 64 floats."""
    compiler = build.find_cxx()
    if compiler is None:
        sys.exit("no C++ compiler found; install g++ or clang++, or set CXX")
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/additions"
        source = Path(__file__).with_name("additions.cc")
        subprocess.run(
            [compiler, "-std=c++17", "-O3", "-march=native", str(source), "-o", program], check=True
        )
        lines = subprocess.run(
            [program, *map(str, rows)], check=True, capture_output=True, text=True
        ).stdout.splitlines()
    return {int(line.split()[0]): float(line.split()[1]) for line in lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--density", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    asked.threads, asked.densities = [1], [asked.density]
    limit = limits(sorted({9 * channels for channels, *_ in events.LAYERS}))
    rows: list[dict[str, Any]] = []
    for shape, measured in zip(events.LAYERS, events.layers(asked), strict=True):
        channels, out, size, stride = shape
        inputs = 9 * channels
        macs = inputs * out * (size // stride) ** 2
        over_convolution = float(measured[f"{asked.density} %"].split()[0])
        seconds = over_convolution * measured["conv µs/step"] * 1e-6
        rate = asked.density / 100 * macs / seconds
        rows.append(
            {
                "layer": measured["layer"],
                "way": "tables" if inputs * out <= LARGEST_TABLE else "events or dense",
                "rows, KiB": inputs * 64 * 4 // 1024,
                "SynOps/s": f"{rate / 1e9:.1f} G",
                "limit": f"{limit[inputs] / 1e9:.1f} G",
                "share": f"{100 * rate / limit[inputs]:.0f} %",
            }
        )
    Console(width=120).print(
        table("", list(rows[0]), [[str(value) for value in row.values()] for row in rows])
    )
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
