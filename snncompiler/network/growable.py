"""Whether the thresholds of a normalized network can grow with time."""

from __future__ import annotations

import numpy as np

from snncompiler.ir.graph import Graph, Node, Tensor, is_live, label, producer
from snncompiler.ir.operators import record
from snncompiler.ir.phases import Timing, analyze
from snncompiler.ir.rectifiers import rectified_input, rectifier
from snncompiler.passes.normalize.check_constraints import blocking


def hindrance(graph: Graph) -> str:
    """Why thresholds cannot grow in a normalized network; empty where they can.

    Scaling input and biases must scale what every rectifier receives, the input must reach the
    network through rectifiers alone, and what is read out must be spikes without a constant beside.
    """
    timing = analyze(graph, lambda node: rectifier(node) is not None)
    for node in graph.nodes:
        found = rectifier(node)
        if found is not None and found.cap is not None:
            return f"{label(node)} has an upper bound, which does not grow"
        if timing.phase(node) != "temporal" or record(node.op).shape_only:
            continue
        if found is None and blocking(node, timing):
            return f"{label(node)} is kept analog"
        current = node.inputs[rectified_input(node)] if found is not None else None
        for tensor in node.inputs:
            if tensor is not current and _is_beside(tensor, timing):
                return f"{label(node)} takes '{tensor.name}', which does not change with time"
    for node in graph.nodes:
        if timing.phase(node) != "temporal":
            continue
        for tensor in node.outputs:
            late = any(timing.phase(reader) == "read-out" for reader in tensor.outputs)
            if late or any(output is tensor for output in graph.outputs):
                constant = _constant_before(node)
                if constant:
                    return f"'{tensor.name}' is read out, with what {constant} adds to spikes"
    return ""


def _is_beside(tensor: Tensor, timing: Timing) -> bool:
    """Whether a value that the input changes, but not time, flows in."""
    return (
        is_live(tensor)
        and id(tensor) not in timing.temporal
        and np.dtype(tensor.dtype or np.float32).kind == "f"
    )


def _constant_before(node: Node) -> str:
    """The node on the way to the neurons that may add a constant; empty where there is none."""
    if rectifier(node) is not None:
        return ""
    if not record(node.op).adds_nothing:
        return label(node)
    before = producer(node.inputs[0])
    return "" if before is None else _constant_before(before)
