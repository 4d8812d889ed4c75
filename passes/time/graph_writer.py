"""What `unroll_time` writes into: nodes, constants, inputs that may be overridden, and free names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper, numpy_helper
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from snncompiler.ir.graph import Graph, Node, unique_name

#: More time-steps than any run has.
ENDLESS = 2**63 - 1


@dataclass(frozen=True)
class Time:
    """The names of the time-steps before one pass through the region, in it, and after it; the last is
    missing where the others are constants."""

    start: str
    steps: str
    end: str = ""


@dataclass(kw_only=True)
class GraphWriter:
    """A graph that is being written.

    `taken` holds the names of all tensors and nodes, in the body of the Loop or outside: what the user
    wrote keeps its name, and what is made here gets one that is free.
    """

    taken: set[str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)
    overridable: list[onnx.ValueInfoProto] = field(default_factory=list)
    #: What `region` makes in every copy: wanted name -> free name, before the prefix of a copy.
    inner: dict[str, str] = field(default_factory=dict)

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

    def finish(self, graph: Graph) -> onnx.GraphProto:
        """The graph that was written, with the inputs and outputs of `graph`, and nothing unread."""
        used = {name for node in self.nodes for name in _reads(node)}
        named = {output.name for output in graph.outputs}
        inputs = [OnnxExporter.export_value_info_proto(t, True) for t in graph.inputs]
        return helper.make_graph(
            self.nodes,
            graph.name or "network",
            [*inputs, *self.overridable],
            [OnnxExporter.export_value_info_proto(t, True) for t in graph.outputs],
            initializer=[t for n, t in self.initializers.items() if n in used or n in named],
        )


def constants_of(nodes: Sequence[Node]) -> dict[str, onnx.TensorProto]:
    """The constants that the nodes read, by name."""
    return {
        tensor.name: OnnxExporter.export_tensor_proto(tensor)
        for node in nodes
        for tensor in node.inputs
        if isinstance(tensor, gs.Constant)
    }


def _reads(node: onnx.NodeProto) -> list[str]:
    """The names that a node and its subgraphs read."""
    names = list(node.input)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            names += _reads(inner)
    return names
