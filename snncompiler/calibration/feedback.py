"""Rounds the weights of a running network by error feedback, layer by layer (`rounding`).

What a layer receives comes from the spikes of layers that are rounded already, so the Gram matrix is
that of its inputs in the network that will run.  A spike that is sent too much at one step is missing
at a later one, so it is the mean of the inputs over time that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from snncompiler.calibration.gram import Gram, Reading
from snncompiler.calibration.rounding import nearest, with_feedback
from snncompiler.calibration.window import Window
from snncompiler.passes.base import Units

#: Layers that read more inputs are rounded to the nearest: their Gram matrix would take 512 MB.
MOST_INPUTS = 8192
#: Output positions of a layer that are looked at, over all images.
ROWS = 16384
#: Of the step by which a weight is changed from the nearest whole number (`Calibration.whole`).
FARTHEST = (-8, 7)

Floats = NDArray[np.float32]


def round_weights(
    window: Window,
    nodes: Sequence[onnx.NodeProto],
    values: Callable[[str], Iterable[tuple[Floats, int]]],
    whole: dict[str, NDArray[np.int8]],
    seed: int,
) -> None:
    """Round the weights of those of the `nodes` that are not in `whole`, and put them into the window.

    nodes: in front of a neuron.  values: what a tensor is, batch by batch, [steps*m, ...] or [m, ...],
    and m.  whole: name of a node -> by how much its whole weights differ from the nearest ones.
    """
    constants = {tensor.name: tensor for tensor in window.graph.initializer}
    for node in nodes:
        units = window.units.get(node.name)
        if units is None or node.name in whole:
            continue
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        reading = Reading.of(node.op_type, attributes, units.weights.shape)
        if reading is None or reading.inputs > MOST_INPUTS:
            continue
        gram = _gram(reading, values(node.input[0]), seed)
        whole[node.name] = changes = _rounded(reading, units, gram)
        numbers = _nearest(units) + changes
        array = (units.step * numbers).astype(np.float32)
        name = node.input[1]
        constants[name].CopyFrom(numpy_helper.from_array(array, name))


def _nearest(units: Units) -> NDArray[np.float64]:
    return nearest(units.weights, 1.0, units.most)


def _rounded(reading: Reading, units: Units, gram: Gram) -> NDArray[np.int8]:
    matrix = reading.matrix(units.weights.astype(np.float64))
    numbers = with_feedback(matrix, gram.products, 1.0, units.most)
    changes = np.clip(reading.weights(numbers) - _nearest(units), *FARTHEST)
    return changes.astype(np.int8)


def _gram(reading: Reading, parts: Iterable[tuple[Floats, int]], seed: int) -> Gram:
    """Of the means over time, at seeded positions: of every batch the same share."""
    gram = Gram.empty(reading.groups, reading.inputs)
    rng = np.random.default_rng(seed)
    for value, images in parts:
        mean = value.reshape(-1, images, *value.shape[1:]).mean(axis=0, dtype=np.float32)
        count = reading.positions(mean.shape)
        # Not more than ROWS in all, as far as the first batch tells.
        wanted = min(count, max(ROWS // 16, 1))
        gram.add(reading.rows(mean, rng.permutation(count)[:wanted]))
    return gram
