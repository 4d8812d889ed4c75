"""From the graph of layered time to an ONNX graph of one time-step: a pipeline of layers.

Window 0 of an image is its input's; in window k the layers of depth k fire for it, while those behind
them receive.  Images follow one another every T steps, so at any step every layer works, each on an
image of its own.  With d layers on the longest way the answer to image i is there after step
(i + d + 1)·T.

Every layer has two states: what it has received in this window, and the potential from which it fires
for the window before.  At the last step of a window the first becomes the second:

    received = TimeSum(x_t)                  from what comes once, if anything does
    s_t, v   = RMPNeuron(0, θ, v)            soft reset, no current while it fires
    v        = v_0 + received                at the last step of a window, else what is left

With radix spikes both are doubled from step to step, and v begins at (v_0 + received)·2^(1-T): the same
numbers as in `LayeredRMPNeuron`, divided by the power of 2 that a step weighs, with the same roundings.
So the spikes are those of the whole window, bit for bit where a step's sums are.

Where ways of different depths meet, the shorter one is delayed: spikes for a window of steps, and what
is complete for one window.  Operators without a state work as late as they can, so that spikes wait
rather than currents.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from snncompiler.ir import dialect
from snncompiler.ir.graph import (
    Graph,
    Node,
    Tensor,
    is_live,
    known_rank,
    sort_nodes,
    tensor_names,
    unique_name,
)
from snncompiler.ir.operators import record
from snncompiler.passes.time.graph_writer import ENDLESS, GraphWriter, Time, constants_of
from snncompiler.passes.time.layer_time import COMPLETION, NEURON


def write_stages(
    graph: Graph, steps: int, *, radix: bool
) -> tuple[onnx.GraphProto, dict[str, str]]:
    """The graph, and the names of its own inputs and outputs: `step`; `state:<input>` -> the output
    that carries it on; and `answer`, which tells whether the outputs of this step are one."""
    sort_nodes(graph)
    taken: set[str] = set()
    # A layer does not lose its name to another node.
    for node in sorted(graph.nodes, key=lambda node: node.op != NEURON):
        node.name = unique_name(node.name, taken)
    writer = _Stages(
        graph=graph,
        steps=steps,
        radix=radix,
        schedule=Schedule.of(graph),
        taken=tensor_names(graph) | taken,
    )
    return writer.write()


@dataclass
class Schedule:
    """The window in which every node works, counted from that of the image's input.

    windows: by the id of a node.  made: the window in which a tensor is there, by its id; what does not
    depend on the image has none.  temporal: ids of the tensors that have a value at every step of it;
    the others are complete at its last step.
    """

    windows: dict[int, int] = field(default_factory=dict)
    made: dict[int, int] = field(default_factory=dict)
    temporal: set[int] = field(default_factory=set)
    depth: int = 0

    @classmethod
    def of(cls, graph: Graph) -> Schedule:
        """The schedule of a sorted graph."""
        found = cls()
        for tensor in graph.inputs:
            found.made[id(tensor)] = 0
        for node in graph.nodes:
            found._early(node)
        found.depth = max((found.made.get(id(tensor), 0) for tensor in graph.outputs), default=0)
        latest = {id(tensor): found.depth for tensor in graph.outputs}
        for node in reversed(graph.nodes):
            found._late(node, latest)
        return found

    def _early(self, node: Node) -> None:
        """The first window in which the node can work."""
        windows = [self.made[id(t)] for t in node.inputs if id(t) in self.made]
        if not windows or record(node.op).shape_only:
            return
        at = max(windows)
        fires, completes = _is(node, NEURON), _is(node, COMPLETION)
        steps = fires or (not completes and any(id(t) in self.temporal for t in node.inputs))
        self.windows[id(node)] = at
        for tensor in node.outputs:
            self.made[id(tensor)] = at + fires
            if steps:
                self.temporal.add(id(tensor))

    def _late(self, node: Node, latest: dict[int, int]) -> None:
        """The last window in which it can; `latest` is when each tensor is wanted first."""
        if id(node) not in self.windows:
            return
        if not (_is(node, NEURON) or _is(node, COMPLETION)):
            wanted = [latest[id(tensor)] for tensor in node.outputs if id(tensor) in latest]
            at = min(wanted, default=self.windows[id(node)])
            self.windows[id(node)] = at
            self.made.update((id(tensor), at) for tensor in node.outputs)
        at = self.windows[id(node)]
        for tensor in node.inputs:
            if id(tensor) in self.made:
                latest[id(tensor)] = min(latest.get(id(tensor), at), at)


def _is(node: Node, operator: str) -> bool:
    return bool(node.domain == dialect.DOMAIN and node.op == operator)


@dataclass(kw_only=True)
class _Stages(GraphWriter):
    """Writes one time-step of all layers."""

    graph: Graph
    steps: int
    radix: bool
    schedule: Schedule
    #: State input -> the output that carries it on, with their types and ranks.
    states: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    #: Names of tensors in later windows than the one in which they are made, by id and window.
    delayed: dict[tuple[int, int], str] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    #: Whether a window that is complete is one of an image, by the number of the layers before.
    due: dict[int, str] = field(default_factory=dict)

    def write(self) -> tuple[onnx.GraphProto, dict[str, str]]:
        step = self.parameter("snnc_step", 0)
        self.one = self.constant("snnc_one", 1)
        self.zero = self.constant("snnc_zero", 0.0, np.float32)
        self.time = self._count(step)
        self.initializers.update(constants_of(self.graph.nodes))
        held_back = self._name_outputs()
        for node in self.graph.nodes:
            if _is(node, NEURON):
                self._fire(node)
            elif _is(node, COMPLETION):
                self._complete(node)
            else:
                proto = OnnxExporter.export_node(node)
                at = self.schedule.windows.get(id(node))
                if at is not None:
                    names = [self._at(tensor, at) for tensor in node.inputs]
                    del proto.input[:]
                    proto.input.extend(names)
                self.nodes.append(proto)
        for tensor, name in held_back:
            self._write("Identity", [self._at(tensor, self.schedule.depth)], name)
        answer = self._due(self.schedule.depth + 1)
        written = self.finish(self.graph)
        written.output.append(helper.make_tensor_value_info(answer, TensorProto.BOOL, []))
        written.output.append(helper.make_tensor_value_info(self.time.end, TensorProto.INT64, []))
        for after, kind, rank in self.states.values():
            written.output.append(helper.make_tensor_value_info(after, kind, [None] * rank))
        carried = {f"state:{before}": after for before, (after, _, _) in self.states.items()}
        own = {"step": step, f"state:{step}": self.time.end, "answer": answer}
        return written, {**own, **carried}

    # --- time ---

    def _count(self, step: str) -> Time:
        """The step that is done now, and whether it is the first or the last of a window."""
        none, endless = self.constant("snnc_none", 0), self.constant("snnc_endless", ENDLESS)
        names = [self.name(f"snnc_trip_{what}") for what in ("start", "steps")]
        names += [self.name("snnc_step_next"), self.name("snnc_trip_going")]
        self.nodes.append(
            helper.make_node(
                "TimeSteps",
                [step, none, endless, self.one],
                names,
                name=self.name("snnc_trip"),
                domain=dialect.DOMAIN,
            )
        )
        window = self.constant("snnc_steps", self.steps)
        place = self._make("Mod", [names[0], window], "snnc_place")
        last = self.constant("snnc_last_place", self.steps - 1)
        self.first = self._make("Equal", [place, none], "snnc_window_begins")
        self.last = self._make("Equal", [place, last], "snnc_window_ends")
        return Time(names[0], names[1], names[2])

    def _due(self, windows: int) -> str:
        """Whether a window ends with this step, and so many windows have passed."""
        if windows not in self.due:
            least = self.constant(f"snnc_windows_{windows}", windows * self.steps)
            passed = self._make("GreaterOrEqual", [self.time.end, least], f"snnc_passed_{windows}")
            self.due[windows] = self._make("And", [self.last, passed], f"snnc_due_{windows}")
        return self.due[windows]

    # --- layers ---

    def _fire(self, node: Node) -> None:
        """A layer: it receives for the next window, and fires what it received in the last one."""
        at = self.schedule.windows[id(node)]
        current, threshold, membrane = (self._at(tensor, at) for tensor in node.inputs[:3])
        complete = current
        if not node.attrs["static_current"]:
            complete = self._received(node.name, current, node.inputs[0], self.zero)
        full = self._make("Add", [membrane, complete], f"{node.name}/full")
        if self.radix:
            unit = self._shared("snnc_unit_of_first", 2.0 ** (1 - self.steps), np.float32)
            full = self._make("Mul", [full, unit], f"{node.name}/scaled")
        state = self._state(f"{node.name}/membrane", node.inputs[0], np.float32)
        size = self._make("Shape", [current], f"{node.name}/size")
        kind = np.dtype(node.inputs[0].dtype)  # spikes have the type of the current
        none = self._shared(f"snnc_no_current_{kind.name}", 0.0, kind.type)
        rest = self._make("Expand", [none, size], f"{node.name}/no_current")
        left = self.name(f"{node.name}/membrane_out")
        self.nodes.append(
            helper.make_node(
                "RMPNeuron",
                [rest, threshold, state, self.time.steps],
                [node.outputs[0].name, left],
                name=node.name,
                domain=dialect.DOMAIN,
                static_current=0,
            )
        )
        if self.radix:
            left = self._doubled(left, f"{node.name}/left")
        self._carry(state, "Where", [self._due(at + 1), full, left])

    def _complete(self, node: Node) -> None:
        """What is complete at the end of a window, from its steps and what comes once."""
        window, once = node.inputs
        at = self.schedule.windows[id(node)]
        steps, more = self._at(window, at), self._at(once, at)
        result = node.outputs[0].name
        if is_live(once) and self.schedule.made.get(id(once)) == at:
            # It is complete when the window is.
            received = self._received(node.name, steps, window, self.zero)
            self._write("Add", [more, received], result)
            return
        if self.radix:
            unit = self._shared("snnc_unit_of_first", 2.0 ** (1 - self.steps), np.float32)
            more = self._make("Mul", [more, unit], f"{node.name}/once")
        received = self._received(node.name, steps, window, more)
        self._write("Identity", [received], result)

    def _received(self, name: str, current: str, tensor: Tensor, start: str) -> str:
        """The sum of what has come in this window, weighed as this step is, on top of `start`."""
        state = self._state(f"{name}/received", tensor, np.float32)
        before = self._doubled(state, f"{name}/received") if self.radix else state
        total = self._make("Where", [self.first, start, before], f"{name}/received_before")
        after = self.name(f"{name}/received_out")
        self.nodes.append(
            helper.make_node(
                "TimeSum",
                [current, total, self.time.steps],
                [after],
                name=self.name(f"{name}/receive"),
                domain=dialect.DOMAIN,
            )
        )
        self.states[state] = (after, *self.states[state][1:])
        return after

    def _doubled(self, value: str, name: str) -> str:
        two = self._shared("snnc_two", 2.0, np.float32)
        return self._make("Mul", [value, two], f"{name}/doubled")

    # --- delays ---

    def _at(self, tensor: Tensor, window: int) -> str:
        """The name of a tensor as it is in this window, delayed where it is made earlier."""
        made = self.schedule.made.get(id(tensor))
        if made is None or made >= window:
            return str(tensor.name)
        key = (id(tensor), window)
        if key not in self.delayed:
            self.delayed[key] = self._later(tensor, self._at(tensor, window - 1), window - made)
        return self.delayed[key]

    def _later(self, tensor: Tensor, value: str, windows: int) -> str:
        """The value one window later; `windows` after it was made."""
        name = f"{tensor.name}/after_{windows}"
        temporal = id(tensor) in self.schedule.temporal
        length = self.steps if temporal else 1
        state = self._state(f"{name}/waiting", tensor, tensor.dtype, 1)
        held = self._shared(f"snnc_line_of_{length}", [length])
        zero, one = self._shared("snnc_axis", [0]), self._shared("snnc_second", [1])
        first, end = self._shared("snnc_oldest", 0), self._shared("snnc_all", [ENDLESS])
        shape = self._make("Shape", [value], f"{name}/shape")
        size = self._make("Concat", [held, shape], f"{name}/size", axis=0)
        waiting = self._make("Expand", [state, size], f"{name}/held")
        newest = self._make("Unsqueeze", [value, zero], f"{name}/newest")
        line = self._make("Concat", [waiting, newest], f"{name}/line", axis=0)
        result = self._make("Gather", [line, first], name, axis=0)
        if temporal:
            self._carry(state, "Slice", [line, one, end, zero])
        else:
            rest = self._make("Slice", [line, one, end, zero], f"{name}/rest")
            self._carry(state, "Where", [self.last, rest, waiting])
        return result

    # --- pieces ---

    def _make(self, op: str, inputs: list[str], wanted: str, **attributes: int) -> str:
        """One node of ONNX; the name of its output, which is free."""
        return self._write(op, inputs, self.name(wanted), **attributes)

    def _write(self, op: str, inputs: list[str], output: str, **attributes: int) -> str:
        """One node of ONNX whose output has this name."""
        node = helper.make_node(op, inputs, [output], name=self.name(f"{output}/{op}"))
        node.attribute.extend(helper.make_attribute(*entry) for entry in attributes.items())
        self.nodes.append(node)
        return output

    def _shared(self, wanted: str, values: object, dtype: type = np.int64) -> str:
        """A constant that several nodes read."""
        if wanted not in self.shared:
            self.shared[wanted] = self.constant(wanted, values, dtype)
        return self.shared[wanted]

    def _state(self, wanted: str, tensor: Tensor, dtype: Any, more: int = 0) -> str:
        """A state with the rank of a tensor and `more` axes before, that begins with zeros."""
        kind = np.dtype(dtype or np.float32)
        rank = known_rank(tensor) + more
        start: NDArray[np.generic] = np.zeros((1,) * rank, kind)
        name = self.name(wanted)
        self.initializers[name] = numpy_helper.from_array(start, name)
        code = helper.np_dtype_to_tensor_dtype(kind)
        self.overridable.append(helper.make_tensor_value_info(name, code, [None] * rank))
        self.states[name] = ("", code, rank)
        return name

    def _carry(self, state: str, op: str, inputs: list[str]) -> None:
        """The node that makes the next value of a state."""
        self.states[state] = (self._make(op, inputs, f"{state}_out"), *self.states[state][1:])

    def _name_outputs(self) -> list[tuple[Tensor, str]]:
        """The outputs that wait for those of the longest way: what they are inside, and their names.
        The user's name goes to what the user reads."""
        waiting: list[tuple[Tensor, str]] = []
        for place, tensor in enumerate(self.graph.outputs):
            made = self.schedule.made.get(id(tensor))
            if made is None or made == self.schedule.depth:
                continue
            name = str(tensor.name)
            self.graph.outputs[place] = gs.Variable(name, tensor.dtype, tensor.shape)
            tensor.name = unique_name(f"{name}/early", self.taken)
            waiting.append((tensor, name))
        return waiting
