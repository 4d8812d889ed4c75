"""Where the samples are in a network's outputs, and how the outputs of several runs are put together.

An output has the batch on one axis, which need not be the first: [T, N, C] behind an LSTM.  Or it has
none: boxes [n, 4] of a network that takes one sample at a time, or rows whose number depends on the
data.  Such an output is one value for the whole run, `RUN`.  What does not depend on the input, as the
anchors of a detector, is `CONSTANT`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from snncompiler.ir.graph import Graph

Array = NDArray[Any]
#: The batch axis of an output, or why it has none.
Axis = int | Literal["run", "constant"]
RUN: Literal["run"] = "run"
CONSTANT: Literal["constant"] = "constant"


def axes_of_outputs(graph: Graph, batch_axis: Mapping[str, int]) -> dict[str, Axis]:
    """The batch axis of every output; `batch_axis`: of the tensors for which it was followed."""
    reached = {tensor.name for tensor in graph.inputs}
    pending = list(graph.inputs)
    while pending:
        for node in pending.pop().outputs:
            new = [tensor for tensor in node.outputs if tensor.name not in reached]
            reached.update(tensor.name for tensor in new)
            pending += new
    return {
        output.name: batch_axis.get(output.name, RUN if output.name in reached else CONSTANT)
        for output in graph.outputs
    }


def cut(value: Array, axis: Axis, count: int | None) -> Array:
    """The first `count` samples, all for None; the whole where there is no batch axis."""
    if not isinstance(axis, int):
        return value
    return value[(slice(None),) * axis + (slice(count),)]


def one_by_one(axes: Mapping[str, Axis]) -> bool:
    """Whether the samples must run one at a time to have an output for each."""
    return RUN in axes.values()


@dataclass
class Gathered:
    """One output on all the data, of which every run gives a batch.

    `parts` holds a value for every sample; for `RUN` one for every run, and for `CONSTANT` one alone.
    `weights` says how often each counts, so that every output counts once for a sample, or for a batch.
    """

    axis: Axis
    parts: list[Array] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def add(self, value: Array, count: int, batch: int) -> None:
        """The output of one more run with `batch` samples; the first `count` are meant, the others
        fill the batch up."""
        value = np.asarray(value)
        if self.axis == CONSTANT:
            self.parts, self.weights = [value], [sum(self.weights) + count]
        elif self.axis == RUN:
            self.parts.append(value)
            self.weights.append(count / batch)
        else:
            rows = np.moveaxis(value, self.axis, 0)[:count]
            self.parts += [np.asarray(row, value.dtype) for row in rows]  # text, too
            self.weights += [1.0] * count

    def of(self, part: slice, run: int) -> list[Array]:
        """The parts that belong to the samples of a run, and the number of the run."""
        if isinstance(self.axis, int):
            return self.parts[part]
        return self.parts if self.axis == CONSTANT else [self.parts[run]]

    @property
    def even(self) -> bool:
        """Whether all parts have one shape; where not, it depends on the data."""
        return len({part.shape for part in self.parts}) <= 1

    @property
    def rows(self) -> Array:
        """[samples, ...]; only where the parts are `even`."""
        return np.stack(self.parts)

    def named(self, name: str) -> dict[str, Array]:
        """The output as arrays to write: with all samples along its batch axis; without one, stacked
        along a new first axis; and where the shape depends on the data, one array for each, name/0,
        name/1 and so on."""
        if not self.even:
            return {f"{name}/{number}": part for number, part in enumerate(self.parts)}
        if self.axis == CONSTANT:
            return {name: self.parts[0]}
        return {name: np.moveaxis(self.rows, 0, self.axis) if self.axis != RUN else self.rows}


def differing(found: Sequence[Array], wanted: Sequence[Array]) -> int:
    """How many parts of an output have different shapes, as they may where those depend on the data."""
    return sum(a.shape != b.shape for a, b in zip(found, wanted, strict=True))


def squares(found: Gathered, wanted: Sequence[Array]) -> tuple[float, float]:
    """The squared error and the squared norm of the parts of an output that have the same shape, in
    float64."""
    error = norm = 0.0
    for a, b, weight in zip(found.parts, wanted, found.weights, strict=True):
        if a.shape == b.shape:
            wide = b.astype(np.float64)
            error += weight * float(np.square(a - wide).sum())
            norm += weight * float(np.square(wide).sum())
    return error, norm


def batches(count: int, size: int) -> list[slice]:
    """Slices of `size` samples that cover `count`."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def filled(feeds: Mapping[str, Array], part: slice, fixed_batch: int | None) -> dict[str, Array]:
    """The samples of `part`, repeated from the first on where a fixed batch wants more."""
    rows = np.arange(part.start, part.stop)
    if fixed_batch is not None and rows.size < fixed_batch:
        rows = np.resize(rows, fixed_batch)
    return {name: array[rows] for name, array in feeds.items()}
