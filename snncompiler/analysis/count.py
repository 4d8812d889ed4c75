"""What a network counts: neurons, thresholds, multiply-accumulates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snncompiler.analysis.instrument import Arrivals, Watched, watch
from snncompiler.analysis.walk import Walk
from snncompiler.emission.compiled import CompiledFile
from snncompiler.errors import EnvironmentMissing

Array = NDArray[Any]


def thresholds_of(compiled: CompiledFile) -> list[dict[str, Any]]:
    """A row for every layer and channel: its threshold and what belongs to it.

    `threshold` is θ, what the ANN's activation is clipped to; `per_spike` what one spike takes away.
    `channel` is None where the whole layer shares one threshold.  `neurons` is the number of neurons
    of the layer for one sample, None where it depends on the input or nothing runs here.
    """
    layers = [layer.in_values() for layer in watch(compiled.model).layers]
    neurons = _neurons_of(compiled)
    rows = []
    for layer in layers:
        spread = np.broadcast_arrays(layer.threshold, layer.membrane_start)
        theta, starts = (values.reshape(-1) for values in spread)
        for channel, value in enumerate(theta):
            rows.append(
                {
                    "layer": layer.name,
                    "channel": channel if theta.size > 1 else None,
                    "threshold": float(value * np.float32(layer.levels)),
                    "per_spike": float(value),
                    "initial": float(starts[channel]),
                    "schedule": 0 if layer.schedule is None else len(layer.schedule),
                    "neuron": layer.operator,
                    "levels": layer.levels,
                    "neurons": neurons.get(layer.name),
                }
            )
    return rows


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates for one sample: of each layer's weights at one time-step, and of all that is
    computed once.  See `ir/synapses.py` for what is counted."""

    layers: Mapping[str, int]
    once: int

    @property
    def a_step(self) -> int:
        return sum(self.layers.values())

    @property
    def ann(self) -> int:
        """Of the ANN, which computes every layer once."""
        return self.a_step + self.once

    def as_dict(self) -> dict[str, int]:
        return {"ann": self.ann, "a_step": self.a_step, "once": self.once}


def macs_of(compiled: CompiledFile) -> Macs | None:
    """The multiply-accumulates, by running one step on zeros; None where that cannot run."""
    ran = _on_zeros(compiled, arrivals=True)
    if ran is None:
        return None
    walk, values, samples = ran
    return macs_from(walk.watched.arrivals, values, samples)


def macs_from(arrivals: Sequence[Arrivals], values: Mapping[str, Array], samples: int) -> Macs:
    """The multiply-accumulates, from the outputs of a run with `samples` samples."""
    layers: dict[str, int] = {}
    once = 0
    for arrival in arrivals:
        found = values[arrival.output]
        shape = found.shape if arrival.layer else tuple(found.tolist())
        count = arrival.synapses.dense(shape) // samples
        if arrival.layer:
            layers[arrival.layer] = layers.get(arrival.layer, 0) + count
        else:
            once += count
    return Macs(layers, once)


def _neurons_of(compiled: CompiledFile) -> dict[str, int]:
    """Neurons of each layer for one sample; empty where the file cannot run."""
    ran = _on_zeros(compiled, arrivals=False)
    if ran is None:
        return {}
    walk, values, samples = ran
    return {
        layer.name: values[Watched.output(layer, "count")].size // samples for layer in walk.layers
    }


def _on_zeros(compiled: CompiledFile, arrivals: bool) -> tuple[Walk, dict[str, Array], int] | None:
    """One step, or all where they are baked in, on zeros: the walk, its outputs, the number of samples.
    None where a shape depends on the input or nothing runs here."""
    shapes = [spec.shape for spec in compiled.inputs]
    if compiled.options.emit == "step" or any(None in shape[1:] for shape in shapes):
        return None
    batch = compiled.batch_size(1)
    feeds = {
        spec.name: np.zeros(
            [batch, *(dim or 1 for dim in spec.shape[1:])][: len(spec.shape)], spec.dtype
        )
        for spec in compiled.inputs
    }
    try:
        walk = Walk(compiled, arrivals=arrivals, threads=1)
        steps = 1 if walk.watched.start else compiled.steps
        _, values = next(iter(walk.run(feeds, [steps])))
    except EnvironmentMissing:
        return None
    return walk, values, batch
