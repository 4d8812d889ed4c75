"""Which bounded and folded functions are activations, and which are preprocessing or read-out.

Relu, LeakyRelu, PRelu, Clip(x, 0, c) and Max(x, 0) become spiking neurons wherever they stand.  Other
Clips, HardSigmoid, Abs, Max, Min and Shrink do in two places:

- between spiking layers, where nothing else than spikes and what is linear may stand;
- behind a trained layer (Conv, ConvTranspose, Gemm, MatMul, Einsum) that is followed by another one:
  there they are the activations of a network, as its HardTanh, Abs or maxout.

A Clip of the input, before any trained layer, is preprocessing: it is static and computed once.  One
behind the last trained layer bounds what is read out, and is applied to the decoded values.  Where a
network would have no spiking neuron at all, those behind its last trained layer become spiking too.
What leads to an operator that is not linear, as a gate to a product, stays what it is, if that keeps
the operator static; so does what comes behind one that is applied to the decoded values, as the lower
bound of a norm is.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from snncompiler.ir.graph import Graph, Node, producer, reachable_from, sort_nodes
from snncompiler.ir.linear import linear_reason
from snncompiler.ir.operators import record
from snncompiler.ir.phases import analyze
from snncompiler.ir.rectifiers import rectifier


def activations(graph: Graph, limits: Collection[str] = ()) -> set[int]:
    """ids of the nodes, beside the rectifiers, that become spiking wherever the others stand.

    limits: names of the nodes that only limit what a quantized value can be; these are no activations.
    """
    sort_nodes(graph)
    candidates = [one for one in graph.nodes if _is_candidate(one) and one.name not in limits]
    behind = reachable_from(graph, _is_trained, set(), lambda node: True)
    later = [node for node in candidates if any(id(t) in behind for t in node.inputs)]
    followed = _before_trained(graph)
    between = {id(node) for node in later if id(node) in followed}
    chosen = _without_gates(graph, between)
    if chosen or any(rectifier(node) is not None for node in graph.nodes):
        return chosen
    return between or {id(node) for node in later}


def _is_trained(node: Node) -> bool:
    return not node.domain and record(node.op).weights is not None


def _is_candidate(node: Node) -> bool:
    if node.domain or not record(node.op).activation or rectifier(node) is not None:
        return False
    kind = node.outputs[0].dtype
    return kind is None or np.dtype(kind).kind == "f"


def _before_trained(graph: Graph) -> set[int]:
    """ids of the nodes on which a trained layer depends; the nodes are sorted."""
    wanted: set[int] = set()
    found: set[int] = set()
    for node in reversed(graph.nodes):
        if any(id(tensor) in wanted for tensor in node.outputs):
            found.add(id(node))
        if _is_trained(node) or id(node) in found:
            wanted.update(id(tensor) for tensor in node.inputs)
    return found


def _without_gates(graph: Graph, chosen: set[int]) -> set[int]:
    """Leave out what would put an operator that is not linear between spiking layers."""

    def fires(node: Node) -> bool:
        return rectifier(node) is not None or id(node) in chosen

    before = analyze(graph, lambda node: rectifier(node) is not None)
    while True:
        timing = analyze(graph, fires)
        gated: set[int] = set()
        for node in graph.nodes:
            if fires(node) or timing.phase(node) != "temporal" or before.phase(node) == "temporal":
                continue
            inputs = timing.inputs(node)
            nature = record(node.op)
            # Max pooling is looked at by passes of its own.
            if nature.pools == "maximum" or nature.activation or not any(inputs):
                continue
            if linear_reason(node, inputs):
                late = any(before.inputs(node))  # it had spikes before it, but no neuron behind it
                gated |= (_below(graph, node) if late else _above(node)) & chosen
        if not gated:
            return chosen
        chosen = chosen - gated


def _below(graph: Graph, node: Node) -> set[int]:
    """ids of the nodes that depend on `node`; the nodes are sorted."""
    reached = {id(tensor) for tensor in node.outputs}
    found: set[int] = set()
    for other in graph.nodes:
        if any(id(tensor) in reached for tensor in other.inputs):
            found.add(id(other))
            reached.update(id(tensor) for tensor in other.outputs)
    return found


def _above(node: Node) -> set[int]:
    """ids of the nodes that `node` depends on."""
    pending, seen = [node], set()
    while pending:
        for tensor in pending.pop().inputs:
            source = producer(tensor)
            if source is not None and id(source) not in seen:
                seen.add(id(source))
                pending.append(source)
    return seen
