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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from snncompiler.ir import dialect
from snncompiler.ir.graph import unique_name
from snncompiler.ir.symbolic import END, Shape, Shapes, attributes_of

Floats = NDArray[np.float32]

#: Neurons that have an event-driven form.
NEURONS = ("RMPNeuron", "ScheduledRMPNeuron")
#: Event-driven kernels have at most so many rows and columns, and bytes at most this value.
MAX_KERNEL, MAX_LEVELS = 16, 64
#: Steps of a chunk that memory alone does not ask for (`snncompiler.emission.emit`); of one whose
#: weights, larger than a core's cache, come from far away every time (docs/explanation/performance.md).
MAX_CHUNK, MAX_CHUNK_FAR = 16, 32
FAR_BYTES = 2**21
#: Operators that are lowered where the layer before them is.
_FOLLOWERS = ("SpikeMaxPool", "TimeSum", "WeightedTimeSum")

_TO_LAST, _TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


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


class Stays(Exception):
    """Why a layer stays as it is."""


@dataclass(frozen=True)
class Signal:
    """A tensor `[K·N, C, H, W]` (or `[K·N, C]`, H = W = 1) that is linear in bytes.

    Channel c is the sum over the bytes' channels i of `matrix[i, c]`, at every `stride`-th place;
    no matrix is the unit matrix.  Where `flat`, the tensor was flattened after that, and so are the
    bytes, to `[K·N, 1, 1, C·H·W]`.
    """

    events: str
    channels: int
    levels: int = 1
    stride: tuple[int, int] = (1, 1)
    matrix: Floats | None = None
    flat: bool = False

    @property
    def amplitude(self) -> Floats | None:
        """What every channel is multiplied by; None for 1.  Stays where channels are mixed."""
        if self.matrix is None:
            return None
        rows, columns = self.matrix.shape
        own = np.diagonal(self.matrix)
        if rows != columns or np.count_nonzero(self.matrix) != np.count_nonzero(own):
            raise Stays("channels are mixed before a convolution")
        return own.astype(np.float32)


@dataclass
class Currents:
    """What flows into a neuron, term by term; every term has the same shape."""

    shape: Shape
    convolutions: list[tuple[Signal, Floats, dict[str, list[int]], int]] = field(
        default_factory=list
    )
    residuals: list[Signal] = field(default_factory=list)
    static: list[str] = field(default_factory=list)
    bias: list[Floats] = field(default_factory=list)

    @property
    def channels(self) -> int:
        return int(self.shape[1])

    @property
    def flat(self) -> bool:
        """Whether there are two axes instead of maps."""
        return len(self.shape) == 2


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
        names = [node.name for node in _nodes(model.graph) if _is_neuron(node)]
        return Lowered(model, [LayerNote(name, "", why) for name in names])


def _lowered(model: onnx.ModelProto, longer_chunks: bool) -> Lowered:
    lowered = Lowered(onnx.ModelProto())
    lowered.model.CopyFrom(model)
    graph = lowered.model.graph
    shapes: Shapes | None = None
    for name in [node.output[0] for node in graph.node if node.op_type == "Loop"]:
        loop = next(node for node in graph.node if name in node.output)
        body = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
        ours = {node.op_type for node in body.node if node.domain == dialect.DOMAIN}
        if ours and not ours & {*dialect.EVENT_NEURONS}:
            shapes = shapes or Shapes(model)
            lowered.layers += _Lowering(graph, loop, body, shapes).run()
    if not lowered.changed:
        return Lowered(model, lowered.layers)
    if longer_chunks and all(layer.operator for layer in lowered.layers):
        _lengthen_chunks(lowered.model)
    _attach(lowered.model)
    return lowered


