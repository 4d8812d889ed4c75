"""Unroll the network over its time-steps, in one of three ways that give the same result.

`fold`   chunks of K steps: time is folded into the batch axis, [K·N, ...], each neuron scans its K
         steps inside, and an ONNX Loop carries the states over ceil(T/K) chunks.  T and K are
         overridable inputs of the emitted model.
`loop`   the same with K = 1: one step an iteration, nothing folded.  T is overridable.
`steps`  the step graph copied T times; T is baked in.  For other compilers, and as an oracle.

The static part stands outside and is computed once; so does the read-out, on time-means.

Two more forms are emitted for their own uses:

`step`        one time-step with every state as an overridable input and as an output, for streams
              whose input changes with time (`snncompiler.runtime.Stream`).
`cuda-graph`  one chunk of K = T steps for a fixed batch, without control flow or run-time shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from snncompiler.errors import refuse
from snncompiler.ir import dialect
from snncompiler.ir.graph import (
    BATCH,
    Graph,
    Node,
    Tensor,
    is_live,
    known_rank,
    rank,
    tensor_names,
    unique_name,
)
from snncompiler.ir.operators import record
from snncompiler.ir.phases import TIME_MEAN, Timing, analyze
from snncompiler.ir.readout import MEAN, ReadOut
from snncompiler.ir.settings import Emit, Unroll
from snncompiler.passes.time.graph_writer import ENDLESS, GraphWriter, Time, constants_of
from snncompiler.passes.time.time_weights import TimeWeights

#: Names in the copy of step t, counted from 0, begin with this, t and a slash.
COPIES = "t"
#: `steps` copies the step graph; above this many nodes onnxruntime takes minutes to load it.
NODE_BUDGET = 20_000


@dataclass(frozen=True)
class UnrollTime:
    """The last graph pass: from the gs graph to an ONNX graph with time in it.

    `steps` is T, `chunk` is K (1 unless `unroll` is fold).  `form` is "window" for the three ways.
    `seed` is the default of the encoders' seed.
    """

    unroll: Unroll
    steps: int
    chunk: int
    form: Emit = "window"
    read_out: ReadOut = MEAN
    seed: int = 0

    def emit(self, graph: Graph) -> tuple[onnx.GraphProto, dict[str, str]]:
        """The graph, and the names of its own inputs: `steps` and `chunk` where they can be
        overridden, `seed` and `first_image` where there are encoders; for a step model `step`, and
        `state:<input>` -> the output that carries it on.  `copies` is what the names of copied steps
        begin with.
        """
        timing = analyze(graph, _is_ours, inputs_vary=self.form == "step")
        _name_apart(graph)
        taken = tensor_names(graph) | {node.name for node in graph.nodes}
        writer = _Writer(graph=graph, timing=timing, taken=taken, time_weights=self.read_out)
        if self.form == "step":
            return writer.single_step()
        names = writer.encoder_inputs(self.seed)
        if self.form == "cuda-graph":
            writer.whole_window(self.steps)
            return writer.finish(graph), names
        if self.unroll == "steps":
            root = writer.copies(self.steps)
            return writer.finish(graph), {**names, "copies": root}
        names["steps"] = writer.parameter("snnc_steps", self.steps)
        if self.unroll == "fold":
            names["chunk"] = writer.parameter("snnc_chunk", self.chunk)
        writer.loop(names["steps"], names.get("chunk"))
        return writer.finish(graph), names


def unfoldable(graph: Graph) -> list[Node]:
    """The temporal nodes whose outputs do not have the batch as their leading axis."""
    timing = analyze(graph, _is_ours)
    return [
        node
        for node in graph.nodes
        if timing.phase(node) == "temporal"
        and not record(node.op).shape_only
        and not (
            all(_has_batch(tensor) for tensor in node.outputs)
            and all(_repeatable(tensor) for tensor in node.inputs)
        )
    ]


def _repeatable(tensor: Tensor) -> bool:
    """Whether no axis but the leading one is the batch, along which static values are repeated."""
    return not is_live(tensor) or BATCH not in list(tensor.shape or ())[1:]


def _has_batch(tensor: Tensor) -> bool:
    return bool(tensor.shape) and tensor.shape[0] == BATCH


def _is_ours(node: Node) -> bool:
    return bool(node.domain == dialect.DOMAIN and node.op != TIME_MEAN)


def _name_apart(graph: Graph) -> None:
    """Give every node a name of its own, which a neuron's layer never loses to another node."""
    taken: set[str] = set()
    for node in sorted(graph.nodes, key=lambda node: not _is_ours(node)):
        node.name = unique_name(node.name, taken)


