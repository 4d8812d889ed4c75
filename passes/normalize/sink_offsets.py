"""Move the offset of an activation that is coded in spikes into the layers that read it.

y = r + m with spikes for r (`code_activations`).  m passes whatever moves and averages elements, and a
layer of weights makes a bias of it:

    W·(r + m·1) = W·r + m·W·1

A convolution with padding reads zeros at the border, which are zeros of y and not of r; there fewer
taps meet m, so its bias is another one at every place of the border: a map [1, O, H, W], which is
stored as one number for each kind of place, and spread by two Gathers.  What reads y otherwise gets the
sum, as it stands.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from snncompiler.ir.graph import (
    Graph,
    Node,
    Tensor,
    constant_input,
    drop_dead,
    input_at,
    is_live,
    known,
    producer,
    rank,
    sort_nodes,
    tensor_names,
    unique_name,
    value,
)
from snncompiler.ir.offsets import passes_offsets, reads_with_weights
from snncompiler.ir.operators import record
from snncompiler.passes.base import Context, Pass
from snncompiler.passes.normalize.fold_batch_norm import shift_layer
from snncompiler.passes.rewriting import Writer

#: Maps of up to so many numbers are stored as they are.
_STORED = 1 << 16


@dataclass(frozen=True)
class SinkOffsets(Pass):
    """Weights read the spikes of coded activations, without their offset."""

    name: ClassVar[str] = "sink-offsets"
    requires: ClassVar[frozenset[str]] = frozenset({"affine-folded", "max-pool-of-spikes"})
    ensures: ClassVar[frozenset[str]] = frozenset({"offsets-sunk"})

    def run(self, graph: Graph, context: Context) -> None:
        if not context.coded:
            return
        sort_nodes(graph)
        work = _Work(graph, context, Writer(graph, context, tensor_names(graph)))
        for node in list(graph.nodes):
            work.visit(node)
        drop_dead(graph)
        sort_nodes(graph)
        left = {node.name for node in graph.nodes}
        context.coded = {name: one for name, one in context.coded.items() if name in left}


@dataclass
class _Work:
    graph: Graph
    context: Context
    writer: Writer
    #: By the id of a tensor in the network: what it is without its offset, and the offset.
    lifted: dict[int, tuple[Tensor, float]] = field(default_factory=dict)
    #: Tensors that hold less than they did, by id, and what they held.
    whole: dict[int, Tensor] = field(default_factory=dict)

    def visit(self, node: Node) -> None:
        offset = self._offset(node)
        if offset is not None:
            self.lifted[id(node.outputs[0])] = offset
        if node.op == "Conv" and not node.domain:
            self._absorb_pad(node)
        given = [self.lifted.get(id(tensor)) for tensor in node.inputs]
        if not any(given):
            return
        live = [index for index, tensor in enumerate(node.inputs) if is_live(tensor)]
        amounts = {one[1] for one in given if one is not None}
        free = not any(output is t for output in self.graph.outputs for t in node.outputs)
        alike = len(amounts) == 1 and all(given[index] for index in live)
        if passes_offsets(node) and alike and free:
            self._lift(node, given)
        elif not (given[0] and reads_with_weights(node) and self._fold(node, *given[0])):
            for index, tensor in enumerate(node.inputs):
                if id(tensor) in self.whole or given[index]:
                    node.inputs[index] = self._restored(tensor)

    def _offset(self, node: Node) -> tuple[Tensor, float] | None:
        """The value and the number of an Add behind a coded activation, pooled and moved at most."""
        if node.domain or node.op != "Add":
            return None
        for number, source in (node.inputs, list(reversed(node.inputs))):
            array = value(number)
            if array is None or array.size != 1 or not is_live(source):
                continue
            made = producer(source)
            while made is not None and passes_offsets(made) and made.op != "Concat":
                made = producer(made.inputs[0])
            if made is not None and made.name in self.context.coded:
                return source, float(array.reshape(()))
        return None

    def _lift(self, node: Node, given: list[tuple[Tensor, float] | None]) -> None:
        """Let the node work on values without their offset, which its outputs then lack."""
        for index, one in enumerate(given):
            if one is not None:
                node.inputs[index] = one[0]
        amount = next(one[1] for one in given if one is not None)
        for tensor in node.outputs:
            self.lifted[id(tensor)] = (tensor, amount)
            self.whole[id(tensor)] = tensor

    def _restored(self, tensor: Tensor) -> Tensor:
        """The value with its offset."""
        raw, amount = self.lifted[id(tensor)]
        if raw is not tensor:
            return tensor  # the Add itself
        if self.whole[id(tensor)] is tensor:
            number = self.writer.numbers(tensor.name, amount, tensor)
            batch = self.context.batch_axis.get(tensor.name, 0)
            self.whole[id(tensor)] = self.writer.node(
                tensor.name, "Add", [tensor, number], batch=batch
            )
        return self.whole[id(tensor)]

    def _absorb_pad(self, conv: Node) -> None:
        """Zeros that are padded in front of a convolution become its own."""
        pad = producer(conv.inputs[0])
        if pad is None or pad.op != "Pad" or pad.domain or id(pad.inputs[0]) not in self.lifted:
            return
        widths, fill = constant_input(pad, 1), constant_input(pad, 2)
        zeros = input_at(pad, 2) is None or (fill is not None and not np.any(fill))
        free = conv.attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID", "")
        plain = pad.attrs.get("mode", "constant") == "constant" and input_at(pad, 3) is None
        size = rank(conv.inputs[0]) or 0
        if widths is None or not (zeros and free and plain) or widths.size != 2 * size:
            return
        before, after = widths[:size].tolist(), widths[size:].tolist()
        if any([*before[:2], *after[:2]]) or min([*before, *after]) < 0:
            return
        own = list(conv.attrs.get("pads") or [0] * 2 * (size - 2))
        if conv.attrs.get("auto_pad", "") == "VALID":
            own = [0] * 2 * (size - 2)
        added = [*before[2:], *after[2:]]
        conv.attrs = {k: v for k, v in conv.attrs.items() if k != "auto_pad"}
        conv.attrs["pads"] = [int(a + b) for a, b in zip(own, added, strict=True)]
        # What the Pad had read was restored for it.
        conv.inputs[0] = pad.inputs[0]

    # --- layers with weights ---

    def _fold(self, layer: Node, raw: Tensor, amount: float) -> bool:
        """Let the layer read the value without its offset; whether that was possible."""
        nature = record(layer.op)
        weights = value(layer.inputs[1])
        assert weights is not None
        wide = np.asarray(weights, np.float64) * amount
        if nature.weights == "matrix":
            if layer.attrs or wide.ndim != 2:
                return False
            layer.inputs[0] = raw
            self._shift(layer, wide.sum(axis=0))
            return True
        if nature.weights != "outputs-first":
            return False
        taps = _taps(layer, raw)
        if taps is None:
            return False
        places = wide.sum(axis=1)  # [O, taps...]
        kinds = []
        for reached in taps:
            rows, which = np.unique(reached, axis=0, return_inverse=True)
            places = np.tensordot(places, rows.T.astype(np.float64), axes=([1], [0]))
            kinds.append(which.reshape(-1))
        layer.inputs[0] = raw
        if places[0].size == 1:
            self._shift(layer, places.reshape(-1))
        else:
            self._add_behind(layer, self._map(layer, places[None], kinds))
        return True

    def _shift(self, layer: Node, shift: NDArray[np.float64]) -> None:
        """Add one number per output to what the layer makes."""
        place = record(layer.op).bias
        own = None if place is None else input_at(layer, place)
        if place is not None and (own is None or value(own) is not None):
            shift_layer(layer, shift, self.writer.taken)
        else:
            self._add_behind(layer, self.writer.numbers(layer.name, shift, layer.outputs[0]))
        facts = self.context.layers.get(layer.name)
        if facts is not None:
            facts.bias = True
            facts.folded.append("offset")

    def _map(
        self, layer: Node, places: NDArray[np.float64], kinds: list[NDArray[np.intp]]
    ) -> Tensor:
        """The numbers of every place: [1, O, H, W]."""
        size = places.shape[1] * int(np.prod([len(which) for which in kinds]))
        if size <= _STORED:
            for axis, which in enumerate(kinds, 2):
                places = places.take(which, axis=axis)
            return self.writer.numbers(layer.name, places, layer.outputs[0])
        result: Tensor = self.writer.numbers(layer.name, places, layer.outputs[0])
        for axis, which in enumerate(kinds, 2):
            index = self.writer.whole_numbers(layer.name, which)
            result = self.writer.node(layer.name, "Gather", [result, index], {"axis": axis})
            del self.context.batch_axis[result.name]
        return result

    def _add_behind(self, layer: Node, more: Tensor) -> None:
        result = layer.outputs[0]
        batch = self.context.batch_axis.get(result.name, 0)
        raw = gs.Variable(
            unique_name(f"{layer.name}/raw", self.writer.taken), result.dtype, result.shape
        )
        self.context.batch_axis[raw.name] = batch
        layer.outputs[0] = raw
        total = self.writer.node(layer.name, "Add", [raw, more], batch=batch)
        total.inputs[0].outputs[0] = result


def _taps(conv: Node, raw: Tensor) -> list[NDArray[np.bool_]] | None:
    """For every spatial axis of a convolution which taps [places, taps] lie on the input, not on its
    padding; None where sizes are not known, and there is padding."""
    weights = value(conv.inputs[1])
    assert weights is not None
    count = weights.ndim - 2
    if input_at(conv, 2) is not None and constant_input(conv, 2) is None:
        return None
    pads = list(conv.attrs.get("pads") or [0] * 2 * count)
    mode = conv.attrs.get("auto_pad", "NOTSET") or "NOTSET"
    if mode in ("NOTSET", "VALID") and not any(pads):
        return [np.ones((1, size), np.bool_) for size in weights.shape[2:]]
    shape, made = raw.shape or [], conv.outputs[0].shape or []
    if (rank(raw) or 0) != count + 2 or len(made) != count + 2:
        return None
    found = []
    for axis in range(count):
        size, places = shape[2 + axis], made[2 + axis]
        if not (known(size) and known(places)):
            return None
        size, places, kernel = int(size), int(places), int(weights.shape[2 + axis])
        stride = int((conv.attrs.get("strides") or [1] * count)[axis])
        step = int((conv.attrs.get("dilations") or [1] * count)[axis])
        before = int(pads[axis])
        if "SAME" in mode:
            total = max((places - 1) * stride + (kernel - 1) * step + 1 - size, 0)
            before = total // 2 if mode == "SAME_UPPER" else total - total // 2
        at = np.arange(places)[:, None] * stride - before + np.arange(kernel)[None] * step
        found.append((at >= 0) & (at < size))
    return found
