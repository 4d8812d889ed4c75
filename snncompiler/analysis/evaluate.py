"""Compare a compiled network with its ANN on data: accuracy against time-steps, activity, synaptic
operations, and where the error comes from.  One run gives every number of time-steps (`watch.Walk`)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from snncompiler.analysis.count import Macs, macs_from
from snncompiler.analysis.diagnose import (
    Currents,
    Diagnosis,
    Quantised,
    Split,
    Weighed,
    blame,
    quantised_ann,
)
from snncompiler.analysis.instrument import Watched
from snncompiler.analysis.walk import Walk
from snncompiler.calibration.calibrate import Progress
from snncompiler.emission.compiled import CompiledFile, read_compiled
from snncompiler.errors import UsageError, refuse
from snncompiler.findings import Finding
from snncompiler.ir.settings import MAX_STEPS
from snncompiler.network.batching import (
    RUN,
    Axis,
    Gathered,
    batches,
    cut,
    differing,
    filled,
    one_by_one,
    squares,
)
from snncompiler.network.data import Dataset, Preprocess, load_data
from snncompiler.network.load import load
from snncompiler.network.prepare import prepared_again
from snncompiler.network.prepared import runnable
from snncompiler.passes.lower.lower_events import LayerNote
from snncompiler.runtime.session import create_session, runs_events

Array = NDArray[Any]

#: Samples that run at once.
BATCH = 16
#: The same for a diagnosis, which holds the currents of every layer in float64.
DIAGNOSIS_BATCH = 4
#: The normal distribution's two-sided 95 %.
_Z95 = 1.959964


@dataclass(frozen=True)
class LayerActivity:
    """How much one layer spikes.

    `firing_rate` is the mean number of spikes per neuron and step, negative spikes included.
    `saturated` is the share of (sample, neuron) pairs that fire all they can at every step, and
    `silent` the share of neurons that never fire.
    """

    layer: str
    firing_rate: float
    saturated: float
    silent: float


@dataclass(frozen=True)
class SynOps:
    """Synaptic operations of one sample over all time-steps, as the mean over the samples
    (`ir/synapses.py`): `done` are those that spikes caused, `dense` those of the same layer computed
    densely.  `layer` is the neuron layer into which they flow."""

    layer: str
    done: float
    dense: float

    @property
    def avoided(self) -> float:
        return self.dense - self.done

    @property
    def share(self) -> float:
        """The operations done, as a share of the dense ones."""
        return self.done / self.dense if self.dense else 0.0

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "avoided": self.avoided, "share": self.share}


@dataclass(frozen=True)
class OutputError:
    """The error of one float output over all samples: |SNN - ANN| / |ANN| (Euclidean norms).

    `relative_error` is None if the shapes of the two differ anywhere.  `differ` is the number of
    samples in which they differ, or the number of runs if the output is one value for a run.
    """

    output: str
    relative_error: float | None
    differ: int = 0


@dataclass(frozen=True)
class StepResult:
    """One number of time-steps.  Accuracy and agreement need class scores: a float output [N, classes]
    of a network that is not for regression, unless the data has labels.

    `relative_error` is |SNN - ANN| / |ANN| over all float outputs and samples (Euclidean norms), those
    of `outputs`; None where none of them can be compared.
    `latency` is the number of time-steps after which an answer is there, and the next one comes T steps
    later; `spikes` is the number of spikes of a sample, as the mean over the samples.
    `drop` is the accuracy that the ANN has more, as a share, `drop_interval` its 95 % interval from the
    pairs of answers to the same samples (`paired_interval`).  `predictions` is the class of every
    sample, None without class scores.  `diagnosis` is there where it was asked for.  `synops` has the
    layers that receive spikes.
    """

    steps: int
    accuracy: float | None
    agreement: float | None
    relative_error: float | None
    firing_rate: float
    layers: tuple[LayerActivity, ...]
    drop: float | None = None
    drop_interval: tuple[float, float] | None = None
    predictions: tuple[int, ...] | None = None
    diagnosis: Diagnosis | None = None
    synops: tuple[SynOps, ...] = ()
    outputs: tuple[OutputError, ...] = ()
    latency: int = 0
    spikes: float = 0.0

    @property
    def all_synops(self) -> SynOps:
        """The synaptic operations of all layers together."""
        parts = self.synops
        return SynOps("", sum(part.done for part in parts), sum(part.dense for part in parts))


@dataclass(frozen=True)
class Evaluation:
    """The comparison of a compiled network with its source.

    `results` has an entry for each number of time-steps.  `ann_accuracy` is None without labels.
    `macs` are the multiply-accumulates of one sample.  `events` says for each layer as which
    event-driven operator it ran, or why it ran as it stands in the file.
    """

    samples: int
    ann_accuracy: float | None
    results: tuple[StepResult, ...]
    findings: tuple[Finding, ...] = field(default=())
    ann_predictions: tuple[int, ...] | None = None
    macs: Macs = field(default_factory=lambda: Macs({}, 0))
    events: tuple[LayerNote, ...] = ()

    def as_dict(self, *, predictions: bool = False) -> dict[str, Any]:
        """As plain data; the predicted classes only where they are asked for."""
        content = asdict(self)
        content["macs"] = self.macs.as_dict()
        for result, made in zip(content["results"], self.results, strict=True):
            whole = made.all_synops.as_dict()
            del whole["layer"]
            result["synops"] = {**whole, "layers": [part.as_dict() for part in made.synops]}
        content["findings"] = [finding.as_dict() for finding in self.findings]
        for result in content["results"]:
            if result["diagnosis"] is None:
                del result["diagnosis"]
            if not predictions:
                del result["predictions"]
        if not predictions:
            del content["ann_predictions"]
        return content


def paired_interval(ann_right: Array, snn_right: Array) -> tuple[float, float]:
    """The 95 % interval of the drop in accuracy, from which of the same samples each got right.

    Bonett and Price (2012): Wald's interval after one more disagreement of either kind, which keeps its
    coverage where there are few.
    """
    total = len(ann_right) + 2
    worse = (np.sum(ann_right & ~snn_right) + 1) / total
    better = (np.sum(snn_right & ~ann_right) + 1) / total
    half = _Z95 * np.sqrt((worse + better - (worse - better) ** 2) / total)
    return max(float(worse - better - half), -1.0), min(float(worse - better + half), 1.0)


def evaluate(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    snn: str | os.PathLike[str] | bytes | onnx.ModelProto,
    data: str | os.PathLike[str] | Array | Mapping[str, Array] | Dataset,
    *,
    steps: Sequence[int] | None = None,
    limit: int | None = None,
    diagnose: bool = False,
    preprocess: Preprocess | None = None,
    labels: str | os.PathLike[str] | None = None,
    skip_damaged: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Run ANN and SNN on the same data.  The SNN runs once, to the largest entry of `steps`.

    model: the source network.  snn: the compiled network.  data: as for `load_data`; labels are
        optional.
    steps: the numbers of time-steps at which to evaluate; by default the file's own.
    limit: how many of the first samples to use.  labels, skip_damaged: of images, as for `load_data`.
    diagnose: split the error of every layer, and run the quantised ANN (`diagnose.py`).  The network
        does not run by events then.
    Raises Refused if the two do not belong together or the data does not fit, and UsageError for steps
    with which the file cannot run.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit} is out of range", hint="at least 1 sample")
    compiled = read_compiled(snn)
    source = load(model)
    if not source.is_known_as(compiled.metadata["snnc.source_sha256"]):
        raise refuse(
            "SNNC402",
            f"{source.name} is not the network that the compiled file was made from",
            hint=f"that was {compiled.metadata['snnc.source']}",
        )
    wanted = [int(count) for count in steps] if steps else [compiled.steps]
    for count in wanted:
        if not 1 <= count <= MAX_STEPS:
            raise UsageError(f"--steps {count} is out of range", hint=f"1 to {MAX_STEPS:,}")
        compiled.overrides(steps=count)
    if "snnc.output_axes" not in compiled.metadata:  # a file of an earlier version
        again = prepared_again(model, compiled.options, compiled.keeps_rounding)
        compiled = replace(compiled, output_axes=again.output_axes, layer_axes=again.layer_axes)
    dataset = load_data(data, compiled.inputs, preprocess, labels=labels, skip_damaged=skip_damaged)
    dataset = dataset.head(limit).in_memory()
    most = DIAGNOSIS_BATCH if diagnose else BATCH
    # The ANN's outputs may depend on how many samples run at once: as many for both.
    together = compiled.batch_size(most, dataset.values)
    parts = batches(len(dataset), together)

    runs_as, why = runnable(source.model)
    findings = dataset.findings
    if why:
        text = f"the source was run in float32, because onnxruntime does not run it: {why}"
        findings += (Finding("SNNC208", text, severity="note"),)
    ann = _run_ann(runs_as, dataset, compiled, together, threads)
    classes_given = dataset.labels
    scores = _scores_at(ann, compiled.options.task, classes_given)
    if classes_given is not None and scores is None:
        raise refuse("SNNC302", "the data has labels, but no output of the network is class scores")
    if classes_given is not None and scores is not None:
        classes = ann[scores].parts[0].size
        if classes_given.min() < 0 or classes_given.max() >= classes:
            raise refuse(
                "SNNC302",
                f"labels go from {classes_given.min()} to {classes_given.max()}, the network has "
                f"{classes} classes",
            )
    judge = _Judge(ann, scores, classes_given)
    prepared = (
        prepared_again(model, compiled.options, compiled.keeps_rounding) if diagnose else None
    )
    currents = Currents(prepared, threads, compiled.model) if prepared else None
    walk = Walk(compiled, currents=diagnose, arrivals=True, events=not diagnose, threads=threads)
    macs: Macs | None = None
    runs = {count: _Run(compiled, walk, count, scores) for count in sorted(set(wanted))}
    growth = compiled.calibration.growth
    more = Weighed.stops(growth, max(runs)) if diagnose else []
    if more and not walk.watched.start:
        raise UsageError(
            "the error of a file whose thresholds grow can only be split where it runs step by step",
            hint="compile it with --unroll fold and --emit window, or with --growth none",
        )
    for number, part in enumerate(parts):
        feeds = filled(dataset.feeds, part, compiled.fixed_batch)
        count, batch = part.stop - part.start, len(next(iter(feeds.values())))
        # Only what fills a fixed batch up is cut off: some networks have their batch on another axis.
        meant = count if count < batch else None
        received = currents.run(feeds) if currents else {}
        weighed = Weighed(walk.layers, growth)
        for steps_done, values in walk.run(feeds, [*runs, *more], part.start):
            if macs is None:
                macs = macs_from(walk.watched.arrivals, values, batch)
            sums = weighed.add(values, steps_done) if currents else {}
            if steps_done not in runs:
                continue
            theirs = [output.of(part, number) for output in ann]
            runs[steps_done].add(values, theirs, meant, count, batch)
            if currents:
                runs[steps_done].split(sums, received, currents.caps, meant)
        if progress:
            progress(f"T = {max(runs)}", number + 1, len(parts))
    measured: dict[int, Quantised] = {}
    if prepared:
        session = None
        for number, count in enumerate(runs):
            if session is None or growth or compiled.options.layered:
                layers = tuple(layer.at(count, growth) for layer in walk.layers)
                rounded = quantised_ann(prepared, layers, compiled.model)
                session = create_session(rounded, threads=threads)
            times = layers[0].means(count)
            levels = {session.get_inputs()[-1].name: np.array(times, np.float32)}
            fixed = _as_many(prepared.fixed_batch, compiled)
            outputs = _run_batches(session, dataset, fixed, together, compiled.output_axes, levels)
            measured[count] = judge.quantised(outputs)
            if progress:
                progress("quantised ANN", number + 1, len(runs))
    whole = {count: run.result(judge, measured.get(count)) for count, run in runs.items()}
    return Evaluation(
        len(dataset) // dataset.rows,
        judge.accuracy(judge.classes),
        tuple(whole[count] for count in wanted),
        (*findings, *_differing(list(whole.values()))),
        _plain(judge.classes),
        macs or Macs({}, 0),
        walk.events
        or tuple(LayerNote(layer.name, "", _why_dense(diagnose)) for layer in walk.layers),
    )


def _differing(results: Sequence[StepResult]) -> list[Finding]:
    """A warning for every output that cannot be compared at some number of time-steps."""
    seen: dict[str, list[str]] = {}
    for result in results:
        for output in result.outputs:
            if output.differ:
                text = f"in {output.differ:,} at T = {result.steps}"
                seen.setdefault(output.output, []).append(text)
    return [
        Finding(
            "SNNC404",
            f"the shape of '{name}' depends on the data and is not that of the ANN for every sample "
            f"({', '.join(texts)}), so it is left out of the relative error there",
            severity="warning",
            hint="compare what the network computes before it selects rows",
        )
        for name, texts in seen.items()
    ]


def _why_dense(diagnose: bool) -> str:
    if diagnose:
        return "--diagnose looks at the currents"
    return "the native library is not built" if not runs_events() else "nothing can be lowered"


def _run_ann(
    model: onnx.ModelProto,
    dataset: Dataset,
    compiled: CompiledFile,
    together: int,
    threads: int | None,
) -> list[Gathered]:
    """The source network's outputs; `together` samples at once where its own input allows that."""
    session = create_session(model, threads=threads)
    dims = [entry.shape[0] for entry in session.get_inputs() if entry.shape]
    fixed = next((dim for dim in dims if isinstance(dim, int) and dim > 0), None)
    fixed = _as_many(fixed, compiled)
    return _run_batches(session, dataset, fixed, together, compiled.output_axes, {})