def _lengthen_chunks(model: onnx.ModelProto) -> None:
    """Spikes take a quarter of the memory and currents none, so a chunk may have more steps: the
    weights are then read less often.  The chunk changes no result."""
    entries = {entry.key: entry for entry in model.metadata_props}
    name = entries["snnc.chunk_input"].value if "snnc.chunk_input" in entries else ""
    for tensor in model.graph.initializer:
        if name and tensor.name == name:
            chunk = int(numpy_helper.to_array(tensor))
            # A chunk that memory has cut short becomes no longer than any other.
            far = 2 * chunk > MAX_CHUNK and _bytes_of_weights(model.graph) > FAR_BYTES
            most = min(MAX_CHUNK_FAR if far else MAX_CHUNK, int(entries["snnc.steps"].value))
            longer = max(chunk, min(8 * chunk, most))
            tensor.CopyFrom(numpy_helper.from_array(np.array(longer, np.int64), name))
            entries["snnc.chunk"].value = str(longer)


def _bytes_of_weights(graph: onnx.GraphProto) -> int:
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


def _attach(model: onnx.ModelProto) -> None:
    """The bodies of the operators in use, in place of those of ours that the model had."""
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    used = {node.op_type for node in _nodes(model.graph) if node.domain == dialect.DOMAIN}
    kept = [function for function in model.functions if function.domain != dialect.DOMAIN]
    del model.functions[:]
    model.functions.extend([*kept, *dialect.functions(used, opset)])


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of the graphs in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g)


def _drop_unread(graph: onnx.GraphProto, read: set[str]) -> None:
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in read:
            del graph.initializer[index]


def _reads(node: onnx.NodeProto) -> list[str]:
    names = list(node.input)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            names += _reads(inner)
    return names


def _per_channel(values: NDArray[Any], shape: Shape) -> Floats:
    """A constant that broadcasts to a tensor of that shape, as `[channels]`.

    Stays where it differs along any other axis than the channels.
    """
    if values.dtype != np.float32:
        raise Stays(f"{values.dtype} is not computed by events")
    sizes = [1] * (len(shape) - values.ndim) + list(values.shape)
    if len(sizes) > len(shape) or sizes[1] not in (1, shape[1]) or values.size != sizes[1]:
        raise Stays(
            f"a constant of shape {list(values.shape)} is not one value per channel of {_text(shape)}"
        )
    return np.broadcast_to(values.reshape(-1), int(shape[1])).astype(np.float32)


def _text(shape: Shape) -> str:
    """A shape as text; a size that is known only at run time is a question mark."""
    return "[" + ", ".join(str(dim) if isinstance(dim, int) else "?" for dim in shape) + "]"


