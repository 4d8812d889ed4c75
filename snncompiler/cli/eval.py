"""`snnc eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from snncompiler.analysis.diagnose import Diagnosis
from snncompiler.analysis.evaluate import evaluate_part
from snncompiler.analysis.evaluation import Evaluation
from snncompiler.analysis.parts import ALL, Shard, put_together
from snncompiler.cli import tables
from snncompiler.cli.common import (
    Debug,
    How,
    Json,
    Model,
    Quiet,
    SkipDamaged,
    Snn,
    Threads,
    console,
    print_json,
    progress,
    tell_findings,
)
from snncompiler.emission.save import check_writable
from snncompiler.errors import UsageError
from snncompiler.findings import Finding, printable
from snncompiler.network.data import left_out

Predictions = Annotated[
    bool,
    typer.Option("--predictions", help="With --json: the predicted class of every sample."),
]


def _steps_list(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise UsageError(f"--steps {text} is not a list of whole numbers", hint="as 8,16,32,64")
    return [int(part) for part in parts]


def eval(
    model: Model,
    snn: Snn,
    data: Annotated[Path, typer.Option(help="Samples, with labels where there are any.")],
    how: How,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="A csv with name and class of every image. Default: classes stored beside the "
            "images, or by their names.",
            rich_help_panel="Images and arrays",
        ),
    ] = None,
    skip_damaged: SkipDamaged = False,
    steps: Annotated[
        str | None,
        typer.Option(
            help="Time-steps to evaluate at, all in one run, as 8,16,32. Default: the file's."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="How many of the first samples to use. Default: all.")
    ] = None,
    diagnose: Annotated[
        bool, typer.Option("--diagnose", help="Split the error of every layer; name the worst.")
    ] = False,
    predictions: Predictions = False,
    shard: Annotated[
        str | None,
        typer.Option(
            help="Evaluate one of n equal shards of the data, i/n, and write it to --out; "
            "snnc merge puts the parts together.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="With --shard: the part to write, a .json.")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare a compiled network with its source: accuracy against time-steps, and the activity, the
    synaptic operations and the errors of every layer."""
    check_predictions(predictions, as_json)
    if (shard is None) != (out is None):
        raise UsageError("--shard and --out belong together")
    if shard is not None and predictions:
        raise UsageError("--predictions belongs to snnc merge, where there is --shard")
    mine = ALL if shard is None else Shard.parse(shard)
    if out is not None:
        check_writable(out, (model, snn, data))
    with progress(quiet) as tell:
        part = evaluate_part(
            model,
            snn,
            data,
            mine,
            steps=_steps_list(steps),
            limit=limit,
            diagnose=diagnose,
            preprocess=how,
            labels=labels,
            skip_damaged=skip_damaged,
            threads=threads,
            progress=tell,
        )
    if out is None:
        show_evaluation(put_together(part), predictions, as_json, quiet)
        return
    part.save(out)
    findings = [Finding(**finding) for finding in part.about["findings"]]
    findings += left_out(part.tally.damaged)
    if as_json:
        told = {"output": str(out), "shard": shard, "samples": part.tally.samples}
        print_json({**told, "findings": [finding.as_dict() for finding in findings]})
        return
    tell_findings(findings, quiet)
    print(f"{out}: shard {shard}, {part.tally.samples:,} samples")


def check_predictions(predictions: bool, as_json: bool) -> None:
    if predictions and not as_json:
        raise UsageError("--predictions belongs to --json")


def show_evaluation(result: Evaluation, predictions: bool, as_json: bool, quiet: bool) -> None:
    """Print an evaluation as tables or as JSON."""
    if as_json:
        print_json(result.as_dict(predictions=predictions))
        return
    tell_findings(list(result.findings), quiet)
    _print_evaluation(console(), result)


def _count(number: float) -> str:
    return f"{round(number):,}"


