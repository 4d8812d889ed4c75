"""What flows into a neuron, taken apart into convolutions, residuals and what is static."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from snncompiler.ir.operators import record
from snncompiler.ir.symbolic import Shape, attributes_of
from snncompiler.passes.lower.events.body import Body, Floats, Stays, is_drive, per_channel, text
from snncompiler.passes.lower.events.signals import Signal, Signals

#: Event-driven kernels have at most so many rows and columns.
MAX_KERNEL = 16


@dataclass
class Currents:
    """What flows into a neuron, term by term; every term has the same shape."""

    shape: Shape
    convolutions: list[tuple[Signal, Floats, dict[str, list[int]], int]] = field(
        default_factory=list
    )
    residuals: list[Signal] = field(default_factory=list)
    static: list[str] = field(default_factory=list)
    bias: list[Floats] = field(default_factory=list)

    @property
    def channels(self) -> int:
        return int(self.shape[1])

    @property
    def flat(self) -> bool:
        """Whether there are two axes instead of maps."""
        return len(self.shape) == 2


def collect(signals: Signals, name: str, steps: str, into: Currents) -> None:
    """Take the tensor `name` apart into convolutions, residuals and what is static."""
    body = signals.body
    if name in body.constants:
        into.bias.append(per_channel(body.value(name), into.shape))
        return
    node = body.maker.get(name)
    if node is not None and node.op_type == "Add":
        for part in node.input:
            collect(signals, part, steps, into)
        return
    if body.shape(name) != into.shape:
        raise Stays(
            f"`{name}` of shape {text(body.shape(name))} may be broadcast "
            f"to the current's {text(into.shape)}"
        )
    # The neuron spreads what is static over the steps itself.
    spread = node is not None and _is_repeated(body, node) and body.is_static(node.input[0])
    if spread or body.is_static(name):
        static = name if node is None else node.input[0]
        lead, *sample = body.shape(static)
        held = body.shapes.number(steps)
        if held is None or (body.shapes.product(held, lead), *sample) != into.shape:
            raise Stays(f"`{static}` is not spread over the steps alone")
        into.static.append(static)
    elif node is None:
        raise Stays(f"`{name}` is a state")
    elif record(node.op_type).weights == "outputs-first":
        _convolution(signals, node, into)
    elif record(node.op_type).weights == "matrix":
        _product(signals, node, into)
    else:
        into.residuals.append(signals.of(name))


def _is_repeated(body: Body, node: onnx.NodeProto) -> bool:
    """Whether a node gives its first input at every step."""
    if not is_drive(node):
        return node.op_type == "Tile"
    factors = body.constants.get(node.input[1])
    return factors is not None and bool((numpy_helper.to_array(factors) == 1).all())


def _convolution(signals: Signals, node: onnx.NodeProto, into: Currents) -> None:
    body = signals.body
    weights = body.value(node.input[1])
    if weights.dtype != np.float32:
        raise Stays(f"{weights.dtype} is not computed by events")
    if weights.ndim != 4 or max(weights.shape[2:]) > MAX_KERNEL:
        raise Stays(f"Conv `{node.name}` has a kernel of shape {list(weights.shape[2:])}")
    attributes = attributes_of(node)
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise Stays(f"Conv `{node.name}` has auto_pad")
    group = int(attributes.get("group", 1))
    signal = signals.of(node.input[0])
    if signal.stride != (1, 1) or signal.flat:
        raise Stays(f"Conv `{node.name}` reads every n-th place")
    amplitude = signal.amplitude
    packed = weights.transpose(2, 3, 1, 0)
    if amplitude is not None:
        # Input channel i of group g is channel g·(C/group) + i.
        each, share = weights.shape[1], len(weights) // group
        own = amplitude.reshape(group, each)
        scale = np.repeat(own, share, axis=0).T
        packed = packed * scale
    window = {
        "strides": list(attributes.get("strides", (1, 1))),
        "pads": list(attributes.get("pads", (0, 0, 0, 0))),
        "dilations": list(attributes.get("dilations", (1, 1))),
    }
    into.convolutions.append((signal, packed.astype(np.float32), window, group))
    if len(node.input) > 2 and node.input[2]:
        bias = body.value(node.input[2]).reshape(-1, 1, 1)
        into.bias.append(per_channel(bias, into.shape))


def _product(signals: Signals, node: onnx.NodeProto, into: Currents) -> None:
    """Gemm or MatMul: a convolution of one place."""
    body = signals.body
    attributes = attributes_of(node)
    weights = body.value(node.input[1])
    if attributes.get("transB", 0):
        weights = weights.T
    if (
        weights.dtype != np.float32
        or weights.ndim != 2
        or attributes.get("transA", 0)
        or attributes.get("alpha", 1.0) != 1
        or attributes.get("beta", 1.0) != 1
    ):
        raise Stays(f"{node.op_type} `{node.name}` is more than a product with weights")
    if len(body.shape(node.input[0])) != 2:
        raise Stays(f"{node.op_type} `{node.name}` multiplies the last axis of a map")
    signal = signals.of(node.input[0])
    amplitude = signal.amplitude
    if amplitude is not None:
        weights = weights * np.repeat(amplitude, len(weights) // len(amplitude))[:, None]
    window = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1]}
    whole = replace(signal, matrix=None)
    into.convolutions.append((whole, weights[None, None].astype(np.float32), window, 1))
    if len(node.input) > 2 and node.input[2]:
        into.bias.append(per_channel(body.value(node.input[2]), into.shape))


def convolved(body: Body, label: str, parts: Currents) -> tuple[str, list[str], dict[str, Any]]:
    """The operator for what flows in, its inputs before the current, and its attributes."""
    channels = parts.channels
    plain: list[Signal] = []
    for residual in parts.residuals:
        if residual.flat:
            raise Stays("spikes of maps flow into rows without weights")
        mixes = residual.matrix is not None and np.count_nonzero(
            residual.matrix
        ) != np.count_nonzero(np.diagonal(residual.matrix))
        square = residual.matrix is None or residual.matrix.shape == (channels, channels)
        if residual.stride == (1, 1) and square and not mixes and residual.levels == 1:
            plain.append(residual)
            continue
        # A convolution with one tap.
        matrix = residual.matrix
        if matrix is None:
            matrix = np.eye(channels, dtype=np.float32)
        window = {"strides": list(residual.stride), "pads": [0] * 4, "dilations": [1, 1]}
        parts.convolutions.append(
            (replace(residual, stride=(1, 1), matrix=None), matrix[None, None], window, 1)
        )
    if not parts.convolutions:
        raise Stays("nothing is convolved")
    if len(parts.convolutions) + len(plain) > 2:
        raise Stays("more than two spike trains flow in")
    # The larger one first: it may have groups, and counts.
    parts.convolutions.sort(key=lambda part: -part[1].size)
    signal, weights, window, group = parts.convolutions[0]
    attributes: dict[str, Any] = {**window, "group": group, "levels": signal.levels}
    inputs = [signal.events, body.constant(f"{label}/weights", weights)]
    if len(parts.convolutions) == 2:
        other, more, beside, others = parts.convolutions[1]
        if group != 1 or others != 1 or other.levels != 1:
            raise Stays("two convolutions flow in, one of them grouped or of counts")
        attributes |= {f"more_{key}": value for key, value in beside.items()}
        inputs += [other.events, body.constant(f"{label}/more_weights", more)]
        return "EventConvPair", inputs, attributes
    if plain:
        amplitude = plain[0].amplitude
        if amplitude is None:
            amplitude = np.ones(channels, np.float32)
        inputs += [plain[0].events, body.constant(f"{label}/amplitude", amplitude)]
        return "EventConvAdd", inputs, attributes
    return "EventConv", inputs, attributes
