"""`snnc trace`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snncompiler.analysis.trace import NEURONS, SAMPLES
from snncompiler.analysis.trace import trace as traced
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
from snncompiler.cli.plots import check_plot, plot_trace
from snncompiler.emission.save import check_writable
from snncompiler.errors import UsageError


def trace(
    snn: Snn,
    data: Annotated[Path, typer.Option(help="Samples, of which the first are recorded.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .npz to write.")],
    how: How,
    steps: Steps = None,
    samples: Annotated[int, typer.Option(help="How many samples to record.")] = SAMPLES,
    neurons: Annotated[
        int, typer.Option(help="How many neurons of every layer, drawn by --seed; 0 for all.")
    ] = NEURONS,
    layers: Annotated[
        str | None, typer.Option(help="Names of layers, separated by commas. Default: all.")
    ] = None,
    ann: Annotated[
        Path | None, typer.Option(help="The source network, to record its activations too.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Plot rate against activation and a raster: .png, .svg or .pdf."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed for drawing neurons.")] = 0,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Record spikes and membranes of single neurons, step by step, and plot them."""
    if seed < 0:
        raise UsageError(f"--seed {seed} is out of range", hint="0 or more")
    sources = (snn, data, *([ann] if ann else []))
    check_writable(output, sources)
    if plot is not None:
        check_writable(plot, (*sources, output))
        check_plot(plot)
        if plot.resolve() == output.resolve():
            raise UsageError("--plot and --output are the same file")
    with progress(quiet) as tell:
        recorded = traced(
            snn,
            data,
            samples=samples,
            steps=steps,
            ann=ann,
            layers=None if layers is None else layers.split(","),
            neurons=neurons or None,
            seed=seed,
            preprocess=how,
            threads=threads,
            progress=tell,
        )
    recorded.save(output)
    if plot is not None:
        plot_trace(recorded, plot)
    content = {
        "output": str(output),
        "plot": None if plot is None else str(plot),
        "bytes": output.stat().st_size,
        "steps": recorded.steps,
        "samples": recorded.samples,
        "layers": [
            {"layer": layer.layer, "shape": list(layer.shape), "neurons": len(layer.neuron)}
            for layer in recorded.layers
        ],
    }
    if as_json:
        print_json(content)
        return
    tell_findings(list(recorded.findings), quiet)
    where = f"{output}, {plot}" if plot else str(output)
    print(
        f"{where}: {len(recorded.layers)} layers, {recorded.samples} samples, T = {recorded.steps}"
    )
