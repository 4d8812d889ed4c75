"""The body of a Loop over time while it is lowered: what it had, and the nodes that come instead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from snncompiler.ir import dialect
from snncompiler.ir.graph import unique_name
from snncompiler.ir.symbolic import Shape, Shapes

Floats = NDArray[np.float32]

#: The axes of maps with the channels last, and first.
TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


class Stays(Exception):
    """Why a layer stays as it is."""


class Body:
    """The body of one Loop, and what surrounds it."""

    def __init__(
        self,
        outer: onnx.GraphProto,
        loop: onnx.NodeProto,
        graph: onnx.GraphProto,
        shapes: Shapes,
    ) -> None:
        self.outer, self.loop, self.graph, self.shapes = outer, loop, graph, shapes
        # An initializer that is an input, too, is a default that a run may override.
        given = {value.name for value in outer.input}
        tensors = (*outer.initializer, *graph.initializer)
        self.constants = {t.name: t for t in tensors if t.name not in given}
        #: Types are not written down inside: a network with any float16 weights computes in it.
        self.half = any(t.data_type == TensorProto.FLOAT16 for t in self.constants.values())
        self.maker = {name: node for node in graph.node for name in node.output}
        self.taken = {
            *self.constants,
            *self.maker,
            *(value.name for value in (*graph.input, *outer.input)),
            *(name for node in outer.node for name in node.output),
            *(node.name for node in (*outer.node, *graph.node)),
        }
        self.states = {value.name: index for index, value in enumerate(graph.input) if index >= 2}
        self.finals = {value.name: index for index, value in enumerate(graph.output)}
        self.nodes: list[onnx.NodeProto] = []
        #: Nodes of the outer graph that go before and after the Loop.
        self.before: list[onnx.NodeProto] = []
        self.after: list[onnx.NodeProto] = []

    def name(self, wanted: str) -> str:
        return unique_name(wanted, self.taken)

    def constant(self, wanted: str, values: NDArray[Any], outside: bool = False) -> str:
        name = self.name(wanted)
        tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
        (self.outer if outside else self.graph).initializer.append(tensor)
        return name

    def emit(
        self, nodes: list[onnx.NodeProto], op: str, inputs: Sequence[str], wanted: str, **more: Any
    ) -> str:
        name = self.name(wanted)
        nodes.append(helper.make_node(op, list(inputs), [name], name=name, **more))
        return name

    def value(self, name: str) -> NDArray[Any]:
        if name not in self.constants:
            raise Stays(f"`{name}` is not constant")
        return numpy_helper.to_array(self.constants[name])

    def shape(self, name: str) -> Shape:
        """The shape of a tensor of the old model."""
        found = self.shapes.of(name)
        if found is None:
            raise Stays(f"the shape of `{name}` is not known")
        return found

    def layer_shape(self, name: str) -> Shape:
        """The shape of a tensor of maps or of rows, with a known number of channels."""
        found = self.shape(name)
        if len(found) not in (2, 4):
            raise Stays(f"`{name}` has {len(found)} axes, not those of maps or of rows")
        if not isinstance(found[1], int):
            raise Stays(f"the channels of `{name}` are known only in a run")
        return found

    def is_static(self, name: str) -> bool:
        """Whether a tensor comes from outside the Loop and is no constant."""
        return (
            bool(name)
            and name not in self.constants
            and name not in self.maker
            and not any(value.name == name for value in self.graph.input)
        )

    def finish(self) -> None:
        """Put the new nodes in place, and leave out what nothing reads any more."""
        wanted = {value.name for value in self.graph.output}
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.nodes):
            if wanted & set(node.output):
                kept.append(node)
                wanted.update(reads_of(node))
        kept.reverse()
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        drop_unread(self.graph, wanted)
        # In place: the Loop holds all the weights, and a copy would hold them twice.
        place = next(
            index
            for index, node in enumerate(self.outer.node)
            if node.output[:1] == self.loop.output[:1]
        )
        for offset, node in enumerate(self.before):
            self.outer.node.insert(place + offset, node)
        for offset, node in enumerate(self.after):
            self.outer.node.insert(place + len(self.before) + 1 + offset, node)
        read = {name for node in self.outer.node for name in reads_of(node)}
        read |= {value.name for value in (*self.outer.output, *self.outer.input)}
        drop_unread(self.outer, read)

    # --- states and borders ---

    def state(self, node: onnx.NodeProto, state_in: int, state_out: int) -> int:
        """The position among the Loop's inputs of a state that belongs to `node` alone."""
        name, out = node.input[state_in], node.output[state_out]
        index = self.states.get(name)
        readers = [other for other in self.graph.node if name in reads_of(other)]
        if index is None or len(readers) != 1 or self.finals.get(out) != index - 1:
            raise Stays(f"the state `{name}` is not the Loop's")
        if any(out in reads_of(other) for other in self.graph.node):
            raise Stays(f"the state `{out}` is read by others")
        return index

    def initial(self, index: int) -> NDArray[Any]:
        return self.value(self.loop.input[index])

    def restore(self, index: int, flat: bool) -> None:
        """Give a final state its old layout back, where it is read."""
        old = self.loop.output[index - 2]
        read = {name for node in self.outer.node for name in reads_of(node)}
        if old in read | {value.name for value in self.outer.output}:
            last = self.name(f"{old}/channels_last")
            self.loop.output[index - 2] = last
            self.after.append(_first(last, old, flat))

    def back(self, events: str, spikes: str, flat: bool) -> None:
        """The spikes as they were, for whatever still reads them."""
        first = self.name(f"{events}/channels_first")
        self.nodes.append(_first(events, first, flat))
        self.nodes.append(
            helper.make_node(
                "Cast", [first], [spikes], name=self.name(f"{spikes}/cast"), to=TensorProto.FLOAT
            )
        )


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of the graphs in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from nodes_of(attribute.g)


def reads_of(node: onnx.NodeProto) -> list[str]:
    names = list(node.input)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            names += reads_of(inner)
    return names


def drop_unread(graph: onnx.GraphProto, read: set[str]) -> None:
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in read:
            del graph.initializer[index]


def per_channel(values: NDArray[Any], shape: Shape) -> Floats:
    """A constant that broadcasts to a tensor of that shape, as `[channels]`.

    Stays where it differs along any other axis than the channels.
    """
    if values.dtype != np.float32:
        raise Stays(f"{values.dtype} is not computed by events")
    sizes = [1] * (len(shape) - values.ndim) + list(values.shape)
    if len(sizes) > len(shape) or sizes[1] not in (1, shape[1]) or values.size != sizes[1]:
        raise Stays(
            f"a constant of shape {list(values.shape)} is not one value per channel of {text(shape)}"
        )
    return np.broadcast_to(values.reshape(-1), int(shape[1])).astype(np.float32)


def text(shape: Shape) -> str:
    """A shape as text; a size that is known only at run time is a question mark."""
    return "[" + ", ".join(str(dim) if isinstance(dim, int) else "?" for dim in shape) + "]"


def is_neuron(node: onnx.NodeProto) -> bool:
    return node.domain == dialect.DOMAIN and node.op_type in dialect.NEURONS


def _first(last: str, first: str, flat: bool) -> onnx.NodeProto:
    """Channels first again, or two axes."""
    if flat:
        return helper.make_node("Flatten", [last], [first], name=first, axis=1)
    return helper.make_node("Transpose", [last], [first], name=first, perm=TO_FIRST)


def is_drive(node: onnx.NodeProto) -> bool:
    return bool(node.domain == dialect.DOMAIN and node.op_type == "Drive")
