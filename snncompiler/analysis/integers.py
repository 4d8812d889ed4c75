"""Whether the spikes of a quantized source stand for its integers, value by value.

The integers are those of the normalized network with its rounding (`passes/source/keep_rounding`), in
onnxruntime without its optimizer: sums of floats, in an order of their own, which may put what lies
half-way between two integers to the other side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from snncompiler.analysis.instrument import Watched, watch
from snncompiler.emission.metadata import pooled_of
from snncompiler.ir.graph import with_outputs
from snncompiler.ir.grids import grids_of
from snncompiler.network.prepared import Prepared, checking_session
from snncompiler.runtime.session import create_session

Array = NDArray[Any]


@dataclass(frozen=True)
class LayerIntegers:
    """One layer: how many integers were compared, how many differ, and by how many levels at most."""

    layer: str
    values: int
    different: int
    largest: int


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

    def __str__(self) -> str:
        if not self.different:
            return f"same integers at all {self.values:,} values"
        return (
            f"{self.different:,} of {self.values:,} integers differ, by at most {self.largest} "
            f"level{'s' * (self.largest > 1)}"
        )


def compare_integers(
    prepared: Prepared, model: onnx.ModelProto, feeds: Mapping[str, Array]
) -> Integers:
    """The integers of a source beside those of its spiking model, of all layers but those that are
    pooled together with others.

    prepared: with its rounding kept.  feeds: as many samples as both take at once.
    """
    grids = grids_of(prepared.graph)
    nodes = {node.name: node for node in prepared.graph.nodes}
    pooled = pooled_of(model)
    watched = watch(model)
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
    wanted = list(dict.fromkeys(name for name, _ in places.values()))
    source = checking_session(with_outputs(prepared.ann, wanted), optimize=False)
    values = dict(zip(wanted, source.run(wanted, dict(feeds)), strict=True))
    layers = [layer for layer in watched.layers if layer.name in places]
    names = [Watched.output(layer, "count") for layer in layers]
    counts = create_session(watched.model, events=False).run(names, dict(feeds))
    found = []
    for layer, count in zip(layers, counts, strict=True):
        name, scale = places[layer.name]
        whole = np.asarray(count, np.float64)
        spread = scale.reshape(-1, *[1] * max(whole.ndim - 2, 0)) if scale.size > 1 else scale
        difference = np.abs(whole - np.rint(values[name] / spread))
        found.append(
            LayerIntegers(
                layer=layer.name,
                values=difference.size,
                different=int(np.count_nonzero(difference)),
                largest=int(difference.max(initial=0)),
            )
        )
    return Integers(tuple(found))
