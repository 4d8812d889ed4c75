"""Random networks through every way of running: by events, dense, and as function bodies.

    python tests/fuzz/fuzz_convergence.py [--count N] [--seed S] [--processes P] [--save FOLDER]
        [--timing layered]

Network S + i comes from the seed S + i alone.  Compiled, it has to stay within the derived bound of
its ANN (`tests/random_networks.py`) at every T and in every way; in layered time with rate and with
radix spikes.  Progress goes to standard error.
Where one leaves the bound, raises or ends its process, the seed is printed and the network saved, the
others are still run, and the exit status is 1; `--seed S --count 1` runs it again.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from random_networks import CODES, STEPS, WAYS, check, check_layers, seeded

#: Seconds between two lines of progress.
EVERY = 20


@dataclass
class Totals:
    networks: int = 0
    freed: int = 0
    refused: int = 0
    layers: int = 0
    by_events: int = 0
    errors: dict[int | str, list[float]] = field(default_factory=dict)
    tightness: list[float] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)


def save(seed: int, folder: Path) -> None:
    """The network of a seed and its input as files."""
    network = seeded(seed)
    folder.mkdir(parents=True, exist_ok=True)
    model = network.model if network.free is None else network.free[0]
    onnx.save(model, folder / f"{seed}.onnx")
    np.savez(folder / f"{seed}.npz", x=network.x)


#: What is found of one network: freed, refused, layers, by events, errors, tightness.
Found = tuple[bool, tuple[str, ...], int, int, dict[Any, float], float | None]


def _streaming(seed: int) -> Found:
    found = check(seeded(seed))
    numbers = (found.freed, found.refused, found.layers, found.by_events)
    return (*numbers, found.errors, found.tightness)


def _layered(seed: int) -> Found:
    found = check_layers(seeded(seed))
    return (False, (), found.layers, 0, dict(found.errors), None)


def work(seeds: range, pipe: Connection) -> None:
    """Checks networks one by one: what is found goes into the pipe, with the seed before it."""
    _work(seeds, pipe, _streaming)


def work_layered(seeds: range, pipe: Connection) -> None:
    """The same in layered time."""
    _work(seeds, pipe, _layered)


def _work(seeds: range, pipe: Connection, checked: Callable[[int], Found]) -> None:
    for seed in seeds:
        pipe.send(("begun", seed, None))
        try:
            pipe.send(("kept", seed, checked(seed)))
        except Exception:
            pipe.send(("failed", seed, traceback.format_exc()))
    pipe.send(("done", 0, None))


Job = Callable[[range, Connection], None]


@dataclass
class Worker:
    """A process that checks every n-th seed; one that ends early is begun again behind that seed."""

    seeds: range
    seed: int = 0
    process: BaseProcess | None = None
    pipe: Connection | None = None

    def begin(self, seeds: range, job: Job) -> None:
        self.seeds = seeds
        self.pipe, far = mp.Pipe(duplex=False)
        self.process = mp.get_context("spawn").Process(target=job, args=(seeds, far), daemon=True)
        self.process.start()
        far.close()


def fuzz(first: int, count: int, processes: int, folder: Path, job: Job = work) -> Totals:
    """Runs `job` on the seeds from `first` on, in several processes."""
    totals = Totals()
    workers = [
        Worker(range(first + index, first + count, processes))
        for index in range(max(1, min(processes, count)))
    ]
    for worker in workers:
        worker.begin(worker.seeds, job)
    started = told = time.monotonic()
    while any(worker.pipe is not None for worker in workers):
        open_pipes = {worker.pipe: worker for worker in workers if worker.pipe is not None}
        for pipe in wait(list(open_pipes)):
            worker = open_pipes[pipe]  # type: ignore[index]
            assert worker.process is not None and worker.pipe is not None
            try:
                what, seed, found = worker.pipe.recv()
            except EOFError:
                worker.process.join()
                fail(totals, worker.seed, f"its process ended: {worker.process.exitcode}", folder)
                rest = range(worker.seed + worker.seeds.step, worker.seeds.stop, worker.seeds.step)
                worker.begin(rest, job)
                continue
            if what == "begun":
                worker.seed = seed
            elif what == "kept":
                add(totals, found)
            elif what == "failed":
                fail(totals, seed, found, folder)
            else:
                worker.pipe = None
        if time.monotonic() > told + EVERY:
            told = time.monotonic()
            tell(totals, count, told - started)
    return totals


def add(totals: Totals, found: Any) -> None:
    freed, refused, layers, by_events, errors, tightness = found
    totals.networks += 1
    totals.freed += freed
    totals.refused += bool(refused)
    totals.layers += layers
    totals.by_events += by_events
    for steps, error in errors.items():
        totals.errors.setdefault(steps, []).append(error)
    if tightness is not None:
        totals.tightness.append(tightness)


def fail(totals: Totals, seed: int, why: str, folder: Path) -> None:
    totals.failed.append(seed)
    print(f"seed {seed}: {why.strip()}", file=sys.stderr)
    try:
        save(seed, folder)
        print(f"saved as {folder / str(seed)}.onnx and .npz", file=sys.stderr)
    except Exception as error:
        print(f"cannot be saved: {error}", file=sys.stderr)
    print(f"again: python {Path(__file__)} --seed {seed} --count 1", file=sys.stderr, flush=True)


def tell(totals: Totals, count: int, seconds: float) -> None:
    done = totals.networks + len(totals.failed)
    text = f"{done} of {count} networks, {len(totals.failed)} failed, {seconds:.0f} s"
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--save", type=Path, default=Path("fuzz-failures"))
    parser.add_argument("--timing", choices=("streaming", "layered"), default="streaming")
    options = parser.parse_args()
    layered = options.timing == "layered"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    last = options.seed + options.count - 1
    how = f"{', '.join(WAYS)} at T = {', '.join(map(str, STEPS))}"
    if layered:
        how = ", ".join(f"{coding} at T = {steps}" for coding, steps in CODES)
    print(f"seeds {options.seed} to {last}; {how}")
    started = time.monotonic()
    job = work_layered if layered else work
    totals = fuzz(options.seed, options.count, options.processes, options.save, job)
    seconds = time.monotonic() - started
    print(f"{totals.networks} networks within the bound, {len(totals.failed)} not, {seconds:.0f} s")
    if not layered:
        print(
            f"{totals.by_events} of {totals.layers} layers by events, {totals.freed} with open sizes"
        )
        print(f"{totals.refused} with open sizes refused and run with their own")
    for steps, errors in totals.errors.items():
        name = f"T = {steps}" if isinstance(steps, int) else steps
        print(
            f"{name}: of the largest relative errors the median is {np.median(errors):.4f}, "
            f"the largest {max(errors):.4f}"
        )
    if totals.tightness:
        print(f"error over bound at T = {STEPS[0]}: largest {max(totals.tightness):.3f}")
    if totals.failed:
        print(f"seeds that failed: {' '.join(map(str, totals.failed))}")
    return 1 if totals.failed else 0


if __name__ == "__main__":
    sys.exit(main())
