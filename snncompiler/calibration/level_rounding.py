"""Weights of few bits in layered time: rounded by error feedback, layer by layer, in the network of
whole numbers itself, whose means are then mended.

The network is the emitted one before its time is laid out: what neurons send are counts, and all sums
are whole numbers.  Layers are taken from the input on.  The weights in front of a neuron are rounded
with the Gram matrix of what they read (`feedback`), then its current is shifted by a whole number, per
channel, so that in the mean it sends what the ANN sends.  Layers whose outputs are added up share a
scale, which the pass `whole-numbers` has chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snncompiler.calibration.feedback import FARTHEST, nearest_to, round_weights
from snncompiler.calibration.gram import of_positions
from snncompiler.calibration.level_network import (
    LevelNetwork,
    places,
    shift_for_mean,
    spread,
    squared_error,
)
from snncompiler.calibration.record import Calibration
from snncompiler.calibration.window import spiking_graph
from snncompiler.ir import dialect
from snncompiler.ir.graph import (
    Graph,
    Node,
    constant_input,
    with_outputs,
)
from snncompiler.ir.rectifiers import rectified_channels, rectifiers_of
from snncompiler.ir.settings import Options
from snncompiler.ir.whole import Grid
from snncompiler.network.prepared import Prepared, as_model
from snncompiler.passes.base import Units
from snncompiler.runtime.session import LARGE_GRAPH, create_session

Floats = NDArray[np.float32]

#: Positions at which a rectifier is looked at, over all samples.
POSITIONS = 40_000
#: A rectifier that is seen at fewer positions is not shifted.
LEAST_POSITIONS = 32


def rounded_levels(
    prepared: Prepared,
    calibration: Calibration,
    options: Options,
    feeds: Mapping[str, NDArray[Any]],
    batch: int,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """The calibration with weights that are rounded by error feedback, and what mends their means.

    feeds: samples by input name, [n, ...].  batch: samples that run at once.
    """
    graph, grid, units = _whole(prepared, calibration, options)
    rounding = _Rounding(prepared, calibration, graph, grid, units, feeds, batch)
    neurons = [node for node in graph.nodes if _is_neuron(node)]
    for done, node in enumerate(neurons):
        rounding.settle(node)
        if progress:
            progress(done + 1, len(neurons))
    mended = replace(
        calibration, corrected_biases=rounding.biases, report=rounding.report, whole={}
    )
    # Other biases may have changed a scale a little.
    _, _, again = _whole(prepared, mended, options)
    changes = {
        name: np.clip(numbers - nearest_to(again[name]), *FARTHEST).astype(np.int8)
        for name, numbers in rounding.numbers().items()
    }
    return replace(mended, whole=changes)


def _whole(
    prepared: Prepared, calibration: Calibration, options: Options
) -> tuple[Graph, Grid, dict[str, Units]]:
    """The network in whole numbers, of which every neuron reads complete values; its scales, and its
    weights before they are rounded."""
    own = prepared.apart()
    graph = spiking_graph(own, calibration, options, settled=False)
    return graph, own.context.grid, own.context.units


def _is_neuron(node: Node) -> bool:
    return bool(node.domain == dialect.DOMAIN and node.op in dialect.NEURONS)


class _Rounding:
    """A run of `rounded_levels`: the network as far as its weights are rounded."""

    def __init__(
        self,
        prepared: Prepared,
        calibration: Calibration,
        graph: Graph,
        grid: Grid,
        units: Mapping[str, Units],
        feeds: Mapping[str, NDArray[Any]],
        batch: int,
    ) -> None:
        self.grid, self.units, self.levels = grid, units, calibration.levels
        self.seed = calibration.seed
        self.network = LevelNetwork(as_model(graph), feeds, calibration.levels, batch)
        self.changes: dict[str, NDArray[np.int8]] = {}
        self.biases = dict(calibration.corrected_biases)
        self.report = {name: dict(parts) for name, parts in calibration.report.items()}
        self.order = [node for node in graph.nodes if _is_neuron(node)]
        self.rectifiers = {node.name: node for node in rectifiers_of(prepared.graph)}
        self.analog = self._sampled(prepared)

    def numbers(self) -> dict[str, NDArray[np.float64]]:
        """The weights that were rounded, in multiples of their step."""
        return {name: nearest_to(self.units[name]) + one for name, one in self.changes.items()}

    def _sampled(self, prepared: Prepared) -> dict[str, Floats]:
        """What every rectifier of the ANN gives at the positions that are looked at, [P, C]."""
        outputs = {node.outputs[0].name: node for node in self.rectifiers.values()}
        session = create_session(
            with_outputs(prepared.ann, list(outputs)),
            optimize=len(prepared.ann.graph.node) <= LARGE_GRAPH,
        )
        parts: dict[str, list[Floats]] = {node.name: [] for node in outputs.values()}
        for index, part in enumerate(self.network.parts):
            feeds = {name: array[part] for name, array in self.network.feeds.items()}
            for name, values in zip(outputs, session.run(list(outputs), feeds), strict=True):
                parts[outputs[name].name].append(self._at(values, index))
        return {name: np.concatenate(found) for name, found in parts.items()}

    def _at(self, values: Floats, index: int) -> Floats:
        """Values of batch `index` at those positions."""
        axis = 1 if values.ndim > 1 else -1
        count = values.size // max(values.shape[axis], 1)
        chosen = places(count, POSITIONS, len(self.network.parts), (self.seed, index))
        return np.asarray(of_positions(values, axis, chosen), np.float32)

    def settle(self, node: Node) -> None:
        """Round the weights in front of a neuron, shift its current, and let it send."""
        current = node.inputs[0].name
        before, _ = self.network.before([current])
        round_weights(
            before, self.units, self.network.constants, self._values, self.changes, self.seed
        )
        currents = [values for (values,) in self.network.values([current])]
        scale = self.grid.of(node.name).scale.astype(np.float32)
        quantum = _flat(node, "threshold")
        shift = self._shift(node.name, currents, quantum, scale)
        moved = (values + spread(shift, values.ndim) for values in currents)
        self.network.settle(node.outputs[0].name, quantum, moved, np.ones(1, np.float32))
        left = self.order[self.order.index(node) + 1 :]
        self.network.forget([later.inputs[0].name for later in left])

    def _values(self, name: str) -> Iterable[tuple[Floats, int]]:
        for (values,), part in zip(self.network.values([name]), self.network.parts, strict=True):
            yield values, part.stop - part.start

    def _shift(self, name: str, currents: list[Floats], quantum: Floats, scale: Floats) -> Floats:
        """The whole number by which a current is shifted, [C] or [1]; told to the calibration."""
        analog = self.analog[name]
        received = np.concatenate([self._at(part, i) for i, part in enumerate(currents)])
        shared = rectified_channels(self.rectifiers[name]) == 1
        if shared:
            analog, received = analog.reshape(-1, 1), received.reshape(-1, 1)
        if len(analog) < LEAST_POSITIONS:
            return np.zeros(1, np.float32)
        wanted = analog / scale
        spread_quantum = np.broadcast_to(quantum, received.shape[1:])
        mean = wanted.mean(axis=0, dtype=np.float64)
        shift = np.floor(shift_for_mean(received, spread_quantum, self.levels, mean) + 0.5)
        own = self.biases.get(name, np.zeros(1, np.float32))
        self.biases[name] = np.asarray(own + shift * scale, np.float32)
        left = squared_error(received + shift, spread_quantum, self.levels, wanted)
        self.report.setdefault(name, {})["rounding"] = float(f"{left:.3g}")
        return np.asarray(shift, np.float32)


def _flat(node: Node, port: str) -> Floats:
    """A constant of a neuron, [C] or [1]."""
    index = [one.name for one in dialect.OPERATORS[node.op].inputs].index(port)
    held = constant_input(node, index)
    assert held is not None
    return np.asarray(held, np.float32).reshape(-1)
