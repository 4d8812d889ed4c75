"""Compare a compiled network with its ANN on data: accuracy against time-steps, activity, synaptic
operations, and where the error comes from.  One run gives every number of time-steps (`watch.Walk`).

Both networks run batch by batch, and only a `Tally` is kept of each batch.  So memory does not depend
on the number of samples, and a part of the batches can be run by itself (`Shard`)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from snncompiler.analysis.count import macs_from
from snncompiler.analysis.diagnose import Currents, Split, Weighed, quantised_ann
from snncompiler.analysis.evaluation import Evaluation
from snncompiler.analysis.instrument import Watched
from snncompiler.analysis.parts import ALL, EVALUATION, Part, Shard, no_scores, put_together
from snncompiler.analysis.tally import Answers, Constant, LayerTally, StepTally, SynOpsTally, Tally
from snncompiler.analysis.walk import Walk
from snncompiler.calibration.calibrate import Progress
from snncompiler.emission.compiled import CompiledFile, read_compiled
from snncompiler.emission.save import serialize
from snncompiler.errors import UsageError, refuse
from snncompiler.findings import Finding
from snncompiler.ir.settings import MAX_STEPS
from snncompiler.network.batching import RUN, Axis, Gathered, batches, cut, filled, one_by_one
from snncompiler.network.data import Batch, Dataset, Preprocess
from snncompiler.network.load import load
from snncompiler.network.pixels import of_pixels
from snncompiler.network.prepare import prepared_again
from snncompiler.network.prepared import Prepared, runnable
from snncompiler.passes.lower.lower_events import LayerNote
from snncompiler.runtime.session import create_session, runs_events
from snncompiler.version import __version__

Array = NDArray[Any]

#: Samples that run at once.
BATCH = 16
#: The same for a diagnosis, which holds the currents of every layer in float64.
DIAGNOSIS_BATCH = 4


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
    preprocess: by default that of the calibration, which the file tells.
    diagnose: split the error of every layer, and run the quantised ANN (`diagnose.py`).  The network
        does not run by events then.
    Raises Refused if the two do not belong together or the data does not fit, and UsageError for steps
    with which the file cannot run.
    """
    part = evaluate_part(
        model,
        snn,
        data,
        ALL,
        steps=steps,
        limit=limit,
        diagnose=diagnose,
        preprocess=preprocess,
        labels=labels,
        skip_damaged=skip_damaged,
        threads=threads,
        progress=progress,
    )
    return put_together(part)


