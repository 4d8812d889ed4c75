"""Whether the spikes of a quantized source stand for its integers, value by value.

The integers are those of the normalized network with its rounding (`passes/source/keep_rounding`), in
onnxruntime without its optimizer: sums of floats, in an order of their own, which may put what lies
half-way between two integers to the other side.  In a deep network one such integer changes others
behind it.  So there are two comparisons: of the network as a whole, and of each layer fed with the
source's own integers, where nothing is handed on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from snncompiler.analysis.instrument import LAYERED, Layer, Watched, watch
from snncompiler.emission.metadata import pooled_of
from snncompiler.ir.graph import OWN, cut_at, with_outputs
from snncompiler.ir.grids import grids_of
from snncompiler.network.prepared import Prepared, checking_session
from snncompiler.runtime.session import create_session

Array = NDArray[Any]


@dataclass(frozen=True)
class LayerIntegers:
    """One layer: how many integers were compared, how many differ, and by how many levels at most.

    from_half: how far from half-way between two integers, in levels, what differs lies at most; 0 where
    nothing differs, and where the currents are not known.
    """

    layer: str
    values: int
    different: int
    largest: int
    from_half: float = 0.0


@dataclass(frozen=True)
class Integers:
    """All layers whose rounding the source has."""

    layers: tuple[LayerIntegers, ...]

    @property
    def values(self) -> int:
        return sum(layer.values for layer in self.layers)

    @property
    def different(self) -> int:
        return sum(layer.different for layer in self.layers)

    @property
    def largest(self) -> int:
        return max((layer.largest for layer in self.layers), default=0)

    @property
    def from_half(self) -> float:
        return max((layer.from_half for layer in self.layers), default=0.0)

    def __str__(self) -> str:
        if not self.different:
            return f"same integers at all {self.values:,} values"
        return (
            f"{self.different:,} of {self.values:,} integers differ, by at most {self.largest} "
            f"level{'s' * (self.largest > 1)}"
        )


def compare_integers(
    prepared: Prepared, model: onnx.ModelProto, feeds: Mapping[str, Array], *, fed: bool = False
) -> Integers:
    """The integers of a source beside those of its spiking model, of all layers but those that are
    pooled together with others.

    prepared: with its rounding kept.  feeds: as many samples as both take at once.  fed: every layer
    gets the source's own integers, and so does what reads a value that is rounded without spikes.
    """
    watched = watch(model, currents=fed)
    places = _places(prepared, model, watched)
    layers = [layer for layer in watched.layers if layer.name in places]
    names = {node.output[0] for node in prepared.ann.graph.node if node.op_type == "Round"}
    rounds = [
        node.output[0]
        for node in watched.model.graph.node
        if node.op_type == "Round" and node.output[0] in names and fed
    ]
    wanted = list(dict.fromkeys([*(name for name, _ in places.values()), *rounds]))
    source = checking_session(with_outputs(prepared.ann, wanted), optimize=False)
    values = dict(zip(wanted, source.run(wanted, dict(feeds)), strict=True))
    numbers = {layer.name: _numbers(values, *places[layer.name]) for layer in layers}
    given = dict(feeds)
    spiking = watched.model
    if fed:
        spiking = _cut(spiking, layers, rounds)
        coded = {layer.name: _spikes(layer, numbers[layer.name]) for layer in layers}
        given |= {_sent(spiking, name): spikes for name, spikes in coded.items()}
        given |= {name: values[name] for name in rounds}
    outputs = [Watched.output(layer, "count") for layer in layers]
    outputs += [f"{name}{OWN}" for name in rounds]
    outputs += [Watched.output(layer, "current_sum") for layer in layers if fed]
    session = create_session(spiking, events=False)
    found = dict(zip(outputs, session.run(outputs, given), strict=True))
    compared = []
    for layer in layers:
        full = None
        if fed:
            full = found[Watched.output(layer, "current_sum")] / layer.threshold + 0.5
        count = found[Watched.output(layer, "count")]
        compared.append(_compared(layer.name, count, numbers[layer.name], full))
    compared += [_compared(name, found[f"{name}{OWN}"], values[name]) for name in rounds]
    return Integers(tuple(compared))


def _places(
    prepared: Prepared, model: onnx.ModelProto, watched: Watched
) -> dict[str, tuple[str, NDArray[np.float32]]]:
    """Of every layer the tensor of the source that its spikes stand for, and what 1 stands for."""
    grids = grids_of(prepared.graph)
    nodes = {node.name: node for node in prepared.graph.nodes}
    pooled = pooled_of(model)
    places = {}
    for layer in watched.layers:
        rectifier, pool = pooled.get(layer.name, (layer.name, ""))
        if rectifier not in grids:
            continue
        rounded = grids[rectifier].rounded
        if pool:
            # A neuron that fires behind a pooling sends what is pooled in the source.
            reader = nodes.get(pool.removeprefix(f"{rectifier}/"))
            if reader is None or reader.inputs[0] is not rounded:
                continue  # it pools what several of them send
            rounded = reader.outputs[0]
        places[layer.name] = rounded.name, grids[rectifier].scale
    return places


def _numbers(values: Mapping[str, Array], name: str, scale: Array) -> Array:
    """The integers of a tensor."""
    found = values[name]
    spread = scale.reshape(-1, *[1] * max(found.ndim - 2, 0)) if scale.size > 1 else scale
    return np.asarray(np.rint(found / spread), np.float64)


def _compared(name: str, found: Array, wanted: Array, full: Array | None = None) -> LayerIntegers:
    """One layer; `full` is what its integers are rounded down from."""
    difference = np.abs(np.asarray(found, np.float64) - wanted)
    other = difference > 0
    apart = np.zeros(1)
    if full is not None and np.any(other):
        apart = np.abs(full[other] - np.maximum(found, wanted)[other])
    return LayerIntegers(
        layer=name,
        values=difference.size,
        different=int(np.count_nonzero(difference)),
        largest=int(difference.max(initial=0)),
        from_half=float(apart.max(initial=0)),
    )


# --- every layer by itself ---


def _cut(model: onnx.ModelProto, layers: list[Layer], rounds: list[str]) -> onnx.ModelProto:
    """A watched model in which layers, and roundings without spikes, read what is fed for the spikes
    and roundings before them."""
    spikes = [_sent(model, layer.name) for layer in layers]
    return cut_at(model, [*rounds, *spikes], tuple(f"{layer.root}/" for layer in layers))


def _sent(model: onnx.ModelProto, layer: str) -> str:
    """The name of the spikes of a layer, as others read them."""
    node = next(x for x in model.graph.node if x.op_type == LAYERED and x.name == layer)
    return str(node.output[0].removesuffix(OWN))


def _spikes(layer: Layer, numbers: Array) -> NDArray[np.float32]:
    """The spikes [T·N, ...] that stand for numbers [N, ...]."""
    steps = layer.levels.bit_length() if layer.radix else layer.levels
    whole = numbers.astype(np.int64)
    if layer.radix:
        digits = np.concatenate([(whole >> place) & 1 for place in reversed(range(steps))])
        return digits.astype(np.float32)
    return np.concatenate([whole > step for step in range(steps)]).astype(np.float32)
