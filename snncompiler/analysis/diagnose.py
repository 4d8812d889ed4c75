"""Where the error of a spiking network comes from: an exact split, layer by layer.

Per neuron, over T time-steps:
    z    mean received current, the charge of a schedule included: (Σx + Σb) / T
    a    the current of the same neuron in the ANN
    θ·r  what the neuron gave: its threshold times its mean spikes a step, by what they are worth
    f    the ANN's rectifier; clip is f and then at most θ
    Q    the quantiser of T levels: what the neuron would have given for the same z, had z come
         evenly: θ/T · floor((T·z + v(0)) / θ), within [0, θ].  For v(0) = θ/2 that rounds.
and
    θ·r - f(a) =  [θ·r - Q(z)]          unevenness: spikes came too early or too late (of hard
                                        reset also: the residual potential that it threw away)
                + [Q(z) - clip z]       rounding to T levels
                + [clip z - f(z)]       clipping at θ
                + [f(z) - f(a)]         inherited: the layers before gave another current

element by element.  The first three are the layer's own.  A neuron with G levels a step has G·T
levels and fires spikes of θ/G.  As z holds the charge of the schedule, so does what is inherited: it is
a current that the ANN's neuron does not get, also in the first layer.  So does, with a random input,
the noise of the spikes that stand for it.

In layered time T is 1 here and θ/T the value of one level: z is the complete current, r what the spikes
of the window stand for, and there is no unevenness but what rounding of float32 makes.

Where θ grows, currents, charges and spikes of a step count with what they are worth in spikes of the
end (`ir/growth.py`; else 1), and θ in Q and clip is the mean of what it was in the T steps.

The ANN is here the normalized one that the file was made from; where max pooling was replaced by
average pooling, that is another network than the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from snncompiler.analysis.exact import Exact
from snncompiler.analysis.instrument import Layer, Watched, ports
from snncompiler.emission.metadata import pooled_of
from snncompiler.errors import refuse
from snncompiler.ir.graph import free_root, with_outputs
from snncompiler.ir.growth import STEADY, Growth
from snncompiler.ir.rectifiers import rectified_input, rectifier, rectifiers_of
from snncompiler.network.batching import Axis, cut
from snncompiler.network.prepared import Prepared
from snncompiler.runtime.session import create_session

Array = NDArray[Any]
Part = Literal["unevenness", "rounding", "clipping"]
#: The parts of the error that a layer makes itself.
OWN: tuple[Part, ...] = ("unevenness", "rounding", "clipping")
PARTS = (*OWN, "inherited")


@dataclass(frozen=True)
class LayerError:
    """The split of one layer's error; every number is a Euclidean norm relative to that of the ANN's
    activations.  `total` is of the whole error, `own` of the layer's own three parts together."""

    layer: str
    operator: str
    total: float
    own: float
    unevenness: float
    rounding: float
    clipping: float
    inherited: float

    @property
    def charged(self) -> bool:
        """Whether a schedule adds to the currents of the layer."""
        return "schedule" in ports(self.operator)

    @property
    def largest(self) -> Part:
        """The largest of the layer's own parts."""
        return max(OWN, key=lambda part: float(getattr(self, part)))


@dataclass(frozen=True)
class Blame:
    """The layer that adds the largest error of its own, and the largest part of that."""

    layer: str
    part: Part
    own: float


@dataclass(frozen=True)
class Quantised:
    """The ANN with every activation clipped to θ and quantised to T levels: what a network without
    unevenness would reach.  As in `StepResult`."""

    accuracy: float | None
    agreement: float | None
    relative_error: float | None


@dataclass(frozen=True)
class Diagnosis:
    """The error of every layer, the layer that adds most, and the quantised ANN beside it."""

    layers: tuple[LayerError, ...]
    blame: Blame
    quantised: Quantised


def quantise(layer: Layer, total: Array, steps: int) -> Array:
    """Q(total / steps), float64; `total` holds the charge of the schedule already."""
    theta = layer.threshold.astype(np.float64)
    spikes = np.floor((total + layer.membrane_start.astype(np.float64)) / theta)
    return np.asarray(theta * np.clip(spikes, 0, layer.most(steps)) / layer.means(steps))


