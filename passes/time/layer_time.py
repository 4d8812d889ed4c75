"""Layered time: what reads spikes step by step, and what needs a value to be complete.

In layered time every value of the ANN is Σ w_t·s_t + b: s_t is what a step brings, w_t what it weighs
(1, or 2^(T-t) with radix spikes), and b what comes once, such as a bias.  Linear operators work on the
steps, folded into the batch as `[T·N, ...]`, and carry b beside them, until

- a neuron is met: it adds up the steps itself, and b goes into its potential at the start;
- something needs the complete value: the read-out, an operator that is not linear, a layer of weights
  behind another one or behind a bias.  A TimeSum completes it, and what follows is computed once.

Max pooling of rate spikes, which come without a gap, is max pooling at every step.  Radix spikes are
the digits of a number, so there the complete current is pooled, before the neuron.  Both are exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from snncompiler.ir import dialect
from snncompiler.ir.graph import (
    BATCH,
    Graph,
    Node,
    Tensor,
    constant,
    constant_input,
    drop_dead,
    input_at,
    is_live,
    known_rank,
    producer,
    tensor_names,
    unique_name,
    value,
)
from snncompiler.ir.linear import linear_reason
from snncompiler.ir.operators import record
from snncompiler.ir.phases import Timing, analyze
from snncompiler.ir.spike_trains import moves_spikes
from snncompiler.passes.base import Context, Pass

#: What a step brings: spikes, means and sums of several spikes, or other real numbers.
Kind = Literal["spikes", "sums", "currents"]
_KINDS: tuple[Kind, ...] = ("spikes", "sums", "currents")

NEURON = "LayeredRMPNeuron"
#: Completes a window; the emission gives it the weights of the steps.
COMPLETION = "TimeSum"


@dataclass(frozen=True)
class LayerTime(Pass):
    """Neurons receive windows, and whatever needs a complete value gets one.  `radix`: the steps of a
    window are the digits of a number."""

    radix: bool

    name: ClassVar[str] = "layer-time"
    requires: ClassVar[frozenset[str]] = frozenset({"neurons", "binary-spikes"})
    ensures: ClassVar[frozenset[str]] = frozenset({"layered"})

    def run(self, graph: Graph, context: Context) -> None:
        timing = analyze(graph, lambda node: node.domain == dialect.DOMAIN)
        work = _Work(graph, self.radix, timing, tensor_names(graph), context.whole_averages)
        for node in list(graph.nodes):
            work.visit(node)
        work.complete_outputs()
        drop_dead(graph)
        context.pooled |= work.name_pooled()


@dataclass(frozen=True)
class _Window:
    """A value over a window: Σ w_t·`steps` + `once`."""

    steps: Tensor
    kind: Kind
    once: Tensor | None = None


@dataclass
class _Work:
    graph: Graph
    radix: bool
    timing: Timing
    taken: set[str]
    #: Names of the nodes that read complete values.
    whole: set[str]
    #: By the id of the tensor that holds the value in the ANN.  What is not in it is complete.
    windows: dict[int, _Window] = field(default_factory=dict)
    completed: dict[int, Tensor] = field(default_factory=dict)
    #: Of a value that is an amplitude times spikes, by its id: the spikes, and the amplitude.
    amplitudes: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    #: Of every neuron, by the id of its spikes: it, its current, and its potential at the start.
    neurons: dict[int, tuple[Node, Tensor, Tensor]] = field(default_factory=dict)
    #: A neuron, the pooling behind it, and the neuron that was made to fire behind that.
    pooled: list[tuple[Node, Node, Node]] = field(default_factory=list)

    def visit(self, node: Node) -> None:
        if node.domain == dialect.DOMAIN:
            if node.op == NEURON:
                self._neuron(node)
            return
        windows = [self.windows.get(id(tensor)) for tensor in node.inputs]
        if not any(windows):
            return
        if self.timing.phase(node) == "read-out" or not self._over_steps(node, windows):
            for index, tensor in enumerate(node.inputs):
                node.inputs[index] = self.complete(tensor)

    def _neuron(self, node: Node) -> None:
        current, membrane, spikes = node.inputs[0], node.inputs[2], node.outputs[0]
        self.neurons[id(spikes)] = (node, current, membrane)
        window = self.windows.get(id(current))
        node.attrs["static_current"] = int(window is None)
        if window is not None:
            node.inputs[0] = window.steps
            if window.once is not None:
                start = f"{node.name}/membrane_and_once"
                node.inputs[2] = self._computed("Add", membrane, window.once, name=start)
        self.windows[id(spikes)] = _Window(spikes, "spikes")

    # --- complete values ---

    def complete(self, tensor: Tensor) -> Tensor:
        """The complete value of a tensor; itself where it is that."""
        window = self.windows.get(id(tensor))
        if window is None:
            return tensor
        if id(tensor) not in self.completed and id(tensor) in self.amplitudes:
            # n·θ is rounded once, where a sum over the steps would be at every one.
            spikes, amplitude = self.amplitudes[id(tensor)]
            self.completed[id(tensor)] = self._computed("Mul", amplitude, self.complete(spikes))
        elif id(tensor) not in self.completed:
            once = window.once
            if once is None:
                once = constant(f"{tensor.name}/nothing", np.zeros((), np.float32), self.taken)
            result = gs.Variable(
                unique_name(f"{tensor.name}/complete", self.taken), tensor.dtype, tensor.shape
            )
            self.graph.nodes.append(
                gs.Node(
                    COMPLETION,
                    unique_name(f"{tensor.name}/{COMPLETION}", self.taken),
                    inputs=[window.steps, once],
                    outputs=[result],
                    domain=dialect.DOMAIN,
                )
            )
            self.completed[id(tensor)] = result
        return self.completed[id(tensor)]

    def complete_outputs(self) -> None:
        for place, output in enumerate(self.graph.outputs):
            whole = self.complete(output)
            if whole is not output:
                # The user's name goes to what the user reads.
                output.name, whole.name = whole.name, output.name
                self.graph.outputs[place] = whole

    def _computed(self, op: str, *operands: Tensor, name: str = "") -> Tensor:
        """What comes once, computed: a constant where the operands are."""
        arrays = [value(tensor) for tensor in operands]
        name = name or f"{operands[-1].name}/once"
        found = [array for array in arrays if array is not None]
        if len(found) == len(arrays):
            return constant(name, np.asarray(_NUMPY[op](*found), np.float32), self.taken)
        result = gs.Variable(unique_name(name, self.taken), np.dtype(np.float32))
        result.shape = max((list(t.shape or ()) for t in operands if is_live(t)), key=len)
        self.graph.nodes.append(
            gs.Node(op, unique_name(f"{name}/{op}", self.taken), {}, list(operands), [result])
        )
        return result

    # --- operators on steps ---

    def _over_steps(self, node: Node, windows: list[_Window | None]) -> bool:
        """Whether the node computes on steps from now on; if so, its outputs are windows."""
        live = [t for t, window in zip(node.inputs, windows, strict=True) if window is not None]
        if node.name in self.whole:
            return False
        if node.domain or not all(_leads_with_batch(t) for t in (*live, *node.outputs)):
            return False
        nature = record(node.op)
        if nature.weights is not None:
            return self._weigh(node, windows)
        if node.op in ("Add", "Sub"):
            return self._add(node, windows)
        if node.op in ("Mul", "Div", "Neg"):
            return self._scale(node, windows)
        if any(window is not None and window.once is not None for window in windows):
            return False
        if node.op == "MaxPool":
            return self._pool(node, windows[0])
        if node.op == "Concat":
            whole = [window for window in windows if window is not None]
            return len(whole) == len(windows) and self._carry(node, windows, whole)
        return self._move(node, windows)

    def _carry(
        self, node: Node, windows: list[_Window | None], of: list[_Window], least: Kind = "spikes"
    ) -> bool:
        """The node reads the steps as they are; what it makes is no better than they and `least`."""
        for index, window in enumerate(windows):
            if window is not None:
                node.inputs[index] = window.steps
        kind = max([least, *(window.kind for window in of)], key=_KINDS.index)
        for tensor in node.outputs:
            self.windows[id(tensor)] = _Window(tensor, kind)
        return True

    def _weigh(self, node: Node, windows: list[_Window | None]) -> bool:
        """A layer of weights on spikes, or on sums of spikes; its bias comes once."""
        at = next(index for index, window in enumerate(windows) if window is not None)
        window = windows[at]
        assert window is not None
        if at > 1 or any(other is not None for other in windows[at + 1 :]):
            return False
        if record(node.op).weights == "equation" or value(node.inputs[1 - at]) is None:
            return False
        if window.once is not None or window.kind == "currents":
            return False
        if node.attrs.get("transA", 0) or node.attrs.get("beta", 1.0) != 1.0:
            return False
        once: Tensor | None = None
        place = record(node.op).bias
        if place is not None and input_at(node, place) is not None:
            bias = constant_input(node, place)
            if bias is None:
                return False
            once = constant(
                f"{node.inputs[place].name}/once", _beside(node, bias, place), self.taken
            )
            del node.inputs[place]
        node.inputs[at] = window.steps
        result = node.outputs[0]
        self.windows[id(result)] = _Window(result, "currents", once)
        return True

    def _add(self, node: Node, windows: list[_Window | None]) -> bool:
        """Sums and differences: steps with steps, and what comes once with what comes once."""
        result = node.outputs[0]
        shapes = [list(w.steps.shape) for w in windows if w is not None]
        if any(len(shape) != len(result.shape) for shape in shapes):
            return False
        if any(dim not in dims for dim, *dims in zip(result.shape, *shapes, strict=True)):
            return False  # the steps of a smaller value do not spread over the other's
        first, second = windows
        parts = [w.once if w else t for w, t in zip(windows, node.inputs, strict=True)]
        left, right = parts
        once = left
        if right is not None:
            if left is not None:
                once = self._computed(node.op, left, right)
            else:
                once = right if node.op == "Add" else self._computed("Neg", right)
        if first is not None and second is not None:
            self._carry(node, windows, [first, second], "currents")
            self.windows[id(result)] = _Window(result, "currents", once)
            return True
        window = first if first is not None else second
        assert window is not None
        if first is None and node.op == "Sub":
            node.op, node.inputs = "Neg", [window.steps]
            self.windows[id(result)] = _Window(result, window.kind, once)
        else:
            self.windows[id(result)] = _Window(window.steps, window.kind, once)
        return True

    def _scale(self, node: Node, windows: list[_Window | None]) -> bool:
        """Products with constants, and changes of sign."""
        at = next(index for index, window in enumerate(windows) if window is not None)
        window, result = windows[at], node.outputs[0]
        assert window is not None
        factors: list[NDArray[np.floating] | None] = [
            value(tensor) for index, tensor in enumerate(node.inputs) if index != at
        ]
        if any(factor is None for factor in factors) or (node.op == "Div" and at):
            return False
        if list(window.steps.shape) != list(result.shape):
            return False
        once = window.once
        if node.op == "Mul" and once is None and window.kind == "spikes":
            self.amplitudes[id(result)] = (node.inputs[at], node.inputs[1 - at])
        if once is not None:
            others = list(node.inputs)
            others[at] = once
            once = self._computed(node.op, *others)
        node.inputs[at] = window.steps
        turned = all(factor is not None and np.all(np.abs(factor) == 1) for factor in factors)
        self.windows[id(result)] = _Window(result, window.kind if turned else "currents", once)
        return True

    def _move(self, node: Node, windows: list[_Window | None]) -> bool:
        """What chooses, moves and averages the elements of its first input, sample by sample."""
        if windows[0] is None or any(window is not None for window in windows[1:]):
            return False
        if any(is_live(tensor) for tensor in node.inputs[1:]):
            return False
        nature = record(node.op)
        if nature.shape_input is not None and not _keeps_any_batch(node, nature.shape_input):
            return False
        if nature.spikes == "padded":
            return moves_spikes(node) and self._carry(node, windows, [windows[0]])
        if nature.spikes == "moved":
            return self._carry(node, windows, [windows[0]])
        averages = nature.pools == "average" or node.op == "ReduceSum" or nature.linear == "resize"
        if not averages or linear_reason(node, [True, *[False] * (len(node.inputs) - 1)]):
            return False
        return self._carry(node, windows, [windows[0]], "sums")

    # --- max pooling ---

    def _pool(self, pool: Node, window: _Window | None) -> bool:
        if window is None or window.kind != "spikes" or len(pool.outputs) > 1:
            return False
        if not self.radix:
            return self._carry(pool, [window], [window])
        spikes = self._fired_behind(pool, pool.inputs[0])
        if spikes is None:
            return False
        self.windows[id(pool.outputs[0])] = _Window(spikes, "spikes")
        return True

    def _fired_behind(self, pool: Node, tensor: Tensor) -> Tensor | None:
        """The radix spikes of a neuron whose complete current is pooled; None where the pooled values
        are not those of neurons, put together at most."""
        found = self.neurons.get(id(tensor))
        source = producer(tensor)
        shape = [*tensor.shape[:2], *pool.outputs[0].shape[2:]]
        if found is None:
            if source is None or source.op != "Concat" or source.domain:
                return None
            if int(source.attrs["axis"]) % len(shape) != 1:
                return None
            parts = [self._fired_behind(pool, part) for part in source.inputs]
            spikes = [part for part in parts if part is not None]
            if len(spikes) < len(parts):
                return None
            joined = self._variable(f"{pool.name}/joined", tensor, shape)
            name = unique_name(f"{pool.name}/{source.name}", self.taken)
            self.graph.nodes.append(gs.Node("Concat", name, {"axis": 1}, spikes, [joined]))
            return joined
        neuron, current, membrane = found
        ports = (neuron.inputs[1], membrane)
        if not all(_same_all_over(port, len(shape)) for port in ports):
            return None
        largest = self._variable(f"{neuron.name}/pooled", current, shape)
        fired = self._variable(f"{neuron.name}/pooled_spikes", tensor, shape)
        name = unique_name(f"{neuron.name}/{pool.name}", self.taken)
        moved = gs.Node("MaxPool", name, dict(pool.attrs), [self.complete(current)], [largest])
        self.graph.nodes.append(moved)
        twin = gs.Node(
            NEURON,
            unique_name(f"{neuron.name}/pooled_neuron", self.taken),
            {**neuron.attrs, "static_current": 1},
            inputs=[largest, neuron.inputs[1], membrane],
            outputs=[fired],
            domain=dialect.DOMAIN,
        )
        self.graph.nodes.append(twin)
        self.pooled.append((neuron, moved, twin))
        return fired

    def name_pooled(self) -> dict[str, tuple[str, str]]:
        """What fires behind a pooling: its name -> the names of its rectifier and of the pooling.  A
        neuron that nothing else fires for has the name of its layer."""
        alive = {id(node) for node in self.graph.nodes}
        found = {}
        for neuron, pool, twin in self.pooled:
            if id(twin) not in alive:
                continue
            if id(neuron) not in alive:
                alive.add(id(neuron))  # the first one takes it
                twin.name = neuron.name
            found[twin.name] = (neuron.name, pool.name)
        return found

    def _variable(self, name: str, like: Tensor, shape: list[object]) -> gs.Variable:
        return gs.Variable(unique_name(name, self.taken), like.dtype, shape)


#: What whole numbers of another scale are made with, after a product: of complete values.
_COMPLETE = ("Round", "Max", "Min")

_NUMPY = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Neg": np.negative,
}


def _leads_with_batch(tensor: Tensor) -> bool:
    """Whether time can be folded into axis 0, and into no other one."""
    shape = list(tensor.shape or ())
    floats = tensor.dtype is not None and np.dtype(tensor.dtype).kind == "f"
    return floats and shape[:1] == [BATCH] and BATCH not in shape[1:]


def _beside(node: Node, bias: NDArray[np.floating], place: int) -> NDArray[np.float32]:
    """A bias as it broadcasts to the output of its layer: one number for each channel of a Conv."""
    if record(node.op).weights == "matrix":
        return bias.astype(np.float32)
    return bias.reshape(-1, *[1] * (known_rank(node.outputs[0]) - 2)).astype(np.float32)


def _same_all_over(port: Tensor, rank: int) -> bool:
    """Whether a constant that spreads over samples of so many axes has one number for a channel."""
    array = value(port)
    if array is None:
        return False
    spread = (1,) * (rank - array.ndim) + array.shape
    return all(size == 1 for axis, size in enumerate(spread) if axis != 1)


def _keeps_any_batch(node: Node, place: int) -> bool:
    """Whether the shape that an operator is given leaves axis 0 to what comes."""
    if input_at(node, place) is None:
        return True
    target = constant_input(node, place)
    if node.op != "Reshape" or target is None or not target.size:
        return False
    copied = target[0] == 0 and not node.attrs.get("allowzero", 0)
    return bool(copied or target[0] == -1)
