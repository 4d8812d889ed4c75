"""Compare a compiled network with its ANN on data: accuracy against time-steps, and activity."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from snncompiler.compiled import CompiledFile, batches, filled, read_compiled
from snncompiler.data import Dataset, Preprocess, load_data
from snncompiler.diagnostics import Finding
from snncompiler.errors import UsageError, refuse
from snncompiler.io import load
from snncompiler.pipeline import MAX_STEPS, Progress
from snncompiler.runtime.session import create_session
from snncompiler.watch import Watched, watch

Array = NDArray[Any]

#: Samples that run at once.
BATCH = 16


@dataclass(frozen=True)
class LayerActivity:
    """Spiking of one layer: the mean firing rate in spikes per neuron and step; the share of
    (sample, neuron) pairs that fire at every step; the share of neurons that never fire."""

    layer: str
    firing_rate: float
    saturated: float
    silent: float


@dataclass(frozen=True)
class StepResult:
    """One number of time-steps.  Accuracy needs labels, agreement needs class scores.

    `relative_error` is |SNN - ANN| / |ANN| over all float outputs and samples (Euclidean norms).
    """

    steps: int
    accuracy: float | None
    agreement: float | None
    relative_error: float
    firing_rate: float
    layers: tuple[LayerActivity, ...]


@dataclass(frozen=True)
class Evaluation:
    """The whole comparison.  `ann_accuracy` is None without labels."""

    samples: int
    ann_accuracy: float | None
    results: tuple[StepResult, ...]
    findings: tuple[Finding, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        content = asdict(self)
        content["findings"] = [finding.as_dict() for finding in self.findings]
        return content


def evaluate(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    snn: str | os.PathLike[str] | bytes | onnx.ModelProto,
    data: str | os.PathLike[str] | Array | Mapping[str, Array] | Dataset,
    *,
    steps: Sequence[int] | None = None,
    limit: int | None = None,
    preprocess: Preprocess | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Run ANN and SNN on the same data, the SNN once for every entry of `steps`.

    model: the source network; snn: the compiled one; data: as for `load_data`, labels optional.
    steps: time-steps to evaluate at; default the file's own.  limit: use the first samples only.
    Raises Refused where the two do not belong together or the data does not fit, UsageError for
    steps that the file cannot run with.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit} is out of range", hint="at least 1 sample")
    compiled = read_compiled(snn)
    source = load(model)
    if source.sha256 != compiled.metadata["snnc.source_sha256"]:
        raise refuse(
            "SNNC402",
            f"{source.name} is not the network that the compiled file was made from",
            hint=f"that was {compiled.metadata['snnc.source']}",
        )
    wanted = list(steps) if steps else [compiled.steps]
    for count in wanted:
        if not 1 <= count <= MAX_STEPS:
            raise UsageError(f"--steps {count} is out of range", hint=f"1 to {MAX_STEPS:,}")
        compiled.overrides(steps=count)
    dataset = load_data(data, compiled.inputs, preprocess).head(limit)
    parts = batches(len(dataset), compiled.batch_size(BATCH))

    ann = _run_ann(source.model, dataset, threads)
    scores = _scores_at(ann)
    labels = dataset.labels
    if labels is not None and scores is None:
        raise refuse("SNNC302", "the data has labels, but no output of the network is class scores")
    if labels is not None and scores is not None:
        classes = ann[scores].shape[1]
        if labels.min() < 0 or labels.max() >= classes:
            raise refuse(
                "SNNC302",
                f"labels go from {labels.min()} to {labels.max()}, the network has {classes} classes",
            )
    watched = watch(compiled.model)
    session = create_session(watched.model, threads=threads)
    results = []
    for index, count in enumerate(wanted):
        run = _Run(compiled, watched, count)
        for number, part in enumerate(parts):
            feeds = filled(dataset.feeds, part, compiled.fixed_batch)
            values = session.run(None, {**feeds, **compiled.overrides(steps=count)})
            values = [np.atleast_1d(value)[: part.stop - part.start] for value in values]
            run.add(values, [output[part] for output in ann], scores)
            if progress:
                progress(f"T = {count}", index * len(parts) + number + 1, len(wanted) * len(parts))
        results.append(run.result(labels, None if scores is None else ann[scores]))
    accuracy = None
    if labels is not None and scores is not None:
        accuracy = float((ann[scores].argmax(axis=1) == labels).mean())
    return Evaluation(len(dataset), accuracy, tuple(results), dataset.findings)


def _run_ann(model: onnx.ModelProto, dataset: Dataset, threads: int | None) -> list[Array]:
    """The source network's outputs; in batches where its own input allows that."""
    session = create_session(model, threads=threads)
    dims = [entry.shape[0] for entry in session.get_inputs() if entry.shape]
    fixed = next((dim for dim in dims if isinstance(dim, int) and dim > 0), None)
    collected: list[list[Array]] = []
    for part in batches(len(dataset), fixed or BATCH):
        values = session.run(None, filled(dataset.feeds, part, fixed))
        count = part.stop - part.start
        collected.append([np.atleast_1d(np.asarray(value))[:count] for value in values])
    return [np.concatenate(parts) for parts in zip(*collected, strict=True)]


