"""Collapse a layered network in whole numbers: its spikes become counts, and time goes.

In layered time a neuron has received its whole window before it fires, and one number tells what it
sends: n = Σ w_t·s_t.  A convolution is linear, so Σ w_t·conv(s_t) = conv(n).  So what flows into a
neuron, and the neuron, becomes one `Count...` node without a time axis; between such layers the counts
are bytes, channels last.  What wants the spikes as they were, such as a layer that stays, gets them
back.

What is proved of a layer, else it stays as it is, with the reason: its weights, charges and thresholds
are whole numbers, weights of 8 bits; no sum in it, in any order, reaches 2^24, up to which float32
holds every whole number; its counts are bytes.  Then the spiking file computes in float32 what the
collapsed one computes in whole numbers, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from snncompiler.ir import dialect
from snncompiler.ir.graph import unique_name
from snncompiler.ir.symbolic import Shape, Shapes, attributes_of
from snncompiler.passes.lower.collapse_levels import collapse_levels, padded, sliced
from snncompiler.passes.lower.compact import expanded
from snncompiler.passes.lower.events.body import TO_FIRST, TO_LAST, Stays
from snncompiler.passes.lower.lower_events import LayerNote, Lowered

Floats = NDArray[np.float64]

NEURON = "LayeredRMPNeuron"
#: Sums of a window.
_SUMS = ("TimeSum", "WeightedTimeSum")
#: float32 holds every whole number below this.
EXACT = 1 << 24
#: The largest count, weight and coefficient.
MOST, WEIGHT, COEFFICIENT = 255, 127, (1 << 15) - 1
#: The byte that stands for zero, where an input has a sign.
ORIGIN = 128


def has_layers(model: onnx.ModelProto) -> bool:
    """Whether a model has neurons of layered time, outside of any loop."""
    return any(_is_neuron(node) for node in model.graph.node)


def collapse_time(model: onnx.ModelProto, *, levels: bool = False) -> Lowered:
    """A copy of a layered network whose layers compute with counts, and what became of each layer.

    Where no layer is in whole numbers of 8 bits, all of them may be collapsed to levels
    (passes/lower/collapse_levels.py); with `levels` that is tried first.  A model in which nothing can
    be collapsed comes back as it is.  Raises nothing: the file may be anyone's, and whatever cannot be
    read stays, with the reason.
    """
    try:
        plain = expanded(model)
        if levels and (levelled := collapse_levels(plain)).changed:
            return levelled
        lowered = _Collapse(plain).run()
        return lowered if lowered.changed else collapse_levels(plain)
    except Exception as error:
        why = f"the file cannot be read as ours ({type(error).__name__}: {error})"
        names = [node.name for node in model.graph.node if _is_neuron(node)]
        return Lowered(model, [LayerNote(name, "", why) for name in names])


def _is_neuron(node: onnx.NodeProto) -> bool:
    return node.domain == dialect.DOMAIN and node.op_type == NEURON


@dataclass(frozen=True)
class _Code:
    """How the counts of a neuron are told by its spikes: `levels` names the tensor that holds L, `now`
    is its value, or its default where a run may override it; `steps` names T."""

    radix: bool
    levels: str
    now: int
    steps: str
    overridable: bool


@dataclass(frozen=True)
class _Counts:
    """Spikes over a window, `[T·N, C, H, W]`, `[T·N, C, W]` or `[T·N, C]`, as bytes `[N, H, W, C]`.

    `code` is None for an input that is no spikes: of at most `times` in size.  Else the largest byte
    is `times`·L.  `rank` is that of the spikes; where `flat` they are `[T·N, C·H·W]`.  `origin` is the
    byte that stands for zero.
    """

    bytes: str
    size: Shape  # H, W, C
    rank: int
    code: _Code | None
    times: int = 1
    flat: bool = False
    origin: int = 0

    @property
    def channels(self) -> int:
        if not isinstance(self.size[2], int):
            raise Stays("its channels are not a number")
        return self.size[2]

    def places(self) -> list[int]:
        """H, W, C as numbers."""
        known = [dim for dim in self.size if isinstance(dim, int)]
        if len(known) < 3:
            raise Stays("the size of its maps is not a number")
        return known


@dataclass(frozen=True)
class _Term:
    """What flows into a neuron: a convolution of counts, or, without `weights`, the counts themselves
    times `coefficient`, [M]."""

    counts: _Counts
    weights: Floats | None = None  # [KH, KW, C/group, M]
    window: dict[str, Any] = field(default_factory=dict)
    coefficient: Floats | None = None

    def scaled(self, factor: Floats | float) -> _Term:
        if self.weights is not None:
            return replace(self, weights=self.weights * factor)
        assert self.coefficient is not None
        return replace(self, coefficient=self.coefficient * factor)

    def charge(self) -> Floats:
        """What counts are multiplied by."""
        charge = self.weights if self.weights is not None else self.coefficient
        assert charge is not None
        return charge

    def is_whole(self, most: int) -> bool:
        """Whether it consists of whole numbers of at most this size."""
        return _whole(self.charge()) and bool(np.abs(self.charge()).max(initial=0) <= most)

    def reach(self) -> tuple[Floats, Floats]:
        """The largest sums of what is positive and of what is negative, for one level: [M] each."""
        charge = self.charge()
        rows = charge.reshape(-1, charge.shape[-1])
        above, below = np.maximum(rows, 0).sum(0), np.maximum(-rows, 0).sum(0)
        if self.counts.origin:  # counts of both signs
            above = below = above + below
        return above * self.counts.times, below * self.counts.times


@dataclass(frozen=True)
class _Grid:
    """What sums become before they are a current: round(min(max(factor·sum, lowest), highest))."""

    factor: Floats  # [M], of float32
    lowest: Floats  # [M]
    highest: Floats


@dataclass(frozen=True)
class _Current:
    """What flows into a neuron over a window: terms, and what comes once, [M]; on another grid than the
    neurons' where there is a `grid`."""

    terms: tuple[_Term, ...]
    once: Floats | float = 0.0
    grid: _Grid | None = None


