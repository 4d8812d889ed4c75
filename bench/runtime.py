"""Spiking networks against their ANNs and against SpikingJelly: one table of ratios from one run.

    python bench/runtime.py [--networks resnet20,vgg16,resnet18] [--steps 32,64] [--batch 1,16]
                            [--threads 1,2] [--repeat 5] [--model NAME=FILE.onnx] [--json FILE]
    python bench/runtime.py --quick

Networks have seeded weights (`python -m snncompiler.models export`, which needs PyTorch) unless
--model gives a trained file.  ResNet-20 and VGG-16 take CIFAR images, ResNet-18 and ResNet-34 those
of ImageNet, 224x224.  Images are standard-normal noise, on which all thresholds are calibrated too.

The SNN runs as a session runs it by default, by events, and densely, the layers as they stand in the
file.  Time does not depend on the weights and images, with one exception: by events on a processor
without tiles (bench/events.py has trained networks and real images).

Every cell is a child process of its own.  Those of one row take turns, --repeat of them after one
that is not counted: in its turn, a cell runs for 0.2 s, or once.  A figure is the median over the
turns; a ratio is the median over the turns of the ratios, so that other load on the machine, which
comes and goes, weighs little.  SpikingJelly converts the same PyTorch
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
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from rich.console import Console

from snncompiler.cli.tables import table
from snncompiler.ir.settings import Unroll

Row = dict[str, Any]
Turn = Callable[[], Row]  # what a cell does in its turn: seconds of a run, by batch size

#: Image size and number of classes.
NETWORKS = {
    "resnet20": (32, 10),
    "vgg16": (32, 10),
    "resnet18": (224, 1000),
    "resnet34": (224, 1000),
}
DEFAULT_NETWORKS = ("resnet20", "vgg16", "resnet18")
#: How a compiled network is unrolled, and the options of its session.
SNN: dict[str, tuple[Unroll, dict[str, bool]]] = {
    "default": ("fold", {"native": True}),
    "dense": ("fold", {"native": True, "events": False}),
    "body": ("fold", {"native": False}),
    "loop": ("loop", {"native": False}),
    "steps": ("steps", {"native": False}),
}
SPIKINGJELLY = ("stepping", "multi-step")
ANN_BATCHES = (1, 2, 4, 8, 16)
CALIBRATION_IMAGES = 8
#: How long a turn runs, for each batch size, in seconds; at least one run.
TURN_SECONDS = 0.2
#: Before a turn: the threads of onnxruntime and of PyTorch spin for a while when they have nothing to
#: do, and would take a core from the next cell.
PAUSE_SECONDS = 0.2
#: Limits in seconds: to set a cell up; of all its turns (it then stops); and of creating one session
#: (`steps` takes a time of order T²).
SETUP_LIMIT, CELL_LIMIT, SESSION_LIMIT = 120, 120, 60
#: Share of the machine's memory that one cell may use.
MEMORY_SHARE = 0.75
#: The goals: dense SNN time over T times that of the ANN; SpikingJelly's over the SNN's.
MOST_OVER_ANN, LEAST_OVER_SPIKINGJELLY = 1.25, 3.0


# --- in a child process ---


def images(shape: Sequence[int], count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Seeded standard-normal images, float32 [count, *shape]."""
    return np.random.default_rng(0).standard_normal((count, *shape), dtype=np.float32)


def timed(run: Callable[[], object]) -> float:
    """Seconds of a run: the median over one turn."""
    times: list[float] = []
    while not times or sum(times) < TURN_SECONDS:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


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
    from snncompiler.emission.save import serialize
    from snncompiler.errors import Refused
    from snncompiler.ir.settings import Options
    from snncompiler.network.data import load_data
    from snncompiler.pipeline import calibrated, emit, prepare

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


def session_cell(request: Row) -> Turn:
    """A network in onnxruntime, with the batch sizes asked for."""
    from snncompiler.runtime.session import create_session

    signal.alarm(SESSION_LIMIT)  # ends this process, which onnxruntime's code cannot notice
    session = create_session(request["model"], threads=request["threads"], **request["how"])
    signal.alarm(0)
    feeds = {n: {request["input"]: images(request["shape"], n)} for n in request["batches"]}
    return lambda: {str(n): timed(partial(session.run, None, feed)) for n, feed in feeds.items()}


def spikingjelly_cell(request: Row) -> Turn:
    """SpikingJelly's conversion of the PyTorch network, with one batch size."""
    import torch
    from spikingjelly.activation_based import (  # type: ignore[import-not-found, unused-ignore]
        ann2snn,
        functional,
    )

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
    (batch,) = request["batches"]
    x = torch.from_numpy(images(shape, batch))
    steps = request["steps"]
    multi = request["mode"] == "multi-step"
    functional.set_step_mode(snn, "m" if multi else "s")

    def run() -> Any:
        with torch.inference_mode():
            functional.reset_net(snn)
            if multi:
                return snn(x.unsqueeze(0).expand(steps, *x.shape)).mean(0)
            total = snn(x)
            for _ in range(steps - 1):
                total += snn(x)
            return total / steps

    return lambda: {str(batch): timed(run)}


