"""Synaptic operations: what arrives at the weights of a network, counted exactly.

One synaptic operation is one weight that is added because one spike arrived at it.  A layer's weights
are those of a Conv, ConvTranspose, Gemm or MatMul with a constant factor that reads values which
change with time.  Its spikes are the non-zero elements of what it reads, as onnxruntime gets them: of
pooled spikes or of several put together each non-zero element counts once, whatever its value.  Each
place of a sample has a *fan-out*: the pairs of an output position and a kernel tap that read it, times
the output channels of its group.  Taps in the padding read nothing and count nowhere.  So

    done      Σ over time-steps and places of (element != 0) · fan-out
    dense     Σ over time-steps and places of fan-out: the multiply-accumulates of the same layer
    avoided   dense - done

What is computed once per sample (before the first neuron, behind the last one) is counted apart, in
multiply-accumulates, as `dense` for one step.  Sums of currents, residuals included, pooling and the
neurons themselves are no synapses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from snncompiler.ir import dialect
from snncompiler.ir.operators import record

Array = NDArray[Any]


@dataclass(frozen=True)
class Axis:
    """A convolution along one axis.  `same` is auto_pad's SAME_UPPER or SAME_LOWER, else empty;
    `extra` is a transposed convolution's output_padding, `output` its output_shape, 0 where unknown."""

    kernel: int
    stride: int
    dilation: int
    pads: tuple[int, int]
    same: str = ""
    transposed: bool = False
    extra: int = 0
    output: int = 0

    def reads(self, size: int) -> NDArray[np.int64]:
        """How many pairs of an output position and a tap read each of `size` places, [size]."""
        taps = self.taps(size)
        return np.bincount(taps[taps >= 0], minlength=size)

    def taps(self, size: int) -> NDArray[np.int64]:
        """Which of `size` places every output position reads with each tap, [positions, kernel]; -1
        where that is none: in the padding, or between the strides of a transposed convolution."""
        reach = (self.kernel - 1) * self.dilation + 1
        steps = np.arange(self.kernel) * self.dilation
        if self.transposed:
            before, length = self._written(size, reach)
            shifted = np.arange(length)[:, None] - steps + before
            read = np.where(shifted % self.stride == 0, shifted // self.stride, -1)
        else:
            before, behind = self.pads
            if self.same:
                total = max((-(-size // self.stride) - 1) * self.stride + reach - size, 0)
                before, behind = self._halves(total, self.same == "SAME_LOWER")
            length = max((size + before + behind - reach) // self.stride + 1, 0)
            read = np.arange(length)[:, None] * self.stride + steps - before
        return np.where((read >= 0) & (read < size), read, -1)

    def _written(self, size: int, reach: int) -> tuple[int, int]:
        """A transposed convolution's padding at the start, and its output positions."""
        whole = (size - 1) * self.stride + reach + self.extra
        if not (self.same or self.output):
            return self.pads[0], whole - sum(self.pads)
        length = self.output or size * self.stride
        return self._halves(whole - length, self.same != "SAME_UPPER")[0], length

    @staticmethod
    def _halves(total: int, more_before: bool) -> tuple[int, int]:
        less = total // 2
        return (total - less, less) if more_before else (less, total - less)


@dataclass(frozen=True)
class Synapses:
    """The constant weights of one node, seen from the tensor that they multiply.

    `source` is that tensor, [N, C, ...]; every read of one of its elements meets `outputs` weights.
    `batch` are the leading dimensions of a MatMul's weights, over which the product is repeated.
    """

    node: str
    source: str
    outputs: int
    axes: tuple[Axis, ...] = ()
    batch: tuple[int, ...] = ()

    def fan_out(self, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """The fan-out of every element of a source of this shape; broadcasts to it."""
        fan = np.array(self.outputs, np.int64)
        if self.batch:
            own = shape[:-2]
            fan = fan * (prod(np.broadcast_shapes(own, self.batch)) // max(prod(own), 1))
        for axis, size in zip(self.axes, shape[len(shape) - len(self.axes) :], strict=True):
            fan = fan[..., None] * axis.reads(size)
        return fan

    def dense(self, shape: tuple[int, ...]) -> int:
        """The multiply-accumulates of one pass over a source of this shape."""
        fan = self.fan_out(shape)
        return int(fan.sum()) * (prod(shape) // max(fan.size, 1))

    def done(self, counts: Array) -> int:
        """The synaptic operations of `counts` non-zero arrivals at every place, exact below 2^53."""
        others = tuple(range(counts.ndim - len(self.axes)))
        places = counts.sum(axis=others, dtype=np.float64)
        fan = self.fan_out(counts.shape)
        return int((places * fan).sum())


def synapses_of(node: onnx.NodeProto, values: Mapping[str, onnx.TensorProto]) -> list[Synapses]:
    """The synapses of a node, none where it has no constant weights.

    `values` are the constants.  An event-driven operator has one group or two, and its sources are
    here `[N, C, H, W]` too.
    """
    if node.domain == dialect.DOMAIN and node.op_type in dialect.EVENT_NEURONS:
        return _of_event(node, values)
    layout = record(node.op_type).weights if node.domain in ("", "ai.onnx") else None
    if layout is None or layout == "equation":
        return []
    left, right = node.input[0], node.input[1]
    attributes = _attributes(node)
    if layout == "matrix":
        return _of_product(node, left, right, attributes, values)
    if right not in values or left in values:
        return []
    dims = values[right].dims
    transposed = layout == "inputs-first"
    outputs = dims[1] if transposed else dims[0] // int(attributes.get("group", 1))
    return [Synapses(node.name, left, int(outputs), axes_of(dims[2:], attributes, transposed))]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def _of_product(
    node: onnx.NodeProto,
    left: str,
    right: str,
    attributes: Mapping[str, Any],
    values: Mapping[str, onnx.TensorProto],
) -> list[Synapses]:
    """Gemm or MatMul; the constant factor may be either one."""
    if (left in values) == (right in values):
        return []
    behind = right in values
    dims = tuple(values[right if behind else left].dims)
    swapped = bool(attributes.get("transB" if behind else "transA", 0))
    at = -1 if behind != swapped else -2
    outputs = dims[at] if len(dims) > 1 else 1
    return [Synapses(node.name, left if behind else right, int(outputs), batch=dims[:-2])]


def _of_event(node: onnx.NodeProto, values: Mapping[str, onnx.TensorProto]) -> list[Synapses]:
    found = []
    names = [port.name for port in dialect.EVENT_OPERATORS[node.op_type].inputs]
    attributes = _attributes(node)
    for more in ("", "more_"):
        if f"{more}weights" not in names:
            continue
        weights = values[node.input[names.index(f"{more}weights")]]
        if "more_weights" in names and _moves_only(weights):
            continue
        window = {key: attributes[more + key] for key in ("strides", "pads", "dilations")}
        source = node.input[names.index(f"{more}spikes")]
        axes = axes_of(weights.dims[:2], window, False)
        group = 1 if more else int(attributes["group"])
        found.append(Synapses(node.name, source, int(weights.dims[3]) // group, axes))
    return found


def _moves_only(weights: onnx.TensorProto) -> bool:
    """Whether a convolution stands for a residual, which has no weights in the network."""
    matrix = numpy_helper.to_array(weights)
    one_tap = matrix.shape[:2] == (1, 1) and matrix.shape[3] > 1
    return one_tap and bool(((matrix != 0).sum(axis=-1) <= 1).all())


def axes_of(
    kernel: Sequence[int], attributes: Mapping[str, Any], transposed: bool
) -> tuple[Axis, ...]:
    """The axes of a convolution with a kernel of this size and these attributes of its node."""
    rank = len(kernel)
    pads = list(attributes.get("pads") or [0] * 2 * rank)
    same = attributes.get("auto_pad", "NOTSET")
    same = same.decode() if isinstance(same, bytes) else same
    ones, none = [1] * rank, [0] * rank
    return tuple(
        Axis(
            kernel=int(kernel[index]),
            stride=int((attributes.get("strides") or ones)[index]),
            dilation=int((attributes.get("dilations") or ones)[index]),
            pads=(int(pads[index]), int(pads[rank + index])),
            same=same if same.startswith("SAME") else "",
            transposed=transposed,
            extra=int((attributes.get("output_padding") or none)[index]),
            output=int((attributes.get("output_shape") or none)[-rank:][index]),
        )
        for index in range(rank)
    )
