"""Record what single neurons do: their spikes and membranes at every time-step.

The file is an .npz.  For every layer i, counted from 0, with m neurons of it, n samples and T steps:
    spikes_i      [T, n, m]  spikes at each step: 0 or 1, more for burst neurons, signed where they are
    membrane_i    [T, n, m]  membrane potential after each step
    rate_i        [n, m]     mean spikes a step
    threshold_i   [m]        what one spike takes away and stands for; threshold * mean(worth * spikes)
                             is the output
    neuron_i      [m]        which neurons: places in the sample's flattened array
    activation_i  [n, m]     the ANN's activation, where the ANN was given
In layered time, threshold * sum(worth * spikes) is the output, and membrane_i the potential after each
step of the window in which a neuron fires; it has received all of its input by then.

And `layers` (their names), `shapes` (of one sample, as text), `worth` (of a spike of each step, in
spikes of the end, [T]: 1 but where θ grows, or with radix spikes), `steps`, `seed` and `source`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from snncompiler.analysis.diagnose import Currents
from snncompiler.analysis.instrument import Layer, Watched
from snncompiler.analysis.walk import Walk
from snncompiler.calibration.calibrate import Progress
from snncompiler.emission.compiled import CompiledFile, read_compiled
from snncompiler.emission.save import write_atomically
from snncompiler.errors import UsageError, refuse
from snncompiler.findings import Finding
from snncompiler.ir.settings import MAX_STEPS
from snncompiler.network.batching import RUN, Axis, batches, filled
from snncompiler.network.data import Dataset, Preprocess
from snncompiler.network.prepare import prepared_again

Array = NDArray[Any]
ModelLike = str | os.PathLike[str] | bytes | onnx.ModelProto

#: Samples and neurons a layer that are recorded unless asked otherwise.
SAMPLES, NEURONS = 4, 64
#: A trace is held in memory until it is written.
MAX_BYTES = 2 << 30
#: Samples that run at once.
_BATCH = 4


@dataclass(frozen=True)
class LayerTrace:
    """What the recorded neurons of one layer did (see the head of this file)."""

    layer: str
    shape: tuple[int, ...]
    neuron: Array
    spikes: Array
    membrane: Array
    threshold: Array
    worth: Array
    activation: Array | None = None
    #: In layered time: what a spike of each step weighs, whose sum is the output, and not its mean.
    layered: bool = False

    @property
    def rate(self) -> Array:
        return np.asarray(self.spikes.mean(axis=0, dtype=np.float64).astype(np.float32))

    @property
    def decoded(self) -> Array:
        """What the layer gives, in the units of the ANN's activations: θ times the mean worth of a
        step's spikes."""
        times = 1 if self.layered else len(self.worth)
        mean = np.tensordot(self.worth.astype(np.float64) / times, self.spikes, 1)
        return np.asarray(mean.astype(np.float32) * self.threshold)