@dataclass(kw_only=True)
class _Writer(GraphWriter):
    """Writes static nodes, the temporal region in one of the three ways, and the read-out."""

    graph: Graph
    timing: Timing
    time_weights: ReadOut = MEAN
    random: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        phases = [(node, self.timing.phase(node)) for node in self.graph.nodes]
        means = [node for node, _ in phases if node.op == TIME_MEAN and node.domain]
        mean_ids = {id(node) for node in means}
        self.means: Sequence[Node] = means
        self.temporal = [node for node, phase in phases if phase == "temporal"]
        self.read_out = [n for n, phase in phases if phase == "read-out" and id(n) not in mean_ids]
        self.temporal_tensors = {id(t) for node in self.temporal for t in node.outputs}
        self.nodes += self._plain([node for node, phase in phases if phase == "static"])
        self.weights = TimeWeights(self, self.time_weights)

    # --- pieces ---

    def encoder_inputs(self, seed: int) -> dict[str, str]:
        """What random spikes are drawn from, beside the time-step: the seed and the first image."""
        if all(node.op != "PoissonEncoder" for node in self.temporal):
            return {}
        self.random = {
            "seed": self.parameter("snnc_seed", seed),
            "first_image": self.parameter("snnc_first_image", 0),
        }
        return dict(self.random)

    def _plain(self, nodes: Sequence[Node]) -> list[onnx.NodeProto]:
        self.initializers.update(constants_of(nodes))
        return [OnnxExporter.export_node(node) for node in nodes]

    def states(self) -> Iterator[tuple[str, Tensor, int]]:
        """Every state of the region's operators: its name, the constant it starts from, its rank."""
        for node in self.temporal:
            if _is_ours(node):
                operator = dialect.OPERATORS[node.op]
                for place, _ in operator.states:
                    name = f"{node.name}/{operator.inputs[place].name}"
                    yield name, node.inputs[place], known_rank(node.inputs[0])

    def totals(self) -> dict[str, Node]:
        """The states of the read-outs: name -> TimeMean node."""
        return {f"{node.name}/total": node for node in self.means}

    def start_states(self) -> dict[str, str]:
        """State name -> name of the constant that it starts from; the constants are added."""
        starts = {}
        for name, start, _ in self.states():
            self.initializers[str(start.name)] = OnnxExporter.export_tensor_proto(start)
            starts[name] = str(start.name)
        if self.means:
            zero = self.constant("snnc_zero", 0.0, np.float32)
            starts.update(dict.fromkeys(self.totals(), zero))
        return starts

    def region(
        self,
        prefix: str,
        time: Time,
        states: dict[str, str],
        fold: bool = False,
    ) -> tuple[list[onnx.NodeProto], dict[str, str]]:
        """One pass through the temporal region.

        `prefix` goes before every name it makes, `time` names its time-steps, `states` maps every state
        to the name of its value, `fold` tells whether time is folded into the batch.  Returns the nodes
        and the names of the states' new values.
        """
        made: list[onnx.NodeProto] = []
        new_states: dict[str, str] = {}
        tiled: dict[str, str] = {}

        def inside(tensor: Tensor) -> str:
            return (prefix if id(tensor) in self.temporal_tensors else "") + str(tensor.name)

        for node in self.temporal:
            proto = OnnxExporter.export_node(node)
            names = [inside(tensor) for tensor in node.inputs]
            proto.name = prefix + node.name
            outputs = [prefix + tensor.name for tensor in node.outputs]
            if _is_ours(node):
                operator = dialect.OPERATORS[node.op]
                for state_in, state_out in operator.states:
                    state = f"{node.name}/{operator.inputs[state_in].name}"
                    names[state_in] = states[state]
                    port = operator.outputs[state_out]
                    new_states[state] = self.within(prefix, f"{node.name}/{port.name}")
                    outputs.insert(state_out, new_states[state])
                given = {**self.random, "start": time.start, "steps": time.steps}
                names += [given[port.name] for port in operator.inputs if port.name in given]
                if any(attribute.name == "static_current" for attribute in operator.attributes):
                    static = id(node.inputs[0]) not in self.temporal_tensors
                    proto.attribute.append(helper.make_attribute("static_current", int(static)))
            elif fold:
                for index, tensor in enumerate(node.inputs):
                    if self._needs_time(tensor):
                        if tensor.name not in tiled:
                            tiled[tensor.name] = self.within(prefix, f"{tensor.name}/repeated")
                            made += self._repeat(tensor, time, tiled[tensor.name])
                        names[index] = tiled[tensor.name]
            del proto.input[:], proto.output[:]
            proto.input.extend(names)
            proto.output.extend(outputs)
            made.append(proto)
        if self.means and not self.time_weights.uniform:
            made += self.weights.of_steps(prefix, time)
        for state, node in self.totals().items():
            new_states[state] = self.within(prefix, f"{node.name}/total_out")
            values = inside(node.inputs[0])
            weighted = not self.time_weights.uniform
            weights = [self.within(prefix, "snnc_time_weights")] if weighted else []
            made.append(
                helper.make_node(
                    "WeightedTimeSum" if weighted else "TimeSum",
                    [values, *weights, states[state], time.steps],
                    [new_states[state]],
                    name=prefix + node.name,
                    domain=dialect.DOMAIN,
                )
            )
        return made, new_states

    def _needs_time(self, tensor: Tensor) -> bool:
        """A static value with a batch axis, read beside temporal ones: [N, ...] -> [K·N, ...]."""
        return is_live(tensor) and id(tensor) not in self.temporal_tensors and _has_batch(tensor)

    def _repeat(self, tensor: Tensor, time: Time, result: str) -> list[onnx.NodeProto]:
        """A static tensor at every step: where its type allows, by an operator of ours whose host reads
        the number of steps.  What Tile repeats by would be computed and copied on CUDA."""
        if tensor.dtype in (np.float32, np.float16):
            unit = self.constant(f"{tensor.name}/unit", [1.0], np.float32)
            inputs = [tensor.name, unit, time.start, time.steps]
            return [helper.make_node("Drive", inputs, [result], name=result, domain=dialect.DOMAIN)]
        single = self.constant("snnc_shape_one", [1])
        ones = self.constant(f"{tensor.name}/ones", [1] * ((rank(tensor) or 1) - 1))
        repeats, lead = (self.name(f"{result}/{x}") for x in ("repeats", "steps"))
        return [
            helper.make_node("Reshape", [time.steps, single], [lead], name=lead),
            helper.make_node("Concat", [lead, ones], [repeats], name=repeats, axis=0),
            helper.make_node("Tile", [tensor.name, repeats], [result], name=result),
        ]

    def decode(self, totals: dict[str, str], steps: str | int) -> None:
        """Divide the sums by the sum of the weights, and run the read-out on the means.

        `steps` is T, or the name of the int64 scalar that holds it.
        """
        divisor = self.weights.divisor(steps) if self.means else ""
        for state, node in self.totals().items():
            total, mean = totals[state], node.outputs[0]
            wide = mean.dtype in (None, np.float32)
            target = mean.name if wide else self.name(f"{mean.name}/wide")
            self.nodes.append(
                helper.make_node(
                    "Div", [total, divisor], [target], name=self.name(f"{node.name}/mean")
                )
            )
            if not wide:
                kind = helper.np_dtype_to_tensor_dtype(np.dtype(mean.dtype))
                self.nodes.append(
                    helper.make_node(
                        "Cast", [target], [mean.name], name=self.name(f"{node.name}/cast"), to=kind
                    )
                )
        self.nodes += self._plain(self.read_out)

    # --- the three ways ---

    def time_steps(
        self,
        nodes: list[onnx.NodeProto],
        name: str,
        iteration: str,
        total: str,
        chunk: str,
        end: str = "",
    ) -> tuple[Time, str]:
        """A TimeSteps node: its time-steps, and the name of whether others follow.  `end`: the wanted
        name of its output with the steps after it.

        Whatever may be overridden is read by such nodes only (see its body).
        """
        none = self.constant("snnc_none", 0)
        wanted = [f"{name}_start", f"{name}_steps", end or f"{name}_end", f"{name}_going"]
        made = [self.name(output) for output in wanted]
        nodes.append(
            helper.make_node(
                "TimeSteps",
                [iteration, none, total, chunk],
                made,
                name=self.name(name),
                domain=dialect.DOMAIN,
            )
        )
        return Time(made[0], made[1], made[2]), made[3]

    def loop(self, steps: str, chunk: str | None) -> None:
        """`fold` with chunks of `chunk` steps, or `loop` where it is None."""
        one = self.constant("snnc_one", 1)
        always = self.constant("snnc_true", True, np.bool_)
        # One trip of all steps: T itself, which the read-out divides by.
        first, endless = self.constant("snnc_no_trip", 0), self.constant("snnc_endless", ENDLESS)
        window, _ = self.time_steps(self.nodes, "snnc_window", first, steps, endless)

        # Constants of the region go into the loop's body, where onnxruntime can prepack them; the
        # states start from constants outside.
        starts = self.start_states()
        carried = {name: self.name(name) for name in starts}

        trip, going = (self.name(f"snnc_{x}") for x in ("iteration", "going"))
        body: list[onnx.NodeProto] = []
        outside = {**self.initializers, **constants_of(self.read_out)}
        self.initializers = {}
        time, still = self.time_steps(body, "snnc_trip", trip, window.steps, chunk or one)
        if chunk is None:
            time = replace(time, steps=one)
        nodes, states = self.region("", time, carried, chunk is not None)
        body += nodes
        used = {name for node in body for name in node.input}
        inner = {**self.initializers, **constants_of(self.temporal)}
        inner = {n: t for n, t in inner.items() if n in used and n not in outside}
        graph = helper.make_graph(
            body,
            "snnc_chunk_of_steps" if chunk else "snnc_one_step",
            [
                helper.make_tensor_value_info(trip, TensorProto.INT64, []),
                helper.make_tensor_value_info(going, TensorProto.BOOL, []),
                *(
                    helper.make_tensor_value_info(carried[name], TensorProto.FLOAT, None)
                    for name in starts
                ),
            ],
            [
                helper.make_tensor_value_info(still, TensorProto.BOOL, []),
                *(
                    helper.make_tensor_value_info(states[name], TensorProto.FLOAT, None)
                    for name in starts
                ),
            ],
            initializer=list(inner.values()),
        )
        self.initializers = outside
        finals = {name: self.name(f"{name}/final") for name in starts}
        self.nodes.append(
            helper.make_node(
                "Loop",
                ["", always, *starts.values()],
                list(finals.values()),
                name=self.name("snnc_time"),
                body=graph,
            )
        )
        self.decode(finals, window.steps)

    def copies(self, steps: int) -> str:
        """`steps`: T copies of the step graph; returns what their names begin with."""
        nodes = steps * (len(self.temporal) + len(self.means))
        if nodes > NODE_BUDGET:
            raise refuse(
                "SNNC209",
                f"unrolling {steps} steps would write {nodes:,} nodes, the limit is {NODE_BUDGET:,}",
                hint="use --unroll fold or loop, which write the step graph once",
            )
        one = self.constant("snnc_one", 1)
        self.initializers.update(constants_of(self.temporal))
        states = self.start_states()
        root = COPIES
        while any(re.match(rf"{root}\d+/", name) for name in self.taken):
            root += COPIES
        for t in range(steps):
            done = self.constant(f"{root}{t}/snnc_steps_done", t)
            made, states = self.region(f"{root}{t}/", Time(done, one), states)
            self.nodes += made
        self.decode(states, steps)
        return root

    def whole_window(self, steps: int) -> None:
        """`cuda-graph`: all T steps as one chunk; T is baked in, and so is the batch by its shape."""
        held = self.constant("snnc_steps", steps)
        self.initializers.update(constants_of(self.temporal))
        start = self.constant("snnc_start", 0)
        made, states = self.region("", Time(start, held), self.start_states(), True)
        self.nodes += made
        self.decode(states, steps)

    def single_step(self) -> tuple[onnx.GraphProto, dict[str, str]]:
        """`step`: the states are overridable inputs, with their start as default, and outputs."""
        one = self.constant("snnc_one", 1)
        step = self.parameter("snnc_step", 0)
        endless = self.constant("snnc_endless", ENDLESS)
        time, _ = self.time_steps(self.nodes, "snnc_trip", step, endless, one, "snnc_step_next")
        time = replace(time, steps=one)
        self.initializers.update(constants_of(self.temporal))
        starts = {name: (start.values, size) for name, start, size in self.states()}
        for name, node in self.totals().items():
            starts[name] = (np.zeros((), np.float32), known_rank(node.inputs[0]))
        states = {}
        for name, (start, size) in starts.items():
            # Only the rank is declared: the start broadcasts to the [N, ...] that comes out.
            spread = np.reshape(start, (1,) * (size - start.ndim) + start.shape)
            states[name] = self.constant(name, spread, np.float32)
            self.overridable.append(
                helper.make_tensor_value_info(states[name], TensorProto.FLOAT, [None] * size)
            )
        following = time.end
        made, new_states = self.region("", time, states)
        self.nodes += made
        self.decode(new_states, following)
        graph = self.finish(self.graph)
        graph.output.append(helper.make_tensor_value_info(following, TensorProto.INT64, []))
        for name, (_, size) in starts.items():
            graph.output.append(
                helper.make_tensor_value_info(new_states[name], TensorProto.FLOAT, [None] * size)
            )
        carried = {f"state:{state}": new_states[name] for name, state in states.items()}
        return graph, {"step": step, f"state:{step}": following, **carried}
