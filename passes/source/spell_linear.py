"""Write operators that only pick, place or copy as Gather and Where.

    GatherND, GatherElements, Compress, ReverseSequence   Reshape, Gather, Reshape
    ScatterND, ScatterElements    Where(written, Gather(updates), data); with sums: data + that
    CastLike                      the Cast that it is
Their indices have to be constants.  These hold one sample's places, with the batch as an axis of size
1, so that the operators themselves would take no second sample; a Gather along another axis does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from snncompiler.ir.graph import (
    Graph,
    Node,
    Tensor,
    constant,
    constant_input,
    drop_dead,
    infer_node,
    is_live,
    known,
    tensor_names,
    unique_name,
    value,
)
from snncompiler.passes.base import Context, Pass

Array = NDArray[Any]


@dataclass(frozen=True)
class SpellLinear(Pass):
    """GatherND, ScatterND, Compress and their like become Gather and Where."""

    name: ClassVar[str] = "spell-linear"
    requires: ClassVar[frozenset[str]] = frozenset({"constants-folded", "shapes"})
    ensures: ClassVar[frozenset[str]] = frozenset({"linear-spelled"})

    def run(self, graph: Graph, context: Context) -> None:
        taken = tensor_names(graph)
        for node in list(graph.nodes):
            if not node.domain and node.op in _SPELLED and any(map(is_live, node.inputs)):
                writer = _Writer(graph, node, taken)
                result = _SPELLED[node.op](writer, node)
                if result is not None:
                    writer.replace(result)
        graph.nodes = [node for node in graph.nodes if node.outputs]
        drop_dead(graph)


@dataclass
class _Writer:
    """Makes the nodes that stand for one node."""

    graph: Graph
    node: Node
    taken: set[str]

    def __post_init__(self) -> None:
        self.made: list[Node] = []

    def apply(self, op: str, *inputs: Tensor | Array, **attrs: Any) -> Tensor:
        given = [
            x if isinstance(x, gs.Tensor) else constant(f"{self.node.name}/constant", x, self.taken)
            for x in inputs
        ]
        result = gs.Variable(unique_name(f"{self.node.name}/{op.lower()}", self.taken))
        new = gs.Node(op, result.name, attrs=attrs, inputs=given, outputs=[result])
        infer_node(new, self.graph.opset)
        self.made.append(new)
        return result

    def reshape(self, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        if tuple(tensor.shape or ()) == shape:
            return tensor
        fixed = value(tensor)
        if fixed is not None:
            return constant(f"{self.node.name}/constant", fixed.reshape(shape), self.taken)
        return self.apply("Reshape", tensor, np.array(shape, np.int64))

    def replace(self, result: Tensor) -> None:
        """Let `result` take the place of the node's output."""
        if not self.made or self.made[-1].outputs[0] is not result:
            self.apply("Identity", result)
        output = self.node.outputs[0]
        self.node.inputs.clear()
        self.node.outputs.clear()
        self.made[-1].outputs[0] = output
        self.graph.nodes += self.made


# --- picking: which flat places of the axes that are indexed ---


@dataclass(frozen=True)
class _Places:
    """Places along one axis: `shape` is the data's, with its indexed axes as the one at `axis`.

    `at` has the places in order; what comes of them has the shape `kept` in place of that axis.
    """

    shape: tuple[int, ...]
    axis: int
    at: Array
    kept: tuple[int, ...]

    def spread(self, kept: tuple[int, ...]) -> tuple[int, ...]:
        return (*self.shape[: self.axis], *kept, *self.shape[self.axis + 1 :])


def _shape(tensor: Tensor) -> tuple[int, ...] | None:
    if tensor.shape is None or not all(known(dim) for dim in tensor.shape):
        return None
    return tuple(int(dim) for dim in tensor.shape)


def _places_nd(node: Node) -> _Places | None:
    """The places of GatherND and ScatterND; leading axes of size 1 stay axes of their own."""
    shape, indices = _shape(node.inputs[0]), constant_input(node, 1)
    if shape is None or indices is None or not indices.ndim:
        return None
    batch = int(node.attrs.get("batch_dims", 0))
    depth = batch + indices.shape[-1]
    # How many leading axes hold one sample each: the batch, as it was frozen.
    lone = next((i for i, size in enumerate(shape[:depth]) if size != 1), depth)
    if lone < batch or lone == 0 or lone == depth:
        return None
    leading = (*indices.shape[:batch], *[1] * (lone - batch))
    rows = indices.reshape(-1, indices.shape[-1])[:, lone - batch :]
    sizes = np.array(shape[lone:depth])
    rows = np.where(rows < 0, rows + sizes, rows)
    if indices.shape[:batch] != (1,) * batch or ((rows < 0) | (rows >= sizes)).any():
        return None
    at = np.ravel_multi_index(tuple(rows.T), tuple(sizes))
    merged = (*leading, prod(shape[lone:depth]), *shape[depth:])
    inner = indices.shape[batch:-1]
    # What comes out has the leading axes of `indices`; the axes of size 1 go in front of them.
    if inner[: lone - batch] != (1,) * (lone - batch):
        return None
    return _Places(merged, lone, at.astype(np.int64), inner[lone - batch :])


