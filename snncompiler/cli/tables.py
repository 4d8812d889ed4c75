"""What the commands say: plain data for `--json`, and tables for people, from the same values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

from snncompiler.calibration.record import Calibration
from snncompiler.emission.compiled import CompiledFile
from snncompiler.findings import Finding, printable
from snncompiler.ir.option import applying, options_of, written
from snncompiler.ir.settings import Options
from snncompiler.ir.whole import LayerGrid
from snncompiler.passes.lower.lower_events import LayerNote


def thresholds_summary(calibration: Calibration) -> list[dict[str, Any]]:
    """One row a layer: how many thresholds, and the range of θ, what an activation is clipped to; in
    layered time that of L levels."""
    levels = max(calibration.levels, 1)
    return [
        {
            "layer": name,
            "thresholds": int(theta.size),
            "smallest": float(theta.min()) * levels,
            "largest": float(theta.max()) * levels,
        }
        for name, theta in calibration.thresholds.items()
    ]


def operator_of(note: LayerNote | None) -> dict[str, str | None]:
    """The event-driven operator of a layer, or the reason why it has none."""
    if note is None:
        return {"operator": None, "reason": "it is not among the spiking layers of the file"}
    return {"operator": note.operator or None, "reason": note.reason or None}


def whole_numbers(layer: LayerGrid) -> dict[str, Any]:
    """What a layer is in whole numbers; of what is told for each channel the smallest and the
    largest."""
    content = layer.as_dict()
    content["scale"] = [float(f"{end:.6g}") for end in (layer.scale.min(), layer.scale.max())]
    return {"whole_numbers": {key: content[key] for key in content if key != "name"}}


def described(compiled: CompiledFile) -> dict[str, Any]:
    """What `snnc compile` and `snnc info` tell of a compiled file: all its options, None where one
    means nothing beside the others.  Of a lowered one, also what became of every layer."""
    meta, calibration = compiled.metadata, compiled.calibration
    layers = thresholds_summary(calibration)
    notes = {note.name: note for note in compiled.lowered}
    for layer in layers if notes else []:
        layer.update(operator_of(notes.get(layer["layer"])))
    for layer in layers if compiled.coded else []:
        layer["codes"] = compiled.coded.get(layer["layer"])
    for layer in layers if compiled.grid.layers else []:
        layer.update(whole_numbers(compiled.grid.of(layer["layer"])))
    untold = {one.name: one.default for one in options_of(Options) if one.option.untold}
    means = {**untold, **applying(compiled.options)}
    # A stream answers at every step; a pipeline of layers does not.
    open_ended = compiled.options.emit == "step" and not compiled.options.layered
    return {
        "version": meta["snnc.version"],
        "source": meta["snnc.source"],
        "source_sha256": meta["snnc.source_sha256"],
        "inputs": [{"name": spec.name, "shape": spec.dims} for spec in compiled.inputs],
        "outputs": compiled.outputs,
        "states": len(compiled.states) or None,
        "opset": next(o.version for o in compiled.model.opset_import if o.domain == ""),
        **{one.name: written(means.get(one.name)) for one in options_of(Options)},
        "latency": None if open_ended else compiled.latency(compiled.steps),
        "period": None if open_ended else compiled.steps,
        "steps_input": meta["snnc.steps_input"] or None,
        "chunk": int(meta["snnc.chunk"]) if meta["snnc.chunk_input"] else None,
        "chunk_input": meta["snnc.chunk_input"] or None,
        "exact_outputs": compiled.grid.read_out or None,
        "calibrated_on": calibration.source,
        "calibration_samples": calibration.samples,
        "preprocess": compiled.preprocess.flags() or None,
        "seed": calibration.seed,
        "layers": layers,
    }


# --- for people ---

#: What the table of a network in whole numbers tells of a layer, and the titles.
_GRID = {
    "bits": "bits", "largest": "weights to", "coefficient": "residual to", "threshold": "θ",
    "scale": "1 stands for", "bound": "sums to", "reach": "potentials to", "exact_steps": "exact to T",
    "rounding": "rounding",
}  # fmt: skip


def grid_table(layers: Sequence[dict[str, Any]]) -> RenderableType:
    """The layers of a network in whole numbers, as `described` tells them."""
    rows = []
    for layer in layers:
        told = layer["whole_numbers"]
        low, high = told["threshold"]
        told = {**told, "threshold": str(low) if low == high else f"{low} to {high}"}
        least, most = (f"{end:.2g}" for end in (min(told["scale"]), max(told["scale"])))
        told["scale"] = least if least == most else f"{least} to {most}"
        rows.append((layer["layer"], *(told[key] for key in _GRID)))
    return table("Whole numbers", ("layer", *_GRID.values()), rows)


def by_events(note: LayerNote | None) -> str:
    """The event-driven operator of a layer, or `no` and the reason."""
    found = operator_of(note)
    return found["operator"] or f"no: {found['reason']}"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> RenderableType:
    """A table; numbers are right-aligned, names are escaped."""
    made = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[index]) for row in rows)
        made.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        made.add_row(*(_cell(content) for content in row))
    return made


def flat(value: object) -> object:
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {inner:,}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(
            f"{v['name']} {v['shape']}" if isinstance(v, dict) else str(v) for v in value
        )
    return "-" if value is None else str(value)


def _is_number(content: object) -> bool:
    return isinstance(content, (int, float)) or content is None


def _cell(content: object) -> str:
    from rich.markup import escape

    if content is None:
        return "-"
    if isinstance(content, bool):
        return "yes" if content else "no"
    if isinstance(content, float):
        return f"{content:.4g}"
    return escape(printable(str(content)))


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def print_findings(console: Console, findings: Sequence[Finding]) -> None:
    """One line each: those that differ in their node alone together, and every hint once."""
    style = {"error": "bold red", "warning": "yellow", "note": "dim"}
    for finding in summed_up(findings):
        console.print(
            str(finding),
            style=style[finding.severity],
            markup=False,
            highlight=False,
            soft_wrap=not console.is_terminal,
        )


#: So many nodes are named where a finding is of several; of more only the first is.
NAMED = 3


def summed_up(findings: Sequence[Finding]) -> list[Finding]:
    """The findings for people: equal texts about several nodes as one, a hint where it comes first."""
    groups: dict[tuple[str, str, str, str], list[Finding]] = {}
    for finding in dict.fromkeys(findings):
        key = (finding.severity, finding.code, finding.message, finding.hint)
        groups.setdefault(key, []).append(finding)
    told: set[str] = set()
    made = []
    for group in groups.values():
        first = group[0]
        nodes = [finding.node for finding in group]
        where = ", ".join(nodes) if len(nodes) <= NAMED else f"{nodes[0]} and {len(nodes) - 1} more"
        hint = "" if first.hint in told else first.hint
        told.add(first.hint)
        made.append(replace(first, node=where, hint=hint))
    return made


def coded(codes: dict[str, Any] | None) -> str:
    """What spikes stand for where it is no rectifier; empty elsewhere."""
    return f"{codes['function']}, less {codes['offset']:.4g}" if codes else ""


def print_constraints(console: Console, content: dict[str, Any]) -> None:
    rows = [
        (
            layer["name"],
            layer["operator"],
            layer["reads"],
            layer["bias"],
            layer["batch_norm"],
            ", ".join(layer["folded"]) or "-",
            layer["largest_change"],
            layer["relative_change"],
        )
        for layer in content["linear_layers"]
    ]
    titles = ("layer", "operator", "reads", "bias", "batch-norm", "folded", "change", "relative")
    console.print(table("Linear layers", titles, rows))
    rectifiers = [
        (r["name"], coded(r["codes"]) or r["operator"], r["current"], r["upper_bound"])
        for r in content["rectifiers"]
    ]
    columns = ("rectifier", "operator", "current from", "bound")
    console.print(table("Rectifiers", columns, rectifiers))
    if content["pooling"]:
        pooling = [(p["name"], p["operator"], p["phase"]) for p in content["pooling"]]
        console.print(table("Pooling", ("pooling", "operator", "phase"), pooling))
    met = "met" if content["paper_constraints_met"] else "not met; folded and injected instead"
    console.print(f"Paper's constraints (no bias, no batch-norm): {met}", highlight=False)
