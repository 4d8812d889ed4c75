"""Drop QuantizeLinear/DequantizeLinear pairs on activations: the network is converted unquantized.

A pair whose range starts at 0 also rectifies (exporters leave the ReLU out then), so it becomes
Clip(x, 0, highest value); the others are dropped.  Rounding is dropped in both cases, and reported.
Quantized weights are constants and have been folded before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from snncompiler.graph import (
    Graph,
    Node,
    constant,
    constant_input,
    drop_dead,
    infer_node,
    producer,
    tensor_names,
)
from snncompiler.passes.base import Context, Pass


@dataclass(frozen=True)
class DropFakeQuant(Pass):
    """QuantizeLinear then DequantizeLinear with the same scale disappears, or becomes a Clip."""

    name: ClassVar[str] = "drop-fake-quant"
    requires: ClassVar[frozenset[str]] = frozenset({"constants-folded", "shapes"})
    ensures: ClassVar[frozenset[str]] = frozenset({"unquantized"})

    def run(self, graph: Graph, context: Context) -> None:
        taken = tensor_names(graph)
        dropped = 0
        for node in graph.nodes:
            source = producer(node.inputs[0]) if node.op == "DequantizeLinear" else None
            if source is None or source.op != "QuantizeLinear" or not _same_grid(source, node):
                continue
            low, high = _range(source)
            x = source.inputs[0]
            dtype = x.dtype or np.float32
            node.attrs.clear()
            node.inputs.clear()
            node.inputs.append(x)
            node.op = "Identity"
            if low == 0.0 and high > 0.0:
                node.op = "Clip"
                for name, bound in (("low", 0.0), ("high", high)):
                    array = np.asarray(bound, dtype)
                    node.inputs.append(constant(f"{node.name}/{name}", array, taken))
            infer_node(node, graph.opset)
            dropped += 1
        if dropped:
            context.note(
                "SNNC206", f"the rounding of {dropped} quantize/dequantize pairs is dropped"
            )
            drop_dead(graph)


def _same_grid(quantize: Node, dequantize: Node) -> bool:
    for index in (1, 2):
        first, second = constant_input(quantize, index), constant_input(dequantize, index)
        if (first is None) != (second is None):
            return False
        if first is not None and second is not None and not np.array_equal(first, second):
            return False
    return constant_input(quantize, 1) is not None


def _range(quantize: Node) -> tuple[float, float]:
    """Smallest and largest value that the quantized type can hold (per tensor; 0 = unknown)."""
    scale, zero = constant_input(quantize, 1), constant_input(quantize, 2)
    dtype = np.dtype(np.uint8) if zero is None else zero.dtype
    if scale is None or scale.size != 1 or dtype.kind not in "iu":
        return -1.0, 0.0
    limits, offset = np.iinfo(dtype), 0 if zero is None else int(zero.reshape(-1)[0])
    step = float(scale.reshape(()))
    return (limits.min - offset) * step, (limits.max - offset) * step