def evaluate_part(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    snn: str | os.PathLike[str] | bytes | onnx.ModelProto,
    data: str | os.PathLike[str] | Array | Mapping[str, Array] | Dataset,
    shard: Shard,
    *,
    steps: Sequence[int] | None = None,
    limit: int | None = None,
    diagnose: bool = False,
    preprocess: Preprocess | None = None,
    labels: str | os.PathLike[str] | None = None,
    skip_damaged: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Part[Tally]:
    """The part of an evaluation that belongs to one shard; `parts.merge` puts parts together.

    Shards are cut at whole batches, so that the same samples run together however many there are.
    The arguments are those of `evaluate`, and it raises the same errors.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit} is out of range", hint="at least 1 sample")
    compiled = read_compiled(snn)
    source = of_pixels(load(model), compiled.options.input_type)
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
    dataset = compiled.data(data, preprocess, labels=labels, skip_damaged=skip_damaged).head(limit)
    most = DIAGNOSIS_BATCH if diagnose else BATCH
    # The ANN's outputs may depend on how many samples run at once: as many for both.
    together = compiled.batch_size(most, dataset.values)
    runs_as, why = runnable(source.model)
    findings = dataset.findings
    if why:
        text = f"the source was run in float32, because onnxruntime does not run it: {why}"
        findings += (Finding("SNNC208", text, severity="note"),)
    ann = _Ann.of(runs_as, compiled, threads)
    first = _first(dataset, together, compiled.fixed_batch)
    scores = _Scores.of(ann.run(first), compiled.options.task, dataset, together)
    prepared = (
        prepared_again(model, compiled.options, compiled.keeps_rounding) if diagnose else None
    )
    walk = Walk(compiled, currents=diagnose, arrivals=True, events=not diagnose, threads=threads)
    spiking = _Spiking(compiled, walk, sorted(set(wanted)), scores)
    diagnosis = _Diagnosis(prepared, compiled, walk, spiking, threads) if prepared else None
    tally = Tally(steps={str(count): StepTally() for count in spiking.steps})
    start, stop = shard.of_batches(-(-len(dataset) // together))
    for number, batch in enumerate(
        dataset.batches(together, compiled.fixed_batch, start, stop), start=start
    ):
        tally.damaged += batch.damaged
        if batch.count:
            theirs = ann.run(batch)
            spiking.add(tally, batch, theirs, diagnosis)
            if scores:
                tally.ann.classify(theirs[scores.at], scores.size)
                if dataset.labels is not None:
                    tally.labels.parts.append(scores.labels_of(dataset.labels, batch, together))
            tally.samples += batch.count
        if progress:
            progress(f"T = {max(spiking.steps)}", number + 1 - start, stop - start)
    about = {
        "kind": EVALUATION,
        "version": __version__,
        "source": source.name,
        "source_sha256": source.sha256,
        "snn_sha256": hashlib.sha256(serialize(compiled.model)).hexdigest(),
        "samples": len(dataset),
        "rows": dataset.rows,
        "data_sha256": dataset.fingerprint(first),
        "steps": wanted,
        "diagnose": diagnose,
        "skip_damaged": dataset.skip_damaged,
        "batch": together,
        "scored": scores is not None,
        "labelled": dataset.labels is not None,
        "latency": {str(count): compiled.latency(count) for count in spiking.steps},
        "operators": {layer.name: layer.operator for layer in walk.layers},
        "events": [
            asdict(note) for note in walk.events or _dense(walk, diagnose, compiled.options.layered)
        ],
        "findings": [finding.as_dict() for finding in findings],
    }
    return Part(about, shard, tally)


def _first(dataset: Dataset, together: int, fixed: int | None) -> Batch:
    """The first batch of the data set of which a sample can be read."""
    for number in range(-(-len(dataset) // together)):
        (batch,) = dataset.batches(together, fixed, number, number + 1)
        if batch.count:
            return batch
    raise refuse("SNNC303", f"none of the {len(dataset):,} samples can be read")


def _dense(walk: Walk, diagnose: bool, layered: bool) -> list[LayerNote]:
    if diagnose:
        why = "--diagnose looks at the currents"
    elif layered:
        why = "spikes are looked at, which a session by counts has none of"
    else:
        why = "the native library is not built" if not runs_events() else "nothing can be lowered"
    return [LayerNote(layer.name, "", why) for layer in walk.layers]


# --- the ANN ---


@dataclass(frozen=True)
class _Ann:
    """Runs a session of the ANN on batches.

    fixed: how many samples it takes at once, None for any number.  axes: of its outputs.
    """

    session: Any
    fixed: int | None
    axes: Mapping[str, Axis]

    @staticmethod
    def of(model: onnx.ModelProto, compiled: CompiledFile, threads: int | None) -> _Ann:
        """Of the source network, whose own input may have a fixed batch."""
        session = create_session(model, threads=threads)
        dims = [entry.shape[0] for entry in session.get_inputs() if entry.shape]
        fixed = next((dim for dim in dims if isinstance(dim, int) and dim > 0), None)
        return _Ann(session, _as_many(fixed, compiled), compiled.output_axes)

    def run(self, batch: Batch, more: Mapping[str, Array] | None = None) -> list[Gathered]:
        """All outputs on a batch; `more` is fed beside it."""
        feeds = {name: array[: batch.count] for name, array in batch.feeds.items()}
        outputs = [Gathered(axis) for axis in self.axes.values()]
        size = self.fixed or (1 if one_by_one(self.axes) else batch.count)
        for part in batches(batch.count, size):
            values = self.session.run(None, {**filled(feeds, part, self.fixed), **(more or {})})
            count = part.stop - part.start
            for output, value in zip(outputs, values, strict=True):
                output.add(value, count, self.fixed or count)
        return outputs


def _as_many(fixed: int | None, compiled: CompiledFile) -> int | None:
    """The batch of a network that takes `fixed`; where an output is one value for a run, that of the
    compiled file, whose runs it is compared with."""
    return fixed or (compiled.fixed_batch if one_by_one(compiled.output_axes) else None)


# --- class scores ---


@dataclass(frozen=True)
class _Scores:
    """Which output holds class scores, and of how many classes.  for_run: one row for every run."""

    at: int
    size: int
    for_run: bool

    @staticmethod
    def of(
        outputs: Sequence[Gathered], task: str, dataset: Dataset, together: int
    ) -> _Scores | None:
        """The first float output with one row of them for every sample, by the first batch.

        Coordinates look the same, so there is none in a network for regression whose data has no
        labels; and of outputs with rows of several sizes, as a detector has, only labels tell which.
        Raises Refused where there are labels, but no scores for them.
        """
        labels = dataset.labels
        rows = {
            index: output.parts[0].size
            for index, output in enumerate(outputs)
            if output.even
            and output.parts[0].dtype.kind == "f"
            and _one_row(output, dataset, together)
        }
        at = None
        if labels is not None or (task != "regression" and len(set(rows.values())) <= 1):
            enough = (at for at, size in rows.items() if labels is None or labels.max() < size)
            at = next(enough, next(iter(rows), None))
        if at is None:
            if labels is not None:
                raise no_scores()
            return None
        if labels is not None and (labels.min() < 0 or labels.max() >= rows[at]):
            raise refuse(
                "SNNC302",
                f"labels go from {labels.min()} to {labels.max()}, the network has {rows[at]} classes",
            )
        return _Scores(at, rows[at], outputs[at].axis == RUN)

    def labels_of(self, labels: Array, batch: Batch, together: int) -> NDArray[np.int64]:
        """The labels of a batch: of its samples, or of the run."""
        chosen = batch.numbers[:1] // together if self.for_run else batch.numbers
        return np.asarray(labels[chosen], np.int64)


def _one_row(output: Gathered, dataset: Dataset, together: int) -> bool:
    """Whether there is one row of several values for every sample.

    Without a batch axis it is that of a whole run: [classes] or [1, classes], if there is a label for
    each.
    """
    part, labels = output.parts[0], dataset.labels
    if isinstance(output.axis, int):
        fits = labels is None or len(labels) == len(dataset)
        return fits and part.ndim == 1 and part.size > 1
    labelled = labels is not None and len(labels) == -(-len(dataset) // together)
    return labelled and output.axis == RUN and part.ndim > 0 and part.size == part.shape[-1] > 1


# --- the spiking network ---


class _Spiking:
    """Runs the compiled network on batches, and adds what is seen to a tally."""

    def __init__(
        self, compiled: CompiledFile, walk: Walk, steps: Sequence[int], scores: _Scores | None
    ) -> None:
        self.compiled, self.walk, self.steps, self.scores = compiled, walk, steps, scores
        self.arrivals = [arrival for arrival in walk.watched.arrivals if arrival.layer]

    def add(
        self,
        tally: Tally,
        batch: Batch,
        ann: Sequence[Gathered],
        diagnosis: _Diagnosis | None,
    ) -> None:
        """Run a batch; `ann`: the ANN's outputs on it."""
        # Only what fills a fixed batch up is cut off: some networks have their batch on another axis.
        meant = batch.count if batch.count < batch.size else None
        stops = [*self.steps, *(diagnosis.stops if diagnosis else [])]
        if diagnosis:
            diagnosis.begin(batch)
        for steps, values in self.walk.run(batch.feeds, stops, int(batch.numbers[0])):
            if tally.macs is None:
                tally.macs = Constant(
                    asdict(macs_from(self.walk.watched.arrivals, values, batch.size))
                )
            if diagnosis:
                diagnosis.sum_up(values, steps)
            if steps not in self.steps:
                continue
            one = tally.steps[str(steps)]
            self._answers(one, values, ann, batch)
            self._activity(one, values, steps, meant)
            self._operations(one, values, steps, batch, meant)
            if diagnosis:
                diagnosis.add(one, steps, batch, ann, meant)

    def _answers(
        self, one: StepTally, values: Mapping[str, Array], ann: Sequence[Gathered], batch: Batch
    ) -> None:
        axes = self.compiled.output_axes
        outputs = [Gathered(axis) for axis in axes.values()]
        for output, name in zip(outputs, axes, strict=True):
            output.add(values[name], batch.count, batch.size)
        one.compare(list(axes), outputs, [output.parts for output in ann])
        if self.scores:
            one.classify(outputs[self.scores.at], self.scores.size)

    def _activity(
        self, one: StepTally, values: Mapping[str, Array], steps: int, meant: int | None
    ) -> None:
        layer_axes = self.compiled.layer_axes or {}
        for layer in self.walk.layers:
            axis = layer_axes.get(layer.name, 0)
            count, events = (
                cut(np.atleast_1d(values[Watched.output(layer, what)]), axis, meant)
                for what in ("count", layer.events)
            )
            tally = one.layers.setdefault(layer.name, LayerTally())
            tally.spikes.add(float(events.sum(dtype=np.float64)))
            tally.pairs += count.size
            tally.full += int((count >= layer.most(steps)).sum())
            fired = np.asarray(events.any(axis=axis) if isinstance(axis, int) else events > 0)
            tally.fired = fired if tally.fired is None else fired | tally.fired

    def _operations(
        self,
        one: StepTally,
        values: Mapping[str, Array],
        steps: int,
        batch: Batch,
        meant: int | None,
    ) -> None:
        for arrival in self.arrivals:
            arrived = values[arrival.output]
            # What fills a batch up on another axis is counted, and taken off as its share.
            whole = len(arrived) != batch.size
            arrived, share = (
                (arrived, batch.count / batch.size) if whole else (arrived[:meant], 1.0)
            )
            counted = one.synops.setdefault(arrival.layer, SynOpsTally())
            counted.done.add(float(arrival.synapses.done(arrived)) * share)
            counted.dense.add(float(arrival.synapses.dense(arrived.shape)) * steps * share)


class _Diagnosis:
    """Splits the error of every layer, and runs the ANN with quantised activations beside."""

    def __init__(
        self,
        prepared: Prepared,
        compiled: CompiledFile,
        walk: Walk,
        spiking: _Spiking,
        threads: int | None,
    ) -> None:
        self.compiled, self.walk = compiled, walk
        self.currents = Currents(prepared, threads, compiled.model)
        self.growth = compiled.calibration.growth
        self.stops = Weighed.stops(self.growth, max(spiking.steps))
        if self.stops and not walk.watched.start:
            raise UsageError(
                "the error of a file whose thresholds grow can only be split where it runs step by "
                "step",
                hint="compile it with --unroll fold and --emit window, or with --growth none",
            )
        self.scores = spiking.scores
        self.quantised: dict[int, tuple[_Ann, dict[str, Array]]] = {}
        session = None
        for count in spiking.steps:
            if session is None or self.growth or compiled.options.layered:
                layers = tuple(layer.at(count, self.growth) for layer in walk.layers)
                rounded = quantised_ann(prepared, layers, compiled.model)
                session = create_session(rounded, threads=threads)
            times = layers[0].means(count)
            levels = {session.get_inputs()[-1].name: np.array(times, np.float32)}
            fixed = _as_many(prepared.fixed_batch, compiled)
            self.quantised[count] = (_Ann(session, fixed, compiled.output_axes), levels)

    def begin(self, batch: Batch) -> None:
        self.received = self.currents.run(batch.feeds)
        self.weighed = Weighed(self.walk.layers, self.growth)

    def sum_up(self, values: Mapping[str, Array], steps: int) -> None:
        self.sums = self.weighed.add(values, steps)

    def add(
        self,
        one: StepTally,
        steps: int,
        batch: Batch,
        ann: Sequence[Gathered],
        meant: int | None,
    ) -> None:
        """Add what is seen at one number of time-steps."""
        split = Split(steps, self.currents.caps, self.growth, one.splits)
        layer_axes = self.compiled.layer_axes or {}
        for layer in self.walk.layers:
            axis = layer_axes.get(layer.name, 0)
            split.add(layer, self.sums, self.received[layer.name], axis, meant)
        network, levels = self.quantised[steps]
        outputs = network.run(batch, levels)
        one.quantised = one.quantised or Answers()
        names = list(self.compiled.output_axes)
        one.quantised.compare(names, outputs, [output.parts for output in ann])
        if self.scores:
            one.quantised.classify(outputs[self.scores.at], self.scores.size)
