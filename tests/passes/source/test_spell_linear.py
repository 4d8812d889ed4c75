"""spell-linear: what picks, places or copies is a Gather and a Where of the same values."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, ops, parse, random, rewritten, run_model


def ints(*values: Any) -> Array:
    return np.array(values, np.int64)


#: One sample of four rows with six values, or time-major: four steps, one sample, six values.
ROWS, STEPS = (1, 4, 6), (4, 1, 6)
UPDATES = random(2, 1, 2, 6)
PICKS = ints([[3, 0, -1, 2, 1, 0], [0, 0, 2, -4, 3, 1]])

#: What y is of x, its shape and that of x, the weights; in operators that pick and place.
SPELLED: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Array]]] = {
    "rows": ("GatherND (x, k)", (1, 3, 6), ROWS, {"k": ints([[0, 2], [0, -1], [0, 0]])}),
    "rows of each sample": (
        "GatherND <batch_dims = 1> (x, k)", (1, 3, 6), ROWS, {"k": ints([[2], [-4], [0]])}),
    "values": ("GatherND (x, k)", (1, 2), ROWS, {"k": ints([[0, 2, 5], [0, -1, -6]])}),
    "values of rows": (
        "GatherElements <axis = 1> (x, k)", (1, 2, 6), ROWS, {"k": PICKS}),
    "values of columns": (
        "GatherElements <axis = -1> (x, k)", (1, 2, 2), ROWS, {"k": ints([[5, 0], [-6, 3]])}),
    "placed rows": (
        "ScatterND (x, k, u)", ROWS, ROWS, {"k": ints([[0, 3], [0, -4]]), "u": UPDATES}),
    "added rows": (
        'ScatterND <reduction = "add"> (x, k, u)', ROWS, ROWS,
        {"k": ints([[0, 3], [0, -4]]), "u": UPDATES}),
    "one row twice": (
        'ScatterND <reduction = "add"> (x, k, u)', ROWS, ROWS,
        {"k": ints([[0, 3], [0, 3]]), "u": UPDATES * ints([[1], [0]]).astype(np.float32)}),
    "placed values": (
        "ScatterElements <axis = 1> (x, k, u)", ROWS, ROWS,
        {"k": ints([[3, 0], [0, 1]]), "u": random(2, 1, 2, 2)}),
    "chosen rows": (
        "Compress <axis = 1> (x, k)", (1, 2, 6), ROWS, {"k": np.array([True, False, True, False])}),
    "rows in reverse": (
        "ReverseSequence <batch_axis = 0, time_axis = 1> (x, k)", ROWS, ROWS, {"k": ints(3)}),
    "steps in reverse": ("ReverseSequence (x, k)", STEPS, STEPS, {"k": ints(4)}),
    "to the first power": ("Pow (x, k)", ROWS, ROWS, {"k": np.float32(1)}),
    "cast as another": ("CastLike (x, k)", ROWS, ROWS, {"k": np.float32(7)}),
}  # fmt: skip


def model_of(
    case: tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Array]],
) -> tuple[onnx.ModelProto, Array]:
    step, out, shape, weights = case
    sizes = [",".join(map(str, sizes)) for sizes in (shape, out)]
    text = f"g (float[{sizes[0]}] x) => (float[{sizes[1]}] y) {{ y = {step} }}"
    return parse(text, weights, opset=18), random(1, *shape)


@pytest.mark.parametrize("name", SPELLED)
def test_the_values_are_the_same(name: str) -> None:
    """Nothing is added up, but for one sum of two numbers: both are equal."""
    model, x = model_of(SPELLED[name])
    result = rewritten(model, "spell-linear")
    assert not set(ops(result)) & set(ops(model))
    (found,), (wanted,) = run_model(result, x=x), run_model(model, x=x)
    assert found.shape == wanted.shape and np.array_equal(found, wanted)


#: And what stays: places beyond the sample, or of several, lengths of their own, powers.
LEFT: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Array]]] = {
    "samples": ("GatherND (x, k)", (2, 4, 6), ROWS, {"k": ints([0], [0])}),
    "rows that are not there": (
        "GatherND (x, k)", (1, 1, 6), ROWS, {"k": ints([[0, 4]])}),
    "of the flat values": ("Compress (x, k)", (2,), ROWS, {"k": np.array([True, False, True])}),
    "lengths of their own": (
        "ReverseSequence <batch_axis = 0, time_axis = 1> (x, k)", (2, 4, 6), (2, 4, 6),
        {"k": ints(3, 2)}),
    "a square": ("Pow (x, k)", ROWS, ROWS, {"k": np.float32(2)}),
    "powers": ("Pow (x, k)", ROWS, ROWS, {"k": np.ones(6, np.float32)}),
    "indices of another rank": (  # onnxruntime refuses it
        "ScatterElements <axis = 1> (x, k, u)", ROWS, ROWS,
        {"k": ints([[3, 0], [0, 1]])[None], "u": random(2, 1, 1, 2, 2)}),
    "the larger": (
        'ScatterND <reduction = "max"> (x, k, u)', ROWS, ROWS,
        {"k": ints([[0, 3], [0, -4]]), "u": UPDATES}),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_other_uses_stay(name: str) -> None:
    model, _ = model_of(LEFT[name])
    assert ops(rewritten(model, "spell-linear")) == ops(model)


def test_a_shape_that_is_given_back_is_no_node() -> None:
    """Rows of one axis are gathered as they are, with no Reshape around."""
    case = SPELLED["rows of each sample"]
    assert ops(rewritten(model_of(case)[0], "spell-linear")) == ["Gather"]
