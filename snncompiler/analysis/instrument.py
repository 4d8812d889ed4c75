"""Look inside a compiled file: the same network with spike counts, currents and membranes as outputs.

The copy computes what the original computes; per neuron layer it also returns
    count         sum of the spikes over all steps, [N, ...] float32
    events        of neurons with negative spikes: sum of their sizes, [N, ...] float32
    membrane_end  membrane potential after the last step, [N, ...] float32
and, where asked for,
    current_sum   sum of all injected currents, [N, ...] float64
    membrane_max  largest |membrane potential| that a call of the neuron left behind, [N, ...]
    arrived       of every tensor that weights multiply at each step: how often each element was not 0,
                  [N, ...] float32; and the shapes of those that are multiplied once (`ir/synapses.py`)
In a file that is lowered for the CPU a layer has its channels first here, too: [N, C, H, W].

In layered time a layer has no state, and no step of it comes before its current is complete.  There
    count         what the spikes of the window stand for, Σ w_t·s_t, [N, ...] float32
    events        of radix spikes: their number
    spikes        where asked for: the spikes of every step, [T·N, ...]
    current_sum   the complete current, with all that comes once, [N, ...] float64

A window with a Loop can also be made resumable: every state comes in and goes out, and so do the steps
that are done.  `Walk` then runs it to one number of time-steps after another, each going on where the
one before stopped: T = 4, 16 and 64 together take 64 steps, and what it gives at 4 is, to the last
bit, what a run with T = 4 gives that cuts time into chunks of the same size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from snncompiler.emission.metadata import copies_of, grid_of, units_of
from snncompiler.errors import UsageError, refuse
from snncompiler.ir import dialect
from snncompiler.ir.graph import free_root
from snncompiler.ir.growth import STEADY, Growth
from snncompiler.ir.synapses import Synapses, synapses_of
from snncompiler.ir.whole import Grid
from snncompiler.passes.lower.compact import expand
from snncompiler.passes.lower.lower_events import LayerNote, lower_events

Array = NDArray[Any]


#: The neuron of layered time.
LAYERED = "LayeredRMPNeuron"
#: What the names begin with that an instrumented copy adds; a number follows where a network has such.
ROOT = "snnc_watch"


@dataclass(frozen=True)
class Layer:
    """One neuron layer of a compiled file.

    `threshold` is the charge that one spike takes away; a neuron of several `levels` can fire as many
    spikes in one step, and its largest output is levels * threshold.  `schedule` is the charge that is
    added at every step, [S, ...]; its last row holds from then on.  Where these are whole numbers,
    `unit` is what 1 stands for in units of the network's values.
    """

    name: str
    operator: str
    threshold: NDArray[np.float32]
    membrane_start: NDArray[np.float32]
    levels: int = 1
    schedule: NDArray[np.float32] | None = None
    #: What the names of everything that is watched begin with.
    root: str = ROOT
    #: Of layered time; there `levels` is what a window of the file's own steps stands for at most.
    layered: bool = False
    radix: bool = False
    unit: NDArray[np.float64] | None = None

    def most(self, steps: int) -> int:
        """The largest count of `steps` time-steps."""
        if self.layered:
            return (1 << steps) - 1 if self.radix else steps
        return self.levels * steps

    def means(self, steps: int) -> int:
        """Of how many currents the ANN's is the mean: in layered time a window has one."""
        return 1 if self.layered else steps

    @property
    def events(self) -> str:
        """The output with the number of spikes."""
        return "events" if self.signed or self.radix else "count"

    def in_values(self) -> Layer:
        """The layer in units of the network's values."""
        if self.unit is None:
            return self
        schedule = None if self.schedule is None else self.times_unit(self.schedule)
        return replace(
            self,
            threshold=self.times_unit(self.threshold),
            membrane_start=self.times_unit(self.membrane_start),
            schedule=schedule,
            unit=None,
        )

    def times_unit(self, numbers: Array) -> Array:
        """Charges or potentials [..., C, ...] in units of the network's values."""
        if self.unit is None:
            return numbers
        return np.asarray((numbers * self.unit).astype(numbers.dtype))

    @property
    def signed(self) -> bool:
        """Whether negative spikes take earlier ones back."""
        return "balance" in ports(self.operator)

    @property
    def largest(self) -> NDArray[np.float32]:
        """The largest mean output, θ: what the ANN's activation is clipped to."""
        return self.threshold * np.float32(self.levels)

    def charge(self, steps: int, growth: Growth = STEADY) -> Array:
        """What the schedule adds over the first `steps` steps, float64; in what it is worth in the end,
        where θ grows (a schedule reaches as far as that)."""
        if self.schedule is None:
            return np.zeros(())
        rows = self.schedule.astype(np.float64)
        held = max(steps - len(rows), 0) * rows[-1]
        worth = growth.worth(steps)[: len(rows)].astype(np.float64)
        return np.asarray(np.tensordot(worth, rows[:steps], 1) + held)

    def at(self, steps: int, growth: Growth) -> Layer:
        """The layer with the θ of a window of `steps` steps: the mean of what it was in them."""
        mean = np.float32(growth.worth(steps).mean(dtype=np.float64))
        return replace(
            self,
            threshold=self.threshold * mean,
            membrane_start=self.membrane_start * mean,
            levels=self.most(steps) if self.layered else self.levels,
        )

    @property
    def largest_charge(self) -> Array:
        """The largest |charge| that the schedule adds at one step."""
        return np.zeros(()) if self.schedule is None else np.abs(self.schedule).max(axis=0)


