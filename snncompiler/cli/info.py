"""`snnc info`."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated

import typer

from snncompiler.analysis.count import macs_of, thresholds_of
from snncompiler.cli import tables
from snncompiler.cli.common import Debug, Json, Snn, console, print_json, tell_findings
from snncompiler.emission.compiled import CompiledFile, read_compiled
from snncompiler.emission.save import check_writable, write_atomically
from snncompiler.errors import SnncError, UsageError
from snncompiler.findings import Finding

#: What is corrected in layered time, in its order (`calibration/levels`), with what a table calls it.
_PARTS = {
    "threshold": "θ alone",
    "bias": "and biases",
    "weights": "and weights",
    "rounding": "rounded, with few bits",
}


def info(
    snn: Snn,
    thresholds: Annotated[
        bool, typer.Option("--thresholds", help="The threshold of every layer and channel.")
    ] = False,
    to_csv: Annotated[
        Path | None, typer.Option("--csv", help="With --thresholds: write them as CSV.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a compiled file is: its source, time-steps, thresholds, multiply-accumulates, and which
    layers run by events on the CPU."""
    if to_csv is not None and not thresholds:
        raise UsageError("--csv belongs to --thresholds")
    if to_csv is not None:
        check_writable(to_csv, (snn,))
    compiled = read_compiled(snn)
    if thresholds:
        _tell_thresholds(compiled, to_csv, as_json)
        return
    content = tables.described(compiled)
    notes = {note.name: note for note in compiled.events}
    findings: list[Finding] = []
    macs = None
    try:
        macs = macs_of(compiled)
    except SnncError:
        raise
    except Exception as error:  # onnxruntime's own classes have no common base
        text = f"onnxruntime does not run this file: {str(error).splitlines()[0][:200]}"
        findings.append(Finding("SNNC403", text, severity="warning"))
    content["findings"] = [finding.as_dict() for finding in findings]
    content["macs"] = None if macs is None else macs.as_dict()
    content["reads"] = compiled.reads
    if compiled.calibration.report:
        content["corrections"] = compiled.calibration.report
    for layer in content["layers"]:
        note = notes.get(layer["layer"])
        layer.update(tables.operator_of(note))
        layer["macs_a_step"] = None if macs is None else macs.layers.get(layer["layer"], 0)
    if as_json:
        print_json(content)
        return
    tell_findings(findings, quiet=False)
    shown = console()
    rows = [
        (key.replace("_", " "), tables.flat(value))
        for key, value in content.items()
        if key not in ("layers", "findings", "reads", "corrections")
    ]
    shown.print(tables.table(str(snn), ("", ""), rows))
    layers = [
        (
            *(layer[key] for key in ("layer", "thresholds", "smallest", "largest")),
            None if layer["macs_a_step"] is None else f"{layer['macs_a_step']:,}",
            tables.by_events(notes.get(layer["layer"])),
        )
        for layer in content["layers"]
    ]
    columns = ("layer", "θ", "smallest", "largest", "MACs a step", "by events on the CPU")
    shown.print(tables.table("Layers", columns, layers))
    if compiled.calibration.report:
        report = compiled.calibration.report
        shown_parts = [part for part in _PARTS if any(part in left for left in report.values())]
        parts = [(name, *map(left.get, shown_parts)) for name, left in report.items()]
        title = (
            "Squared error of what layers send, over the ANN's squared activations, in calibration"
        )
        shown.print(tables.table(title, ("layer", *map(_PARTS.__getitem__, shown_parts)), parts))
    codes = [
        (layer["layer"], tables.coded(layer["codes"]))
        for layer in content["layers"]
        if layer.get("codes")
    ]
    if codes:
        title = "Activations that are no rectifiers, computed on complete values"
        shown.print(tables.table(title, ("layer", "its spikes carry"), codes))
    reads = list(content["reads"].items())
    shown.print(tables.table("What weights read", ("weights of", "reads"), reads))
    if compiled.grid.layers:
        shown.print(tables.grid_table(content["layers"]))


def _tell_thresholds(compiled: CompiledFile, to_csv: Path | None, as_json: bool) -> None:
    rows = thresholds_of(compiled)
    if to_csv is not None:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(to_csv, lambda file: file.write(text.getvalue().encode()))
    if as_json:
        print_json({"thresholds": rows})
    elif to_csv is not None:
        print(f"{to_csv}: {len(rows):,} thresholds")
    else:
        titles = [key.replace("_", " ") for key in rows[0]]
        table = tables.table("Thresholds", titles, [tuple(row.values()) for row in rows])
        console().print(table)
