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

from snncompiler.ir.graph import (
    Graph,
    Node,
    axes_of,
    drop_dead,
    infer_shapes,
    known,
    rank,
    readers,
    tensor_names,
)
from snncompiler.ir.operators import record
from snncompiler.ir.phases import analyze
from snncompiler.ir.rectifiers import rectifier
from snncompiler.passes.base import Context, Pass
from snncompiler.passes.padding import absorb_pad
from snncompiler.passes.rewriting import Writer

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
            nature = record(node.op)
            if nature.pools == "maximum" and nature.over == "axes":
                _spell_reduction(writer, node)
            elif node.op == "MaxPool":
                _drop_indices(graph, node)
                absorb_pad(writer, node)
                _subsample(writer, node)
        drop_dead(graph)
        # With ceil_mode ONNX counts a window that starts behind the end; a Slice has none.
        infer_shapes(graph)


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