@dataclass(frozen=True)
class Trace:
    """A recording of some neurons of a compiled file."""

    layers: tuple[LayerTrace, ...]
    steps: int
    samples: int
    seed: int
    source: str
    findings: tuple[Finding, ...] = ()

    def arrays(self) -> dict[str, Array]:
        """The arrays of the .npz."""
        made: dict[str, Array] = {
            "layers": np.array([layer.layer for layer in self.layers]),
            "shapes": np.array(["x".join(map(str, layer.shape)) for layer in self.layers]),
            "worth": self.layers[0].worth,
            "steps": np.array(self.steps),
            "seed": np.array(self.seed),
            "source": np.array(self.source),
        }
        for index, layer in enumerate(self.layers):
            for what in ("spikes", "membrane", "rate", "threshold", "neuron", "activation"):
                values = getattr(layer, what)
                if values is not None:
                    made[f"{what}_{index}"] = values
        return made

    def save(self, path: Path) -> None:
        """Write the .npz, whole or not at all."""
        arrays: dict[str, Any] = self.arrays()
        write_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def trace(
    snn: ModelLike,
    data: str | os.PathLike[str] | Array | Mapping[str, Array] | Dataset,
    *,
    samples: int = SAMPLES,
    steps: int | None = None,
    ann: ModelLike | None = None,
    layers: Sequence[str] | None = None,
    neurons: int | None = NEURONS,
    seed: int = 0,
    preprocess: Preprocess | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Trace:
    """Run a compiled network step by step on the first samples, and record.

    steps: default the file's own.  ann: the source network, for its activations.  layers: names;
    default all.  neurons: how many of every layer, drawn by `seed`; None for all.
    Raises UsageError for a layer that is not there, for a file that cannot be stepped, or where the
    trace would not fit into memory; Refused where the data or the ANN does not belong to the file.
    """
    for option, value in (("--samples", samples), ("--neurons", 1 if neurons is None else neurons)):
        if value < 1:
            raise UsageError(f"{option} {value} is out of range", hint="at least 1")
    compiled = read_compiled(snn)
    count = compiled.steps if steps is None else steps
    if not 1 <= count <= MAX_STEPS:
        raise UsageError(f"-T {count} is out of range", hint=f"1 to {MAX_STEPS:,} time-steps")
    compiled.overrides(steps=count)
    layered = compiled.options.layered
    if not (layered or compiled.metadata["snnc.steps_input"]):
        raise UsageError(
            f"this file has its {compiled.steps} time-steps baked in, so it cannot be stepped",
            hint="compile it with --unroll fold",
        )
    walk = Walk(compiled, currents=layered, spikes=layered, threads=threads)
    chosen = _chosen(walk.layers, layers)
    currents = _currents(ann, compiled, threads)
    dataset = compiled.data(data, preprocess).head(samples).in_memory()
    worth = compiled.calibration.growth.worth(count)
    if compiled.options.radix:
        worth = (2.0 ** np.arange(count)[::-1]).astype(np.float32)
    writers: list[_Writer] = []
    axes = compiled.layer_axes
    if axes is not None and any(axes.get(layer.name) == RUN for layer in chosen):
        _check_single(compiled, [layer for layer in chosen if axes.get(layer.name) == RUN])
        parts = batches(len(dataset), 1)
    else:
        parts = batches(len(dataset), compiled.batch_size(_BATCH))
    for number, part in enumerate(parts):
        feeds = filled(dataset.feeds, part, compiled.fixed_batch)
        batch = len(next(iter(feeds.values())))
        stops = [count] if layered else range(1, count + 1)
        for at, values in walk.run(feeds, stops, part.start):
            if not writers:
                writers = [
                    _Writer(layer, values, neurons, seed, _axis(layer, values, batch, axes))
                    for layer in chosen
                ]
                _check_memory(sum(w.bytes_a_step for w in writers) * count * len(dataset))
                for writer in writers:
                    writer.allocate(count, len(dataset))
            for writer in writers:
                if layered:
                    writer.add_window(values, worth, part)
                else:
                    writer.add(values, at, part)
            if progress:
                progress("stepping", number * count + at, count * len(parts))
        if currents:
            received = currents.run(feeds)
            for writer in writers:
                writer.add_activation(received, currents.caps, part)
    return Trace(
        tuple(writer.result(worth) for writer in writers),
        count,
        len(dataset),
        seed,
        compiled.metadata["snnc.source"],
        dataset.findings,
    )


def _chosen(layers: Sequence[Layer], names: Sequence[str] | None) -> list[Layer]:
    if names is None:
        return list(layers)
    there = {layer.name: layer for layer in layers}
    missing = [name for name in names if name not in there]
    if missing or not names:
        raise UsageError(
            f"there is no layer '{missing[0]}'" if missing else "no layer is named",
            hint=f"the layers are {', '.join(there)}",
        )
    return [there[name] for name in dict.fromkeys(names)]


def _check_single(compiled: CompiledFile, layers: Sequence[Layer]) -> None:
    """Raises Refused where samples run together in layers that have no batch axis."""
    if compiled.fixed_batch not in (None, 1):
        raise refuse(
            "SNNC404",
            f"it mixes the {compiled.fixed_batch} samples of a run, so no neuron belongs to one sample",
            node=layers[0].name,
            hint="name other --layers",
        )


def _axis(
    layer: Layer, values: Mapping[str, Array], batch: int, axes: Mapping[str, Axis] | None
) -> Axis:
    """The axis of a layer along which the samples lie; a file of an earlier version does not tell, and
    the first one of their number is taken for it."""
    if axes is not None:
        return axes.get(layer.name, 0)
    shape = values[Watched.output(layer, "count")].shape
    return next((axis for axis, size in enumerate(shape) if size == batch), 0)


def _currents(
    ann: ModelLike | None, compiled: CompiledFile, threads: int | None
) -> Currents | None:
    if ann is None:
        return None
    prepared = prepared_again(ann, compiled.options, compiled.keeps_rounding)
    if not prepared.source.is_known_as(compiled.metadata["snnc.source_sha256"]):
        raise refuse(
            "SNNC402",
            f"{prepared.source.name} is not the network that the compiled file was made from",
            hint=f"that was {compiled.metadata['snnc.source']}",
        )
    return Currents(prepared, threads, compiled.model)


def _check_memory(size: int) -> None:
    if size > MAX_BYTES:
        raise UsageError(
            f"the trace would take {size:,} bytes, the limit is {MAX_BYTES:,}",
            hint="fewer --neurons, --samples, --layers or time-steps",
        )


class _Writer:
    """Collects one layer's trace."""

    def __init__(
        self,
        layer: Layer,
        values: Mapping[str, Array],
        neurons: int | None,
        seed: int,
        axis: Axis,
    ) -> None:
        self.axis, self.layer = axis, layer
        first = values[Watched.output(layer, "count")]
        self.shape = self._samples_first(first).shape[1:]
        total = int(np.prod(self.shape, dtype=np.int64))
        rng = np.random.default_rng([seed, *layer.name.encode()])
        if neurons is not None and neurons < total:
            self.neuron = np.sort(rng.choice(total, neurons, replace=False))
        else:
            self.neuron = np.arange(total)
        full = self._samples_first(np.broadcast_to(layer.in_values().threshold, first.shape))
        self.threshold = full[:1].reshape(-1)[self.neuron].astype(np.float32)
        self.activation: Array | None = None

    @property
    def bytes_a_step(self) -> int:
        """Of one sample."""
        return len(self.neuron) * (np.dtype(_spike_type(self.layer)).itemsize + 4)

    def allocate(self, steps: int, samples: int) -> None:
        size = (steps, samples, len(self.neuron))
        self.spikes = np.zeros(size, _spike_type(self.layer))
        self.membrane = np.zeros(size, np.float32)
        self.before = np.zeros(size[1:], np.float32)

    def _samples_first(self, values: Array) -> Array:
        """[samples, ...]; without a batch axis the whole is one sample."""
        if isinstance(self.axis, int):
            return np.moveaxis(values, self.axis, 0)
        return values[None]

    def _rows(self, values: Array, part: slice) -> Array:
        """The recorded neurons of the samples of a batch, [samples, m]."""
        rows = self._samples_first(values)[: part.stop - part.start]
        return np.asarray(rows.reshape(len(rows), -1)[:, self.neuron])

    def add(self, values: Mapping[str, Array], at: int, part: slice) -> None:
        """The state after step `at`."""
        count = self._rows(values[Watched.output(self.layer, "count")], part)
        self.spikes[at - 1, part] = count - self.before[part]
        self.before[part] = count
        end = self.layer.times_unit(values[Watched.output(self.layer, "membrane_end")])
        self.membrane[at - 1, part] = self._rows(end, part)

    def add_window(self, values: Mapping[str, Array], worth: Array, part: slice) -> None:
        """All steps of a window of layered time."""
        steps = len(worth)
        spikes = values[Watched.output(self.layer, "spikes")]
        spikes = spikes.reshape(steps, len(spikes) // steps, *spikes.shape[1:])
        total = values[Watched.output(self.layer, "current_sum")]
        left = self._rows(total + self.layer.membrane_start, part)
        for t, weight in enumerate(worth):
            fired = self._rows(spikes[t], part)
            left = left - weight * self.threshold * fired
            self.spikes[t, part], self.membrane[t, part] = fired, left

    def add_activation(
        self, received: Mapping[str, Array], caps: Mapping[str, float | None], part: slice
    ) -> None:
        if self.activation is None:
            self.activation = np.zeros(self.before.shape, np.float32)
        current = self._rows(received[self.layer.name], part)
        self.activation[part] = np.clip(current, 0.0, caps[self.layer.name])

    def result(self, worth: Array) -> LayerTrace:
        return LayerTrace(
            self.layer.name,
            self.shape,
            self.neuron,
            self.spikes,
            self.membrane,
            self.threshold,
            worth,
            self.activation,
            self.layer.layered,
        )


def _spike_type(layer: Layer) -> type[np.integer[Any]]:
    """The smallest type that holds the spikes of one step."""
    if layer.layered:
        return np.uint8
    if layer.signed:
        return np.int8 if layer.levels <= 127 else np.int32
    return np.uint8 if layer.levels <= 255 else np.int32