def _places_elements(node: Node) -> _Places | None:
    """The places of GatherElements and ScatterElements, in one sample as a flat row."""
    shape, indices = _shape(node.inputs[0]), constant_input(node, 1)
    if shape is None or indices is None or len(shape) < 2 or shape[0] != 1:
        return None
    if indices.ndim != len(shape):
        return None  # malformed, as running the source will tell
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    if axis == 0 or indices.shape[0] != 1:
        return None
    grid: list[Array] = list(np.indices(indices.shape))
    grid[axis] = np.where(indices < 0, indices + shape[axis], indices)
    if (grid[axis] < 0).any() or (grid[axis] >= shape[axis]).any():
        return None
    at = np.ravel_multi_index(tuple(grid), shape).reshape(-1)
    return _Places((1, prod(shape[1:])), 1, at.astype(np.int64), indices.shape[1:])


def _gather(writer: _Writer, node: Node, places: _Places | None) -> Tensor | None:
    if places is None or not places.at.size:
        return None
    flat = writer.reshape(node.inputs[0], places.shape)
    picked = writer.apply("Gather", flat, places.at, axis=places.axis)
    return writer.reshape(picked, places.spread(places.kept))


def _scatter(writer: _Writer, node: Node, places: _Places | None) -> Tensor | None:
    reduction = node.attrs.get("reduction", "none")
    data, updates = node.inputs[0], node.inputs[2]
    if places is None or reduction not in ("none", "add") or not places.at.size:
        return None
    size, fixed = places.shape[places.axis], value(updates)
    wide = [1] * (len(places.shape) - places.axis - 1)
    shaped = places.spread((places.at.size,))
    whole = _shape(data)
    assert whole is not None
    flat = writer.reshape(data, places.shape)
    if reduction == "add" and fixed is not None:
        total = np.zeros((*places.shape[: places.axis], *flat.shape[places.axis :]), fixed.dtype)
        rows = np.moveaxis(total, places.axis, 0)
        np.add.at(rows, places.at, np.moveaxis(fixed.reshape(shaped), places.axis, 0))
        return writer.reshape(writer.apply("Add", flat, total), whole)
    source = np.zeros(size, np.int64)
    source[places.at] = np.arange(places.at.size)
    written = np.zeros(size, np.bool_)
    written[places.at] = True
    if reduction == "add" and len(np.unique(places.at)) < places.at.size:
        return None
    moved: Tensor | Array
    if fixed is not None:
        moved = np.take(np.asarray(fixed).reshape(shaped), source, axis=places.axis)
    else:
        rows = writer.reshape(updates, shaped)
        moved = writer.apply("Gather", rows, source, axis=places.axis)
    mask = written.reshape(size, *wide)
    if reduction == "add":
        zero = np.zeros((), data.dtype)
        added = writer.apply("Where", mask, moved, zero)
        result = writer.apply("Add", flat, added)
    else:
        result = writer.apply("Where", mask, moved, flat)
    return writer.reshape(result, whole)


def _compress(writer: _Writer, node: Node) -> Tensor | None:
    condition = constant_input(node, 1)
    if condition is None or "axis" not in node.attrs:
        return None
    chosen = np.flatnonzero(condition).astype(np.int64)
    return writer.apply("Gather", node.inputs[0], chosen, axis=int(node.attrs["axis"]))


def _reverse_sequence(writer: _Writer, node: Node) -> Tensor | None:
    lengths, shape = constant_input(node, 1), _shape(node.inputs[0])
    axis = int(node.attrs.get("time_axis", 0))
    if lengths is None or shape is None or len(np.unique(lengths)) != 1:
        return None
    count = int(lengths.reshape(-1)[0])
    order = np.arange(shape[axis])
    order[:count] = order[:count][::-1]
    return writer.apply("Gather", node.inputs[0], order, axis=axis)


def _cast_like(writer: _Writer, node: Node) -> Tensor | None:
    kind = node.inputs[1].dtype
    if kind is None:
        return None
    to = int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)))
    return writer.apply("Cast", node.inputs[0], to=to)


def _power(writer: _Writer, node: Node) -> Tensor | None:
    exponent = constant_input(node, 1)
    if exponent is None or exponent.size != 1 or exponent.ndim or float(exponent) != 1.0:
        return None
    return writer.apply("Identity", node.inputs[0])


_SPELLED: dict[str, Callable[[_Writer, Node], Tensor | None]] = {
    "GatherND": lambda writer, node: _gather(writer, node, _places_nd(node)),
    "GatherElements": lambda writer, node: _gather(writer, node, _places_elements(node)),
    "ScatterND": lambda writer, node: _scatter(writer, node, _places_nd(node)),
    "ScatterElements": lambda writer, node: _scatter(writer, node, _places_elements(node)),
    "Compress": _compress,
    "ReverseSequence": _reverse_sequence,
    "CastLike": _cast_like,
    "Pow": _power,
}
