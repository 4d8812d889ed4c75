"""The accuracy tables of bench/accuracy.py for SpikingJelly's own conversion recipes.

    python bench/accuracy_spikingjelly.py [--only NAME,..] [--recipes NAME ..] [--draws 5]
                          [--steps 4,8,..] [--limit N] [--json FILE] [--keep] [--write PAGE.md]

The same networks, test images, calibration images and T as bench/accuracy.py.  SpikingJelly takes
PyTorch modules, so each ONNX file becomes a torch network with its weights, which must give the ANN's
outputs within 1e-3.  Where that, or SpikingJelly's conversion, is not possible, the page says why.

    99.9%       RateCodingRecipe(mode="99.9%"): one threshold a layer, no initial potential
    robust      the same, per channel, initial potential θ/2, max pooling before the neuron: what
                SpikingJelly's ImageNet example calls `robust`
    balancing   LocalThresholdBalancingRecipe, which takes one step a batch: as many batches as that
                example (391), of the calibration images over and over, each time in another order
    .. delay    the recipe with SpikingJelly's delayed read-out (`estimate_delay_start`); the others
                take the mean of all steps

All T come from one run: the outputs are summed up step by step.  Needs PyTorch and SpikingJelly.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from bench.accuracy import (
    NO_FAILURE,
    STEPS,
    Bench,
    Row,
    about,
    add_options,
    batch_size,
    begin,
    chosen,
    end,
    environment,
    reference,
    same,
    told,
)
from bench.networks import CLASSIFIERS, Case, Data
from bench.zoo import entries, material_root
from snncompiler.network.batching import batches
from snncompiler.network.data import Dataset
from snncompiler.network.load import load
from snncompiler.runtime.session import create_session

Array = NDArray[Any]

RECIPES = {
    "99.9%": '`RateCodingRecipe(mode="99.9%")`: one threshold a layer, no initial potential',
    "robust": "the same per channel, initial potential θ/2, max pooling before the neuron",
    "balancing": "`LocalThresholdBalancingRecipe`, 391 batches",
}
DELAYED = "the same network, read out from the step on that `estimate_delay_start` gives for each T"
#: Of 50,000 images in batches of 128, as in SpikingJelly's ImageNet example.
BALANCING_BATCHES = 391
#: Images of a calibration batch, and the fewer where they are large: torch.quantile takes 2^24 values.
CALIBRATION_BATCH, LARGE_BATCH, LARGE = 16, 8, 100_000
#: The largest relative difference between the torch network's outputs and the ANN's.
TOLERANCE = 1e-3


class CannotConvert(Exception):
    """Why a network cannot be a torch network here, or not one that SpikingJelly converts."""

    says = NO_FAILURE


# --- ONNX to torch ---


class Values:
    """What the tensors of a model are: constants as arrays, and shapes for one batch.

    Everything that the inputs do not reach is constant.  So are integer tensors that are the same for
    two batches of other samples: shape arithmetic.
    """

    def __init__(self, model: onnx.ModelProto, feeds: dict[str, Array], batch: int) -> None:
        graph = model.graph
        self.batch = batch
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        reached = set(feeds)
        made = [name for node in graph.node for name in node.output if name]
        for node in graph.node:
            if any(name in reached for name in node.input):
                reached.update(node.output)
        seen = [self._run(model, made, feeds, slice(i * batch, (i + 1) * batch)) for i in (0, 1)]
        self.shapes = {name: value.shape for name, value in seen[0].items()}
        self.shapes |= {name: array[:batch].shape for name, array in feeds.items()}
        for name, value in seen[0].items():
            fixed = value.dtype.kind in "iu" and np.array_equal(value, seen[1][name])
            if name not in reached or fixed:
                self.constants[name] = value

    @staticmethod
    def _run(
        model: onnx.ModelProto, made: Sequence[str], feeds: dict[str, Array], part: slice
    ) -> dict[str, Array]:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        del copy.graph.output[:]
        copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
        session = create_session(copy, threads=1, optimize=False)
        found = session.run(None, {name: array[part] for name, array in feeds.items()})
        return {name: np.asarray(value) for name, value in zip(made, found, strict=True)}


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {name: v.decode() if isinstance(v, bytes) else v for name, v in found.items()}


def pads_of(given: dict[str, Any], size: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """[top, left, bottom, right] of a convolution or pooling, from what it says."""
    mode = given.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", "VALID"):
        return list(given.get("pads", [0] * 4))
    strides, dilations = given.get("strides", [1, 1]), given.get("dilations", [1, 1])
    before, after = [], []
    for have, width, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        wanted = max((-(-have // stride) - 1) * stride + (width - 1) * dilation + 1 - have, 0)
        small, large = wanted // 2, wanted - wanted // 2
        before.append(small if mode == "SAME_UPPER" else large)
        after.append(large if mode == "SAME_UPPER" else small)
    return [*before, *after]


def convolution(
    weight: Array, bias: Array | None, given: dict[str, Any], pads: Sequence[int]
) -> Any:
    """An nn.Conv2d.  Uneven padding, which that does not know, becomes zeros in the kernel."""
    import torch

    dilations = given.get("dilations", [1, 1])
    sides = [(pads[0], pads[2]), (pads[1], pads[3])]
    if any(before != after for before, after in sides) and list(dilations) != [1, 1]:
        raise CannotConvert("a dilated convolution with uneven padding")
    even = [max(side) for side in sides]
    rows = [(even[i] - sides[i][0], even[i] - sides[i][1]) for i in (0, 1)]
    weight = np.pad(weight, [(0, 0), (0, 0), *rows])
    groups = given.get("group", 1)
    made = torch.nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        weight.shape[2:],
        stride=tuple(given.get("strides", [1, 1])),
        padding=tuple(even),
        dilation=tuple(dilations),
        groups=groups,
        bias=bias is not None,
    )
    with torch.no_grad():
        made.weight.copy_(torch.from_numpy(weight.copy()))
        if bias is not None:
            made.bias.copy_(torch.from_numpy(bias.copy()))
    return made


def linear(weight: Array, bias: Array | None) -> Any:
    """An nn.Linear with weight [out, in]."""
    import torch

    made = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        made.weight.copy_(torch.from_numpy(weight.copy()))
        if bias is not None:
            made.bias.copy_(torch.from_numpy(np.broadcast_to(bias, weight.shape[:1]).copy()))
    return made


class Plan:
    """The steps of a torch network: modules, constants, and what is called on what.

    A step is (what, inputs, output, extra): `what` is a module's name or a function of `FUNCTIONS`.
    """

    def __init__(self, model: onnx.ModelProto, values: Values, output: str) -> None:
        self.values = values
        self.modules: dict[str, Any] = {}
        self.steps: list[tuple[str, list[str], str, Any]] = []
        self.used: dict[str, Array] = {}
        self.alias: dict[str, str] = {}
        self.output = output
        self.softmax = False  # whether one at the end was left out
        for node in self._needed(model, output):
            build = getattr(self, f"_{node.op_type.lower()}", None)
            if build is None or node.domain not in ("", "ai.onnx"):
                raise CannotConvert(f"no torch module for operator {node.op_type}")
            build(node, attributes(node))
        self.output = self.alias.get(self.output, self.output)

    def _needed(self, model: onnx.ModelProto, output: str) -> list[onnx.NodeProto]:
        """The nodes that lead to the output and are not constant, without a Softmax at the end."""
        wanted, found = {output}, []
        for node in reversed(model.graph.node):
            if not wanted & set(node.output) or node.output[0] in self.values.constants:
                continue
            wanted.update(node.input)
            if node.output[0] == self.output and node.op_type in ("Softmax", "Identity", "Cast"):
                self.output = node.input[0]
                self.softmax = self.softmax or node.op_type == "Softmax"
            else:
                found.append(node)
        return found[::-1]

    def _constant(self, name: str) -> Array:
        if name not in self.values.constants:
            raise CannotConvert(f"{name} is no constant")
        return self.values.constants[name]

    def _optional(self, node: onnx.NodeProto, index: int) -> Array | None:
        there = len(node.input) > index and node.input[index]
        return self._constant(node.input[index]) if there else None

    def _call(self, what: str, inputs: Sequence[str], output: str, extra: Any = None) -> None:
        self.steps.append((what, [self.alias.get(name, name) for name in inputs], output, extra))

    def _module(self, node: onnx.NodeProto, module: Any) -> None:
        name = f"{node.op_type.lower()}{len(self.modules)}"
        self.modules[name] = module
        self._call(name, node.input[:1], node.output[0])

    def _sizes(self, node: onnx.NodeProto) -> tuple[int, ...]:
        return self.values.shapes[node.input[0]][2:]

    def _conv(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        weight = self._constant(node.input[1])
        if weight.ndim != 4:
            raise CannotConvert(f"a convolution over {weight.ndim - 2} axes")
        pads = pads_of(given, self._sizes(node), weight.shape[2:])
        self._module(node, convolution(weight, self._optional(node, 2), given, pads))

    def _pad(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        """Zeros around, as a convolution with a kernel of 1: SpikingJelly adapts no other padding."""
        pads = [int(one) for one in (given.get("pads") or self._constant(node.input[1]))]
        value = self._optional(node, 2)
        if given.get("mode", "constant") != "constant" or (value is not None and value.any()):
            raise CannotConvert("padding with other than zeros")
        if len(pads) != 8 or pads[0] or pads[4] or min(pads) < 0:
            raise CannotConvert("padding that is not of [N, C, H, W]")
        channels = self.values.shapes[node.input[0]][1]
        weight = np.zeros((channels + pads[1] + pads[5], channels, 1, 1), np.float32)
        weight[np.arange(channels) + pads[1], np.arange(channels)] = 1
        self._module(node, convolution(weight, None, {}, [*pads[2:4], *pads[6:8]]))

    def _batchnormalization(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        import torch

        scale, shift, mean, variance = (self._constant(name) for name in node.input[1:5])
        made = torch.nn.BatchNorm2d(scale.size, eps=given.get("epsilon", 1e-5))
        for target, value in (
            (made.weight.data, scale),
            (made.bias.data, shift),
            (made.running_mean, mean),
            (made.running_var, variance),
        ):
            target.copy_(torch.from_numpy(value.copy()))
        self._module(node, made)

    def _relu(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        import torch

        self._module(node, torch.nn.ReLU())

    def _clip(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        import torch

        low, high = (self._optional(node, index) for index in (1, 2))
        low = given.get("min") if low is None else low
        high = given.get("max") if high is None else high
        if low is None or high is None or float(low) != 0 or float(high) != 6:
            raise CannotConvert("a Clip that is not ReLU6")
        self._module(node, torch.nn.ReLU6())

    def _maxpool(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        import torch

        kernel, pads = self._pooling(node, given)
        self._module(
            node,
            torch.nn.MaxPool2d(
                kernel,
                tuple(given.get("strides", [1, 1])),
                pads,
                dilation=tuple(given.get("dilations", [1, 1])),
                ceil_mode=bool(given.get("ceil_mode", 0)),
            ),
        )

    def _averagepool(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        import torch

        kernel, pads = self._pooling(node, given)
        self._module(
            node,
            torch.nn.AvgPool2d(
                kernel,
                tuple(given.get("strides", [1, 1])),
                pads,
                ceil_mode=bool(given.get("ceil_mode", 0)),
                count_include_pad=bool(given.get("count_include_pad", 0)),
            ),
        )

    def _pooling(
        self, node: onnx.NodeProto, given: dict[str, Any]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        kernel = tuple(given["kernel_shape"])
        if len(kernel) != 2:
            raise CannotConvert(f"pooling over {len(kernel)} axes")
        top, left, bottom, right = pads_of(given, self._sizes(node), kernel)
        if (top, left) != (bottom, right):
            raise CannotConvert("pooling with uneven padding")
        return kernel, (top, left)

    def _globalaveragepool(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        import torch

        self._module(node, torch.nn.AdaptiveAvgPool2d(1))

    def _gemm(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        weight, bias = self._constant(node.input[1]), self._optional(node, 2)
        if given.get("transA"):
            raise CannotConvert("a Gemm with its input transposed")
        weight = weight if given.get("transB") else weight.T
        weight = weight * np.float32(given.get("alpha", 1.0))
        bias = None if bias is None else bias * np.float32(given.get("beta", 1.0))
        self._module(node, linear(weight, bias))

    def _matmul(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        weight = self._constant(node.input[1])
        if weight.ndim != 2:
            raise CannotConvert("a MatMul whose second operand is no constant matrix")
        self._module(node, linear(weight.T, None))

    def _flatten(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        if given.get("axis", 1) != 1:
            raise CannotConvert("a Flatten that does not keep the batch axis")
        self._call("flatten", node.input, node.output[0])

    def _reshape(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        shape = self.values.shapes[node.output[0]]
        if not shape or shape[0] != self.values.batch:
            raise CannotConvert("a Reshape that does not keep the batch axis")
        if len(shape) == 2:
            self._call("flatten", node.input[:1], node.output[0])
        else:
            self._call("reshape", node.input[:1], node.output[0], (-1, *shape[1:]))

    def _transpose(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        self._call("permute", node.input, node.output[0], tuple(given["perm"]))

    def _slice(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        starts, ends = (self._constant(name).tolist() for name in node.input[1:3])
        axes, steps = (self._optional(node, index) for index in (3, 4))
        rank = len(self.values.shapes[node.input[0]])
        item = [slice(None)] * rank
        axes_list = list(range(len(starts))) if axes is None else axes.tolist()
        steps_list = [1] * len(starts) if steps is None else steps.tolist()
        for axis, start, stop, step in zip(axes_list, starts, ends, steps_list, strict=True):
            item[axis] = slice(start, stop, step)
        if item[0] != slice(None):
            raise CannotConvert("a Slice of the batch axis")
        self._call("slice", node.input[:1], node.output[0], tuple(item))

    def _concat(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        self._call("cat", node.input, node.output[0], given["axis"])

    def _identity(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        self.alias[node.output[0]] = self.alias.get(node.input[0], node.input[0])

    _cast = _dropout = _identity

    def _add(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        self._binary("add", node)

    def _sub(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        self._binary("sub", node)

    def _mul(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        self._binary("mul", node)

    def _binary(self, what: str, node: onnx.NodeProto) -> None:
        for name in node.input:
            if name in self.values.constants:
                self.used[name] = self.values.constants[name].astype(np.float32)
        self._call(what, node.input, node.output[0])


def torch_network(model: onnx.ModelProto, feeds: dict[str, Array], output: str) -> Any:
    """A torch.nn.Module that computes `output` of a model with one input, up to a last Softmax.

    `feeds` holds at least two batches of samples as the model takes them.  Raises CannotConvert.
    """
    import torch

    functions: dict[str, Callable[..., Any]] = {
        "flatten": lambda extra, x: torch.flatten(x, 1),
        "reshape": lambda extra, x: x.reshape(*extra),
        "permute": lambda extra, x: x.permute(*extra),
        "slice": lambda extra, x: x[extra],
        "cat": lambda extra, *x: torch.cat(x, dim=extra),
        "add": lambda extra, x, y: x + y,
        "sub": lambda extra, x, y: x - y,
        "mul": lambda extra, x, y: x * y,
    }
    given = {tensor.name for tensor in model.graph.initializer}
    inputs = [entry for entry in model.graph.input if entry.name not in given]
    if len(inputs) != 1:
        raise CannotConvert(f"{len(inputs)} inputs")
    fixed = inputs[0].type.tensor_type.shape.dim[0].dim_value
    plan = Plan(model, Values(model, feeds, fixed or 2), output)

    class Network(torch.nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.softmax = plan.softmax
            for name, module in plan.modules.items():
                self.add_module(name, module)
            for index, value in enumerate(plan.used.values()):
                self.register_buffer(f"constant{index}", torch.from_numpy(value.copy()))

        def forward(self, x: Any) -> Any:
            found = {name: getattr(self, f"constant{i}") for i, name in enumerate(plan.used)}
            found[inputs[0].name] = x
            for what, names, made, extra in plan.steps:
                arguments = [found[name] for name in names]
                if what in functions:
                    found[made] = functions[what](extra, *arguments)
                else:
                    found[made] = getattr(self, what)(*arguments)
            return found[plan.output]

    return Network().eval()


def check_outputs(network: Any, data: Dataset, ann: Array) -> float:
    """The relative difference from the ANN's outputs.  Raises CannotConvert where it is too large."""
    import torch

    (x,) = data.feeds.values()
    with torch.inference_mode():
        found = network(torch.from_numpy(x[: len(ann)].copy()))
        if network.softmax:
            found = torch.softmax(found, 1)
    found = found.numpy().reshape(ann.shape)
    difference = float(np.abs(found - ann).max() / max(np.abs(ann).max(), 1e-30))
    if not difference <= TOLERANCE:
        raise CannotConvert(f"the torch network differs from the ANN by {difference:.2g}")
    return difference


