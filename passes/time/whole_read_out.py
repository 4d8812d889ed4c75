"""Let the read-out give the same bits on every machine, as far as that is possible.

What neurons have sent comes out of the time-mean as the same bits everywhere: it is added up step by
step.  Behind that, a layer adds up many values, in an order that nobody knows.  So what a layer reads
is rounded, element by element, to whole numbers; its weights are whole numbers of one scale for each
output; and the sum is exact:

    MatMul, Gemm         in float64, exact below 2^53
    Conv, ConvTranspose  in float32, exact below 2^24: two digits of what it reads, one after the other
    averages             in float32; what was divided is multiplied by the number of places and rounded

What works element by element needs nothing.  Anything else (a Softmax, for one) may differ in its last
bits, and so may all that is behind it: `Grid.read_out` and a note name it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from snncompiler.ir import dialect
from snncompiler.ir.graph import (
    Graph,
    Node,
    Tensor,
    constant,
    input_at,
    is_live,
    known_rank,
    label,
    producer,
    tensor_names,
    unique_name,
    value,
)
from snncompiler.ir.operators import record
from snncompiler.ir.phases import TIME_MEAN, analyze
from snncompiler.ir.whole import EXACT
from snncompiler.passes.base import Context, Pass
from snncompiler.passes.grids import (
    BY_ELEMENT,
    Real,
    from_rows,
    interval,
    moves,
    places_of,
    rows_of,
)

#: Levels of what a product in float64 reads: its bound is divided by so many.
_LEVELS = 1 << 22
#: Bits of the weights, where fewer were asked for.
_LEAST_BITS = 8
_AVERAGES = frozenset({"GlobalAveragePool", "ReduceMean"})
#: What only chooses among values, by comparing them.
_CHOOSES = frozenset({"MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin", "ArgMax", "ArgMin", "TopK",
                      "Concat", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Where",
                      "Not", "And", "Or", "Sign", "Relu"})  # fmt: skip


@dataclass(frozen=True)
class WholeReadOut(Pass):
    """Sums behind the last neuron in whole numbers; `bits` are those of the other weights."""

    bits: int
    inputs_vary: bool = False

    name: ClassVar[str] = "whole-read-out"
    requires: ClassVar[frozenset[str]] = frozenset({"whole-numbers"})
    ensures: ClassVar[frozenset[str]] = frozenset({"whole-read-out"})
    again: ClassVar[str] = "what the read-out reads would be rounded once more"

    def run(self, graph: Graph, context: Context) -> None:
        work = _Work(graph, context, max(self.bits, _LEAST_BITS))
        timing = analyze(
            graph,
            lambda node: bool(node.domain == dialect.DOMAIN and node.op != TIME_MEAN),
            inputs_vary=self.inputs_vary,
        )
        for node in list(graph.nodes):
            if timing.phase(node) == "read-out":
                work.visit(node)
        differing = [
            output for output in graph.outputs if work.ranges.get(id(output), _UNKNOWN) is None
        ]
        names = ", ".join(dict.fromkeys(work.inexact))
        told = f"all but what is behind {names}" if differing and names else "all"
        context.grid = replace(context.grid, read_out=told)
        if differing and names:
            context.note(
                "SNNC224",
                f"behind {names} the outputs may differ between machines in their last bits; what it "
                "reads does not",
            )


#: Of a tensor that was not looked at.
_UNKNOWN = Real(-np.inf, np.inf)


class _Work:
    def __init__(self, graph: Graph, context: Context, bits: int) -> None:
        self.graph, self.context = graph, context
        self.most = (1 << (bits - 1)) - 1
        self.taken = tensor_names(graph)
        #: What every value may be; None where machines may differ in its bits.
        self.ranges: dict[int, Real | None] = {}
        self.inexact: list[str] = []

    def visit(self, node: Node) -> None:
        outputs = list(node.outputs)
        for tensor, found in zip(outputs, self._found(node), strict=True):
            self.ranges[id(tensor)] = found

    def _found(self, node: Node) -> list[Real | None]:
        count = len(node.outputs)
        if node.op == TIME_MEAN and node.domain:
            # As large as a value of one step; what grows with time is worth less before.
            bound = self.context.bounds.get(id(node.inputs[0]))
            return [None if bound is None else Real(-bound, bound)]
        live = [tensor for tensor in node.inputs if is_live(tensor)]
        kinds = [self._range(tensor) for tensor in live]
        if record(node.op).shape_only:
            return [Real(0, 1 << 40, True)] * count
        if any(kind is None for kind in kinds):
            return [None] * count
        found = self._exact(node, [kind for kind in kinds if kind is not None])
        if found is None:
            self.inexact.append(label(node))
        return [found] * count

    def _range(self, tensor: Tensor) -> Real | None:
        held = value(tensor)
        if held is not None:
            if not held.size or held.dtype.kind not in "fiub":
                return Real(0.0, 0.0)
            return Real(float(held.min()), float(held.max()))
        if id(tensor) in self.ranges:
            return self.ranges[id(tensor)]
        maker = producer(tensor)
        if maker is not None and maker.domain == dialect.DOMAIN and maker.op == "TimeSum":
            # In layered time, where it completes the value of a window.
            bound, once = self.context.bounds.get(id(maker.inputs[0])), self._range(maker.inputs[1])
            if bound is None or once is None:
                return None
            return Real(once.low - bound, once.high + bound)
        if id(tensor) in self.context.bounds:
            bound = self.context.bounds[id(tensor)]
            return Real(-bound, bound)
        return None

    def _exact(self, node: Node, kinds: list[Real]) -> Real | None:
        """What a node gives, after it was changed to give the same bits everywhere; None where it may
        not."""
        bounded = all(np.isfinite([kind.low, kind.high]).all() for kind in kinds)
        if node.domain:
            return None
        if node.op in BY_ELEMENT:
            every = [
                self._range(tensor) if not tensor.is_empty() else _UNKNOWN for tensor in node.inputs
            ]
            found = interval(node, [one or _UNKNOWN for one in every])
            return found or _UNKNOWN
        if moves(node) or node.op in _CHOOSES or record(node.op).layout:
            return Real(
                min([0.0, *(kind.low for kind in kinds)]),
                max([0.0, *(kind.high for kind in kinds)]),
            )
        if not bounded:
            return None
        bound = max(max(abs(kind.low), abs(kind.high)) for kind in kinds)
        if record(node.op).weights is not None:
            return self._layer(node, bound)
        if node.op in _AVERAGES or node.op == "AveragePool":
            return self._average(node, bound)
        return None

    def _layer(self, node: Node, bound: float) -> Real | None:
        layout = record(node.op).weights
        weights = value(node.inputs[1]) if len(node.inputs) > 1 else None
        bias = input_at(node, 2)
        if weights is None or layout == "equation" or not is_live(node.inputs[0]):
            return None
        if bias is not None and value(bias) is None:
            return None
        if layout == "matrix" and (weights.ndim != 2 or node.attrs):
            return None
        rows = rows_of(node, weights)
        top = np.abs(rows).max(axis=1, initial=0.0)
        scale = np.where(top > 0, top, 1.0) / self.most
        numbers = np.floor(rows / scale[:, None] + 0.5)
        added = 0.0 if bias is None else float(np.abs(_array(bias)).max(initial=0.0))
        result = (
            float((np.abs(numbers) * scale[:, None]).sum(axis=1).max(initial=0.0)) * bound + added
        )
        shaped = from_rows(node, numbers, weights.shape)
        if layout == "matrix":
            self._product(node, bound, shaped, scale)
        else:
            self._convolution(
                node, bound, shaped, scale, float(np.abs(numbers).sum(axis=1).max(initial=1))
            )
        return Real(-result, result)

    def _product(
        self, node: Node, bound: float, numbers: NDArray[Any], scale: NDArray[Any]
    ) -> None:
        """x·W + b as Cast(Cast(n)·W' · (unit·scale) + b) in float64."""
        result, x, bias = node.outputs[0], node.inputs[0], input_at(node, 2)
        whole, unit = self._rounded(node, x, bound, _LEVELS)
        wide = self._node("Cast", [whole], f"{node.name}/wide", whole, np.float64)
        wide.attrs["to"] = int(onnx.TensorProto.DOUBLE)
        held = self._constant(f"{node.inputs[1].name}_whole", numbers.astype(np.float64))
        product = self._node(
            "MatMul", [wide.outputs[0], held], f"{node.name}/sum", result, np.float64
        )
        # A Mul right behind it would be folded into the product.
        exact = self._node("Round", product.outputs, f"{node.name}/whole", result, np.float64)
        factor = self._constant(f"{node.name}/scale", (unit * scale).astype(np.float64))
        last = self._node(
            "Mul", [exact.outputs[0], factor], f"{node.name}/scaled", result, np.float64
        )
        if bias is not None:
            more = self._constant(f"{bias.name}_wide", _array(bias).astype(np.float64))
            last = self._node(
                "Add", [last.outputs[0], more], f"{node.name}/biased", result, np.float64
            )
        # The node itself gives the result, under its name.
        node.op, node.attrs, node.inputs = "Cast", {"to": int(onnx.TensorProto.FLOAT)}, last.outputs

    def _convolution(
        self, node: Node, bound: float, numbers: NDArray[Any], scale: NDArray[Any], mass: float
    ) -> None:
        """conv(n) = conv(high)·D + conv(low), n = high·D + low, D a power of two."""
        result, x, bias = node.outputs[0], node.inputs[0], input_at(node, 2)
        digit = 1
        while digit * 2 * mass <= EXACT / 2:
            digit *= 2
        whole, unit = self._rounded(node, x, bound, min(digit * digit // 2, _LEVELS))
        spread = (1, -1, *[1] * (known_rank(result) - 2))
        inverse = self._constant(f"{node.name}/digit_inverse", np.float32(1 / digit))
        base = self._constant(f"{node.name}/digit", np.float32(digit))
        part = self._node("Mul", [whole, inverse], f"{node.name}/part", whole)
        high = self._node("Round", part.outputs, f"{node.name}/high", whole)
        back = self._node("Mul", [high.outputs[0], base], f"{node.name}/high_back", whole)
        low = self._node("Sub", [whole, back.outputs[0]], f"{node.name}/low", whole)
        held = self._constant(f"{node.inputs[1].name}_whole", numbers.astype(np.float32))
        sums = []
        for name, digit_of in (("high", high), ("low", low)):
            conv = self._node(
                node.op, [digit_of.outputs[0], held], f"{node.name}/{name}_sum", result
            )
            conv.attrs = dict(node.attrs)
            # A Mul right behind it would be folded into its weights.
            exact = self._node("Round", conv.outputs, f"{node.name}/{name}_whole", result)
            sums.append(exact.outputs[0])
        sums[0] = self._node("Mul", [sums[0], base], f"{node.name}/high_sums", result).outputs[0]
        total = self._node("Add", sums, f"{node.name}/sums", result)
        factor = self._constant(
            f"{node.name}/scale", (unit * scale).astype(np.float32).reshape(spread)
        )
        last = [total.outputs[0], factor]
        if bias is None:
            node.op, node.attrs, node.inputs = "Mul", {}, last
            return
        more = self._constant(
            f"{bias.name}_spread", _array(bias).astype(np.float32).reshape(spread)
        )
        scaled = self._node("Mul", last, f"{node.name}/scaled", result)
        node.op, node.attrs, node.inputs = "Add", {}, [scaled.outputs[0], more]

    def _average(self, node: Node, bound: float) -> Real | None:
        """Round(average(n)·L)·(unit / L)."""
        places = places_of(node)
        if places is None or places > EXACT >> 10:
            return None
        result = node.outputs[0]
        whole, unit = self._rounded(
            node, node.inputs[0], bound, min(_LEVELS, (EXACT >> 3) // places)
        )
        node.inputs[0] = whole
        raw = gs.Variable(unique_name(f"{result.name}/raw", self.taken), result.dtype, result.shape)
        node.outputs[0] = raw
        count = self._constant(f"{node.name}/places", np.float32(places))
        sums = self._node("Mul", [raw, count], f"{node.name}/sum", result)
        exact = self._node("Round", sums.outputs, f"{node.name}/whole", result)
        last = self._constant(f"{node.name}/unit", np.float32(unit / places))
        self._node("Mul", [exact.outputs[0], last], f"{node.name}/value", result, output=result)
        return Real(-bound, bound)

    def _rounded(self, node: Node, x: Tensor, bound: float, levels: int) -> tuple[Tensor, float]:
        """Round(x·a), at most `levels` in size where x is within its bound, and 1/a."""
        factor = np.float32(levels / (bound or 1.0))
        scaled = self._node(
            "Mul", [x, self._constant(f"{node.name}/levels_of_1", factor)], f"{node.name}/levels", x
        )
        rounding = self._node("Round", scaled.outputs, f"{node.name}/on_grid", x)
        return rounding.outputs[0], 1.0 / float(factor)

    def _constant(self, name: str, values: NDArray[Any] | np.float32) -> gs.Constant:
        return constant(name, np.asarray(values), self.taken)

    def _node(
        self,
        op: str,
        inputs: list[Tensor],
        name: str,
        like: Tensor,
        dtype: Any = np.float32,
        output: Tensor | None = None,
    ) -> Node:
        result = output
        if result is None:
            result = gs.Variable(unique_name(name, self.taken), np.dtype(dtype), like.shape)
        node = gs.Node(op, name, inputs=list(inputs), outputs=[result])
        self.graph.nodes.append(node)
        return node


def _array(tensor: Tensor) -> NDArray[Any]:
    """The values of a constant."""
    found = value(tensor)
    assert found is not None
    return found
