"""What the commands share: their arguments, how they end, and how they speak."""

from __future__ import annotations

import functools
import glob
import json
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from snncompiler.cli import tables
from snncompiler.cli.options import Shown
from snncompiler.errors import InternalError, SnncError, UsageError
from snncompiler.findings import Finding
from snncompiler.network.data import Preprocess
from snncompiler.pipeline import Progress as Tell

Command = TypeVar("Command", bound=Callable[..., Any])

OUTPUT = "Output"
Model = Annotated[Path, typer.Argument(help="The trained network, an .onnx file.")]
Snn = Annotated[Path, typer.Argument(help="A file that snnc compile wrote.")]
Threads = Annotated[int | None, typer.Option(help="Number of onnxruntime threads.")]
Steps = Annotated[
    int | None, typer.Option("--steps", "-T", help="Time-steps. Default: the file's.")
]
#: `--layout`, `--scale` and so on, as one object.
How = Annotated[Preprocess, Shown("Images and arrays")]
SkipDamaged = Annotated[
    bool,
    typer.Option(
        "--skip-damaged",
        help="Leave out images that cannot be read; they are named and counted.",
        rich_help_panel="Images and arrays",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON to standard output.", rich_help_panel=OUTPUT)
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress, no notes.", rich_help_panel=OUTPUT)
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.", rich_help_panel=OUTPUT)]


def files_of(patterns: Sequence[str]) -> list[Path]:
    """The files that patterns stand for, and names as they are.  Raises UsageError for a pattern that
    none matches."""
    found: list[Path] = []
    for pattern in patterns:
        matching = [pattern] if os.path.lexists(pattern) else sorted(glob.glob(pattern))
        if not matching and glob.has_magic(pattern):
            raise UsageError(f"nothing is called {pattern}", code="SNNC312")
        found += [Path(one) for one in matching or [pattern]]
    return found


def console(*, stderr: bool = False) -> Console:
    """A console that does not fold its tables to 80 columns where there is no terminal."""
    found = Console(stderr=stderr)
    return found if found.is_terminal else Console(stderr=stderr, width=160)


def guarded(command: Command) -> Command:
    """Turn every exception into messages on standard error (or JSON) and the right exit code."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except SnncError as error:
            _fail(error, options)
        except KeyboardInterrupt:
            console(stderr=True).print("interrupted")
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
        print_json(
            {
                "exit_code": error.exit_code,
                "findings": [finding.as_dict() for finding in error.findings],
            }
        )
    tables.print_findings(console(stderr=True), error.findings)
    raise typer.Exit(error.exit_code)


def print_json(content: Any) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=True))


def tell_findings(findings: list[Finding], quiet: bool) -> None:
    shown = [finding for finding in findings if not quiet or finding.severity != "note"]
    tables.print_findings(console(stderr=True), shown)


@contextmanager
def progress(quiet: bool) -> Iterator[Tell | None]:
    """A progress bar on standard error, where that is a terminal."""
    shown = Console(stderr=True)
    if quiet or not shown.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=shown, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def tell(text: str, done: int, of: int) -> None:
            if text not in tasks:
                tasks[text] = bars.add_task(text, total=of)
            bars.update(tasks[text], completed=done, total=of)

        yield tell
