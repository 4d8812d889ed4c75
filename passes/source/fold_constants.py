"""Evaluate what does not depend on the input, and infer every shape on the way.

One walk in topological order.  Leading axes of the inputs that may be the batch are frozen to one
sample first, so that the shape arithmetic of the exporters (Shape, Gather, Concat, Reshape) folds
into constants; `track_batch` gives the batch back, where it can prove it.  What such arithmetic
makes of the batch is found by folding a copy for another number of samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx.reference
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from snncompiler.errors import Refused, refuse
from snncompiler.ir.graph import (
    MAX_VALUES,
    Graph,
    Node,
    constant,
    drop_dead,
    held_as,
    infer_node,
    is_live,
    known,
    label,
    remove_node,
    sort_nodes,
    tensor_names,
    unique_name,
    value,
)
from snncompiler.ir.operators import record
from snncompiler.ir.randomness import random_reason
from snncompiler.ir.rectifiers import rectifier
from snncompiler.passes.base import ByBatch, Context, Pass

#: A folded constant may not be larger than this; a larger one is no shape arithmetic.
MAX_ELEMENTS = 1 << 26

#: A network is folded for so many samples, too, to see what depends on their number.
OTHER_SAMPLES = 7

#: Operators that onnx's reference has from a newer version on only; that version says the same of
#: everything that the older ones take (it adds types).
_EVALUATED_AT = {"DequantizeLinear": 19}


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Fold constant subgraphs and set the shape of every tensor.

    `freeze_batch` takes one sample for every leading axis of unknown size.
    """

    freeze_batch: bool = True

    name: ClassVar[str] = "fold-constants"
    ensures: ClassVar[frozenset[str]] = frozenset({"constants-folded", "shapes"})

    def run(self, graph: Graph, context: Context) -> None:
        other = None
        if self.freeze_batch and any(_tells_a_size(node) for node in graph.nodes):
            other = _folded_for(graph, OTHER_SAMPLES)
        if self.freeze_batch:
            _freeze(graph, 1)
        folds = self._fold_all(graph, context)
        if other is not None:
            context.by_batch = _compared(graph, *other, folds)

    def _fold_all(self, graph: Graph, context: Context) -> list[_Done]:
        for tensor in graph.inputs:
            sizes = [int(dim) for dim in tensor.shape or () if known(dim)]
            if prod(sizes) > MAX_VALUES:
                raise refuse(
                    "SNNC209",
                    f"input '{tensor.name}' would have {prod(sizes):,} values a sample",
                    hint=f"the limit is {MAX_VALUES:,}",
                )
        sort_nodes(graph)
        results = {id(tensor) for tensor in graph.outputs}
        sizes_of_one: set[int] = set()
        folds: list[_Done] = []
        for node in list(graph.nodes):
            # What the user reads stays the output of a node.
            read = any(id(tensor) in results for tensor in node.outputs)
            constants = all(not is_live(tensor) for tensor in node.inputs)
            if read and constants and any(id(t) in sizes_of_one for t in node.inputs):
                raise refuse(
                    "SNNC205",
                    f"output '{node.outputs[0].name}' is computed from shapes",
                    node=label(node),
                    hint="leave it out of the outputs",
                )
            if node.op == "Constant" and not node.domain:
                array = _constant_value(node)
                if not read:
                    _make_constant(node, array)
                continue
            infer_node(node, graph.opset)
            if _has_mask(node):
                _spell_mask(node, graph)
            # A rectifier of a constant becomes no neuron: it is folded like any other operator.
            folded = None
            if not read or rectifier(node) is not None:
                try:
                    folded = _fold(node, graph)
                except _NotEvaluated as problem:
                    # It stays in the graph, and is computed once a run.
                    context.note("SNNC206", f"a constant stays: {problem}", node=label(node))
            if folded is not None:
                of_live = node.op == "Shape" and is_live(node.inputs[0])
                if of_live or any(id(tensor) in sizes_of_one for tensor in node.inputs):
                    sizes_of_one.update(id(tensor) for tensor in node.outputs)
                made = {t.name: np.asarray(a) for t, a in zip(node.outputs, folded, strict=False)}
                folds.append(_Done(node.op, [tensor.name for tensor in node.inputs], made))
                for tensor in list(node.outputs):
                    if tensor.name in made:
                        tensor.to_constant(held_as(made[tensor.name]))
                remove_node(node)
        drop_dead(graph)
        return folds


