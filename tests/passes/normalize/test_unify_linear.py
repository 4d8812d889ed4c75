"""unify-linear: before and after, and the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import (
    after,
    ops,
    parse,
    random,
    same,
)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 1.0), (1.0, 2.0), (-3.0, 0.0)])
@pytest.mark.parametrize("bias", ["3", "1,3", "1", ""])
def test_every_gemm_becomes_plain(transposed: int, alpha: float, beta: float, bias: str) -> None:
    weights = {"w": random(1, 3, 4) if transposed else random(1, 4, 3)}
    if bias:
        weights["c"] = random(2, *(int(dim) for dim in bias.split(",")))
    text = f"""g (float[N,4] x) => (float[N,3] y)
    {{ h = Gemm <transB = {transposed}, alpha = {alpha}, beta = {beta}> (x, w{", c" if bias else ""})
      y = Relu (h) }}"""
    model = parse(text, weights)
    assert same(model, "unify-linear", 3, 4) == ["Gemm", "Relu"]
    graph, context = after(model, "unify-linear")
    assert not graph.nodes[0].attrs
    (facts,) = context.layers.values()
    assert facts.bias == (bool(bias) and beta != 0)


def test_a_transposed_input_is_left_alone() -> None:
    text = """g (float[4,N] x) => (float[?,3] y)
    { h = Gemm <transA = 1, alpha = 2.0> (x, w)  y = Relu (h) }"""
    graph, _ = after(parse(text, {"w": random(0, 4, 3)}), "unify-linear")
    gemm = next(node for node in graph.nodes if node.op == "Gemm")
    assert gemm.attrs["transA"] == 1 and gemm.attrs["alpha"] == 2.0


def test_a_bias_at_run_time_is_left_alone() -> None:
    text = """g (float[N,4] x, float[1,3] b) => (float[N,3] y)
    { h = Gemm <beta = 2.0> (x, w, b)  y = Relu (h) }"""
    graph, _ = after(parse(text, {"w": random(0, 4, 3)}), "unify-linear")
    assert graph.nodes[0].attrs["beta"] == 2.0


@pytest.mark.parametrize(
    ("behind", "bias"),
    [
        ("h = Add (m, c)", True),
        ("h = Add (c, m)", True),
        ("h = Add (m, none)", False),
        ("h = Add (m, m)", False),
        ("h = Mul (m, c)", False),
        ("h = Neg (m)", False),
    ],
)
def test_a_matmul_that_stays_has_the_bias_that_is_added(behind: str, bias: bool) -> None:
    text = f"""g (float[N,5,4] x) => (float[N,5,3] y)
    {{ m = MatMul (x, w)  {behind}  y = Relu (h) }}"""
    arrays = {"w": random(1, 4, 3), "c": random(2, 3), "none": np.zeros(3, np.float32)}
    graph, context = after(parse(text, arrays), "unify-linear")
    assert ops(graph)[0] == "MatMul"
    assert [layer.bias for layer in context.layers.values()] == [bias]


@pytest.mark.parametrize("order", ["m, c", "c, m"])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 1), (1, 3)])
def test_matmul_and_add_become_gemm(order: str, shape: tuple[int, ...]) -> None:
    text = f"""g (float[N,4] x) => (float[N,3] y)
    {{ m = MatMul (x, w)  h = Add ({order})  y = Relu (h) }}"""
    model = parse(text, {"w": random(1, 4, 3), "c": random(2, *shape)})
    assert same(model, "unify-linear", 5, 4) == ["Gemm", "Relu"]
    (facts,) = after(model, "unify-linear")[1].layers.values()
    assert facts.bias and facts.output == "h"


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((3, 1)),
        (3, 3),
        (1, 1, 3),
    ],
)
def test_an_add_of_more_than_a_row_stays(shape: tuple[int, ...]) -> None:
    out = "float[1,3,3]" if len(shape) == 3 else "float[3,3]"
    text = f"""g (float[3,4] x) => ({out} y)
    {{ m = MatMul (x, w)  h = Add (m, c)  y = Relu (h) }}"""
    model = parse(text, {"w": random(1, 4, 3), "c": random(2, *shape)})
    assert same(model, "unify-linear", 3, 4) == ["Gemm", "Add", "Relu"]


def test_a_product_with_two_readers_keeps_its_add() -> None:
    text = """g (float[N,4] x) => (float[N,3] y, float[N,3] m)
    { m = MatMul (x, w)  h = Add (m, c)  y = Relu (h) }"""
    model = parse(text, {"w": random(1, 4, 3), "c": random(2, 3)})
    assert same(model, "unify-linear", 2, 4) == ["Gemm", "Add", "Relu"]


def test_matmul_on_more_axes_stays() -> None:
    text = "g (float[N,2,4] x) => (float[N,2,3] y) { m = MatMul (x, w)  y = Relu (m) }"
    graph, context = after(parse(text, {"w": random(1, 4, 3)}), "unify-linear")
    assert ops(graph) == ["MatMul", "Relu"]
    assert [facts.op for facts in context.layers.values()] == ["MatMul"]


def test_matmul_of_a_constant_on_the_left_stays() -> None:
    text = "g (float[N,4,2] x) => (float[N,3,2] y) { m = MatMul (w, x)  y = Relu (m) }"
    assert same(parse(text, {"w": random(1, 3, 4)}), "unify-linear", 3, 4, 2) == ["MatMul", "Relu"]
