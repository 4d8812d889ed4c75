"""spell-quantized: the operators that compute on integers, against onnxruntime's own kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, assert_close, ops, parse, random, refused, rewritten, run_model
from onnx import helper

from snncompiler.network.checks import check_source
from snncompiler.network.prepare import prepare
from snncompiler.network.unrounded import unrounded

RNG = np.random.default_rng(0)
S, Z = np.float32(0.05), np.uint8(120)
#: Sums of at most 100 products; without rounding both sides compute the same in another order.
ROUNDINGS = 512 * 2.0**-24


def case(
    node: onnx.NodeProto, weights: dict[str, Any], *shape: int, domain: str = "com.microsoft"
) -> onnx.ModelProto:
    """x quantized, the node, dequantized."""
    model = parse(
        f"g (float[{', '.join(map(str, shape))}] x) => (float[{', '.join('abcd'[: len(shape)])}] y)"
        "{ x1 = Add(x, x)"
        " q = QuantizeLinear(x1, s, z) k = Identity(q) y = DequantizeLinear(k, t, u) }",
        {"s": S, "z": Z, "t": np.float32(0.1), "u": np.uint8(100)},
        imports=', "com.microsoft" : 1',
    )
    model.graph.node[2].CopyFrom(node)
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return model


W = RNG.integers(-100, 100, (3, 2, 3, 3)).astype(np.int8)
MATRIX = RNG.integers(-100, 100, (4, 3)).astype(np.int8)
SCALES = np.array([0.01, 0.02, 0.03], np.float32)
ZEROS = np.zeros(3, np.int8)
ADDED = RNG.integers(0, 255, (2, 4)).astype(np.uint8)
MICROSOFT: dict[str, Any] = {"domain": "com.microsoft"}
QDQ = ["q", "s", "z"]

CASES: dict[str, tuple[onnx.NodeProto, dict[str, Any], tuple[int, ...]]] = {
    "QLinearConv": (
        helper.make_node(
            "QLinearConv", [*QDQ, "w", "ws", "wz", "t", "u", "b"], ["k"], pads=[1, 1, 1, 1]
        ),
        {"w": W, "ws": SCALES, "wz": ZEROS, "b": np.array([50, -900, 2000], np.int32)},
        (2, 2, 5, 5),
    ),
    "QLinearConv, one scale": (
        helper.make_node("QLinearConv", [*QDQ, "w", "ws", "wz", "t", "u"], ["k"], strides=[2, 2]),
        {"w": W, "ws": np.float32(0.02), "wz": np.int8(0)},
        (2, 2, 5, 5),
    ),
    "QLinearMatMul": (
        helper.make_node("QLinearMatMul", [*QDQ, "w", "ws", "wz", "t", "u"], ["k"]),
        {"w": MATRIX, "ws": np.float32(0.02), "wz": np.int8(3)},
        (2, 4),
    ),
    "QLinearMatMul, by columns": (
        helper.make_node("QLinearMatMul", [*QDQ, "w", "ws", "wz", "t", "u"], ["k"]),
        {"w": MATRIX, "ws": SCALES, "wz": ZEROS},
        (2, 4),
    ),
    "QGemm": (
        helper.make_node("QGemm", [*QDQ, "w", "ws", "wz", "b", "t", "u"], ["k"], **MICROSOFT),
        {"w": MATRIX, "ws": SCALES, "wz": ZEROS, "b": np.array([50, -900, 2000], np.int32)},
        (2, 4),
    ),
    "QGemm, transposed": (
        helper.make_node(
            "QGemm", [*QDQ, "w", "ws", "wz", "b", "t", "u"], ["k"], transB=1, alpha=0.5, **MICROSOFT
        ),
        {"w": MATRIX.T.copy(), "ws": S, "wz": np.int8(0), "b": np.array([50, -9, 20], np.int32)},
        (2, 4),
    ),
    "QGemm, transposed, by columns": (
        helper.make_node(
            "QGemm", [*QDQ, "w", "ws", "wz", "b", "t", "u"], ["k"], transB=1, **MICROSOFT
        ),
        {"w": MATRIX.T.copy(), "ws": SCALES, "wz": ZEROS, "b": np.array([50, -9, 20], np.int32)},
        (2, 4),
    ),
    "QLinearAdd": (
        helper.make_node("QLinearAdd", [*QDQ, "o", "os", "oz", "t", "u"], ["k"], **MICROSOFT),
        {"o": ADDED, "os": np.float32(0.03), "oz": np.uint8(99)},
        (2, 4),
    ),
    "QLinearMul": (
        helper.make_node("QLinearMul", [*QDQ, "o", "os", "oz", "t", "u"], ["k"], **MICROSOFT),
        {"o": ADDED, "os": np.float32(0.03), "oz": np.uint8(99)},
        (2, 4),
    ),
    "QLinearGlobalAveragePool": (
        helper.make_node("QLinearGlobalAveragePool", [*QDQ, "t", "u"], ["k"], **MICROSOFT),
        {},
        (2, 3, 4, 4),
    ),
    "QLinearAveragePool": (
        helper.make_node(
            "QLinearAveragePool", [*QDQ, "t", "u"], ["k"], kernel_shape=[2, 2], **MICROSOFT
        ),
        {},
        (2, 3, 4, 4),
    ),
    "QLinearAveragePool, counted pads that are none": (
        helper.make_node(
            "QLinearAveragePool", [*QDQ, "t", "u"], ["k"], kernel_shape=[2, 2], pads=[0, 0, 0, 0],
            count_include_pad=1, **MICROSOFT,
        ),
        {},
        (2, 3, 4, 4),
    ),
    "QLinearSoftmax": (
        helper.make_node("QLinearSoftmax", [*QDQ, "t", "u"], ["k"], axis=1, opset=13, **MICROSOFT),
        {},
        (2, 4, 3),
    ),
    "QLinearSoftmax before opset 13": (
        helper.make_node("QLinearSoftmax", [*QDQ, "t", "u"], ["k"], axis=-1, opset=11, **MICROSOFT),
        {},
        (2, 4),
    ),
    "QLinearSoftmax before opset 13, all features": (
        helper.make_node("QLinearSoftmax", [*QDQ, "t", "u"], ["k"], axis=1, opset=12, **MICROSOFT),
        {},
        (2, 4),
    ),
    "QLinearSoftmax before opset 13, two axes": (
        helper.make_node("QLinearSoftmax", [*QDQ, "t", "u"], ["k"], axis=1, opset=12, **MICROSOFT),
        {},
        (2, 4, 3),
    ),
    "QLinearSoftmax before opset 13, no axis told": (
        helper.make_node("QLinearSoftmax", [*QDQ, "t", "u"], ["k"], opset=12, **MICROSOFT),
        {},
        (2, 4, 3),
    ),
    "QLinearSoftmax, no axis told": (
        helper.make_node("QLinearSoftmax", [*QDQ, "t", "u"], ["k"], opset=13, **MICROSOFT),
        {},
        (2, 4, 3),
    ),
    "QLinearSigmoid": (
        helper.make_node("QLinearSigmoid", [*QDQ, "t", "u"], ["k"], **MICROSOFT),
        {},
        (2, 4),
    ),
    "QLinearLeakyRelu": (
        helper.make_node("QLinearLeakyRelu", [*QDQ, "t", "u"], ["k"], alpha=0.25, **MICROSOFT),
        {},
        (2, 4),
    ),
    "QLinearConcat": (
        helper.make_node(
            "QLinearConcat", ["t", "u", *QDQ, "o", "os", "oz"], ["k"], axis=1, **MICROSOFT
        ),
        {"o": ADDED, "os": np.float32(0.03), "oz": np.uint8(99)},
        (2, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_definition_is_that_of_onnxruntime(name: str) -> None:
    """The spelled nodes round as the operator does: at most one step of .1 apart, where a sum lies on
    the edge between two integers; without rounding they agree with the source without rounding."""
    node, weights, shape = CASES[name]
    model = case(node, weights, *shape)
    x = random(3, *shape)
    (wanted,) = run_model(model, x=x)
    spelled = rewritten(model, "spell-quantized")
    assert node.op_type not in ops(spelled)
    (rounded,) = run_model(spelled, x=x)
    assert rounded.shape == wanted.shape
    assert np.abs(rounded - wanted).max() <= 0.1001
    assert (np.abs(rounded - wanted) > 1e-5).mean() < 0.05
    result = rewritten(model, "drop-fake-quant")
    assert "QuantizeLinear" not in ops(result)
    assert_close(run_model(result, x=x)[0], run_model(unrounded(model), x=x)[0], relative=ROUNDINGS)


def test_a_product_may_end_in_float() -> None:
    """QGemm without a scale for its output gives float."""
    node = helper.make_node("QGemm", [*QDQ, "w", "ws", "wz"], ["k"], **MICROSOFT)
    model = case(node, {"w": MATRIX, "ws": SCALES, "wz": ZEROS}, 2, 4)
    model.graph.node[3].CopyFrom(helper.make_node("Relu", ["k"], ["y"]))
    x = random(3, 2, 4)
    (found,) = run_model(rewritten(model, "drop-fake-quant"), x=x)
    assert_close(found, run_model(unrounded(model), x=x)[0], relative=ROUNDINGS)


@pytest.mark.parametrize("op", ["QAttention", "MatMulNBits", "FusedConv", "QLinearWhere"])
def test_other_operators_of_microsoft_are_refused_by_name(op: str) -> None:
    model = case(helper.make_node(op, QDQ, ["k"], **MICROSOFT), {}, 2, 4)
    (finding,) = refused(model)
    assert finding.code == "SNNC106" and f"com.microsoft.{op}" in finding.message
    assert "QuantFormat.QDQ" in finding.hint


@pytest.mark.parametrize("attribute", ["channels_last", "count_include_pad"])
def test_what_is_not_known_of_an_operator_is_refused(attribute: str) -> None:
    attrs = {"kernel_shape": [2, 2], "pads": [1, 1, 0, 0], attribute: 1}
    node = helper.make_node("QLinearAveragePool", [*QDQ, "t", "u"], ["k"], **attrs, **MICROSOFT)
    (finding,) = refused(case(node, {}, 2, 3, 4, 4))
    assert finding.code == "SNNC106" and attribute in finding.message


def test_only_scales_of_channels_have_an_axis() -> None:
    node, weights, shape = CASES["QLinearConv"]
    spelled = rewritten(case(node, weights, *shape), "spell-quantized").graph
    sizes = {one.name: int(np.prod(one.dims)) for one in spelled.initializer}
    read = [one for one in spelled.node if one.op_type == "DequantizeLinear"]
    axes = {(sizes.get(one.input[1], 3), bool(one.attribute)) for one in read}
    assert axes == {(1, False), (3, True)}  # that of the bias, 3, is a product


def test_missing_inputs_are_refused() -> None:
    (finding,) = refused(case(helper.make_node("QLinearAdd", QDQ, ["k"], **MICROSOFT), {}, 2, 4))
    assert finding.code == "SNNC110" and "3 inputs" in finding.message


@pytest.mark.parametrize("opset", [10, 13, 17])
def test_files_of_every_opset(opset: int) -> None:
    """Before opset 13 DequantizeLinear has no axis, but QLinearConv has a scale for each channel."""
    model = parse(
        """
        g (float[N, 2, 5, 5] x) => (float[N, 3, 5, 5] y) {
            q = QuantizeLinear(x, s, z)
            k = QLinearConv <pads = [1, 1, 1, 1]>(q, s, z, w, ws, wz, t, u)
            l = QLinearConv <pads = [1, 1, 1, 1]>(k, t, u, v, vs, wz, t, u)
            y = DequantizeLinear(l, t, u)
        }
        """,
        {
            "s": S, "z": Z, "t": np.float32(0.02), "u": np.uint8(0), "w": W, "ws": SCALES,
            "wz": ZEROS, "v": RNG.integers(-100, 100, (3, 3, 3, 3)).astype(np.int8),
            "vs": SCALES[::-1].copy(),
        },
        opset=opset,
    )  # fmt: skip
    prepared = prepare(model)
    x: Array = random(1, 1, 2, 5, 5)
    check_source(prepared, {"x": x})
    told = [one.message for one in prepared.findings if "without its rounding" in one.message]
    assert len(told) == 1  # it was compared
    assert [op for op in ops(prepared.ann) if op in ("Conv", "Clip")] == ["Conv", "Clip"] * 2


@pytest.mark.parametrize("kind", [np.int16, np.uint16, np.int8])
def test_onnxruntimes_own_spelling_of_a_pair(kind: Any) -> None:
    """Its 16-bit types before opset 21, also on the input of the network."""
    model = parse(
        """
        g (float[N, 4] x) => (float[N, 3] y) {
            q = com.microsoft.QuantizeLinear(x, s, z)
            d = com.microsoft.DequantizeLinear(q, s, z)
            h = MatMul(d, w)
            k = com.microsoft.QuantizeLinear(h, s, z)
            y = com.microsoft.DequantizeLinear(k, s, z)
        }
        """,
        {"s": np.float32(2.0**-12), "z": kind(np.iinfo(kind).min), "w": random(1, 4, 3)},
        imports=', "com.microsoft" : 1',
    )
    x = random(3, 1, 4)
    prepared = prepare(model)
    check_source(prepared, {"x": x})
    left = [op for op in ops(prepared.ann) if "Linear" in op]
    assert left == ["QuantizeLinear", "DequantizeLinear"]
    told = [one.message for one in prepared.findings if "without its rounding" in one.message]
    assert len(told) == 1  # it was compared
    top = np.float32(2.0**-12) * np.float32(np.iinfo(kind).max - int(np.iinfo(kind).min))
    given = np.rint(np.clip(x, 0, top) * 2.0**12).astype(np.float32) / np.float32(2.0**12)
    wanted = np.clip(given @ random(1, 4, 3), 0, top)
    assert_close(run_model(prepared.ann, x=x)[0], wanted, relative=ROUNDINGS)
