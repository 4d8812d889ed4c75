"""Rows of inputs against what onnxruntime computes from them, and sums of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import Array, run_model
from onnx import TensorProto, helper

from snncompiler.calibration.gram import Gram, Reading, of_positions
from snncompiler.ir.synapses import axes_of

#: Operator, attributes, shape of the weights, shape of the input.
CASES: dict[str, tuple[str, dict[str, Any], tuple[int, ...], tuple[int, ...]]] = {
    "plain": ("Conv", {}, (5, 3, 3, 3), (2, 3, 7, 6)),
    "strides, pads and dilations": (
        "Conv",
        {"strides": [2, 1], "pads": [1, 0, 2, 3], "dilations": [1, 2]},
        (4, 3, 3, 2),
        (2, 3, 8, 9),
    ),
    "groups": ("Conv", {"group": 2, "pads": [1, 1, 1, 1]}, (6, 2, 3, 3), (2, 4, 5, 5)),
    "depthwise": ("Conv", {"group": 3, "pads": [1, 1, 1, 1]}, (6, 1, 3, 3), (2, 3, 5, 5)),
    "same": ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (4, 3, 3, 3), (2, 3, 7, 8)),
    "same lower": (
        "Conv",
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        (4, 3, 4, 4),
        (1, 3, 7, 8),
    ),
    "one axis": ("Conv", {"pads": [2, 2]}, (4, 3, 5), (2, 3, 9)),
    "three axes": ("Conv", {"strides": [1, 2, 1]}, (4, 2, 2, 3, 1), (2, 2, 3, 7, 2)),
    "transposed": ("ConvTranspose", {"strides": [2, 2]}, (3, 4, 3, 3), (2, 3, 4, 5)),
    "transposed groups": (
        "ConvTranspose",
        {"strides": [2, 3], "group": 2, "pads": [1, 0, 1, 2], "output_padding": [1, 0]},
        (4, 3, 3, 4),
        (2, 4, 4, 5),
    ),
    "transposed dilations": ("ConvTranspose", {"dilations": [2]}, (3, 2, 3), (2, 3, 5)),
    "gemm": ("Gemm", {}, (5, 4), (3, 5)),
    "matmul of rows": ("MatMul", {}, (5, 4), (3, 6, 5)),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_times_the_matrix_are_what_the_operator_gives(name: str) -> None:
    """To float32's rounding of a sum of at most 54 products of numbers about 1."""
    op, attributes, shape, size = CASES[name]
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(shape).astype(np.float32)
    values = rng.standard_normal(size).astype(np.float32)
    output = _run(op, attributes, weights, values)
    reading = Reading.of(op, attributes, shape)
    assert reading is not None
    matrix = reading.matrix(weights)
    assert matrix.shape == (reading.outputs, reading.inputs)
    assert np.array_equal(reading.weights(matrix), weights)
    count = reading.positions(size)
    places = np.sort(rng.permutation(count)[: max(count // 2, 1)])
    rows = reading.rows(values, places)
    assert rows.shape == (reading.groups, len(places), reading.inputs)
    grouped = matrix.reshape(reading.groups, -1, reading.inputs)
    given = (rows @ grouped.transpose(0, 2, 1)).transpose(1, 0, 2).reshape(len(places), -1)
    wanted = of_positions(output, reading.axis, places)
    np.testing.assert_allclose(given, wanted, atol=2e-5)


def _run(op: str, attributes: dict[str, Any], weights: Array, values: Array) -> Array:
    node = helper.make_node(op, ["x", "w"], ["y"], **attributes)
    entries = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape)
        for name, array in (("x", values), ("w", weights))
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * values.ndim)
    graph = helper.make_graph([node], "g", entries, [output])
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return run_model(model, x=values, w=weights)[0]


def test_what_is_no_matrix_has_no_reading() -> None:
    assert Reading.of("Einsum", {"equation": "ij,jk->ik"}, (3, 4)) is None
    assert Reading.of("MatMul", {}, (2, 3, 4)) is None
    assert Reading.of("Gemm", {"transB": 1}, (3, 4)) is None
    assert Reading.of("Relu", {}, (3,)) is None


def test_sums_of_parts_are_sums_of_the_whole() -> None:
    """Exactly, as these are whole numbers."""
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 16, (2, 9000, 7)).astype(np.float32)
    whole = Gram.empty(2, 7)
    whole.add(rows)
    first, last = Gram.empty(2, 7), Gram.empty(2, 7)
    first.add(rows[:, :1234])
    last.add(rows[:, 1234:])
    merged = first.merge(last)
    wide = rows.astype(np.float64)
    assert np.array_equal(whole.products, wide.transpose(0, 2, 1) @ wide)
    assert np.array_equal(whole.products, merged.products)
    assert np.array_equal(whole.sums, merged.sums) and whole.count == merged.count == 9000
    centred = wide - wide.mean(axis=1, keepdims=True)
    # Differences of sums near 1e6, in float64.
    np.testing.assert_allclose(
        whole.centred, centred.transpose(0, 2, 1) @ centred, rtol=0, atol=1e-6
    )


def test_taps_of_a_transposed_convolution() -> None:
    """Stride 2, kernel 3: positions 0 to 4 of two places."""
    (axis,) = axes_of([3], {"strides": [2]}, transposed=True)
    expected = [[0, -1, -1], [-1, 0, -1], [1, -1, 0], [-1, 1, -1], [-1, -1, 1]]
    assert axis.taps(2).tolist() == expected
    assert axis.reads(2).tolist() == [3, 3]
