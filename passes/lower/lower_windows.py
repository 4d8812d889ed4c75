"""Weights and currents of layered time in float16, for GPUs; what is complete stays float32.

What weights read at every step, spikes, and what they make of it are float16.  A neuron adds up its
window in float32, and so does whatever completes a value; thresholds, potentials, biases, the layers
in front of the first neuron, and the read-out are float32, too.  So what it costs is one rounding of
each weight and of each step's current, by at most 2^-11 of them.  A weight is the current of one spike,
which for many levels is small: where float16 has fewer bits for the largest weight of an output, the
network is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from snncompiler.errors import refuse
from snncompiler.ir import dialect
from snncompiler.ir.graph import (
    Graph,
    Node,
    constant,
    label,
    sort_nodes,
    tensor_names,
    unique_name,
    value,
)
from snncompiler.ir.operators import record
from snncompiler.passes.base import Context, Pass
from snncompiler.passes.grids import rows_of
from snncompiler.passes.time.layer_time import NEURON
from snncompiler.passes.time.write_stages import Schedule

HALF = np.dtype(np.float16)
#: The smallest float16 with all its bits.
_SMALLEST = float(np.finfo(np.float16).tiny)


@dataclass(frozen=True)
class LowerWindows(Pass):
    """float16 weights and currents wherever there is a value for every step."""

    name: ClassVar[str] = "lower-windows"
    requires: ClassVar[frozenset[str]] = frozenset({"layered"})
    ensures: ClassVar[frozenset[str]] = frozenset({"float16"})

    def run(self, graph: Graph, context: Context) -> None:
        sort_nodes(graph)
        temporal = Schedule.of(graph).temporal
        taken = tensor_names(graph)
        for node in list(graph.nodes):
            if node.domain == dialect.DOMAIN:
                if node.op == NEURON:
                    _fire(graph, node, taken)
            elif any(id(tensor) in temporal for tensor in node.outputs):
                _halve(node, taken)
        sort_nodes(graph)


def _fire(graph: Graph, neuron: Node, taken: set[str]) -> None:
    """Spikes have the type of the current; those of a complete one, float32, become float16."""
    spikes = neuron.outputs[0]
    if spikes.dtype == HALF:
        return
    if neuron.inputs[0].dtype == HALF:
        spikes.dtype = HALF
        return
    readers = list(spikes.outputs)
    if all(reader.op == "Cast" and reader.outputs[0].dtype == HALF for reader in readers):
        return
    half = gs.Variable(unique_name(f"{spikes.name}/fp16", taken), HALF, spikes.shape)
    for reader in readers:
        for index, tensor in enumerate(reader.inputs):
            if tensor is spikes:
                reader.inputs[index] = half
    kind = int(onnx.TensorProto.FLOAT16)
    graph.nodes.append(gs.Node("Cast", half.name, {"to": kind}, [spikes], [half]))


def _halve(node: Node, taken: set[str]) -> None:
    if all(tensor.dtype == HALF for tensor in node.outputs):
        return
    weights = value(node.inputs[1]) if record(node.op).weights else None
    if weights is not None:
        largest = np.abs(rows_of(node, weights)).max(axis=1, initial=0.0)
        small = largest[(largest > 0) & (largest < _SMALLEST)]
        if small.size or largest.max(initial=0.0) > np.finfo(np.float16).max:
            size = small.min() if small.size else largest.max()
            raise refuse(
                "SNNC109",
                f"float16 does not hold its weights: the largest for one output is {size:.3g}, the "
                "current of a spike that weighs 1",
                node=label(node),
                hint="compile with --precision fp32, or with fewer steps",
            )
    for index, tensor in enumerate(node.inputs):
        array = value(tensor)
        # ONNX wants the factors of each axis in float32 whatever the data is.
        if array is None or array.dtype != np.float32 or index == record(node.op).factors:
            continue
        node.inputs[index] = constant(f"{tensor.name}_fp16", array.astype(HALF), taken)
    for tensor in node.outputs:
        tensor.dtype = HALF
