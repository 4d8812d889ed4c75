"""Follow the batch axis from the inputs through every operator, and make it symbolic.

The source may have been exported for one sample, with the batch written into Reshape targets.  Each
operator has a rule that says where its batch axis goes, from the shapes for one sample; where a
rule cannot tell, the reason is kept and the network is unrolled without folding time into the
batch.  What is proved here is checked by running three samples at once and one by one
(`snncompiler.pipeline`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from snncompiler.ir.graph import (
    BATCH,
    WHOLE_AXIS,
    Graph,
    Node,
    Tensor,
    axes_of,
    axis_factors,
    constant,
    constant_input,
    infer_shapes,
    input_at,
    known,
    label,
    rank,
    sort_nodes,
    tensor_names,
    unique_name,
    value,
)
from snncompiler.ir.linear import einsum_terms
from snncompiler.ir.operators import Batch, record
from snncompiler.passes.base import ByBatch, Context, Pass

#: What the batch dimension is called in the models that we write, where no other has that name.
BATCH_NAMES = ("N", "batch")


#: More axes than any tensor has.
_FAR = 1 << 16


class Lost(Exception):
    """The batch axis cannot be followed through an operator; the text says why."""


@dataclass(frozen=True)
class TrackBatch(Pass):
    """Prove where the batch axis is in every tensor; make the leading input axis symbolic."""

    name: ClassVar[str] = "track-batch"
    requires: ClassVar[frozenset[str]] = frozenset({"shapes", "constants-folded"})
    ensures: ClassVar[frozenset[str]] = frozenset({"batch-tracked"})
    again: ClassVar[str] = "it writes the target of every Reshape anew, with the same values"

    def run(self, graph: Graph, context: Context) -> None:
        axes = context.batch_axis
        for tensor in graph.inputs:
            if tensor.shape:
                axes[tensor.name] = 0
        sort_nodes(graph)
        taken = tensor_names(graph)
        targets: list[tuple[Node, list[int]]] = []
        for node in graph.nodes:
            if not any(tensor.name in axes for tensor in node.inputs):
                continue
            try:
                places = _follow(node, axes, targets)
                for tensor, place in zip(node.outputs, places, strict=False):
                    if place is not None and not tensor.is_empty():
                        _check_other(tensor, place, context.by_batch)
                        axes[tensor.name] = place
            except (Lost, ValueError) as reason:
                context.batch_lost[label(node)] = str(reason)
            if node.name in context.by_batch.values:
                context.batch_lost[label(node)] = (
                    "it reads a constant that depends on the number of samples"
                )
            for tensor in node.inputs:
                if isinstance(tensor, gs.Constant) and tensor.name == _scales_of(node):
                    tensor.name = unique_name(tensor.name, taken)
        if not context.batch_lost:
            free_batch(graph, targets)


def _check_other(tensor: Tensor, place: int, found: ByBatch) -> None:
    """Whether the shape for more samples is that for one with more in `place`."""
    other = found.shapes.get(tensor.name)
    if other is None or tensor.shape is None:
        return
    wanted = list(tensor.shape)
    wanted[place] = wanted[place] * found.samples if known(wanted[place]) else None
    pairs = zip(wanted, other, strict=True)
    if any(known(one) and known(many) and one != many for one, many in pairs):
        raise Lost(f"{list(tensor.shape)} of one sample is {other} of {found.samples}")


def free_batch(graph: Graph, targets: list[tuple[Node, list[int]]]) -> None:
    """Make the leading axis of every input symbolic, and rewrite what was written for one batch."""
    taken = tensor_names(graph)
    for node, target in targets:
        if node.op == "Flatten":
            node.attrs["axis"] = 1
            continue
        node.inputs[1] = constant(f"{node.name}_shape", np.array(target, np.int64), taken)
        node.attrs.pop("allowzero", None)
    for tensor in graph.inputs:
        if tensor.shape:
            tensor.shape = [BATCH, *tensor.shape[1:]]
    infer_shapes(graph)


def name_batch(graph: onnx.GraphProto, size: int | None = None) -> None:
    """Give the batch dimension a name that no other dimension of the graph has, or its `size`."""
    dims = [
        dim
        for entry in (*graph.input, *graph.output, *graph.value_info)
        for dim in entry.type.tensor_type.shape.dim
        if dim.dim_param
    ]
    taken = {dim.dim_param for dim in dims}
    name = next((name for name in BATCH_NAMES if name not in taken), None)
    name = name or unique_name(BATCH_NAMES[-1], taken)
    for dim in dims:
        if dim.dim_param == BATCH and size is None:
            dim.dim_param = name
        elif dim.dim_param == BATCH:
            dim.dim_value = size


def _follow(
    node: Node, axes: dict[str, int], targets: list[tuple[Node, list[int]]]
) -> list[int | None]:
    """The batch axis of each output of `node`."""
    if node.domain not in (None, "", "ai.onnx", "ai.onnx.ml"):
        raise Lost(f"operator of domain {node.domain}")
    nature = record(node.op)
    if nature.shape_only:
        raise Lost("the size of its input is found at run time")
    if nature.batch is None:
        raise Lost("no rule for this operator")
    if nature.batch == "reshape":
        return _reshape(node, axes, targets)
    if nature.batch == "flatten":
        return _flatten(node, axes, targets)
    return _RULES[nature.batch](node, axes)


def _first(node: Node, axes: dict[str, int]) -> int:
    """The batch axis of input 0; the other inputs may not carry a batch."""
    for tensor in node.inputs[1:]:
        if tensor.name in axes:
            raise Lost(f"input '{tensor.name}' depends on the sample")
    return axes[node.inputs[0].name]


def _rank(tensor: Tensor) -> int:
    found = rank(tensor)
    if found is None:
        raise Lost(f"the rank of '{tensor.name}' is not known")
    return found


def _same(node: Node, axes: dict[str, int]) -> list[int | None]:
    return [_first(node, axes)] * len(node.outputs)


def _leading(node: Node, axes: dict[str, int]) -> list[int | None]:
    """Operators on [N, C, ...]."""
    axis = _first(node, axes)
    if axis != 0:
        raise Lost(f"the batch is on axis {axis}, where the operator expects channels or space")
    return [0] * len(node.outputs)


def _along(node: Node, axes: dict[str, int]) -> list[int | None]:
    """Operators that work along one axis, which may not be the batch."""
    axis = _first(node, axes)
    along = int(node.attrs.get("axis", record(node.op).axis)) % _rank(node.inputs[0])
    if along == axis:
        raise Lost("it works along the batch axis")
    return [axis] * len(node.outputs)


def _layer_norm(node: Node, axes: dict[str, int]) -> list[int | None]:
    """It works along all axes from its own to the last."""
    axis = _first(node, axes)
    if axis >= int(node.attrs.get("axis", -1)) % _rank(node.inputs[0]):
        raise Lost("it works along the batch axis")
    return [axis] * len(node.outputs)


def _elementwise(node: Node, axes: dict[str, int]) -> list[int | None]:
    out_rank = max(_rank(tensor) for tensor in node.inputs if not tensor.is_empty())
    places = {
        axes[tensor.name] + out_rank - _rank(tensor)
        for tensor in node.inputs
        if tensor.name in axes
    }
    if len(places) != 1:
        raise Lost(f"its inputs have the batch on different axes {sorted(places)}")
    (place,) = places
    for tensor in node.inputs:
        if tensor.name in axes or tensor.is_empty():
            continue
        at = place - (out_rank - _rank(tensor))
        if at >= 0 and tensor.shape[at] != 1:
            raise Lost(f"'{tensor.name}' has size {tensor.shape[at]} along the batch axis")
    return [place] * len(node.outputs)


def _reshape(
    node: Node, axes: dict[str, int], targets: list[tuple[Node, list[int]]]
) -> list[int | None]:
    axis = _first(node, axes)
    target = constant_input(node, 1)
    before, after = node.inputs[0].shape, node.outputs[0].shape
    if target is None or before is None or after is None:
        raise Lost("its target shape is computed at run time")
    if all(known(dim) for dim in before) and all(known(dim) for dim in after):
        lead = prod(before[:axis])
        for place, dim in enumerate(after):
            if prod(after[:place]) == lead and dim == before[axis]:
                new = [int(dim) for dim in after]
                new[place] = 0 if place == axis else -1
                targets.append((node, new))
                return [place]
        raise Lost(f"{list(before)} becomes {list(after)}: the batch is mixed with another axis")
    # Height and width unknown: the target may copy or infer them, the batch must be its own.
    wanted = target.tolist()
    if axis == 0 and wanted[0] in (0, 1) and not node.attrs.get("allowzero", 0):
        targets.append((node, [0, *wanted[1:]]))
        return [0]
    raise Lost(f"its target {wanted} does not show where the batch goes")


def _flatten(
    node: Node, axes: dict[str, int], targets: list[tuple[Node, list[int]]]
) -> list[int | None]:
    axis = _first(node, axes)
    shape = node.inputs[0].shape
    at = int(node.attrs.get("axis", 1))
    at += _rank(node.inputs[0]) if at < 0 else 0
    if axis == at == 0 and shape[0] == 1:
        # All of one sample in one row.
        targets.append((node, [0, -1]))
        return [0]
    if axis != 0 or at == 0 or any(dim != 1 for dim in shape[1:at]):
        raise Lost("the batch is mixed with another axis")
    return [0]


def _transpose(node: Node, axes: dict[str, int]) -> list[int | None]:
    axis = _first(node, axes)
    order = node.attrs.get("perm") or list(range(_rank(node.inputs[0])))[::-1]
    return [order.index(axis)]


def _squeeze(node: Node, axes: dict[str, int]) -> list[int | None]:
    axis = _first(node, axes)
    removed = axes_of(node, _rank(node.inputs[0]))
    if removed is None or axis in removed:
        raise Lost("it removes the batch axis")
    return [axis - sum(1 for other in removed if other < axis)]


def _unsqueeze(node: Node, axes: dict[str, int]) -> list[int | None]:
    axis = _first(node, axes)
    out_rank = _rank(node.outputs[0])
    added = axes_of(node, out_rank) or []
    return [[place for place in range(out_rank) if place not in added][axis]]


def _concat(node: Node, axes: dict[str, int]) -> list[int | None]:
    places = {axes.get(tensor.name) for tensor in node.inputs}
    if len(places) != 1:
        raise Lost("it joins inputs with and without a batch")
    (place,) = places
    if int(node.attrs["axis"]) % _rank(node.inputs[0]) == place:
        raise Lost("it joins along the batch axis")
    return [place]


def _slice(node: Node, axes: dict[str, int]) -> list[int | None]:
    axis = _first(node, axes)
    starts = constant_input(node, 1)
    if input_at(node, 3) is None:
        sliced: list[int] | None = None if starts is None else list(range(starts.size))
    else:
        sliced = axes_of(node, _rank(node.inputs[0]), input_index=3)
    if sliced is None:
        raise Lost("it cuts the batch axis")
    if axis in sliced:
        at, ends, steps = sliced.index(axis), constant_input(node, 2), constant_input(node, 4)
        whole = (
            starts is not None and starts[at] == 0 and ends is not None and ends[at] >= WHOLE_AXIS
        )
        if not whole or (input_at(node, 4) is not None and (steps is None or steps[at] != 1)):
            raise Lost("it cuts the batch axis")
    return [axis]


def _gather(node: Node, axes: dict[str, int]) -> list[int | None]:
    if node.inputs[0].name not in axes:
        # A table from which every sample picks its own rows: the indices' axes stand in its place.
        along = int(node.attrs.get("axis", 0)) % _rank(node.inputs[0])
        return [along + axes[node.inputs[1].name]]
    axis = _first(node, axes)
    along = int(node.attrs.get("axis", 0)) % _rank(node.inputs[0])
    if along == axis:
        raise Lost("it picks from the batch axis")
    return [axis if axis < along else axis + _rank(node.inputs[1]) - 1]


def _pad(node: Node, axes: dict[str, int]) -> list[int | None]:
    axis = _first(node, axes)
    pads = constant_input(node, 1)
    size = _rank(node.inputs[0])
    if pads is None:
        raise Lost("its pads are computed at run time")
    padded = axes_of(node, size, input_index=3) or list(range(size))
    if axis in padded:
        at = padded.index(axis)
        if pads[at] or pads[at + len(padded)]:
            raise Lost("it pads the batch axis")
    return [axis]


def _reduce(node: Node, axes: dict[str, int]) -> list[int | None]:
    axis = _first(node, axes)
    if "axis" in node.attrs or node.op in ("ArgMax", "ArgMin"):
        reduced: list[int] | None = [int(node.attrs.get("axis", 0)) % _rank(node.inputs[0])]
    else:
        reduced = axes_of(node, _rank(node.inputs[0]))
    if not reduced and node.attrs.get("noop_with_empty_axes", 0):
        return [axis]
    if not reduced or axis in reduced:
        raise Lost("it reduces the batch axis")
    if node.attrs.get("keepdims", 1):
        return [axis]
    return [axis - sum(1 for other in reduced if other < axis)]


def _gemm(node: Node, axes: dict[str, int]) -> list[int | None]:
    if _first(node, axes) != (1 if node.attrs.get("transA", 0) else 0):
        raise Lost("it sums over the batch axis")
    bias = input_at(node, 2)
    if bias is not None and rank(bias) == 2 and bias.shape[0] != 1:
        raise Lost(f"its bias has {bias.shape[0]} rows")
    return [0]


def _matmul(node: Node, axes: dict[str, int]) -> list[int | None]:
    left, right = node.inputs
    if left.name in axes and right.name in axes:
        (place,) = _elementwise(node, axes)
        if place is None or place >= _rank(node.outputs[0]) - 2 or min(map(_rank, node.inputs)) < 3:
            raise Lost("the batch is an axis of the matrices")
        return [place]
    live, other = (left, right) if left.name in axes else (right, left)
    size, place = _rank(live), axes[live.name]
    summed = size - 1 if live is left else max(size - 2, 0)
    if place == summed:
        raise Lost("it sums over the batch axis")
    if _rank(other) > 2 and place < size - 2:
        at = place - size + _rank(other)
        if at >= 0 and other.shape[at] != 1:
            raise Lost(f"'{other.name}' has size {other.shape[at]} along the batch axis")
    return [place + max(_rank(other) - size, 0) if size > 1 else place]


def _einsum(node: Node, axes: dict[str, int]) -> list[int | None]:
    found = einsum_terms(node)
    if found is None:
        raise Lost("its equation cannot be followed")
    terms, result = found
    batch = {
        term[axes[tensor.name]]
        for term, tensor in zip(terms, node.inputs, strict=True)
        if tensor.name in axes
    }
    if len(batch) != 1:
        raise Lost(f"its inputs have the batch on different axes {sorted(batch)}")
    (letter,) = batch
    for term, tensor in zip(terms, node.inputs, strict=True):
        if letter in term and tensor.name not in axes and tensor.shape[term.index(letter)] != 1:
            raise Lost(f"'{tensor.name}' has sizes of its own along the batch axis")
        if tensor.name in axes and term.count(letter) > 1:
            raise Lost("it takes the diagonal of the batch axis")
    if result.count(letter) != 1:
        raise Lost("it sums over the batch axis")
    return [result.index(letter)]


def _gather_nd(node: Node, axes: dict[str, int]) -> list[int | None]:
    axis, depth = _first(node, axes), node.inputs[1].shape[-1]
    picked = int(node.attrs.get("batch_dims", 0)) + (int(depth) if known(depth) else _FAR)
    if axis < picked:
        raise Lost("it picks from the batch axis")
    return [axis - picked + _rank(node.inputs[1]) - 1]


def _scatter_nd(node: Node, axes: dict[str, int]) -> list[int | None]:
    data, indices, updates = node.inputs[:3]
    depth, size = indices.shape[-1], _rank(data)
    if indices.name in axes or not known(depth):
        raise Lost("its indices depend on the sample")
    # The axes behind the indexed ones are the last ones of the data and of the updates.
    places = {axes[t.name] - _rank(t) for t in (data, updates) if t.name in axes}
    if len(places) != 1 or min(places) + size < int(depth):
        raise Lost("it writes along the batch axis")
    if data.name not in axes or updates.name not in axes:
        raise Lost("one of its inputs has no batch")
    return [min(places) + size]


def _elements(node: Node, axes: dict[str, int]) -> list[int | None]:
    """GatherElements and ScatterElements, all of whose inputs have one shape but for one axis."""
    places = {axes.get(tensor.name) for tensor in node.inputs}
    if len(places) != 1:
        raise Lost("one of its inputs has no batch")
    (place,) = places
    if int(node.attrs.get("axis", 0)) % _rank(node.inputs[0]) == place:
        raise Lost("it picks along the batch axis")
    return [place]


def _along_input(node: Node, axes: dict[str, int]) -> list[int | None]:
    """CumSum and DFT work along an axis that is an input."""
    axis, position = axes[node.inputs[0].name], record(node.op).axis_input
    along = constant_input(node, position)
    if any(tensor.name in axes for tensor in node.inputs[1:]):
        raise Lost("an input other than the first depends on the sample")
    if along is None and input_at(node, position) is not None:
        raise Lost("its axis is computed at run time")
    # Left out, it is one of two, as the version of DFT says.
    numbers = [node.attrs["axis"]] if "axis" in node.attrs else [1, -2]
    if along is not None:
        numbers = along.reshape(-1).tolist()
    if axis in [int(number) % _rank(node.inputs[0]) for number in numbers]:
        raise Lost("it works along the batch axis")
    return [axis]


def _trilu(node: Node, axes: dict[str, int]) -> list[int | None]:
    axis = _first(node, axes)
    if axis >= _rank(node.inputs[0]) - 2:
        raise Lost("the batch is an axis of the matrices")
    return [axis]


def _crop(node: Node, axes: dict[str, int]) -> list[int | None]:
    axis = _first(node, axes)
    given, size = node.attrs.get("axes"), _rank(node.inputs[0])
    if given is None or axis in [int(other) % size for other in given]:
        raise Lost("it crops or pads the batch axis")
    return [axis]


def _all_leading(node: Node, axes: dict[str, int]) -> list[int | None]:
    """Operators whose inputs, but for weights, all have the samples on axis 0."""
    weights = (1, 3) if node.op == "DeformConv" else ()
    for place, tensor in enumerate(node.inputs):
        if tensor.is_empty() or (place in weights and tensor.name not in axes):
            continue
        if place in weights or axes.get(tensor.name) != 0:
            raise Lost(f"'{tensor.name}' does not have the batch on axis 0")
    return [0] * len(node.outputs)


def _for_its_number(node: Node, axes: dict[str, int]) -> list[int | None]:
    raise Lost("an input of it says how many samples there are, or which sample is which")


def _reverse(node: Node, axes: dict[str, int]) -> list[int | None]:
    place = int(node.attrs.get("batch_axis", 1))
    if [axes.get(tensor.name) for tensor in node.inputs] != [place, 0]:
        raise Lost("its lengths are not given for every sample")
    return [place]


def _expand(node: Node, axes: dict[str, int]) -> list[int | None]:
    axis = _first(node, axes)
    shape = constant_input(node, 1)
    if shape is None:
        raise Lost("its shape is computed at run time")
    place = axis + max(shape.size - _rank(node.inputs[0]), 0)
    at = place - (_rank(node.outputs[0]) - shape.size)
    if at >= 0 and shape[at] != 1:
        raise Lost("it repeats the batch")
    return [place]


def _tile(node: Node, axes: dict[str, int]) -> list[int | None]:
    axis = _first(node, axes)
    repeats = constant_input(node, 1)
    if repeats is None or repeats[axis] != 1:
        raise Lost("it repeats the batch")
    return [axis]


def _scales_of(node: Node) -> str:
    return f"{node.name}/sizes_as_scales"


def _resize(node: Node, axes: dict[str, int]) -> list[int | None]:
    """Also turns `sizes`, which would fix the batch, into the scales that they stand for."""
    axis = _first(node, axes)
    named = axes_of(node, _rank(node.inputs[0]), input_index=len(node.inputs))
    if named is not None and axis not in named:
        return [axis]
    sizes = constant_input(node, 3)
    if sizes is not None:
        before, after = node.inputs[0].shape, node.outputs[0].shape
        if not all(known(dim) for dim in (*before, *after)) or "axes" in node.attrs:
            raise Lost("its sizes cannot be written as scales")
        scales = np.array([new / old for new, old in zip(after, before, strict=True)], np.float32)
        if any(
            int(np.floor(old * scale)) != new
            for old, new, scale in zip(before, after, scales, strict=True)
        ):
            raise Lost("its sizes cannot be written as scales")
        node.inputs[2] = gs.Constant(_scales_of(node), scales)
        node.inputs.pop(3)
    scales_given = axis_factors(node)
    at = axis if named is None else named.index(axis)
    if scales_given is None or scales_given.size <= at or scales_given[at] != 1:
        raise Lost("its scales are not known to leave the batch alone")
    return [axis]


def _embedding(node: Node, axes: dict[str, int]) -> list[int | None]:
    """ArrayFeatureExtractor(table, indices): picks along the last axis."""
    if node.inputs[0].name in axes or value(node.inputs[0]) is None:
        raise Lost("it picks from values that depend on the sample")
    return [_rank(node.outputs[0]) - 1]


_Rule = Callable[[Node, dict[str, int]], "list[int | None]"]

_RULES: dict[Batch, _Rule] = {
    "elementwise": _elementwise,
    "leading": _leading,
    "all-leading": _all_leading,
    "counted": _for_its_number,
    "same": _same,
    "along": _along,
    "along-input": _along_input,
    "trailing": _layer_norm,
    "reduce": _reduce,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "concat": _concat,
    "slice": _slice,
    "gather": _gather,
    "gather-nd": _gather_nd,
    "scatter-nd": _scatter_nd,
    "elements": _elements,
    "pad": _pad,
    "gemm": _gemm,
    "matmul": _matmul,
    "einsum": _einsum,
    "expand": _expand,
    "tile": _tile,
    "resize": _resize,
    "embedding": _embedding,
    "matrices": _trilu,
    "crop": _crop,
    "reverse": _reverse,
}