@dataclass(frozen=True)
class Arrivals:
    """Where the arrivals at some synapses are counted: the output with the counts.

    `layer` is the neuron layer that their currents flow into.  What is multiplied once has no layer,
    and an output with the shape of its source instead.
    """

    synapses: Synapses
    output: str
    layer: str = ""


@dataclass(frozen=True)
class Watched:
    """The instrumented model and its layers; `output(layer, what)` names an extra output.

    Where the model is resumable, `start` is the input with the number of steps done, and `states` maps
    the input of every state to its first value and to the output that carries it on.
    """

    model: onnx.ModelProto
    layers: tuple[Layer, ...]
    arrivals: tuple[Arrivals, ...] = ()
    start: str = ""
    states: Mapping[str, tuple[Array, str]] = field(default_factory=dict)
    #: The name of every state inside, and whether its channels are last there; by its input.
    carried: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    #: What `events` made of each layer.
    events: tuple[LayerNote, ...] = ()

    @staticmethod
    def output(layer: Layer, what: str) -> str:
        return f"{layer.root}/of/{layer.name}/{what}"


_TYPES = {
    "count": TensorProto.FLOAT,
    "events": TensorProto.FLOAT,
    "current_sum": TensorProto.DOUBLE,
    "membrane_max": TensorProto.FLOAT,
    "membrane_end": TensorProto.FLOAT,
    "spikes": TensorProto.FLOAT,
}


