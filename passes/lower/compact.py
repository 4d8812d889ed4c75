"""Whole weights as integers of 8 or 16 bits, a quarter or half of the size, with a Cast behind them.

onnxruntime computes the Cast once, when a session is made.  What looks into a file has its weights as
they were by `expand`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from snncompiler.ir.graph import unique_name
from snncompiler.ir.operators import record

#: Smaller constants are not worth a node.
_FEWEST = 64
#: What the names of constants that are stored so end with.
_STORED = "/whole"


def compact(model: onnx.ModelProto) -> None:
    """Store the weights of a model that are whole as integers, in place."""
    taken = {name for graph in _graphs(model.graph) for name in _names(graph)}
    for graph in _graphs(model.graph):
        weights = {
            node.input[1] for node in graph.node if not node.domain and record(node.op_type).weights
        }
        casts = []
        for tensor in graph.initializer:
            kind = _kind(tensor) if tensor.name in weights else None
            if kind is None:
                continue
            name = tensor.name
            stored = unique_name(f"{name}{_STORED}", taken)
            array = numpy_helper.to_array(tensor).astype(kind)
            tensor.CopyFrom(numpy_helper.from_array(array, stored))
            casts.append(
                helper.make_node("Cast", [stored], [name], name=stored, to=TensorProto.FLOAT)
            )
        _put_first(graph, casts)


def expanded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without what `compact` did; itself where that was not done."""
    if not any(tensor.name.endswith(_STORED) for tensor in model.graph.initializer):
        return model
    apart = onnx.ModelProto()
    apart.CopyFrom(model)
    expand(apart)
    return apart


def expand(model: onnx.ModelProto) -> None:
    """Undo `compact`, in place."""
    for graph in _graphs(model.graph):
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        kept = []
        for node in graph.node:
            tensor = tensors.get(node.input[0]) if node.op_type == "Cast" else None
            if tensor is None or node.name != tensor.name or _STORED not in node.name:
                kept.append(node)
                continue
            array = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, node.output[0]))
        if len(kept) < len(graph.node):
            nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
            del graph.node[:]
            graph.node.extend(nodes)


def _kind(tensor: TensorProto) -> type[np.int8 | np.int16] | None:
    """The smallest integers that hold a constant; None where it is small, or not whole."""
    array = numpy_helper.to_array(tensor)
    if array.dtype != np.float32 or array.size < _FEWEST or (array != np.round(array)).any():
        return None
    largest = np.abs(array).max()
    if largest > np.iinfo(np.int16).max:
        return None
    return np.int8 if largest <= np.iinfo(np.int8).max else np.int16


def _put_first(graph: onnx.GraphProto, casts: list[onnx.NodeProto]) -> None:
    if not casts:
        return
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    del graph.node[:]
    graph.node.extend([*casts, *nodes])


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and its subgraphs, the inner ones first."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
    yield graph


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    for entry in (*graph.input, *graph.output, *graph.initializer):
        yield entry.name
    for node in graph.node:
        yield node.name
        yield from (*node.input, *node.output)
