"""The command `python -m snncompiler.models`: makes the files of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from .registry import ARCHITECTURES, DATASETS, NETWORKS

NAMES = ", ".join([*NETWORKS, *ARCHITECTURES])
ARCHITECTURE_NAMES = ", ".join(ARCHITECTURES)
DATASET_NAMES = ", ".join(DATASETS)
#: What the compiler itself does without, and what to install for it.
OPTIONAL = {"torch": "torch scikit-learn", "sklearn": "torch scikit-learn", "PIL": "pillow"}

app = typer.Typer(
    help="Train the networks that come with the compiler, write their data, and export others.",
    no_args_is_help=True,
    add_completion=False,
)


@contextmanager
def _optional_packages() -> Iterator[None]:
    """Turn a missing PyTorch, scikit-learn or Pillow into one line and exit code 3."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in OPTIONAL:
            raise
        typer.echo(
            f"error: {package} is not installed; run: pip install {OPTIONAL[package]}", err=True
        )
        raise typer.Exit(3) from None


def _known(name: str) -> str:
    if name not in NETWORKS and name not in ARCHITECTURES:
        raise typer.BadParameter(f"no network {name!r}; there are: {NAMES}")
    return name


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what does not fit, or cannot be read or written, into one line and exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


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
    data: Annotated[
        Path | None,
        typer.Option(
            help="Training pictures: a folder or zip file with a folder per class, or CIFAR's "
            "batches (Python or binary) in a folder or tar file. VGG and ResNet only, as all below."
        ),
    ] = None,
    test: Annotated[
        Path | None,
        typer.Option(help="Pictures to measure on; else those in DATA's folder test or val."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help=f"One of: {DATASET_NAMES}; else as DATA looks.")
    ] = None,
    constrained: Annotated[
        bool | None,
        typer.Option(
            "--constrained/--common",
            show_default="constrained",
            help="As the RMP-SNN paper has it (no bias, no batch norm, average pooling, dropout), "
            "or with batch norm, biases and maximum pooling as usual.",
        ),
    ] = None,
    width: Annotated[
        float | None,
        typer.Option(show_default="1.0", help="Factor on channels and hidden features."),
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures per step.")] = None,
    rate: Annotated[float | None, typer.Option(help="Learning rate at its peak.")] = None,
    decay: Annotated[float | None, typer.Option(min=0, help="Weight decay.")] = None,
    dropout: Annotated[
        float | None, typer.Option(help="Part of the classifier's features dropped.")
    ] = None,
    bfloat16: Annotated[
        bool | None,
        typer.Option(
            "--bfloat16/--float32",
            show_default="float32",
            help="Precision of products; weights are float32. bfloat16 is faster where the "
            "processor has it.",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(show_default="auto", help="cpu, cuda or auto.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the CPU; else as PyTorch chooses.")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            show_default="OUT/NAME.pt",
            help="File to write after each epoch what a later --resume needs.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
) -> None:
    """Train a network and write it as ONNX. Needs PyTorch.

    The digit networks bring their data and train on the CPU; VGG and ResNet need --data. The same
    seed, PyTorch, device and number of threads give the same weights, resumed or not.
    """
    given = {
        "data": data,
        "test": test,
        "dataset": dataset,
        "constrained": constrained,
        "width": width,
        "batch": batch,
        "rate": rate,
        "decay": decay,
        "dropout": dropout,
        "bfloat16": bfloat16,
        "device": device,
        "threads": threads,
        "checkpoint": checkpoint,
        "resume": resume or None,
    }
    if name in NETWORKS:
        unused = [f"--{option}" for option, value in given.items() if value is not None]
        if unused:
            raise typer.BadParameter(f"{name} takes no {', '.join(unused)}")
        with _optional_packages():
            from .train import train_and_export
        typer.echo(train_and_export(name, out, seed, epochs))
        return
    if data is None:
        raise typer.BadParameter(f"{name} needs pictures: --data FOLDER_OR_ZIP")
    with _optional_packages(), _refusals():
        import torch

        from . import fit, images

        if threads is not None:
            torch.set_num_threads(threads)
        where = fit.device_called(device or "auto")
        pictures, found = images.load(data, "train", dataset)
        measured = images.load_test(data, test, found, pictures.classes)
        settings = fit.settings_for(
            name,
            pictures,
            found,
            constrained=constrained is not False,
            width=1.0 if width is None else width,
            seed=seed,
            bfloat16=bool(bfloat16),
            epochs=epochs,
            batch=batch,
            peak_rate=rate,
            weight_decay=decay,
            dropout=dropout,
        )
        typer.echo(
            f"{len(pictures)} pictures of {found}, {len(pictures.classes)} classes; "
            f"{'no' if measured is None else len(measured)} test pictures; {where.type}",
            err=True,
        )
        line = fit.train_and_export(
            settings,
            pictures,
            out,
            test=measured,
            device=where,
            checkpoint=checkpoint,
            go_on=resume,
        )
    typer.echo(line)


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
        typer.Option(
            exists=True,
            dir_okay=False,
            help="State dict, written by torch.save, or a checkpoint of train.",
        ),
    ] = None,
) -> None:
    """Write a network of the literature as ONNX, opset 17, any batch size N. Needs PyTorch.

    Without --weights the network is untrained: its weights follow from --seed, and its batch-norm
    statistics from one pass over seeded standard-normal images in training mode, so that
    activations neither vanish nor explode. The same seed gives the same bytes.
    """
    with _optional_packages():
        from .export import build_and_export
    with _refusals():
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
