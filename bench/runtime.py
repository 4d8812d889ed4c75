"""Spiking networks against their ANNs and against SpikingJelly: one table of ratios from one run.

    python bench/runtime.py [--networks resnet20,vgg16,resnet18] [--steps 32,64] [--batch 1,16]
                            [--threads 1,2] [--repeat 5] [--model NAME=FILE.onnx] [--json FILE]
    python bench/runtime.py --quick

Networks have seeded weights (`python -m snncompiler.models export`, which needs PyTorch) unless
--model gives a trained file.  ResNet-20 and VGG-16 take CIFAR images, ResNet-18 and ResNet-34 those
of ImageNet, 224x224.  Images are standard-normal noise: the kernels are dense, so their time does
not depend on it.  All thresholds are calibrated on such images too.

Every cell is a child process of its own.  A figure is the median of at least --repeat runs, and of
at least one second of runs, after one that is not counted.  SpikingJelly converts the same PyTorch
network (with seeded weights even where --model is given) by `RateCodingRecipe`, 99.9 %, and runs it
step by step and multi-step, with the PyTorch backend.  What takes too long, or is not possible,
shows as "skipped", with its reason below the table.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from rich.console import Console

from snncompiler.report import table

Row = dict[str, Any]

#: Image size and number of classes.
NETWORKS = {
    "resnet20": (32, 10),
    "vgg16": (32, 10),
    "resnet18": (224, 1000),
    "resnet34": (224, 1000),
}
DEFAULT_NETWORKS = ("resnet20", "vgg16", "resnet18")
#: How a compiled network is unrolled, and whether the native kernels run it.
SNN = {
    "native": ("fold", True),
    "body": ("fold", False),
    "loop": ("loop", False),
    "steps": ("steps", False),
}
SPIKINGJELLY = ("stepping", "multi-step")
ANN_BATCHES = (1, 2, 4, 8, 16)
CALIBRATION_IMAGES = 8
#: A figure is a median over at least this many seconds, and no run starts after so many.
LEAST_SECONDS, MOST_SECONDS = 1.0, 60.0
#: Limits of a cell, and of creating one session (`steps` takes a time of order T²), in seconds.
CELL_LIMIT, SESSION_LIMIT = 120, 60
#: Share of the machine's memory that one cell may use.
MEMORY_SHARE = 0.75
#: What is to be reached: SNN time over T times that of the ANN; SpikingJelly's over the SNN's.
MOST_OVER_ANN, LEAST_OVER_SPIKINGJELLY = 1.25, 3.0


# --- in a child process ---


def images(shape: Sequence[int], count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Seeded standard-normal images, float32 [count, *shape]."""
    return np.random.default_rng(0).standard_normal((count, *shape), dtype=np.float32)


def median(run: Callable[[], object], repeat: int) -> Row:
    """Median seconds of a run, and how many were timed."""
    run()
    times: list[float] = []
    while (len(times) < repeat or sum(times) < LEAST_SECONDS) and sum(times) < MOST_SECONDS:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return {"seconds": statistics.median(times), "runs": len(times)}


def export_cell(request: Row) -> Row:
    """Write the network of the registry, with seeded weights."""
    from snncompiler.models.export import build_and_export

    name = request["network"]
    size, classes = NETWORKS[name]
    build_and_export(
        name,
        Path(request["file"]),
        constrained=request["form"] == "constrained",
        classes=classes,
        size=size,
    )
    return {}


def compile_cell(request: Row) -> Row:
    """Compile once per T and way to unroll; each file, or why there is none."""
    from snncompiler.data import load_data
    from snncompiler.errors import Refused
    from snncompiler.io import serialize
    from snncompiler.pipeline import Options, calibrated, emit, prepare

    prepared = prepare(request["model"])
    (spec,) = prepared.inputs
    shape = [int(dim) for dim in spec.shape[1:] if dim is not None]
    data = load_data(images(shape, CALIBRATION_IMAGES), prepared.inputs, None)
    thresholds = calibrated(prepared, Options(), data)
    found: Row = {"input": spec.name, "shape": shape, "files": {}, "skipped": {}}
    for unroll in dict.fromkeys(unroll for unroll, _ in SNN.values()):
        for steps in request["steps"]:
            key = f"{unroll} {steps}"
            try:
                model = emit(prepared, thresholds, Options(steps=steps, unroll=unroll))
            except Refused as error:
                found["skipped"][key] = str(error).splitlines()[0]
                continue
            file = Path(request["folder"]) / f"{Path(request['model']).stem}-{unroll}-{steps}.onnx"
            file.write_bytes(serialize(model))
            found["files"][key] = str(file)
    return found


def session_cell(request: Row) -> Row:
    """Time a network in onnxruntime: for each batch size, seconds of a run."""
    from snncompiler.runtime.session import create_session

    signal.alarm(SESSION_LIMIT)  # ends this process, which onnxruntime's code cannot notice
    started = time.perf_counter()
    session = create_session(request["model"], threads=request["threads"], native=request["native"])
    created = time.perf_counter() - started
    signal.alarm(0)
    runs = {}
    for batch in request["batches"]:
        feeds = {request["input"]: images(request["shape"], batch)}
        runs[str(batch)] = median(lambda feeds=feeds: session.run(None, feeds), request["repeat"])
    return {"create": created, "batches": runs}


