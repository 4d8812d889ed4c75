"""Spike trains as bytes, and what linear operators make of them before they flow into a neuron."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto, helper

from snncompiler.ir import dialect
from snncompiler.ir.symbolic import END, attributes_of
from snncompiler.passes.lower.events.body import (
    TO_FIRST,
    TO_LAST,
    Body,
    Floats,
    Stays,
    is_neuron,
    per_channel,
)

#: Neurons that have an event-driven form.
NEURONS = ("RMPNeuron", "ScheduledRMPNeuron")
#: Bytes have at most this value.
MAX_LEVELS = 64


@dataclass(frozen=True)
class Signal:
    """A tensor `[K·N, C, H, W]` (or `[K·N, C]`, H = W = 1) that is linear in bytes.

    Channel c is the sum over the bytes' channels i of `matrix[i, c]`, at every `stride`-th place;
    no matrix is the unit matrix.  Where `flat`, the tensor was flattened after that, and so are the
    bytes, to `[K·N, 1, 1, C·H·W]`.
    """

    events: str
    channels: int
    levels: int = 1
    stride: tuple[int, int] = (1, 1)
    matrix: Floats | None = None
    flat: bool = False

    @property
    def amplitude(self) -> Floats | None:
        """What every channel is multiplied by; None for 1.  Stays where channels are mixed."""
        if self.matrix is None:
            return None
        rows, columns = self.matrix.shape
        own = np.diagonal(self.matrix)
        if rows != columns or np.count_nonzero(self.matrix) != np.count_nonzero(own):
            raise Stays("channels are mixed before a convolution")
        return own.astype(np.float32)


class Signals:
    """The tensors of a body that are spike trains, or linear in them."""

    def __init__(self, body: Body) -> None:
        self.body = body
        #: Names of tensors of the old body -> what they are as bytes.
        self.found: dict[str, Signal] = {}
        #: Bytes `[K·N, 1, 1, C]` of tensors that have two axes.
        self.flat: set[str] = set()

    def of(self, name: str) -> Signal:
        """What a tensor is in bytes; converts the spikes of a neuron that stays."""
        if name in self.found:
            return self.found[name]
        node = self.body.maker.get(name)
        if node is None:
            raise Stays(f"`{name}` is no spike train")
        found: Signal
        if is_neuron(node):
            if node.op_type not in (*NEURONS, "HardResetNeuron"):
                raise Stays(f"the spikes of {node.op_type} are not binary")
            found = self._converted(name, node)
        elif node.domain == dialect.DOMAIN and node.op_type == "SpikeMaxPool":
            pooled = self.of(node.input[0])
            if pooled.matrix is not None or pooled.levels != 1 or pooled.stride != (1, 1):
                raise Stays(f"SpikeMaxPool `{node.name}` pools more than spikes")
            found = self._converted(name, node)
        elif node.op_type == "Identity":
            found = self.of(node.input[0])
        elif node.op_type == "Mul":
            found = self._scaled(node)
        elif node.op_type == "Slice":
            found = self._sliced(node)
        elif node.op_type == "Pad":
            found = self._padded(node)
        elif node.op_type == "AveragePool":
            found = self._summed(node)
        elif node.op_type == "Round":
            found = self._rounded(node)
        elif node.op_type == "Flatten":
            found = self._flattened(node)
        elif node.op_type == "Concat":
            found = self._concatenated(node)
        else:
            raise Stays(f"{node.op_type} `{node.name}` has no event-driven form")
        self.found[name] = found
        return found

    def _converted(self, name: str, node: onnx.NodeProto) -> Signal:
        """The float spikes of an operator that stays, as bytes."""
        shape = self.body.layer_shape(name)
        if len(shape) == 2:
            raise Stays(f"`{node.name}` before it stays")
        last = self.body.emit(
            self.body.nodes, "Transpose", [name], f"{name}/channels_last", perm=TO_LAST
        )
        return Signal(
            self.body.emit(self.body.nodes, "Cast", [last], f"{name}/events", to=TensorProto.UINT8),
            int(shape[1]),
        )

    def _scaled(self, node: onnx.NodeProto) -> Signal:
        inner, factor = node.input
        if inner in self.body.constants:
            inner, factor = factor, inner
        signal = self.of(inner)
        if signal.flat:
            raise Stays(f"Mul `{node.name}` stands behind a Flatten")
        shape = self.body.layer_shape(inner)
        if self.body.shape(node.output[0]) != shape:
            raise Stays(f"Mul `{node.name}` broadcasts the spikes")
        matrix = (
            np.eye(signal.channels, dtype=np.float32) if signal.matrix is None else signal.matrix
        )
        return replace(signal, matrix=matrix * per_channel(self.body.value(factor), shape))

    def _summed(self, node: onnx.NodeProto) -> Signal:
        """Average pooling: sums of bytes, the division left to the next weights."""
        signal = self.of(node.input[0])
        attributes = attributes_of(node)
        kernel = [int(extent) for extent in attributes["kernel_shape"]]
        size = int(np.prod(kernel))
        if (
            len(kernel) != 2
            or any(attributes.get("pads", ()))
            or attributes.get("ceil_mode", 0)
            or attributes.get("auto_pad", b"NOTSET") != b"NOTSET"
            or max(attributes.get("dilations", (1,))) > 1
        ):
            raise Stays(f"AveragePool `{node.name}` does more than average without padding")
        if signal.stride != (1, 1) or signal.flat or size * signal.levels > MAX_LEVELS:
            raise Stays(f"AveragePool `{node.name}` has a window of {size} places")
        sums = self.body.name(f"{node.output[0]}/events")
        self.body.nodes.append(
            helper.make_node(
                "EventSumPool",
                [signal.events],
                [sums],
                name=sums,  # the pooling itself may be read by others, too
                domain=dialect.DOMAIN,
                kernel_shape=kernel,
                strides=list(attributes.get("strides", (1, 1))),
                pads=[0] * 4,
                dilations=[1, 1],
            )
        )
        matrix = (
            np.eye(signal.channels, dtype=np.float32) if signal.matrix is None else signal.matrix
        )
        return replace(
            signal, events=sums, levels=size * signal.levels, matrix=matrix / np.float32(size)
        )

    def _rounded(self, node: onnx.NodeProto) -> Signal:
        """Sums of whole numbers, which were averaged and multiplied again: as bytes they are whole."""
        signal = self.of(node.input[0])
        if signal.matrix is not None and (signal.matrix != np.round(signal.matrix)).any():
            raise Stays(f"Round `{node.name}` rounds more than sums of spikes")
        return signal

    def _flattened(self, node: onnx.NodeProto) -> Signal:
        """Bytes in the order of the flattened tensor, as channels of one place."""
        signal = self.of(node.input[0])
        rank = len(self.body.shape(node.input[0]))
        if rank != 4 or attributes_of(node).get("axis", 1) not in (1, 1 - rank):
            raise Stays(f"Flatten `{node.name}` does not put maps into rows")
        if signal.flat or signal.stride != (1, 1):
            raise Stays(f"Flatten `{node.name}` reads every n-th place")
        if signal.matrix is not None:
            _ = signal.amplitude  # channels in their order
        first = self.body.emit(
            self.body.nodes, "Transpose", [signal.events], f"{node.output[0]}/first", perm=TO_FIRST
        )
        flat = self.body.emit(self.body.nodes, "Flatten", [first], f"{node.output[0]}/flat", axis=1)
        axes = self.body.constant(f"{node.output[0]}/axes", np.array([1, 2]))
        events = self.body.emit(
            self.body.nodes, "Unsqueeze", [flat, axes], f"{node.output[0]}/events"
        )
        return replace(signal, events=events, flat=True)

    def _concatenated(self, node: onnx.NodeProto) -> Signal:
        """Maps side by side: bytes in the order of the channels."""
        parts = [self.of(name) for name in node.input]
        if attributes_of(node)["axis"] not in (1, 1 - len(self.body.layer_shape(node.output[0]))):
            raise Stays(f"Concat `{node.name}` does not put channels side by side")
        if any(part.stride != (1, 1) or part.flat for part in parts):
            raise Stays(f"Concat `{node.name}` reads every n-th place, or what is flattened")
        events = self.body.emit(
            self.body.nodes, "Concat", [p.events for p in parts], f"{node.output[0]}/events", axis=3
        )
        matrix = None
        if any(part.matrix is not None for part in parts):
            amplitudes = [
                np.ones(part.channels, np.float32) if part.amplitude is None else part.amplitude
                for part in parts
            ]
            matrix = np.diag(np.concatenate(amplitudes))
        if all(part.events in self.flat for part in parts):
            self.flat.add(events)
        channels, levels = sum(p.channels for p in parts), max(p.levels for p in parts)
        return Signal(events, channels, levels, matrix=matrix)

    def _sliced(self, node: onnx.NodeProto) -> Signal:
        """Every n-th row or column, from the first."""
        signal = self.of(node.input[0])
        rank = len(self.body.layer_shape(node.input[0]))
        starts, ends, axes = (self.body.value(name) for name in node.input[1:4])
        steps = self.body.value(node.input[4]) if len(node.input) > 4 else np.ones_like(starts)
        stride = list(signal.stride)
        for start, end, axis, step in zip(starts, ends, axes % rank, steps, strict=True):
            if start != 0 or end < END or axis not in (2, 3) or step < 1 or signal.flat:
                raise Stays(f"Slice `{node.name}` does more than take every n-th row or column")
            stride[int(axis) - 2] *= int(step)
        return replace(signal, stride=(stride[0], stride[1]))

    def _padded(self, node: onnx.NodeProto) -> Signal:
        """Silent channels before and behind."""
        signal = self.of(node.input[0])
        pads = self.body.value(node.input[1])
        fill = (
            self.body.value(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
        )
        mode = attributes_of(node).get("mode", b"constant")
        if mode != b"constant" or fill.any() or len(node.input) > 3 or pads.size != 8:
            raise Stays(f"Pad `{node.name}` does more than add silent channels")
        before, behind = int(pads[1]), int(pads[5])
        if np.count_nonzero(pads) != (before != 0) + (behind != 0) or min(before, behind) < 0:
            raise Stays(f"Pad `{node.name}` does more than add silent channels")
        matrix = signal.matrix
        if matrix is None:
            matrix = np.eye(signal.channels, dtype=np.float32)
        return replace(signal, matrix=np.pad(matrix, ((0, 0), (before, behind))))
