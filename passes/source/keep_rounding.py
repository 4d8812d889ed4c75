"""Keep the rounding of a quantized network, where layered time has spikes for it.

An activation that is quantized to n·s, n = 0 to 2^b - 1, is what T = b radix spikes of worth s, or
2^b - 1 rate spikes, stand for.  So a rectifier is rounded where it stands, before what only moves its
values or takes their maximum, which rounding commutes with:

    Relu, QuantizeLinear with zero point 0, (Clip of integers,) DequantizeLinear

and `insert_neurons` makes one neuron of that.  A value that is never negative, such as a mean of
spikes, gets a Relu of its own for it.  Values of both signs, in front of a sum or behind the last
layer, are rounded as the file says, in an exact step without spikes; so are averages, many of which
lie half-way between two integers, before they are sent as spikes.  What lies on the grid already is
not rounded again.  All else is as in `drop_fake_quant`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from snncompiler.ir.graph import (
    Graph,
    Node,
    Tensor,
    constant_input,
    drop_dead,
    input_at,
    is_live,
    known_rank,
    label,
    producer,
    sort_nodes,
    tensor_names,
    unique_name,
)
from snncompiler.ir.grids import MAX_TOP, grids_of
from snncompiler.ir.operators import record
from snncompiler.ir.rectifiers import clip_bounds, rectified_input, rectifier, rectifiers_of
from snncompiler.passes.base import Context, Pass
from snncompiler.passes.source.drop_fake_quant import Affine, DropFakeQuant, Numbers, Walk, number


@dataclass(frozen=True)
class KeepRounding(Pass):
    """Values between QuantizeLinear and DequantizeLinear are rounded, as real values."""

    name: ClassVar[str] = "keep-rounding"
    requires: ClassVar[frozenset[str]] = frozenset({"constants-folded", "shapes"})
    ensures: ClassVar[frozenset[str]] = frozenset({"unquantized"})
    again: ClassVar[str] = "what is rounded would be looked at once more, and named anew"

    def run(self, graph: Graph, context: Context) -> None:
        reason = _obstacle(graph)
        if reason:
            context.note("SNNC206", f"the rounding of the source cannot be kept: {reason}")
            DropFakeQuant().run(graph, context)
            return
        taken = tensor_names(graph) | {node.name for node in graph.nodes}
        walk = _Rounding(graph, taken, context.limits, read=_read_by_weights(graph))
        for node in list(graph.nodes):
            walk.visit(node)
        if not walk.quantized:
            return
        drop_dead(graph)
        context.keeps_rounding = True
        context.whole_averages |= walk.averages
        grids = grids_of(graph)
        context.note(
            "SNNC206",
            f"the rounding of the quantized source is kept: {len(grids)} rectifiers send spikes on "
            f"its grids, {walk.steps} other values are rounded in a step that does not spike",
        )
        for node in rectifiers_of(graph):
            if node.name not in grids:
                context.note(
                    "SNNC206",
                    "the source does not quantize it, so that its threshold is calibrated",
                    node=label(node),
                )


def _obstacle(graph: Graph) -> str:
    """Why a network cannot keep its rounding; empty where it can."""
    for node in graph.nodes:
        if node.domain or not node.inputs or not is_live(node.inputs[0]):
            continue
        if node.op == "DynamicQuantizeLinear":
            return f"{label(node)} takes its range from every input anew"
        zero = constant_input(node, 2)
        wide = node.op == "QuantizeLinear" and zero is not None and zero.dtype.itemsize > 1
        if wide and graph.opset < 21:
            return f"{label(node)} quantizes to 16 bits, which ONNX has from opset 21 on"
    return ""


def _read_by_weights(graph: Graph) -> set[int]:
    """ids of the nodes on which a layer of weights depends."""
    sort_nodes(graph)
    wanted: set[int] = set()
    found: set[int] = set()
    for node in reversed(graph.nodes):
        if any(id(tensor) in wanted for tensor in node.outputs):
            found.add(id(node))
        weighs = record(node.op).weights is not None or record(node.op).integers == "multiply"
        if id(node) in found or (weighs and not node.domain):
            wanted.update(id(tensor) for tensor in node.inputs)
    return found


@dataclass(frozen=True)
class _Place:
    """Values are n·grid.scale, n = least to most."""

    grid: Affine
    least: int
    most: int


@dataclass
class _Rounding(Walk):
    """The walk of `drop_fake_quant`, but with rounding."""

    #: ids of the nodes on which a layer of weights depends.
    read: set[int] = field(default_factory=set)
    #: id of a tensor -> where its values lie.
    on: dict[int, _Place] = field(default_factory=dict)
    #: What was rounded already: id of a tensor, scale and range -> the rounded values.
    done: dict[tuple[int, bytes, int, int], Tensor] = field(default_factory=dict)
    #: Roundings that are no neurons.
    steps: int = 0
    #: Names of the averages that are rounded.
    averages: set[str] = field(default_factory=set)

    def visit(self, node: Node) -> None:
        super().visit(node)
        if rectifier(node) is None:
            return
        result, place = node.outputs[0], self.on.get(id(node.inputs[rectified_input(node)]))
        reading = list(result.outputs)
        if place is None or place.most <= 0 or [one.op for one in reading] == ["QuantizeLinear"]:
            return
        # What is rectified on a grid stays on it, and its neuron has that grid.
        rounded = self.rounded(node, result, place.grid, 0, place.most)
        for reader in reading:
            for index, tensor in enumerate(reader.inputs):
                if tensor is result:
                    reader.inputs[index] = rounded
        for index, output in enumerate(self.graph.outputs):
            if output is result:
                result.name, rounded.name = rounded.name, result.name
                self.graph.outputs[index] = rounded

    def follow(self, node: Node) -> None:
        super().follow(node)
        nature = record(node.op)
        if node.domain or nature.spikes not in ("moved", "padded") or not node.inputs:
            return
        if nature.spikes == "padded" and input_at(node, 2) is not None:
            fill = constant_input(node, 2)
            if fill is None or np.any(fill):
                return
        read = node.inputs if node.op == "Concat" else node.inputs[:1]
        places = [place for tensor in read if (place := self.on.get(id(tensor)))]
        if len(places) < len(read) or places[0].grid.scale.size > 1:
            return
        if all(place.grid.same(places[0].grid) for place in places):
            least = min(0, *(place.least for place in places))
            most = max(0, *(place.most for place in places))
            for tensor in node.outputs:
                self.on[id(tensor)] = _Place(places[0].grid, least, most)

    # --- what is rounded, and where ---

    def limited(self, node: Node, x: Tensor, grid: Affine, kind: np.dtype[Any]) -> Tensor:
        """x rounded, and limited to the range of the type, or to that of a Clip behind it."""
        limits = np.iinfo(kind)
        low, high = _narrowed(node, limits.min, limits.max)
        lows, highs = (np.asarray(one - grid.zero, np.int64) for one in (low, high))
        if np.any(lows != lows.min()):
            # A zero point for each channel.
            self.steps += 1
            return self.rounded(node, x, grid, low, high, kind)
        return self.on_integers(node, x, Affine(grid.scale, number(0)), lows.max(), highs.max())

    def on_integers(self, node: Node, x: Tensor, grid: Affine, low: int, high: int) -> Tensor:
        """x rounded to n·scale, n = low to high."""
        place = self.on.get(id(x))
        same = place is not None and place.grid.same(grid)
        if place is not None and same and low <= place.least and place.most <= high:
            return x
        key = id(x), grid.scale.tobytes(), int(low), int(high)
        if key not in self.done:
            start, way = self.start(x)
            rectifies = any(rectifier(one) is not None for one in way)
            unsigned = low == 0 or self.span(start)[0] >= 0
            spikes = 0 < high <= MAX_TOP and (
                rectifies or (unsigned and self.spikes_on(node, start))
            )
            average = self.average(start)
            if average is not None and spikes:
                # Half of the values lie half-way between two integers, or a quarter: see there.
                self.averages.add(average.name)
                self.steps += 1
                start = self.rounded(node, start, grid, 0, int(high))
            if spikes:
                result = self.rounded(node, self.rectified(node, start, way), grid, 0, int(high))
            else:
                self.steps += 1
                start, way = (x, []) if rectifies else (start, way)
                result = self.rounded(node, start, grid, int(low), int(high))
            for one in way:
                if rectifier(one) is None:
                    result = self.copy(one, one.op, [result, *one.inputs[1:]], one.attrs, 1)[0]
            self.done[key] = result
        return self.done[key]

    def start(self, x: Tensor) -> tuple[Tensor, list[Node]]:
        """Where x may be rounded as well: the value that it is only moved, pooled or rectified from,
        and the nodes on the way from there to x."""
        way: list[Node] = []
        start, needed = x, 0
        while (maker := producer(start)) is not None and not maker.domain:
            fires = rectifier(maker) is not None
            if len(maker.outputs) > 1 or not (
                fires or record(maker.op).layout or maker.op == "MaxPool"
            ):
                break
            way.append(maker)
            start = maker.inputs[rectified_input(maker) if fires else 0]
            needed = len(way) if fires or maker.op == "MaxPool" else needed
        # What only moves x stays where it is.
        for maker in way[needed:][::-1]:
            start = maker.outputs[0]
        return start, way[:needed][::-1]

    def spikes_on(self, node: Node, start: Tensor) -> bool:
        """Whether what is rounded may be sent as spikes: weights read it, and it does not come from an
        operator that has no spiking form, as a Softmax."""
        maker = producer(start)
        nature = None if maker is None or maker.domain else record(maker.op)
        analog = nature is not None and nature.linear == "never" and nature.pools is None
        return id(node) in self.read and not analog

    def average(self, tensor: Tensor) -> Node | None:
        """The average that a value is, moved at most."""
        maker = producer(tensor)
        while maker is not None and not maker.domain and record(maker.op).layout:
            maker = producer(maker.inputs[0])
        if maker is None or maker.domain:
            return None
        nature = record(maker.op)
        return maker if nature.pools == "average" or nature.amplitude == "reduce" else None

    def rectified(self, node: Node, start: Tensor, way: list[Node]) -> Tensor:
        """The start, rectified as it is on the way; by a rectifier with the name of the last one there,
        which others may read, too."""
        caps = [found.cap for one in way if (found := rectifier(one)) and found.cap is not None]
        bounds = [self.constant(node, one, start) for one in (0.0, min(caps))] if caps else []
        result = self.apply(node, "Clip" if caps else "Relu", [start, *bounds])
        named = [one for one in way if rectifier(one) is not None]
        if named:
            made = result.inputs[0]
            made.name, named[-1].name = named[-1].name, made.name
        return result

    def clip(self, node: Node, x: Tensor, low: Numbers, high: Numbers) -> Tensor:
        """A limit of what lies on a grid leaves it there."""
        place = self.on.get(id(x))
        if place is None or place.grid.scale.size > 1 or low.size > 1 or high.size > 1:
            return super().clip(node, x, low, high)
        least, most = (
            int(np.clip(np.rint(one / place.grid.scale), place.least, place.most).max())
            for one in (low, high)
        )
        return self.on_integers(node, x, place.grid, least, most)

    # --- writing ---

    def rounded(
        self,
        node: Node,
        x: Tensor,
        grid: Affine,
        low: int,
        high: int,
        kind: np.dtype[Any] | None = None,
    ) -> Tensor:
        """QuantizeLinear, a Clip where the range is narrower than that of the type, DequantizeLinear.

        With a type, low and high are integers of it; else they are n, and the zero point is 0 where a
        type holds them, or shifts them into one.
        """
        zero = grid.zero
        if kind is None:
            kind, shift = _type_for(low, high)
            zero, low, high = number(shift), low + shift, high + shift
        limits = np.iinfo(kind)
        axis = {}
        if grid.scale.size > 1:
            axis = {"axis": known_rank(x) - grid.scale.ndim}
            zero = np.broadcast_to(zero, grid.scale.shape)
        shape = (-1,) if axis else ()
        scales = self.values(node, grid.scale.reshape(shape), x.dtype or np.float32)
        zeros = self.values(node, zero.reshape(shape), kind)
        result = self.apply(node, "QuantizeLinear", [x, scales, zeros], **axis)
        if (low, high) != (limits.min, limits.max):
            bounds = [self.values(node, number(one), kind) for one in (low, high)]
            result = self.apply(node, "Clip", [result, *bounds])
        result = self.apply(node, "DequantizeLinear", [result, scales, zeros], **axis)
        least, most = self.span(x)
        if zero.size == 1:
            first, last = (int(one - zero.reshape(-1)[0]) for one in (low, high))
            self.on[id(result)] = _Place(Affine(grid.scale, number(0)), first, last)
            factors = grid.scale.min(), grid.scale.max()
            ends = [n * float(factor) for n in (first, last) for factor in factors]
            self.spans[id(result)] = max(least, min(ends)), min(most, max(ends))
        return result

    def values(self, node: Node, values: Numbers, kind: Any) -> Tensor:
        """A constant of exactly this shape: to some operators, [1] is no scalar."""
        return gs.Constant(unique_name(f"{node.name}/constant", self.taken), values.astype(kind))


def _narrowed(node: Node, low: int, high: int) -> tuple[int, int]:
    """The range of a QuantizeLinear, or that of a Clip if nothing else reads it."""
    reading = node.outputs[0].outputs
    if len(reading) != 1 or reading[0].op != "Clip" or reading[0].domain:
        return low, high
    least, most = clip_bounds(reading[0])
    if least is None or most is None:
        return low, high
    return int(max(low, least)), int(min(high, most))


def _type_for(low: int, high: int) -> tuple[np.dtype[Any], int]:
    """A type for integers from `low` to `high`, and what has to be added to them for it."""
    for kind in (np.uint8, np.int8, np.uint16, np.int16):
        limits = np.iinfo(kind)
        if limits.min <= low and high <= limits.max:
            return np.dtype(kind), 0
        if kind is np.int8 and high - low <= 255:
            return np.dtype(np.uint8), -low
    return np.dtype(np.uint16), -low
