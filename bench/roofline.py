"""Synaptic operations per second of single layers against the measured limit of additions.

    python bench/roofline.py [--density 10] [--repeat 5] [--json FILE]

A synaptic operation by events is one addition of a weight, so the limit is how fast rows of weights
can be added up from the memory that they lie in (`bench/additions.cc`, compiled here for this
machine; rows of 64 floats in random order, as many as the layer has in a block of 64 output channels).
Narrow layers have tables instead: one addition stands for eight inputs, whether they spike or not, so
that their share may exceed 100 %.  One thread, one image, 16 time-steps, random spikes.

On a processor with tiles layers are multiplied by digits instead, all inputs whether they spike or not;
then the table has multiply-accumulates per second beside how many the tiles can do at all
(`bench/tiles.cc`; three of 8 bits make one).  SNNC_MAX_ISA=avx512 gives the first table there, too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from bench import events
from snncompiler.cli.tables import table
from snncompiler.runtime import build, library

#: A layer has tables up to so many inputs of a neuron times channels (event_kernels.cc).
LARGEST_TABLE = 320 * 32


def measured_by(source: str, *arguments: str) -> list[list[float]]:
    """What a C++ program of this folder prints, line by line."""
    compiler = build.find_cxx()
    if compiler is None:
        sys.exit("no C++ compiler found; install g++ or clang++, or set CXX")
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/program"
        file = Path(__file__).with_name(source)
        flags = ["-std=c++17", "-O3", "-march=native"]
        subprocess.run([compiler, *flags, str(file), "-o", program], check=True)
        done = subprocess.run([program, *arguments], check=True, capture_output=True, text=True)
    return [[float(word) for word in line.split()] for line in done.stdout.splitlines()]


def by_additions(
    shape: tuple[int, int, int, int], density: int, seconds: float, limit: dict[int, float]
) -> dict[str, Any]:
    channels, out, _, _ = shape
    inputs = 9 * channels
    rate = density / 100 * macs_of(shape) / seconds
    return {
        "way": "tables" if inputs * out <= LARGEST_TABLE else "events or dense",
        "rows, KiB": inputs * 64 * 4 // 1024,
        "SynOps/s": f"{rate / 1e9:.1f} G",
        "limit": f"{limit[inputs] / 1e9:.1f} G",
        "share": f"{100 * rate / limit[inputs]:.0f} %",
    }


def by_digits(
    shape: tuple[int, int, int, int], density: int, seconds: float, limit: float
) -> dict[str, Any]:
    rate = macs_of(shape) / seconds
    return {
        "way": "digits",
        "SynOps/s": f"{density / 100 * rate / 1e9:.1f} G",
        "MACs/s": f"{rate / 1e9:.0f} G",
        "limit": f"{limit / 1e9:.0f} G",
        "share": f"{100 * rate / limit:.0f} %",
    }


def macs_of(shape: tuple[int, int, int, int]) -> int:
    channels, out, size, stride = shape
    return 9 * channels * out * (size // stride) ** 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--density", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    asked.threads, asked.densities = [1], [asked.density]
    if library.cpu_isa() == "amx":
        # Three digits make a weight.
        describe = partial(by_digits, limit=measured_by("tiles.cc")[0][0] / 3)
    else:
        sizes = sorted({str(9 * channels) for channels, *_ in events.LAYERS}, key=int)
        pairs = measured_by("additions.cc", *sizes)
        describe = partial(by_additions, limit={int(rows): rate for rows, rate in pairs})
    rows: list[dict[str, Any]] = []
    for shape, measured in zip(events.LAYERS, events.layers(asked), strict=True):
        over_convolution = float(measured[f"{asked.density} %"].split()[0])
        seconds = over_convolution * measured["conv µs/step"] * 1e-6
        rows.append({"layer": measured["layer"], **describe(shape, asked.density, seconds)})
    Console(width=120).print(
        table("", list(rows[0]), [[str(value) for value in row.values()] for row in rows])
    )
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
