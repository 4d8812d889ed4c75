"""Move the amplitude θ of the spikes into the weights that read them, so that spikes stay binary.

An amplitude is a Mul by constants right behind spikes.  It moves behind every operator that it
commutes with (pooling, reshaping, slicing, zero padding, joining) and disappears into the weights of
the Conv, ConvTranspose, Gemm or MatMul that it meets.  Before anything else, as a residual Add, it
stays where it is, as an explicit Mul.  Max pooling then sees spikes, and becomes SpikeMaxPool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from snncompiler import dialect
from snncompiler.errors import InternalError
from snncompiler.graph import (
    Graph,
    Node,
    Tensor,
    axes_of,
    constant,
    constant_input,
    drop_dead,
    infer_node,
    input_at,
    known,
    known_rank,
    label,
    producer,
    readers,
    remove_node,
    sort_nodes,
    tensor_names,
    unique_name,
    value,
)
from snncompiler.operators import (
    carries_spikes,
    moves_spikes,
    rectified_channels,
    rectifier,
    turns_signs,
)
from snncompiler.passes.base import Context, Pass
from snncompiler.timing import analyze

#: An amplitude as an array of the rank of its tensor: [1, C, 1, 1], or all ones in shape.
Scale = NDArray[np.float32]


@dataclass(frozen=True)
class FoldAmplitude(Pass):
    """Amplitudes go into the next weights; what is left between spikes and layers is binary."""

    name: ClassVar[str] = "fold-amplitude"
    requires: ClassVar[frozenset[str]] = frozenset({"neurons"})
    ensures: ClassVar[frozenset[str]] = frozenset({"binary-spikes"})

    def run(self, graph: Graph, context: Context) -> None:
        sort_nodes(graph)
        work = _Work(graph, tensor_names(graph))
        for node in list(graph.nodes):
            if node.op == "Mul" and node.inputs[0].inputs and _is_neuron(node.inputs[0].inputs[0]):
                work.start(node)
        while work.pending:
            work.push(work.pending.pop(0))
        drop_dead(graph)
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
            index = next(i for i, tensor in enumerate(reader.inputs) if tensor is scaled)
            if reader.op == "Concat":
                self._join(reader)
            elif index == 0 and reader.op in _WEIGHTED:
                factor = _WEIGHTED[reader.op](reader, scale)
                if factor is not None:
                    weights = value(reader.inputs[1])
                    assert weights is not None
                    name = reader.inputs[1].name.removesuffix("_amplitude") + "_amplitude"
                    product = (weights * factor).astype(weights.dtype)
                    reader.inputs[1] = constant(name, product, self.taken)
                    reader.inputs[0] = raw
            elif index == 0 and reader.op in _COMMUTING:
                moved = _COMMUTING[reader.op](reader, scale)
                if moved is not None:
                    reader.inputs[0] = raw
                    self._behind(reader, moved)
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
        scale = _joined(node, [None if mul is None else self.scales.get(id(mul)) for mul in before])
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


def _joined(node: Node, scales: Sequence[Scale | None]) -> Scale | None:
    """The amplitude behind a Concat; None where one before it, or its size, is not known."""
    axis = int(node.attrs["axis"]) % known_rank(node.outputs[0])
    parts: list[Scale] = []
    for tensor, scale in zip(node.inputs, scales, strict=True):
        if scale is None or not known(tensor.shape[axis]):
            return None
        shape = list(scale.shape)
        shape[axis] = tensor.shape[axis]
        parts.append(np.broadcast_to(scale, shape))
    spread = np.broadcast_shapes(
        *((*part.shape[:axis], 1, *part.shape[axis + 1 :]) for part in parts)
    )
    wide = [
        np.broadcast_to(part, (*spread[:axis], part.shape[axis], *spread[axis + 1 :]))
        for part in parts
    ]
    return np.concatenate(wide, axis=axis)


# --- into weights: the factor that the weights are multiplied by, None where it cannot be ---


def _varies(scale: Scale) -> set[int]:
    """The axes along which the amplitude is not the same."""
    return {axis for axis, size in enumerate(scale.shape) if size > 1}


def _channels_only(scale: Scale) -> bool:
    """Whether the amplitude depends on axis 1 alone."""
    return _varies(scale) <= {1}


def _into_conv(node: Node, scale: Scale) -> NDArray[Any] | None:
    weights = value(node.inputs[1])
    if weights is None or not _channels_only(scale):
        return None
    if scale.size == 1:
        return scale.reshape(())
    groups = int(node.attrs.get("group", 1))
    per_group = scale.reshape(groups, -1)
    factor = np.repeat(per_group, weights.shape[0] // groups, axis=0)
    return factor.reshape(*factor.shape, *[1] * (weights.ndim - 2))


def _into_conv_transpose(node: Node, scale: Scale) -> NDArray[Any] | None:
    weights = value(node.inputs[1])
    if weights is None or not _channels_only(scale):
        return None
    return scale.reshape(-1, *[1] * (weights.ndim - 1)) if scale.size > 1 else scale.reshape(())


def _into_gemm(node: Node, scale: Scale) -> NDArray[Any] | None:
    return None if node.attrs else _into_matmul(node, scale)


def _into_matmul(node: Node, scale: Scale) -> NDArray[Any] | None:
    """Weights [K, M] are summed over the last axis of the spikes, and over no other."""
    weights = value(node.inputs[1])
    if weights is None or weights.ndim != 2 or not _varies(scale) <= {scale.ndim - 1}:
        return None
    return scale.reshape(-1, 1) if scale.size > 1 else scale.reshape(())


_WEIGHTED: dict[str, Callable[[Node, Scale], NDArray[Any] | None]] = {
    "Conv": _into_conv,
    "ConvTranspose": _into_conv_transpose,
    "Gemm": _into_gemm,
    "MatMul": _into_matmul,
}


# --- behind an operator: the amplitude of its output, None where they do not commute ---


def _beside_space(node: Node, scale: Scale) -> Scale | None:
    """Pooling works along the axes from 2 on."""
    return scale if max(_varies(scale), default=0) < 2 else None


def _if_channels_only(node: Node, scale: Scale) -> Scale | None:
    return scale if _channels_only(scale) and scale.ndim > 1 else None


def _if_uniform(node: Node, scale: Scale) -> Scale | None:
    return scale.reshape((1,) * known_rank(node.outputs[0])) if scale.size == 1 else None


def _through_resize(node: Node, scale: Scale) -> Scale | None:
    """Resize and Upsample sample along the axes whose size they change, and only along these."""
    if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return None
    before, after = node.inputs[0].shape, node.outputs[0].shape
    factors = constant_input(node, 2 if node.op == "Resize" else 1)
    named = axes_of(node, scale.ndim, input_index=len(node.inputs))
    axes = list(range(scale.ndim)) if named is None else named
    for axis in _varies(scale) & set(axes):
        if factors is not None and factors.size:
            kept = factors[axes.index(axis)] == 1
        else:
            kept = known(before[axis]) and before[axis] == after[axis]
        if not kept:
            return None
    return scale


def _through_reshape(node: Node, scale: Scale) -> Scale | None:
    """Flatten and Reshape, row by row where axis 0 keeps its size, else over all axes."""
    before, after = node.inputs[0].shape, node.outputs[0].shape
    if scale.size == 1:
        return scale.reshape((1,) * len(after))
    if not before or not after or not all(known(dim) for dim in (*before[1:], *after[1:])):
        return None
    if scale.shape[0] == 1 and prod(before[1:]) == prod(after[1:]):
        full = np.broadcast_to(scale, (1, *before[1:])).reshape(1, *after[1:])
    elif known(before[0]) and known(after[0]):
        full = np.broadcast_to(scale, before).reshape(after)
    else:
        return None
    # Axes on which it does not vary shrink to 1 again.
    for axis in range(full.ndim):
        first = np.take(full, [0], axis=axis)
        if np.array_equal(np.broadcast_to(first, full.shape), full):
            full = first
    return full


def _through_squeeze(node: Node, scale: Scale) -> Scale | None:
    axes = axes_of(node, scale.ndim)
    if axes is None:
        return _through_reshape(node, scale)
    return np.squeeze(scale, tuple(axes))


def _through_unsqueeze(node: Node, scale: Scale) -> Scale | None:
    axes = axes_of(node, known_rank(node.outputs[0]))
    return np.expand_dims(scale, tuple(axes or ()))


def _through_transpose(node: Node, scale: Scale) -> Scale | None:
    order = node.attrs.get("perm") or list(range(scale.ndim))[::-1]
    return scale.transpose(order)


def _through_slice(node: Node, scale: Scale) -> Scale | None:
    starts, ends = constant_input(node, 1), constant_input(node, 2)
    steps = constant_input(node, 4)
    if starts is None or ends is None or (input_at(node, 4) is not None and steps is None):
        return _if_uniform(node, scale)
    axes = axes_of(node, scale.ndim, input_index=3) or list(range(starts.size))
    chosen = [slice(None)] * scale.ndim
    for place, axis in enumerate(axes):
        if scale.shape[axis] > 1:
            stride = 1 if steps is None else int(steps[place])
            if stride < 0:
                return None
            chosen[axis] = slice(int(starts[place]), int(ends[place]), stride)
    return scale[tuple(chosen)]


def _through_pad(node: Node, scale: Scale) -> Scale | None:
    pads, fill = constant_input(node, 1), constant_input(node, 2)
    if pads is None:
        return None
    named = axes_of(node, scale.ndim, input_index=3)
    axes = list(range(scale.ndim)) if named is None else named
    widths = [(0, 0)] * scale.ndim
    for place, axis in enumerate(axes):
        widths[axis] = (int(pads[place]), int(pads[place + len(axes)]))
    moved = [axis for axis in _varies(scale) if any(widths[axis])]
    if node.attrs.get("mode", "constant") != "constant":
        return None if moved else scale
    if input_at(node, 2) is not None and (fill is None or np.any(fill)):
        return None
    if any(min(widths[axis]) < 0 for axis in moved):
        return None
    spread = [widths[axis] if axis in moved else (0, 0) for axis in range(scale.ndim)]
    return np.pad(scale, spread, constant_values=1.0)


def _through_reduce(node: Node, scale: Scale) -> Scale | None:
    axes = axes_of(node, scale.ndim) or []
    if not axes and node.attrs.get("noop_with_empty_axes", 0):
        return scale
    axes = axes or list(range(scale.ndim))
    if _varies(scale) & set(axes):
        return None
    return scale if node.attrs.get("keepdims", 1) else np.squeeze(scale, tuple(axes))


def _through_signs(node: Node, scale: Scale) -> Scale | None:
    """Mul by constants of 1 and -1, which max pooling puts around itself."""
    return scale if turns_signs(node) else None


_COMMUTING: dict[str, Callable[[Node, Scale], Scale | None]] = {
    "Identity": lambda node, scale: scale,
    "Neg": lambda node, scale: scale,
    "Mul": _through_signs,
    "AveragePool": _beside_space,
    "GlobalAveragePool": _beside_space,
    "MaxPool": _if_channels_only,
    "Resize": _through_resize,
    "Upsample": _through_resize,
    "Flatten": _through_reshape,
    "Reshape": _through_reshape,
    "Squeeze": _through_squeeze,
    "Unsqueeze": _through_unsqueeze,
    "Transpose": _through_transpose,
    "Slice": _through_slice,
    "Pad": _through_pad,
    "ReduceMean": _through_reduce,
    "ReduceSum": _through_reduce,
    "DepthToSpace": _if_uniform,
    "SpaceToDepth": _if_uniform,
    "Gather": _if_uniform,
}


# --- before thresholds are known ---


def poolable(tensor: Tensor) -> bool:
    """Whether a value of the normalized network will be spikes of one amplitude in each channel."""
    scale = _Amplitudes().of(tensor)
    return scale is not None and scale.ndim > 2 and _channels_only(scale)


class _Amplitudes:
    """The amplitudes of spike trains, before there are any: every rectifier's channel has another one.

    They move as those of the neurons will.
    """

    def __init__(self) -> None:
        self.found: dict[int, Scale | None] = {}
        self.numbers = 0

    def of(self, tensor: Tensor) -> Scale | None:
        """As an array of the tensor's rank; None where it is no spike train, or amplitudes mix."""
        if id(tensor) not in self.found:
            node = producer(tensor)
            self.found[id(tensor)] = None if node is None else self._behind(node)
        return self.found[id(tensor)]

    def _behind(self, node: Node) -> Scale | None:
        result = node.outputs[0]
        if node.domain or result.shape is None:
            return None
        if rectifier(node) is not None:
            channels = rectified_channels(node)
            self.numbers += channels
            own = np.arange(self.numbers - channels, self.numbers, dtype=np.float32) + 1
            spread = (1, channels, *[1] * (len(result.shape) - 2)) if channels > 1 else 1
            return own.reshape(spread if channels > 1 else (1,) * len(result.shape))
        if not moves_spikes(node):
            return None
        if node.op == "Concat":
            parts = [self.of(part) for part in node.inputs]
            twice = len({id(part) for part in node.inputs}) < len(parts)
            return None if twice else _joined(node, parts)
        if node.op not in _COMMUTING or any(tensor is node.inputs[0] for tensor in node.inputs[1:]):
            return None
        scale = self.of(node.inputs[0])
        return None if scale is None else _COMMUTING[node.op](node, scale)
