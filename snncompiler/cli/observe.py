"""`snnc observe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snncompiler.analysis.parts import ALL, Shard
from snncompiler.cli.common import (
    Debug,
    How,
    Json,
    Model,
    Quiet,
    SkipDamaged,
    print_json,
    progress,
    tell_findings,
)
from snncompiler.cli.options import Shown
from snncompiler.emission.save import check_writable
from snncompiler.findings import Finding
from snncompiler.ir.settings import Options
from snncompiler.network.data import left_out
from snncompiler.pipeline import observed

#: The options that change the network whose activations are observed.
_CHANGING = (
    "steps", "timing", "coding", "paper", "strict", "allow_analog", "maxpool", "pure", "weights",
    "input_type",
)  # fmt: skip


def observe(
    model: Model,
    calibration: Annotated[Path, typer.Option(help="Samples, as many as there are.")],
    out: Annotated[Path, typer.Option(help="The statistics to write, a .json.")],
    how: How,
    options: Annotated[Options, Shown(only=_CHANGING)],
    shard: Annotated[
        str | None,
        typer.Option(
            help="Observe one of n equal shards of the data, i/n; snnc compile --statistics takes "
            "all parts."
        ),
    ] = None,
    skip_damaged: SkipDamaged = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Gather what the network's rectifiers do on data of any size, for snnc compile --statistics."""
    mine = ALL if shard is None else Shard.parse(shard)
    check_writable(out, (model, calibration))
    with progress(quiet) as tell:
        part = observed(model, options, calibration, mine, how, tell, skip_damaged=skip_damaged)
    part.save(out)
    seen = part.tally
    findings = [Finding(**finding) for finding in part.about["findings"]]
    findings += left_out(seen.damaged)
    if as_json:
        told = {"output": str(out), "shard": str(mine), "samples": seen.samples}
        layers = list(seen.histograms)
        print_json({**told, "layers": layers, "findings": [one.as_dict() for one in findings]})
        return
    tell_findings(findings, quiet)
    print(f"{out}: shard {mine}, {seen.samples:,} samples, {len(seen.histograms)} layers")
