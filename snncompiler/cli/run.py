"""`snnc run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from snncompiler.analysis.evaluate import BATCH
from snncompiler.cli.common import (
    Debug,
    How,
    Json,
    Quiet,
    Snn,
    Steps,
    Threads,
    print_json,
    progress,
    tell_findings,
)
from snncompiler.emission.compiled import read_compiled
from snncompiler.emission.save import check_writable, write_atomically
from snncompiler.errors import UsageError
from snncompiler.findings import printable
from snncompiler.ir.settings import MAX_STEPS
from snncompiler.network.batching import Gathered
from snncompiler.runtime import create_session


def run(
    snn: Snn,
    data: Annotated[
        Path, typer.Option("--input", help="Samples: .npz, .npy, .parquet, folder, zip or tar.")
    ],
    how: How,
    steps: Steps = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The .npz to write.")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run a compiled network on data and print or write its outputs."""
    compiled = read_compiled(snn)
    if steps is not None and not 1 <= steps <= MAX_STEPS:
        raise UsageError(f"-T {steps} is out of range", hint=f"1 to {MAX_STEPS:,} time-steps")
    asked = compiled.overrides(steps=steps)
    if output is not None:
        check_writable(output, (snn, data))
    dataset = compiled.data(data, how)
    tell_findings(list(dataset.findings), quiet)
    session = create_session(compiled.model, threads=threads)
    axes = compiled.output_axes
    gathered = {name: Gathered(axis) for name, axis in axes.items()}
    size = compiled.batch_size(BATCH, dataset.values)
    with progress(quiet) as tell:
        for number, batch in enumerate(dataset.batches(size, compiled.fixed_batch)):
            values = session.run(list(axes), {**batch.feeds, **asked})
            for one, value in zip(gathered.values(), values, strict=True):
                one.add(value, batch.count, batch.size)
            if tell:
                tell("running", number + 1, -(-len(dataset) // size))
    results: dict[str, Any] = {}
    for name, one in gathered.items():
        results |= one.named(name)
    if output is not None:
        write_atomically(output, lambda file: np.savez(file, **results))
        print(output)
    elif as_json:
        print_json({name: array.tolist() for name, array in results.items()})
    else:
        for name, array in results.items():
            print(f"{printable(name)} {list(array.shape)} {array.dtype}")
            with np.printoptions(precision=5, suppress=True, threshold=50, linewidth=120):
                print(array)