CELLS: dict[str, Callable[[Row], Row | Turn]] = {
    "export": export_cell,
    "compile": compile_cell,
    "session": session_cell,
    "spikingjelly": spikingjelly_cell,
}


def serve(text: str) -> None:
    """Run one cell, within its share of memory.

    Prints its result as a line, or an empty object as soon as it is ready to take turns; then, for
    each line that comes in, takes a turn and prints its seconds.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = int(MEMORY_SHARE * memory)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    request: Row = json.loads(text)
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    result = CELLS[request["cell"]](request)
    print(json.dumps({} if callable(result) else result), file=answers, flush=True)
    if callable(result):
        for _ in sys.stdin:
            print(json.dumps(result()), file=answers, flush=True)


# --- in the parent ---


class Skip(Exception):
    """Why a cell has no figure."""


class Cell:
    """A child process that runs one cell.  `result` is what it made; the rest is for turns."""

    def __init__(self, cell: str, **request: Any) -> None:
        """Start and set up.  Raises Skip."""
        command = [sys.executable, __file__, "--cell", json.dumps({"cell": cell, **request})]
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (see close)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.turns: list[Row] = []  # seconds by batch size
        self.spent = 0.0
        self.reason = ""  # why it takes no more turns, where it does not
        try:
            self.result = self._answer(SETUP_LIMIT)
        except Skip:
            self.close()
            raise

    def turn(self) -> None:
        """Take a turn, unless the time is spent.  The first is not counted."""
        if self.reason:
            return
        assert self.process.stdin
        time.sleep(PAUSE_SECONDS)
        started = time.perf_counter()
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            self.turns.append(self._answer(CELL_LIMIT - self.spent))
        except (Skip, BrokenPipeError) as error:
            self.reason = str(error)
        self.spent += time.perf_counter() - started

    def _answer(self, limit: float) -> Row:
        """The next line.  Raises Skip where none comes within `limit` seconds."""
        assert self.process.stdout
        late = threading.Event()

        def stop() -> None:
            late.set()
            self.process.kill()

        timer = threading.Timer(limit, stop)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if line:
            answer: Row = json.loads(line)
            return answer
        status = self.process.wait()
        if late.is_set():
            raise Skip(f"it takes more than {CELL_LIMIT} s")
        if status == -signal.SIGALRM:
            raise Skip(f"creating the session takes more than {SESSION_LIMIT} s")
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines() or [f"exit status {status}"]
        raise Skip(lines[-1][:200])

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.errors):
            file.close()


def made(cell: str, **request: Any) -> Row:
    """The result of a cell that takes no turns.  Raises Skip."""
    child = Cell(cell, **request)
    child.close()
    return child.result


def measure(
    options: argparse.Namespace, folder: Path, name: str, say: Callable[[str], None]
) -> list[Row]:
    """All rows of one network.  Raises Skip where there is no network to measure."""
    model = options.model.get(name)
    if model is None:
        if missing := absent("torch"):
            raise Skip(f"{missing}; pip install torch, or give --model {name}=FILE.onnx")
        model = str(folder / f"{name}.onnx")
        made("export", network=name, form=options.form, file=model)
    compiled = made("compile", model=model, steps=options.steps, folder=str(folder))
    rows = []
    for steps in options.steps:
        for batch in options.batch:
            for threads in options.threads:
                setting = {"steps": steps, "batch": batch, "threads": threads}
                rows.append(measure_row(options, name, model, compiled, setting))
                say(f"{where(rows[-1])}: measured")
    return rows


def measure_row(
    options: argparse.Namespace, name: str, model: str, compiled: Row, setting: Row
) -> Row:
    """One row: the ANN, the five ways to run the SNN and SpikingJelly take turns."""
    steps, batch, threads = setting["steps"], setting["batch"], setting["threads"]
    session = {"input": compiled["input"], "shape": compiled["shape"], "threads": threads}
    requests: dict[str, Row] = {
        "ann": {"model": model, "how": {"native": False}, "batches": ANN_BATCHES}
    }
    skipped: dict[str, str] = {}
    for column, (unroll, how) in SNN.items():
        key = f"{unroll} {steps}"
        if key in compiled["skipped"]:
            skipped[column] = compiled["skipped"][key]
        else:
            file = compiled["files"][key]
            requests[column] = {"model": file, "how": how, "batches": [batch]}
    for mode in () if absent("torch", "spikingjelly") else SPIKINGJELLY:
        requests[mode] = {
            "cell": "spikingjelly",
            "network": name,
            "form": options.form,
            "steps": steps,
            "mode": mode,
            "batches": [batch],
        }
    cells: dict[str, Cell] = {}
    try:
        for column, request in requests.items():
            try:
                cells[column] = Cell(**{"cell": "session", **session, **request})
            except Skip as skip:
                skipped[column] = str(skip)
        for _ in range(options.repeat + 1):
            for cell in cells.values():
                cell.turn()
    finally:
        for cell in cells.values():
            cell.close()
    skipped |= {column: cell.reason for column, cell in cells.items() if len(cell.turns) < 2}
    stopped = {c: cell.reason for c, cell in cells.items() if cell.reason and c not in skipped}
    turns = {column: cell.turns[1:] for column, cell in cells.items() if column not in skipped}
    form = "given" if name in options.model else options.form
    return {
        "network": name,
        "form": form,
        **setting,
        "skipped": skipped,
        "stopped": stopped,
        **figures(turns, batch, steps),
    }


def figures(turns: dict[str, list[Row]], batch: int, steps: int) -> Row:
    """Medians over the turns: seconds of a run (of the ANN: per image, at its best N), ratios to the
    default SNN, and in `over_ann` those of the SNN and the dense one to T times the ANN."""
    found: Row = {"seconds": {}, "over_ann": {}, "ratios": {}}
    found["turns"] = {column: len(taken) for column, taken in turns.items()}
    series: dict[str, list[float]] = {}
    for column, rounds in turns.items():
        medians = {int(n): statistics.median(row[n] for row in rounds) for n in rounds[0]}
        best = min(medians, key=lambda n: medians[n] / n)
        divide = best if column == "ann" else 1
        series[column] = [row[str(best)] / divide for row in rounds]
        found["seconds"][column] = statistics.median(series[column])
        if column == "ann":
            found["ann_batch"] = best
    for column in ("default", "dense"):
        if "ann" in series and column in series:
            pairs = zip(series[column], series["ann"], strict=False)  # as many as both took
            per = [snn / (batch * steps * ann) for snn, ann in pairs]
            found["over_ann"][column] = statistics.median(per)
    for column in series if "default" in series else ():
        if column not in ("ann", "default"):
            pairs = zip(series["default"], series[column], strict=False)
            found["ratios"][column] = statistics.median(one / snn for snn, one in pairs)
    return found


def absent(*packages: str) -> str:
    """Which package is not installed, as a sentence, or an empty string."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    return f"{missing[0]} is not installed" if missing else ""


