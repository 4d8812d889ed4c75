"""Training VGG and ResNet on pictures, measuring them and writing them as ONNX."""

from __future__ import annotations

import dataclasses
import math
import os
import pickle
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional

from . import images, vgg_resnet
from .export import export
from .registry import ARCHITECTURES, DATASETS, PICTURE_RECIPES, PictureRecipe
from .train import shifted

MOMENTUM = 0.9
WARM_UP = 1.0  # epochs in which the rate rises
COOL_DOWN = 0.4  # the part of all epochs in which it falls
SHIFT = 4  # stored training pictures move by up to this many pixels each way
MEASURED_AT_ONCE = 250  # pictures


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the weights; a run resumes only with the same."""

    name: str
    constrained: bool
    width: float
    dataset: str
    classes: tuple[str, ...]
    pictures: int
    seed: int
    bfloat16: bool  # convolutions and linear layers compute in bfloat16, weights stay float32
    recipe: PictureRecipe


@dataclasses.dataclass
class Run:
    """A training run: its network and all that it needs to go on. Made by `start` or `resume`."""

    settings: Settings
    device: torch.device
    network: nn.Module
    optimizer: torch.optim.SGD
    layout: torch.memory_format
    epoch: int = 0  # epochs done


def settings_for(
    name: str,
    pictures: images.Pictures,
    dataset: str,
    *,
    constrained: bool = True,
    width: float = 1.0,
    seed: int = 0,
    bfloat16: bool = False,
    **changes: Any,
) -> Settings:
    """The settings of a run: the recipe in the registry, but for the `changes` that are not None.

    Raises ValueError for what cannot be trained.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"no network {name!r}; there are: {', '.join(ARCHITECTURES)}")
    recipe = dataclasses.replace(
        PICTURE_RECIPES[ARCHITECTURES[name].kind, constrained],
        **{field: value for field, value in changes.items() if value is not None},
    )
    if recipe.epochs < 1 or recipe.batch < 1 or not recipe.peak_rate > 0:
        raise ValueError(
            f"{recipe.epochs} epochs of batches of {recipe.batch} at a rate of {recipe.peak_rate} "
            "teach nothing"
        )
    if len(pictures) < recipe.batch:
        raise ValueError(f"{len(pictures)} pictures do not fill a batch of {recipe.batch}")
    return Settings(
        name=name,
        constrained=constrained,
        width=width,
        dataset=dataset,
        classes=pictures.classes,
        pictures=len(pictures),
        seed=seed,
        bfloat16=bfloat16,
        recipe=recipe,
    )


def device_called(name: str) -> torch.device:
    """The device called cpu or cuda; auto is cuda where there is one. Raises ValueError if none."""
    if name not in ("cpu", "cuda", "auto"):
        raise ValueError(f"no device {name!r}; there are: auto, cpu, cuda")
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ValueError("PyTorch finds no CUDA device")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and there) else "cpu")


def start(settings: Settings, device: torch.device | None = None) -> Run:
    """A run before its first epoch. Sets PyTorch's seed and, on a CPU, its determinism."""
    device = device or torch.device("cpu")
    # Some operators have only one way on CUDA, in which sums have no fixed order.
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    torch.manual_seed(settings.seed)
    recipe = settings.recipe
    network = vgg_resnet.build(
        settings.name,
        constrained=settings.constrained,
        classes=len(settings.classes),
        size=DATASETS[settings.dataset].size,
        width=settings.width,
        dropout=recipe.dropout,
    )
    memory = layout(network)
    network = network.to(device, memory_format=memory)
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=recipe.peak_rate,
        momentum=MOMENTUM,
        nesterov=True,
        weight_decay=recipe.weight_decay,
    )
    return Run(settings, device, network, optimizer, memory)


def layout(network: nn.Module) -> torch.memory_format:
    """How images and weights lie in memory: channels last, the fastest, where that is safe.

    oneDNN 3.12 writes past a buffer when it computes the gradient of a 1x1 convolution with stride
    and fewer than 16 inputs, channels last (uxlfoundation/oneDNN, issue 6035).
    """
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    at_risk = any(
        layer.kernel_size == (1, 1) and layer.stride != (1, 1) and layer.in_channels < 16
        for layer in convolutions
    )
    return torch.contiguous_format if at_risk else torch.channels_last


