"""Bring all that flows into a neuron onto a grid: whole numbers of one scale for each channel.

A current of the network is n·s, with n whole and s the *scale* of its channel.  Weights, biases,
charges, the potential at the start and the threshold become whole numbers of s; θ = Q·s, with Q odd, so
that no potential comes to lie on half a threshold.  A sum of whole numbers is exact in float32 up to
2^24, so that neither its order nor the machine matters.  What a spike is worth for the next layer stays
the real number θ, which fold-amplitude has put into the next weights.

The pass looks at every node from which a neuron is reached, in the order of the graph, and says of its
output which of three kinds it is:

`Real`     a function of the network's input alone, element by element: any machine gives the same bits.
`Whole`    whole numbers whose unit is known: spikes, and what is chosen, moved or summed from them.
`Current`  what layers with weights give.  Every channel has a label, and channels that are added up, or
           are moved into one, share it (`LabelTable`).  A label is a scale that is still to be chosen.

The scale of a label is as small as its weights allow: the largest of them fits the bits that were
asked for, no sum exceeds 2^24, and the thresholds of its neurons are whole.  Values of one scale that
are read where another one counts are multiplied and rounded, element by element (`Rounded`): static
values in front of a neuron; sums that a layer reads, where its own would become too large; and averages
of sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from snncompiler.errors import Refused
from snncompiler.findings import Finding
from snncompiler.ir import dialect
from snncompiler.ir.graph import (
    Graph,
    Node,
    Tensor,
    constant,
    input_at,
    is_live,
    known,
    known_rank,
    label,
    remove_node,
    replace_uses,
    tensor_names,
    unique_name,
    value,
)
from snncompiler.ir.growth import STEADY, Growth
from snncompiler.ir.operators import record
from snncompiler.ir.phases import TIME_MEAN, Timing, analyze
from snncompiler.ir.spike_trains import moves_spikes
from snncompiler.ir.whole import DRIVE_UNIT, EXACT, Grid, LayerGrid, drive_of
from snncompiler.passes.amplitudes import joined, moved
from snncompiler.passes.base import Context, Pass, Units
from snncompiler.passes.grids import (
    BY_ELEMENT,
    Floats,
    Real,
    from_rows,
    interval,
    moves,
    places_of,
    rows_of,
)
from snncompiler.passes.spike.fold_amplitude import into_weights
from snncompiler.passes.spike.whole.records import (
    COEFFICIENT,
    FREE,
    Current,
    Kind,
    Labels,
    LabelTable,
    Layer,
    Neuron,
    Rounded,
    Whole,
    odd,
    place_of,
    port_of,
    rows_with,
    spread,
)
from snncompiler.passes.spike.whole.scales import Scales

#: Weights of fewer bits are multiples of a power of two, so that they take 8 all the same, and
#: thresholds, biases and charges are as fine as beside weights of 8 bits.
PLACE_BITS = 8
#: The most bits of an input that is left to the compiler, and the largest number of an input.
INPUT_BITS = 16
#: How far beyond the largest input of the calibration an input may be before it is clipped.
MARGIN = 2.0
_SUMS = frozenset({"Add", "Sub", "Sum"})
_AVERAGES = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean"})


@dataclass(frozen=True)
class WholeNumbers(Pass):
    """Weights of `bits` bits, and all that flows into a neuron in whole numbers.

    ranges: name of an input of the network -> the largest size of its values.  input_bits: bits of a
    real-valued input, None for as many as leave its sums exact.  steps: T, for which the reach of
    potentials is told.  growth: how thresholds grow.  changes: name of a node -> by how much its whole
    weights differ from the nearest ones.  settled: whether the charges are final, on which depends what
    a current may be at most; where they are not, `Context.units` tells what was rounded.  levels: of
    layered time, the most that the spikes of a window stand for: a neuron sums up all of a window, so
    its sums are as many times as large.  capped: names of the neurons whose top level is a bound of the
    network.

    What it finds goes into `Context.grid`.
    """

    bits: int
    ranges: Mapping[str, float]
    input_bits: int | None = None
    steps: int = 1
    growth: Growth = STEADY
    changes: Mapping[str, NDArray[np.int8]] = field(default_factory=dict)
    settled: bool = True
    levels: int = 1
    capped: frozenset[str] = frozenset()

    name: ClassVar[str] = "whole-numbers"
    requires: ClassVar[frozenset[str]] = frozenset({"neurons", "binary-spikes"})
    ensures: ClassVar[frozenset[str]] = frozenset({"whole-numbers"})

    def run(self, graph: Graph, context: Context) -> None:
        if "whole-numbers" in context.facts:
            return  # a Round would be one of the network's own
        work = _Work(self, graph, tensor_names(graph))
        work.walk()
        if work.findings:
            raise Refused(*work.findings)
        work.settle()
        if work.findings:
            raise Refused(*work.findings)
        context.grid = Grid(tuple(work.write()))
        context.bounds, context.units = work.bounds(), work.units
        if work.findings:
            raise Refused(*work.findings)


def _exact_steps(options: WholeNumbers, room: float, per_step: float) -> int:
    """Within how many steps a potential stays below 2^24, that may grow by so much at each."""
    if options.levels > 1:
        return options.steps if room >= 0 else 0
    return int(max(room, 0) // per_step) if per_step > 0 else EXACT


def _fires(node: Node) -> bool:
    return bool(node.domain == dialect.DOMAIN and node.op != TIME_MEAN)


def _is_neuron(node: Node) -> bool:
    return bool(node.domain == dialect.DOMAIN and node.op in dialect.NEURONS)


class _Work:
    def __init__(self, options: WholeNumbers, graph: Graph, taken: set[str]) -> None:
        self.options, self.graph, self.taken = options, graph, taken
        self.timing: Timing = analyze(graph, _fires)
        self.needed = _before_neurons(graph)
        self.before = {id(node) for node in graph.nodes}
        self.most = (1 << (options.bits - 1)) - 1
        self.step = 1
        while self.step * 2 * self.most < 1 << (PLACE_BITS - 1):
            self.step *= 2
        self.findings: list[Finding] = []
        self.units: dict[str, Units] = {}
        #: By the id of a tensor of the graph as it was or as it is; `held` keeps all of them alive.
        self.kinds: dict[int, Kind | None] = {}
        self.held: list[Any] = [*graph.tensors().values(), *graph.nodes]
        self.numbers: dict[int, Tensor] = {}
        self.labels = LabelTable()
        self.layers: list[Layer] = []
        self.rounded: list[Rounded] = []
        #: A constant that is added, or a bias: the node, the place of its input, what it is added to.
        self.added: list[tuple[Node, int, Labels]] = []
        self.neurons: list[Neuron] = []
        #: By how much the threshold behind a spike was rounded; the first two are no neuron's.
        self.ratios: list[float] = [1.0, 1.0]
        #: And the label of its neuron.
        self.owners: list[int] = [FREE, FREE]
        self.wide: dict[int, float] = {}

    # --- which kind every value is ---

    def walk(self) -> None:
        for tensor in self.graph.inputs:
            self.kinds[id(tensor)] = self._input(tensor)
        for node in list(self.graph.nodes):
            if id(node) in self.needed and not _of_shapes(node):
                outputs = list(node.outputs)  # rounding may stand between a node and its output
                self.kinds.update(zip(map(id, outputs), self._visit(node), strict=True))

    def _refuse(self, node: Node, why: str, hint: str = "leave out --weights") -> list[Kind | None]:
        self.findings.append(Finding("SNNC223", why, node=label(node), hint=hint))
        return [None] * len(node.outputs)

    def _input(self, tensor: Tensor) -> Kind | None:
        kind = np.dtype(tensor.dtype)
        if kind.kind in "iu":
            return Real(float(np.iinfo(kind).min), float(np.iinfo(kind).max), whole=True)
        top = self.options.ranges.get(tensor.name, 0.0) * MARGIN
        if kind.kind == "f" and not top > 0 and any(id(n) in self.needed for n in tensor.outputs):
            self.findings.append(
                Finding(
                    "SNNC306",
                    f"the calibration does not tell the range of the input '{tensor.name}', which "
                    "--weights needs",
                    hint="calibrate with --weights",
                )
            )
            return None
        return Real(-top, top)

    def _visit(self, node: Node) -> list[Kind | None]:
        if _is_neuron(node):
            return [self._neuron(node)]
        if node.domain == dialect.DOMAIN:
            return self._ours(node)
        nature = record(node.op)
        live = [tensor for tensor in node.inputs if is_live(tensor) and _floats(tensor)]
        kinds = [self.kinds[id(tensor)] for tensor in live]
        if any(kind is None for kind in kinds):
            return [None] * len(node.outputs)  # refused already
        if nature.weights is not None:
            return self._layer(node)
        if all(isinstance(kind, Real) for kind in kinds) and node.op not in _AVERAGES:
            return self._real(node, [kind for kind in kinds if isinstance(kind, Real)])
        if node.op in _SUMS:
            return self._sum(node)
        turns = nature.spikes == "signs" and isinstance(kinds[0], Whole) and moves_spikes(node)
        if node.op in ("Mul", "Div") and not turns:
            return self._scaled(node)
        if node.op in _AVERAGES:
            return self._average(node)
        if node.op == "ReduceSum":
            return self._reduce(node)
        if node.op == "Concat":
            return self._concat(node)
        if turns or moves(node):
            assert kinds[0] is not None
            return self._moved(node, kinds[0])
        return self._refuse(node, "no rule says how it computes on whole numbers")

    def _ours(self, node: Node) -> list[Kind | None]:
        kind = self.kinds.get(id(node.inputs[0]))
        if node.op == "PoissonEncoder":
            ones = np.ones((1,) * known_rank(node.outputs[0]))
            return [Whole(ones, ones.astype(np.int64), 1.0, signed=True)]
        if kind is None:
            return [None]
        if node.op == "SpikeMaxPool" and isinstance(kind, Whole):
            return [kind]
        return self._refuse(
            node,
            "what is kept analog between spiking layers is no whole number",
            "leave out --weights, or what needs --allow-analog",
        )

    def _real(self, node: Node, kinds: list[Real]) -> list[Kind | None]:
        """What is computed on the input element by element, or moved."""
        found: Real | None = None
        if node.op in BY_ELEMENT:
            found = interval(node, [self._range(tensor) for tensor in node.inputs])
        elif moves(node) or node.op in ("MaxPool", "Concat"):
            low = min(
                [0.0 if node.op == "Pad" else kind.low for kind in kinds] + [k.low for k in kinds]
            )
            high = max(
                [0.0 if node.op == "Pad" else k.high for k in kinds] + [k.high for k in kinds]
            )
            found = Real(low, high, all(kind.whole for kind in kinds))
        if found is None or not np.isfinite([found.low, found.high]).all():
            return self._refuse(
                node, "it computes on the network's input, and not the same bits on every machine"
            )
        return [found] * len(node.outputs)

    def _range(self, tensor: Tensor) -> Real:
        held = value(tensor)
        if held is not None and held.size:
            whole = bool(np.all(held == np.round(held)))
            return Real(float(held.min()), float(held.max()), whole)
        kind = self.kinds.get(id(tensor))
        return kind if isinstance(kind, Real) else Real(-np.inf, np.inf)

    def _source(self, node: Node, weight: float) -> Kind | None:
        """The kind of what a node multiplies, on a grid: a real input is rounded, to as many levels as
        leave a sum of `weight` of them exact."""
        tensor = node.inputs[0]
        kind = self.kinds.get(id(tensor))
        if not isinstance(kind, Real):
            return kind
        if id(tensor) not in self.numbers:
            self.numbers[id(tensor)] = self._quantized(tensor, kind, weight)
        node.inputs[0] = self.numbers[id(tensor)]
        return self.kinds[id(node.inputs[0])]

    def _quantized(self, tensor: Tensor, kind: Real, weight: float) -> Tensor:
        """x · a of real numbers, rounded, and no larger than the levels that there are."""
        size = known_rank(tensor)
        free = np.full((1,) * size, FREE)
        top = max(abs(kind.low), abs(kind.high)) or 1.0
        if kind.whole and top * weight < EXACT:
            self.kinds[id(tensor)] = Whole(np.ones((1,) * size), free, top, kind.low < 0)
            return tensor
        bits = self.options.input_bits
        most = (1 << (INPUT_BITS - 1)) - 1
        if bits is None:
            most = int(min(most, max(0.98 * EXACT / max(weight, 1.0), 1.0)))
        else:
            most = (1 << (bits - 1)) - 1
        factor = np.float32(most / top)
        scaled = self._node("Mul", [tensor], f"{tensor.name}/levels", True, tensor)
        scaled.inputs.append(self._constant(f"{tensor.name}/levels_of_1", factor))
        least = self._node("Max", scaled.outputs, f"{tensor.name}/least", True, tensor)
        least.inputs.append(self._constant(f"{tensor.name}/lowest", np.float32(-most)))
        clipped = self._node("Min", least.outputs, f"{tensor.name}/most", True, tensor)
        clipped.inputs.append(self._constant(f"{tensor.name}/highest", np.float32(most)))
        rounding = self._node("Round", clipped.outputs, f"{tensor.name}/on_grid", True, tensor)
        result = rounding.outputs[0]
        self.kinds[id(result)] = Whole(
            np.full((1,) * size, 1.0 / float(factor)), free, float(most), signed=True
        )
        return result

    def _layer(self, node: Node) -> list[Kind | None]:
        weights = value(node.inputs[1]) if len(node.inputs) > 1 else None
        layout = record(node.op).weights
        if weights is None or layout == "equation" or not is_live(node.inputs[0]):
            return self._refuse(node, "its weights are not one constant, the second of its inputs")
        bias = input_at(node, 2)
        if bias is not None and value(bias) is None:
            return self._refuse(node, "its bias is not constant")
        rows = rows_of(node, np.asarray(weights, np.float64))
        top = np.abs(rows).max(axis=1, initial=0.0)
        mass = np.abs(rows).sum(axis=1) / np.where(top > 0, top, 1.0)
        kind = self._source(node, float(mass.max(initial=1.0)) * self.step * self.most)
        if kind is None:
            return [None]
        if isinstance(kind, Current):
            if into_weights(node, kind.labels) is None:
                kind = Current(self.labels.uniform(kind.labels), kind.static)
            kind = self._linked(node, kind)
        elif isinstance(kind, Real) or any(
            into_weights(node, held) is None for held in (kind.unit, kind.trains)
        ):
            # Its weights cannot take in what its input stands for.
            kind = self._one(node, 0)
            kind = self._linked(node, replace(kind, labels=self.labels.uniform(kind.labels)))
        axis = 1 if layout != "matrix" else known_rank(node.outputs[0]) - 1
        shape = [1] * known_rank(node.outputs[0])
        shape[axis] = len(rows)
        labels = self.labels.fresh(tuple(shape))
        held = np.asarray(weights, np.float64)
        self.layers.append(Layer(node, kind, labels.reshape(-1), held, self.most, self.step))
        if bias is not None:
            flat = layout != "matrix"
            self.added.append((node, 2, labels.reshape(-1) if flat else labels))
        return [Current(labels, self._static(node))]

    def _linked(self, node: Node, kind: Current) -> Current:
        """A rounding in front of a layer that reads a sum, which is left out where it needs none."""
        tensor = node.inputs[0]
        mul = self._node("Mul", [tensor], f"{tensor.name}/levels", kind.static, tensor)
        mul.inputs.append(self._constant(f"{mul.name}/factor", np.float32(1)))
        node.inputs[0] = mul.outputs[0]
        ones = np.ones((1,) * kind.labels.ndim)
        self._round(mul, kind, ones, self.labels.fresh(kind.labels.shape))
        self.rounded[-1].reader = node
        return Current(self.rounded[-1].labels, kind.static)

    def _static(self, node: Node) -> bool:
        return self.timing.phases.get(id(node)) == "static"

    def _scaled(self, node: Node) -> list[Kind | None]:
        """A Mul or Div by constants: weights of one input for whole numbers, a rounding for sums."""
        at = 0 if is_live(node.inputs[0]) else 1
        factor = value(node.inputs[1 - at])
        if factor is None or (node.op == "Div" and at == 1):
            return self._refuse(node, "it multiplies, or divides by, a value that is not constant")
        if at == 1:
            node.inputs[0], node.inputs[1] = node.inputs[1], node.inputs[0]
        factor = np.asarray(factor, np.float64)
        if node.op == "Div":
            node.op, factor = "Mul", 1.0 / factor
        size = known_rank(node.outputs[0])
        factor = factor.reshape((1,) * (size - factor.ndim) + factor.shape)
        kind = self.kinds[id(node.inputs[0])]
        if known_rank(node.inputs[0]) != size:
            return self._refuse(node, "it broadcasts spikes to more axes")
        if isinstance(kind, Current):
            return [self._round(node, kind, factor)]
        assert isinstance(kind, Whole)
        labels = self._by_channel(node.outputs[0], factor, kind.unit, kind.trains)
        node.inputs[1] = self._constant(f"{node.name}/coefficient", factor.astype(np.float32))
        self.layers.append(Layer(node, kind, labels, factor, COEFFICIENT))
        return [Current(labels, self._static(node))]

    def _by_channel(self, tensor: Tensor, *others: NDArray[Any]) -> Labels:
        """A label for each channel, and along what axes the `others` vary."""
        size = known_rank(tensor)
        shape = [1] * size
        if size > 1 and known(tensor.shape[1]):
            shape[1] = int(tensor.shape[1])
        spread = np.broadcast_shapes(tuple(shape), *(other.shape for other in others))
        return self.labels.fresh(spread)

    def _round(
        self, node: Node, kind: Kind, factor: Floats | None = None, labels: Labels | None = None
    ) -> Current:
        """Round(x · factor / scale) in place of a Mul node: a scale of its own for each channel."""
        result = node.outputs[0]
        size = known_rank(result)
        factor = np.ones((1,) * size) if factor is None else factor
        if labels is None:
            own = kind.labels if isinstance(kind, Current) else np.ones((1,) * size)
            labels = self._by_channel(result, factor, own)
        static = self._static(node)
        node.outputs[0] = self._like(result, f"{result.name}/scaled")
        rounding = self._node("Round", node.outputs, f"{node.name}/round", static, result, result)
        self.rounded.append(Rounded(node, rounding, kind, labels, factor))
        return Current(labels, self._static(node))

    def _one(self, reader: Node, index: int) -> Current:
        """What a node reads, as a Current: spikes with the weight 1, and a value that no neuron changes
        rounded."""
        tensor = reader.inputs[index]
        kind = self.kinds[id(tensor)]
        if isinstance(kind, Current) and not kind.static:
            return kind
        assert kind is not None
        static = id(tensor) not in self.timing.temporal
        mul = self._node("Mul", [tensor], f"{tensor.name}/on_grid", static, tensor)
        mul.inputs.append(self._constant(f"{mul.name}/factor", np.float32(1)))
        reader.inputs[index] = mul.outputs[0]
        found = self._round(mul, kind) if static else self._scaled(mul)[0]
        assert isinstance(found, Current)
        self.kinds[id(reader.inputs[index])] = found
        return found

    def _sum(self, node: Node) -> list[Kind | None]:
        live = [index for index, tensor in enumerate(node.inputs) if is_live(tensor)]
        kinds = {index: self.kinds[id(node.inputs[index])] for index in live}
        # Static sums keep the scale of their weights; a static value beside temporal ones is rounded.
        static = all(isinstance(k, Current) and k.static for k in kinds.values())
        labels: Labels | None = None
        for index in live:
            kind = kinds[index] if static else self._one(node, index)
            assert isinstance(kind, Current)
            labels = (
                kind.labels if labels is None else self.labels.join(*_ranks(labels, kind.labels))
            )
        assert labels is not None
        size = known_rank(node.outputs[0])
        labels = labels.reshape((1,) * (size - labels.ndim) + labels.shape)
        for index, tensor in enumerate(node.inputs):
            if index not in live and not tensor.is_empty():
                self.added.append((node, index, labels))
        return [Current(labels, static)]

    def _concat(self, node: Node) -> list[Kind | None]:
        """Side by side; zeros that are constants are numbers of any scale."""
        ones = np.ones((1,) * known_rank(node.outputs[0]))
        zeros = Whole(ones, ones.astype(np.int64), 0.0)
        kinds: list[Kind] = []
        for tensor in node.inputs:
            held = value(tensor)
            kind = self.kinds[id(tensor)] if held is None else zeros
            if held is not None and held.any():
                return self._refuse(node, "it puts constants beside what depends on the input")
            assert kind is not None
            kinds.append(kind)
        wholes = [kind for kind in kinds if isinstance(kind, Whole)]
        if len(wholes) == len(kinds):
            unit = joined(node, [kind.unit for kind in wholes])
            trains = joined(node, [kind.trains for kind in wholes])
            if unit is not None and trains is not None:
                bound, signed = max(k.bound for k in wholes), any(k.signed for k in wholes)
                return [Whole(unit, trains.astype(np.int64), bound, signed)]
        static = all((isinstance(k, Current) and k.static) or k is zeros for k in kinds)
        parts: list[Labels] = []
        for index, kind in enumerate(kinds):
            if kind is zeros:
                parts.append(np.full(ones.shape, FREE))
            elif static and isinstance(kind, Current):
                parts.append(kind.labels)
            else:
                parts.append(self._one(node, index).labels)
        labels = joined(node, parts)
        if labels is None:
            labels = self.labels.uniform(parts[0])
            for part in parts[1:]:
                labels = self.labels.join(labels, self.labels.uniform(part))
        return [Current(labels.astype(np.int64), static)]

    def _average(self, node: Node) -> list[Kind | None]:
        """n = Round(average · L), where L is a multiple of the places averaged; the unit is 1/L."""
        places = places_of(node)
        if places is None:
            return self._refuse(node, "it averages over a number of places that is not known")
        kind = self._source(node, float(2 * places))
        if kind is None:
            return [None]
        found = self._moved(node, kind)[0]
        if found is None:
            return [None]
        if isinstance(found, Whole) and found.bound * places >= EXACT >> 3:
            return self._refuse(node, f"it averages over {places} places, too many to be exact")
        result, static = node.outputs[0], self._static(node)
        node.outputs[0] = self._like(result, f"{result.name}/average")
        sums = self._node("Mul", [node.outputs[0]], f"{node.name}/sum", static, result)
        sums.inputs.append(self._constant(f"{node.name}/places", np.float32(places)))
        if isinstance(found, Whole):
            self._node("Round", sums.outputs, f"{node.name}/whole", static, result, result)
            unit, bound = found.unit / places, found.bound * places
            return [Whole(unit, found.trains, bound, found.signed)]
        assert isinstance(found, Current)
        for one in set(self.labels.roots(found.labels).reshape(-1).tolist()):
            self.wide[one] = max(self.wide.get(one, 1.0), 8.0 * places)
        exact = self._node("Round", sums.outputs, f"{node.name}/whole", static, result)
        mul = self._node("Mul", exact.outputs, f"{node.name}/rescaled", static, result, result)
        mul.inputs.append(self._constant(f"{mul.name}/factor", np.float32(1)))
        current = self._round(mul, found, np.full((1,) * known_rank(result), 1.0 / places))
        self.rounded[-1].places = places
        return [current]

    def _reduce(self, node: Node) -> list[Kind | None]:
        """A sum over axes of known sizes."""
        places = places_of(node)
        if places is None:
            return self._refuse(node, "it adds up a number of places that is not known")
        kind = self.kinds[id(node.inputs[0])]
        assert kind is not None
        found = self._moved(node, kind)[0]
        if isinstance(found, Whole):
            if found.bound * places >= EXACT:
                return self._refuse(node, f"it adds up {places} places, too many to be exact")
            return [replace(found, bound=found.bound * places)]
        if found is None:
            return [None]
        assert isinstance(found, Current)
        for one in set(self.labels.roots(found.labels).reshape(-1).tolist()):
            self.wide[one] = max(self.wide.get(one, 1.0), float(places))
        result, static = node.outputs[0], self._static(node)
        node.outputs[0] = self._like(result, f"{result.name}/sum")
        mul = self._node("Mul", node.outputs, f"{node.name}/rescaled", static, result, result)
        mul.inputs.append(self._constant(f"{mul.name}/factor", np.float32(1)))
        current = self._round(mul, found)
        self.rounded[-1].places = places
        return [current]

    def _moved(self, node: Node, kind: Kind) -> list[Kind | None]:
        """The kind behind a node that chooses, moves or averages."""
        assert not isinstance(kind, Real)
        if isinstance(kind, Whole):
            signed = kind.signed or record(node.op).spikes in ("turned", "signs")
            unit, trains = moved(node, kind.unit), moved(node, kind.trains)
            if unit is not None and trains is not None:
                found = Whole(unit, trains.astype(np.int64), kind.bound, signed)
                return [found] * len(node.outputs)
            if (kind.unit != kind.unit.flat[0]).any():
                return self._refuse(node, "it mixes spikes that stand for different values")
            # Thresholds that were rounded by different parts are taken as they were meant.
            return [
                Whole(np.full(ones, kind.unit.flat[0]), np.full(ones, FREE), kind.bound, signed)
                for ones in ((1,) * known_rank(result) for result in node.outputs)
            ]
        labels = moved(node, kind.labels)
        if labels is not None:
            return [Current(labels.astype(np.int64), kind.static)] * len(node.outputs)
        one = self.labels.uniform(kind.labels).reshape(-1)
        return [
            Current(one.reshape((1,) * known_rank(result)), kind.static) for result in node.outputs
        ]

    def bounds(self) -> dict[int, float]:
        """The largest size of every value, by the id of its tensor, which is one of the graph."""
        found = {}
        for tensor in self.graph.tensors().values():
            kind = self.kinds.get(id(tensor))
            if isinstance(kind, Whole):
                found[id(tensor)] = kind.bound
            elif isinstance(kind, Current):
                roots = self.scales.root[kind.labels]
                found[id(tensor)] = float(np.maximum(self.rises[roots], self.falls[roots]).max())
            elif isinstance(kind, Real):
                found[id(tensor)] = max(abs(kind.low), abs(kind.high))
        return found

    # --- pieces ---

    def _constant(self, name: str, values: NDArray[Any] | np.float32) -> gs.Constant:
        return constant(name, np.asarray(values, np.float32), self.taken)

    def _like(self, tensor: Tensor, name: str) -> Tensor:
        return gs.Variable(unique_name(name, self.taken), tensor.dtype, tensor.shape)

    def _node(
        self,
        op: str,
        inputs: list[Tensor],
        name: str,
        static: bool,
        like: Tensor,
        output: Tensor | None = None,
    ) -> Node:
        """A new node of one output, which is like another tensor."""
        result = self._like(like, name) if output is None else output
        node = gs.Node(op, name, inputs=list(inputs), outputs=[result])
        self.graph.nodes.append(node)
        self.held += [node, result]
        self.timing.phases[id(node)] = "static" if static else "temporal"
        return node

    def _neuron(self, node: Node) -> Kind | None:
        kind = self.kinds[id(node.inputs[0])]
        if kind is None:
            return None
        static = id(node.inputs[0]) not in self.timing.temporal
        size = known_rank(node.inputs[0])
        current = self._by_threshold(self._one(node, 0), node.inputs[0])
        theta = spread(value(port_of(node, "threshold")), size)
        shape = np.broadcast_shapes(theta.shape, current.labels.shape)
        first = len(self.ratios)
        self.ratios += [1.0] * prod(shape)
        self.owners += np.broadcast_to(current.labels, shape).reshape(-1).tolist()
        trains = np.arange(first, first + prod(shape)).reshape(shape)
        rounded = self.rounded[-1] if static else None
        if rounded is not None and self.options.growth:
            rounded.unit = DRIVE_UNIT
        self.neurons.append(Neuron(node, current.labels, trains, rounded))
        levels = float(node.attrs.get("levels", 1)) * self.options.levels
        return Whole(np.ones((1,) * size), trains, levels, node.op == "SignedNeuron")

    def _by_threshold(self, current: Current, tensor: Tensor) -> Current:
        """One scale for all that has one threshold: a channel, or all where there is no such axis."""
        labels = current.labels
        if labels.ndim < 2 or not known(tensor.shape[1]):
            return replace(current, labels=self.labels.uniform(labels))
        channels = [self.labels.uniform(part) for part in np.moveaxis(labels, 1, 0)]
        joined_labels = np.array([part.reshape(-1)[0] for part in channels])
        joined_labels[joined_labels == FREE] = self.labels.fresh(
            (int((joined_labels == FREE).sum()),)
        )
        return replace(current, labels=joined_labels.reshape(1, -1, *[1] * (labels.ndim - 2)))

    # --- which scale every label has ---

    def settle(self) -> None:
        self.scales = Scales(
            self.labels,
            self.layers,
            self.rounded,
            self.neurons,
            self.added,
            self.wide,
            self.ratios,
            self.owners,
            self.options.levels,
            self.most,
            self.step,
        )
        for node in self.scales.settle():
            self._refuse(node, "its output flows back into its input without a neuron between them")

    # --- what is written ---

    def write(self) -> list[LayerGrid]:
        for neuron in self.neurons:
            self._bound_static(neuron)
        count = len(self.scales.scale)
        #: Per root, what a time-step may add at most and take away at most, in whole numbers.
        self.rises, self.falls = np.zeros(count), np.zeros(count)
        told: list[_Told] = []
        for layer in self.layers:
            told.append(self._write_layer(layer))
        for node, index, labels in self.added:
            self._write_added(node, index, labels)
        for one in self.rounded:
            self._write_rounded(one)
        grids = [self._write_neuron(neuron, told) for neuron in self.neurons]
        self._restore()
        return grids

    def _add_bounds(self, roots: Labels, rises: Floats, falls: Floats) -> None:
        for held, more in ((self.rises, rises), (self.falls, falls)):
            most = np.zeros(len(held))
            np.maximum.at(most, *np.broadcast_arrays(roots, more))
            held += most

    def _write_layer(self, layer: Layer) -> _Told:
        """Put whole numbers in place of the weights."""
        node, rows = layer.node, self.scales.rows(layer)
        roots = self.scales.root[layer.labels].reshape(-1)
        units = rows / (layer.step * self.scales.scale[roots])[:, None]
        whole = np.clip(np.floor(units + 0.5), -layer.most, layer.most)
        changes = self.options.changes.get(node.name)
        if not layer.is_coefficient and changes is not None:
            whole = np.clip(whole + rows_of(node, changes), -layer.most, layer.most)
        if not layer.is_coefficient and not self.options.settled:
            held = from_rows(node, units, layer.weights.shape)
            self.units[node.name] = Units(held, layer.most, layer.step)
        numbers = whole * layer.step
        if isinstance(layer.source, Current):
            source = self.scales.bounds(layer.source.labels) / self.scales.of(layer.source.labels)
            sizes = rows_with(node, np.ones_like(layer.weights), np.ceil(source) + 1)
            signed = True
        else:
            assert isinstance(layer.source, Whole)
            sizes = np.full(rows.shape, layer.source.bound)
            signed = layer.source.signed
        rises = (np.maximum(numbers, 0) * sizes).sum(axis=1)
        falls = (np.maximum(-numbers, 0) * sizes).sum(axis=1)
        both = rises + falls
        self._add_bounds(roots, *((both, both) if signed else (rises, falls)))
        name = node.inputs[1].name.removesuffix("_amplitude") + "_whole"
        shaped = _from_rows(node, numbers, layer)
        node.inputs[1] = self._constant(name, shaped.astype(np.float32))
        top = np.abs(rows).max(axis=1, initial=0.0)
        change = np.abs(numbers * self.scales.scale[roots][:, None] - rows).max(axis=1, initial=0.0)
        worst = (change / np.where(top > 0, top, 1.0)).max(initial=0.0)
        return _Told(layer, set(roots.tolist()), int(np.abs(numbers).max(initial=0)), float(worst))

    def _write_added(self, node: Node, index: int, labels: Labels) -> None:
        """A bias, or a constant that is added."""
        held = value(node.inputs[index])
        assert held is not None
        values = spread(held, labels.ndim)
        numbers = np.floor(values / self.scales.of(labels) + 0.5)
        self._add_bounds(self.scales.root[labels], np.abs(numbers), np.abs(numbers))
        shape = numbers.shape
        while len(shape) > np.ndim(held) and shape[0] == 1:
            shape = shape[1:]
        name = f"{node.inputs[index].name}_whole"
        node.inputs[index] = self._constant(name, numbers.reshape(shape).astype(np.float32))

    def _write_rounded(self, one: Rounded) -> None:
        scales = self.scales.of(one.labels)
        ratio = one.factor / scales
        if isinstance(one.source, Current):
            ratio = ratio * self.scales.of(one.source.labels)
        elif isinstance(one.source, Whole):
            ratio = ratio * one.source.unit
        sizes = np.ceil(one.bound / scales) + 1
        if one.reader is not None and (ratio == 1).all():
            one.reader.inputs[0] = one.node.inputs[0]
            remove_node(one.node)
            remove_node(one.round)
            self.graph.nodes = [n for n in self.graph.nodes if n not in (one.node, one.round)]
        else:
            unit = one.unit
            if isinstance(one.source, Current):
                self._guard(one.node)
            name = one.node.inputs[1].name
            one.node.inputs[1] = self._constant(name, (ratio / unit).astype(np.float32))
            if one.ends is not None:
                self._clip(one)
                sizes = np.minimum(sizes, np.maximum(*np.abs(one.ends)))
            if unit != 1:
                result = one.round.outputs[0]
                one.round.outputs[0] = self._like(result, f"{result.name}/units")
                last = self._node(
                    "Mul", one.round.outputs, f"{one.round.name}/unit", True, result, result
                )
                last.inputs.append(self._constant(f"{last.name}/unit", np.float32(unit)))
        self._add_bounds(self.scales.root[one.labels], sizes, sizes)

    def _bound_static(self, neuron: Neuron) -> None:
        """Between which values a static current has to lie: what is larger lets the neuron send all
        that it can at every step, and what is smaller lets it never fire, as the bounds themselves do.

        With the charges b_t and the drive d_t, from v >= 0 on: d_t·x + b_t >= G·Q for all t; and
        v(0) + Σ (d·x + b) < Q up to every t, which later steps keep where the last b is not above -d·x.
        """
        rounded = neuron.rounded
        if rounded is None or not self.options.settled:
            return
        numbers = self._numbers(neuron)
        drive = drive_of(self.options.growth)
        count = max(len(drive), len(numbers.schedule))
        d = drive[np.minimum(np.arange(count), len(drive) - 1)].astype(np.float64)
        d = d.reshape(-1, *[1] * numbers.threshold.ndim)
        b = numbers.schedule[np.minimum(np.arange(count), len(numbers.schedule) - 1)]
        levels = neuron.node.attrs.get("levels", 1) * self.options.levels
        high = ((levels * numbers.threshold - b) / d).max(axis=0)
        left = numbers.start - numbers.threshold + 1 + np.cumsum(b, axis=0)
        low = np.maximum((left / np.cumsum(d, axis=0)).max(axis=0), b[-1] / d[-1])
        unit = rounded.unit
        # At least a threshold on either side, however the charges are.
        high = np.maximum(np.ceil(high / unit), np.ceil(numbers.threshold / unit)) * unit
        low = np.minimum(-np.ceil(low / unit), -np.ceil(numbers.threshold / unit)) * unit
        rounded.ends = np.stack(np.broadcast_arrays(low, high))

    def _guard(self, mul: Node) -> None:
        """A Round of what is whole already, which keeps the Mul behind it from being folded into the
        weights before it, as onnxruntime does: they would be no whole numbers any more."""
        tensor = mul.inputs[0]
        static = self._static(mul)
        mul.inputs[0] = self._node("Round", [tensor], f"{tensor.name}/sum", static, tensor).outputs[
            0
        ]

    def _clip(self, one: Rounded) -> None:
        assert one.ends is not None
        name = one.node.outputs[0].name
        low, high = (end / one.unit for end in one.ends)
        least = self._node("Max", one.node.outputs, f"{name}/least", True, one.node.outputs[0])
        least.inputs.append(self._constant(f"{name}/lowest", low.astype(np.float32)))
        most = self._node("Min", least.outputs, f"{name}/most", True, one.node.outputs[0])
        most.inputs.append(self._constant(f"{name}/highest", high.astype(np.float32)))
        one.round.inputs[0] = most.outputs[0]

    def _numbers(self, neuron: Neuron) -> _Numbers:
        """Threshold, start and charges of a neuron in whole numbers, of the rank of its current."""
        node, size = neuron.node, neuron.labels.ndim
        scales = self.scales.of_neuron(neuron)
        theta = spread(value(port_of(node, "threshold")), size)
        exact = theta / scales
        threshold = odd(exact)
        start = spread(value(port_of(node, "membrane")), size)
        # The part of it that is half a threshold is half of what became of that.
        begins = start / scales + (threshold - exact) / 2
        if node.op != "LayeredRMPNeuron":
            begins = start / theta * threshold
        whole = np.floor(begins + 1e-6 * np.maximum(np.abs(begins), 1.0))
        schedule = np.zeros((1,) * (size + 1))
        port = port_of(node, "schedule")
        if port is not None:
            rows = np.asarray(value(port), np.float64)
            rows = rows.reshape(len(rows), *[1] * (size + 1 - rows.ndim), *rows.shape[1:])
            schedule = np.floor(rows / scales + 0.5)
        return _Numbers(threshold, whole, schedule)

    def _write_neuron(self, neuron: Neuron, told: list[_Told]) -> LayerGrid:
        node, numbers = neuron.node, self._numbers(neuron)
        scales = self.scales.of_neuron(neuron)
        meant = spread(value(port_of(node, "threshold")), neuron.labels.ndim)
        for name, array in (("threshold", numbers.threshold), ("membrane", numbers.start)):
            index = place_of(node, name)
            self._put(node, index, array)
        if port_of(node, "schedule") is not None:
            index = place_of(node, "schedule")
            rows = numbers.schedule
            while rows.ndim > 2 and rows.shape[1] == 1:
                rows = rows[:, 0]
            held = value(node.inputs[index])
            assert held is not None
            rows = (
                rows.reshape(len(rows), -1, *[1] * (held.ndim - 2))
                if rows.ndim < held.ndim
                else rows
            )
            name = f"{node.inputs[index].name}_whole"
            node.inputs[index] = self._constant(name, rows.astype(np.float32))
        roots = self.scales.root[neuron.labels]
        own = set(roots.reshape(-1).tolist())
        if own & self.scales.crowded:
            self.findings.append(
                Finding(
                    "SNNC223",
                    "no scale holds its threshold, its weights and its sums below 2^24 at once",
                    node=label(node),
                    hint="ask for fewer bits, or leave out --weights",
                )
            )
        gain = numbers.threshold * scales / meant
        if self.options.levels > 1 and node.name in self.options.capped and gain.max() > 1.01:
            self.findings.append(
                Finding(
                    "SNNC223",
                    "its levels are finer than its weights can tell, so that its top level would be "
                    "above the bound of the rectifier",
                    node=label(node),
                    hint="ask for more bits or for fewer levels, or leave out --weights",
                )
            )
        sources = own | self._behind(own)
        layers = [one for one in told if one.roots & sources]
        plain = [one for one in layers if not one.layer.is_coefficient]
        rises, falls = self.rises[roots], self.falls[roots]
        charge = np.abs(numbers.schedule).max(axis=0)
        levels = node.attrs.get("levels", 1)
        worth = float(drive_of(self.options.growth).max()) if neuron.rounded is not None else 1.0
        up = np.maximum(rises * worth + charge - levels * numbers.threshold, 0.0)
        down = falls * worth + charge
        peak = np.abs(numbers.start) + rises * worth + charge + numbers.threshold
        # In layered time `rises` and `falls` are those of a whole window.
        steps = self.options.steps if self.options.levels == 1 else 0
        reach = np.maximum(peak + steps * up, np.abs(numbers.start) + steps * down).max()
        per_step = np.maximum(up, down).max() if self.options.levels == 1 else 0.0
        room = EXACT - float(peak.max())
        largest = max((one.largest for one in plain), default=0)
        return LayerGrid(
            name=node.name,
            bits=int(largest).bit_length() + 1 if largest else 0,
            largest=largest,
            step=plain[0].layer.step if plain else 1,
            coefficient=max((o.largest for o in layers if o.layer.is_coefficient), default=0),
            threshold=(int(numbers.threshold.min()), int(numbers.threshold.max())),
            bound=int(np.maximum(rises, falls).max()),
            reach=int(reach),
            exact_steps=_exact_steps(self.options, room, float(per_step)),
            rounding=max((one.rounding for one in layers), default=0.0),
            scale=np.broadcast_to(
                scales, np.broadcast_shapes(scales.shape, numbers.threshold.shape)
            )
            .reshape(-1)
            .copy(),
        )

    def _behind(self, roots: set[int]) -> set[int]:
        """The roots of the sums from which these are made by roundings and by layers, in any number."""
        made: list[Layer | Rounded] = [*self.layers, *self.rounded]
        ways = [
            (self._roots(one.labels), self._roots(one.source.labels))
            for one in made
            if isinstance(one.source, Current)
        ]
        found: set[int] = set()
        pending = roots
        while pending:
            more: set[int] = set()
            for to, source in ways:
                more |= source if to & pending else set()
            pending = more - found
            found |= more
        return found

    def _roots(self, labels: Labels) -> set[int]:
        return set(self.scales.root[labels].reshape(-1).tolist()) - {FREE}

    def _put(self, node: Node, index: int, array: Floats) -> None:
        while array.ndim and array.shape[0] == 1:
            array = array[0]
        name = f"{node.inputs[index].name}_whole"
        node.inputs[index] = self._constant(name, array.astype(np.float32))

    def _restore(self) -> None:
        """What is read behind the last neuron has its unit back."""
        made = {id(node) for node in self.graph.nodes if id(node) not in self.before}
        for node in list(self.graph.nodes):
            for tensor in node.outputs:
                kind = self.kinds.get(id(tensor))
                late = [
                    reader
                    for reader in tensor.outputs
                    if id(reader) not in self.needed
                    and id(reader) not in made
                    and not record(reader.op).shape_only
                ]
                out = any(output is tensor for output in self.graph.outputs)
                if kind is None or isinstance(kind, Real) or not (late or out):
                    continue
                if isinstance(kind, Whole):
                    unit = kind.unit * np.asarray(self.ratios)[kind.trains]
                else:
                    unit = self.scales.of(kind.labels)
                if (unit == 1).all():
                    continue
                mul = self._node("Mul", [tensor], f"{tensor.name}/value", False, tensor)
                mul.inputs.append(self._constant(f"{mul.name}/unit", unit.astype(np.float32)))
                keep = [reader for reader in tensor.outputs if reader not in late]
                replace_uses(tensor, mul.outputs[0], self.graph, keep=[*keep, mul])
                if isinstance(kind, Current):
                    self._guard(mul)


@dataclass(frozen=True)
class _Numbers:
    threshold: Floats
    start: Floats
    schedule: Floats


@dataclass(frozen=True)
class _Told:
    """What became of a layer's weights: the roots of its labels, the largest of them, and the largest
    change as a part of the largest weight of its channel."""

    layer: Layer
    roots: set[int]
    largest: int
    rounding: float


def _ranks(first: Labels, second: Labels) -> tuple[Labels, Labels]:
    size = max(first.ndim, second.ndim)
    return tuple(one.reshape((1,) * (size - one.ndim) + one.shape) for one in (first, second))  # type: ignore[return-value]


def _floats(tensor: Tensor) -> bool:
    return tensor.dtype is not None and np.dtype(tensor.dtype).kind in "fiu"


def _of_shapes(node: Node) -> bool:
    """Whether a node computes shapes, or anything else that is no value of the network."""
    return all(
        tensor.dtype is not None and np.dtype(tensor.dtype).kind != "f" for tensor in node.outputs
    )


def _before_neurons(graph: Graph) -> set[int]:
    """The nodes from which a neuron is reached through values, neurons included."""
    needed: set[int] = set()
    tensors: set[int] = set()
    for node in reversed(graph.nodes):
        if _is_neuron(node) or any(id(tensor) in tensors for tensor in node.outputs):
            needed.add(id(node))
            tensors.update(id(tensor) for tensor in node.inputs)
    return needed


def _from_rows(node: Node, rows: Floats, layer: Layer) -> Floats:
    """The inverse of `rows_with`."""
    if node.op == "Mul":
        return rows.reshape(layer.labels.shape)
    return from_rows(node, rows, layer.weights.shape)