def _as_many(fixed: int | None, compiled: CompiledFile) -> int | None:
    """The batch of a network that takes `fixed`; where an output is one value for a run, that of the
    compiled file, whose runs it is compared with."""
    return fixed or (compiled.fixed_batch if one_by_one(compiled.output_axes) else None)


def _run_batches(
    session: Any,
    dataset: Dataset,
    fixed: int | None,
    together: int,
    axes: Mapping[str, Axis],
    more: Mapping[str, Array],
) -> list[Gathered]:
    """All outputs of a session on all the data; `more` is fed beside it.

    It takes `fixed` samples at once, or else any number, of which `together` run.
    """
    outputs = [Gathered(axis) for axis in axes.values()]
    for part in batches(len(dataset), fixed or (1 if one_by_one(axes) else together)):
        values = session.run(None, {**filled(dataset.feeds, part, fixed), **more})
        count = part.stop - part.start
        for output, value in zip(outputs, values, strict=True):
            output.add(value, count, fixed or count)
    return outputs


def _scores_at(outputs: Sequence[Gathered], task: str, labels: Array | None) -> int | None:
    """Which output holds class scores: the first float one with one row of them for every sample.

    Coordinates look the same, so there is none in a network for regression whose data has no labels;
    and of outputs with rows of several sizes, as a detector has, only labels tell which.
    """
    rows = {
        index: output.parts[0].size
        for index, output in enumerate(outputs)
        if output.even and output.parts[0].dtype.kind == "f" and _one_row(output, labels)
    }
    if labels is None and (task == "regression" or len(set(rows.values())) > 1):
        return None
    enough = (index for index, size in rows.items() if labels is None or labels.max() < size)
    return next(enough, next(iter(rows), None))