def where(row: Row) -> str:
    return f"{row['network']} T={row['steps']} N={row['batch']} threads={row['threads']}"


def shown(row: Row) -> tuple[object, ...]:
    """A row of the table."""
    seconds, skipped = row["seconds"], row["skipped"]

    def show(kind: str, name: str) -> str:
        if name in skipped:
            return "skipped"
        return f"{row[kind][name]:.2f}" if name in row[kind] else "-"

    return (
        row["network"],
        row["steps"],
        row["batch"],
        row["threads"],
        f"{1e3 * seconds['ann']:.2f} ({row['ann_batch']})" if "ann" in seconds else "skipped",
        f"{1e3 * seconds['default'] / row['batch']:.1f}" if "default" in seconds else "skipped",
        *(show("over_ann", name) for name in ("default", "dense")),
        *(show("ratios", name) for name in ("body", "loop", "steps", *SPIKINGJELLY)),
    )


COLUMNS = (
    "network", "T", "N", "threads", "ANN ms/image (N)", "SNN ms/image", "SNN / T·ANN",
    "dense / T·ANN", "body", "loop", "steps", "SpikingJelly stepping", "multi-step",
)  # fmt: skip


def verdict(rows: Sequence[Row]) -> list[str]:
    """How many rows reach the goals."""
    over_ann = [row["over_ann"]["dense"] for row in rows if "dense" in row["over_ann"]]
    found = [row["ratios"] for row in rows]
    better = [
        min(ratios[mode] for mode in SPIKINGJELLY)
        for ratios in found
        if all(mode in ratios for mode in SPIKINGJELLY)
    ]
    lines = []
    if over_ann:
        good = sum(ratio <= MOST_OVER_ANN for ratio in over_ann)
        lines.append(
            f"dense / T·ANN at most {MOST_OVER_ANN}: {good} of {len(over_ann)}, "
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
    from snncompiler.runtime import library

    found = {"cpu": cpu_name(), "kernels": library.cpu_isa() or "-", "cores": str(os.cpu_count())}
    found["Python"] = platform.python_version()
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
        f"{options.form} networks, threads {options.threads}, medians of {options.repeat} turns; "
        "standard-normal images, also for calibration"
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
    if not rows:
        raise SystemExit("nothing was measured")
    say("")
    title = (
        "SNN: fold, by events; dense: native kernels, dense convolutions.  Columns from `body` on: "
        "time over the SNN's, with standard operators, and of SpikingJelly"
    )
    console.print(table(title, COLUMNS, [shown(row) for row in rows]))
    for row in rows:
        for column, reason in row["skipped"].items():
            say(f"{where(row)}, {column}: skipped: {reason}")
        for column, reason in row["stopped"].items():
            say(f"{where(row)}, {column}: {row['turns'][column]} turn(s) only: {reason}")
    for line in verdict(rows):
        say(line)
    if options.json:
        content = {"environment": found, "rows": rows}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
