"""widen-weights: weights of 4 bit and 8-bit floats become what they stand for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import Array, assert_close, codes, parse, refused, rewritten, run_model
from onnx import TensorProto, helper, numpy_helper

from snncompiler.network.checks import check_source
from snncompiler.network.prepare import prepare
from snncompiler.passes.source.widen_weights import widen_weights

X = np.linspace(-3, 3, 12, dtype=np.float32).reshape(2, 6)


def model(
    kind: str, values: Array, s: Array, z: int | None = None, where: str = ""
) -> onnx.ModelProto:
    """relu(x)·w, and a ReLU; w of `kind` in an initializer, scale s."""
    third = "" if z is None else ", z"
    made = parse(
        f"""
        g (float[N, 6] x) => (float[N, 3] y) {{
            h = Relu(x)
            w = DequantizeLinear{where}(q, s{third})
            i = MatMul(h, w)
            y = Relu(i)
        }}
        """,
        {"s": s},
        opset=21,
        ir=10,
    )
    number = TensorProto.DataType.Value(kind)
    made.graph.initializer.append(helper.make_tensor("q", number, values.shape, values.reshape(-1)))
    if z is not None:
        made.graph.initializer.append(helper.make_tensor("z", number, s.shape, [z] * s.size))
    return made


def weights(given: onnx.ModelProto) -> Array:
    graph = rewritten(given, "fold-constants").graph
    arrays = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    (product,) = [node for node in graph.node if node.op_type == "MatMul"]
    return arrays[product.input[1]]


@pytest.mark.parametrize(
    ("kind", "low", "high", "zero"),
    [("INT4", -8, 7, None), ("INT4", -8, 7, 1), ("UINT4", 0, 15, 8)],
)
def test_integers_of_four_bit(kind: str, low: int, high: int, zero: int | None) -> None:
    q = np.random.default_rng(1).integers(low, high + 1, (6, 3))
    scale = np.array([0.5, 0.25, 0.1], np.float32)
    given = model(kind, q, scale, zero, " <axis = 1>")
    assert np.array_equal(weights(given), (q - (zero or 0)).astype(np.float32) * scale)
    prepared = prepare(given)
    check_source(prepared, {"x": X[:1]})
    assert not [one for one in prepared.findings if one.code == "SNNC208"]  # onnxruntime runs it
    wanted = np.maximum(np.maximum(X, 0) @ weights(given), 0)
    assert_close(run_model(prepared.ann, x=X)[0], wanted, relative=16 * 2.0**-24)  # 6 products


def test_blocks_of_four_bit() -> None:
    q = np.random.default_rng(1).integers(-8, 8, (6, 3))
    scale = np.array([[0.5, 0.25, 0.1], [1, 2, 3]], np.float32)
    given = model("INT4", q, scale, None, " <axis = 0, block_size = 3>")
    assert np.array_equal(weights(given), q.astype(np.float32) * np.repeat(scale, 3, axis=0))


@pytest.mark.parametrize("kind", ["FLOAT8E4M3FN", "FLOAT8E5M2"])
def test_floats_of_eight_bit(kind: str) -> None:
    """All of these are exact in either type."""
    values = np.array([[0.5, -1, 1.75], [2, 3, -4]] * 3, np.float32)
    given = model(kind, values, np.float32(0.5).reshape(()))
    assert np.array_equal(weights(given), values * np.float32(0.5))


def test_onnxruntimes_own_spelling() -> None:
    """Below opset 21 it writes DequantizeLinear of its domain."""
    q = np.random.default_rng(1).integers(-8, 8, (6, 3))
    given = model("INT4", q, np.float32(0.5).reshape(()))
    (node,) = [node for node in given.graph.node if node.op_type == "DequantizeLinear"]
    node.domain = "com.microsoft"
    given.opset_import[0].version = 17
    given.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert np.array_equal(weights(given), q * np.float32(0.5))


def test_constants_of_nodes() -> None:
    """Weights and scale given by Constant nodes, beside one of another spelling that stays; of the
    narrow one nothing is left, the scale stays where another node reads it."""
    given = model("INT4", np.arange(-8, 10).reshape(6, 3) % 8, np.float32(0.5).reshape(()))
    graph = given.graph
    held = [helper.make_node("Constant", [], [one.name], value=one) for one in graph.initializer]
    held.append(helper.make_node("Constant", [], ["more"], value_float=3.0))
    nodes = [*held, *graph.node, helper.make_node("Mul", ["y", "s"], ["half"])]
    nodes.append(helper.make_node("Mul", ["half", "more"], ["more_y"]))
    del graph.initializer[:], graph.node[:]
    graph.node.extend(nodes)
    graph.output.append(helper.make_tensor_value_info("more_y", TensorProto.FLOAT, ["N", 3]))
    wanted = (np.arange(-8, 10).reshape(6, 3) % 8 * 0.5).astype(np.float32)
    wide = widen_weights(given)
    assert [node.output[0] for node in wide.graph.node if node.op_type == "Constant"] == [
        "s",
        "more",
    ]
    assert [one.name for one in wide.graph.initializer] == ["w"]
    assert np.array_equal(numpy_helper.to_array(wide.graph.initializer[0]), wanted)
    assert np.array_equal(weights(given), wanted)


def test_a_node_that_holds_another_tensor_is_no_constant() -> None:
    """ConstantOfShape holds a `value` too: the fill, not what it gives."""
    given = model("INT4", np.ones((6, 3), int), np.float32(0.5).reshape(()))
    (s,) = given.graph.initializer[:1]
    assert s.name == "s"
    given.graph.initializer.remove(s)
    given.graph.initializer.append(numpy_helper.from_array(np.zeros(0, np.int64), "scalar"))
    fill = numpy_helper.from_array(np.array([0.25], np.float32))
    given.graph.node.insert(0, helper.make_node("ConstantOfShape", ["scalar"], ["s"], value=fill))
    assert widen_weights(given) is given


def test_dequantized_activations_are_left() -> None:
    """What is dequantized is computed; beside it a weight of 4 bit is widened."""
    given = model("INT4", np.ones((6, 3), int), np.float32(0.5).reshape(()))
    quantize = helper.make_node("QuantizeLinear", ["x", "s"], ["x_q"])
    dequantize = helper.make_node("DequantizeLinear", ["x_q", "s"], ["x_d"])
    given.graph.node.insert(0, quantize)
    given.graph.node.insert(1, dequantize)
    wide = widen_weights(given)
    (left,) = [node for node in wide.graph.node if node.op_type == "DequantizeLinear"]
    assert list(left.input) == ["x_q", "s"]


def test_the_source_is_left_alone() -> None:
    given = model("INT4", np.ones((6, 3), int), np.float32(0.5).reshape(()))
    before = given.SerializeToString(deterministic=True)
    prepare(given)
    assert given.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("kind", ["INT4", "FLOAT8E4M3FN"])
def test_other_uses_are_refused_by_type(kind: str) -> None:
    """A weight that is not only dequantized, and one that is malformed."""
    given = model(kind, np.ones((6, 3), int), np.float32(0.5).reshape(()))
    given.graph.node.append(helper.make_node("Identity", ["q"], ["p"]))
    number = TensorProto.DataType.Value(kind)
    given.graph.output.append(helper.make_tensor_value_info("p", number, [6, 3]))
    findings = refused(given)
    assert set(codes(findings)) == {"SNNC109"}
    assert any(f"has type {kind}" in finding.message for finding in findings)
    short = model(kind, np.ones((6, 3), int), np.float32(0.5).reshape(()))
    (q,) = [one for one in short.graph.initializer if one.name == "q"]
    q.ClearField("int32_data")
    q.raw_data = b"\x11"
    assert set(codes(refused(short))) <= {"SNNC107", "SNNC109"}
