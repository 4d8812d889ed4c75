"""The command `python -m snncompiler.models`: makes the files of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from .registry import NETWORKS

NAMES = ", ".join(NETWORKS)
OPTIONAL = ("torch", "sklearn")  # what the compiler itself does without

app = typer.Typer(
    help="Train the networks that come with the compiler, and write their data.",
    no_args_is_help=True,
    add_completion=False,
)


@contextmanager
def _optional_packages() -> Iterator[None]:
    """Turn a missing PyTorch or scikit-learn into one line and exit code 3."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in OPTIONAL:
            raise
        typer.echo(
            f"error: {package} is not installed; run: pip install torch scikit-learn", err=True
        )
        raise typer.Exit(3) from None


def _known(name: str) -> str:
    if name not in NETWORKS:
        raise typer.BadParameter(f"no network {name!r}; there are: {NAMES}")
    return name


@app.command()
def train(
    name: Annotated[str, typer.Argument(callback=_known, help=f"One of: {NAMES}.")],
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Folder to write NAME.onnx to.")
    ] = Path("."),
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, batches and shifts.")] = 0,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the data; else as in the recipe.")
    ] = None,
) -> None:
    """Train a network on the CPU and write it as ONNX. Needs PyTorch."""
    with _optional_packages():
        from .train import train_and_export
    typer.echo(train_and_export(name, out, seed, epochs))


@app.command()
def digits(
    out: Annotated[
        Path,
        typer.Option(
            file_okay=False,
            show_default="the folder of this package",
            help="Folder to write both files to.",
        ),
    ] = Path(__file__).parent,
) -> None:
    """Write the training and test part of the digits. Needs scikit-learn."""
    from .data import write_digits

    with _optional_packages():
        files = write_digits(out)
    for file in files:
        typer.echo(f"{file}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    app(prog_name="python -m snncompiler.models")