# --- SpikingJelly ---


def loader(x: Array, count: int | None) -> Iterator[Any]:
    """Batches of the calibration images: each image once, or `count` batches in changing order."""
    import torch

    rng = np.random.default_rng(0)
    order = np.arange(len(x))
    size = LARGE_BATCH if x[0].size > LARGE else CALIBRATION_BATCH
    while True:
        for part in batches(len(x), size):
            yield torch.from_numpy(x[order[part]])
            count = None if count is None else count - 1
            if count == 0:
                return
        if count is None:
            return
        order = rng.permutation(len(x))


def converted(network: Any, recipe: str, x: Array) -> Any:
    """SpikingJelly's network.  Raises CannotConvert with its own words where it refuses."""
    from spikingjelly.activation_based import ann2snn  # type: ignore[import-not-found,unused-ignore]

    once = list(loader(x, None))
    if recipe == "99.9%":
        made = ann2snn.RateCodingRecipe(dataloader=once, mode="99.9%")
    elif recipe == "robust":
        made = ann2snn.RateCodingRecipe(
            dataloader=once,
            mode="99.9%",
            channel_wise=True,
            pre_spike_maxpool=True,
            half_threshold=True,
        )
    else:
        made = ann2snn.LocalThresholdBalancingRecipe(dataloader=loader(x, BALANCING_BATCHES))
    try:
        with quiet():
            snn = ann2snn.Converter(recipe=made, device="cpu").convert(network)
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CannotConvert(f"SpikingJelly says: {text}") from error
    return snn.eval()


