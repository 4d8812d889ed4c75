"""What a network is for, and what is chosen for it."""

from __future__ import annotations

from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from snncompiler.ir.graph import (
    known,
)
from snncompiler.ir.operators import record
from snncompiler.ir.rectifiers import depth_of
from snncompiler.ir.settings import Options
from snncompiler.network.growable import hindrance
from snncompiler.network.prepared import Prepared

Array = NDArray[Any]


def task_of(
    prepared: Prepared, options: Options, labels: Array | None
) -> Literal["classification", "regression"]:
    """Whether the network's outputs are class scores, of which only the largest matters.

    They are if the user says so; if a Softmax or an arg-max is computed from them; or if they are
    [N, classes] and the calibration data has labels, or they come from an image or a sequence.  An
    output of the size of the input is a reconstruction, float outputs of several shapes are those of a
    detector, and all else is regression.
    """
    if options.task != "auto":
        return options.task
    floats = [
        one for one in prepared.graph.outputs if np.dtype(one.dtype or np.float32).kind == "f"
    ]
    if (
        len({str((output.shape or ())[1:]) for output in floats}) > 1
    ):  # whatever the batch is called
        return "regression"
    if any(record(node.op).scores for node in prepared.graph.nodes):
        return "classification"
    sizes = {prod(dim or 0 for dim in spec.shape[1:]) for spec in prepared.inputs}
    flat = [output.shape for output in prepared.graph.outputs if len(output.shape or ()) == 2]
    scores = [shape[1] for shape in flat if known(shape[1]) and 1 < shape[1] not in sizes]
    structured = any(len(spec.shape) > 2 for spec in prepared.inputs)
    return "classification" if scores and (labels is not None or structured) else "regression"


def resolve(
    prepared: Prepared, options: Options, *, data: bool = True, labels: Array | None = None
) -> Options:
    """The options with everything that was left open chosen for this network (`Options.resolved`).

    A note says why thresholds do not grow, if it is the network that prevents it.
    """
    graph = prepared.graph
    task, depth = task_of(prepared, options, labels), depth_of(graph)
    reason = hindrance(graph)
    found = options.resolved(task, data, depth, reason)
    if reason and found.growth != options.resolved(task, data, depth).growth:
        prepared.context.note("SNNC310", f"thresholds do not grow: {reason}")
    return found