def save(run: Run, file: Path) -> None:
    """Write a checkpoint. It replaces an older one only once it is complete."""
    rng = {"cpu": torch.get_rng_state()}
    if run.device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state(run.device)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            torch.save(
                {
                    "settings": dataclasses.asdict(run.settings),
                    "epoch": run.epoch,
                    "network": run.network.state_dict(),
                    "optimizer": run.optimizer.state_dict(),
                    "rng": rng,
                },
                stream,
            )
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def resume(settings: Settings, file: Path, device: torch.device | None = None) -> Run:
    """The run whose checkpoint is in `file`: it goes on as if it had never stopped.

    On the same device and number of threads the weights become the same, bit for bit. Only the
    number of epochs may differ, as long as the rate until now is that of a run of so many. Raises
    ValueError where the file holds no checkpoint or one of other settings.
    """
    try:
        stored: Any = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(stored, dict):
            raise TypeError("no dictionary")
        theirs = stored["settings"]
        theirs = Settings(**{**theirs, "recipe": PictureRecipe(**theirs["recipe"])})
        _check_same(settings, theirs, int(stored["epoch"]), file)
        run = start(settings, device)
        run.network.load_state_dict(stored["network"])
        run.optimizer.load_state_dict(stored["optimizer"])
        run.epoch = int(stored["epoch"])
        torch.set_rng_state(stored["rng"]["cpu"])
        if run.device.type == "cuda" and "cuda" in stored["rng"]:
            torch.cuda.set_rng_state(stored["rng"]["cuda"], run.device)
    except (
        OSError,
        RuntimeError,
        TypeError,
        LookupError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file} holds no checkpoint of a training run: {reason}") from error
    return run


def _check_same(ours: Settings, theirs: Settings, epochs: int, file: Path) -> None:
    """Raise ValueError unless the first `epochs` epochs are the same with both settings."""
    same_length = dataclasses.replace(theirs.recipe, epochs=ours.recipe.epochs)
    for name, mine, other in (
        *_differences(ours, dataclasses.replace(theirs, recipe=ours.recipe)),
        *_differences(ours.recipe, same_length),
    ):
        raise ValueError(f"{file} is of a run with other settings: {name} {other}, not {mine}")
    # Past its peak a rate only falls, so the last moment tells whether it has begun to.
    moments = np.linspace(0, epochs, 100 * epochs + 1)
    if any(rate(ours.recipe, at) != rate(theirs.recipe, at) for at in moments):
        raise ValueError(
            f"{file} is of a run of {theirs.recipe.epochs} epochs, and after {epochs} of them it "
            f"is too late to make it one of {ours.recipe.epochs}"
        )


