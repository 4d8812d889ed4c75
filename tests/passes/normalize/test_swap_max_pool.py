"""swap-max-pool: rectifiers go before the pooling, where that computes the same."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import (
    after,
    ops,
    parse,
    random,
    rewritten,
    run_model,
)


@pytest.mark.parametrize("relu", ["Relu (p)", "Clip (p, zero, six)", "Max (zero, p)"])
def test_a_rectifier_goes_before_its_pooling(relu: str) -> None:
    text = f"""g (float[N,2,6,6] x) => (float[N,2,3,3] y) <float zero = {{0}}, float six = {{0.6}}>
    {{ c = Conv (x, w)  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (c)  y = {relu} }}"""
    model = parse(text, {"w": random(0, 2, 2, 1, 1)})
    result = rewritten(model, "swap-max-pool")
    assert ops(result) == ["Conv", relu.split(" ")[0], "MaxPool"]
    x = random(1, 2, 2, 6, 6)
    assert np.array_equal(run_model(result, x=x)[0], run_model(model, x=x)[0])


@pytest.mark.parametrize(
    "body",
    [
        "p = MaxPool <kernel_shape = [2, 2]> (x)  r = Relu (p)  y = Add (r, p)",
        "p, i = MaxPool <kernel_shape = [2, 2]> (x)  r = Relu (p)  j = Cast <to = 1> (i)"
        "  y = Add (r, j)",
        "p = AveragePool <kernel_shape = [2, 2]> (x)  y = Relu (p)",
    ],
)
def test_other_poolings_stay(body: str) -> None:
    graph, _ = after(
        parse(f"g (float[N,2,6,6] x) => (float[N,2,5,5] y) {{ {body} }}"), "swap-max-pool"
    )
    assert ops(graph).index("Relu") == 1


def test_padding_of_a_pooling_is_not_above_the_rectifier() -> None:
    # Max pooling pads with -inf: relu(max(-inf, x)) = max(relu(x)) only as every window sees a pixel.
    text = """g (float[N,1,4,4] x) => (float[N,1,3,3] y)
    { p = MaxPool <kernel_shape = [2, 2], strides = [2, 2], pads = [1, 1, 1, 1]> (x)  y = Relu (p) }"""
    model, x = parse(text), -np.ones((1, 1, 4, 4), np.float32)
    assert np.array_equal(run_model(rewritten(model), x=x)[0], run_model(model, x=x)[0])


def test_two_poolings_in_a_row_swap_both() -> None:
    text = """g (float[N,2,8,8] x) => (float[N,2,6,6] y)
    { a = Relu (x)  c = Conv (a, w)  p = MaxPool <kernel_shape = [2, 2]> (c)
      q = MaxPool <kernel_shape = [2, 2]> (p)  y = Relu (q) }"""
    model = parse(text, {"w": random(0, 2, 2, 1, 1)})
    result = rewritten(model)
    assert ops(result) == ["Relu", "Conv", "Relu", "MaxPool", "MaxPool"]
    x = random(1, 2, 2, 8, 8)
    np.testing.assert_array_equal(run_model(result, x=x)[0], run_model(model, x=x)[0])