def _print_evaluation(shown: Console, result: Evaluation) -> None:
    def share(value: float | None) -> str:
        return "-" if value is None else tables.percent(value)

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    diagnosed = result.results[-1].diagnosis is not None
    # Where the answer comes after T steps, as the next one does, there is nothing to say.
    late = any(step.latency != step.steps for step in result.results)
    rows: list[tuple[object, ...]] = []
    if result.ann_accuracy is not None:
        empty = "-" * (8 + diagnosed + late)
        rows.append(("ANN", share(result.ann_accuracy), *empty))
    for step in result.results:
        drop = interval = "-"
        if step.drop is not None and step.drop_interval is not None:
            drop = f"{100 * step.drop:.2f}"
            interval = "{:.2f} to {:.2f}".format(*(100 * end for end in step.drop_interval))
        row = (f"T = {step.steps}", share(step.accuracy), drop, interval, share(step.agreement))
        total = step.all_synops
        seen = (number(step.relative_error), f"{step.firing_rate:.4f}", _count(step.spikes))
        rows.append((*row, *seen, _count(total.done), share(total.share)))
        if late:
            rows[-1] = (*rows[-1], step.latency)
        if step.diagnosis is not None:
            levels = step.diagnosis.quantised
            better = levels.agreement if levels.accuracy is None else levels.accuracy
            rows[-1] = (
                *rows[-1],
                number(levels.relative_error) if better is None else share(better),
            )
    titles = ["steps", "top-1", "drop", "95 %", "agreement", "relative error", "firing rate"]
    titles += ["spikes a sample", "SynOps a sample", "of dense"]
    if late:
        titles.append("latency")
    if diagnosed:
        titles.append("quantised ANN")
    shown.print(tables.table(f"{result.samples:,} samples", titles, rows))
    if late:
        shown.print(
            "latency: time-steps from an input to its answer; one answer comes every T steps",
            highlight=False,
        )
    macs = result.macs
    shown.print(
        f"multiply-accumulates a sample: {macs.ann:,} of the ANN; of the SNN {macs.once:,} once, and "
        f"{macs.a_step:,} a step where it is dense",
        highlight=False,
    )
    last = result.results[-1]
    synops = {part.layer: part for part in last.synops}
    notes = {note.name: note for note in result.events}
    activities = {activity.layer: activity for activity in last.layers}
    layers = []
    for name in dict.fromkeys((*activities, *synops)):
        activity, part = activities.get(name), synops.get(name)
        rates = ("-", "-", "-")
        if activity is not None:
            rates = (
                f"{activity.firing_rate:.4f}",
                share(activity.saturated),
                share(activity.silent),
            )
        arrived = (_count(part.done), share(part.share)) if part is not None else ("-", "-")
        layers.append((name, *rates, *arrived, tables.by_events(notes.get(name))))
    columns = (
        "layer", "firing rate", "saturated", "silent", "SynOps a sample", "of dense", "by events"
    )  # fmt: skip
    shown.print(tables.table(f"Layers at T = {last.steps}", columns, layers))
    for step in result.results:
        if step.diagnosis is not None:
            _print_diagnosis(shown, step.steps, step.diagnosis)


def _print_diagnosis(shown: Console, steps: int, diagnosis: Diagnosis) -> None:
    rows = [
        (
            layer.layer,
            *(
                f"{number:.4f}"
                for number in (
                    layer.total,
                    layer.inherited,
                    layer.own,
                    layer.unevenness,
                    layer.rounding,
                    layer.clipping,
                )
            ),
        )
        for layer in diagnosis.layers
    ]
    columns = ("layer", "error", "inherited", "own", "unevenness", "rounding", "clipping")
    shown.print(
        tables.table(f"Errors at T = {steps}, relative to the ANN's activations", columns, rows)
    )
    worst = diagnosis.blame
    shown.print(
        f"most is added by {printable(worst.layer)}: {worst.own:.4f}, mainly {worst.part}"
        + ("; inherited holds the charge of the schedule" * diagnosis.layers[0].charged),
        highlight=False,
        markup=False,
    )
