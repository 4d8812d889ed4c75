"""correct-layers: layers get the weights and biases of the calibration, and nothing else changes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import Array, after, op_counts, parse, random, run_model

from snncompiler.errors import InternalError
from snncompiler.ir.graph import Graph, export_model
from snncompiler.ir.rectifiers import rectifiers_of
from snncompiler.passes.base import run_passes
from snncompiler.passes.spike.correct_layers import CorrectLayers


def corrected(
    model: onnx.ModelProto, weights: dict[str, Array], biases: dict[str, Array]
) -> onnx.ModelProto:
    """The normalized model with weights and biases for its nodes, named by their operators."""
    graph, context = after(model)
    names = _names(graph)
    step = CorrectLayers(
        {names[op]: array for op, array in weights.items()},
        {names[op]: array for op, array in biases.items()},
    )
    run_passes([step], graph, context)
    return export_model(graph)


def _names(graph: Graph) -> dict[str, str]:
    return {node.op: node.name for node in graph.nodes}


def test_weights_and_bias_of_a_convolution() -> None:
    model = parse(
        "g (float[N,2,4,4] x) => (float[N,3,2,2] y) { c = Conv (x, w)  y = Relu (c) }",
        {"w": random(0, 3, 2, 3, 3)},
    )
    weights, bias, shift = random(1, 3, 2, 3, 3), random(2, 3), random(3, 3)
    expected = parse(
        "g (float[N,2,4,4] x) => (float[N,3,2,2] y) { c = Conv (x, w, b)  y = Relu (c) }",
        {"w": weights, "b": bias + shift},
    )
    found = corrected(model, {"Conv": weights}, {"Conv": bias, "Relu": shift})
    x = random(4, 2, 2, 4, 4)
    assert np.array_equal(run_model(found, x=x)[0], run_model(expected, x=x)[0])
    assert op_counts(found) == {"Conv": 1, "Relu": 1}


@pytest.mark.parametrize("shift", [np.float32([0.5]), np.float32([0.5, -1, 2])])
def test_the_shift_of_a_rectifier_behind_a_sum_is_added(shift: Array) -> None:
    model = parse(
        "g (float[N,3,2] x) => (float[N,3,2] y) { r = Relu (x)  s = Add (x, r)  y = Relu (s) }"
    )
    graph, context = after(model)
    last = rectifiers_of(graph)[-1].name
    run_passes([CorrectLayers({}, {last: shift})], graph, context)
    x = random(5, 4, 3, 2)
    expected = np.maximum(x + np.maximum(x, 0) + shift.reshape(-1, 1), 0)
    assert np.array_equal(run_model(export_model(graph), x=x)[0], expected)


def test_a_layer_that_others_read_keeps_its_bias() -> None:
    """The shift of one rectifier must not reach the other."""
    model = parse(
        "g (float[N,2] x) => (float[N,3] y) { c = Gemm (x, w, b)  p = Relu (c)  n = Neg (c)"
        "  m = Relu (n)  y = Sub (p, m) }",
        {"w": random(0, 2, 3), "b": random(1, 3)},
    )
    graph, context = after(model)
    first = next(node for node in rectifiers_of(graph) if node.inputs[0].inputs[0].op == "Gemm")
    shift = np.float32([1, 2, 3])
    x = random(2, 5, 2)
    (before,) = run_model(export_model(graph), x=x)
    run_passes([CorrectLayers({}, {first.name: shift})], graph, context)
    (behind,) = run_model(export_model(graph), x=x)
    c = run_model(
        parse(
            "g (float[N,2] x, float[2,3] w, float[3] b) => (float[N,3] y) { y = Gemm (x, w, b) }"
        ),
        x=x,
        w=random(0, 2, 3),
        b=random(1, 3),
    )[0]
    # One addition more, of numbers up to some ten.
    np.testing.assert_allclose(
        behind - before, np.maximum(c + shift, 0) - np.maximum(c, 0), atol=1e-5
    )


def test_a_product_without_a_bias_gets_one() -> None:
    model = parse(
        "g (float[N,3,2] x) => (float[N,3,4] y) { c = MatMul (x, w)  y = Relu (c) }",
        {"w": random(0, 2, 4)},
    )
    weights, bias = random(1, 2, 4), random(2, 4)
    found = corrected(model, {"MatMul": weights}, {"MatMul": bias})
    x = random(3, 5, 3, 2)
    expected = parse(
        "g (float[N,3,2] x, float[2,4] w, float[4] b) => (float[N,3,4] y)"
        " { c = MatMul (x, w)  d = Add (c, b)  y = Relu (d) }"
    )
    assert np.array_equal(run_model(found, x=x)[0], run_model(expected, x=x, w=weights, b=bias)[0])


def test_weights_of_another_shape_are_our_own_fault() -> None:
    model = parse(
        "g (float[N,2] x) => (float[N,3] y) { c = Gemm (x, w)  y = Relu (c) }",
        {"w": random(0, 2, 3)},
    )
    with pytest.raises(InternalError, match="no weights of shape"):
        corrected(model, {"Gemm": random(1, 3, 3)}, {})
