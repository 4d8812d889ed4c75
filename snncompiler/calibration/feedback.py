"""Rounds the weights of a running network by error feedback, layer by layer (`rounding`).

What a layer receives comes from the spikes of layers that are rounded already, so the Gram matrix is
that of its inputs in the network that will run.  A spike that is sent too much at one step is missing
at a later one, so it is the mean of the inputs over time that counts; in layered time their values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from snncompiler.calibration.gram import Gram, Reading
from snncompiler.calibration.rounding import nearest, with_feedback
from snncompiler.passes.base import Units

#: Weights of fewer bits are rounded so; with 8 and more the nearest whole number is as good.
FEW_BITS = 8
#: Layers that read more inputs are rounded to the nearest: their Gram matrix would take 512 MB.
MOST_INPUTS = 8192
#: Output positions of a layer that are looked at, over all images.
ROWS = 16384
#: Of the step by which a weight is changed from the nearest whole number (`Calibration.whole`).
FARTHEST = (-8, 7)

Floats = NDArray[np.float32]


def round_weights(
    nodes: Sequence[onnx.NodeProto],
    units: Mapping[str, Units],
    constants: Mapping[str, onnx.TensorProto],
    values: Callable[[str], Iterable[tuple[Floats, int]]],
    whole: dict[str, NDArray[np.int8]],
    seed: int,
) -> None:
    """Round the weights of those of the `nodes` that are not in `whole`, and write them down there.

    nodes: in front of a neuron.  units: name of a node -> its weights before they are rounded.
    constants: of the network, by name, where the rounded weights are put.  values: what a tensor is,
    batch by batch, [steps*m, ...] or [m, ...], and m.  whole: name of a node -> by how much its whole
    weights differ from the nearest ones.
    """
    for node in nodes:
        unit = units.get(node.name)
        if unit is None or node.name in whole:
            continue
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        reading = Reading.of(node.op_type, attributes, unit.weights.shape)
        if reading is None or reading.inputs > MOST_INPUTS:
            continue
        gram = _gram(reading, values(node.input[0]), seed)
        whole[node.name] = changes = _rounded(reading, unit, gram)
        numbers = nearest_to(unit) + changes
        array = (unit.step * numbers).astype(np.float32)
        name = node.input[1]
        constants[name].CopyFrom(numpy_helper.from_array(array, name))


def nearest_to(units: Units) -> NDArray[np.float64]:
    """Every weight as the nearest whole number, in multiples of the step."""
    return nearest(units.weights, 1.0, units.most)


def _rounded(reading: Reading, units: Units, gram: Gram) -> NDArray[np.int8]:
    matrix = reading.matrix(units.weights.astype(np.float64))
    numbers = with_feedback(matrix, gram.products, 1.0, units.most)
    changes = np.clip(reading.weights(numbers) - nearest_to(units), *FARTHEST)
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
