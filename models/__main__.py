"""The command `python -m snncompiler.models`: makes the files of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from .registry import ARCHITECTURES, NETWORKS

NAMES = ", ".join(NETWORKS)
ARCHITECTURE_NAMES = ", ".join(ARCHITECTURES)
OPTIONAL = ("torch", "sklearn")  # what the compiler itself does without

app = typer.Typer(
    help="Train the networks that come with the compiler, write their data, and export others.",
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


def _architecture(name: str) -> str:
    if name not in ARCHITECTURES:
        raise typer.BadParameter(f"no network {name!r}; there are: {ARCHITECTURE_NAMES}")
    return name


@app.command()
def export(
    name: Annotated[
        str, typer.Argument(callback=_architecture, help=f"One of: {ARCHITECTURE_NAMES}.")
    ],
    out: Annotated[Path, typer.Option(dir_okay=False, help="The ONNX file to write.")],
    constrained: Annotated[
        bool,
        typer.Option(
            "--constrained/--common",
            help="As the RMP-SNN paper has it (no bias, no batch norm, average pooling, dropout in "
            "the classifier), or with batch norm, biases and maximum pooling as usual.",
        ),
    ] = True,
    classes: Annotated[int, typer.Option(min=1, help="Number of logits.")] = 10,
    size: Annotated[
        int, typer.Option(help="Height and width of images: 32 (CIFAR) or 224 (ImageNet stem).")
    ] = 32,
    width: Annotated[float, typer.Option(help="Factor on channels and hidden features.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, without --weights.")] = 0,
    weights: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="State dict, written by torch.save."),
    ] = None,
) -> None:
    """Write a network of the literature as ONNX, opset 17, any batch size N. Needs PyTorch.

    Without --weights the network is untrained: its weights follow from --seed, and its batch-norm
    statistics from one pass over seeded standard-normal images in training mode, so that
    activations neither vanish nor explode. The same seed gives the same bytes.
    """
    with _optional_packages():
        from .export import build_and_export
    try:
        line = build_and_export(
            name,
            out,
            constrained=constrained,
            classes=classes,
            size=size,
            width=width,
            seed=seed,
            weights=weights,
        )
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(line)


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
