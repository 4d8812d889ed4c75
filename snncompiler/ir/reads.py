"""What the weights of a network multiply: spikes, sums of spikes, or real numbers.

A synaptic layer that reads spikes adds up weights and multiplies nothing.  Of sums of spikes, as
average pooling and the time-mean before the read-out make them, the same holds for each spike.  Real
numbers are multiplied: those of the input, and those behind a linear layer that no neuron follows, or
behind an operator that is not linear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, get_args

import onnx

from snncompiler.ir import dialect
from snncompiler.ir.operators import record
from snncompiler.ir.synapses import synapses_of

Reads = Literal["spikes", "sums of spikes", "the input", "real numbers"]
_ORDER = get_args(Reads)

#: Operators of ours whose output is what their input is, spikes or not.
_SAME = ("SpikeMaxPool", "EventMaxPool", "Drive")


def reads_of(graph: onnx.GraphProto, fires: Callable[[onnx.NodeProto], bool]) -> dict[str, Reads]:
    """Name of each node with constant weights -> what it reads, in the order of the graph.

    `fires` tells the nodes whose outputs are spikes.
    """
    kinds: dict[str, Reads] = {entry.name: "the input" for entry in graph.input}
    found: dict[str, Reads] = {}
    _follow(graph, {}, kinds, found, fires)
    return found


def fires_here(node: onnx.NodeProto) -> bool:
    """Whether a node of a compiled network is a layer of neurons, or sends spikes as one does."""
    spiking = (*dialect.NEURONS, *dialect.EVENT_NEURONS, "PoissonEncoder")
    return bool(node.domain == dialect.DOMAIN and node.op_type in spiking)


def _follow(
    graph: onnx.GraphProto,
    outer: dict[str, onnx.TensorProto],
    kinds: dict[str, Reads],
    found: dict[str, Reads],
    fires: Callable[[onnx.NodeProto], bool],
) -> None:
    values = {**outer, **{tensor.name: tensor for tensor in graph.initializer}}
    for name in values:
        kinds.pop(name, None)  # an input that may be overridden is no image
    for node in graph.node:
        synapses = synapses_of(node, values)
        for one in synapses:
            seen = kinds.get(one.source, "the input")
            found[node.name] = max(found.get(node.name, seen), seen, key=_ORDER.index)
        bodies = [entry.g for entry in node.attribute if entry.HasField("g")]
        for body in bodies:
            states = zip(body.input[2:], node.input[2:], strict=False)
            kinds.update({inner.name: kinds[name] for inner, name in states if name in kinds})
            _follow(body, values, kinds, found, fires)
            results = zip(node.output, body.output[1:], strict=False)
            kinds.update({name: kinds[last.name] for name, last in results if last.name in kinds})
        if record(node.op_type).shape_only and not node.domain:
            continue
        given = [kinds[name] for name in node.input if name in kinds]
        if bodies or not (given or fires(node)):
            continue
        kind: Reads
        if fires(node):
            kind = "spikes"
        elif synapses and "the input" not in given:
            kind = "real numbers"
        else:
            kind = _behind(node, given)
        kinds.update(dict.fromkeys(node.output, kind))


def _behind(node: onnx.NodeProto, given: list[Reads]) -> Reads:
    """What an operator without weights makes of what it reads."""
    worst = _worst(given)
    if node.domain == dialect.DOMAIN:
        same = node.op_type in _SAME or worst not in ("spikes", "sums of spikes")
        summed = node.op_type in ("TimeSum", "WeightedTimeSum", "EventSum", "EventSumPool")
        return worst if same else "sums of spikes" if summed else "real numbers"
    nature = record(node.op_type)
    kept = nature.spikes is not None or nature.linear == "cast"
    if worst in ("the input", "real numbers") or kept:
        return worst
    averages = nature.pools == "average" or nature.linear in ("first", "always", "resize")
    return "sums of spikes" if averages or nature.arithmetic else "real numbers"


def _worst(given: Iterable[Reads]) -> Reads:
    """What several values are together: the input beside spikes is real numbers."""
    kinds = set(given)
    if "the input" in kinds and len(kinds) > 1:
        return "real numbers"
    return max(kinds, key=_ORDER.index)