class _Lowering:
    """Lowers the body of one Loop, and changes what surrounds it accordingly."""

    def __init__(
        self,
        outer: onnx.GraphProto,
        loop: onnx.NodeProto,
        body: onnx.GraphProto,
        shapes: Shapes,
    ) -> None:
        self.outer, self.loop, self.body, self.shapes = outer, loop, body, shapes
        # An initializer that is an input, too, is a default that a run may override.
        given = {value.name for value in outer.input}
        tensors = (*outer.initializer, *body.initializer)
        self.constants = {t.name: t for t in tensors if t.name not in given}
        #: Types are not written down inside: a network with any float16 weights computes in it.
        self.half = any(t.data_type == TensorProto.FLOAT16 for t in self.constants.values())
        self.maker = {name: node for node in body.node for name in node.output}
        self.taken = {
            *self.constants,
            *self.maker,
            *(value.name for value in (*body.input, *outer.input)),
            *(name for node in outer.node for name in node.output),
            *(node.name for node in (*outer.node, *body.node)),
        }
        self.states = {value.name: index for index, value in enumerate(body.input) if index >= 2}
        self.finals = {value.name: index for index, value in enumerate(body.output)}
        #: Names of tensors of the old body -> what they are as bytes.
        self.signals: dict[str, Signal] = {}
        #: Bytes `[K·N, 1, 1, C]` of tensors that have two axes.
        self.flat: set[str] = set()
        self.nodes: list[onnx.NodeProto] = []
        #: Nodes of the outer graph that go before and after the Loop.
        self.before: list[onnx.NodeProto] = []
        self.after: list[onnx.NodeProto] = []

    # --- pieces ---

    def name(self, wanted: str) -> str:
        return unique_name(wanted, self.taken)

    def constant(self, wanted: str, values: NDArray[Any], outside: bool = False) -> str:
        name = self.name(wanted)
        tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
        (self.outer if outside else self.body).initializer.append(tensor)
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
            and not any(value.name == name for value in self.body.input)
        )

    def is_repeated(self, node: onnx.NodeProto) -> bool:
        """Whether a node gives its first input at every step."""
        if not _is_drive(node):
            return node.op_type == "Tile"
        factors = self.constants.get(node.input[1])
        return factors is not None and bool((numpy_helper.to_array(factors) == 1).all())

    # --- the walk ---

    def run(self) -> list[LayerNote]:
        notes: list[LayerNote] = []
        for node in list(self.body.node):
            if _is_neuron(node):
                mark, known = (len(self.nodes), len(self.before)), dict(self.signals)
                try:
                    notes.append(LayerNote(node.name, self.neuron(node)))
                    continue
                except (Stays, ValueError, KeyError, IndexError) as why:
                    # The file may be anyone's: what cannot be read is not lowered either.
                    del self.nodes[mark[0] :], self.before[mark[1] :]
                    self.signals = known
                    notes.append(LayerNote(node.name, "", str(why)))
            elif node.domain == dialect.DOMAIN and node.op_type in _FOLLOWERS:
                try:
                    (self.max_pool if node.op_type == "SpikeMaxPool" else self.time_sum)(node)
                    continue
                except Stays:
                    pass  # it takes the spikes as they were
            self.nodes.append(node)
        if any(note.operator for note in notes):
            self.finish()
        return notes

    def finish(self) -> None:
        """Put the new nodes in place, and leave out what nothing reads any more."""
        wanted = {value.name for value in self.body.output}
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.nodes):
            if wanted & set(node.output):
                kept.append(node)
                wanted.update(_reads(node))
        kept.reverse()
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        del self.body.node[:]
        self.body.node.extend(nodes)
        _drop_unread(self.body, wanted)
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
        read = {name for node in self.outer.node for name in _reads(node)}
        read |= {value.name for value in (*self.outer.output, *self.outer.input)}
        _drop_unread(self.outer, read)

    # --- signals ---

    def signal(self, name: str) -> Signal:
        """What a tensor is in bytes; converts the spikes of a neuron that stays."""
        if name in self.signals:
            return self.signals[name]
        node = self.maker.get(name)
        if node is None:
            raise Stays(f"`{name}` is no spike train")
        found: Signal
        if _is_neuron(node):
            if node.op_type not in (*NEURONS, "HardResetNeuron"):
                raise Stays(f"the spikes of {node.op_type} are not binary")
            found = self.converted(name, node)
        elif node.domain == dialect.DOMAIN and node.op_type == "SpikeMaxPool":
            pooled = self.signal(node.input[0])
            if pooled.matrix is not None or pooled.levels != 1 or pooled.stride != (1, 1):
                raise Stays(f"SpikeMaxPool `{node.name}` pools more than spikes")
            found = self.converted(name, node)
        elif node.op_type == "Identity":
            found = self.signal(node.input[0])
        elif node.op_type == "Mul":
            found = self.scaled(node)
        elif node.op_type == "Slice":
            found = self.sliced(node)
        elif node.op_type == "Pad":
            found = self.padded(node)
        elif node.op_type == "AveragePool":
            found = self.summed(node)
        elif node.op_type == "Flatten":
            found = self.flattened(node)
        elif node.op_type == "Concat":
            found = self.concatenated(node)
        else:
            raise Stays(f"{node.op_type} `{node.name}` has no event-driven form")
        self.signals[name] = found
        return found

    def converted(self, name: str, node: onnx.NodeProto) -> Signal:
        """The float spikes of an operator that stays, as bytes."""
        shape = self.layer_shape(name)
        if len(shape) == 2:
            raise Stays(f"`{node.name}` before it stays")
        last = self.emit(self.nodes, "Transpose", [name], f"{name}/channels_last", perm=_TO_LAST)
        return Signal(
            self.emit(self.nodes, "Cast", [last], f"{name}/events", to=TensorProto.UINT8),
            int(shape[1]),
        )

    def scaled(self, node: onnx.NodeProto) -> Signal:
        inner, factor = node.input
        if inner in self.constants:
            inner, factor = factor, inner
        signal = self.signal(inner)
        if signal.flat:
            raise Stays(f"Mul `{node.name}` stands behind a Flatten")
        shape = self.layer_shape(inner)
        if self.shape(node.output[0]) != shape:
            raise Stays(f"Mul `{node.name}` broadcasts the spikes")
        matrix = (
            np.eye(signal.channels, dtype=np.float32) if signal.matrix is None else signal.matrix
        )
        return replace(signal, matrix=matrix * _per_channel(self.value(factor), shape))

    def summed(self, node: onnx.NodeProto) -> Signal:
        """Average pooling: sums of bytes, the division left to the next weights."""
        signal = self.signal(node.input[0])
        attributes = attributes_of(node)
        kernel = [int(extent) for extent in attributes["kernel_shape"]]
        size = int(np.prod(kernel))
        if (
            len(kernel) != 2
            or any(attributes.get("pads", ()))
            or attributes.get("ceil_mode", 0)
            or attributes.get("auto_pad", b"NOTSET") != b"NOTSET"
            or max(attributes.get("dilations", (1,))) > 1
        ):
            raise Stays(f"AveragePool `{node.name}` does more than average without padding")
        if signal.stride != (1, 1) or signal.flat or size * signal.levels > MAX_LEVELS:
            raise Stays(f"AveragePool `{node.name}` has a window of {size} places")
        sums = self.name(f"{node.output[0]}/events")
        self.nodes.append(
            helper.make_node(
                "EventSumPool",
                [signal.events],
                [sums],
                name=sums,  # the pooling itself may be read by others, too
                domain=dialect.DOMAIN,
                kernel_shape=kernel,
                strides=list(attributes.get("strides", (1, 1))),
                pads=[0] * 4,
                dilations=[1, 1],
            )
        )
        matrix = (
            np.eye(signal.channels, dtype=np.float32) if signal.matrix is None else signal.matrix
        )
        return replace(
            signal, events=sums, levels=size * signal.levels, matrix=matrix / np.float32(size)
        )

    def flattened(self, node: onnx.NodeProto) -> Signal:
        """Bytes in the order of the flattened tensor, as channels of one place."""
        signal = self.signal(node.input[0])
        rank = len(self.shape(node.input[0]))
        if rank != 4 or attributes_of(node).get("axis", 1) not in (1, 1 - rank):
            raise Stays(f"Flatten `{node.name}` does not put maps into rows")
        if signal.flat or signal.stride != (1, 1):
            raise Stays(f"Flatten `{node.name}` reads every n-th place")
        if signal.matrix is not None:
            _ = signal.amplitude  # channels in their order
        first = self.emit(
            self.nodes, "Transpose", [signal.events], f"{node.output[0]}/first", perm=_TO_FIRST
        )
        flat = self.emit(self.nodes, "Flatten", [first], f"{node.output[0]}/flat", axis=1)
        axes = self.constant(f"{node.output[0]}/axes", np.array([1, 2]))
        events = self.emit(self.nodes, "Unsqueeze", [flat, axes], f"{node.output[0]}/events")
        return replace(signal, events=events, flat=True)

    def concatenated(self, node: onnx.NodeProto) -> Signal:
        """Maps side by side: bytes in the order of the channels."""
        parts = [self.signal(name) for name in node.input]
        if attributes_of(node)["axis"] not in (1, 1 - len(self.layer_shape(node.output[0]))):
            raise Stays(f"Concat `{node.name}` does not put channels side by side")
        if any(part.stride != (1, 1) or part.flat for part in parts):
            raise Stays(f"Concat `{node.name}` reads every n-th place, or what is flattened")
        events = self.emit(
            self.nodes, "Concat", [p.events for p in parts], f"{node.output[0]}/events", axis=3
        )
        matrix = None
        if any(part.matrix is not None for part in parts):
            amplitudes = [
                np.ones(part.channels, np.float32) if part.amplitude is None else part.amplitude
                for part in parts
            ]
            matrix = np.diag(np.concatenate(amplitudes))
        if all(part.events in self.flat for part in parts):
            self.flat.add(events)
        channels, levels = sum(p.channels for p in parts), max(p.levels for p in parts)
        return Signal(events, channels, levels, matrix=matrix)

    def sliced(self, node: onnx.NodeProto) -> Signal:
        """Every n-th row or column, from the first."""
        signal = self.signal(node.input[0])
        rank = len(self.layer_shape(node.input[0]))
        starts, ends, axes = (self.value(name) for name in node.input[1:4])
        steps = self.value(node.input[4]) if len(node.input) > 4 else np.ones_like(starts)
        stride = list(signal.stride)
        for start, end, axis, step in zip(starts, ends, axes % rank, steps, strict=True):
            if start != 0 or end < END or axis not in (2, 3) or step < 1 or signal.flat:
                raise Stays(f"Slice `{node.name}` does more than take every n-th row or column")
            stride[int(axis) - 2] *= int(step)
        return replace(signal, stride=(stride[0], stride[1]))

    def padded(self, node: onnx.NodeProto) -> Signal:
        """Silent channels before and behind."""
        signal = self.signal(node.input[0])
        pads = self.value(node.input[1])
        fill = self.value(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
        mode = attributes_of(node).get("mode", b"constant")
        if mode != b"constant" or fill.any() or len(node.input) > 3 or pads.size != 8:
            raise Stays(f"Pad `{node.name}` does more than add silent channels")
        before, behind = int(pads[1]), int(pads[5])
        if np.count_nonzero(pads) != (before != 0) + (behind != 0) or min(before, behind) < 0:
            raise Stays(f"Pad `{node.name}` does more than add silent channels")
        matrix = signal.matrix
        if matrix is None:
            matrix = np.eye(signal.channels, dtype=np.float32)
        return replace(signal, matrix=np.pad(matrix, ((0, 0), (before, behind))))

    # --- currents ---

    def currents(self, name: str, steps: str, into: Currents) -> None:
        """Take the tensor `name` apart into convolutions, residuals and what is static."""
        if name in self.constants:
            into.bias.append(_per_channel(self.value(name), into.shape))
            return
        node = self.maker.get(name)
        if node is not None and node.op_type == "Add":
            for part in node.input:
                self.currents(part, steps, into)
            return
        if self.shape(name) != into.shape:
            raise Stays(
                f"`{name}` of shape {_text(self.shape(name))} may be broadcast "
                f"to the current's {_text(into.shape)}"
            )
        # The neuron spreads what is static over the steps itself.
        spread = node is not None and self.is_repeated(node) and self.is_static(node.input[0])
        if spread or self.is_static(name):
            static = name if node is None else node.input[0]
            lead, *sample = self.shape(static)
            held = self.shapes.number(steps)
            if held is None or (self.shapes.product(held, lead), *sample) != into.shape:
                raise Stays(f"`{static}` is not spread over the steps alone")
            into.static.append(static)
        elif node is None:
            raise Stays(f"`{name}` is a state")
        elif node.op_type == "Conv":
            self.convolution(node, into)
        elif node.op_type in ("Gemm", "MatMul"):
            self.product(node, into)
        else:
            into.residuals.append(self.signal(name))

    def convolution(self, node: onnx.NodeProto, into: Currents) -> None:
        weights = self.value(node.input[1])
        if weights.dtype != np.float32:
            raise Stays(f"{weights.dtype} is not computed by events")
        if weights.ndim != 4 or max(weights.shape[2:]) > MAX_KERNEL:
            raise Stays(f"Conv `{node.name}` has a kernel of shape {list(weights.shape[2:])}")
        attributes = attributes_of(node)
        if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
            raise Stays(f"Conv `{node.name}` has auto_pad")
        group = int(attributes.get("group", 1))
        signal = self.signal(node.input[0])
        if signal.stride != (1, 1) or signal.flat:
            raise Stays(f"Conv `{node.name}` reads every n-th place")
        amplitude = signal.amplitude
        packed = weights.transpose(2, 3, 1, 0)
        if amplitude is not None:
            # Input channel i of group g is channel g·(C/group) + i.
            each, share = weights.shape[1], len(weights) // group
            own = amplitude.reshape(group, each)
            scale = np.repeat(own, share, axis=0).T
            packed = packed * scale
        window = {
            "strides": list(attributes.get("strides", (1, 1))),
            "pads": list(attributes.get("pads", (0, 0, 0, 0))),
            "dilations": list(attributes.get("dilations", (1, 1))),
        }
        into.convolutions.append((signal, packed.astype(np.float32), window, group))
        if len(node.input) > 2 and node.input[2]:
            bias = self.value(node.input[2]).reshape(-1, 1, 1)
            into.bias.append(_per_channel(bias, into.shape))

    def product(self, node: onnx.NodeProto, into: Currents) -> None:
        """Gemm or MatMul: a convolution of one place."""
        attributes = attributes_of(node)
        weights = self.value(node.input[1])
        if attributes.get("transB", 0):
            weights = weights.T
        if (
            weights.dtype != np.float32
            or weights.ndim != 2
            or attributes.get("transA", 0)
            or attributes.get("alpha", 1.0) != 1
            or attributes.get("beta", 1.0) != 1
        ):
            raise Stays(f"{node.op_type} `{node.name}` is more than a product with weights")
        if len(self.shape(node.input[0])) != 2:
            raise Stays(f"{node.op_type} `{node.name}` multiplies the last axis of a map")
        signal = self.signal(node.input[0])
        amplitude = signal.amplitude
        if amplitude is not None:
            weights = weights * np.repeat(amplitude, len(weights) // len(amplitude))[:, None]
        window = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1]}
        whole = replace(signal, matrix=None)
        into.convolutions.append((whole, weights[None, None].astype(np.float32), window, 1))
        if len(node.input) > 2 and node.input[2]:
            into.bias.append(_per_channel(self.value(node.input[2]), into.shape))

    # --- layers ---

    def neuron(self, node: onnx.NodeProto) -> str:
        """Emit one layer; the name of its operator."""
        if node.op_type not in NEURONS:
            raise Stays(f"{node.op_type} has no event-driven form")
        if self.half:
            raise Stays("float16 is not computed by events")
        scheduled = node.op_type == "ScheduledRMPNeuron"
        parts = Currents(self.layer_shape(node.input[0]))
        shape, channels, flat = parts.shape, parts.channels, parts.flat
        threshold = _per_channel(self.value(node.input[1]), shape)
        schedule = np.zeros((1, channels), np.float32)
        if scheduled:
            rows = self.value(node.input[3])
            schedule = np.stack([_per_channel(row, shape) for row in rows])
        start, steps = (node.input[-2] if scheduled else None), node.input[-1]
        index = self.state(node, 2, 1)
        initial = _per_channel(self.initial(index), shape)

        label = node.name or node.output[0]
        inputs: list[str]
        attributes: dict[str, Any] = {}
        source = self.maker.get(node.input[0])
        driven = source if source is not None and _is_drive(source) else None
        if driven or attributes_of(node).get("static_current", 0):
            current, drive = driven.input[:2] if driven else (node.input[0], "")
            if not self.is_static(current):
                raise Stays(f"`{current}` is not computed outside the Loop")
            if driven and (driven.input[3] != steps or start not in (None, driven.input[2])):
                raise Stays(f"Drive `{driven.name}` counts other steps")
            if not drive:
                drive = self.constant(f"{label}/drive", np.ones(1, np.float32))
            operator, inputs = "EventNeuron", [self.channels_last(current, flat), drive]
            start = start or (driven.input[2] if driven else None)
        else:
            self.currents(node.input[0], steps, parts)
            operator, inputs, attributes = self.convolutions(label, parts)
            inputs.append(self.static_part(label, parts))
        if start is None:
            start = self.constant(f"{label}/start", np.array(0, np.int64))
        inputs += [
            self.constant(f"{label}/threshold_row", threshold),
            node.input[2],
            self.constant(f"{label}/schedule_rows", schedule),
            start,
            steps,
        ]
        spikes, membrane = node.output
        events = self.name(f"{spikes}/events")
        self.nodes.append(
            helper.make_node(
                operator,
                inputs,
                [events, membrane],
                name=node.name,
                domain=dialect.DOMAIN,
                **attributes,
            )
        )
        self.loop.input[index] = self.constant(f"{label}/membrane_row", initial, outside=True)
        self.restore(index, flat)
        self.signals[spikes] = Signal(events, channels)
        self.back(events, spikes, flat)
        if flat:
            self.flat.add(events)
        return operator

    def convolutions(self, label: str, parts: Currents) -> tuple[str, list[str], dict[str, Any]]:
        """The operator for what flows in, its inputs before the current, and its attributes."""
        channels = parts.channels
        plain: list[Signal] = []
        for residual in parts.residuals:
            if residual.flat:
                raise Stays("spikes of maps flow into rows without weights")
            mixes = residual.matrix is not None and np.count_nonzero(
                residual.matrix
            ) != np.count_nonzero(np.diagonal(residual.matrix))
            square = residual.matrix is None or residual.matrix.shape == (channels, channels)
            if residual.stride == (1, 1) and square and not mixes and residual.levels == 1:
                plain.append(residual)
                continue
            # A convolution with one tap.
            matrix = residual.matrix
            if matrix is None:
                matrix = np.eye(channels, dtype=np.float32)
            window = {"strides": list(residual.stride), "pads": [0] * 4, "dilations": [1, 1]}
            parts.convolutions.append(
                (replace(residual, stride=(1, 1), matrix=None), matrix[None, None], window, 1)
            )
        if not parts.convolutions:
            raise Stays("nothing is convolved")
        if len(parts.convolutions) + len(plain) > 2:
            raise Stays("more than two spike trains flow in")
        # The larger one first: it may have groups, and counts.
        parts.convolutions.sort(key=lambda part: -part[1].size)
        signal, weights, window, group = parts.convolutions[0]
        attributes: dict[str, Any] = {**window, "group": group, "levels": signal.levels}
        inputs = [signal.events, self.constant(f"{label}/weights", weights)]
        if len(parts.convolutions) == 2:
            other, more, beside, others = parts.convolutions[1]
            if group != 1 or others != 1 or other.levels != 1:
                raise Stays("two convolutions flow in, one of them grouped or of counts")
            attributes |= {f"more_{key}": value for key, value in beside.items()}
            inputs += [other.events, self.constant(f"{label}/more_weights", more)]
            return "EventConvPair", inputs, attributes
        if plain:
            amplitude = plain[0].amplitude
            if amplitude is None:
                amplitude = np.ones(channels, np.float32)
            inputs += [plain[0].events, self.constant(f"{label}/amplitude", amplitude)]
            return "EventConvAdd", inputs, attributes
        return "EventConv", inputs, attributes

    def static_part(self, label: str, parts: Currents) -> str:
        """The bias, or the static currents with it, channels last."""
        bias = np.zeros(parts.channels, np.float32)
        for part in parts.bias:
            bias = bias + part
        total = self.constant(f"{label}/bias_row", bias, outside=bool(parts.static))
        for name in parts.static:
            total = self.emit(
                self.before,
                "Add",
                [self.channels_last(name, parts.flat), total],
                f"{label}/static",
            )
        return total

    def channels_last(self, name: str, flat: bool) -> str:
        """A static tensor with its channels last, made once outside the Loop."""
        for node in self.before:
            if node.op_type in ("Transpose", "Unsqueeze") and node.input[0] == name:
                return str(node.output[0])
        wanted = f"{name}/channels_last"
        if flat:
            axes = self.constant(f"{name}/axes", np.array([1, 2]), outside=True)
            return self.emit(self.before, "Unsqueeze", [name, axes], wanted)
        return self.emit(self.before, "Transpose", [name], wanted, perm=_TO_LAST)

    def max_pool(self, node: onnx.NodeProto) -> None:
        """Exact max pooling, on bytes."""
        signal = self.signals.get(node.input[0])
        maker = self.maker.get(node.input[0])
        if maker is not None and maker.op_type == "Concat":
            # Side by side, where all of them are those of lowered layers.
            known = all(name in self.signals for name in maker.input)
            signal = self.signal(node.input[0]) if known else None
        attributes = attributes_of(node)
        kernel = list(attributes["kernel_shape"])
        if signal is None or signal.matrix is not None or signal.stride != (1, 1) or signal.flat:
            raise Stays("not the spikes of a lowered layer")
        if (
            len(kernel) != 2
            or attributes.get("ceil_mode", 0)
            or attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"")
        ):
            raise Stays("a window without an event-driven form")
        index = self.state(node, 1, 1)
        if self.initial(index).size != 1:
            raise Stays("starts from a tensor")
        events = self.name(f"{node.output[0]}/events")
        self.nodes.append(
            helper.make_node(
                "EventMaxPool",
                [signal.events, node.input[1], node.input[2]],
                [events, node.output[1]],
                name=node.name,
                domain=dialect.DOMAIN,
                kernel_shape=kernel,
                strides=list(attributes.get("strides") or (1, 1)),
                pads=list(attributes.get("pads") or (0, 0, 0, 0)),
                dilations=list(attributes.get("dilations") or (1, 1)),
            )
        )
        self.restore(index, False)
        self.signals[node.output[0]] = replace(signal, events=events)
        self.back(events, node.output[0], False)

    def time_sum(self, node: onnx.NodeProto) -> None:
        """A sum over time of bytes; what the Loop hands on gets its channels back outside."""
        weighted = node.op_type == "WeightedTimeSum"
        place = 2 if weighted else 1
        source = node.input[0]
        signal = self.signals.get(source)
        if signal is None or signal.matrix is not None or signal.stride != (1, 1) or signal.flat:
            raise Stays("not the spikes of a lowered layer")
        index = self.state(node, place, 0)
        if self.initial(index).size != 1:
            raise Stays("starts from a tensor")
        steps = node.input[-1]
        if weighted:
            weights = node.input[1]
        else:
            one = self.constant(f"{node.name}/one", np.ones(1, np.int64))
            shape = self.emit(self.nodes, "Reshape", [steps, one], f"{node.name}/shape")
            unit = self.constant(f"{node.name}/unit", np.ones((), np.float32))
            weights = self.emit(self.nodes, "Expand", [unit, shape], f"{node.name}/weights")
        self.nodes.append(
            helper.make_node(
                "EventSum",
                [signal.events, weights, node.input[place], steps],
                list(node.output),
                name=node.name,
                domain=dialect.DOMAIN,
            )
        )
        self.restore(index, signal.events in self.flat)

    # --- states and borders ---

    def state(self, node: onnx.NodeProto, state_in: int, state_out: int) -> int:
        """The position among the Loop's inputs of a state that belongs to `node` alone."""
        name, out = node.input[state_in], node.output[state_out]
        index = self.states.get(name)
        readers = [other for other in self.body.node if name in _reads(other)]
        if index is None or len(readers) != 1 or self.finals.get(out) != index - 1:
            raise Stays(f"the state `{name}` is not the Loop's")
        if any(out in _reads(other) for other in self.body.node):
            raise Stays(f"the state `{out}` is read by others")
        return index

    def initial(self, index: int) -> NDArray[Any]:
        return self.value(self.loop.input[index])

    def restore(self, index: int, flat: bool) -> None:
        """Give a final state its old layout back, where it is read."""
        old = self.loop.output[index - 2]
        read = {name for node in self.outer.node for name in _reads(node)}
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


def _first(last: str, first: str, flat: bool) -> onnx.NodeProto:
    """Channels first again, or two axes."""
    if flat:
        return helper.make_node("Flatten", [last], [first], name=first, axis=1)
    return helper.make_node("Transpose", [last], [first], name=first, perm=_TO_FIRST)


def _is_drive(node: onnx.NodeProto) -> bool:
    return bool(node.domain == dialect.DOMAIN and node.op_type == "Drive")


def _is_neuron(node: onnx.NodeProto) -> bool:
    return node.domain == dialect.DOMAIN and node.op_type in dialect.NEURONS