def spikingjelly_cell(request: Row) -> Row:
    """Time SpikingJelly's conversion of the PyTorch network."""
    import torch
    from spikingjelly.activation_based import ann2snn, functional

    from snncompiler.models.export import seeded

    size, classes = NETWORKS[request["network"]]
    network = seeded(
        request["network"],
        constrained=request["form"] == "constrained",
        classes=classes,
        size=size,
    )
    torch.set_num_threads(request["threads"])
    shape = (3, size, size)
    recipe = ann2snn.RateCodingRecipe(
        dataloader=[torch.from_numpy(images(shape, CALIBRATION_IMAGES))], mode="99.9%"
    )
    snn = ann2snn.Converter(recipe=recipe, device="cpu").convert(network).eval()
    x = torch.from_numpy(images(shape, request["batch"]))
    steps = request["steps"]
    multi = request["mode"] == "multi-step"
    functional.set_step_mode(snn, "m" if multi else "s")

    def run() -> Any:
        functional.reset_net(snn)
        if multi:
            return snn(x.unsqueeze(0).expand(steps, *x.shape)).mean(0)
        total = snn(x)
        for _ in range(steps - 1):
            total += snn(x)
        return total / steps

    with torch.inference_mode():
        return median(run, request["repeat"])


CELLS: dict[str, Callable[[Row], Row]] = {
    "export": export_cell,
    "compile": compile_cell,
    "session": session_cell,
    "spikingjelly": spikingjelly_cell,
}


def serve(text: str) -> None:
    """Run one cell, within its share of memory, and print its result as the last line."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = int(MEMORY_SHARE * memory)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    request: Row = json.loads(text)
    print(json.dumps(CELLS[request["cell"]](request)))


# --- in the parent ---


class Skip(Exception):
    """Why a cell has no figure."""


def child(cell: str, **request: Any) -> Row:
    """The result of a cell, run in a process of its own.  Raises Skip."""
    command = [sys.executable, __file__, "--cell", json.dumps({"cell": cell, **request})]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=CELL_LIMIT
        )
    except subprocess.TimeoutExpired:
        raise Skip(f"more than {CELL_LIMIT} s") from None
    if done.returncode == -signal.SIGALRM:
        raise Skip(f"creating the session took more than {SESSION_LIMIT} s")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise Skip(lines[-1][:200])
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def measure(
    options: argparse.Namespace, folder: Path, name: str, say: Callable[[str], None]
) -> list[Row]:
    """All rows of one network.  Raises Skip where there is no network to measure."""
    model = options.model.get(name)
    if model is None:
        if missing := absent("torch"):
            raise Skip(f"{missing}; pip install torch, or give --model {name}=FILE.onnx")
        model = str(folder / f"{name}.onnx")
        child("export", network=name, form=options.form, file=model)
    compiled = child("compile", model=model, steps=options.steps, folder=str(folder))
    session = {"input": compiled["input"], "shape": compiled["shape"], "repeat": options.repeat}
    anns: dict[int, tuple[float, int]] = {}
    rows = []
    for threads in options.threads:
        found = child(
            "session", model=model, native=False, threads=threads, batches=ANN_BATCHES, **session
        )
        anns[threads] = min((r["seconds"] / int(n), int(n)) for n, r in found["batches"].items())
    no_spikingjelly = absent("torch", "spikingjelly")
    for steps in options.steps:
        for batch in options.batch:
            for threads in options.threads:
                ann, ann_batch = anns[threads]
                row: Row = {
                    "network": name,
                    "form": "given" if name in options.model else options.form,
                    "steps": steps,
                    "batch": batch,
                    "threads": threads,
                    "ann": ann,
                    "ann_batch": ann_batch,
                    "seconds": {},
                    "runs": {},
                    "skipped": {},
                }
                for column, (unroll, native) in SNN.items():
                    key = f"{unroll} {steps}"
                    try:
                        if key in compiled["skipped"]:
                            raise Skip(compiled["skipped"][key])
                        found = child(
                            "session",
                            model=compiled["files"][key],
                            native=native,
                            threads=threads,
                            batches=[batch],
                            **session,
                        )
                        fill(row, column, found["batches"][str(batch)])
                    except Skip as skip:
                        row["skipped"][column] = str(skip)
                for mode in () if no_spikingjelly else SPIKINGJELLY:
                    try:
                        found = child(
                            "spikingjelly",
                            network=name,
                            form=options.form,
                            steps=steps,
                            batch=batch,
                            threads=threads,
                            mode=mode,
                            repeat=options.repeat,
                        )
                        fill(row, mode, found)
                    except Skip as skip:
                        row["skipped"][mode] = str(skip)
                rows.append(row)
                say(f"{where(row)}: measured")
    return rows


def fill(row: Row, column: str, found: Row) -> None:
    row["seconds"][column] = found["seconds"]
    row["runs"][column] = found["runs"]


def absent(*packages: str) -> str:
    """Which package is not installed, as a sentence, or an empty string."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    return f"{missing[0]} is not installed" if missing else ""


