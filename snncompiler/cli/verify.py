"""`snnc verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from snncompiler.analysis.verify import Verification
from snncompiler.analysis.verify import verify as verified
from snncompiler.cli import tables
from snncompiler.cli.common import (
    Debug,
    How,
    Json,
    Model,
    Quiet,
    Snn,
    console,
    print_json,
    progress,
)
from snncompiler.findings import Finding


def verify(
    model: Model,
    snn: Snn,
    how: How,
    data: Annotated[
        Path | None, typer.Option(help="Samples to run. Default: synthetic input.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Check a compiled network: every way to unroll it, and the soft-reset identity of every neuron."""
    with progress(quiet) as tell:
        result = verified(model, snn, data=data, preprocess=how, progress=tell)
    if as_json:
        print_json(result.as_dict())
    else:
        _print_verification(console(), result)
    failed = [f"{check.name}: {check.detail}" for check in result.checks if not check.passed]
    if failed:
        tables.print_findings(console(stderr=True), [Finding("SNNC403", text) for text in failed])
        raise typer.Exit(1)


def _print_verification(shown: Console, result: Verification) -> None:
    rows = [
        (check.name, "passed" if check.passed else "FAILED", check.detail)
        for check in result.checks
    ]
    shown.print(tables.table("Checks", ("check", "result", "seen"), rows))
    if result.layers:
        identity: list[tuple[object, ...]] = [
            (
                layer.layer,
                f"{layer.deviation:.3g}",
                f"{layer.bound:.3g}",
                f"{layer.membrane_max:.4g}",
                tables.percent(layer.above),
                tables.percent(layer.below),
            )
            for layer in result.layers
        ]
        columns = ("layer", "deviation", "bound", "max |v|", "v(T) > θ", "v(T) < 0")
        shown.print(tables.table(result.holds, columns, identity))
