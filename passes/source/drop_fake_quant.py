"""Take the rounding out of a quantized network, and keep the range that it saturates to.

An integer q of scale s and zero point z stands for the real value (q - z)·s.  Without its rounding,
QuantizeLinear is Clip(x, (least - z)·s, (most - z)·s) on real values, DequantizeLinear gives them back,
and what chooses, moves, pads or bounds integers in between does so with the real values.
DynamicQuantizeLinear takes its range from its input, so that it only rounds; the results of ConvInteger
and MatMulInteger are real values over s.  What is not known to do this stays on integers.

A range behind a rectifier, or from 0 on, becomes the bound of that rectifier.  Any other is written as
Max and Min where the values are not known to lie inside it: between spiking layers these are
x + relu(low - x) and x - relu(x - high), whose neurons are silent while nothing saturates, so that x
itself passes uncoded.  (As one neuron, Clip(x - low, 0, high - low), a quantized residual network had
2 to 7 times the error at 16 to 256 time-steps.)

An input that is quantized and dequantized at once is rounded as the file says: it is computed once a
run.  Quantized weights are constants and have been folded before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import helper

from snncompiler.ir.graph import (
    Graph,
    Node,
    Tensor,
    constant,
    constant_input,
    drop_dead,
    infer_node,
    input_at,
    is_live,
    producer,
    rank,
    readers,
    remove_node,
    tensor_names,
    unique_name,
    value,
)
from snncompiler.ir.operators import Integers, Span, record
from snncompiler.ir.rectifiers import rectified_input, rectifier
from snncompiler.passes.base import Context, Pass

Numbers = NDArray[np.float64]


def number(given: Any) -> Numbers:
    return np.asarray(given, np.float64)


@dataclass(frozen=True)
class DropFakeQuant(Pass):
    """Between QuantizeLinear and DequantizeLinear all is computed on real values, without rounding."""

    name: ClassVar[str] = "drop-fake-quant"
    requires: ClassVar[frozenset[str]] = frozenset({"constants-folded", "shapes"})
    ensures: ClassVar[frozenset[str]] = frozenset({"unquantized"})

    def run(self, graph: Graph, context: Context) -> None:
        taken = tensor_names(graph) | {node.name for node in graph.nodes}
        walk = Walk(graph, taken, context.limits)
        for node in list(graph.nodes):
            walk.visit(node)
        if walk.quantized:
            context.note(
                "SNNC206",
                f"the rounding of {walk.quantized} quantizations is dropped; their ranges stay, "
                f"{walk.bounds} as bounds of rectifiers and {walk.limits} as limits of other values",
            )
            drop_dead(graph)


@dataclass(frozen=True)
class Affine:
    """Scale and zero point, scalars or broadcastable to the tensor (one for each channel)."""

    scale: Numbers
    zero: Numbers

    def same(self, other: Affine) -> bool:
        return np.array_equal(self.scale, other.scale) and np.array_equal(self.zero, other.zero)

    def real(self, q: Numbers) -> Numbers:
        return (q - self.zero) * self.scale


#: The integers themselves, as real values.
_PLAIN = Affine(number(1), number(0))


@dataclass(frozen=True)
class Real:
    """The real values that an integer tensor stands for, unrounded."""

    tensor: Tensor
    grid: Affine
    kind: np.dtype[Any]


@dataclass(frozen=True)
class _Limits:
    """A value is Clip(x, low, high)."""

    x: Tensor
    low: Numbers
    high: Numbers


@dataclass
class Walk:
    """One pass over the sorted nodes."""

    graph: Graph
    taken: set[str]
    #: Names of the Max and Min that were written.
    limiting: set[str]
    #: id of an integer tensor -> its real values.
    reals: dict[int, Real] = field(default_factory=dict)
    #: id of a tensor -> what it is a Clip of.
    clipped: dict[int, _Limits] = field(default_factory=dict)
    #: id of a tensor -> the least and the largest value that it can have.
    spans: dict[int, tuple[float, float]] = field(default_factory=dict)
    quantized: int = 0
    bounds: int = 0
    limits: int = 0

    def visit(self, node: Node) -> None:
        if not node.domain and node.op == "QuantizeLinear":
            self.quantize(node)
        elif not node.domain and node.op == "DynamicQuantizeLinear":
            self.quantize_dynamically(node)
        elif any(id(tensor) in self.reals for tensor in node.inputs):
            kind = None if node.domain else record(node.op).integers
            if kind is not None:
                _ON_INTEGERS[kind](self, node)
        else:
            found = rectifier(node)
            limits = found and self.clipped.get(id(node.inputs[rectified_input(node)]))
            if found and limits and limits.low.size == 1 and limits.high.size == 1:
                cap = min(np.inf if found.cap is None else found.cap, float(limits.high))
                if float(limits.low) <= 0.0 < cap:
                    self.bound(node, limits.x, cap)
        self.follow(node)

    # --- writing ---

    def constant(self, node: Node, values: object, like: Tensor) -> gs.Constant:
        array = np.asarray(values, like.dtype or np.float32)
        return constant(f"{node.name}/constant", array, self.taken)

    def apply(self, node: Node, op: str, inputs: Sequence[Tensor], **attrs: Any) -> Tensor:
        """The output of a new node that stands for a part of `node`."""
        return self.copy(node, op, inputs, attrs, 1)[0]

    def copy(
        self, node: Node, op: str, inputs: Sequence[Tensor], attrs: dict[str, Any], outputs: int
    ) -> list[Tensor]:
        name = f"{node.name}/{op.lower()}"
        made = [gs.Variable(unique_name(name, self.taken)) for _ in range(outputs)]
        new = gs.Node(op, made[0].name, attrs=dict(attrs), inputs=list(inputs), outputs=list(made))
        infer_node(new, self.graph.opset)
        self.graph.nodes.append(new)
        self.follow(new)
        return made

    def turn(self, node: Node, op: str, inputs: Sequence[Tensor]) -> None:
        """Let `node` be another operator, with the same output."""
        if op != node.op:
            node.op = op
            node.attrs.clear()
        node.inputs.clear()
        node.inputs.extend(inputs)
        infer_node(node, self.graph.opset)

    def become(self, node: Node, x: Tensor) -> None:
        """Let `node` pass `x` on."""
        self.turn(node, "Identity", [x])
        if id(x) in self.clipped:
            self.clipped[id(node.outputs[0])] = self.clipped[id(x)]

    def bound(self, node: Node, x: Tensor, high: float) -> None:
        """Let `node` be Clip(x, 0, high)."""
        limits = [self.constant(node, one, x) for one in (0.0, high)]
        self.turn(node, "Clip", [x, *limits])
        self.clipped[id(node.outputs[0])] = _Limits(x, number(0), number(high))

    def affine(self, node: Node, x: Tensor, factor: Numbers, offset: Numbers) -> Tensor:
        """x·factor + offset."""
        if np.any(factor != 1):
            x = self.apply(node, "Mul", [x, self.constant(node, factor, x)])
        if np.any(offset != 0):
            x = self.apply(node, "Add", [x, self.constant(node, offset, x)])
        return x

    # --- what the values can be ---

    def span(self, tensor: Tensor) -> tuple[float, float]:
        array = value(tensor)
        if array is not None and array.size and array.dtype.kind in "fiu":
            return float(array.min()), float(array.max())
        return self.spans.get(id(tensor), (-np.inf, np.inf))

    def follow(self, node: Node) -> None:
        """Note between which values the outputs of the node lie."""
        kind = None if node.domain else record(node.op).span
        if kind is not None and node.inputs:
            low, high = _SPANS[kind](self, node)
            for tensor in node.outputs:
                self.spans[id(tensor)] = low, high

    def clip(self, node: Node, x: Tensor, low: Numbers, high: Numbers) -> Tensor:
        """Clip(x, low, high), by as little as it takes."""
        # As they are written, so that the same range met again is known to be met.
        low, high = (number(one.astype(np.float32)) for one in (low, high))
        before = self.clipped.get(id(x))
        if before and np.all(np.maximum(before.low, low) < np.minimum(before.high, high)):
            x, low, high = before.x, np.maximum(before.low, low), np.minimum(before.high, high)
        least, most = self.span(x)
        needs = bool(np.any(least < low)), bool(np.any(most > high))
        if not any(needs):
            return x
        single = low.size == high.size == 1
        if single and least >= 0.0 and float(low) <= 0.0 < float(high):
            found = self.behind_rectifier(node, x, float(high))
            if found is not None:
                self.bounds += 1
                self.spans[id(found)] = least, min(most, float(high))
                return found
        result = x
        if single and float(low) == 0.0 < float(high) < np.inf and needs[0]:
            bounds = [self.constant(node, one, x) for one in (0.0, float(high))]
            result = self.apply(node, "Clip", [x, *bounds])
            self.bounds += 1
        else:
            for needed, op, limit in zip(needs, ("Max", "Min"), (low, high), strict=True):
                if needed:
                    result = self.apply(node, op, [result, self.constant(node, limit, x)])
                    self.limiting.add(result.inputs[0].name)
            self.limits += 1
        self.clipped[id(result)] = _Limits(x, low, high)
        return result

    def behind_rectifier(self, node: Node, x: Tensor, high: float) -> Tensor | None:
        """Min(x, high) as the bound of the rectifier that x comes from, if it comes from one.

        Min commutes with what only chooses and moves values, and with the maximum.
        """
        maker, moved, alone = producer(x), False, True
        while maker is not None and rectifier(maker) is None:
            looks_through = record(maker.op).layout or maker.op == "MaxPool"
            if maker.domain or not looks_through or len(maker.outputs) != 1:
                return None
            moved, alone = True, alone and readers(maker.outputs[0], self.graph) == 1
            maker = producer(maker.inputs[0])
        if maker is None:
            return None
        found, current = rectifier(maker), maker.inputs[rectified_input(maker)]
        assert found is not None
        high = high if found.cap is None else min(high, found.cap)
        if alone and readers(maker.outputs[0], self.graph) == 1:
            self.bound(maker, current, high)
            return x
        if moved:
            return None
        limits = [self.constant(node, one, current) for one in (0.0, high)]
        result = self.apply(node, "Clip", [current, *limits])
        self.clipped[id(result)] = _Limits(current, number(0), number(high))
        return result

    # --- the operators ---

    def grid(self, node: Node, ranked: Tensor) -> tuple[Affine, np.dtype[Any]] | None:
        """Scale, zero point and type of a quantization; None where they are not known."""
        scale, zero = constant_input(node, 1), constant_input(node, 2)
        if scale is None or (zero is None and input_at(node, 2) is not None):
            return None
        kind = np.dtype(np.uint8) if zero is None else zero.dtype
        if zero is None and node.op == "QuantizeLinear" and node.attrs.get("output_dtype"):
            kind = np.dtype(helper.tensor_dtype_to_np_dtype(node.attrs["output_dtype"]))
        if node.attrs.get("block_size"):
            return None
        shape: tuple[int, ...] = ()
        if scale.size > 1:
            size, axis = rank(ranked), node.attrs.get("axis", 1)
            if size is None or scale.ndim != 1 or not -size <= axis < size:
                return None
            shape = (-1, *(1,) * (size - 1 - axis % size))
        zeros = np.zeros(scale.shape) if zero is None else zero.astype(np.float64)
        return Affine(scale.astype(np.float64).reshape(shape), zeros.reshape(shape)), kind

    def quantize(self, node: Node) -> None:
        x = node.inputs[0]
        found = self.grid(node, x)
        if found is None or not is_live(x) or found[1].kind not in "iu":
            return
        if id(x) in self.reals:  # the sums of a ConvInteger, quantized again
            x = self.on_grid(node, self.reals[id(x)], _PLAIN)
        if x.dtype is not None and np.dtype(x.dtype).kind != "f":
            return
        # Types of 16 bit are new in opset 21, and the emitted file may be older.
        exact = found[1].itemsize == 1 or self.graph.opset >= 21
        if (
            exact
            and is_given(x)
            and all(one.op == "DequantizeLinear" for one in node.outputs[0].outputs)
        ):
            return  # It is computed once a run: rounded as the file says.
        grid, kind = found
        if not np.all(grid.scale > 0):
            return
        self.reals[id(node.outputs[0])] = Real(self.limited(node, x, grid, kind), grid, kind)
        self.quantized += 1

    def limited(self, node: Node, x: Tensor, grid: Affine, kind: np.dtype[Any]) -> Tensor:
        """What x is once it is quantized and dequantized, without rounding."""
        limits = np.iinfo(kind)
        low, high = grid.real(number(limits.min)), grid.real(number(limits.max))
        return self.clip(node, x, low, high)

    def quantize_dynamically(self, node: Node) -> None:
        """Its scale cancels where it is used: any will do, so it is 1, and the zero point 0."""
        x, outputs = node.inputs[0], list(node.outputs)
        if not is_live(x) or not _cancels(node, self.graph):
            return
        scale, zero = outputs[1], outputs[2]
        for reader in list(scale.outputs):
            at = [index for index, one in enumerate(reader.inputs) if one is scale]
            for index in at:
                reader.inputs[index] = constant(scale.name, np.ones((), np.float32), self.taken)
            factors = [array for one in reader.inputs if (array := value(one)) is not None]
            if reader.op == "Mul" and len(factors) == 2:
                reader.outputs[0].to_constant(factors[0] * factors[1])
                remove_node(reader)
        for reader in list(zero.outputs):
            for index, one in enumerate(reader.inputs):
                if one is zero:
                    reader.inputs[index] = constant(zero.name, np.zeros((), np.uint8), self.taken)
        self.reals[id(outputs[0])] = Real(x, _PLAIN, np.dtype(np.uint8))
        self.quantized += 1

    def dequantize(self, node: Node) -> None:
        real = self.reals.get(id(node.inputs[0]))
        found = self.grid(node, node.inputs[0])
        if real is None or found is None:
            return
        self.become(node, self.on_grid(node, real, found[0]))

    def on_grid(self, node: Node, real: Real, grid: Affine) -> Tensor:
        """The real values that the integers of `real` stand for on another grid."""
        if real.grid.same(grid):
            return real.tensor
        # ((r/s + z) - z')·s'
        factor, offset = grid.scale / real.grid.scale, grid.real(real.grid.zero)
        return self.affine(node, real.tensor, factor, offset)

    def of(self, node: Node, index: int, grid: Affine) -> Tensor | None:
        """Input `index`, real values or constant integers, as real values on the grid."""
        real, array = self.reals.get(id(node.inputs[index])), value(node.inputs[index])
        if real is not None:
            return self.on_grid(node, real, grid)
        if array is None or grid.scale.size > 1:
            return None
        like = next(self.reals[id(one)].tensor for one in node.inputs if id(one) in self.reals)
        return self.constant(node, grid.real(array.astype(np.float64)), like)

    def choose(self, node: Node, positions: Sequence[int]) -> None:
        """An operator that chooses and moves values, or takes their maximum."""
        reals = [self.reals.get(id(node.inputs[index])) for index in positions]
        grids = [real.grid for real in reals if real is not None]
        kinds = [real.kind for real in reals if real is not None]
        if not grids:
            return
        same = all(grid.same(grids[0]) for grid in grids)
        # Scales of channels would have to move with the channels.
        local = record(node.op).elementwise or node.op == "MaxPool"
        grid = grids[0] if same and (grids[0].scale.size == 1 or local) else _PLAIN
        inputs = list(node.inputs)
        for index in positions:
            tensor = self.of(node, index, grid)
            if tensor is None:
                return
            inputs[index] = tensor
        made = self.copy(node, node.op, inputs, node.attrs, len(node.outputs))
        for old, new in zip(node.outputs, made, strict=True):
            self.reals[id(old)] = Real(new, grid, kinds[0])

    def first(self, node: Node) -> None:
        self.choose(node, [0])

    def all(self, node: Node) -> None:
        self.choose(node, range(len(node.inputs)))

    def max_pool(self, node: Node) -> None:
        if len(node.outputs) == 1:
            self.first(node)

    def resize(self, node: Node) -> None:
        if node.attrs.get("mode", "nearest") == "nearest":
            self.first(node)

    def pad(self, node: Node) -> None:
        real, fill = self.reals.get(id(node.inputs[0])), input_at(node, 2)
        array = np.zeros(()) if fill is None else value(fill)
        if real is None or array is None:
            return
        grid = real.grid if real.grid.scale.size == 1 else _PLAIN
        x = self.on_grid(node, real, grid)
        padding = self.constant(node, grid.real(array.astype(np.float64)).reshape(()), x)
        inputs = [x, node.inputs[1], padding, *node.inputs[3:]]
        result = self.apply(node, "Pad", inputs, **node.attrs)
        self.reals[id(node.outputs[0])] = Real(result, grid, real.kind)

    def bound_integers(self, node: Node) -> None:
        """Clip, Relu, and Max and Min with a number."""
        real = next(self.reals[id(one)] for one in node.inputs if id(one) in self.reals)
        low, high = number(-np.inf), number(np.inf)
        if node.op == "Relu":
            low = real.grid.real(number(0))
        elif node.op == "Clip":
            arrays = [constant_input(node, index) for index in (1, 2)]
            given = [input_at(node, index) is not None for index in (1, 2)]
            for is_low, array, is_given in zip((True, False), arrays, given, strict=True):
                if not is_given:
                    continue
                if array is None or array.size != 1:
                    return
                limit = real.grid.real(array.astype(np.float64).reshape(()))
                low, high = (limit, high) if is_low else (low, limit)
        else:
            numbers = [array for one in node.inputs if (array := value(one)) is not None]
            if len(node.inputs) != 2 or len(numbers) != 1 or numbers[0].size != 1:
                self.all(node)
                return
            limit = real.grid.real(numbers[0].astype(np.float64).reshape(()))
            low, high = (limit, high) if node.op == "Max" else (low, limit)
        if not np.all(low <= high):
            return
        result = self.clip(node, real.tensor, np.asarray(low), np.asarray(high))
        self.reals[id(node.outputs[0])] = Real(result, real.grid, real.kind)

    def shape(self, node: Node) -> None:
        self.turn(node, node.op, [self.reals[id(node.inputs[0])].tensor])

    def cast(self, node: Node) -> None:
        real = self.reals[id(node.inputs[0])]
        kind = np.dtype(helper.tensor_dtype_to_np_dtype(node.attrs["to"]))
        if kind.kind == "f":
            self.become(node, self.on_grid(node, real, _PLAIN))
        elif kind.kind in "iu":
            own, wide = np.iinfo(real.kind), np.iinfo(kind)
            if wide.min <= own.min and own.max <= wide.max:
                self.reals[id(node.outputs[0])] = Real(real.tensor, real.grid, kind)

    def shift(self, node: Node) -> None:
        """Integers of 32 bit, as the convolutions give them, and a constant: a bias."""
        at = next(index for index, one in enumerate(node.inputs) if id(one) in self.reals)
        real, array = self.reals[id(node.inputs[at])], value(node.inputs[1 - at])
        if real.kind.itemsize < 4 or array is None or (node.op == "Sub" and at == 1):
            return
        if real.grid.scale.size > 1:
            return
        offset = self.constant(node, array.astype(np.float64) * real.grid.scale, real.tensor)
        result = self.apply(node, node.op, [real.tensor, offset])
        self.reals[id(node.outputs[0])] = Real(result, real.grid, real.kind)

    def multiply(self, node: Node) -> None:
        """ConvInteger and MatMulInteger: integers less their zero points, times constant integers."""
        real, weights = self.reals.get(id(node.inputs[0])), value(node.inputs[1])
        zeros = [constant_input(node, index) for index in (2, 3)]
        live = any(input_at(node, i) is not None and zeros[i - 2] is None for i in (2, 3))
        if real is None or weights is None or live or real.grid.scale.size > 1:
            return
        first, second = (number(0) if z is None else z.astype(np.float64) for z in zeros)
        if first.size != 1:
            return
        if second.size > 1 and node.op == "ConvInteger":
            second = second.reshape(-1, *(1,) * (weights.ndim - 1))
        grid = Affine(real.grid.scale, np.asarray(first.reshape(())))
        x = self.on_grid(node, real, grid)
        factor = self.constant(node, weights.astype(np.float64) - second, x)
        result = self.apply(node, node.op.removesuffix("Integer"), [x, factor], **node.attrs)
        plain = Affine(real.grid.scale, number(0))
        self.reals[id(node.outputs[0])] = Real(result, plain, np.dtype(np.int32))


_ON_INTEGERS: dict[Integers, Callable[[Walk, Node], None]] = {
    "dequantize": Walk.dequantize,
    "first": Walk.first,
    "all": Walk.all,
    "max-pool": Walk.max_pool,
    "resize": Walk.resize,
    "pad": Walk.pad,
    "bound": Walk.bound_integers,
    "cast": Walk.cast,
    "shape": Walk.shape,
    "shift": Walk.shift,
    "multiply": Walk.multiply,
}


def is_given(tensor: Tensor) -> bool:
    """Whether the tensor is an input of the network, moved, scaled or shifted at most."""
    maker = producer(tensor)
    while maker is not None:
        live = [one for one in maker.inputs if is_live(one)]
        if maker.domain or not _prepares(maker) or len(live) != 1:
            return False
        maker = producer(live[0])
    return True


def _prepares(node: Node) -> bool:
    """Whether the node is of those that prepare an input."""
    nature = record(node.op)
    return nature.layout or nature.arithmetic or node.op in ("Cast", "Slice", "Pad")


def _cancels(node: Node, graph: Graph) -> bool:
    """Whether all that is computed from the outputs of a DynamicQuantizeLinear is the same for every
    scale: whatever is proportional to it, or to 1 over it, ends in a product that is neither."""
    quantized, scale, zero = node.outputs
    # id of a tensor -> the power of the scale in it.
    powers = {id(quantized): -1, id(scale): 1}
    results = {id(tensor) for tensor in graph.outputs}
    for reader in graph.nodes[graph.nodes.index(node) + 1 :]:
        own = [powers.get(id(tensor), 0) for tensor in reader.inputs]
        reads_zero = [index for index, tensor in enumerate(reader.inputs) if tensor is zero]
        if not any(own) and not reads_zero:
            continue
        first = reader.inputs[0] is quantized
        if reader.domain:
            return False
        if record(reader.op).integers == "multiply":
            if not first or reads_zero != [2] or any(own[1:]) or value(reader.inputs[1]) is None:
                return False
            power = -1
        elif reader.op == "DequantizeLinear":
            if not first or reads_zero != [2] or reader.inputs[1] is not scale:
                return False
            power = 0
        elif reader.op == "Cast" and not reads_zero:
            power = own[0]
        elif reader.op == "Mul" and not reads_zero:
            power = sum(own)
        else:
            return False
        if power:
            powers[id(reader.outputs[0])] = power
    return not results & (powers.keys() | {id(zero)})


# --- between which values an operator's outputs lie; each gives (least, most) ---


def _same_span(walk: Walk, node: Node) -> tuple[float, float]:
    return walk.span(node.inputs[0])


def _hull(walk: Walk, node: Node) -> tuple[float, float]:
    spans = [walk.span(tensor) for tensor in node.inputs]
    return min(low for low, _ in spans), max(high for _, high in spans)


def _average_span(walk: Walk, node: Node) -> tuple[float, float]:
    low, high = walk.span(node.inputs[0])
    return (min(low, 0.0), max(high, 0.0)) if node.attrs.get("count_include_pad") else (low, high)


def _max_span(walk: Walk, node: Node) -> tuple[float, float]:
    spans = [walk.span(tensor) for tensor in node.inputs]
    return max(low for low, _ in spans), max(high for _, high in spans)


def _min_span(walk: Walk, node: Node) -> tuple[float, float]:
    spans = [walk.span(tensor) for tensor in node.inputs]
    return min(low for low, _ in spans), min(high for _, high in spans)


def _sum_span(walk: Walk, node: Node) -> tuple[float, float]:
    spans = [walk.span(tensor) for tensor in node.inputs]
    return sum(low for low, _ in spans), sum(high for _, high in spans)


def _clip_span(walk: Walk, node: Node) -> tuple[float, float]:
    low, high = walk.span(node.inputs[0])
    least, most = constant_input(node, 1), constant_input(node, 2)
    if least is not None and least.size == 1:
        low, high = (max(one, float(least.reshape(()))) for one in (low, high))
    if most is not None and most.size == 1:
        low, high = (min(one, float(most.reshape(()))) for one in (low, high))
    return low, high


def _relu_span(walk: Walk, node: Node) -> tuple[float, float]:
    low, high = walk.span(node.inputs[0])
    return max(low, 0.0), max(high, 0.0)


def _unit_span(walk: Walk, node: Node) -> tuple[float, float]:
    return 0.0, 1.0


_SPANS: dict[Span, Callable[[Walk, Node], tuple[float, float]]] = {
    "first": _same_span,
    "average": _average_span,
    "hull": _hull,
    "sum": _sum_span,
    "maximum": _max_span,
    "minimum": _min_span,
    "clip": _clip_span,
    "relu": _relu_span,
    "unit": _unit_span,
}
