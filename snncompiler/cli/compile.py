"""`snnc compile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from snncompiler.cli import tables
from snncompiler.cli.common import (
    Debug,
    How,
    Json,
    Model,
    Quiet,
    SkipDamaged,
    console,
    files_of,
    print_json,
    progress,
    tell_findings,
)
from snncompiler.emission.compiled import read_compiled
from snncompiler.emission.save import check_writable, save
from snncompiler.emission.stages import Stages
from snncompiler.errors import UsageError
from snncompiler.ir.settings import FORM, Options
from snncompiler.pipeline import CALIBRATION_SAMPLES, compile_model


def compile(
    model: Model,
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write. Default: <name>.snn.onnx beside the model, "
            "with --emit counts <name>.counts.onnx.",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Real samples: .npz, .npy, .parquet, folder, zip or tar of images."),
    ] = None,
    samples: Annotated[
        int, typer.Option(help="Calibration samples to draw, 0 for all.")
    ] = CALIBRATION_SAMPLES,
    statistics: Annotated[
        list[str] | None,
        typer.Option(
            help="What snnc observe wrote on more data, all parts: thresholds come from it then. A "
            "file, or a pattern in quotes; may be given several times.",
            metavar="PART",
        ),
    ] = None,
    how: How,
    skip_damaged: SkipDamaged = False,
    options: Options,
    print_after: Annotated[
        list[str] | None,
        typer.Option(
            help="Write the network as it is after this pass, or after all of them, into "
            "<output>.passes.",
            metavar="PASS",
            rich_help_panel=FORM,
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compile a trained ReLU network into a spiking one."""
    options.check()
    if samples < 0:
        raise UsageError(f"--samples {samples} is out of range", hint="0 for all, or more")
    if calibration is None and samples != CALIBRATION_SAMPLES:
        raise UsageError(
            f"--samples {samples} belongs to --calibration", hint="give --calibration DATA too"
        )
    suffix = ".counts.onnx" if options.emit == "counts" else ".snn.onnx"
    target = output or model.with_name(model.name.removesuffix(".onnx") + suffix)
    check_writable(target, (model, *([calibration] if calibration else [])))
    stages = Stages(target.with_name(f"{target.name}.passes"), print_after or ())
    with progress(quiet) as tell:
        result = compile_model(
            model,
            options,
            calibration,
            how,
            samples or None,
            tell,
            stages.of if print_after else None,
            skip_damaged=skip_damaged,
            statistics=files_of(statistics or ()),
        )
    stages.check()
    save(result.model, target)
    made: dict[str, Any] = {"output": str(target), "bytes": target.stat().st_size}
    more = {
        **({"passes": [str(path) for path in stages.written]} if print_after else {}),
        "findings": [finding.as_dict() for finding in result.prepared.findings],
    }
    if options.emit == "counts":  # which is no spiking network
        twin = {entry.key: entry.value for entry in result.model.metadata_props}
        form, steps = twin["snnc.form"], int(twin["snnc.steps"])
        if as_json:
            print_json({**made, "emit": "counts", "form": form, "steps": steps, **more})
            return
        tell_findings(result.prepared.findings, quiet)
        print(f"{target}: {form} of T = {steps}, {made['bytes']:,} bytes")
        if print_after:
            print(f"{stages.folder}: {len(stages.written)} files")
        return
    written = read_compiled(result.model)
    content = {**made, **tables.described(written), **more}
    if as_json:
        print_json(content)
        return
    tell_findings(result.prepared.findings, quiet)
    form = content["unroll"] if content["emit"] == "window" else content["emit"]
    if written.options.layered:
        form = f"layered, {content['coding']}, answer after {content['latency']} steps"
    print(
        f"{target}: {len(content['layers'])} spiking layers, T = {content['steps']}, {form}, "
        f"{content['bytes']:,} bytes"
    )
    if written.grid.layers and not quiet:
        console().print(tables.grid_table(content["layers"]))
    if print_after:
        print(f"{stages.folder}: {len(stages.written)} files")
    if written.options.target == "cpu":
        rows = [(note.name, tables.by_events(note)) for note in written.lowered]
        console().print(tables.table("Layers on the CPU", ("layer", "by events"), rows))
