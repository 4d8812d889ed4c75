"""From the graph of layered time to an ONNX graph: T, and what every step weighs.

There is no loop: a neuron takes a whole window at once.  With rate spikes T is an overridable input;
more steps are a higher top level.  With radix spikes, and where a rectifier has an upper bound, which
is its top level, T is baked in.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from snncompiler.ir import dialect
from snncompiler.ir.graph import Graph, sort_nodes, tensor_names, unique_name
from snncompiler.passes.time.graph_writer import ENDLESS, GraphWriter, constants_of
from snncompiler.passes.time.layer_time import COMPLETION, NEURON


def write_window(
    graph: Graph, steps: int, *, radix: bool, overridable: bool
) -> tuple[onnx.GraphProto, dict[str, str]]:
    """The graph, and the name of the input `steps` where T can be overridden."""
    sort_nodes(graph)
    taken: set[str] = set()
    # A layer does not lose its name to another node.
    for node in sorted(graph.nodes, key=lambda node: node.op != NEURON):
        node.name = unique_name(node.name, taken)
    writer = GraphWriter(taken=tensor_names(graph) | taken)
    names: dict[str, str] = {}
    if overridable and not radix:
        names["steps"] = writer.parameter("snnc_steps", steps)
        held = _counted(writer, names["steps"])
    else:
        held = writer.constant("snnc_steps", steps)
    weights = ""
    if radix:
        powers = 2.0 ** np.arange(steps)[::-1]
        weights = writer.constant("snnc_time_weights", powers, np.float32)
    writer.initializers.update(constants_of(graph.nodes))
    for node in graph.nodes:
        proto = OnnxExporter.export_node(node)
        if node.domain == dialect.DOMAIN:
            if radix and node.op == COMPLETION:
                proto.op_type = "WeightedTimeSum"
                proto.input.insert(1, weights)
            proto.input.append(held)
        writer.nodes.append(proto)
    return writer.finish(graph), names


def _counted(writer: GraphWriter, steps: str) -> str:
    """T as all nodes read it: what may be overridden is read by one node only, on the host."""
    none, endless = (
        writer.constant("snnc_no_trip", 0),
        writer.constant("snnc_endless", ENDLESS),
    )
    outputs = [writer.name(f"snnc_window_{what}") for what in ("start", "steps", "end", "going")]
    writer.nodes.append(
        helper.make_node(
            "TimeSteps",
            [none, none, steps, endless],
            outputs,
            name=writer.name("snnc_window"),
            domain=dialect.DOMAIN,
        )
    )
    return outputs[1]
