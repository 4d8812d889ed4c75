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
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper, numpy_helper
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

#: Names in the copy of step t, counted from 0, begin with this, t and a slash.
COPIES = "t"
#: More time-steps than any run has.
ENDLESS = 2**63 - 1
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
        writer = _Writer(graph, timing, taken, self.read_out)
        if self.form == "step":
            return writer.single_step()
        names = writer.encoder_inputs(self.seed)
        if self.form == "cuda-graph":
            writer.whole_window(self.steps)
            return writer.finish(), names
        if self.unroll == "steps":
            root = writer.copies(self.steps)
            return writer.finish(), {**names, "copies": root}
        names["steps"] = writer.parameter("snnc_steps", self.steps)
        if self.unroll == "fold":
            names["chunk"] = writer.parameter("snnc_chunk", self.chunk)
        writer.loop(names["steps"], names.get("chunk"))
        return writer.finish(), names


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


@dataclass(frozen=True)
class _Time:
    """The names of the time-steps before one pass through the region, in it, and after it; the last is
    missing where the others are constants."""

    start: str
    steps: str
    end: str = ""


@dataclass
class _Writer:
    """Writes static nodes, the temporal region in one of the three ways, and the read-out.

    `taken` holds the names of all tensors and nodes, in the body of the Loop or outside: what the user
    wrote keeps its name, and what is made here gets one that is free.
    """

    graph: Graph
    timing: Timing
    taken: set[str]
    time_weights: ReadOut = MEAN
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)
    overridable: list[onnx.ValueInfoProto] = field(default_factory=list)
    random: dict[str, str] = field(default_factory=dict)
    #: What `region` makes in every copy: wanted name -> free name, before the prefix of a copy.
    inner: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        phases = [(node, self.timing.phase(node)) for node in self.graph.nodes]
        means = [node for node, _ in phases if node.op == TIME_MEAN and node.domain]
        mean_ids = {id(node) for node in means}
        self.means: Sequence[Node] = means
        self.temporal = [node for node, phase in phases if phase == "temporal"]
        self.read_out = [n for n, phase in phases if phase == "read-out" and id(n) not in mean_ids]
        self.temporal_tensors = {id(t) for node in self.temporal for t in node.outputs}
        self.nodes += self._plain([node for node, phase in phases if phase == "static"])

    # --- pieces ---

    def name(self, wanted: str) -> str:
        return unique_name(wanted, self.taken)

    def within(self, prefix: str, wanted: str) -> str:
        """The name of what one copy of the region makes, the same in each but for the prefix."""
        if wanted not in self.inner:
            self.inner[wanted] = self.name(wanted)
        return prefix + self.inner[wanted]

    def constant(self, wanted: str, values: object, dtype: type = np.int64) -> str:
        name = self.name(wanted)
        self.initializers[name] = numpy_helper.from_array(np.array(values, dtype), name)
        return name

    def parameter(self, wanted: str, default: int) -> str:
        """An int64 scalar initializer that is also a graph input: a value the user may override."""
        name = self.constant(wanted, default)
        self.overridable.append(helper.make_tensor_value_info(name, TensorProto.INT64, []))
        return name

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
        self.initializers.update(_constants_of(nodes))
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
        time: _Time,
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
            made += self._time_weights(prefix, time)
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

    def _time_weights(self, prefix: str, time: _Time) -> list[onnx.NodeProto]:
        """The weights w_t·g_t of the steps start + 1 to end, float32 [steps]."""
        variable = {entry.name for entry in self.overridable}
        known = {n: t for n, t in self.initializers.items() if n not in variable}
        if time.start in known and time.steps in known:
            before, count = (
                int(numpy_helper.to_array(known[name])) for name in (time.start, time.steps)
            )
            weights = self.time_weights.weights(np.arange(before + 1, before + count + 1))
            name = self.within(prefix, "snnc_time_weights")
            self.initializers[name] = numpy_helper.from_array(weights, name)
            return []
        one = self.constant(f"{prefix}snnc_first", 1)
        before_each, times, result = (
            self.within(prefix, f"snnc_{x}") for x in ("times_before", "times", "time_weights")
        )
        made = [
            # The host gives both ends, so that on CUDA nothing is copied.
            helper.make_node("Range", [time.start, time.end, one], [before_each], name=before_each),
            helper.make_node("Add", [before_each, one], [times], name=times),
        ]
        counted = times
        if self.time_weights.kind == "ramp":
            # In double precision, where t³ cannot overflow however long a stream is.
            wide = counted = self.within(prefix, "snnc_times_wide")
            made.append(helper.make_node("Cast", [times], [wide], name=wide, to=TensorProto.DOUBLE))
            for power in range(2, self.time_weights.power + 1):
                factor, counted = counted, self.within(prefix, f"snnc_times_{power}")
                made.append(helper.make_node("Mul", [factor, wide], [counted], name=counted))
        else:
            skipped = self.constant(f"{prefix}snnc_skipped", self.time_weights.skipped)
            counted = self.within(prefix, "snnc_counted")
            made.append(helper.make_node("Greater", [times, skipped], [counted], name=counted))
        growing = self.time_weights.growth
        plain = self.within(prefix, "snnc_plain_weights") if growing else result
        made.append(helper.make_node("Cast", [counted], [plain], name=plain, to=TensorProto.FLOAT))
        if growing:
            made += self._worth(prefix, times, one, plain, result)
        return made

    def _worth(
        self, prefix: str, times: str, one: str, plain: str, result: str
    ) -> list[onnx.NodeProto]:
        """`result`: `plain` times g_t, of which a table says the first and the last one holds on."""
        table = self.time_weights.growth.table
        worth = self.constant(f"{prefix}snnc_worth", table, np.float32)
        length = self.constant(f"{prefix}snnc_growing", len(table))
        held, place, here = (
            self.within(prefix, f"snnc_worth_{x}") for x in ("step", "place", "here")
        )
        return [
            helper.make_node("Min", [times, length], [held], name=held),
            helper.make_node("Sub", [held, one], [place], name=place),
            helper.make_node("Gather", [worth, place], [here], name=here),
            helper.make_node("Mul", [plain, here], [result], name=result),
        ]

    def _needs_time(self, tensor: Tensor) -> bool:
        """A static value with a batch axis, read beside temporal ones: [N, ...] -> [K·N, ...]."""
        return is_live(tensor) and id(tensor) not in self.temporal_tensors and _has_batch(tensor)

    def _repeat(self, tensor: Tensor, time: _Time, result: str) -> list[onnx.NodeProto]:
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
        divisor = self._divisor(steps) if self.means else ""
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

    def _divisor(self, steps: str | int) -> str:
        """The name of Σ w_t over all T steps, a float32 scalar."""
        if isinstance(steps, int):
            total = self.time_weights.total(steps)
            return self.constant("snnc_weight_of_time", total, np.float32)
        total_name = steps
        if self.time_weights.kind == "ramp":
            total_name = self._sum_of_powers(steps)
        elif self.time_weights.kind == "delay":
            counted, total_name = self.name("snnc_steps_counted"), self.name("snnc_delay_total")
            skip = self.constant("snnc_skip", self.time_weights.skipped)
            one = self.constant("snnc_one", 1)
            self.nodes += [
                helper.make_node("Sub", [steps, skip], [counted], name=counted),
                helper.make_node("Max", [counted, one], [total_name], name=total_name),
            ]
        divisor = self.name("snnc_weight_of_time")
        self.nodes.append(
            helper.make_node("Cast", [total_name], [divisor], name=divisor, to=TensorProto.FLOAT)
        )
        return divisor

    def _sum_of_powers(self, steps: str) -> str:
        """The name of Σ t^P for t from 1 to T, in double precision."""

        def emit(op: str, inputs: Sequence[str], wanted: str, **more: Any) -> str:
            name = self.name(f"snnc_{wanted}")
            self.nodes.append(helper.make_node(op, inputs, [name], name=name, **more))
            return name

        def number(value: int, wanted: str) -> str:
            return self.constant(f"snnc_{wanted}_wide", value, np.float64)

        # T(T+1)/2, T(T+1)(2T+1)/6, or the square of the first.
        last = emit("Cast", [steps], "steps_wide", to=TensorProto.DOUBLE)
        following = emit("Add", [last, number(1, "one")], "steps_plus_one")
        product = emit("Mul", [last, following], "steps_product")
        if self.time_weights.power == 2:
            odd = emit("Add", [last, following], "steps_odd")
            cubic = emit("Mul", [product, odd], "steps_cubic")
            return emit("Div", [cubic, number(6, "six")], "ramp_total")
        total = emit("Div", [product, number(2, "two")], "ramp_total")
        return (
            emit("Mul", [total, total], "ramp_squared") if self.time_weights.power == 3 else total
        )

    # --- the three ways ---

    def time_steps(
        self, nodes: list[onnx.NodeProto], name: str, iteration: str, total: str, chunk: str
    ) -> tuple[_Time, str]:
        """A TimeSteps node: its time-steps, and the name of whether others follow.

        Whatever may be overridden is read by such nodes only (see its body).
        """
        none = self.constant("snnc_none", 0)
        made = [self.name(f"{name}_{x}") for x in ("start", "steps", "end", "going")]
        nodes.append(
            helper.make_node(
                "TimeSteps",
                [iteration, none, total, chunk],
                made,
                name=self.name(name),
                domain=dialect.DOMAIN,
            )
        )
        return _Time(made[0], made[1], made[2]), made[3]

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
        outside = {**self.initializers, **_constants_of(self.read_out)}
        self.initializers = {}
        time, still = self.time_steps(body, "snnc_trip", trip, window.steps, chunk or one)
        if chunk is None:
            time = replace(time, steps=one)
        nodes, states = self.region("", time, carried, chunk is not None)
        body += nodes
        used = {name for node in body for name in node.input}
        inner = {**self.initializers, **_constants_of(self.temporal)}
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
        self.initializers.update(_constants_of(self.temporal))
        states = self.start_states()
        root = COPIES
        while any(re.match(rf"{root}\d+/", name) for name in self.taken):
            root += COPIES
        for t in range(steps):
            done = self.constant(f"{root}{t}/snnc_steps_done", t)
            made, states = self.region(f"{root}{t}/", _Time(done, one), states)
            self.nodes += made
        self.decode(states, steps)
        return root

    def whole_window(self, steps: int) -> None:
        """`cuda-graph`: all T steps as one chunk; T is baked in, and so is the batch by its shape."""
        held = self.constant("snnc_steps", steps)
        self.initializers.update(_constants_of(self.temporal))
        start = self.constant("snnc_start", 0)
        made, states = self.region("", _Time(start, held), self.start_states(), True)
        self.nodes += made
        self.decode(states, steps)

    def single_step(self) -> tuple[onnx.GraphProto, dict[str, str]]:
        """`step`: the states are overridable inputs, with their start as default, and outputs."""
        one = self.constant("snnc_one", 1)
        step = self.parameter("snnc_step", 0)
        endless = self.constant("snnc_endless", ENDLESS)
        time, _ = self.time_steps(self.nodes, "snnc_trip", step, endless, one)
        time = replace(time, steps=one)
        self.initializers.update(_constants_of(self.temporal))
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
        graph = self.finish()
        graph.output.append(helper.make_tensor_value_info(following, TensorProto.INT64, []))
        for name, (_, size) in starts.items():
            graph.output.append(
                helper.make_tensor_value_info(new_states[name], TensorProto.FLOAT, [None] * size)
            )
        carried = {f"state:{state}": new_states[name] for name, state in states.items()}
        return graph, {"step": step, f"state:{step}": following, **carried}

    def finish(self) -> onnx.GraphProto:
        used = {name for node in self.nodes for name in _reads(node)}
        named = {output.name for output in self.graph.outputs}
        inputs = [OnnxExporter.export_value_info_proto(t, True) for t in self.graph.inputs]
        return helper.make_graph(
            self.nodes,
            self.graph.name or "network",
            [*inputs, *self.overridable],
            [OnnxExporter.export_value_info_proto(t, True) for t in self.graph.outputs],
            initializer=[t for n, t in self.initializers.items() if n in used or n in named],
        )


def _reads(node: onnx.NodeProto) -> list[str]:
    """The names that a node and its subgraphs read."""
    names = list(node.input)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            names += _reads(inner)
    return names


def _constants_of(nodes: Sequence[Node]) -> dict[str, onnx.TensorProto]:
    return {
        tensor.name: OnnxExporter.export_tensor_proto(tensor)
        for node in nodes
        for tensor in node.inputs
        if isinstance(tensor, gs.Constant)
    }
