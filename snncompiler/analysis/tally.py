"""What an evaluation counts and sums up, batch by batch, and how such tallies are put together.

A tally is small whatever the number of samples: whole numbers, exact sums (`Exact`), which neurons
fired, and the classes of every sample.  Tallies of parts of the data merge to that of the whole,
exactly: sums do not depend on any order, and classes are put one behind the other in the order of the
parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from snncompiler.analysis.diagnose import Diagnosis, Quantised, blame, layer_errors
from snncompiler.analysis.evaluation import LayerActivity, OutputError, StepResult, SynOps
from snncompiler.analysis.exact import Exact
from snncompiler.calibration.histogram import Histogram
from snncompiler.network.batching import Gathered, differing

Array = NDArray[Any]
T = TypeVar("T")

#: The normal distribution's two-sided 95 %.
_Z95 = 1.959964


@dataclass
class Classes:
    """Whole numbers, one for a sample or for a run, in their order."""

    parts: list[NDArray[np.int64]] = field(default_factory=list)

    @property
    def array(self) -> NDArray[np.int64]:
        return np.concatenate(self.parts) if self.parts else np.zeros(0, np.int64)


@dataclass
class Constant:
    """What is the same of all parts."""

    value: Any


def merged(mine: T, other: T) -> T:
    """What two parts of a tally are together, `other` behind `mine`; None is nothing.

    Raises ValueError where they are not alike.
    """
    if mine is None or other is None:
        return other if mine is None else mine
    found: Any = _merged(mine, other)
    return found  # type: ignore[no-any-return]


def _merged(mine: Any, other: Any) -> Any:
    if type(mine) is not type(other):
        raise ValueError(f"{type(mine).__name__} and {type(other).__name__} are not alike")
    if isinstance(mine, Constant):
        if mine != other:
            raise ValueError(f"{mine.value} is not {other.value}")
        return mine
    if isinstance(mine, (Exact, Histogram)):
        return mine.plus(other)
    if isinstance(mine, Largest):
        return Largest(max(mine.value, other.value))
    if isinstance(mine, Classes):
        return Classes([*mine.parts, *other.parts])
    if isinstance(mine, np.ndarray):
        if mine.shape != other.shape:
            raise ValueError(f"the shapes {mine.shape} and {other.shape} are not alike")
        return mine | other
    if isinstance(mine, dict):
        return {key: merged(mine.get(key), other.get(key)) for key in {**mine, **other}}
    if is_dataclass(mine):
        names = [entry.name for entry in fields(mine)]
        parts = {n: merged(getattr(mine, n), getattr(other, n)) for n in names}
        return replace(mine, **parts)  # type: ignore[type-var]
    return mine + other  # whole numbers are added, tuples one behind the other


@dataclass
class Largest:
    """The largest of some numbers."""

    value: float = 0.0


@dataclass
class Observed:
    """What the normalized ANN does on samples (`calibration/observe`): histograms of the rectifiers,
    and the largest |x| of the inputs."""

    samples: int = 0
    histograms: dict[str, Histogram] = field(default_factory=dict)
    largest: dict[str, Largest] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()


@dataclass
class OutputTally:
    """One float output: squared error, squared norm, and in how many samples the shapes differ."""

    error: Exact = field(default_factory=Exact)
    norm: Exact = field(default_factory=Exact)
    differ: int = 0

    def add(self, found: Gathered, wanted: Sequence[Array]) -> None:
        for mine, theirs, weight in zip(found.parts, wanted, found.weights, strict=True):
            if mine.shape == theirs.shape:
                wide = theirs.astype(np.float64)
                self.error.add(weight * float(np.square(mine - wide).sum()))
                self.norm.add(weight * float(np.square(wide).sum()))
        self.differ += differing(found.parts, wanted)


@dataclass
class LayerTally:
    """One layer: its spikes, the pairs of sample and neuron, how many of them fire all they can, and
    which neurons fired."""

    spikes: Exact = field(default_factory=Exact)
    pairs: int = 0
    full: int = 0
    fired: Array | None = None


@dataclass
class SynOpsTally:
    """Synaptic operations of the layer into which they flow."""

    done: Exact = field(default_factory=Exact)
    dense: Exact = field(default_factory=Exact)


@dataclass
class Answers:
    """What one network answers: its errors against the ANN by output, and its classes.

    uneven: in how many batches the scores have not the shape that they have in the first one.
    """

    outputs: dict[str, OutputTally] = field(default_factory=dict)
    classes: Classes = field(default_factory=Classes)
    uneven: int = 0

    def compare(self, names: Sequence[str], found: Sequence[Gathered], wanted: Any) -> None:
        """Add the outputs of a batch, `wanted`: the parts of the ANN's."""
        for name, mine, theirs in zip(names, found, wanted, strict=True):
            if all(part.dtype.kind == "f" for part in theirs):
                self.outputs.setdefault(name, OutputTally()).add(mine, theirs)

    def classify(self, scores: Gathered, size: int) -> None:
        """Add the classes of a batch, whose scores should be `size` numbers each."""
        if not scores.even or scores.parts[0].size != size:
            self.uneven += 1
            return
        rows = scores.rows
        self.classes.parts.append(rows.reshape(len(rows), -1).argmax(axis=1).astype(np.int64))

    @property
    def errors(self) -> tuple[OutputError, ...]:
        return tuple(
            OutputError(
                name,
                None if one.differ else _relative(one.error, one.norm),
                one.differ,
            )
            for name, one in self.outputs.items()
        )

    @property
    def relative_error(self) -> float | None:
        """Over all outputs that can be compared; None where there are some, but none of these."""
        same = [one for one in self.outputs.values() if not one.differ]
        if self.outputs and not same:
            return None
        error, norm = Exact(), Exact()
        for one in same:
            error, norm = error.plus(one.error), norm.plus(one.norm)
        return _relative(error, norm)


