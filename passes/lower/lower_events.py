"""Lower a compiled model onto the event-driven operators, for the CPU.

A layer (what flows into a neuron, and the neuron) becomes one `EventConv...` node.  Between such
layers spikes are bytes with the channels last; where a tensor is wanted as it was, for an output or
an operator that stays, it is converted back.  The input is the emitted file, so that a session can
lower whatever it is given; what is not proved to be such a layer stays as it is, with the reason.

What is proved, from the shapes of the file (`snncompiler.ir.symbolic`): the current is
`[K·N, C, H, W]` or `[K·N, C]`; every tensor in it has this shape, and every constant is one number or
one per channel.  No size stands for an axis.

Only windows are lowered: a Loop over time whose body holds the layers.  The read-out, on means, and
the static part are computed once and stay.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx

from snncompiler.ir import dialect
from snncompiler.ir.symbolic import Shapes
from snncompiler.passes.lower.attach_functions import renew_functions
from snncompiler.passes.lower.chunks import lengthen_chunks
from snncompiler.passes.lower.compact import expand
from snncompiler.passes.lower.events.body import Body, Stays, is_neuron, nodes_of
from snncompiler.passes.lower.events.layers import max_pool, neuron, time_sum
from snncompiler.passes.lower.events.signals import Signals

#: Operators that are lowered where the layer before them is.
_FOLLOWERS = {"SpikeMaxPool": max_pool, "TimeSum": time_sum, "WeightedTimeSum": time_sum}


@dataclass(frozen=True)
class LayerNote:
    """What became of one layer: the operator that it is now, or why it stays."""

    name: str
    operator: str
    reason: str = ""


@dataclass
class Lowered:
    model: onnx.ModelProto
    layers: list[LayerNote] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        return any(layer.operator for layer in self.layers)


def lower_events(model: onnx.ModelProto, *, longer_chunks: bool = True) -> Lowered:
    """A lowered copy of a compiled model, and what became of each layer.

    `longer_chunks`: where every layer is lowered, let a chunk have as many steps as suits events.
    A model in which nothing can be lowered comes back as it is, and so does one that was lowered.
    Raises nothing: the file may be anyone's, and whatever cannot be read stays, with the reason.
    """
    try:
        return _lowered(model, longer_chunks)
    except Exception as error:
        why = f"the file cannot be read as ours ({type(error).__name__}: {error})"
        names = [node.name for node in nodes_of(model.graph) if is_neuron(node)]
        return Lowered(model, [LayerNote(name, "", why) for name in names])


def _lowered(model: onnx.ModelProto, longer_chunks: bool) -> Lowered:
    lowered = Lowered(onnx.ModelProto())
    lowered.model.CopyFrom(model)
    expand(lowered.model)
    graph = lowered.model.graph
    shapes: Shapes | None = None
    for name in [node.output[0] for node in graph.node if node.op_type == "Loop"]:
        loop = next(node for node in graph.node if name in node.output)
        body = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
        ours = {node.op_type for node in body.node if node.domain == dialect.DOMAIN}
        if ours and not ours & {*dialect.EVENT_NEURONS}:
            shapes = shapes or Shapes(model)
            lowered.layers += _lower_body(Body(graph, loop, body, shapes))
    if not lowered.changed:
        return Lowered(model, lowered.layers)
    if longer_chunks and all(layer.operator for layer in lowered.layers):
        lengthen_chunks(lowered.model)
    renew_functions(lowered.model)
    return lowered


def _lower_body(body: Body) -> list[LayerNote]:
    """Lower what can be lowered in one Loop; what became of each of its layers."""
    signals = Signals(body)
    notes: list[LayerNote] = []
    for node in list(body.graph.node):
        if is_neuron(node):
            mark, known = (len(body.nodes), len(body.before)), dict(signals.found)
            try:
                notes.append(LayerNote(node.name, neuron(signals, node)))
                continue
            except (Stays, ValueError, KeyError, IndexError) as why:
                # The file may be anyone's: what cannot be read is not lowered either.
                del body.nodes[mark[0] :], body.before[mark[1] :]
                signals.found = known
                notes.append(LayerNote(node.name, "", str(why)))
        elif node.domain == dialect.DOMAIN and node.op_type in _FOLLOWERS:
            try:
                _FOLLOWERS[node.op_type](signals, node)
                continue
            except Stays:
                pass  # it takes the spikes as they were
        body.nodes.append(node)
    if any(note.operator for note in notes):
        body.finish()
    return notes
