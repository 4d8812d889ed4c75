"""`snnc export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snncompiler.cli import tables
from snncompiler.cli.common import (
    Debug,
    How,
    Json,
    Quiet,
    Snn,
    console,
    print_json,
    tell_findings,
)
from snncompiler.emission.targets import TARGETS, VECTORS
from snncompiler.emission.targets import export as exported


def export(
    snn: Snn,
    how: How,
    to: Annotated[str, typer.Option("--to", help=f"For what to write it: {', '.join(TARGETS)}.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write into.")],
    name: Annotated[
        str | None, typer.Option(help="Of the network in that language. Default: the file's.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Samples for the test vectors. Default: seeded noise.")
    ] = None,
    vectors: Annotated[int, typer.Option(help="How many samples for test vectors.")] = VECTORS,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a compiled network for something else than onnxruntime, with the same spikes."""
    made = exported(snn, to, output, name=name, data=data, preprocess=how, vectors=vectors)
    tell_findings(list(made.findings), quiet)
    if as_json:
        print_json(
            {
                "target": to,
                "folder": str(output),
                "files": list(made.files),
                **{key.replace(" ", "_"): value for key, value in made.figures.items()},
                "findings": [finding.as_dict() for finding in made.findings],
            }
        )
        return
    rows = [(file, f"{len(content):,} bytes") for file, content in made.files.items()]
    rows += [(key, f"{value:,}") for key, value in made.figures.items()]
    console().print(tables.table(str(output), ("", ""), rows))
