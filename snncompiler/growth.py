"""Thresholds that grow with time.

A small θ finds its rate in few time-steps and clips what is above it; a large one clips nothing and
needs more steps.  A window that starts with small thresholds and goes on with larger ones has both:
what is clipped in the first steps weighs less and less.

All thresholds grow by the same factor, and then nothing but the input has to know.  A ReLU network is
homogeneous: with g_t the factor at step t as a part of the last one, divide potentials and currents of
step t by g_t.  Thresholds and spikes are then what they are at the end, at every step; what comes from
outside is divided by g_t (`DriveInput`: the input's currents; the rows of a schedule: the biases, see
`running.constant_currents`); and a spike of step t stands for g_t spikes of the end, wherever spikes
become a value (the read-out).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from snncompiler.graph import Graph, Node, Tensor, is_live, label, producer
from snncompiler.operators import rectified_input, rectifier
from snncompiler.passes.check_constraints import blocking
from snncompiler.timing import Timing, analyze

#: What the text form of no growth is.
NONE = "none"
_CHANGE = re.compile(r"([0-9]+(?:\.[0-9]+)?)@([0-9]{1,9})")
#: The largest factor; its inverse is the smallest.
MOST = 1000.0
#: θ's last factor holds from this step on at the latest: a schedule as long as that is still small.
MAX_START = 1024


@dataclass(frozen=True)
class Growth:
    """By how much θ is multiplied: `changes` are (first step, counted from 1; factor), in order.

    Without changes, and before the first one, the factor is 1.
    """

    changes: tuple[tuple[int, float], ...] = ()

    @staticmethod
    def parse(text: str) -> Growth:
        """From `none` or `F@T,F@T,...`: factor F from step T on, in the order of steps.

        Raises ValueError for any other text, and where a factor is smaller than the one before.
        """
        if text == NONE:
            return Growth()
        changes = []
        for part in text.split(","):
            found = _CHANGE.fullmatch(part)
            if not found:
                raise ValueError(f"{text!r} is neither none nor like 1.15@33,1.3@65")
            changes.append((int(found[2]), float(found[1])))
        if not all(1 / MOST <= factor <= MOST for _, factor in changes):
            raise ValueError(f"{text!r}: a factor is from {1 / MOST:g} to {MOST:g}")
        if not all(1 <= start <= MAX_START for start, _ in changes):
            raise ValueError(f"{text!r}: a step is from 1 to {MAX_START}")
        whole = changes if changes[0][0] == 1 else [(1, 1.0), *changes]
        if any(one[0] >= two[0] or one[1] > two[1] for one, two in pairwise(whole)):
            raise ValueError(f"{text!r}: steps and factors rise")
        return Growth(tuple(changes))

    def __str__(self) -> str:
        """The text that `parse` reads, the same for the same factors."""
        return (
            ",".join(f"{factor!r}@{start}".replace(".0@", "@") for start, factor in self.changes)
            or NONE
        )

    def __bool__(self) -> bool:
        """Whether θ changes in the course of a window."""
        return float(self.table[0]) != 1.0

    @property
    def last(self) -> float:
        """The factor that holds in the end."""
        return self.changes[-1][1] if self.changes else 1.0

    def worth(self, steps: int) -> NDArray[np.float32]:
        """g_t of steps 1 to `steps`: what a spike is worth in spikes of the end, [steps]."""
        factors = np.ones(steps)
        for start, factor in self.changes:
            factors[start - 1 :] = factor
        return (factors / self.last).astype(np.float32)

    @property
    def table(self) -> NDArray[np.float32]:
        """g_t up to the step from which it is 1, which holds on: [D]."""
        return self.worth(self.changes[-1][0] if self.changes else 1)

    @property
    def drive(self) -> NDArray[np.float32]:
        """1/g_t, what the input's currents are multiplied by, [D]; 1 at the end, which holds on."""
        return np.asarray(np.float32(1) / self.table, np.float32)


#: θ stays as it is.
STEADY = Growth()


def hindrance(graph: Graph) -> str:
    """Why thresholds cannot grow in a normalized network; empty where they can.

    Scaling input and biases must scale what every rectifier receives, the input must reach the
    network through rectifiers alone, and what is read out must be spikes without a constant beside.
    """
    timing = analyze(graph, lambda node: rectifier(node) is not None)
    for node in graph.nodes:
        found = rectifier(node)
        if found is not None and found.cap is not None:
            return f"{label(node)} has an upper bound, which does not grow"
        if timing.phase(node) != "temporal" or node.op in ("Shape", "Size"):
            continue
        if found is None and blocking(node, timing):
            return f"{label(node)} is kept analog"
        current = node.inputs[rectified_input(node)] if found is not None else None
        for tensor in node.inputs:
            if tensor is not current and _is_beside(tensor, timing):
                return f"{label(node)} takes '{tensor.name}', which does not change with time"
    for node in graph.nodes:
        if timing.phase(node) != "temporal":
            continue
        for tensor in node.outputs:
            late = any(timing.phase(reader) == "read-out" for reader in tensor.outputs)
            if late or any(output is tensor for output in graph.outputs):
                constant = _constant_before(node)
                if constant:
                    return f"'{tensor.name}' is read out, with what {constant} adds to spikes"
    return ""


def _is_beside(tensor: Tensor, timing: Timing) -> bool:
    """Whether a value that the input changes, but not time, flows in."""
    return (
        is_live(tensor)
        and id(tensor) not in timing.temporal
        and np.dtype(tensor.dtype or np.float32).kind == "f"
    )


#: They add nothing to what is not there.
_ADD_NOTHING = ("AveragePool", "Flatten", "GlobalAveragePool", "Identity", "MaxPool", "Neg", "Reshape",
                "Slice", "Transpose")  # fmt: skip


def _constant_before(node: Node) -> str:
    """The node on the way to the neurons that may add a constant; empty where there is none."""
    if rectifier(node) is not None:
        return ""
    if node.op not in _ADD_NOTHING:
        return label(node)
    before = producer(node.inputs[0])
    return "" if before is None else _constant_before(before)
