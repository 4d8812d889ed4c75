"""What a pass is, what it shares with the other passes, and how a list of passes is run.

A pass is a frozen dataclass: its fields are its options.  It states which facts it `requires` and
which it `ensures`; it either rewrites the graph or raises Refused with a reason that names the node.
Run again on its own result it changes nothing, or it says in `again` why it would.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray

from snncompiler.errors import InternalError, SnncError
from snncompiler.findings import Finding
from snncompiler.ir.check import Snapshot, faults
from snncompiler.ir.graph import Graph, name_apart
from snncompiler.ir.whole import Grid

#: Is shown the graph, or behind the last graph pass the model, after a pass with this name.  It must
#: not change what it is shown.
Observer = Callable[[str, Graph | onnx.ModelProto], None]
#: Gives the observer of one stage of the compilation, by its name.
Watch = Callable[[str], Observer]

#: A per-channel Gaussian model of a tensor: mean and standard deviation, each [C].
Moments = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Units:
    """The weights of a node before they become whole numbers, in multiples of what one of these stands
    for: whole weights are `step` times whole numbers of at most `most`."""

    weights: NDArray[np.float64]
    most: int
    step: int


@dataclass
class LayerFacts:
    """What the constraints report says of one linear layer."""

    name: str
    op: str
    output: str
    bias: bool = False
    batch_norm: str = ""
    folded: list[str] = field(default_factory=list)
    #: Largest |change| of the layer's output that folding caused, absolute and relative to the
    #: largest |output|; None where it was not measured.
    change: tuple[float, float] | None = None


@dataclass(frozen=True)
class Coded:
    """An activation that spikes carry less its lower bound: its name, this bound, and the names of the
    nodes that compute it."""

    function: str
    offset: float
    nodes: tuple[str, ...] = ()


@dataclass
class ByBatch:
    """What shape arithmetic makes of the size of the batch.

    values: names of the nodes that read a constant which depends on it as a value.  shapes: of the
    nodes that it gives a shape to (Reshape, Expand ...), tensor name -> shape for `samples` samples.
    """

    samples: int = 1
    values: set[str] = field(default_factory=set)
    shapes: dict[str, list[Any]] = field(default_factory=dict)


@dataclass
class Context:
    """What the passes know beside the graph."""

    findings: list[Finding] = field(default_factory=list)
    facts: frozenset[str] = frozenset()
    layers: dict[str, LayerFacts] = field(default_factory=dict)
    #: Tensor name -> moments of its values, from batch-norm statistics.
    moments: dict[str, Moments] = field(default_factory=dict)
    #: Name of a Mul or Add that is left of a batch-norm -> label of that.
    norms: dict[str, str] = field(default_factory=dict)
    #: Tensor name -> position of the batch axis; absent for constants and where it is unknown.
    batch_axis: dict[str, int] = field(default_factory=dict)
    #: Names of the Max and Min that limit what a quantized value can be, and are seldom met.
    limits: set[str] = field(default_factory=set)
    #: Whether values are rounded as the quantized source does it (`passes/source/keep_rounding`).
    keeps_rounding: bool = False
    #: Names of the averages that are taken of complete values, as they are rounded behind: what lies
    #: half-way between two integers falls as in the source only if its arithmetic is the same.
    whole_averages: set[str] = field(default_factory=set)
    #: Neurons whose currents are sums of whole numbers: name -> what 1 stands for, [O].
    sum_units: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    #: Rectifier -> the activation that its spikes carry with an offset.
    coded: dict[str, Coded] = field(default_factory=dict)
    #: Output name -> type in the source.
    output_types: dict[str, np.dtype[Any]] = field(default_factory=dict)
    #: Why the batch axis is lost: node label -> reason.
    batch_lost: dict[str, str] = field(default_factory=dict)
    #: What depends on how many samples run at once, by folding for other numbers of them.
    by_batch: ByBatch = field(default_factory=ByBatch)
    #: Neurons of layered time that fire behind a pooling: name -> names of rectifier and pooling.
    pooled: dict[str, tuple[str, str]] = field(default_factory=dict)
    #: The scales of all layers, where weights are whole numbers.
    grid: Grid = field(default_factory=Grid)
    #: The weights of nodes before they became whole numbers, by name; where a running network is made.
    units: dict[str, Units] = field(default_factory=dict)
    #: And the largest size of the values that are whole numbers, by the id of their tensor.
    bounds: dict[int, float] = field(default_factory=dict)
    #: Is called with the graph after every pass.
    observer: Observer | None = None

    def apart(self, observer: Observer | None = None) -> Context:
        """The same knowledge for a copy of the graph: what is added to one is not in the other."""
        return replace(deepcopy(replace(self, observer=None)), observer=observer)

    def note(self, code: str, message: str, node: str = "", hint: str = "") -> None:
        self.findings.append(Finding(code, message, severity="note", node=node, hint=hint))

    def warn(self, code: str, message: str, node: str = "", hint: str = "") -> None:
        self.findings.append(Finding(code, message, severity="warning", node=node, hint=hint))


@dataclass(frozen=True)
class Pass(ABC):
    """One graph rewrite; its name is its file's name with dashes."""

    name: ClassVar[str]
    requires: ClassVar[frozenset[str]] = frozenset()
    ensures: ClassVar[frozenset[str]] = frozenset()
    #: Why a second run would change its own result; empty where it would not.
    again: ClassVar[str] = ""

    @abstractmethod
    def run(self, graph: Graph, context: Context) -> None:
        """Rewrite `graph` in place."""


def run_passes(passes: Sequence[Pass], graph: Graph, context: Context) -> list[str]:
    """Run the passes in order; the names of those that changed the graph.

    Raises InternalError, naming the pass and those that ran before it, where a pass fails without
    an explanation of its own, or where a fact that it requires is missing; and, where
    SNNC_CHECK_PASSES is 1, where a pass leaves a graph in which something is wrong (`ir.check`).
    """
    done: list[str] = []
    changed: list[str] = []
    checks = os.environ.get("SNNC_CHECK_PASSES") == "1"
    state, sound = Snapshot(graph), False
    for step in passes:
        ran = ", ".join(done) or "none"
        missing = step.requires - context.facts
        if missing:
            raise InternalError(f"pass {step.name} requires {sorted(missing)}; ran: {ran}")
        older = list(graph.nodes)
        try:
            step.run(graph, context)
        except SnncError:
            raise
        except Exception as error:
            raise InternalError(
                f"pass {step.name} failed: {type(error).__name__}: {error}; ran before it: {ran}"
            ) from error
        name_apart(graph, older)
        context.facts |= step.ensures
        done.append(step.name)
        before, state = state, Snapshot(graph)
        if checks:
            shapes = "shapes" in context.facts
            wrong = faults(graph, shapes, before if sound else None)
            if wrong:
                raise InternalError(f"pass {step.name} leaves a graph in which {'; '.join(wrong)}")
            sound = shapes
        changed += [step.name] if state != before else []
        if context.observer is not None:
            context.observer(step.name, graph)
    return changed
