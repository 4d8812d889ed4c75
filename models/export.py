"""Writing networks as ONNX."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from . import vgg_resnet

OPSET = 17
#: The pass that sets batch-norm statistics: batches of standard-normal images.
STATISTICS_BATCHES = 2
STATISTICS_BATCH = 16


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


def seeded(
    name: str,
    *,
    constrained: bool = True,
    classes: int = 10,
    size: int = vgg_resnet.CIFAR_SIZE,
    width: float = 1.0,
    seed: int = 0,
) -> nn.Module:
    """A network of `vgg_resnet.build` with weights of `seed`, untrained, in evaluation mode.

    Batch-norm statistics are those of one pass over seeded standard-normal images in training mode,
    so that activations neither vanish nor explode. Sets PyTorch's seed and number of threads.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # sums then have one order, whatever the number of cores
    network = vgg_resnet.build(
        name, constrained=constrained, classes=classes, size=size, width=width
    ).eval()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    if norms:
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.train()
            norm.momentum = None  # the plain average over batches
        with torch.no_grad():
            for _ in range(STATISTICS_BATCHES):
                network(torch.randn(STATISTICS_BATCH, 3, size, size))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval()
            norm.momentum = momentum
    return network


def build_and_export(
    name: str,
    file: Path,
    *,
    constrained: bool = True,
    classes: int = 10,
    size: int = vgg_resnet.CIFAR_SIZE,
    width: float = 1.0,
    seed: int = 0,
    weights: Path | None = None,
) -> str:
    """Write a network of `vgg_resnet.build` to `file`; return a line that sums up the result.

    `weights` is a file with its state dict, by `torch.save`, or a checkpoint of training; without
    it, weights are `seeded`.
    Raises ValueError where an argument or the weights do not fit.
    """
    if weights is None:
        network = seeded(
            name, constrained=constrained, classes=classes, size=size, width=width, seed=seed
        )
    else:
        network = vgg_resnet.build(
            name, constrained=constrained, classes=classes, size=size, width=width
        ).eval()
        load_weights(network, weights)
    file.parent.mkdir(parents=True, exist_ok=True)
    export(network, torch.zeros(1, 3, size, size), file)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    form = "constrained" if constrained else "common"
    made = f"untrained, seed {seed}" if weights is None else f"weights of {weights}"
    return f"{file}: {form} {name}, {parameters} parameters, {file.stat().st_size} bytes, {made}"


def load_weights(network: nn.Module, file: Path) -> None:
    """Give `network` the state dict in `file`, or that in a checkpoint of training.

    Raises ValueError where there is none that fits.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        if isinstance(state, dict) and "settings" in state:
            state = state["network"]
        network.load_state_dict(state)
    except (
        OSError,
        RuntimeError,
        TypeError,
        KeyError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file} does not hold the weights of this network: {reason}") from error


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