@dataclass
class StepTally(Answers):
    """The spiking network at one number of time-steps.

    splits: of a diagnosis, layer -> part of the error -> sum of its squares.  quantised: the quantised
    ANN.
    """

    layers: dict[str, LayerTally] = field(default_factory=dict)
    synops: dict[str, SynOpsTally] = field(default_factory=dict)
    splits: dict[str, dict[str, Exact]] = field(default_factory=dict)
    quantised: Answers | None = None


@dataclass
class Tally:
    """All of an evaluation, or of a part of it.

    samples: how many ran.  labels, ann: their classes.  macs: of one sample, as plain data.  damaged:
    images that could not be read.  steps: by the number of time-steps.
    """

    samples: int = 0
    labels: Classes = field(default_factory=Classes)
    ann: Answers = field(default_factory=Answers)
    macs: Constant | None = None
    damaged: tuple[str, ...] = ()
    steps: dict[str, StepTally] = field(default_factory=dict)

    @property
    def uneven(self) -> bool:
        """Whether what was taken for class scores has not the same shape for every sample."""
        return any(one.uneven for one in (self.ann, *self.steps.values()))


@dataclass(frozen=True)
class Judge:
    """Compares classes with the ANN's and with the labels.  ann, labels: None where there are none."""

    ann: NDArray[np.int64] | None
    labels: NDArray[np.int64] | None

    @staticmethod
    def of(tally: Tally, scored: bool, labelled: bool) -> Judge:
        return Judge(
            tally.ann.classes.array if scored else None,
            tally.labels.array if labelled else None,
        )

    def accuracy(self, classes: Array | None) -> float | None:
        if classes is None or self.labels is None:
            return None
        return float((classes == self.labels).mean())

    def agreement(self, classes: Array | None) -> float | None:
        if classes is None or self.ann is None:
            return None
        return float((classes == self.ann).mean())

    def drop(self, classes: Array | None) -> tuple[float, tuple[float, float]] | None:
        """The drop in accuracy and its interval."""
        if classes is None or self.ann is None or self.labels is None:
            return None
        mine, other = self.ann == self.labels, classes == self.labels
        return float(mine.mean() - other.mean()), paired_interval(mine, other)


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


def step_result(
    tally: StepTally,
    steps: int,
    latency: int,
    samples: int,
    judge: Judge,
    operators: Mapping[str, str],
) -> StepResult:
    """What a tally says; `operators`: of every layer of the network."""
    layers = tuple(
        LayerActivity(
            layer=name,
            firing_rate=one.spikes.value / (one.pairs * steps),
            saturated=one.full / one.pairs,
            silent=1.0 - float(np.mean(one.fired)),
        )
        for name, one in tally.layers.items()
        if one.fired is not None
    )
    classes = None if judge.ann is None else tally.classes.array
    drop = judge.drop(classes)
    diagnosis = None
    if tally.splits and tally.quantised:
        found = layer_errors(tally.splits, operators)
        diagnosis = Diagnosis(found, blame(found), _quantised(tally.quantised, judge))
    spikes = Exact()
    for one in tally.layers.values():
        spikes = spikes.plus(one.spikes)
    pairs = sum(one.pairs for one in tally.layers.values())
    return StepResult(
        steps=steps,
        accuracy=judge.accuracy(classes),
        agreement=judge.agreement(classes),
        relative_error=tally.relative_error,
        firing_rate=spikes.value / (pairs * steps),
        layers=layers,
        drop=drop[0] if drop else None,
        drop_interval=drop[1] if drop else None,
        predictions=plain(classes),
        diagnosis=diagnosis,
        synops=tuple(
            SynOps(name, one.done.value / samples, one.dense.value / samples)
            for name, one in tally.synops.items()
        ),
        outputs=tally.errors,
        latency=latency,
        spikes=spikes.value / samples,
    )


def _quantised(answers: Answers, judge: Judge) -> Quantised:
    classes = None if judge.ann is None else answers.classes.array
    return Quantised(
        accuracy=judge.accuracy(classes),
        agreement=judge.agreement(classes),
        relative_error=answers.relative_error,
    )


def _relative(error: Exact, norm: Exact) -> float:
    return float(np.sqrt(error.value / norm.value)) if norm.value else 0.0


def plain(classes: Array | None) -> tuple[int, ...] | None:
    return None if classes is None else tuple(classes.tolist())
