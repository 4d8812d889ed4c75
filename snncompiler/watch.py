"""Look inside a compiled file: the same network with spike counts, currents and membranes as outputs.

The copy computes what the original computes; per neuron layer it also returns
    count         spikes over all steps, [N, ...] float32
    membrane_end  membrane potential after the last step, [N, ...] float32
and, where asked for,
    current_sum   sum of all injected currents, [N, ...] float64
    membrane_max  largest |membrane potential| that a call of the neuron left behind, [N, ...]
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from snncompiler import dialect
from snncompiler.errors import refuse


@dataclass(frozen=True)
class Layer:
    """One neuron layer of a compiled file."""

    name: str
    operator: str
    threshold: NDArray[np.float32]
    membrane_start: NDArray[np.float32]


@dataclass(frozen=True)
class Watched:
    """The instrumented model and its layers; `output(layer, what)` names an extra output."""

    model: onnx.ModelProto
    layers: tuple[Layer, ...]

    @staticmethod
    def output(layer: Layer, what: str) -> str:
        return f"snnc_watch/{layer.name}/{what}"


_COPY = re.compile(r"^t\d+/")
_TYPES = {
    "count": TensorProto.FLOAT,
    "current_sum": TensorProto.DOUBLE,
    "membrane_max": TensorProto.FLOAT,
    "membrane_end": TensorProto.FLOAT,
}


def watch(model: onnx.ModelProto, *, currents: bool = False) -> Watched:
    """An instrumented copy of a compiled model.  Raises Refused where it is none."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    loops = [node for node in graph.node if node.op_type == "Loop" and _neurons(_body(node))]
    kinds = ["count", *(["current_sum", "membrane_max"] if currents else [])]
    zeros = {}
    for name, dtype in (("float", np.float32), ("double", np.float64)):
        zero = numpy_helper.from_array(np.zeros((), dtype), f"snnc_watch/zero_{name}")
        graph.initializer.append(zero)
        zeros[name] = zero.name
    starts = {k: zeros["double" if _TYPES[k] == TensorProto.DOUBLE else "float"] for k in kinds}
    if loops:
        layers = _watch_loop(graph, loops[0], kinds, starts)
    elif _neurons(graph):
        layers = _watch_copies(graph, kinds, starts)
    else:
        raise refuse("SNNC401", "the model holds no spiking neurons", hint="compile it first")
    for layer in layers:
        for what in (*kinds, "membrane_end"):
            graph.output.append(
                helper.make_tensor_value_info(Watched.output(layer, what), _TYPES[what], None)
            )
    if "TimeSum" not in {function.name for function in copy.functions}:
        copy.functions.extend(dialect.functions(["TimeSum"], _opset(copy)))
    return Watched(copy, tuple(layers))


def _opset(model: onnx.ModelProto) -> int:
    return next(int(entry.version) for entry in model.opset_import if entry.domain == "")


def _body(node: onnx.NodeProto) -> onnx.GraphProto:
    body: onnx.GraphProto = next(a.g for a in node.attribute if a.name == "body")
    return body


def _neurons(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [
        node
        for node in graph.node
        if node.domain == dialect.DOMAIN and node.op_type in dialect.NEURONS
    ]


def _observe(
    node: onnx.NodeProto, where: str, kinds: list[str], before: dict[str, str]
) -> tuple[list[onnx.NodeProto], dict[str, str]]:
    """Nodes that update the accumulators of one neuron node; the names of the new values."""
    current, _, _, steps = node.input
    spikes, membrane = node.output
    after = {kind: f"{where}/{kind}" for kind in kinds}
    made = [
        helper.make_node(
            "TimeSum", [spikes, before["count"], steps], [after["count"]], domain=dialect.DOMAIN
        )
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


def _watch_loop(
    graph: onnx.GraphProto, loop: onnx.NodeProto, kinds: list[str], starts: dict[str, str]
) -> list[Layer]:
    body = _body(loop)
    values = _initializers(graph, body)
    carried_in = [entry.name for entry in body.input][2:]
    carried_out = [entry.name for entry in body.output][1:]
    layers = []
    renamed: list[onnx.NodeProto] = []
    for node in _neurons(body):
        place = carried_in.index(node.input[2])
        layer = Layer(
            node.name,
            node.op_type,
            numpy_helper.to_array(values[node.input[1]]),
            numpy_helper.to_array(values[loop.input[2 + place]]),
        )
        layers.append(layer)
        where = f"snnc_watch/in/{node.name}"
        before = {kind: f"{where}/{kind}_before" for kind in kinds}
        made, after = _observe(node, where, kinds, before)
        body.node.extend(made)
        for kind in kinds:
            loop.input.append(starts[kind])
            loop.output.append(Watched.output(layer, kind))
            body.input.append(helper.make_tensor_value_info(before[kind], _TYPES[kind], None))
            body.output.append(helper.make_tensor_value_info(after[kind], _TYPES[kind], None))
        final = loop.output[carried_out.index(node.output[1])]
        renamed.append(
            helper.make_node("Identity", [final], [Watched.output(layer, "membrane_end")])
        )
    at = next(index for index, node in enumerate(graph.node) if node is loop or node == loop)
    rest = list(graph.node[at + 1 :])
    del graph.node[at + 1 :]
    graph.node.extend([*renamed, *rest])
    return layers


def _watch_copies(graph: onnx.GraphProto, kinds: list[str], starts: dict[str, str]) -> list[Layer]:
    values = _initializers(graph)
    state: dict[str, dict[str, str]] = {}
    layers: dict[str, Layer] = {}
    last: dict[str, str] = {}
    for node in _neurons(graph):
        name = _COPY.sub("", node.name)
        if name not in layers:
            threshold, start = (numpy_helper.to_array(values[node.input[i]]) for i in (1, 2))
            layers[name] = Layer(name, node.op_type, threshold, start)
            state[name] = dict(starts)
        made, state[name] = _observe(node, f"snnc_watch/in/{node.name}", kinds, state[name])
        graph.node.extend(made)
        last[name] = node.output[1]
    for name, layer in layers.items():
        ends = {**state[name], "membrane_end": last[name]}
        for what, source in ends.items():
            graph.node.append(helper.make_node("Identity", [source], [Watched.output(layer, what)]))
    return list(layers.values())


def _initializers(*graphs: onnx.GraphProto) -> dict[str, Any]:
    return {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