def where(row: Row) -> str:
    return f"{row['network']} T={row['steps']} N={row['batch']} threads={row['threads']}"


def ratios(row: Row) -> Row:
    """The ratios of a row: `ann` is SNN time over T times the ANN's, others are over the SNN's."""
    seconds = row["seconds"]
    if "native" not in seconds:
        return {}
    native = seconds["native"]
    found = {name: other / native for name, other in seconds.items() if name != "native"}
    found["ann"] = native / row["batch"] / (row["steps"] * row["ann"])
    return found


def cells(row: Row) -> tuple[object, ...]:
    """A row of the table."""
    found, skipped = ratios(row), row["skipped"]

    def show(name: str) -> str:
        if name in skipped:
            return "skipped"
        return f"{found[name]:.2f}" if name in found else "-"

    native = row["seconds"].get("native")
    return (
        row["network"],
        row["steps"],
        row["batch"],
        row["threads"],
        f"{1e3 * row['ann']:.2f} ({row['ann_batch']})",
        "skipped" if native is None else f"{1e3 * native / row['batch']:.1f}",
        "skipped" if native is None else show("ann"),
        *(show(name) for name in ("body", "loop", "steps", *SPIKINGJELLY)),
    )


COLUMNS = (
    "network", "T", "N", "threads", "ANN ms/image (N)", "SNN ms/image", "SNN / T·ANN",
    "body", "loop", "steps", "SpikingJelly stepping", "multi-step",
)  # fmt: skip


def verdict(rows: Sequence[Row]) -> list[str]:
    """How many rows reach what is to be reached."""
    over_ann = [ratios(row)["ann"] for row in rows if "ann" in ratios(row)]
    better = [
        min(found[mode] for mode in SPIKINGJELLY)
        for found in map(ratios, rows)
        if all(mode in found for mode in SPIKINGJELLY)
    ]
    lines = []
    if over_ann:
        good = sum(ratio <= MOST_OVER_ANN for ratio in over_ann)
        lines.append(
            f"SNN / T·ANN at most {MOST_OVER_ANN}: {good} of {len(over_ann)}, "
            f"largest {max(over_ann):.2f}"
        )
    if better:
        good = sum(ratio >= LEAST_OVER_SPIKINGJELLY for ratio in better)
        lines.append(
            f"SpikingJelly's better mode / SNN at least {LEAST_OVER_SPIKINGJELLY:g}: "
            f"{good} of {len(better)}, smallest {min(better):.2f}"
        )
    return lines


def environment() -> dict[str, str]:
    """The processor, and the versions of what is measured."""
    found = {"cpu": cpu_name(), "cores": str(os.cpu_count()), "Python": platform.python_version()}
    for package in ("onnxruntime", "onnxruntime-gpu", "onnx", "numpy", "torch", "spikingjelly"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--networks", default=",".join(DEFAULT_NETWORKS))
    parser.add_argument("--steps", type=numbers, default=[32, 64], help="T, one or more")
    parser.add_argument("--batch", type=numbers, default=[1, 16], help="N, one or more")
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--form", choices=("common", "constrained"), default="common")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FILE.onnx")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--quick", action="store_true", help="one network, T = 32, N = 1, 1 thread")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.networks = options.networks.split(",")
    options.model = dict(item.partition("=")[::2] for item in options.model)
    if options.quick:
        options.networks = options.networks[:1]
        options.steps, options.batch, options.threads = [32], [1], [1]
    for name in (*options.networks, *options.model):
        if name not in NETWORKS:
            parser.error(f"no network {name!r}; there are: {', '.join(NETWORKS)}")
    return options


def main() -> None:
    options = parse()
    if options.cell:
        serve(options.cell)
        return
    console = Console(width=170)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    found = environment()
    say(", ".join(f"{name} {version}" for name, version in found.items()))
    say(
        f"{options.form} networks, threads {options.threads}, medians of at least "
        f"{options.repeat} runs; standard-normal images, also for calibration"
    )
    if missing := absent("torch", "spikingjelly"):
        say(f"{missing}: there are no figures of SpikingJelly")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.networks:
            try:
                rows += measure(options, Path(folder), name, say)
            except Skip as skip:
                say(f"{name}: skipped: {skip}")
    say("")
    title = (
        "SNN: fold, native kernels.  Columns from `body` on: time over the SNN's, with standard "
        "operators, and of SpikingJelly"
    )
    console.print(table(title, COLUMNS, [cells(row) for row in rows]))
    for row in rows:
        for column, reason in row["skipped"].items():
            say(f"{where(row)}, {column}: skipped: {reason}")
        for column, runs in row["runs"].items():
            if runs < options.repeat:
                say(f"{where(row)}, {column}: {runs} run(s) only, as they take long")
    for line in verdict(rows):
        say(line)
    if options.json:
        content = {"environment": found, "rows": [{**row, "ratios": ratios(row)} for row in rows]}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