def quiet() -> contextlib.AbstractContextManager[Any]:
    """Without the bars of its progress."""
    return contextlib.redirect_stderr(io.StringIO())


def delays(snn: Any, x: Array, steps: Sequence[int]) -> dict[int, int]:
    """The first step of SpikingJelly's delayed read-out, for every T."""
    import warnings

    from spikingjelly.activation_based import ann2snn

    once = [next(loader(x, None))]
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {t: int(ann2snn.estimate_delay_start(snn, once, "cpu", t)) for t in steps}


class Spikes:
    """Counts the spikes of every neuron layer while it is there."""

    def __init__(self, snn: Any) -> None:
        from spikingjelly.activation_based.neuron import (  # type: ignore[import-not-found,unused-ignore]
            BaseNode,
        )

        self.sum, self.neurons = 0.0, 0
        self.handles = [
            module.register_forward_hook(self._count)
            for module in snn.modules()
            if isinstance(module, BaseNode)
        ]

    def _count(self, module: Any, inputs: Any, output: Any) -> None:
        self.sum += float(output.sum())
        self.neurons += output.numel()

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


def run(
    snn: Any, data: Dataset, steps: Sequence[int], starts: dict[int, int]
) -> tuple[dict[int, list[int]], dict[int, list[int]], dict[int, float]]:
    """Predictions by T of the mean and of the delayed read-out, and firing rates, from one run."""
    import torch
    from spikingjelly.activation_based import functional

    (x,) = data.feeds.values()
    mean: dict[int, list[int]] = {t: [] for t in steps}
    delayed: dict[int, list[int]] = {t: [] for t in steps}
    spikes: dict[int, float] = dict.fromkeys(steps, 0.0)
    neurons: dict[int, float] = dict.fromkeys(steps, 0.0)
    with torch.inference_mode():
        for part in batches(len(data), batch_size(data)):
            functional.reset_net(snn)
            counter = Spikes(snn)
            batch = torch.from_numpy(x[part].copy())
            total: Any = 0
            kept: dict[int, Any] = {0: 0}
            for step in range(1, max(steps) + 1):
                total = total + snn(batch)
                if step in starts.values():
                    kept[step] = total
                if step in mean:
                    mean[step] += total.argmax(1).tolist()
                    delayed[step] += (total - kept[starts[step]]).argmax(1).tolist()
                    spikes[step] += counter.sum
                    neurons[step] += counter.neurons
            counter.close()
    return mean, delayed, {t: spikes[t] / neurons[t] if neurons[t] else 0.0 for t in steps}


