"""Training a network of the registry, measuring it and writing it as ONNX."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional

from . import data, networks
from .export import export
from .registry import NETWORKS


def train(name: str, seed: int = 0, epochs: int | None = None) -> nn.Module:
    """Train the network called `name` on the CPU and return it in evaluation mode.

    `epochs` stands in for the number in the recipe. The same seed, PyTorch and kind of CPU give
    the same weights. Sets PyTorch's seed, thread count and determinism for the whole process.
    """
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # sums then have one order, whatever the number of cores

    recipe = NETWORKS[name]
    epochs = recipe.epochs if epochs is None else epochs
    images, labels = _tensors(recipe.train)
    network: nn.Module = getattr(networks, recipe.module)()
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=recipe.peak_rate,
        momentum=0.9,
        nesterov=True,
        weight_decay=recipe.weight_decay,
    )
    # Whole batches only: batch normalisation learns badly from a small remainder.
    used = len(images) - len(images) % recipe.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.peak_rate, total_steps=epochs * used // recipe.batch
    )
    for _ in track(
        range(epochs),
        description=name,
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    ):
        for chosen in torch.randperm(len(images))[:used].view(-1, recipe.batch):
            logits = network(shifted(images[chosen], recipe.shift))
            loss = functional.cross_entropy(logits, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def accuracy(network: nn.Module, dataset: str) -> float:
    """The part of the images of `dataset` (0..1) that `network` labels rightly."""
    images, labels = _tensors(dataset)
    with torch.no_grad():
        return float((network(images).argmax(1) == labels).double().mean())


def train_and_export(name: str, folder: Path, seed: int = 0, epochs: int | None = None) -> str:
    """Train `name`, write `folder`/`name`.onnx and return a line that sums up the result."""
    network = train(name, seed, epochs)
    test = NETWORKS[name].test
    images, _ = _tensors(test)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.onnx"
    export(network, images[:1], file)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return (
        f"{file}: {accuracy(network, test):.1%} of {len(images)} test images right, "
        f"{parameters} parameters, {file.stat().st_size} bytes"
    )


def shifted(images: Tensor, most: int, generator: torch.Generator | None = None) -> Tensor:
    """Move each image by its own random step of up to `most` pixels, filling with zeros.

    The steps are of `generator`, on the CPU, or else of PyTorch's own.
    """
    count, _, height, width = images.shape
    padded = functional.pad(images, (most, most, most, most))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    down, right = torch.randint(0, 2 * most + 1, (2, count), generator=generator).to(images.device)
    return windows[torch.arange(count, device=images.device), :, down, right]


def _tensors(dataset: str) -> tuple[Tensor, Tensor]:
    images, labels = data.load(dataset)
    return torch.from_numpy(images), torch.from_numpy(labels)
