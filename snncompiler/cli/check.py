"""`snnc check`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from snncompiler.analysis.constraints import constraints
from snncompiler.cli import tables
from snncompiler.cli.common import (
    Debug,
    Json,
    Model,
    Quiet,
    console,
    print_json,
    tell_findings,
)
from snncompiler.cli.options import Shown
from snncompiler.emission.emit import rehearse
from snncompiler.errors import EnvironmentMissing
from snncompiler.ir.settings import Options
from snncompiler.network.checks import check_batch, check_folds, check_source, measure_folds
from snncompiler.network.prepare import prepare
from snncompiler.network.prepared import synthetic_feeds


def check(
    model: Model,
    options: Annotated[Options, Shown(only=("timing", "allow_analog", "pure"))],
    strict: Annotated[
        bool, typer.Option(help="The paper's constraints: no bias, no batch-norm.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say whether a network can be converted, layer by layer, and what was folded."""
    prepared = prepare(
        model,
        strict=strict,
        allow_analog=options.allow_analog,
        pure=options.pure,
        layered=options.layered,
    )
    try:
        feeds = synthetic_feeds(prepared, prepared.samples_of_source, 0)
        check_batch(prepared, 0)
        check_source(prepared, feeds)
        measure_folds(prepared, feeds)
        check_folds(prepared)
    except EnvironmentMissing as missing:
        text = "the batch axis and the folding were not checked numerically"
        prepared.context.note("SNNC503", f"{text}: {missing.findings[0].message}")
    rehearse(prepared, replace(options, strict=strict))
    content = constraints(prepared)
    if as_json:
        print_json(content)
        return
    tables.print_constraints(console(), content)
    tell_findings(prepared.findings, quiet)
