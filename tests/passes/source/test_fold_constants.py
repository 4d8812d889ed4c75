"""fold-constants: shapes, weights that are computed or quantized, and what cannot be evaluated."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import (
    after,
    assert_close,
    compile_text,
    ops,
    parse,
    random,
    refused,
    rewritten,
    run_model,
    same,
)
from onnx import helper, numpy_helper

from snncompiler.ir.graph import value


def test_shape_arithmetic_folds() -> None:
    # How PyTorch writes x.view(x.size(0), -1).
    text = """g (float[N,2,3] x) => (float[N,6] y) <int64 zero = {0}, int64[1] first = {0}>
    {
      s = Shape (x)  n = Gather <axis = 0> (s, zero)  u = Unsqueeze (n, first)
      m = Constant <value_ints = [-1]> ()  t = Concat <axis = 0> (u, m)
      r = Reshape (x, t)  y = Relu (r)
    }"""
    assert same(parse(text), "fold-constants", 1, 2, 3) == ["Reshape", "Relu"]
    assert same(parse(text), "track-batch", 3, 2, 3) == ["Reshape", "Relu"]


def test_shape_with_start_and_end_folds() -> None:
    text = """g (float[N,2,3] x) => (float[N,2] y) <int64[1] all = {-1}>
    { s = Shape <start = -2, end = -1> (x)  t = Concat <axis = 0> (all, s)
      r = Relu (x)  y = Reshape (r, t) }"""
    graph, _ = after(parse(text), "fold-constants")
    assert [node.op for node in graph.nodes] == ["Relu", "Reshape"]
    assert value(graph.nodes[1].inputs[1]).tolist() == [-1, 2]  # type: ignore[union-attr]


def test_a_shape_that_the_user_reads_is_that_of_the_batch() -> None:
    text = "g (float[N,3] x) => (float[N,3] y, int64[2] n) { y = Relu (x)  n = Shape (x) }"
    snn = compile_text(parse(text), random(0, 8, 3), steps=2)
    assert run_model(snn, x=random(1, 5, 3))[1].tolist() == [5, 3]


def test_what_is_computed_from_a_shape_alone_is_no_output() -> None:
    """Shapes are folded for one sample; the user would read that one."""
    text = """g (float[N,3] x) => (float[N,3] y, int64 n) <int64 first = {0}>
    { y = Relu (x)  s = Shape (x)  [pick] n = Gather (s, first) }"""
    (finding,) = refused(parse(text))
    assert finding.code == "SNNC205" and "pick" in finding.node and "'n'" in finding.message


def test_weights_that_are_computed_fold() -> None:
    text = """g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1, 2, 3, 4}, float two = {2}>
    { t = Transpose <perm = [1, 0]> (w)  d = Mul (t, two)  h = MatMul (x, d)  y = Relu (h) }"""
    assert same(parse(text), "fold-constants", 1, 2) == ["MatMul", "Relu"]


@pytest.mark.parametrize(
    ("attribute", "wanted"),
    [
        ("value = float[2] {1, 2}", [1.0, 2.0]),
        ("value_float = 3.0", 3.0),
        ("value_floats = [1.0, 2.0]", [1.0, 2.0]),
    ],
)
def test_every_spelling_of_constant(attribute: str, wanted: object) -> None:
    text = f"""g (float[N,2] x) => (float[N,2] y)
    {{ c = Constant <{attribute}> ()  a = Add (x, c)  y = Relu (a) }}"""
    graph, _ = after(parse(text), "fold-constants")
    found = value(graph.nodes[0].inputs[1])
    assert found is not None and found.dtype == np.float32 and found.tolist() == wanted


def test_a_constant_of_text_is_an_output_as_it_is() -> None:
    text = """g (float[N,2] x) => (float[N,2] y, string z)
    { [text] z = Constant <value_string = "a"> ()  y = Relu (x) }"""
    outputs = run_model(rewritten(parse(text)), x=random(1, 3, 2))
    assert np.asarray(outputs[1]).tolist() == "a"


def test_a_big_constant_is_refused_before_it_is_made() -> None:
    text = """g (float[N,2] x) => (float[N,2] y)
    <int64[2] big = {1073741824, 1073741824}, int64[1] a = {0}>
    { [bomb] c = ConstantOfShape (big)  m = ReduceMax <keepdims = 0> (c)
      h = Add (x, m)  y = Relu (h) }"""
    (finding,) = refused(parse(text))
    assert finding.code == "SNNC209" and finding.node == "ConstantOfShape 'bomb'"
    assert f"{1 << 60:,}" in finding.message


@pytest.mark.parametrize(
    "random_op",
    [
        "RandomNormal <shape = [1, 2]> ()",
        "RandomUniformLike (w)",
        pytest.param("Bernoulli (w)"),
        "Multinomial <sample_size = 2> (w)",
    ],
)
def test_random_operators_are_not_folded(random_op: str) -> None:
    text = f"""g (float[N,2] x) => (float[N,2] y) <float[1,2] w = {{0.5, 0.5}}>
    {{ r = {random_op}  c = Cast <to = 1> (r)  h = Add (x, c)  y = Relu (h) }}"""
    assert random_op.split(" ")[0] in ops(after(parse(text), "fold-constants")[0])


def test_a_constant_that_is_an_output_stays_an_output() -> None:
    text = """g (float[N,2] x) => (float[N,2] y, float[2] z) <float[2] a = {1, 2}>
    { z = Neg (a)  y = Relu (x) }"""
    model = rewritten(parse(text), "fold-constants")
    y, z = run_model(model, x=random(0, 1, 2))
    assert z.tolist() == [-1, -2] and y.shape == (1, 2)


def test_dead_nodes_are_dropped() -> None:
    text = "g (float[N,2] x) => (float[N,2] y) { a = Exp (x)  b = Neg (a)  y = Relu (x) }"
    assert ops(after(parse(text), "fold-constants")[0]) == ["Relu"]


#: x·W, ReLU, ·V with V from DequantizeLinear.
TEXT = """
    g (float[N, 4] x) => (float[N, 3] y) {{
        h = Relu(x)
        w = {nodes}
        y = MatMul(h, w)
    }}
