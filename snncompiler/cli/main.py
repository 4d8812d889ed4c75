"""The command line: `snnc check | compile | run | eval | verify | trace | info | doctor`.

Results go to standard output, everything else to standard error.  Exit codes: 0 done, 1 the model or
the data is refused, 2 wrong usage, 3 something is missing in the environment, 4 our own fault,
130 interrupted.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from snncompiler.analysis.constraints import constraints
from snncompiler.analysis.count import macs_of, thresholds_of
from snncompiler.analysis.diagnose import Diagnosis
from snncompiler.analysis.evaluate import BATCH, Evaluation, evaluate
from snncompiler.analysis.trace import NEURONS, SAMPLES, trace
from snncompiler.analysis.verify import Verification, verify
from snncompiler.cli import tables as report
from snncompiler.cli.plots import check_plot, plot_trace
from snncompiler.emission.compiled import CompiledFile, read_compiled
from snncompiler.emission.emit import rehearse
from snncompiler.emission.save import check_writable, save, write_atomically
from snncompiler.errors import EnvironmentMissing, InternalError, SnncError, UsageError
from snncompiler.findings import Finding, printable
from snncompiler.ir.settings import DEFAULT_STEPS, MAX_STEPS, Options
from snncompiler.network.batching import Gathered, batches, filled
from snncompiler.network.checks import check_batch, check_folds, check_source, measure_folds
from snncompiler.network.data import Preprocess, load_data
from snncompiler.network.prepare import prepare
from snncompiler.network.prepared import synthetic_feeds
from snncompiler.pipeline import CALIBRATION_SAMPLES, compile_model
from snncompiler.pipeline import Progress as Tell
from snncompiler.runtime import create_session, doctor
from snncompiler.version import __version__

app = typer.Typer(
    help="Compile trained ReLU networks in ONNX into spiking networks that onnxruntime runs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Command = TypeVar("Command", bound=Callable[..., Any])


def _console(*, stderr: bool = False) -> Console:
    """A console that does not fold its tables to 80 columns where there is no terminal."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=160)


def guarded(command: Command) -> Command:
    """Turn every exception into messages on standard error (or JSON) and the right exit code."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except SnncError as error:
            _fail(error, options)
        except KeyboardInterrupt:
            _console(stderr=True).print("interrupted")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            raise typer.Exit(0) from None
        except typer.Exit:
            raise
        except Exception as error:
            if options.get("debug"):
                traceback.print_exc()
            wrapped = InternalError(
                f"{type(error).__name__}: {error}",
                hint="please report it with the model; --debug shows where",
            )
            _fail(wrapped, {**options, "debug": False})

    return run  # type: ignore[return-value]


def _fail(error: SnncError, options: dict[str, Any]) -> None:
    if options.get("debug"):
        traceback.print_exc()
    if options.get("as_json"):
        _print_json(
            {
                "exit_code": error.exit_code,
                "findings": [finding.as_dict() for finding in error.findings],
            }
        )
    report.print_findings(_console(stderr=True), error.findings)
    raise typer.Exit(error.exit_code)


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=True))


def _tell_findings(findings: list[Finding], quiet: bool) -> None:
    shown = [f for f in findings if not quiet or f.severity != "note"]
    report.print_findings(_console(stderr=True), shown)


@contextmanager
def _progress(quiet: bool) -> Iterator[Tell | None]:
    """A progress bar on standard error, where that is a terminal."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def tell(text: str, done: int, of: int) -> None:
            if text not in tasks:
                tasks[text] = bars.add_task(text, total=of)
            bars.update(tasks[text], completed=done, total=of)

        yield tell


# --- options that several commands share ---


class TaskName(str, Enum):
    auto = "auto"
    classification = "classification"
    regression = "regression"


class Threshold(str, Enum):
    auto = "auto"
    max = "max"
    percentile = "percentile"
    mmse = "mmse"
    balance = "balance"
    vin_max = "vin-max"


class CorrectionName(str, Enum):
    auto = "auto"
    none = "none"
    schedule = "schedule"
    bias = "bias"
    potential = "potential"


