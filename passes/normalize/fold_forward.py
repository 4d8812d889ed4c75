"""Fold affine steps per channel into the layers that read them, where that is exact.

What is left of a batch-norm behind a rectifier, y = s·x + b, goes into the weights of every layer
behind it: W·(s·x + b) = (W·s)·x + W·b.  With a shift b a convolution may have no padding, which is
zero, not b; of a transposed one only the scale folds, since fewer taps meet at its border.  Every
reader has to take it, or the step stays.  Only between spiking layers, which then read spikes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from snncompiler.ir.graph import (
    Graph,
    Node,
    Tensor,
    constant,
    known,
    rank,
    readers,
    remove_node,
    replace_uses,
    tensor_names,
    value,
)
from snncompiler.ir.operators import record
from snncompiler.ir.phases import analyze
from snncompiler.ir.rectifiers import rectifier
from snncompiler.ir.signs import affine_step, per_channel
from snncompiler.ir.spike_trains import turns_signs
from snncompiler.passes.base import Context, Pass
from snncompiler.passes.normalize.fold_batch_norm import foldable, shift_layer

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class FoldForward(Pass):
    """Mul, Div, Add and Sub by constants before layers disappear into these."""

    name: ClassVar[str] = "fold-forward"
    requires: ClassVar[frozenset[str]] = frozenset({"affine-folded", "max-pool-of-spikes"})
    ensures: ClassVar[frozenset[str]] = frozenset({"affine-folded-forward"})

    def run(self, graph: Graph, context: Context) -> None:
        taken = tensor_names(graph)
        timing = analyze(graph, lambda node: rectifier(node) is not None)
        # The last step of several folds first.
        for node in reversed(list(graph.nodes)):
            if timing.phase(node) == "temporal":
                _fold(node, graph, context, taken)
        graph.nodes = [node for node in graph.nodes if node.outputs]
        _forget_notes(graph, context)


def _fold(node: Node, graph: Graph, context: Context, taken: set[str]) -> None:
    step = affine_step(node)
    # Signs around a max pooling stay: what reaches a layer are then spikes of 1, not of -1.
    if step is None or node.op == "Neg" or turns_signs(node):
        return
    if not known(step.source.shape[1]):
        return
    source, result = step.source, node.outputs[0]
    scale, shift = _scale_and_shift(node, source)
    layers = _layers(result, graph, bool(np.any(shift)))
    if layers is None:
        return
    for layer, flat in layers:
        spread = tuple(int(dim) for dim in source.shape[1:]) if flat else scale.shape
        _into(layer, _features(scale, spread, flat), _features(shift, spread, flat), taken)
        facts = context.layers[layer.name]
        facts.folded.append(node.op)
        facts.bias = facts.bias or bool(np.any(shift))
        if node.name in context.norms:
            facts.batch_norm = facts.batch_norm or "folded"
    remove_node(node)
    replace_uses(result, source, graph)


def _scale_and_shift(node: Node, source: Tensor) -> tuple[Floats, Floats]:
    """s and b of s·x + b, each [C, 1, ...]."""
    channels = (int(source.shape[1]), *[1] * (len(source.shape) - 2))
    scale, shift = np.ones(channels), np.zeros(channels)
    first = node.inputs[0] is source
    given = per_channel(node.inputs[1 if first else 0], source)
    assert given is not None
    if node.op == "Mul":
        return scale * given, shift
    if node.op == "Div":
        return scale / given, shift
    if node.op == "Add":
        return scale, shift + given
    return (scale, shift - given) if first else (-scale, shift + given)


def _layers(tensor: Tensor, graph: Graph, shifts: bool) -> list[tuple[Node, bool]] | None:
    """The layers that read the value, and whether through a Flatten; None if something else does."""
    if not tensor.outputs or readers(tensor, graph) != len(tensor.outputs):
        return None
    found: list[tuple[Node, bool]] = []
    for reader in tensor.outputs:
        if _flattens(reader) and rank(tensor) != 2:
            behind = reader.outputs[0]
            further = _layers(behind, graph, shifts)
            if further is None or any(layer.op != "Gemm" for layer, _ in further):
                return None
            found += [(layer, True) for layer, _ in further]
        elif _takes(reader, tensor, shifts):
            found.append((reader, False))
        else:
            return None
    return found


def _flattens(node: Node) -> bool:
    """Whether [N, C, ...] becomes [N, C·...], in that order."""
    if node.domain or node.op not in ("Flatten", "Reshape"):
        return False
    before, after = node.inputs[0].shape, node.outputs[0].shape
    if before is None or after is None or len(after) != 2 or before[0] != after[0]:
        return False
    sizes = (*before[1:], after[1])
    return all(known(dim) for dim in sizes) and int(np.prod(before[1:])) == after[1]


def _takes(layer: Node, tensor: Tensor, shifts: bool) -> bool:
    nature = record(layer.op)
    if layer.domain or nature.bias is None:
        return False
    if layer.inputs[0] is not tensor or value(layer.inputs[1]) is None:
        return False
    if any(other is tensor for other in list(layer.inputs)[1:]):
        return False
    if nature.weights == "matrix" and layer.attrs:
        return False
    if not shifts:
        return True
    padded = any(layer.attrs.get("pads", [])) or "SAME" in layer.attrs.get("auto_pad", "")
    return nature.weights != "inputs-first" and not padded and foldable(layer)


def _features(values: Floats, spread: tuple[int, ...], flat: bool) -> Floats:
    """One value per input channel of a layer, or per input feature behind a Flatten."""
    return np.broadcast_to(values, spread).reshape(-1) if flat else values.reshape(-1)


def _into(layer: Node, scale: Floats, shift: Floats, taken: set[str]) -> None:
    """Let the layer compute of x what it computed of scale·x + shift; both [input channels]."""
    weights = value(layer.inputs[1])
    assert weights is not None
    wide = np.asarray(weights, np.float64)
    layout = record(layer.op).weights
    if layout == "outputs-first":
        groups = int(layer.attrs.get("group", 1))

        def spread(values: Floats) -> Floats:
            own = np.repeat(values.reshape(groups, -1), weights.shape[0] // groups, axis=0)
            return own.reshape(*own.shape, *[1] * (weights.ndim - 2))

        moved = (wide * spread(shift)).sum(axis=tuple(range(1, weights.ndim)))
        scaled = wide * spread(scale)
    else:
        # [C, M/group, ...] of a ConvTranspose, [features in, features out] of a Gemm.
        moved = shift @ wide if layout == "matrix" else np.zeros(1)
        scaled = wide * scale.reshape(-1, *[1] * (weights.ndim - 1))
    name = f"{layer.inputs[1].name.removesuffix('_folded')}_folded"
    layer.inputs[1] = constant(name, scaled.astype(weights.dtype), taken)
    if np.any(shift):
        shift_layer(layer, moved, taken)


def _forget_notes(graph: Graph, context: Context) -> None:
    """Drop the notes that a batch-norm is kept, where nothing of it is left."""
    left = {context.norms[node.name] for node in graph.nodes if node.name in context.norms}
    gone = set(context.norms.values()) - left
    context.findings = [
        finding
        for finding in context.findings
        if not (finding.code == "SNNC207" and finding.severity == "note" and finding.node in gone)
    ]