"""


def folded(model: onnx.ModelProto) -> np.ndarray:
    """The weights of the only MatMul after the pass."""
    result = rewritten(model, "fold-constants")
    (product,) = [node for node in result.graph.node if node.op_type == "MatMul"]
    arrays = {one.name: numpy_helper.to_array(one) for one in result.graph.initializer}
    assert not [node for node in result.graph.node if "Linear" in node.op_type]
    return arrays[product.input[1]]


@pytest.mark.parametrize(
    ("opset", "kind", "axis"),
    [(opset, "int8", None) for opset in (10, 12)]
    + [
        (opset, kind, axis)
        for opset in (13, 17, 18, 19, 20, 21, 23, 25)  # before 13 there is no axis
        for kind, axis in [("int8", None), ("uint8", 0), ("int8", 1), ("uint8", -1), ("int32", -2)]
    ],
)
def test_dequantized_weights_fold_at_every_opset(opset: int, kind: str, axis: int | None) -> None:
    """(q - z)·s of the standard, exactly: the difference is an integer below 2^24, s is a float32."""
    rng = np.random.default_rng(opset)
    limits = np.iinfo(np.int16 if kind == "int32" else kind)
    q = rng.integers(limits.min, limits.max, (4, 3)).astype(kind)
    size, shape = ((), ()) if axis is None else (((4, 3)[axis],), ((4, 1), (1, 3))[axis])
    s = rng.uniform(0.01, 0.1, size).astype(np.float32)
    # The standard wants a zero point of 0 for int32.
    z = (rng.integers(0, 9, size) * (kind != "int32")).astype(kind)
    where = "" if axis is None else f" <axis = {axis}>"
    model = parse(
        TEXT.format(nodes=f"DequantizeLinear{where}(q, s, z)"),
        {"q": q, "s": s, "z": z},
        opset=opset,
    )
    wanted = (q.astype(np.float32) - z.astype(np.float32).reshape(shape)) * s.reshape(shape)
    assert np.array_equal(folded(model), wanted)


@pytest.mark.parametrize("opset", [10, 13, 17, 19, 21])
def test_weights_that_are_quantized_and_dequantized_fold(opset: int) -> None:
    """Training with simulated quantization leaves both nodes; rounding is to even, then saturation."""
    weights = np.array([[0.5, 1.5, 2.5], [-0.5, -1.5, 900], [-900, 63.4, 63.6], [0, 1, -1]])
    model = parse(
        TEXT.format(nodes="DequantizeLinear(q, s, z)").replace(
            "h = Relu", "q = QuantizeLinear(v, s, z)\n h = Relu"
        ),
        {"v": weights.astype(np.float32), "s": np.float32(1), "z": np.int8(0)},
        opset=opset,
    )
    assert np.array_equal(folded(model), np.clip(np.rint(weights), -128, 127).astype(np.float32))


def test_blocks_of_rows_have_a_scale_of_their_own() -> None:
    q = np.arange(12, dtype=np.int8).reshape(4, 3)
    s = np.array([[1, 2, 4], [0.5, 0.25, 8]], np.float32)
    text = TEXT.format(nodes="DequantizeLinear <axis = 0, block_size = 2>(q, s)")
    assert np.array_equal(folded(parse(text, {"q": q, "s": s}, opset=21)), q * np.repeat(s, 2, 0))


def test_what_the_reference_cannot_evaluate_is_told() -> None:
    """GlobalLpPool has no reference: its value is constant all the same, and is said to be."""
    model = parse(
        """
        g (float[N, 2, 4, 4] x) => (float[N, 3, 4, 4] y) {
            h = Relu(x)
            w = GlobalLpPool(v)
            y = Conv(h, w)
            }
        """,
        {"v": random(1, 3, 2, 4, 4)},
    )
    notes = [one for one in after(model, "fold-constants")[1].findings if one.code == "SNNC206"]
    assert [one.node for one in notes] == ["GlobalLpPool 'GlobalLpPool_1'"]
    assert "a constant stays: onnx's reference cannot evaluate GlobalLpPool" in notes[0].message


def test_weights_that_the_reference_cannot_evaluate_are_linear_all_the_same() -> None:
    """They are computed once a run, and what spikes is one factor of two."""
    model = parse(
        """
        g (float[N, 2, 4, 4] x) => (float[N, 3, 4, 4] y) {
            h = Relu(x)
            p = GlobalLpPool(v)
            w = Neg(p)
            c = Conv(h, w)
            d = Add(c, bias)
            y = Relu(d)
        }
        """,
        {"v": random(1, 3, 2, 4, 4), "bias": np.float32(9)},
    )
    x = random(2, 3, 2, 4, 4)
    (wanted,), snn = run_model(model, x=x), compile_text(model, x)
    for steps in (64, 1024):
        (decoded,) = run_model(snn, x=x, snnc_steps=np.array(steps))
        # C/T: a neuron is off by θ/T, and two of them are weighted by at most 6 each.
        assert_close(decoded, wanted, relative=20 / steps)


def test_operators_of_other_domains_fold() -> None:
    """Scaler of ai.onnx.ml on a constant: (x - offset)·scale."""
    scaler = helper.make_node(
        "Scaler", ["v"], ["w"], domain="ai.onnx.ml", offset=[1.0], scale=[2.0]
    )
    model = parse(
        TEXT.format(nodes="Identity(v)"),
        {"v": np.arange(12, dtype=np.float32).reshape(4, 3)},
        imports=', "ai.onnx.ml" : 3',
    )
    model.graph.node[1].CopyFrom(scaler)
    wanted = (np.arange(12, dtype=np.float32).reshape(4, 3) - 1) * 2
    assert np.array_equal(folded(model), wanted)


def test_a_constant_of_too_many_elements_is_refused() -> None:
    """Told before it is made: 2^27 values, of which the network reads the mean."""
    model = parse(
        """
        g (float[N, 4] x) => (float[N, 4] y) {
            h = Relu(x)
            many = ConstantOfShape(shape)
            mean = ReduceMean <keepdims = 0> (many)
            y = Mul(h, mean)
        }
        """,
        {"shape": np.array([1 << 14, 1 << 13])},
    )
    (finding,) = refused(model)
    assert (finding.code, finding.node) == ("SNNC209", "ConstantOfShape 'ConstantOfShape_1'")
    assert "134,217,728 elements" in finding.message


@pytest.mark.parametrize(("size", "samples"), [("0", 1), ("N", 1), ("1", 1), ("3", 3)])
def test_a_leading_axis_of_unknown_size_is_one_sample(size: str, samples: int) -> None:
    """Some exporters write 0 for a size that is not known."""
    model = parse(f"g (float[{size}, 4] x) => (float[?, 4] y) {{ y = Relu(x) }}")
    graph, _ = after(model, "fold-constants")
    assert graph.inputs[0].shape == [samples, 4] and graph.outputs[0].shape == [samples, 4]