def watch(
    model: onnx.ModelProto,
    *,
    currents: bool = False,
    arrivals: bool = False,
    events: bool = False,
    resume: bool = False,
    spikes: bool = False,
) -> Watched:
    """An instrumented copy of a compiled model.  Raises Refused where it has no spiking neurons.

    `spikes` is for layered time.  `events`: lower the copy for the CPU.  `resume`: make it resumable
    where it is a window with a Loop.
    Raises UsageError where the currents are wanted of a file that is lowered.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    expand(copy)
    graph = copy.graph
    loops = _loops(graph)
    names = _Names(free_root(model, ROOT), _copies_of(model))
    wanted = ["count", *(["current_sum", "membrane_max"] if currents else [])]
    wanted += ["spikes"] if spikes else []
    zeros = {}
    for name, dtype in (("float", np.float32), ("double", np.float64)):
        zero = numpy_helper.from_array(np.zeros((), dtype), f"{names.root}/zero/{name}")
        graph.initializer.append(zero)
        zeros[name] = zero.name
    starts = {k: zeros["double" if _TYPES[k] == TensorProto.DOUBLE else "float"] for k in _TYPES}
    told = {entry.key: entry.value for entry in model.metadata_props}
    if loops:
        layers = _watch_loop(graph, loops[0], wanted, starts, names)
    elif any(node.op_type == LAYERED for node in graph.node):
        layers = _watch_layered(graph, wanted, starts, names.root, int(told["snnc.steps"]))
    elif _neurons(graph.node):
        layers = _watch_copies(graph, wanted, starts, names)
    else:
        raise refuse("SNNC401", "the model holds no spiking neurons", hint="compile it first")
    grid = grid_of(model)
    units = units_of(model)
    if "snnc.answer" in told:
        # A pipeline of layers: what a window of it stands for, its neurons do not say.
        steps, radix = int(told["snnc.steps"]), '"radix"' in told["snnc.options"]
        layers = [_of_window(x.name, x.threshold, steps, radix, x.root) for x in layers]
    layers = [_with_unit(layer, grid, units) for layer in layers]
    for layer in layers:
        for what in _shown(layer, wanted):
            graph.output.append(
                helper.make_tensor_value_info(Watched.output(layer, what), _TYPES[what], None)
            )
    found: list[Arrivals] = []
    if arrivals:
        loop = loops[0] if loops else None
        found = _watch_arrivals(graph, loop, layers, starts["count"], names)
    summing = (
        ["TimeSum", "WeightedTimeSum"] if any(layer.radix for layer in layers) else ["TimeSum"]
    )
    _add_functions(copy, [*summing, *(["EventSum"] if _is_lowered(layers) else [])])
    notes: tuple[LayerNote, ...] = ()
    if events:
        lowered = lower_events(copy)
        copy, notes = lowered.model, tuple(lowered.layers)
        graph = copy.graph
    if not (resume and loops):
        return Watched(copy, tuple(layers), tuple(found), events=notes)
    loops = _loops(graph)
    start, states = _make_resumable(graph, loops[0], names.root)
    carried = dict(zip(states, _carried(_body(_loops(graph)[0])), strict=True))
    return Watched(copy, tuple(layers), tuple(found), start, states, carried, notes)


def _with_unit(layer: Layer, grid: Grid, units: Mapping[str, NDArray[np.float64]]) -> Layer:
    if layer.name not in units and not grid.layers:
        return layer
    scale = units[layer.name] if layer.name in units else grid.of(layer.name).scale
    beside = max(layer.threshold.ndim - 1, 0)
    return replace(layer, unit=scale.reshape(-1, *[1] * beside) if scale.size > 1 else scale[0])


def _carried(body: onnx.GraphProto) -> Iterator[tuple[str, bool]]:
    """The states of a Loop's body, and whether an event-driven operator has them, channels last."""
    for entry in body.input[2:]:
        users = [node for node in body.node if entry.name in node.input]
        yield (
            entry.name,
            any(
                node.domain == dialect.DOMAIN and node.op_type in dialect.EVENT_OPERATORS
                for node in users
            ),
        )


@dataclass(frozen=True)
class _Names:
    """The names that are added begin with `root`; those in copies of a step match `copies`."""

    root: str
    copies: re.Pattern[str] | None

    def bare(self, name: str) -> str:
        """The name without what tells the copies of a step apart."""
        return self.copies.sub("", name) if self.copies else name


def _copies_of(model: onnx.ModelProto) -> re.Pattern[str] | None:
    root = copies_of(model)
    return re.compile(rf"^{root}\d+/") if root else None


def _add_functions(model: onnx.ModelProto, operators: list[str]) -> None:
    """The bodies of operators of ours that the model does not have yet."""
    there = {function.name for function in model.functions}
    bodies = dialect.functions(operators, _opset(model))
    model.functions.extend(body for body in bodies if body.name not in there)