class SpikingJellyBench(Bench):
    """Measures SpikingJelly; the content is of the same form."""

    def case(self, case: Case) -> None:
        options = self.options
        todo = [
            (recipe, draw)
            for recipe in options.recipes
            for draw in range(options.draws)
            if not any(same(row, case.name, recipe, draw, {}) for row in self.content["rows"])
        ]
        if not todo:
            return
        data = Data(case, options.root, options.held_out)
        test = data.test(options.limit)
        ann = reference(data.model, test, options.threads, "cpu")
        self.content["cases"][case.name] = about(case, data, test, ann)
        for recipe, draw in todo:
            row = {"case": case.name, "setting": recipe, "options": {}, "draw": draw}
            try:
                self.recipe(row, data, test, ann)
            except Exception as error:  # "cannot be converted" is a result
                self.failed(row, error)

    def recipe(self, row: Row, data: Data, test: Dataset, ann: Any) -> None:
        """One recipe and draw: two rows, of both read-outs."""
        import torch

        options = self.options
        model = load(data.model).model
        calibration = data.calibration(row["draw"], options.samples)
        feeds = {n: np.concatenate([a[:2], a[-2:]]) for n, a in test.feeds.items()}
        network = torch_network(model, feeds, ann.scores)
        shown = ann.outputs[ann.scores][: min(16, len(test))]
        difference = check_outputs(network, test, shown)
        started = time.perf_counter()
        (x,) = calibration.feeds.values()
        with torch.no_grad():
            snn = converted(network, row["setting"], np.ascontiguousarray(x))
        seconds = time.perf_counter() - started
        steps = sorted(options.steps or STEPS)
        starts = delays(snn, x, steps)
        started = time.perf_counter()
        mean, delayed, firing = run(snn, test, steps, starts)
        row |= {
            "calibration": len(calibration),
            "difference": difference,
            "compile_seconds": round(seconds, 2),
            "seconds": round(time.perf_counter() - started, 2),
        }
        for name, found in ((row["setting"], mean), (f"{row['setting']} delay", delayed)):
            results = {
                str(t): {"predictions": found[t], "firing": firing[t], "delay": starts[t]}
                for t in steps
            }
            one = {**row, "setting": name, "results": results}
            self.keep(one)
            for t in results:
                case = self.content["cases"][row["case"]]
                self.say(f"{row['case']} {name} draw {row['draw']} T={t}: {told(case, one, t)}")
        self.write()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.replace("%", "%%"), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    options = parser.parse_args()
    for package in ("torch", "spikingjelly"):
        if importlib.util.find_spec(package) is None:
            parser.error(f"{package} is not installed")
    import torch
    from spikingjelly.logger import logger  # type: ignore[import-not-found,unused-ignore]

    logger.remove()
    options.root = material_root(options.material)
    cases = chosen(options.only, CLASSIFIERS)
    if not cases:
        parser.error(f"no network {options.only!r}; there are: {', '.join(CLASSIFIERS)}")
    if not entries(options.root) and not all(case.bundled for case in cases):
        parser.error(f"there is no material.json in {options.root}: set SNNC_MATERIAL")
    if options.threads:
        torch.set_num_threads(options.threads)
    found = environment(options.threads, "torch", "spikingjelly")
    found["torch threads"] = str(torch.get_num_threads())
    del found["native kernels"]
    content = begin(options, "accuracy_spikingjelly.py", found)
    content["settings"] = {name: RECIPES[name] for name in options.recipes}
    content["settings"] |= {f"{name} delay": DELAYED for name in options.recipes}
    bench = SpikingJellyBench(options, content, lambda text: print(text, flush=True))
    for case in cases:
        bench.case(case)
    end(options, content, "SpikingJelly's recipes: accuracy against time-steps")


if __name__ == "__main__":
    main()