class _Collapse:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.source = model
        self.graph = model.graph
        self.shapes = Shapes(model)
        given = {entry.name for entry in self.graph.input}
        # An initializer that is an input, too, is a default that a run may override.
        self.constants = {t.name: t for t in self.graph.initializer if t.name not in given}
        self.defaults = {t.name: t for t in self.graph.initializer}
        self.maker = {name: node for node in self.graph.node for name in node.output}
        self.taken = {
            *given,
            *self.defaults,
            *self.maker,
            *(node.name for node in self.graph.node),
        }
        self.nodes: list[onnx.NodeProto] = []
        self.made: list[onnx.TensorProto] = []
        #: Names of tensors of the file -> what they are as counts.
        self.found: dict[str, _Counts] = {}
        #: Names of rounded inputs -> these as bytes.
        self.inputs: dict[str, _Counts] = {}
        #: Names of averages times their places -> the sums.
        self.sums: dict[str, _Counts] = {}
        self.notes: list[LayerNote] = []

    def run(self) -> Lowered:
        if any(tensor.data_type == TensorProto.FLOAT16 for tensor in self.defaults.values()):
            why = "it computes in float16"
            names = [node.name for node in self.graph.node if _is_neuron(node)]
            return Lowered(self.source, [LayerNote(name, "", why) for name in names])
        for node in self.graph.node:
            if _is_neuron(node):
                mark = (len(self.nodes), len(self.made))
                known = (dict(self.found), dict(self.inputs), dict(self.sums))
                try:
                    self.notes.append(LayerNote(node.name, self._neuron(node)))
                    continue
                except (Stays, ValueError, KeyError, IndexError) as why:
                    del self.nodes[mark[0] :], self.made[mark[1] :]
                    self.found, self.inputs, self.sums = known
                    self.notes.append(LayerNote(node.name, "", str(why)))
            elif node.domain == dialect.DOMAIN and node.op_type in _SUMS:
                try:
                    self._sum(node)
                    continue
                except Stays:
                    pass  # it takes the spikes as they were
            self.nodes.append(node)
        if not any(note.operator for note in self.notes):
            return Lowered(self.source, self.notes)
        return Lowered(self._written(), self.notes)

    def _written(self) -> onnx.ModelProto:
        """The collapsed model, without what nothing reads any more."""
        model = onnx.ModelProto()
        model.CopyFrom(self.source)
        wanted = {entry.name for entry in self.graph.output}
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.nodes):
            if wanted.intersection(node.output):
                wanted.update(_read_by(node))
                kept.append(node)
        graph = model.graph
        del graph.node[:], graph.value_info[:]
        graph.node.extend(reversed(kept))
        given = {entry.name for entry in graph.input}
        tensors = [
            tensor
            for tensor in (*self.graph.initializer, *self.made)
            if tensor.name in wanted or tensor.name in given
        ]
        del graph.initializer[:]
        graph.initializer.extend(tensors)
        opset = next(entry.version for entry in model.opset_import if not entry.domain)
        used = {node.op_type for node in graph.node if node.domain == dialect.DOMAIN}
        others = [entry for entry in model.functions if entry.domain != dialect.DOMAIN]
        del model.functions[:]
        model.functions.extend([*others, *dialect.functions(used, opset)])
        return model

    # --- names and constants ---

    def _constant(self, wanted: str, values: NDArray[Any]) -> str:
        name = unique_name(wanted, self.taken)
        self.made.append(numpy_helper.from_array(np.array(values, order="C"), name))
        return name

    def _emit(self, op: str, inputs: Sequence[str], wanted: str, **more: Any) -> str:
        name = unique_name(wanted, self.taken)
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **more))
        return name

    def _give(self, op: str, inputs: Sequence[str], output: str) -> None:
        """A tensor of the file, from another operator."""
        name = unique_name(f"{output}/{op}", self.taken)
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=name))

    def _value(self, name: str) -> Floats:
        maker = self.maker.get(name)
        if maker is not None and not maker.domain and maker.op_type == "Cast":
            return self._value(maker.input[0])  # whole numbers that are stored as such
        if name not in self.constants:
            raise Stays(f"`{name}` is not constant")
        return numpy_helper.to_array(self.constants[name]).astype(np.float64)

    def _shape(self, name: str) -> Shape:
        shape = self.shapes.of(name)
        if shape is None:
            raise Stays(f"the shape of `{name}` is not known")
        return shape

    def _per_channel(self, name: str, rank: int, channels: int) -> Floats:
        """A constant that broadcasts over `[N, C, ...]`, with one number for each channel: [C]."""
        array = self._value(name)
        spread = (1,) * (rank - array.ndim) + array.shape
        if len(spread) != rank or any(n != 1 for axis, n in enumerate(spread) if axis != 1):
            raise Stays(f"`{name}` is not the same at every place")
        return np.broadcast_to(array.reshape(-1), (channels,)).copy()

    # --- neurons ---

    def _neuron(self, node: onnx.NodeProto) -> str:
        """Replace a neuron and what flows into it; the name of the operator."""
        attributes = attributes_of(node)
        current, threshold, membrane, steps = node.input
        code = self._code(steps, bool(attributes.get("radix", 0)))
        shape = self._shape(node.output[0])
        if not 2 <= len(shape) <= 4 or not isinstance(shape[1], int):
            raise Stays("its neurons are not `[N, channels]` or maps of these")
        channels, rank = shape[1], len(shape)
        theta = self._per_channel(threshold, rank, channels)
        start = self._per_channel(membrane, rank, channels)
        if not _whole(theta) or theta.min() < 1:
            raise Stays("its thresholds are not whole numbers")
        if not attributes.get("static_current", 0):
            found = self._flowing(current)
            return self._layer(node, found, theta, start, code, shape, ())
        name, pools = self._behind_pools(current)
        whole = self._complete(name)
        if whole is not None:
            return self._layer(node, whole, theta, start, code, self._shape(name), pools)
        rounded = self._on_grid(name)
        if rounded is not None:
            with suppress(Stays):  # or the current is as it was
                return self._layer(node, rounded, theta, start, code, self._shape(name), pools)
        # The current is a real number, or one whole number of many: it is as it was.
        if code.now > _most_levels(theta):
            raise Stays("its thresholds are too large for float32")
        top = min(MOST, _most_levels(theta)) if code.overridable else code.now
        axes = {2: [2, 3], 3: [2], 4: []}[rank]
        planes = current
        if axes:
            where = self._constant(f"{node.name}/axes", np.array(axes, np.int64))
            planes = self._emit("Unsqueeze", [current, where], f"{node.name}/planes")
        counts = self._emit(
            "CountNeuron",
            [
                planes,
                self._constant(f"{node.name}/start", start.astype(np.float32)),
                self._constant(f"{node.name}/charge", theta.astype(np.float32)),
                code.levels,
            ],
            f"{node.name}/counts",
            domain=dialect.DOMAIN,
            top=top,
        )
        self._fired(node, _Counts(counts, _places(shape), rank, code))
        return "CountNeuron"

    def _behind_pools(self, name: str) -> tuple[str, list[onnx.NodeProto]]:
        """What is pooled, and its max poolings, the last one first."""
        pools: list[onnx.NodeProto] = []
        while (maker := self.maker.get(name)) is not None and maker.op_type == "MaxPool":
            pools.append(maker)
            name = maker.input[0]
        return name, pools

    def _code(self, steps: str, radix: bool) -> _Code:
        number = self.shapes.number(steps)
        held = self.constants.get(steps)
        if held is not None:
            number = int(numpy_helper.to_array(held).reshape(-1)[0])
        maker = self.maker.get(steps)
        if not isinstance(number, int) and maker is not None and maker.op_type == "TimeSteps":
            total = self.defaults.get(maker.input[2])
            if total is not None:
                number = int(numpy_helper.to_array(total).reshape(-1)[0])
        if not isinstance(number, int) or number < 1 or self._shape(steps) != ():
            raise Stays("the number of time-steps is not known")
        overridable = held is None
        if radix and overridable:
            raise Stays("the number of time-steps may change")
        now = (1 << number) - 1 if radix else number
        if now > MOST:
            raise Stays(f"counts up to {now} are no bytes")
        levels = steps
        if radix:
            levels = self._constant(f"{steps}/levels", np.array(now, np.int64))
        return _Code(radix, levels, now, steps, overridable)

    def _layer(
        self,
        node: onnx.NodeProto,
        current: _Current,
        theta: Floats,
        start: Floats,
        code: _Code,
        shape: Shape,
        pools: Sequence[onnx.NodeProto],
    ) -> str:
        """One operator for a neuron and its current, of this shape, and the poolings behind it.

        A neuron is monotone, and here it is the same at every place, so it may stand before a pooling.
        """
        begin = start + current.once
        if not _whole(2 * begin):
            raise Stays("its potential at the start is not whole")
        grid = current.grid
        if grid is not None:
            self._check_grid(grid, start, theta, code)
            begin = np.zeros_like(start) + current.once
            if not _whole(begin):
                raise Stays("its bias is not whole")
        terms = sorted(current.terms, key=lambda term: term.weights is None)
        for term in terms:
            given = term.counts.code
            if given is not None and not _same_window(given, code):
                raise Stays("it receives spikes of another window")
        convolved = [term for term in terms if term.weights is not None]
        residuals = [term for term in terms if term.weights is None]
        if not convolved and residuals:
            # One of the residuals is a convolution of one place for each channel.
            first = min(residuals, key=lambda term: float(np.abs(term.charge()).max()))
            residuals = [term for term in residuals if term is not first]
            convolved = [_as_depthwise(first)]
        if len(convolved) + len(residuals) > 2 or not convolved:
            raise Stays(f"{len(terms)} currents flow into it")
        if len(convolved) == 2 and any(term.window["group"] > 1 for term in convolved):
            raise Stays("two convolutions, one of them in groups, flow into it")
        if len(convolved) == 2 and convolved[0].counts.origin < convolved[1].counts.origin:
            convolved.reverse()
        if any(term.counts.origin for term in (*convolved[1:], *residuals)):
            raise Stays("two currents of the input flow into it")
        for term in convolved:
            if not term.is_whole(WEIGHT):
                raise Stays("its weights are not whole numbers of 8 bits")
        for term in residuals:
            if not term.is_whole(COEFFICIENT):
                raise Stays("its residual's charge is not a whole number of 16 bits")
        top = self._top(terms, begin, code)

        if grid is not None:
            top = min(top, _most_levels(theta)) if code.overridable else top
        inputs, attributes = [], {"top": top, "origin": convolved[0].counts.origin}
        for term, prefix in zip(convolved, ("", "more_"), strict=False):
            assert term.weights is not None
            weights = self._constant(f"{node.name}/{prefix}weights", term.weights.astype(np.int8))
            inputs += [term.counts.bytes, weights]
            attributes |= {
                f"{prefix}{key}": value
                for key, value in term.window.items()
                if not prefix or key != "group"
            }
            attributes[f"{prefix}levels_in"] = _largest(term.counts)
        for term in residuals:
            assert term.coefficient is not None
            if term.counts.flat or term.counts.size != _places(shape):
                raise Stays("its residual has another shape")
            charge = self._constant(f"{node.name}/coefficient", term.coefficient.astype(np.int32))
            inputs += [term.counts.bytes, charge]
        if grid is not None:
            attributes["lowest"] = int(grid.lowest.min())
            attributes["highest"] = int(grid.highest.max())
            factor = self._constant(f"{node.name}/factor", grid.factor.astype(np.float32))
            inputs += [self._constant(f"{node.name}/bias", begin.astype(np.int32)), factor]
            begin = start
        inputs += [
            # Sums are whole, so no half changes on which side of a threshold they are.
            self._constant(f"{node.name}/start", np.floor(begin).astype(np.int32)),
            self._constant(f"{node.name}/charge", theta.astype(np.int32)),
            code.levels,
        ]
        op = "CountConvAdd" if residuals else "CountConvPair" if len(convolved) > 1 else "CountConv"
        op = "CountConvScaled" if grid is not None else op
        made = self._emit(op, inputs, f"{node.name}/counts", domain=dialect.DOMAIN, **attributes)
        counts = _Counts(made, _places(shape), len(shape), code)
        for pool in reversed(pools):
            counts = self._pooled(counts, pool, self._shape(pool.output[0]))
        self._fired(node, counts)
        return op

    def _check_grid(self, grid: _Grid, start: Floats, theta: Floats, code: _Code) -> None:
        """Stays where the potentials of neurons on a grid of their own may not be exact."""
        if max(-grid.lowest.min(), grid.highest.max(), np.abs(start).max()) > EXACT / 2:
            raise Stays("its currents may exceed 2^23")
        if np.ptp(grid.lowest) or np.ptp(grid.highest):
            # One bound for all channels does, where nothing lies between theirs and it.
            none, most = grid.lowest + start < theta, grid.highest + start >= code.now * theta
            if code.overridable or not (np.all(none) and np.all(most)):
                raise Stays("its currents have bounds that differ")
        if code.now > _most_levels(theta):
            raise Stays("its thresholds are too large for float32")

    def _top(self, terms: Sequence[_Term], begin: Floats, code: _Code) -> int:
        """The most levels for which every sum, in any order, is exact in float32."""
        slope = np.zeros((2, len(begin)))
        fixed = np.zeros((2, len(begin)))
        times = 1
        for term in terms:
            if term.counts.code is None:
                fixed = fixed + np.stack(term.reach())
            else:
                slope = slope + np.stack(term.reach())
                times = max(times, term.counts.times)
        # Halves need one bit more.
        room = (EXACT / 2 if not _whole(begin) else EXACT) - 1 - np.abs(begin) - fixed
        with np.errstate(divide="ignore"):
            most = np.where(room < 0, 0, np.where(slope > 0, room / slope, MOST))
        top = int(min(most.min(), MOST // times))
        if top < code.now:
            raise Stays("its sums may exceed 2^24")
        return top if code.overridable else code.now

    def _fired(self, node: onnx.NodeProto, counts: _Counts) -> None:
        """Say what a neuron sends, and give its spikes to those that want them as they were."""
        self.found[node.output[0]] = counts
        code = counts.code
        assert code is not None
        planes = self._floats(counts, node.name)
        ahead = self._constant(f"{node.name}/first_axis", np.array([0], np.int64))
        every = self._emit("Unsqueeze", [planes, ahead], f"{node.name}/every_step")
        axes = [1] * counts.rank
        if code.radix:
            steps = int(np.log2(code.now + 1))
            worth = np.exp2(np.arange(steps - 1, -1, -1)).astype(np.float32)
            column = self._constant(f"{node.name}/worth", worth.reshape(-1, *axes))
            twice = self._constant(f"{node.name}/twice", 2 * worth.reshape(-1, *axes))
            two = self._constant(f"{node.name}/two", np.array(2, np.float32))
            parts = self._emit("Div", [every, column], f"{node.name}/parts")
            whole = self._emit("Floor", [parts], f"{node.name}/whole")
            halves = self._emit("Div", [every, twice], f"{node.name}/halves")
            low = self._emit("Floor", [halves], f"{node.name}/low")
            even = self._emit("Mul", [low, two], f"{node.name}/even")
            by_step = self._emit("Sub", [whole, even], f"{node.name}/by_step")
        else:
            none = self._constant(f"{node.name}/none", np.array(0, np.int64))
            one = self._constant(f"{node.name}/one", np.array(1, np.int64))
            row = self._emit("Range", [none, code.steps, one], f"{node.name}/row")
            wide = self._emit("Cast", [row], f"{node.name}/wide", to=TensorProto.FLOAT)
            column_shape = self._constant(f"{node.name}/column_shape", np.array([-1, *axes]))
            column = self._emit("Reshape", [wide, column_shape], f"{node.name}/column")
            fires = self._emit("Greater", [every, column], f"{node.name}/fires")
            by_step = self._emit("Cast", [fires], f"{node.name}/by_step", to=TensorProto.FLOAT)
        rest = self._emit("Shape", [planes], f"{node.name}/rest", start=1)
        lead = self._constant(f"{node.name}/lead", np.array([-1], np.int64))
        target = self._emit("Concat", [lead, rest], f"{node.name}/folded", axis=0)
        self._give("Reshape", [by_step, target], node.output[0])

    def _floats(self, counts: _Counts, name: str) -> str:
        """Counts as the spikes were, without time: `[N, C, ...]` of float32."""
        wide = self._emit("Cast", [counts.bytes], f"{name}/values", to=TensorProto.FLOAT)
        planes = self._emit("Transpose", [wide], f"{name}/channels_first", perm=TO_FIRST)
        if counts.flat or counts.rank == 2:
            return self._emit("Flatten", [planes], f"{name}/flat", axis=1)
        if counts.rank == 3:
            axis = self._constant(f"{name}/row_axis", np.array([2], np.int64))
            return self._emit("Squeeze", [planes, axis], f"{name}/row")
        return planes

    # --- sums of windows ---

    def _sum(self, node: onnx.NodeProto) -> None:
        """A (Weighted)TimeSum of spikes: their counts."""
        counts = self._counts(node.input[0])
        if counts.code is None or not self._weighs(node, counts.code):
            raise Stays("it does not add up a window")
        total = node.input[len(node.input) - 2]
        before = self._value(total)
        if not _whole(before) or np.abs(before).max(initial=0) >= EXACT - 256 * MOST:
            raise Stays("what it begins with is not a whole number")
        values = self._floats(counts, node.output[0])
        self._give("Add", [total, values], node.output[0])

    def _weighs(self, node: onnx.NodeProto, code: _Code) -> bool:
        """Whether a sum weighs every step as the neurons do."""
        if node.input[-1] != code.steps:
            return False
        if node.op_type == "TimeSum":
            return not code.radix
        weights = self.constants.get(node.input[1])
        if weights is None:
            return False
        given = numpy_helper.to_array(weights).reshape(-1)
        if not code.radix:
            return False
        return np.array_equal(given, np.exp2(np.arange(len(given) - 1, -1, -1)))

    # --- what flows into neurons ---

    def _flowing(self, name: str) -> _Current:
        """The terms of a current `[T·N, ...]`."""
        node = self.maker.get(name)
        if node is not None and not node.domain and name not in self.found:
            if node.op_type == "Identity":
                return self._flowing(node.input[0])
            if node.op_type in ("Add", "Sub"):
                self._same_shapes(name, node.input)
                left, right = (self._flowing(part) for part in node.input)
                sign = -1.0 if node.op_type == "Sub" else 1.0
                return _Current((*left.terms, *(term.scaled(sign) for term in right.terms)))
            if node.op_type == "Neg":
                return self._scaled(node.input[0], -1.0)
            if node.op_type == "Mul":
                place = 0 if node.input[0] in self.constants else 1
                shape = self._same_shapes(name, [node.input[1 - place]])
                if not isinstance(shape[1], int):
                    raise Stays(f"the shape of `{name}` is not known")
                factor = self._per_channel(node.input[place], len(shape), shape[1])
                return self._scaled(node.input[1 - place], factor)
            if node.op_type in ("Conv", "Gemm", "MatMul"):
                if len(node.input) > 2 and node.input[2]:
                    raise Stays(f"{node.op_type} `{node.name}` has a bias at every step")
                return _Current((self._weighed(node, self._counts(node.input[0])),))
        counts = self._counts(name)
        if counts.flat:
            raise Stays("flat spikes flow into it")
        return _Current((_Term(counts, coefficient=np.ones(counts.channels)),))

    def _same_shapes(self, name: str, parts: Sequence[str]) -> Shape:
        """The shape of a tensor; stays where one that it is made of spreads over it."""
        shape = self._shape(name)
        if any(self._shape(part) != shape for part in parts):
            raise Stays(f"what `{name}` is made of has different shapes")
        return shape

    def _scaled(self, name: str, factor: Floats | float) -> _Current:
        return _Current(tuple(term.scaled(factor) for term in self._flowing(name).terms))

    def _complete(self, name: str) -> _Current | None:
        """The terms of a complete current `[N, ...]`; None where it is no whole numbers of 8 bits."""
        node = self.maker.get(name)
        if node is None:
            return None
        if node.domain == dialect.DOMAIN and node.op_type in _SUMS:
            flowing = self._flowing(node.input[0])
            codes = [term.counts.code for term in flowing.terms]
            if not all(code is not None and self._weighs(node, code) for code in codes):
                return None
            shape = self._shape(name)
            if not isinstance(shape[1], int):
                return None
            once = self._per_channel(node.input[len(node.input) - 2], len(shape), shape[1])
            return replace(flowing, once=flowing.once + once)
        if node.domain or node.op_type not in ("Conv", "Gemm", "MatMul"):
            return None
        counts = self._input(node.input[0]) or self._complete_counts(node.input[0])
        if counts is None:
            return None
        term = self._weighed(node, counts)
        if not term.is_whole(WEIGHT):
            return None
        if len(node.input) < 3 or not node.input[2]:
            return _Current((term,))
        if attributes_of(node).get("beta", 1.0) != 1.0:
            return None
        once = self._value(node.input[2]).reshape(-1)
        return _Current((term,), once) if once.size == term.charge().shape[-1] else None

    def _on_grid(self, name: str) -> _Current | None:
        """The terms of a complete current that is rounded to the neurons' grid, as that of the first
        layer is: Round(Min(Max(Mul(sums, factor), lowest), highest)); None where it is not."""
        clipped = self._clipped(name)
        if clipped is None:
            return None
        at, lowest, highest = clipped
        scaled = self._factor(at)
        if scaled is None:
            return None
        at, factor = scaled
        sums = self.maker.get(at)
        if sums is not None and not sums.domain and sums.op_type == "Round":
            at = sums.input[0]  # of whole numbers
        whole = self._complete(at)
        if whole is None or len(whole.terms) > 1 or whole.terms[0].weights is None:
            return None
        return replace(whole, grid=_Grid(factor, lowest, highest))

    def _clipped(self, name: str) -> tuple[str, Floats, Floats] | None:
        """Of Round(Min(Max(x, lowest), highest)): x and the bounds, [C], which are whole; else None."""
        shape = self._shape(name)
        if len(shape) < 2 or not isinstance(shape[1], int):
            return None
        bounds: list[Floats] = []
        for op in ("Round", "Min", "Max"):
            node = self.maker.get(name)
            if node is None or node.domain or node.op_type != op:
                return None
            if op != "Round":
                if len(node.input) != 2:
                    return None
                try:
                    bounds.append(self._per_channel(node.input[1], len(shape), shape[1]))
                except Stays:
                    return None
            name = node.input[0]
        highest, lowest = bounds
        return (name, lowest, highest) if _whole(lowest) and _whole(highest) else None

    def _factor(self, name: str) -> tuple[str, Floats] | None:
        """Of Mul(x, factor), one number for each channel: x and these; else None."""
        node = self.maker.get(name)
        if node is None or node.domain or node.op_type != "Mul":
            return None
        shape = self._shape(name)
        for place in (0, 1):
            other = node.input[1 - place]
            if node.input[place] in self.constants and self._shape(other) == shape:
                if not isinstance(shape[1], int):
                    return None
                try:
                    return other, self._per_channel(node.input[place], len(shape), shape[1])
                except Stays:
                    return None
        return None

    def _complete_counts(self, name: str) -> _Counts | None:
        """Complete sums of spikes `[N, ...]` as bytes: the windows of Round(Σ w_t·(places·average_t))
        are those of the average of counts; None where it is something else."""
        node = self.maker.get(name)
        if node is None or node.domain:
            return None
        if node.op_type in ("Flatten", "Reshape"):
            counts = self._complete_counts(node.input[0])
            return None if counts is None else self._flat(node, counts, self._shape(name))
        if node.op_type != "Round":
            return None
        total = self.maker.get(node.input[0])
        if total is None or total.domain != dialect.DOMAIN or total.op_type not in _SUMS:
            return None
        before = self.constants.get(total.input[len(total.input) - 2])
        if before is None or np.any(numpy_helper.to_array(before)):
            return None
        try:
            counts = self._averaged(total.input[0], self._shape(name))
        except Stays:
            return None
        return counts if counts.code is not None and self._weighs(total, counts.code) else None

    def _input(self, name: str) -> _Counts | None:
        """A rounded input of the network, with a sign, as bytes; None where it has more than 8 bits."""
        if name in self.inputs:
            return self.inputs[name]
        clipped = self._clipped(name)
        shape = self._shape(name)
        if clipped is None or len(shape) != 4 or not isinstance(shape[1], int):
            return None
        at, lowest, highest = clipped
        if np.ptp(lowest) or np.ptp(highest) or not -ORIGIN < lowest[0] <= highest[0] < ORIGIN:
            return None
        at, factor = self._factor(at) or (at, np.ones(shape[1]))
        made = self._emit(
            "CountInput",
            [at, self._constant(f"{name}/factor", factor.astype(np.float32))],
            f"{name}/counts",
            domain=dialect.DOMAIN,
            lowest=int(lowest[0]),
            highest=int(highest[0]),
            origin=ORIGIN,
        )
        most = int(max(-lowest[0], highest[0]))
        self.inputs[name] = _Counts(made, _places(shape), 4, None, most, origin=ORIGIN)
        return self.inputs[name]

    def _weighed(self, node: onnx.NodeProto, counts: _Counts) -> _Term:
        """A layer of weights over counts."""
        attributes = attributes_of(node)
        weights = self._value(node.input[1])
        whole = {"group": 1, "strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1]}
        if node.op_type in ("Gemm", "MatMul"):
            if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1.0:
                raise Stays(f"Gemm `{node.name}` has another form")
            if attributes.get("transB", 0):
                weights = weights.T
            height, width, channels = counts.places()
            if weights.ndim != 2 or not (counts.flat or counts.rank == 2):
                raise Stays(f"{node.op_type} `{node.name}` reads maps")
            # A flat map is seen by one window, whose channels come last now.
            planes = weights.reshape(channels, height, width, -1)
            return _Term(counts, planes.transpose(1, 2, 0, 3), whole)
        if counts.flat or weights.ndim != counts.rank or weights.ndim not in (3, 4):
            raise Stays(f"Conv `{node.name}` has not one or two axes")
        if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID", "NOTSET", "VALID"):
            raise Stays(f"Conv `{node.name}` pads by itself")
        axes = weights.ndim - 2
        pads = list(attributes.get("pads", [0] * 2 * axes))
        strides = list(attributes.get("strides", [1] * axes))
        dilations = list(attributes.get("dilations", [1] * axes))
        if axes == 1:
            weights = weights[:, :, None, :]
            pads, strides, dilations = [0, pads[0], 0, pads[1]], [1, *strides], [1, *dilations]
        window = {
            "group": int(attributes.get("group", 1)),
            "strides": strides,
            "pads": pads,
            "dilations": dilations,
        }
        return _Term(counts, weights.transpose(2, 3, 1, 0), window)

    # --- spikes that are chosen, moved or added ---

    def _counts(self, name: str) -> _Counts:
        """What spikes are as counts."""
        if name in self.found:
            return self.found[name]
        node = self.maker.get(name)
        if node is None:
            raise Stays(f"`{name}` is no spikes")
        if _is_neuron(node):
            raise Stays(f"`{node.name}` before it stays")
        if node.domain:
            raise Stays(f"{node.op_type} `{node.name}` has no form by counts")
        shape = self._shape(name)
        found: _Counts
        if node.op_type == "Identity":
            found = self._counts(node.input[0])
        elif node.op_type == "MaxPool":
            counts = self._counts(node.input[0])
            if counts.code is None or counts.code.radix or counts.times != 1:
                raise Stays(f"MaxPool `{node.name}` does not pool spikes of rate coding")
            found = self._pooled(counts, node, shape)
        elif node.op_type == "Concat":
            found = self._joined(node, shape)
        elif node.op_type in ("Flatten", "Reshape"):
            found = self._flattened(node, shape)
        elif node.op_type == "Round":
            found = self._added(node, shape)
        elif node.op_type in ("Slice", "Pad"):
            found = self._cut(node, shape)
        else:
            raise Stays(f"{node.op_type} `{node.name}` has no form by counts")
        self.found[name] = found
        return found

    def _pooled(self, counts: _Counts, pool: onnx.NodeProto, shape: Shape) -> _Counts:
        attributes = attributes_of(pool)
        if counts.flat or counts.rank != 4 or len(pool.output) > 1:
            raise Stays(f"{pool.op_type} `{pool.name}` does not pool maps")
        window = _pool_window(pool, attributes)
        made = self._emit(
            "CountMaxPool",
            [counts.bytes],
            f"{pool.name}/counts",
            domain=dialect.DOMAIN,
            **window,
        )
        return replace(counts, bytes=made, size=_places(shape))

    def _joined(self, node: onnx.NodeProto, shape: Shape) -> _Counts:
        parts = [self._counts(name) for name in node.input]
        if attributes_of(node)["axis"] % len(shape) != 1:
            raise Stays(f"Concat `{node.name}` does not put channels together")
        first = parts[0]
        for part in parts:
            same = _same_window(part.code, first.code) and part.times == first.times
            if part.flat or not same:
                raise Stays(f"Concat `{node.name}` puts different spikes together")
        made = self._emit("Concat", [part.bytes for part in parts], f"{node.name}/counts", axis=3)
        return replace(first, bytes=made, size=_places(shape))

    def _cut(self, node: onnx.NodeProto, shape: Shape) -> _Counts:
        """Maps of which some places and channels are taken, or to which those without spikes are added,
        as in a shortcut without weights."""
        counts = self._counts(node.input[0])
        if counts.flat or counts.rank != 4 or len(shape) != 4:
            raise Stays(f"{node.op_type} `{node.name}` does not cut maps")
        if node.op_type == "Slice":
            starts, ends, axes, steps = sliced(node, self._value, 4)
            if 0 in axes:
                raise Stays(f"Slice `{node.name}` cuts time")
            last = [TO_FIRST[axis] for axis in axes]
            parts = [np.array(values, np.int64) for values in (starts, ends, last, steps)]
        else:
            pads = padded(node, self._value, 4)
            if pads is None or pads[0] or pads[4]:
                raise Stays(f"Pad `{node.name}` adds more than places without spikes")
            moved = [pads[end + axis] for end in (0, 4) for axis in TO_LAST]
            parts = [np.array(moved, np.int64), np.array(counts.origin, np.uint8)]
        inputs = [self._constant(f"{node.name}/{i}", part) for i, part in enumerate(parts)]
        made = self._emit(node.op_type, [counts.bytes, *inputs], f"{node.name}/counts")
        return replace(counts, bytes=made, size=_places(shape))

    def _flattened(self, node: onnx.NodeProto, shape: Shape) -> _Counts:
        return self._flat(node, self._counts(node.input[0]), shape)

    def _flat(self, node: onnx.NodeProto, counts: _Counts, shape: Shape) -> _Counts:
        if len(shape) != 2 or shape[1] != np.prod(counts.places()):
            raise Stays(f"{node.op_type} `{node.name}` does more than to flatten")
        return counts if counts.rank == 2 else replace(counts, flat=True)

    def _added(self, node: onnx.NodeProto, shape: Shape) -> _Counts:
        """Round(places · average): the sum of the spikes at these places."""
        return self._averaged(node.input[0], shape)

    def _averaged(self, name: str, shape: Shape) -> _Counts:
        """places · average, of this shape, as sums of bytes."""
        if name in self.sums:
            return self.sums[name]
        factor = self.maker.get(name)
        pool = self.maker.get(factor.input[0]) if factor is not None else None
        if (
            factor is None
            or pool is None
            or (factor.op_type, pool.op_type) != ("Mul", "AveragePool")
        ):
            raise Stays(f"`{name}` has no form by counts")
        counts = self._counts(pool.input[0])
        attributes = attributes_of(pool)
        window = _pool_window(pool, attributes)
        places = int(np.prod(window["kernel_shape"]))
        padded = any(window["pads"]) and not attributes.get("count_include_pad", 0)
        if counts.rank != 4 or counts.flat or padded or counts.code is None:
            raise Stays(f"AveragePool `{pool.name}` has no form by counts")
        if float(self._value(factor.input[1]).reshape(-1)[0]) != places:
            raise Stays(f"AveragePool `{pool.name}` is not summed")
        if counts.times * places * counts.code.now > MOST:
            raise Stays(f"the sums of AveragePool `{pool.name}` are no bytes")
        if any(step != 1 for step in window["dilations"]):
            raise Stays(f"AveragePool `{pool.name}` is dilated")
        made = self._emit(
            "EventSumPool",
            [counts.bytes],
            f"{pool.name}/counts",
            domain=dialect.DOMAIN,
            **window,
        )
        times = counts.times * places
        self.sums[name] = replace(counts, bytes=made, size=_places(shape), times=times)
        return self.sums[name]


def _same_window(one: _Code | None, two: _Code | None) -> bool:
    """Whether two codes are of spikes of the same steps and worth."""
    if one is None or two is None:
        return False
    return (one.radix, one.steps) == (two.radix, two.steps)


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    """The names that a node and the graphs in it read."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _read_by(inner)


def _whole(values: Floats | None) -> bool:
    return values is not None and bool(np.all(values == np.rint(values)))


def _most_levels(theta: Floats) -> int:
    """The most levels for which a neuron's complete potentials, on its grid, are exact in float32."""
    return int(EXACT / theta.max() / 2) - 1


def _places(shape: Shape) -> Shape:
    """H, W, C of `[N, C, H, W]`, `[N, C, W]` or `[N, C]`."""
    return (*((1,) * (4 - len(shape))), *shape[2:], shape[1])


def _largest(counts: _Counts) -> int:
    """What `levels_in` says of counts."""
    if counts.code is None:
        return MOST
    if counts.code.overridable:
        return 0 if counts.times == 1 else MOST
    return min(MOST, counts.times * counts.code.now)


def _as_depthwise(term: _Term) -> _Term:
    """Counts with a coefficient as a convolution of one place for each channel."""
    assert term.coefficient is not None
    channels = len(term.coefficient)
    window = {"group": channels, "strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1]}
    return _Term(term.counts, term.coefficient.reshape(1, 1, 1, channels), window)


def _pool_window(pool: onnx.NodeProto, attributes: dict[str, Any]) -> dict[str, list[int]]:
    """The window of a pooling of two axes."""
    kernel = list(attributes["kernel_shape"])
    if len(kernel) != 2 or attributes.get("ceil_mode", 0):
        raise Stays(f"{pool.op_type} `{pool.name}` has not two axes, or rounds its size up")
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID", "NOTSET", "VALID"):
        raise Stays(f"{pool.op_type} `{pool.name}` pads by itself")
    return {
        "kernel_shape": kernel,
        "strides": list(attributes.get("strides", [1, 1])),
        "pads": list(attributes.get("pads", [0, 0, 0, 0])),
        "dilations": list(attributes.get("dilations", [1, 1])),
    }