@dataclass(frozen=True)
class _Done:
    """A node that was folded."""

    op: str
    inputs: list[str]
    made: dict[str, NDArray[Any]]


def _freeze(graph: Graph, samples: int) -> None:
    """Take so many samples for every leading axis of unknown size."""
    for tensor in graph.inputs:
        if tensor.shape and (not known(tensor.shape[0]) or tensor.shape[0] == 0):
            tensor.shape = [samples, *tensor.shape[1:]]


def _folded_for(graph: Graph, samples: int) -> tuple[Graph, list[_Done]] | None:
    """A copy folded for another batch; None where the network takes no such batch."""
    copy = graph.copy()
    _freeze(copy, samples)
    try:
        return copy, FoldConstants(freeze_batch=False)._fold_all(copy, Context())
    except Refused:
        return None


def _compared(graph: Graph, other: Graph, others: list[_Done], folds: list[_Done]) -> ByBatch:
    """What differs between the network folded for one sample and for OTHER_SAMPLES."""
    found = ByBatch(OTHER_SAMPLES)
    decided = _decided(folds, others)
    twins = {node.name: node for node in other.nodes}
    for node in graph.nodes:
        twin = twins.get(node.name)
        if twin is None:
            continue
        if node.op == "Size" and not node.domain:
            found.values.add(node.name)
        for index, (mine, its) in enumerate(zip(node.inputs, twin.inputs, strict=False)):
            one, many = value(mine), value(its)
            if one is None and many is None:
                continue
            if one is None or many is None:
                found.values.add(node.name)
            elif mine.name in decided or not _equal(one, many):
                nature = record(node.op)
                spread = nature.elementwise and mine.name not in decided and _repeats(one, many)
                if index == nature.shape_input:
                    found.shapes.update((t.name, t.shape) for t in twin.outputs if t.shape)
                elif not spread:
                    found.values.add(node.name)
    return found


def _decided(folds: list[_Done], others: list[_Done]) -> set[str]:
    """The constants that a comparison of the batch, or a rounding, had a say in.

    They may be equal for both batches and yet be others for a third.
    """
    values = {name: array for done in others for name, array in done.made.items()}
    differ: set[str] = set()
    found: set[str] = set()
    for done in folds:
        nature = record(done.op)
        read = {name for index, name in enumerate(done.inputs) if index != nature.shape_input}
        if read & found or (nature.decides and read & differ):
            found.update(done.made)
        differ.update(
            name
            for name, array in done.made.items()
            if name in found or name not in values or not _equal(array, values[name])
        )
    return found


def _equal(one: NDArray[Any], many: NDArray[Any]) -> bool:
    return one.shape == many.shape and bool(np.all((one == many) | ((one != one) & (many != many))))


def _repeats(one: NDArray[Any], many: NDArray[Any]) -> bool:
    """Whether `many` is `one`, broadcast."""
    try:
        spread = np.broadcast_to(one, many.shape)
    except ValueError:
        return False
    return one.ndim == many.ndim and np.array_equal(spread, many)


def _tells_a_size(node: Node) -> bool:
    """Whether constants may follow from the number of samples at the node."""
    return record(node.op).shape_only or _has_mask(node)


def _has_mask(node: Node) -> bool:
    return node.op == "Dropout" and len(node.outputs) > 1 and not random_reason(node)