def _differences(ours: Any, theirs: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name and values of the fields in which two dataclasses differ."""
    for field in dataclasses.fields(ours):
        pair = getattr(ours, field.name), getattr(theirs, field.name)
        if pair[0] != pair[1]:
            yield field.name, *pair


def train_epoch(run: Run, pictures: images.Pictures, progress: Progress | None = None) -> float:
    """Train for one pass over `pictures`; return the mean loss of its batches.

    Raises ValueError where the loss is no longer a number.
    """
    recipe = run.settings.recipe
    # A generator of its own for each epoch, so that a resumed run needs no more than its number.
    rng = torch.Generator().manual_seed((run.settings.seed << 20) + run.epoch)
    # Whole batches only: batch normalisation learns badly from a small remainder.
    steps = len(pictures) // recipe.batch
    order = torch.randperm(len(pictures), generator=rng)[: steps * recipe.batch]
    groups = list(order.view(-1, recipe.batch).numpy())
    run.network.train()
    total = torch.zeros((), device=run.device)
    bar = progress.add_task(f"epoch {run.epoch + 1}", total=steps) if progress else None
    for step, (x, chosen) in enumerate(_augmented(run, pictures, groups, rng)):
        for group in run.optimizer.param_groups:
            group["lr"] = rate(recipe, run.epoch + step / steps)
        labels = torch.from_numpy(pictures.labels[chosen]).to(run.device)
        loss = functional.cross_entropy(_logits(run, x), labels)
        run.optimizer.zero_grad()
        loss.backward()
        if recipe.clip is not None:
            nn.utils.clip_grad_norm_(run.network.parameters(), recipe.clip)
        run.optimizer.step()
        total += loss.detach()
        if progress is not None and bar is not None:
            progress.advance(bar)
    if progress is not None and bar is not None:
        progress.remove_task(bar)
    mean = float(total) / steps
    if not math.isfinite(mean):
        raise ValueError(
            f"the loss became {mean} in epoch {run.epoch + 1}; a lower --rate may help"
        )
    run.epoch += 1
    return mean


def rate(recipe: PictureRecipe, done: float) -> float:
    """The learning rate once `done` epochs (a fraction counts) are behind.

    Up to its fall it hardly depends on the number of epochs, so that a run can still be made longer
    or shorter: see `resume`.
    """
    warm = min(WARM_UP, recipe.epochs * 0.2)
    cool = recipe.epochs * COOL_DOWN
    part = min(1.0, (done + 1e-2) / warm, (recipe.epochs - done) / cool)
    return recipe.peak_rate * max(0.0, part)


def accuracy(run: Run, pictures: images.Pictures) -> float:
    """The part (0..1) of `pictures` that the network labels rightly, in the run's precision."""
    groups = np.array_split(np.arange(len(pictures)), math.ceil(len(pictures) / MEASURED_AT_ONCE))
    run.network.eval()
    right = 0
    with torch.no_grad():
        batches = pictures.batches((group, None) for group in groups)
        for pixels, group in zip(batches, groups, strict=True):
            found = _logits(run, _normalized(run, pixels)).argmax(1).cpu().numpy()
            right += int((found == pictures.labels[group]).sum())
    return right / len(pictures)


def train_and_export(
    settings: Settings,
    pictures: images.Pictures,
    folder: Path,
    *,
    test: images.Pictures | None = None,
    device: torch.device | None = None,
    checkpoint: Path | None = None,
    go_on: bool = False,
) -> str:
    """Train, write `folder`/NAME.onnx and return a line that sums up the result.

    A checkpoint is written after each epoch, to `folder`/NAME.pt unless told otherwise; `go_on`
    resumes from it. Reports on stderr: a line per epoch, and in a terminal a bar. Raises ValueError
    where a checkpoint exists that is not to be resumed, or does not fit.
    """
    checkpoint = checkpoint or folder / f"{settings.name}.pt"
    if not go_on and checkpoint.exists():
        raise ValueError(
            f"{checkpoint} exists; go on from it with --resume, or name another with --checkpoint"
        )
    run = resume(settings, checkpoint, device) if go_on else start(settings, device)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not sys.stderr.isatty()
    ) as progress:
        while run.epoch < settings.recipe.epochs:
            begun = time.monotonic()
            loss = train_epoch(run, pictures, progress)
            save(run, checkpoint)
            measured = "" if test is None else f", test {accuracy(run, test):.2%}"
            seconds = time.monotonic() - begun
            console.print(
                f"epoch {run.epoch}/{settings.recipe.epochs}: loss {loss:.4f}{measured}, "
                f"{seconds:.1f} s",
                highlight=False,
            )
    measured = ""
    network = run.network.cpu().eval()
    if test is not None:
        exact = dataclasses.replace(
            run,
            settings=dataclasses.replace(settings, bfloat16=False),
            device=torch.device("cpu"),
        )
        measured = f"{accuracy(exact, test):.2%} of {len(test)} test pictures right, "
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{settings.name}.onnx"
    size = DATASETS[settings.dataset].size
    export(network.to(memory_format=torch.contiguous_format), torch.zeros(1, 3, size, size), file)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return f"{file}: {measured}{parameters} parameters, {file.stat().st_size} bytes"


def _augmented(
    run: Run, pictures: images.Pictures, groups: list[NDArray[np.int64]], rng: torch.Generator
) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
    """Each group's pictures, moved or cropped at random and half of them mirrored."""
    stored = isinstance(pictures, images.Stored)
    # All numbers are drawn here and in order, although threads decode ahead.
    draws = [None if stored else torch.rand(len(g), 4, generator=rng).numpy() for g in groups]
    for pixels, group in zip(
        pictures.batches(zip(groups, draws, strict=True)), groups, strict=True
    ):
        x = _normalized(run, pixels)
        if stored:
            x = shifted(x, SHIFT, rng)
        mirrored = torch.rand(len(group), 1, 1, 1, generator=rng).to(run.device) < 0.5
        yield torch.where(mirrored, x.flip(3), x), group


def _normalized(run: Run, pixels: NDArray[np.uint8]) -> Tensor:
    """Pictures [n, S, S, 3] of 0..255 as the network takes them: float32 [n, 3, S, S]."""
    known = DATASETS[run.settings.dataset]
    mean = torch.tensor(known.mean, device=run.device).mul_(255)
    deviation = torch.tensor(known.std, device=run.device).mul_(255)
    x = torch.from_numpy(pixels).to(run.device).float().sub_(mean).div_(deviation)
    return x.permute(0, 3, 1, 2)


def _logits(run: Run, x: Tensor) -> Tensor:
    x = x.contiguous(memory_format=run.layout)
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.settings.bfloat16):
        logits: Tensor = run.network(x)
    return logits.float()
