"""Training a network of the registry, measuring it and writing it as ONNX."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import onnx
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional

from . import data, networks
from .registry import NETWORKS

OPSET = 17


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
            logits = network(_shifted(images[chosen], recipe.shift))
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


def export(network: nn.Module, example: Tensor, file: Path) -> None:
    """Write `network` to `file` as ONNX, with "input" and "logits" of any batch size N.

    `example` is an input of any batch size. Nothing is folded or merged, so that the file shows
    the layers as they were trained. The same weights give the same bytes.
    """
    with warnings.catch_warnings():
        # PyTorch calls this exporter old, but the new one has no opset 17 of its own.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            network,
            (example,),
            file,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "N"}, "logits": {0: "N"}},
            opset_version=OPSET,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,  # EVAL would fold batch normalisation
            do_constant_folding=False,
        )
    model = onnx.load(file)
    _unshare(model.graph)
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, file)


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


def _unshare(graph: onnx.GraphProto) -> None:
    """Store equal tensors apart again.

    PyTorch stores them once and adds Identity nodes, for example where two branches with batch
    normalisation meet: their shifts start equal and get the same gradients, so they stay equal.
    """
    stored = {tensor.name: tensor for tensor in graph.initializer}
    copies = [node for node in graph.node if node.op_type == "Identity" and node.input[0] in stored]
    for node in copies:
        tensor = graph.initializer.add()
        tensor.CopyFrom(stored[node.input[0]])
        tensor.name = node.output[0]
        graph.node.remove(node)


def _tensors(dataset: str) -> tuple[Tensor, Tensor]:
    images, labels = data.load(dataset)
    return torch.from_numpy(images), torch.from_numpy(labels)


def _shifted(images: Tensor, most: int) -> Tensor:
    """Move each image by its own random step of up to `most` pixels, filling with zeros."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (most, most, most, most))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    down, right = torch.randint(0, 2 * most + 1, (2, count))
    return windows[torch.arange(count), :, down, right]