def split(
    layer: Layer,
    count: Array,
    total: Array,
    current: Array,
    steps: int,
    cap: float | None,
    growth: Growth = STEADY,
) -> dict[str, Array]:
    """The four parts of a layer's error, and `activation`, f(a); all float64.

    count: sum of the spikes; total: sum of the currents, both by their worth (`Weighed`); current: a;
    cap: the upper bound of f.
    """
    theta = layer.threshold.astype(np.float64)
    mean = layer.at(steps, growth)
    whole, times = total + layer.charge(steps, growth), layer.means(steps)
    z = whole / times
    given, even = theta * count.astype(np.float64) / times, quantise(mean, whole, steps)
    relu_z, relu_a = _rectified(z, cap), _rectified(current.astype(np.float64), cap)
    largest = mean.threshold.astype(np.float64) * (layer.most(steps) // times)
    clipped = np.minimum(relu_z, largest)
    return {
        "unevenness": given - even,
        "rounding": even - clipped,
        "clipping": clipped - relu_z,
        "inherited": relu_z - relu_a,
        "activation": relu_a,
    }


def _rectified(values: Array, cap: float | None) -> Array:
    return np.asarray(np.clip(values, 0.0, cap))


@dataclass
class Currents:
    """Runs the normalized ANN and gives the current of every rectifier, by layer.

    snn: the compiled network, some neurons of which may fire behind a pooling; they get what is pooled
    of the ANN's currents.
    """

    prepared: Prepared
    threads: int | None = None
    snn: onnx.ModelProto = field(default_factory=onnx.ModelProto)

    def __post_init__(self) -> None:
        nodes = rectifiers_of(self.prepared.graph)
        self.caps = {node.name: found.cap for node in nodes if (found := rectifier(node))}
        self.names = {node.name: node.inputs[rectified_input(node)].name for node in nodes}
        inputs = {tensor.name for tensor in self.prepared.graph.inputs}
        ann = onnx.ModelProto()
        ann.CopyFrom(self.prepared.ann)
        root = free_root(ann, "snnc_pooled")
        pools = {node.name: node for node in self.snn.graph.node if node.op_type == "MaxPool"}
        currents = dict(self.names)
        for layer, (relu, pool) in pooled_of(self.snn).items():
            node = ann.graph.node.add()
            node.CopyFrom(pools[pool])
            node.name = f"{root}/{layer}"
            node.input[0], node.output[0] = currents[relu], node.name
            self.names[layer], self.caps[layer] = node.name, self.caps[relu]
        wanted = sorted(set(self.names.values()) - inputs)
        model = with_outputs(ann, wanted)
        self._session = create_session(model, threads=self.threads)
        self._wanted = wanted

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        found: dict[str, Array] = dict(feeds)
        if self._wanted:
            values = self._session.run(self._wanted, dict(feeds))
            found |= {n: np.asarray(v) for n, v in zip(self._wanted, values, strict=True)}
        return {layer: found[name] for layer, name in self.names.items()}


@dataclass
class Weighed:
    """The sums of one batch over time, where steps count with what they are worth in the end.

    The worth of a step changes at few of them, so differences of plain sums are enough: `stops` has the
    last step before each change.
    """

    layers: tuple[Layer, ...]
    growth: Growth
    before: dict[str, Array] = field(default_factory=dict)
    sums: dict[str, Array] = field(default_factory=dict)

    @staticmethod
    def stops(growth: Growth, most: int) -> list[int]:
        """The last steps of equal worth, among the first `most`."""
        return [start - 1 for start, _ in growth.changes if 1 < start <= most]

    def add(self, values: Mapping[str, Array], steps: int) -> Mapping[str, Array]:
        """The sums up to `steps`, by output; `values`: the plain ones.  No change lies in between."""
        if not self.growth:
            return values
        worth = float(self.growth.worth(steps)[-1])
        for layer in self.layers:
            for name in (Watched.output(layer, what) for what in ("count", "current_sum")):
                now = values[name].astype(np.float64)
                since = now - self.before[name] if name in self.before else now
                self.sums[name] = self.sums.get(name, 0.0) + worth * since
                self.before[name] = now
        return self.sums


@dataclass
class Split:
    """Sums the squares of the parts over the data, for one number of time-steps."""

    steps: int
    caps: Mapping[str, float | None]
    growth: Growth = STEADY
    squares: dict[str, dict[str, Exact]] = field(default_factory=dict)

    def add(
        self,
        layer: Layer,
        values: Mapping[str, Array],
        current: Array,
        axis: Axis,
        count: int | None,
    ) -> None:
        """One batch of a layer, its sums by `Weighed`; `count`: how many samples of a filled batch are
        meant, which lie along `axis`."""
        spikes, total = (
            cut(values[Watched.output(layer, what)], axis, count)
            for what in ("count", "current_sum")
        )
        cap = self.caps[layer.name]
        layer, total = layer.in_values(), layer.times_unit(total)
        parts = split(layer, spikes, total, cut(current, axis, count), self.steps, cap, self.growth)
        parts["own"] = parts["unevenness"] + parts["rounding"] + parts["clipping"]
        parts["total"] = parts["own"] + parts["inherited"]
        sums = self.squares.setdefault(layer.name, {name: Exact() for name in parts})
        for name, part in parts.items():
            sums[name].add(float(np.square(part).sum()))


def layer_errors(
    squares: Mapping[str, Mapping[str, Exact]], operators: Mapping[str, str]
) -> tuple[LayerError, ...]:
    """The error of every layer, from the squares that `Split` sums up and the layers' operators."""
    made = []
    for name, sums in squares.items():
        norm = np.sqrt(sums["activation"].value)
        norms = {
            part: float(np.sqrt(sums[part].value) / norm) if norm else 0.0
            for part in (*PARTS, "own", "total")
        }
        made.append(LayerError(name, operators[name], **norms))
    return tuple(made)


def blame(layers: tuple[LayerError, ...]) -> Blame:
    """The layer with the largest error of its own."""
    worst = max(layers, key=lambda layer: layer.own)
    return Blame(worst.layer, worst.largest, worst.own)


def quantised_ann(
    prepared: Prepared, layers: tuple[Layer, ...], snn: onnx.ModelProto | None = None
) -> onnx.ModelProto:
    """The normalized ANN with every rectifier's output clipped to θ and quantised to T levels, with the
    thresholds and the first membrane potentials of the compiled file `snn` and without its schedules.

    T is the last input, a float32 scalar.  Raises Refused where the layers are not the
    network's rectifiers.
    """
    model = onnx.ModelProto()
    model.CopyFrom(prepared.ann)
    graph = model.graph
    root = free_root(model, "snnc_quantised")
    steps = f"{root}/steps"
    graph.input.append(helper.make_tensor_value_info(steps, TensorProto.FLOAT, []))
    pooled = pooled_of(snn) if snn is not None else {}
    further = {name for name, (relu, _) in pooled.items() if name != relu}
    by_name = {layer.name: layer.in_values() for layer in layers if layer.name not in further}
    results = {node.name: node.outputs[0].name for node in rectifiers_of(prepared.graph)}
    if set(by_name) != set(results):
        raise refuse("SNNC402", "the layers of the compiled file are not the network's rectifiers")
    made: list[onnx.NodeProto] = []
    for node in graph.node:
        made.append(node)
        name = next((n for n, result in results.items() if result in node.output), None)
        if name is None:
            continue
        layer, result = by_name[name], results[name]
        plain = f"{root}/{list(results).index(name)}"
        node.output[list(node.output).index(result)] = plain
        made += _quantiser(graph, layer, plain, result, steps)
    del graph.node[:]
    graph.node.extend(made)
    return model


def _quantiser(
    graph: onnx.GraphProto, layer: Layer, plain: str, result: str, steps: str
) -> list[onnx.NodeProto]:
    """result = θ/T · clip(floor(T·plain/θ + v(0)/θ), 0, G·T), with θ per spike."""

    def constant(what: str, values: Array) -> str:
        tensor = numpy_helper.from_array(np.asarray(values, np.float32), f"{plain}/{what}")
        graph.initializer.append(tensor)
        return str(tensor.name)

    theta = constant("theta", layer.threshold)
    start = constant("start", layer.membrane_start)
    levels = constant("levels", np.array(layer.levels))
    zero = constant("zero", np.zeros(()))
    names = {
        x: f"{plain}/{x}" for x in ("sum", "full", "raw", "whole", "most", "low", "fit", "out")
    }
    return [
        helper.make_node("Mul", [plain, steps], [names["sum"]]),
        helper.make_node("Add", [names["sum"], start], [names["full"]]),
        helper.make_node("Div", [names["full"], theta], [names["raw"]]),
        helper.make_node("Floor", [names["raw"]], [names["whole"]]),
        helper.make_node("Mul", [levels, steps], [names["most"]]),
        helper.make_node("Max", [names["whole"], zero], [names["low"]]),
        helper.make_node("Min", [names["low"], names["most"]], [names["fit"]]),
        helper.make_node("Mul", [names["fit"], theta], [names["out"]]),
        helper.make_node("Div", [names["out"], steps], [result]),
    ]
