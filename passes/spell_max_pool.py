"""Write what is a max pooling, or only looks like one, as what it is.

    ReduceMax over the axes of a map          MaxPool of that window (with Transpose where channels are
                                              reduced), ReduceMin as -MaxPool(-x)
    MaxPool with a kernel of 1                Slice, which is linear
    Pad, then MaxPool                         the padding of the MaxPool, which counts for nothing
Only between spiking layers; elsewhere these stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from snncompiler.graph import (
    Graph,
    Node,
    axes_of,
    constant_input,
    drop_dead,
    infer_node,
    input_at,
    known,
    producer,
    rank,
    readers,
    tensor_names,
)
from snncompiler.operators import rectifier
from snncompiler.passes.base import Context, Pass
from snncompiler.rewriting import Writer
from snncompiler.signs import never_negative
from snncompiler.timing import analyze

#: A fill that stands for minus infinity: exporters write the lowest float32, or the lowest float16.
_LOWEST, _LOWEST_HALF = -1e30, float(np.finfo(np.float16).min)
#: The most axes of a window, of onnxruntime's MaxPool and of ours.
MAX_AXES = 3
#: Why a maximum is no MaxPool.
UNKNOWN_SIZE = "its window is as large as its input, whose size is not known"
UNKNOWN_AXES = "its axes are computed at run time"
ACROSS_SAMPLES = "it reduces the batch axis, so that samples depend on each other"
TOO_MANY_AXES = f"as a pooling it would have a window of more than {MAX_AXES} axes"
#: The end of every axis, in a Slice.
_END = 2**31 - 1


@dataclass(frozen=True)
class SpellMaxPool(Pass):
    """ReduceMax becomes MaxPool, a kernel of 1 a Slice, and padding goes into the pooling."""

    name: ClassVar[str] = "spell-max-pool"
    requires: ClassVar[frozenset[str]] = frozenset({"shapes", "batch-tracked"})
    ensures: ClassVar[frozenset[str]] = frozenset({"max-pool-spelled"})

    def run(self, graph: Graph, context: Context) -> None:
        writer = Writer(graph, context, tensor_names(graph))
        timing = analyze(graph, lambda node: rectifier(node) is not None)
        for node in [node for node in graph.nodes if timing.phase(node) == "temporal"]:
            if node.domain or not node.outputs:
                continue
            if node.op in ("ReduceMax", "ReduceMin"):
                _spell_reduction(writer, node)
            elif node.op == "MaxPool":
                _drop_indices(graph, node)
                absorb_pad(writer, node)
                _subsample(writer, node)
        drop_dead(graph)


def _drop_indices(graph: Graph, pool: Node) -> None:
    if len(pool.outputs) > 1 and not readers(pool.outputs[1], graph):
        pool.outputs.pop()


# --- reductions ---


def reduced_axes(node: Node) -> list[int] | None:
    """The axes of a ReduceMax or ReduceMin, all of them where it names none; None where unknown."""
    size = rank(node.inputs[0])
    try:
        axes = None if size is None else axes_of(node, size)
    except ValueError:
        return None
    if size is None:
        return None
    if axes:
        return sorted(axes)
    return [] if node.attrs.get("noop_with_empty_axes", 0) else list(range(size))


def obstacle(node: Node, batch: int = 0) -> str:
    """Why a reduction or a global pooling is no MaxPool; empty where it is one."""
    if node.op == "GlobalMaxPool":
        return UNKNOWN_SIZE
    axes, shape = reduced_axes(node), node.inputs[0].shape
    if axes is None:
        return UNKNOWN_AXES
    if batch in axes:
        return ACROSS_SAMPLES
    if not all(known(shape[axis]) for axis in axes):
        return UNKNOWN_SIZE
    kept = len(shape) - len(axes) - 1
    if len(axes) + max(kept - 1, 0) > MAX_AXES:
        return TOO_MANY_AXES
    return ""


def _spell_reduction(writer: Writer, node: Node) -> None:
    x = node.inputs[0]
    batch = writer.context.batch_axis.get(x.name, 0)
    axes = reduced_axes(node)
    if axes is None or obstacle(node, batch):
        return
    base, size = node.name, len(x.shape)
    kept = [axis for axis in range(size) if axis not in axes and axis != batch]
    # The batch, then channels, then what windows lie over; the other axes stay in their order.
    order = [batch, *([1] if 1 in kept else kept[:1])]
    order += [axis for axis in range(size) if axis not in order]
    value = x
    if order != list(range(size)):
        value = writer.node(base, "Transpose", [value], {"perm": order})
    if not kept:
        value = writer.node(base, "Unsqueeze", [value, writer.whole_numbers(base, [1])])
    if node.op == "ReduceMin":
        value = writer.node(base, "Neg", [value])
    if axes:
        window = order[2:] if kept else order[1:]
        kernel = [int(x.shape[axis]) if axis in axes else 1 for axis in window]
        value = writer.node(base, "MaxPool", [value], {"kernel_shape": kernel})
    if node.op == "ReduceMin":
        value = writer.node(base, "Neg", [value])
    if not kept:
        value = writer.node(base, "Squeeze", [value, writer.whole_numbers(base, [1])])
    if order != list(range(size)):
        back = [order.index(axis) for axis in range(size)]
        value = writer.node(base, "Transpose", [value], {"perm": back}, batch)
    if axes and not node.attrs.get("keepdims", 1):
        left = batch - sum(1 for axis in axes if axis < batch)
        value = writer.node(base, "Squeeze", [value, writer.whole_numbers(base, axes)], {}, left)
    if value is x:
        value = writer.node(base, "Identity", [value], {}, batch)
    writer.replace(node, value)


# --- a kernel of 1 ---


def _subsample(writer: Writer, pool: Node) -> None:
    kernel = pool.attrs["kernel_shape"]
    if (
        any(size != 1 for size in kernel)
        or len(pool.outputs) > 1
        or any(pool.attrs.get("pads", []))
    ):
        return
    strides = pool.attrs.get("strides", [1] * len(kernel))
    axes = [2 + index for index, stride in enumerate(strides) if stride > 1]
    if axes:
        # The last window starts inside, with ceil_mode too: one that starts behind the end is dropped.
        bounds = [[0] * len(axes), [_END] * len(axes), axes, [s for s in strides if s > 1]]
        inputs = [writer.whole_numbers(pool.name, numbers) for numbers in bounds]
        writer.replace(pool, writer.node(pool.name, "Slice", [pool.inputs[0], *inputs]))
    else:
        writer.replace(pool, writer.node(pool.name, "Identity", [pool.inputs[0]]))


# --- padding ---


def padded_with_lowest(pool: Node) -> bool:
    """Whether a Pad with what stands for minus infinity comes right before the pooling."""
    pad = producer(pool.inputs[0])
    return pad is not None and pad.op == "Pad" and not pad.domain and fills_with_lowest(pad)


def fills_with_lowest(pad: Node) -> bool:
    fill = _fill(pad)
    return fill is not None and (fill <= _LOWEST or fill == _LOWEST_HALF)


def absorb_pad(writer: Writer, pool: Node) -> None:
    """Move constant padding that is never above the values into the pooling, which ignores its own."""
    pad = producer(pool.inputs[0])
    if pad is None or pad.op != "Pad" or pad.domain or "SAME" in pool.attrs.get("auto_pad", ""):
        return
    widths, fill = _spatial_pads(pad), _fill(pad)
    if widths is None or fill is None:
        return
    x = pad.inputs[0]
    if pool.op == "GlobalMaxPool" and fills_with_lowest(pad):
        pool.inputs[0] = x
        return
    positive = never_negative(x)
    if not (fills_with_lowest(pad) or (positive and fill <= 0)):
        return
    count = len(pool.attrs["kernel_shape"])
    own = pool.attrs.get("pads") or [0] * 2 * count
    axes = [_Axis.of(pool, index, own, x.shape[2 + index], widths[index]) for index in range(count)]
    if not all(axis.reaches() for axis in axes):
        return
    if all(axis.fits() for axis in axes):
        pool.inputs[0] = x
        pool.attrs.pop("auto_pad", None)
        pool.attrs["pads"] = [axis.begin for axis in axes] + [axis.end for axis in axes]
        infer_node(pool, writer.graph.opset)
    elif positive and fill < 0:
        # Every window sees a value, and none is below 0: padding with 0 is the same.
        attrs = {"mode": "constant"}
        inputs = [x, pad.inputs[1], writer.numbers(pad.name, 0.0, x), *list(pad.inputs)[3:]]
        pool.inputs[0] = writer.node(pad.name, "Pad", inputs, attrs)


def _fill(pad: Node) -> float | None:
    """The one constant that a Pad fills with; None for other modes."""
    if pad.attrs.get("mode", "constant") != "constant":
        return None
    if input_at(pad, 2) is None:
        return 0.0
    fill = constant_input(pad, 2)
    return None if fill is None or fill.size != 1 else float(fill.reshape(()))


def _spatial_pads(pad: Node) -> list[tuple[int, int]] | None:
    """(begin, end) of every axis from 2 on; None where others are padded, or something is cut."""
    pads, size = constant_input(pad, 1), rank(pad.inputs[0])
    if pads is None or size is None or size < 3:
        return None
    try:
        axes = axes_of(pad, size, input_index=3) or list(range(size))
    except ValueError:
        return None
    widths = [(0, 0)] * size
    for place, axis in enumerate(axes):
        widths[axis] = int(pads[place]), int(pads[place + len(axes)])
    if any(min(width) < 0 for width in widths) or any(any(width) for width in widths[:2]):
        return None
    return widths[2:]


@dataclass(frozen=True)
class _Axis:
    """One axis of a pooling of a padded value of `size` elements (None: unknown) before padding."""

    size: int | None
    kernel: int
    stride: int
    dilation: int
    #: Padding of both together; of the Pad alone.
    begin: int
    end: int
    padded: tuple[int, int]
    ceil: bool

    @staticmethod
    def of(pool: Node, index: int, own: list[int], size: object, padded: tuple[int, int]) -> _Axis:
        count = len(pool.attrs["kernel_shape"])
        return _Axis(
            size=int(size) if known(size) else None,  # type: ignore[call-overload]
            kernel=int(pool.attrs["kernel_shape"][index]),
            stride=int((pool.attrs.get("strides") or [1] * count)[index]),
            dilation=int((pool.attrs.get("dilations") or [1] * count)[index]),
            begin=own[index] + padded[0],
            end=own[count + index] + padded[1],
            padded=padded,
            ceil=bool(pool.attrs.get("ceil_mode", 0)),
        )

    def windows(self, size: int, inside: int) -> int:
        """How many windows lie on `size` values; they start before the values or in `inside` ones."""
        room = size + self.begin + self.end - self.dilation * (self.kernel - 1) - 1
        count = (-(-room // self.stride) if self.ceil else room // self.stride) + 1
        return count - (self.ceil and (count - 1) * self.stride >= inside + self.begin)

    def reaches(self) -> bool:
        """Whether every window has a tap on a value."""
        if self.size is None:
            # Windows start at -begin at the earliest, and end at size + end at the latest.
            inside = max(self.begin, self.end) < self.kernel
            return inside and self.dilation == 1 and not self.ceil
        starts = np.arange(self.windows(self.size, self.size + self.padded[1])) * self.stride
        taps = starts[:, None] - self.begin + np.arange(self.kernel) * self.dilation
        return bool(((taps >= 0) & (taps < self.size)).any(axis=1).all())

    def fits(self) -> bool:
        """Whether MaxPool itself may have this padding.

        It has as many windows with it: it drops those that start behind the values, which reach none.
        """
        return max(self.begin, self.end) < self.kernel
