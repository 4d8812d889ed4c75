"""How many time-steps a Loop computes at once, where memory alone does not decide.

Emission asks for it, and so does a session: it lowers the layers of a file onto events itself.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from snncompiler.ir import dialect

#: More steps than this in a chunk gain nothing (docs/explanation/performance.md).
MAX_CHUNK = 16
#: The same, where the weights, larger than a core's cache, come from far away every time.
MAX_CHUNK_FAR = 32
FAR_BYTES = 2**21


def lengthen_chunks(model: onnx.ModelProto) -> None:
    """Spikes take a quarter of the memory and currents none, so a chunk may have more steps: the
    weights are then read less often.  The chunk changes no result."""
    entries = {entry.key: entry for entry in model.metadata_props}
    name = entries["snnc.chunk_input"].value if "snnc.chunk_input" in entries else ""
    for tensor in model.graph.initializer:
        if name and tensor.name == name:
            chunk = int(numpy_helper.to_array(tensor))
            # A chunk that memory has cut short becomes no longer than any other.
            far = 2 * chunk > MAX_CHUNK and bytes_of_weights(model.graph) > FAR_BYTES
            most = min(MAX_CHUNK_FAR if far else MAX_CHUNK, int(entries["snnc.steps"].value))
            longer = max(chunk, min(8 * chunk, most))
            tensor.CopyFrom(numpy_helper.from_array(np.array(longer, np.int64), name))
            entries["snnc.chunk"].value = str(longer)


def bytes_of_weights(graph: onnx.GraphProto) -> int:
    """What the event-driven operators of a lowered graph read of constants."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    used: set[str] = set()
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                tensors |= {tensor.name: tensor for tensor in attribute.g.initializer}
                used |= {
                    name
                    for inner in attribute.g.node
                    if inner.op_type in dialect.EVENT_NEURONS
                    for name in inner.input
                }
    return sum(numpy_helper.to_array(tensors[name]).nbytes for name in used & tensors.keys())