def _classes(scores: Gathered) -> Array:
    rows = scores.rows
    return np.asarray(rows.reshape(len(rows), -1).argmax(axis=1))


def _one_row(output: Gathered, labels: Array | None) -> bool:
    """Whether there is one row of several values for every sample.

    Without a batch axis it is that of a whole run: [classes] or [1, classes], if there is a label for
    each.
    """
    part = output.parts[0]
    if isinstance(output.axis, int):
        return part.ndim == 1 and part.size > 1
    labelled = output.axis == RUN and labels is not None and len(labels) == len(output.parts)
    return labelled and part.ndim > 0 and part.size == part.shape[-1] > 1


@dataclass(frozen=True)
class _Judge:
    """Compares outputs with the ANN's and with the labels; `scores`: which output is class scores."""

    ann: Sequence[Gathered]
    scores: int | None
    labels: Array | None

    @property
    def classes(self) -> Array | None:
        """The classes that the ANN predicts."""
        return self.predicted(self.ann)

    def predicted(self, outputs: Sequence[Gathered]) -> Array | None:
        return None if self.scores is None else _classes(outputs[self.scores])

    def accuracy(self, classes: Array | None) -> float | None:
        if classes is None or self.labels is None:
            return None
        return float((classes == self.labels).mean())

    def agreement(self, classes: Array | None) -> float | None:
        if classes is None or self.classes is None:
            return None
        return float((classes == self.classes).mean())

    def drop(self, classes: Array | None) -> tuple[float, tuple[float, float]] | None:
        """The drop in accuracy and its interval."""
        if classes is None or self.classes is None or self.labels is None:
            return None
        mine, other = self.classes == self.labels, classes == self.labels
        return float(mine.mean() - other.mean()), paired_interval(mine, other)

    def quantised(self, outputs: Sequence[Gathered]) -> Quantised:
        classes = self.predicted(outputs)
        errors = _Errors([""] * len(outputs))
        errors.add(outputs, [output.parts for output in self.ann])
        return Quantised(
            accuracy=self.accuracy(classes),
            agreement=self.agreement(classes),
            relative_error=errors.relative_error,
        )


