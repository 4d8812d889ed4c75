"""Write roundings as arithmetic on floats: Div, Round, Clip, Mul.

This says the same as QuantizeLinear and DequantizeLinear, which round to the nearest even integer, too.
But around a layer whose weights are floats, onnxruntime takes these for a request to quantize the
weights as well, and rounds them to 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

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
    known_rank,
    producer,
    readers,
    tensor_names,
    unique_name,
)
from snncompiler.ir.grids import rounded_from
from snncompiler.ir.rectifiers import clip_bounds
from snncompiler.passes.base import Context, Pass


@dataclass(frozen=True)
class SpellRounding(Pass):
    """QuantizeLinear, a Clip of integers, and DequantizeLinear become Div, Round, Clip and Mul."""

    name: ClassVar[str] = "spell-rounding"

    def run(self, graph: Graph, context: Context) -> None:
        taken = tensor_names(graph)
        found = [node for node in graph.nodes if rounded_from(node) is not None]
        for node in found:
            _spell(graph, node, taken)
        if found:
            drop_dead(graph)


def _spell(graph: Graph, last: Node, taken: set[str]) -> None:
    inner = producer(last.inputs[0])
    assert inner is not None
    first = producer(inner.inputs[0]) if inner.op == "Clip" else inner
    assert first is not None
    if any(
        readers(node.outputs[0], graph) != 1 for node in {id(n): n for n in (first, inner)}.values()
    ):
        return
    x, result = first.inputs[0], last.outputs[0]
    scale, zero = _spread(first, 1, x), _spread(first, 2, x)
    behind, shift = _spread(last, 1, x), _spread(last, 2, x)
    kind = first.inputs[2].dtype if input_at(first, 2) is not None else np.uint8
    limits = np.iinfo(np.dtype(kind))
    low, high = float(limits.min), float(limits.max)
    if inner is not first:
        least, most = clip_bounds(inner)
        assert least is not None and most is not None
        low, high = max(low, least), min(high, most)
    lows, highs = np.asarray(low - zero), np.asarray(high - zero)

    def apply(
        op: str, value: Tensor, *others: NDArray[Any], output: Tensor | None = None
    ) -> Tensor:
        name = unique_name(f"{last.name}/{op.lower()}", taken)
        made = output or gs.Variable(name, x.dtype, x.shape)
        given = [
            gs.Constant(unique_name(f"{name}/constant", taken), np.asarray(array, x.dtype))
            for array in others
        ]
        graph.nodes.append(gs.Node(op, name, inputs=[value, *given], outputs=[made]))
        return made

    value = apply("Round", apply("Div", x, scale))
    if lows.size == 1:
        value = apply("Clip", value, lows.reshape(()), highs.reshape(()))
    else:
        value = apply("Min", apply("Max", value, lows), highs)
    if np.any(zero != shift):
        value = apply("Add", value, zero - shift)
    last.outputs.clear()
    apply("Mul", value, behind, output=result)


def _spread(node: Node, index: int, like: Tensor) -> NDArray[np.float64]:
    """A scale or zero point as it broadcasts to the tensor; 0 where it is left out."""
    array = constant_input(node, index) if input_at(node, index) is not None else np.zeros(())
    assert array is not None
    if array.size == 1:
        return array.reshape(()).astype(np.float64)
    axis = node.attrs.get("axis", 1) % known_rank(like)
    return array.reshape(-1, *[1] * (known_rank(like) - 1 - axis)).astype(np.float64)
