"""What an evaluation says: accuracy, activity, synaptic operations and errors at each number of
time-steps."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from snncompiler.analysis.count import Macs
from snncompiler.analysis.diagnose import Diagnosis
from snncompiler.findings import Finding
from snncompiler.passes.lower.lower_events import LayerNote


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