def _loops(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type == "Loop" and _neurons(_body(node).node)]


def _is_lowered(layers: Sequence[Layer]) -> bool:
    return any(layer.operator in dialect.EVENT_NEURONS for layer in layers)


def _opset(model: onnx.ModelProto) -> int:
    return next(int(entry.version) for entry in model.opset_import if entry.domain == "")


def _body(node: onnx.NodeProto) -> onnx.GraphProto:
    body: onnx.GraphProto = next(a.g for a in node.attribute if a.name == "body")
    return body


def _neurons(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    return [
        node
        for node in nodes
        if node.domain == dialect.DOMAIN
        and node.op_type in (*dialect.NEURONS, *dialect.EVENT_NEURONS)
    ]


def ports(operator: str) -> list[str]:
    """The names of an operator's inputs."""
    return [port.name for port in dialect.ALL_OPERATORS[operator].inputs]


def _input(node: onnx.NodeProto, name: str) -> str:
    """What a neuron node reads at the named port; empty where its operator has none."""
    names = ports(node.op_type)
    return str(node.input[names.index(name)]) if name in names else ""


def _kinds(operator: str, wanted: Sequence[str]) -> list[str]:
    """The accumulators of a neuron of this kind."""
    return [*wanted, *(["events"] if "balance" in ports(operator) else [])]


def _shown(layer: Layer, wanted: Sequence[str]) -> list[str]:
    """The outputs of a layer."""
    if layer.layered:
        more = [what for what in ("current_sum", "spikes") if what in wanted]
        return ["count", *(["events"] if layer.radix else []), *more]
    return [*_kinds(layer.operator, wanted), "membrane_end"]


def _layer(
    node: onnx.NodeProto, name: str, values: Mapping[str, Any], start: str, root: str
) -> Layer:
    """The layer of a neuron node; `start` names the constant that its membrane starts from."""
    schedule = _input(node, "schedule")
    threshold, first = (
        numpy_helper.to_array(values[name]) for name in (_input(node, "threshold"), start)
    )
    charges = numpy_helper.to_array(values[schedule]) if schedule else None
    if node.op_type in dialect.EVENT_NEURONS:
        # One value a channel, without the axes of the map; and zeros where there is no schedule.
        threshold, first = (row.reshape(-1, 1, 1) for row in (threshold, first))
        charges = charges[..., None, None] if charges is not None and charges.any() else None
        return Layer(name, node.op_type, threshold, first, schedule=charges, root=root)
    levels = next((int(a.i) for a in node.attribute if a.name == "levels"), 1)
    return Layer(name, node.op_type, threshold, first, levels, charges, root)


def _observe(
    node: onnx.NodeProto, where: str, kinds: list[str], before: dict[str, str]
) -> tuple[list[onnx.NodeProto], dict[str, str]]:
    """Nodes that update the accumulators of one neuron node; the names of the new values."""
    current, steps = _input(node, "current"), _input(node, "steps")
    spikes, membrane = node.output[:2]
    after = {kind: f"{where}/{kind}" for kind in kinds}
    if node.op_type in dialect.EVENT_NEURONS:
        if "current_sum" in kinds:
            raise UsageError(
                "this file is lowered for the CPU, whose operators hide the currents of a layer",
                hint="compile it without --target cpu",
            )
        return _event_sum(spikes, before["count"], after["count"], steps), after
    made = [
        helper.make_node(
            "TimeSum", [spikes, before["count"], steps], [after["count"]], domain=dialect.DOMAIN
        )
    ]
    if "events" in kinds:
        sizes = f"{where}/sizes"
        made += [
            helper.make_node("Abs", [spikes], [sizes]),
            helper.make_node(
                "TimeSum",
                [sizes, before["events"], steps],
                [after["events"]],
                domain=dialect.DOMAIN,
            ),
        ]
    if "current_sum" in kinds:
        t = f"{where}/current"
        static = next(a.i for a in node.attribute if a.name == "static_current")
        made.append(helper.make_node("Cast", [current], [f"{t}/wide"], to=TensorProto.DOUBLE))
        if static:
            made += [
                helper.make_node("Cast", [steps], [f"{t}/steps"], to=TensorProto.DOUBLE),
                helper.make_node("Mul", [f"{t}/wide", f"{t}/steps"], [f"{t}/here"]),
            ]
        else:
            made += [
                helper.make_node("Constant", [], [f"{t}/one"], value_ints=[1]),
                helper.make_node("Constant", [], [f"{t}/any"], value_ints=[-1]),
                helper.make_node("Constant", [], [f"{t}/axis"], value_ints=[0]),
                helper.make_node("Reshape", [steps, f"{t}/one"], [f"{t}/k"]),
                helper.make_node("Shape", [current], [f"{t}/rest"], start=1),
                helper.make_node(
                    "Concat", [f"{t}/k", f"{t}/any", f"{t}/rest"], [f"{t}/shape"], axis=0
                ),
                helper.make_node("Reshape", [f"{t}/wide", f"{t}/shape"], [f"{t}/split"]),
                helper.make_node(
                    "ReduceSum", [f"{t}/split", f"{t}/axis"], [f"{t}/here"], keepdims=0
                ),
            ]
        made += [
            helper.make_node("Add", [before["current_sum"], f"{t}/here"], [after["current_sum"]]),
            helper.make_node("Abs", [membrane], [f"{t}/size"]),
            helper.make_node("Max", [before["membrane_max"], f"{t}/size"], [after["membrane_max"]]),
        ]
    return made, after


def _event_sum(spikes: str, before: str, after: str, steps: str) -> list[onnx.NodeProto]:
    """TimeSum of bytes."""
    one, shape, unit, weights = (f"{after}/{part}" for part in ("one", "shape", "unit", "weights"))
    return [
        helper.make_node("Constant", [], [one], value_ints=[1]),
        helper.make_node("Reshape", [steps, one], [shape]),
        helper.make_node("Constant", [], [unit], value_float=1.0),
        helper.make_node("Expand", [unit, shape], [weights]),
        helper.make_node(
            "EventSum", [spikes, weights, before, steps], [after], domain=dialect.DOMAIN
        ),
    ]


def _outside(inner: str, output: str, lowered: bool) -> onnx.NodeProto:
    """Hands a result of the Loop on, with its channels first."""
    if lowered:
        return helper.make_node("Transpose", [inner], [output], perm=[0, 3, 1, 2])
    return helper.make_node("Identity", [inner], [output])


def _watch_loop(
    graph: onnx.GraphProto,
    loop: onnx.NodeProto,
    wanted: list[str],
    starts: dict[str, str],
    names: _Names,
) -> list[Layer]:
    body = _body(loop)
    values = _initializers(graph, body)
    carried_in = [entry.name for entry in body.input][2:]
    carried_out = [entry.name for entry in body.output][1:]
    layers = []
    renamed: list[onnx.NodeProto] = []
    for node in _neurons(body.node):
        lowered = node.op_type in dialect.EVENT_NEURONS
        if _input(node, "membrane") not in carried_in or node.output[1] not in carried_out:
            raise refuse("SNNC401", "its membrane is not carried on", node=node.name)
        place = carried_in.index(_input(node, "membrane"))
        layer = _layer(node, node.name, values, loop.input[2 + place], names.root)
        layers.append(layer)
        kinds = _kinds(node.op_type, wanted)
        where = f"{names.root}/in/{node.name}"
        before = {kind: f"{where}/{kind}_before" for kind in kinds}
        made, after = _observe(node, where, kinds, before)
        body.node.extend(made)
        for kind in kinds:
            loop.input.append(starts[kind])
            name = Watched.output(layer, kind)
            loop.output.append(f"{name}/channels_last" if lowered else name)
            if lowered:
                renamed.append(_outside(loop.output[-1], name, lowered))
            body.input.append(helper.make_tensor_value_info(before[kind], _TYPES[kind], None))
            body.output.append(helper.make_tensor_value_info(after[kind], _TYPES[kind], None))
        final = loop.output[carried_out.index(node.output[1])]
        renamed.append(_outside(final, Watched.output(layer, "membrane_end"), lowered))
    _insert_behind(graph, loop, renamed)
    return layers


def _insert_behind(
    graph: onnx.GraphProto, loop: onnx.NodeProto, nodes: list[onnx.NodeProto]
) -> None:
    at = next(index for index, node in enumerate(graph.node) if node is loop or node == loop)
    rest = list(graph.node[at + 1 :])
    del graph.node[at + 1 :]
    graph.node.extend([*nodes, *rest])


def _watch_copies(
    graph: onnx.GraphProto, wanted: list[str], starts: dict[str, str], names: _Names
) -> list[Layer]:
    values = _initializers(graph)
    state: dict[str, dict[str, str]] = {}
    layers: dict[str, Layer] = {}
    last: dict[str, str] = {}
    for node in _neurons(graph.node):
        name = names.bare(node.name)
        if name not in layers:
            layers[name] = _layer(node, name, values, _input(node, "membrane"), names.root)
            state[name] = {kind: starts[kind] for kind in _kinds(node.op_type, wanted)}
        kinds = _kinds(node.op_type, wanted)
        made, state[name] = _observe(node, f"{names.root}/in/{node.name}", kinds, state[name])
        graph.node.extend(made)
        last[name] = node.output[1]
    for name, layer in layers.items():
        ends = {**state[name], "membrane_end": last[name]}
        for what, source in ends.items():
            graph.node.append(helper.make_node("Identity", [source], [Watched.output(layer, what)]))
    return list(layers.values())


def _of_window(name: str, theta: NDArray[np.float32], steps: int, radix: bool, root: str) -> Layer:
    """A layer of layered time, where windows have `steps` steps."""
    levels = (1 << steps) - 1 if radix else steps
    # Of a whole number, which is odd, what is below its half: it gives the same spikes.
    is_whole = bool((theta >= 1).all() and (theta == np.round(theta)).all())
    half = np.asarray(np.floor(theta / 2) if is_whole else theta / np.float32(2), np.float32)
    return Layer(name, LAYERED, theta, half, levels, None, root, True, radix)


def _watch_layered(
    graph: onnx.GraphProto, wanted: list[str], starts: dict[str, str], root: str, steps: int
) -> list[Layer]:
    """The layers of a file in layered time, `steps` of which are its own."""
    values = _initializers(graph)
    weights = f"{root}/weights"
    layers = []
    for node in _neurons(graph.node):
        attributes = {entry.name: int(entry.i) for entry in node.attribute}
        radix = bool(attributes["radix"])
        theta = numpy_helper.to_array(values[_input(node, "threshold")])
        made = _of_window(node.name, theta, steps, radix, root)
        layers.append(made)
        held = _input(node, "steps")

        def total(of: str, what: str, weighted: bool, held: str = held) -> onnx.NodeProto:
            inputs = [of, *([weights] if weighted else []), starts["count"], held]
            op = "WeightedTimeSum" if weighted else "TimeSum"
            return helper.make_node(op, inputs, [what], domain=dialect.DOMAIN)

        spikes, current = node.output[0], _input(node, "current")
        added = [total(spikes, Watched.output(made, "count"), radix)]
        if radix:
            added.append(total(spikes, Watched.output(made, "events"), False))
            if not any(tensor.name == weights for tensor in graph.initializer):
                powers = (2.0 ** np.arange(steps)[::-1]).astype(np.float32)
                graph.initializer.append(numpy_helper.from_array(powers, weights))
        if "spikes" in wanted:
            seen = Watched.output(made, "spikes")
            added.append(helper.make_node("Identity", [spikes], [seen]))
        if "current_sum" in wanted:
            where = f"{root}/in/{node.name}"
            complete = current
            if not attributes["static_current"]:
                complete = f"{where}/complete"
                added.append(total(current, complete, radix))
            start = numpy_helper.from_array(made.membrane_start.astype(np.float64), f"{where}/half")
            graph.initializer.append(start)
            whole = Watched.output(made, "current_sum")
            wide = [f"{where}/{what}/wide" for what in ("complete", "membrane")]
            for name, source in zip(wide, (complete, _input(node, "membrane")), strict=True):
                added.append(helper.make_node("Cast", [source], [name], to=TensorProto.DOUBLE))
            added += [
                helper.make_node("Add", wide, [f"{where}/potential"]),
                helper.make_node("Sub", [f"{where}/potential", start.name], [whole]),
            ]
        for one in added:
            one.name = one.output[0]
        graph.node.extend(added)
    return layers


def _initializers(*graphs: onnx.GraphProto) -> dict[str, Any]:
    return {tensor.name: tensor for graph in graphs for tensor in graph.initializer}


# --- what arrives at the weights ---


def _watch_arrivals(
    graph: onnx.GraphProto,
    loop: onnx.NodeProto | None,
    layers: Sequence[Layer],
    zero: str,
    names: _Names,
) -> list[Arrivals]:
    """Count the arrivals at every node with constant weights, or note its shape where it runs once."""
    inside = list(_body(loop).node) if loop is not None else _temporal(graph)
    values = _initializers(graph, *([_body(loop)] if loop is not None else []))
    made = {name for node in inside for name in node.output}
    into = _flows_into(inside)
    known = {layer.name: layer for layer in layers}
    counted: dict[str, str] = {}
    for node in _neurons(inside):
        layer = known[names.bare(node.name)]
        if layer.layered or (layer.levels == 1 and not layer.signed):
            counted[node.output[0]] = Watched.output(layer, layer.events)
    steps = next(iter(_input(node, "steps") for node in _neurons(inside)))

    found: dict[tuple[str, int], Arrivals] = {}
    sums: dict[str, list[tuple[str, bool]]] = {}
    places: dict[str, int] = {}
    for node in inside:
        for number, synapses in enumerate(synapses_of(node, values)):
            source, key = synapses.source, (names.bare(node.name), number)
            if source not in made:
                continue
            output = counted.get(source)
            if output is None:
                place = places.setdefault(names.bare(source), len(places))
                output = counted[source] = f"{names.root}/arrived/{place}"
                lowered = node.op_type in dialect.EVENT_NEURONS
                sums.setdefault(output, []).append((source, lowered))
            layer_name = names.bare(into.get(node.name, node.name))
            found.setdefault(key, Arrivals(synapses, output, layer_name))
    for output, sources in sums.items():
        if loop is not None:
            ((source, lowered),) = sources
            _count_in_loop(graph, loop, source, output, lowered, steps, zero)
        else:
            _count_copies(graph, [source for source, _ in sources], output, steps, zero)
        graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    once = [
        synapses
        for node in graph.node
        for synapses in synapses_of(node, values)
        if synapses.source not in made
    ]
    arrivals = list(found.values())
    for index, synapses in enumerate(once):
        output = f"{names.root}/shape/{index}"
        graph.node.append(helper.make_node("Shape", [synapses.source], [output]))
        graph.output.append(helper.make_tensor_value_info(output, TensorProto.INT64, None))
        arrivals.append(Arrivals(synapses, output))
    return arrivals


def _temporal(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes of a graph without a Loop whose values change with time."""
    names: set[str] = set()
    found = []
    for node in graph.node:
        ours = node.domain == dialect.DOMAIN
        if node.op_type in ("TimeSum", "WeightedTimeSum"):
            continue
        if ours or names & set(node.input):
            names.update(node.output)
            found.append(node)
    return found


def _flows_into(nodes: Sequence[onnx.NodeProto]) -> dict[str, str]:
    """The first neuron node that each node's output reaches, by their names."""
    origins: dict[str, set[str]] = {}
    into: dict[str, str] = {}
    neurons = {node.name for node in _neurons(nodes)}
    for node in nodes:
        arriving = set().union(*(origins.get(name, set()) for name in node.input))
        if node.name in neurons:
            into.update({name: node.name for name in arriving if name not in into})
            into[node.name] = node.name
        else:
            origins.update(dict.fromkeys(node.output, arriving | {node.name}))
    return into


def _not_zero(source: str, where: str, lowered: bool) -> tuple[list[onnx.NodeProto], str]:
    """1 where an element is not 0."""
    kind = TensorProto.UINT8 if lowered else TensorProto.FLOAT
    some, ones = f"{where}/some", f"{where}/ones"
    return [
        helper.make_node("Cast", [source], [some], to=TensorProto.BOOL),
        helper.make_node("Cast", [some], [ones], to=kind),
    ], ones


def _count_in_loop(
    graph: onnx.GraphProto,
    loop: onnx.NodeProto,
    source: str,
    output: str,
    lowered: bool,
    steps: str,
    zero: str,
) -> None:
    body = _body(loop)
    before, after = f"{output}/before", f"{output}/after"
    made, ones = _not_zero(source, output, lowered)
    if lowered:
        made += _event_sum(ones, before, after, steps)
    else:
        made.append(
            helper.make_node("TimeSum", [ones, before, steps], [after], domain=dialect.DOMAIN)
        )
    body.node.extend(made)
    body.input.append(helper.make_tensor_value_info(before, TensorProto.FLOAT, None))
    body.output.append(helper.make_tensor_value_info(after, TensorProto.FLOAT, None))
    loop.input.append(zero)
    inner = f"{output}/last"
    position = next(index for index, node in enumerate(graph.node) if node is loop or node == loop)
    graph.node[position].output.append(inner)
    _insert_behind(graph, graph.node[position], [_outside(inner, output, lowered)])


def _count_copies(
    graph: onnx.GraphProto, sources: list[str], output: str, steps: str, zero: str
) -> None:
    total = zero
    for number, source in enumerate(sources):
        made, ones = _not_zero(source, f"{output}/{number}", False)
        after = output if number == len(sources) - 1 else f"{output}/{number}/total"
        graph.node.extend(made)
        graph.node.append(
            helper.make_node("TimeSum", [ones, total, steps], [after], domain=dialect.DOMAIN)
        )
        total = after


# --- one run for many numbers of time-steps ---


def _make_resumable(
    graph: onnx.GraphProto, loop: onnx.NodeProto, root: str
) -> tuple[str, dict[str, tuple[Array, str]]]:
    """Let the Loop begin after a number of steps that are done, with states from outside.

    Raises Refused where the file does not count its steps as this version does.
    """
    loop = next(node for node in graph.node if node == loop)
    body, values = _body(loop), _initializers(graph)
    start = f"{root}/start"
    graph.input.append(helper.make_tensor_value_info(start, TensorProto.INT64, []))
    counter = next((node for node in body.node if node.op_type == "TimeSteps"), None)
    if counter is None:
        raise refuse("SNNC401", "an earlier version wrote this file", hint="compile it again")
    names = [port.name for port in dialect.COUNTING_OPERATORS["TimeSteps"].inputs]
    counter.input[names.index("done")] = start

    aliases = {
        node.input[0]: node.output[0]
        for node in graph.node
        if node.op_type == "Identity" and node.output[0].startswith(f"{root}/")
    }
    outputs = {entry.name for entry in graph.output}
    states = {}
    for place, carried in enumerate(loop.output):
        name = f"{root}/state/{place}"
        first = numpy_helper.to_array(values[loop.input[2 + place]])
        kind = body.input[2 + place].type.tensor_type.elem_type
        graph.input.append(helper.make_tensor_value_info(name, kind, None))
        loop.input[2 + place] = name
        after = aliases.get(carried, carried)
        if after not in outputs:
            graph.output.append(helper.make_tensor_value_info(after, kind, None))
        states[name] = (first, after)
    return start, states