class Unrolling(str, Enum):
    fold = "fold"
    loop = "loop"
    steps = "steps"


class Reset(str, Enum):
    soft = "soft"
    hard = "hard"


class Encoding(str, Enum):
    auto = "auto"
    constant = "constant"
    poisson = "poisson"


class MaxPooling(str, Enum):
    exact = "exact"
    average = "average"


class Emission(str, Enum):
    window = "window"
    step = "step"
    cuda_graph = "cuda-graph"


class Precision(str, Enum):
    fp32 = "fp32"
    fp16 = "fp16"


class TargetName(str, Enum):
    portable = "portable"
    cpu = "cpu"


class LayoutName(str, Enum):
    NCHW = "NCHW"
    NHWC = "NHWC"


Model = Annotated[Path, typer.Argument(help="The trained network, an .onnx file.")]
Snn = Annotated[Path, typer.Argument(help="A file that snnc compile wrote.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
AllowAnalog = Annotated[
    bool,
    typer.Option(help="Keep nonlinear operators between spiking layers, exact but not spiking."),
]
Layout = Annotated[
    LayoutName | None,
    typer.Option(help="What the network wants, from images stored as NHWC. Default: by its input."),
]
Scale = Annotated[
    float | None,
    typer.Option(help="Divide pixels by this. Default: 255 for images and uint8 arrays."),
]
Mean = Annotated[str | None, typer.Option(help="Subtract after scaling: M or M,M,M per channel.")]
Std = Annotated[str | None, typer.Option(help="Divide by after that: S or S,S,S per channel.")]
Size = Annotated[str | None, typer.Option(help="Centre crop, HxW.")]
Resize = Annotated[str | None, typer.Option(help="Resize images before the crop, HxW.")]
Bgr = Annotated[bool, typer.Option("--bgr", help="The network wants blue, green, red.")]


def _preprocess(
    layout: LayoutName | None,
    scale: float | None,
    mean: str | None,
    std: str | None,
    size: str | None,
    resize: str | None,
    bgr: bool,
) -> Preprocess:
    if scale is not None and not (scale > 0 and np.isfinite(scale)):
        raise UsageError(f"--scale {scale} is out of range", hint="positive and finite")
    deviations = _numbers("--std", std)
    if deviations is not None and not all(value > 0 for value in deviations):
        raise UsageError(f"--std {std} is out of range", hint="every value is positive")
    return Preprocess(
        layout=None if layout is None else layout.value,
        scale=scale,
        mean=_numbers("--mean", mean),
        std=deviations,
        size=_height_width("--size", size),
        resize=_height_width("--resize", resize),
        bgr=bgr,
    )


def _numbers(option: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"{option} {text} is not a list of numbers", hint="as 0.5,0.5,0.5"
        ) from None
    if not all(np.isfinite(values)):
        raise UsageError(f"{option} {text} is not finite")
    return values


def _height_width(option: str, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"{option} {text} is not HxW", hint="as 224x224")
    return int(parts[0]), int(parts[1])


def _alpha(text: str) -> float | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--alpha {text} is neither a number nor auto") from None


def _steps_list(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise UsageError(f"--steps {text} is not a list of whole numbers", hint="as 8,16,32,64")
    return [int(part) for part in parts]


# --- commands ---


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"snnc {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


@app.command()
@guarded
def check(
    model: Model,
    strict: Annotated[bool, typer.Option(help="The paper's rule: no bias, no batch-norm.")] = False,
    allow_analog: AllowAnalog = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say whether a network can be converted, layer by layer, and what was folded."""
    prepared = prepare(model, strict=strict, allow_analog=allow_analog)
    try:
        feeds = synthetic_feeds(prepared, prepared.samples_of_source, 0)
        check_batch(prepared, 0)
        check_source(prepared, feeds)
        measure_folds(prepared, feeds)
        check_folds(prepared)
    except EnvironmentMissing as missing:
        text = "the batch axis and the folding were not checked numerically"
        prepared.context.note("SNNC503", f"{text}: {missing.findings[0].message}")
    rehearse(prepared, Options(strict=strict, allow_analog=allow_analog))
    content = constraints(prepared)
    if as_json:
        _print_json(content)
        return
    report.print_constraints(_console(), content)
    _tell_findings(prepared.findings, quiet)


@app.command(name="compile")
@guarded
def compile_command(
    model: Model,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Default: <name>.snn.onnx beside the model."),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", "-T", help="Time-steps.")] = DEFAULT_STEPS,
    calibration: Annotated[
        Path | None, typer.Option(help="Real samples: .npz, .npy, folder or zip of images.")
    ] = None,
    samples: Annotated[
        int, typer.Option(help="Calibration samples to draw, 0 for all.")
    ] = CALIBRATION_SAMPLES,
    task: Annotated[
        TaskName, typer.Option(help="What the outputs are; chooses what is left at auto.")
    ] = TaskName.auto,
    threshold: Annotated[
        Threshold,
        typer.Option(help="How θ follows from activations; vin-max: from currents, as the paper."),
    ] = Threshold.auto,
    percentile: Annotated[float, typer.Option(help="For --threshold percentile.")] = 99.9,
    tau: Annotated[float, typer.Option(help="How far --threshold balance goes.")] = 500.0,
    per_channel: Annotated[
        bool | None,
        typer.Option(
            "--per-channel/--per-layer",
            help="One θ per channel or per layer. Default: per channel, with --paper per layer.",
        ),
    ] = None,
    alpha: Annotated[
        str, typer.Option(help="Scale of every θ, the paper's α; auto searches it.")
    ] = "1",
    correction: Annotated[
        CorrectionName,
        typer.Option(help="Charges that correct the running network, found layer by layer."),
    ] = CorrectionName.auto,
    schedule_steps: Annotated[
        int, typer.Option(help="First steps that --correction schedule corrects.")
    ] = 32,
    growth: Annotated[
        str,
        typer.Option(help="How θ grows: none; or factor@step,..., as 1.15@33,1.3@65."),
    ] = "auto",
    readout: Annotated[
        str,
        typer.Option(help="mean; ramp:P, step t weighs t^P; or delay:D. Default: by task, depth."),
    ] = "auto",
    neuron: Annotated[
        str,
        typer.Option(help="binary; burst:G, up to G spikes a step; signed:G, also negative ones."),
    ] = "binary",
    unroll: Annotated[Unrolling, typer.Option(help="How time is unrolled.")] = Unrolling.fold,
    chunk: Annotated[
        int | None, typer.Option(help="Steps per chunk, for fold. Default: by memory.")
    ] = None,
    reset: Annotated[Reset, typer.Option(help="soft keeps the residual potential.")] = Reset.soft,
    initial: Annotated[
        float | None,
        typer.Option(help="Initial membrane potential, in θ. Default: 0.5, with --paper 0."),
    ] = None,
    encode: Annotated[
        Encoding, typer.Option(help="The input as constant current or as signed random spikes.")
    ] = Encoding.auto,
    paper: Annotated[
        bool,
        typer.Option(
            "--paper",
            help="As RMP-SNN has it: --strict, --encode poisson, --threshold vin-max, --per-layer, "
            "--initial 0, no correction; each can be set otherwise.",
        ),
    ] = False,
    strict: Annotated[
        bool | None,
        typer.Option(
            "--strict/--no-strict",
            help="The paper's rule: no bias, no batch-norm. Default: with --paper alone.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="For drawing samples and synthetic input.")] = 0,
    allow_analog: AllowAnalog = False,
    maxpool: Annotated[
        MaxPooling, typer.Option(help="average changes the network, as the paper's have it.")
    ] = MaxPooling.exact,
    emission: Annotated[
        Emission,
        typer.Option(
            "--emit", help="window: all T steps; step: one step, states outside, for streams."
        ),
    ] = Emission.window,
    batch: Annotated[int | None, typer.Option(help="Fixed batch, for --emit cuda-graph.")] = None,
    precision: Annotated[
        Precision, typer.Option(help="fp16: weights and currents in float16, for GPUs.")
    ] = Precision.fp32,
    for_target: Annotated[
        TargetName,
        typer.Option(
            "--target",
            help="portable: for any device; cpu: lowered to event-driven operators in the file.",
        ),
    ] = TargetName.portable,
    layout: Layout = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    size: Size = None,
    resize: Resize = None,
    bgr: Bgr = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compile a trained ReLU network into a spiking one."""
    options = Options(
        steps=steps,
        task=task.value,
        threshold=threshold.value,
        percentile=percentile,
        tau=tau,
        per_channel=per_channel,
        alpha=_alpha(alpha),
        correction=correction.value,
        schedule_steps=schedule_steps,
        growth=growth,
        readout=readout,
        neuron=neuron,
        unroll=unroll.value,
        chunk=chunk,
        reset=reset.value,
        initial=initial,
        encode=encode.value,
        paper=paper,
        strict=strict,
        seed=seed,
        allow_analog=allow_analog,
        maxpool=maxpool.value,
        emit=emission.value,
        batch=batch,
        precision=precision.value,
        target=for_target.value,
    )
    options.check()
    if samples < 0:
        raise UsageError(f"--samples {samples} is out of range", hint="0 for all, or more")
    if calibration is None and samples != CALIBRATION_SAMPLES:
        raise UsageError(
            f"--samples {samples} belongs to --calibration", hint="give --calibration DATA too"
        )
    how = _preprocess(layout, scale, mean, std, size, resize, bgr)
    target = output or model.with_name(model.name.removesuffix(".onnx") + ".snn.onnx")
    check_writable(target, (model, *([calibration] if calibration else [])))
    with _progress(quiet) as tell:
        result = compile_model(model, options, calibration, how, samples or None, tell)
    save(result.model, target)
    written = read_compiled(result.model)
    content = {
        "output": str(target),
        "bytes": target.stat().st_size,
        **_described(written),
        "findings": [finding.as_dict() for finding in result.prepared.findings],
    }
    if as_json:
        _print_json(content)
        return
    _tell_findings(result.prepared.findings, quiet)
    print(
        f"{target}: {len(content['layers'])} spiking layers, T = {content['steps']}, "
        f"{content['unroll'] if content['emit'] == 'window' else content['emit']}, "
        f"{content['bytes']:,} bytes"
    )
    if written.options.target == "cpu":
        rows = [(note.name, report.by_events(note)) for note in written.lowered]
        _console().print(report.table("Layers on the CPU", ("layer", "by events"), rows))


def _described(compiled: CompiledFile) -> dict[str, Any]:
    """What `snnc compile` and `snnc info` tell of a compiled file.  Of a lowered one, also what became
    of every layer."""
    meta, options, calibration = compiled.metadata, compiled.options, compiled.calibration
    layers = report.thresholds_summary(calibration)
    notes = {note.name: note for note in compiled.lowered}
    for layer in layers if notes else []:
        layer.update(report.operator_of(notes.get(layer["layer"])))
    return {
        "version": meta["snnc.version"],
        "source": meta["snnc.source"],
        "source_sha256": meta["snnc.source_sha256"],
        "inputs": [{"name": spec.name, "shape": spec.dims} for spec in compiled.inputs],
        "outputs": compiled.outputs,
        "task": options.task,
        "emit": options.emit,
        "precision": options.precision,
        "target": options.target,
        "states": len(compiled.states) or None,
        "opset": next(o.version for o in compiled.model.opset_import if o.domain == ""),
        "steps": options.steps,
        "steps_input": meta["snnc.steps_input"] or None,
        "unroll": options.unroll,
        "chunk": int(meta["snnc.chunk"]) if meta["snnc.chunk_input"] else None,
        "chunk_input": meta["snnc.chunk_input"] or None,
        "encode": options.encode,
        "maxpool": options.maxpool,
        "neuron": options.neuron,
        "reset": options.reset,
        "initial": options.initial,
        "threshold": calibration.method,
        "percentile": calibration.percentile if calibration.method == "percentile" else None,
        "tau": calibration.tau if calibration.method == "balance" else None,
        "per_channel": calibration.per_channel,
        "alpha": calibration.alpha,
        "growth": calibration.growth,
        "correction": calibration.correction,
        "readout": options.readout,
        "calibrated_on": calibration.source,
        "calibration_samples": calibration.samples,
        "seed": calibration.seed,
        "layers": layers,
    }


@app.command()
@guarded
def run(
    snn: Snn,
    data: Annotated[Path, typer.Option("--input", help="Samples: .npz, .npy, folder or zip.")],
    steps: Annotated[int | None, typer.Option("--steps", "-T", help="Default: the file's.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write an .npz.")] = None,
    threads: Annotated[int | None, typer.Option(help="onnxruntime threads.")] = None,
    layout: Layout = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    size: Size = None,
    resize: Resize = None,
    bgr: Bgr = False,
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
    how = _preprocess(layout, scale, mean, std, size, resize, bgr)
    dataset = load_data(data, compiled.inputs, how)
    _tell_findings(list(dataset.findings), quiet)
    session = create_session(compiled.model, threads=threads)
    axes = compiled.output_axes
    gathered = {name: Gathered(axis) for name, axis in axes.items()}
    parts = batches(len(dataset), compiled.batch_size(BATCH, dataset.feeds))
    with _progress(quiet) as tell:
        for number, part in enumerate(parts):
            feeds = filled(dataset.feeds, part, compiled.fixed_batch)
            count, batch = part.stop - part.start, len(next(iter(feeds.values())))
            values = session.run(list(axes), {**feeds, **asked})
            for one, value in zip(gathered.values(), values, strict=True):
                one.add(value, count, batch)
            if tell:
                tell("running", number + 1, len(parts))
    results: dict[str, Any] = {}
    for name, one in gathered.items():
        results |= one.named(name)
    if output is not None:
        write_atomically(output, lambda file: np.savez(file, **results))
        print(output)
    elif as_json:
        _print_json({name: array.tolist() for name, array in results.items()})
    else:
        for name, array in results.items():
            print(f"{printable(name)} {list(array.shape)} {array.dtype}")
            with np.printoptions(precision=5, suppress=True, threshold=50, linewidth=120):
                print(array)


@app.command(name="eval")
@guarded
def eval_command(
    model: Model,
    snn: Snn,
    data: Annotated[Path, typer.Option(help="Samples, with labels where there are any.")],
    steps: Annotated[
        str | None,
        typer.Option(
            help="Time-steps to evaluate at, all in one run, as 8,16,32. Default: the file's."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use the first samples only.")] = None,
    diagnose: Annotated[
        bool, typer.Option("--diagnose", help="Split the error of every layer; name the worst.")
    ] = False,
    predictions: Annotated[
        bool,
        typer.Option("--predictions", help="With --json: the predicted class of every sample."),
    ] = False,
    threads: Annotated[int | None, typer.Option(help="onnxruntime threads.")] = None,
    layout: Layout = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    size: Size = None,
    resize: Resize = None,
    bgr: Bgr = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Accuracy against time-steps beside the ANN's, the activity of every layer, its synaptic
    operations, and its errors."""
    if predictions and not as_json:
        raise UsageError("--predictions belongs to --json")
    how = _preprocess(layout, scale, mean, std, size, resize, bgr)
    with _progress(quiet) as tell:
        result = evaluate(
            model,
            snn,
            data,
            steps=_steps_list(steps),
            limit=limit,
            diagnose=diagnose,
            preprocess=how,
            threads=threads,
            progress=tell,
        )
    if as_json:
        _print_json(result.as_dict(predictions=predictions))
        return
    _tell_findings(list(result.findings), quiet)
    _print_evaluation(_console(), result)


def _count(number: float) -> str:
    return f"{round(number):,}"


def _print_evaluation(console: Console, result: Evaluation) -> None:
    def share(value: float | None) -> str:
        return "-" if value is None else report.percent(value)

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    diagnosed = result.results[-1].diagnosis is not None
    rows: list[tuple[object, ...]] = []
    if result.ann_accuracy is not None:
        empty = "-" * (8 if diagnosed else 7)
        rows.append(("ANN", share(result.ann_accuracy), *empty))
    for step in result.results:
        drop = interval = "-"
        if step.drop is not None and step.drop_interval is not None:
            drop = f"{100 * step.drop:.2f}"
            interval = "{:.2f} to {:.2f}".format(*(100 * end for end in step.drop_interval))
        row = (f"T = {step.steps}", share(step.accuracy), drop, interval, share(step.agreement))
        total = step.all_synops
        seen = (number(step.relative_error), f"{step.firing_rate:.4f}")
        rows.append((*row, *seen, _count(total.done), share(total.share)))
        if step.diagnosis is not None:
            levels = step.diagnosis.quantised
            better = levels.agreement if levels.accuracy is None else levels.accuracy
            rows[-1] = (
                *rows[-1],
                number(levels.relative_error) if better is None else share(better),
            )
    titles = ["steps", "top-1", "drop", "95 %", "agreement", "relative error", "firing rate"]
    titles += ["SynOps a sample", "of dense"]
    if diagnosed:
        titles.append("quantised ANN")
    console.print(report.table(f"{result.samples:,} samples", titles, rows))
    macs = result.macs
    console.print(
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
        layers.append((name, *rates, *arrived, report.by_events(notes.get(name))))
    columns = (
        "layer", "firing rate", "saturated", "silent", "SynOps a sample", "of dense", "by events"
    )  # fmt: skip
    console.print(report.table(f"Layers at T = {last.steps}", columns, layers))
    for step in result.results:
        if step.diagnosis is not None:
            _print_diagnosis(console, step.steps, step.diagnosis)


def _print_diagnosis(console: Console, steps: int, diagnosis: Diagnosis) -> None:
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
    console.print(
        report.table(f"Errors at T = {steps}, relative to the ANN's activations", columns, rows)
    )
    worst = diagnosis.blame
    console.print(
        f"most is added by {printable(worst.layer)}: {worst.own:.4f}, mainly {worst.part}"
        + ("; inherited holds the charge of the schedule" * diagnosis.layers[0].charged),
        highlight=False,
        markup=False,
    )


@app.command(name="verify")
@guarded
def verify_command(
    model: Model,
    snn: Snn,
    data: Annotated[Path | None, typer.Option(help="Samples to run. Default: synthetic.")] = None,
    layout: Layout = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    size: Size = None,
    resize: Resize = None,
    bgr: Bgr = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Check a compiled network: every way to unroll it, and the soft-reset identity of every neuron."""
    how = _preprocess(layout, scale, mean, std, size, resize, bgr)
    with _progress(quiet) as tell:
        result = verify(model, snn, data=data, preprocess=how, progress=tell)
    if as_json:
        _print_json(result.as_dict())
    else:
        _print_verification(_console(), result)
    failed = [f"{check.name}: {check.detail}" for check in result.checks if not check.passed]
    if failed:
        report.print_findings(_console(stderr=True), [Finding("SNNC403", text) for text in failed])
        raise typer.Exit(1)


def _print_verification(console: Console, result: Verification) -> None:
    rows = [
        (check.name, "passed" if check.passed else "FAILED", check.detail)
        for check in result.checks
    ]
    console.print(report.table("Checks", ("check", "result", "seen"), rows))
    if result.layers:
        identity: list[tuple[object, ...]] = [
            (
                layer.layer,
                f"{layer.deviation:.3g}",
                f"{layer.bound:.3g}",
                f"{layer.membrane_max:.4g}",
                report.percent(layer.above),
                report.percent(layer.below),
            )
            for layer in result.layers
        ]
        title = "Soft-reset identity: θ·mean(s) = mean(x + b) - (v(T) - v(0))/T"
        columns = ("layer", "deviation", "bound", "max |v|", "v(T) > θ", "v(T) < 0")
        console.print(report.table(title, columns, identity))


@app.command(name="trace")
@guarded
def trace_command(
    snn: Snn,
    data: Annotated[Path, typer.Option(help="Samples; the first are recorded.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .npz to write.")],
    steps: Annotated[int | None, typer.Option("--steps", "-T", help="Default: the file's.")] = None,
    samples: Annotated[int, typer.Option(help="How many samples.")] = SAMPLES,
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
    seed: Annotated[int, typer.Option(help="For drawing neurons.")] = 0,
    threads: Annotated[int | None, typer.Option(help="onnxruntime threads.")] = None,
    layout: Layout = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    size: Size = None,
    resize: Resize = None,
    bgr: Bgr = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Record spikes and membranes of single neurons, step by step, and plot them."""
    how = _preprocess(layout, scale, mean, std, size, resize, bgr)
    if seed < 0:
        raise UsageError(f"--seed {seed} is out of range", hint="0 or more")
    sources = (snn, data, *([ann] if ann else []))
    check_writable(output, sources)
    if plot is not None:
        check_writable(plot, (*sources, output))
        check_plot(plot)
        if plot.resolve() == output.resolve():
            raise UsageError("--plot and --output are the same file")
    with _progress(quiet) as tell:
        recorded = trace(
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
        _print_json(content)
        return
    _tell_findings(list(recorded.findings), quiet)
    where = f"{output}, {plot}" if plot else str(output)
    print(
        f"{where}: {len(recorded.layers)} layers, {recorded.samples} samples, T = {recorded.steps}"
    )


@app.command()
@guarded
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
    """Tell what a compiled file is: its source, time-steps, thresholds, multiply-accumulates, and which
    layers run by events on the CPU."""
    if to_csv is not None and not thresholds:
        raise UsageError("--csv belongs to --thresholds")
    if to_csv is not None:
        check_writable(to_csv, (snn,))
    compiled = read_compiled(snn)
    if thresholds:
        _tell_thresholds(compiled, to_csv, as_json)
        return
    content = _described(compiled)
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
    for layer in content["layers"]:
        note = notes.get(layer["layer"])
        layer.update(report.operator_of(note))
        layer["macs_a_step"] = None if macs is None else macs.layers.get(layer["layer"], 0)
    if as_json:
        _print_json(content)
        return
    _tell_findings(findings, quiet=False)
    console = _console()
    rows = [
        (key.replace("_", " "), _flat(value))
        for key, value in content.items()
        if key not in ("layers", "findings")
    ]
    console.print(report.table(str(snn), ("", ""), rows))
    layers = [
        (
            *(layer[key] for key in ("layer", "thresholds", "smallest", "largest")),
            None if layer["macs_a_step"] is None else f"{layer['macs_a_step']:,}",
            report.by_events(notes.get(layer["layer"])),
        )
        for layer in content["layers"]
    ]
    columns = ("layer", "θ", "smallest", "largest", "MACs a step", "by events on the CPU")
    console.print(report.table("Layers", columns, layers))


def _tell_thresholds(compiled: CompiledFile, to_csv: Path | None, as_json: bool) -> None:
    rows = thresholds_of(compiled)
    if to_csv is not None:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(to_csv, lambda file: file.write(text.getvalue().encode()))
    if as_json:
        _print_json({"thresholds": rows})
    elif to_csv is not None:
        print(f"{to_csv}: {len(rows):,} thresholds")
    else:
        titles = [key.replace("_", " ") for key in rows[0]]
        table = report.table("Thresholds", titles, [tuple(row.values()) for row in rows])
        _console().print(table)


@app.command(name="doctor")
@guarded
def doctor_command(as_json: Json = False, debug: Debug = False) -> None:
    """Tell what is installed, which native kernels run, and what is missing."""
    content = doctor()
    if as_json:
        _print_json(content)
        return
    console = _console()
    rows = [(name, version or "missing") for name, version in content["versions"].items()]
    rows += [
        ("machine", content["machine"]),
        ("instruction set of CPU kernels", content["isa"] or "-"),
    ]
    for part in ("library", "cuda", "compilers"):
        for key, value in content[part].items():
            items = value.items() if isinstance(value, dict) else [("", value)]
            rows += [(f"{part}: {key} {inner}".strip(), _flat(entry)) for inner, entry in items]
    console.print(report.table("snnc doctor", ("", ""), rows))
    for entry in content["missing"]:
        console.print(f"missing: {entry['what']}: {entry['remedy']}", highlight=False, markup=False)


def _flat(value: object) -> object:
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {inner:,}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(
            f"{v['name']} {v['shape']}" if isinstance(v, dict) else str(v) for v in value
        )
    return "-" if value is None else str(value)


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