def _spell_mask(node: Node, graph: Graph) -> None:
    """At inference Dropout drops nothing, so its mask is true everywhere.

    What a rectifier depends on gets a constant, what the user reads a comparison.
    """
    mask, taken = node.outputs[1], tensor_names(graph)
    node.outputs.pop(1)
    if mask.outputs and mask.shape is not None and all(known(dim) for dim in mask.shape):
        ones = constant(f"{node.name}/mask", np.ones(mask.shape, np.bool_), taken)
        for reader in [reader for reader in mask.outputs if _leads_to_a_rectifier(reader)]:
            for index in [i for i, tensor in enumerate(reader.inputs) if tensor is mask]:
                reader.inputs[index] = ones
    name = unique_name(f"{node.name}/mask", {one.name for one in graph.nodes})
    inputs = [node.inputs[0], node.inputs[0]]
    graph.nodes.append(gs.Node("Equal", name, inputs=inputs, outputs=[mask]))
    infer_node(graph.nodes[-1], graph.opset)


def _leads_to_a_rectifier(node: Node) -> bool:
    waiting, seen = [node], {id(node)}
    while waiting:
        one = waiting.pop()
        if rectifier(one) is not None:
            return True
        following = [reader for tensor in one.outputs for reader in tensor.outputs]
        waiting += [reader for reader in following if id(reader) not in seen]
        seen.update(id(reader) for reader in following)
    return False


def _make_constant(node: Node, array: NDArray[Any]) -> None:
    tensor = node.outputs[0]
    tensor.to_constant(held_as(array))
    remove_node(node)


def _constant_value(node: Node) -> NDArray[Any]:
    (kind, content), *_ = node.attrs.items()
    if isinstance(content, gs.Constant):
        return np.asarray(content.values)
    if kind in ("value_string", "value_strings"):
        return np.asarray(content, np.object_)
    dtype = {"value_float": np.float32, "value_floats": np.float32}.get(kind, np.int64)
    if kind not in ("value_float", "value_floats", "value_int", "value_ints"):
        raise refuse("SNNC109", f"a Constant given as {kind} is not supported", node=label(node))
    return np.asarray(content, dtype)


class _NotEvaluated(Exception):
    """An operator on constants that onnx's reference cannot evaluate; says why."""


def _fold(node: Node, graph: Graph) -> list[Any] | None:
    """The values of the node's outputs where they are constant, else None.

    Raises _NotEvaluated where they are constant and cannot be found.
    """
    if node.op == "Shape" and not node.domain:
        shape = node.inputs[0].shape
        if shape is None or not all(known(dim) for dim in shape):
            return None
        chosen = shape[slice(node.attrs.get("start", 0), node.attrs.get("end", len(shape)))]
        return [np.array(chosen, np.int64)]
    if random_reason(node) or not node.inputs:
        return None
    if not all(tensor.is_empty() or value(tensor) is not None for tensor in node.inputs):
        return None
    for tensor in node.outputs:
        if tensor.shape and all(known(dim) for dim in tensor.shape):
            elements = prod(int(dim) for dim in tensor.shape)
            if elements > MAX_ELEMENTS:
                raise refuse(
                    "SNNC209",
                    f"a constant of {elements:,} elements would be folded",
                    node=label(node),
                    hint=f"the limit is {MAX_ELEMENTS:,}",
                )
    versions = {entry.domain: int(entry.version) for entry in graph.import_domains or ()}
    versions[""] = graph.opset if node.domain else max(graph.opset, _EVALUATED_AT.get(node.op, 0))
    names = [tensor.name for tensor in node.inputs if not tensor.is_empty()]
    feeds = {tensor.name: value(tensor) for tensor in node.inputs if not tensor.is_empty()}
    try:
        model = onnx.helper.make_model(
            onnx.helper.make_graph(
                [OnnxExporter.export_node(node)],
                "fold",
                [onnx.helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(names)],
                [onnx.helper.make_empty_tensor_value_info(t.name) for t in node.outputs if t.name],
            ),
            opset_imports=[onnx.helper.make_opsetid(*entry) for entry in versions.items()],
        )
        return list(onnx.reference.ReferenceEvaluator(model).run(None, feeds))
    except Exception as error:  # whatever an operator of the reference fails with
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise _NotEvaluated(
            f"onnx's reference cannot evaluate {node.op} here: {lines[0][:200]}"
        ) from None