def _scores_at(outputs: Sequence[Array]) -> int | None:
    """Which output holds class scores: the first float one of shape [N, classes]."""
    for index, output in enumerate(outputs):
        if output.dtype.kind == "f" and output.ndim == 2 and output.shape[1] > 1:
            return index
    return None


class _Run:
    """Sums up one pass over the data at one number of steps."""

    def __init__(self, compiled: CompiledFile, watched: Watched, steps: int) -> None:
        self.steps = steps
        self.layers = watched.layers
        self.names = [entry.name for entry in watched.model.graph.output]
        self.own = len(compiled.model.graph.output)
        self.classes: list[Array] = []
        self.error = self.norm = 0.0
        self.spikes = dict.fromkeys((layer.name for layer in self.layers), 0.0)
        self.pairs = dict.fromkeys((layer.name for layer in self.layers), 0)
        self.full = dict.fromkeys((layer.name for layer in self.layers), 0)
        self.fired: dict[str, Array] = {}

    def add(self, values: Sequence[Any], ann: Sequence[Array], scores: int | None) -> None:
        by_name = dict(zip(self.names, values, strict=True))
        for value, reference in zip(values[: self.own], ann, strict=True):
            if reference.dtype.kind == "f":
                wide = reference.astype(np.float64)
                self.error += float(np.square(np.atleast_1d(value) - wide).sum())
                self.norm += float(np.square(wide).sum())
        if scores is not None:
            self.classes.append(values[scores].argmax(axis=1))
        for layer in self.layers:
            count = by_name[Watched.output(layer, "count")]
            self.spikes[layer.name] += float(count.sum(dtype=np.float64))
            self.pairs[layer.name] += count.size
            self.full[layer.name] += int((count >= self.steps).sum())
            fired = (count > 0).any(axis=0)
            self.fired[layer.name] = fired | self.fired.get(layer.name, np.zeros_like(fired))

    def result(self, labels: Array | None, ann_scores: Array | None) -> StepResult:
        layers = tuple(
            LayerActivity(
                layer=layer.name,
                firing_rate=self.spikes[layer.name] / (self.pairs[layer.name] * self.steps),
                saturated=self.full[layer.name] / self.pairs[layer.name],
                silent=1.0 - float(self.fired[layer.name].mean()),
            )
            for layer in self.layers
        )
        classes = np.concatenate(self.classes) if self.classes else None
        agreement = accuracy = None
        if classes is not None and ann_scores is not None:
            agreement = float((classes == ann_scores.argmax(axis=1)).mean())
            accuracy = None if labels is None else float((classes == labels).mean())
        return StepResult(
            steps=self.steps,
            accuracy=accuracy,
            agreement=agreement,
            relative_error=float(np.sqrt(self.error / self.norm)) if self.norm else 0.0,
            firing_rate=sum(self.spikes.values()) / (sum(self.pairs.values()) * self.steps),
            layers=layers,
        )
