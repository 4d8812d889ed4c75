"""Let neurons drive their current: a Drive and the neuron behind it become one operator.

Drive writes the current of every step, and the neuron reads it again.  The driven neuron reads one
static current instead, and multiplies it itself.  A session does this where the native library
computes; the file stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import helper

from snncompiler.ir import dialect
from snncompiler.ir.symbolic import attributes_of
from snncompiler.passes.lower.attach_functions import renew_functions


def drive_neurons(model: onnx.ModelProto) -> bool:
    """Replace such pairs in a compiled model; whether there were any."""
    changed = [_drive(graph) for graph in _graphs(model.graph)]
    if any(changed):
        renew_functions(model)
    return any(changed)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _drive(graph: onnx.GraphProto) -> bool:
    drives = {node.output[0]: node for node in graph.node if _is_drive(node)}
    replaced = [_driven(node, drives) for node in graph.node]
    if all(node is None for node in replaced):
        return False
    for node, instead in zip(graph.node, replaced, strict=True):
        if instead is not None:
            node.CopyFrom(instead)
    read = {value.name for value in graph.output}
    read |= {name for inner in _graphs(graph) for node in inner.node for name in node.input}
    for index in reversed(range(len(graph.node))):
        if _is_drive(graph.node[index]) and graph.node[index].output[0] not in read:
            del graph.node[index]
    return True


def _is_drive(node: onnx.NodeProto) -> bool:
    # An attribute that is not known here would mean another product.
    return bool(node.domain == dialect.DOMAIN and node.op_type == "Drive" and not node.attribute)


def _driven(node: onnx.NodeProto, drives: dict[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    """The driven twin of a neuron behind a Drive that counts the same steps."""
    if node.domain != dialect.DOMAIN or node.op_type not in dialect.DRIVEN:
        return None
    drive = drives.get(node.input[0])
    given = attributes_of(node)
    if drive is None or given.pop("static_current", 0) or drive.input[2:] != node.input[-2:]:
        return None
    return helper.make_node(
        dialect.DRIVEN[node.op_type],
        [*drive.input[:2], *node.input[1:]],
        list(node.output),
        name=node.name,
        domain=dialect.DOMAIN,
        **given,
    )
