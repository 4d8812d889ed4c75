"""Move the amplitude θ of the spikes into the weights that read them, so that spikes stay binary.

An amplitude is a Mul by constants right behind spikes.  It moves behind every operator that it
commutes with (pooling, reshaping, slicing, zero padding, joining) and disappears into the weights of
the Conv, ConvTranspose, Gemm or MatMul that it meets.  Before anything else, as a residual Add, it
stays where it is, as an explicit Mul.  Max pooling then sees spikes, and becomes SpikeMaxPool.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from snncompiler.errors import InternalError
from snncompiler.ir import dialect
from snncompiler.ir.graph import (
    Graph,
    Node,
    constant,
    drop_dead,
    infer_node,
    known_rank,
    label,
    readers,
    remove_node,
    sort_nodes,
    tensor_names,
    unique_name,
    value,
)
from snncompiler.ir.operators import Weights, record
from snncompiler.ir.phases import analyze
from snncompiler.ir.spike_trains import carries_spikes
from snncompiler.passes.amplitudes import Scale, channels_only, joined, moved, varies
from snncompiler.passes.base import Context, Pass


@dataclass(frozen=True)
class FoldAmplitude(Pass):
    """Amplitudes go into the next weights; what is left between spikes and layers is binary.

    `layered`: in layered time, where `layer_time` says how spikes are pooled.
    """

    layered: bool = False

    name: ClassVar[str] = "fold-amplitude"
    requires: ClassVar[frozenset[str]] = frozenset({"neurons"})
    ensures: ClassVar[frozenset[str]] = frozenset({"binary-spikes"})

    def run(self, graph: Graph, context: Context) -> None:
        sort_nodes(graph)
        work = _Work(graph, tensor_names(graph), context.whole_averages)
        for node in list(graph.nodes):
            if node.op == "Mul" and node.inputs[0].inputs and _is_neuron(node.inputs[0].inputs[0]):
                work.start(node)
        while work.pending:
            work.push(work.pending.pop(0))
        drop_dead(graph)
        if not self.layered:
            _pool_spikes(graph)


def _is_neuron(node: Node) -> bool:
    return bool(node.domain == dialect.DOMAIN)


def _pools(node: Node) -> bool:
    return node.op == "SpikeMaxPool" and _is_neuron(node)


def _pool_spikes(graph: Graph) -> None:
    """MaxPool of spikes between neurons becomes SpikeMaxPool."""
    timing = analyze(graph, _is_neuron)
    taken = tensor_names(graph)
    for node in graph.nodes:
        # With its indices in use it is kept analog.
        if node.op != "MaxPool" or timing.phase(node) != "temporal" or len(node.outputs) > 1:
            continue
        if not carries_spikes(node.inputs[0], lambda n: n.op in dialect.NEURONS or _pools(n)):
            raise InternalError(f"{label(node)} pools no spikes of one amplitude")
        size = len(node.attrs["kernel_shape"])
        given = node.attrs
        node.op, node.domain = "SpikeMaxPool", dialect.DOMAIN
        node.attrs = {
            "auto_pad": given.get("auto_pad", "NOTSET"),
            "ceil_mode": given.get("ceil_mode", 0),
            "dilations": given.get("dilations", [1] * size),
            "kernel_shape": given["kernel_shape"],
            "pads": given.get("pads", [0] * 2 * size),
            "strides": given.get("strides", [1] * size),
        }
        node.inputs.append(constant(f"{node.name}/counts_start", np.zeros((), np.float32), taken))


@dataclass
class _Work:
    """The amplitudes that still move."""

    graph: Graph
    taken: set[str]
    #: Names of the nodes that read complete values.
    whole: set[str]
    pending: list[Node] = field(default_factory=list)
    scales: dict[int, Scale] = field(default_factory=dict)

    def start(self, mul: Node) -> None:
        raw, factor = mul.inputs[0], value(mul.inputs[1])
        assert factor is not None
        size = known_rank(raw)
        self.scales[id(mul)] = factor.reshape((1,) * (size - factor.ndim) + factor.shape)
        self.pending.append(mul)

    def push(self, mul: Node) -> None:
        """Move one amplitude into, or behind, each of its readers that allows it."""
        if not mul.outputs:
            return
        raw, scaled, scale = mul.inputs[0], mul.outputs[0], self.scales[id(mul)]
        for reader in list(scaled.outputs):
            if sum(1 for tensor in reader.inputs if tensor is scaled) != 1 or reader.domain:
                continue
            if reader.name in self.whole:
                continue
            index = next(i for i, tensor in enumerate(reader.inputs) if tensor is scaled)
            nature = record(reader.op)
            if nature.amplitude == "joined":
                self._join(reader)
            elif index == 0 and nature.weights is not None:
                factor = into_weights(reader, scale)
                if factor is not None:
                    weights = value(reader.inputs[1])
                    assert weights is not None
                    name = reader.inputs[1].name.removesuffix("_amplitude") + "_amplitude"
                    product = (weights * factor).astype(weights.dtype)
                    reader.inputs[1] = constant(name, product, self.taken)
                    reader.inputs[0] = raw
            elif index == 0:
                behind = moved(reader, scale)
                if behind is not None:
                    reader.inputs[0] = raw
                    self._behind(reader, behind)
        if readers(scaled, self.graph) == 0:
            remove_node(mul)

    def _behind(self, node: Node, scale: Scale) -> None:
        """Put an amplitude behind the single output of `node`."""
        result = node.outputs[0]
        raw = gs.Variable(unique_name(f"{node.name}/raw", self.taken), result.dtype, result.shape)
        node.outputs[0] = raw
        factor = constant(f"{node.name}/theta", scale.astype(np.float32), self.taken)
        mul = gs.Node("Mul", f"{node.name}/amplitude", inputs=[raw, factor], outputs=[result])
        self.graph.nodes.append(mul)
        self.scales[id(mul)] = scale
        self.pending.append(mul)
        infer_node(node, self.graph.opset)

    def _join(self, node: Node) -> None:
        """Concat of amplitudes along an axis that every one of them is known for."""
        before = [tensor.inputs[0] if tensor.inputs else None for tensor in node.inputs]
        scale = joined(node, [None if mul is None else self.scales.get(id(mul)) for mul in before])
        if scale is None:
            return
        sources = [mul.inputs[0] for mul in before if mul is not None]
        readers_before = [tensor.inputs[0] for tensor in node.inputs]
        for index, source in enumerate(sources):
            node.inputs[index] = source
        self._behind(node, scale)
        for mul in readers_before:
            if mul.outputs and readers(mul.outputs[0], self.graph) == 0:
                remove_node(mul)


# --- into weights: the factor that the weights are multiplied by, None where it cannot be ---


def _into_conv(node: Node, scale: Scale) -> NDArray[Any] | None:
    weights = value(node.inputs[1])
    if weights is None or not channels_only(scale):
        return None
    if scale.size == 1:
        return scale.reshape(())
    groups = int(node.attrs.get("group", 1))
    per_group = scale.reshape(groups, -1)
    factor = np.repeat(per_group, weights.shape[0] // groups, axis=0)
    return factor.reshape(*factor.shape, *[1] * (weights.ndim - 2))


def _into_conv_transpose(node: Node, scale: Scale) -> NDArray[Any] | None:
    weights = value(node.inputs[1])
    if weights is None or not channels_only(scale):
        return None
    return scale.reshape(-1, *[1] * (weights.ndim - 1)) if scale.size > 1 else scale.reshape(())


def _into_matrix(node: Node, scale: Scale) -> NDArray[Any] | None:
    """Weights [K, M] are summed over the last axis of the spikes, and over no other."""
    weights = value(node.inputs[1])
    if node.attrs or weights is None or weights.ndim != 2:
        return None
    if not varies(scale) <= {scale.ndim - 1}:
        return None
    return scale.reshape(-1, 1) if scale.size > 1 else scale.reshape(())


def into_weights(node: Node, scale: NDArray[Any]) -> NDArray[Any] | None:
    """What the weights of a linear node are multiplied by if its input is multiplied by `scale`."""
    kind = record(node.op).weights
    return None if kind is None else _INTO[kind](node, scale)


_INTO: dict[Weights, Callable[[Node, Scale], NDArray[Any] | None]] = {
    "outputs-first": _into_conv,
    "inputs-first": _into_conv_transpose,
    "matrix": _into_matrix,
    "equation": lambda node, scale: None,
}