class _Errors:
    """Sums up the error of every float output; those whose shapes differ anywhere have none."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        #: Of every output: squared error, squared norm, how often the shapes differ; None: no floats.
        self.sums: list[list[float] | None] = [[0.0, 0.0, 0] for _ in names]

    def add(self, found: Sequence[Gathered], wanted: Sequence[Sequence[Array]]) -> None:
        for index, (output, reference) in enumerate(zip(found, wanted, strict=True)):
            sums = self.sums[index]
            if sums is None or any(part.dtype.kind != "f" for part in reference):
                self.sums[index] = None
                continue
            more = (*squares(output, reference), differing(output.parts, reference))
            self.sums[index] = [a + b for a, b in zip(sums, more, strict=True)]

    @property
    def outputs(self) -> tuple[OutputError, ...]:
        return tuple(
            OutputError(name, None if sums[2] else _relative(sums[0], sums[1]), int(sums[2]))
            for name, sums in zip(self.names, self.sums, strict=True)
            if sums is not None
        )

    @property
    def relative_error(self) -> float | None:
        """Over all outputs that can be compared; None where there are some, but none of these."""
        floats = [sums for sums in self.sums if sums is not None]
        same = [sums for sums in floats if not sums[2]]
        if floats and not same:
            return None
        return _relative(sum(sums[0] for sums in same), sum(sums[1] for sums in same))


def _relative(error: float, norm: float) -> float:
    return float(np.sqrt(error / norm)) if norm else 0.0


def _plain(classes: Array | None) -> tuple[int, ...] | None:
    return None if classes is None else tuple(int(value) for value in classes)


class _Run:
    """Sums up the whole data at one number of steps."""

    def __init__(self, compiled: CompiledFile, walk: Walk, steps: int, scores: int | None) -> None:
        self.steps = steps
        self.layers = walk.layers
        self.arrivals = [arrival for arrival in walk.watched.arrivals if arrival.layer]
        #: Synaptic operations done, and dense, by layer.
        self.synops = {arrival.layer: [0.0, 0.0] for arrival in self.arrivals}
        self.samples = 0
        self.axes = compiled.output_axes
        self.growth = compiled.calibration.growth
        self.latency = compiled.latency(steps)
        self.scores = scores
        self.classes: list[Array] = []
        self.compared = _Errors(list(self.axes))
        self.spikes = dict.fromkeys((layer.name for layer in self.layers), 0.0)
        self.pairs = dict.fromkeys((layer.name for layer in self.layers), 0)
        self.full = dict.fromkeys((layer.name for layer in self.layers), 0)
        self.fired: dict[str, Array] = {}
        self.layer_axes = compiled.layer_axes or {}
        self.errors: Split | None = None

    def add(
        self,
        values: Mapping[str, Array],
        ann: Sequence[Sequence[Array]],
        meant: int | None,
        samples: int,
        batch: int,
    ) -> None:
        """A run of a `batch` with `samples`; `meant`: how many of a filled batch are no repetitions."""
        outputs = [Gathered(axis) for axis in self.axes.values()]
        for output, name in zip(outputs, self.axes, strict=True):
            output.add(values[name], samples, batch)
        self.compared.add(outputs, ann)
        if self.scores is not None:
            self.classes.append(_classes(outputs[self.scores]))
        for layer in self.layers:
            axis = self.layer_axes.get(layer.name, 0)
            count, events = (
                cut(np.atleast_1d(values[Watched.output(layer, what)]), axis, meant)
                for what in ("count", layer.events)
            )
            self.spikes[layer.name] += float(events.sum(dtype=np.float64))
            self.pairs[layer.name] += count.size
            self.full[layer.name] += int((count >= layer.most(self.steps)).sum())
            fired = np.asarray(events.any(axis=axis) if isinstance(axis, int) else events > 0)
            self.fired[layer.name] = fired | self.fired.get(layer.name, False)
        self.samples += samples
        for arrival in self.arrivals:
            arrived = values[arrival.output]
            # What fills a batch up on another axis is counted, and taken off as its share.
            whole = len(arrived) != batch
            arrived, share = (arrived, samples / batch) if whole else (arrived[:meant], 1)
            counted = self.synops[arrival.layer]
            counted[0] += arrival.synapses.done(arrived) * share
            counted[1] += arrival.synapses.dense(arrived.shape) * self.steps * share

    def split(
        self,
        sums: Mapping[str, Array],
        received: Mapping[str, Array],
        caps: Mapping[str, float | None],
        meant: int | None,
    ) -> None:
        """Split one batch's error; `sums`: of `Weighed`; `received`: the ANN's currents by layer."""
        self.errors = self.errors or Split(self.steps, caps, self.growth)
        for layer in self.layers:
            axis = self.layer_axes.get(layer.name, 0)
            self.errors.add(layer, sums, received[layer.name], axis, meant)

    def result(self, judge: _Judge, quantised: Quantised | None) -> StepResult:
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
        drop = judge.drop(classes)
        diagnosis = None
        if self.errors and quantised:
            found = self.errors.layers()
            diagnosis = Diagnosis(found, blame(found), quantised)
        return StepResult(
            steps=self.steps,
            accuracy=judge.accuracy(classes),
            agreement=judge.agreement(classes),
            relative_error=self.compared.relative_error,
            firing_rate=sum(self.spikes.values()) / (sum(self.pairs.values()) * self.steps),
            layers=layers,
            drop=drop[0] if drop else None,
            drop_interval=drop[1] if drop else None,
            predictions=_plain(classes),
            diagnosis=diagnosis,
            synops=tuple(
                SynOps(name, done / self.samples, dense / self.samples)
                for name, (done, dense) in self.synops.items()
            ),
            outputs=self.compared.outputs,
            latency=self.latency,
            spikes=sum(self.spikes.values()) / self.samples,
        )
