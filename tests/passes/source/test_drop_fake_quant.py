"""drop-fake-quant: the rounding goes, the range stays, and what computes on integers is kept whole."""

from __future__ import annotations

from typing import Any

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
)
from onnx import helper, numpy_helper

from snncompiler import pipeline
from snncompiler.calibration.observe import limit_of
from snncompiler.errors import Refused
from snncompiler.ir.settings import Options
from snncompiler.network.checks import check_source, measure_folds
from snncompiler.network.prepare import prepare
from snncompiler.network.unrounded import unrounded
from snncompiler.runtime.session import create_session

#: Every value is multiplied, added to and limited a few times in float32.
ROUNDINGS = 16 * 2.0**-24
#: Values of both signs, in and out of the ranges below; x is [4, 6].
X = np.linspace(-9, 9, 24, dtype=np.float32).reshape(4, 6)
LAST = "drop-fake-quant"
ZERO = np.int8(0)


def quantized(body: str, s: Any = 0.05, z: Any = ZERO, **weights: Any) -> onnx.ModelProto:
    """x -> `body`, which ends in y, with scale s and zero point z, behind a product with 1."""
    shape = "float[4, 6] x"
    text = f"g ({shape}) => (y) {{ x1 = MatMul(x, eye) {body} }}"
    text = text.replace("(y)", "(float[m, k] y)")
    given = {"s": np.asarray(s, np.float32), "z": z, "eye": np.eye(6, dtype=np.float32), **weights}
    return parse(text, {name: np.asarray(one) for name, one in given.items()}, opset=19)


def pair(x: str) -> str:
    return f" q = QuantizeLinear({x}, s, z) y = DequantizeLinear(q, s, z)"


# --- ranges ---


@pytest.mark.parametrize(
    ("before", "zero", "low", "high", "left"),
    [
        ("", np.uint8(0), 0, 255, ["Clip"]),
        ("", np.int8(-128), 0, 255, ["Clip"]),
        ("", np.int8(0), -128, 127, ["Max", "Min"]),
        ("", np.uint8(128), -128, 127, ["Max", "Min"]),
        ("", np.uint8(3), -3, 252, ["Max", "Min"]),
        ("", np.uint8(255), -255, 0, ["Max", "Min"]),
        ("", np.int8(127), -255, 0, ["Max", "Min"]),
        ("Relu", np.int8(0), 0, 127, ["Clip"]),
        ("Relu", np.uint8(0), 0, 255, ["Clip"]),
        ("Relu", np.uint8(7), 0, 248, ["Clip"]),
        ("Sigmoid", np.uint8(0), 0, 255, ["Sigmoid"]),  # up to 1, and the range is wider
        ("Sigmoid", np.int8(-10), 0, 1, ["Sigmoid"]),
    ],
)
def test_the_range_is_kept(before: str, zero: Any, low: int, high: int, left: list[str]) -> None:
    """Against Clip(x, low·s, high·s) in numpy; no more operators than it takes."""
    scale = np.float32(0.01)
    body = pair("x1") if not before else f" h = {before}(x1)" + pair("h")
    result = rewritten(quantized(body, scale, zero), LAST)
    assert [op for op in ops(result) if op not in ("MatMul", "Identity")] == left
    (found,) = run_model(result, x=X)
    value = 1 / (1 + np.exp(-X.astype(np.float64))) if before == "Sigmoid" else X
    wanted = np.clip(value, low * scale, high * scale if before != "Sigmoid" else 1)
    assert_close(found, np.asarray(wanted, np.float32), relative=ROUNDINGS)


def test_a_relu_behind_the_pair_takes_its_bound() -> None:
    model = quantized(" q = QuantizeLinear(x1, s, z) d = DequantizeLinear(q, s, z) y = Relu(d)")
    result = rewritten(model, LAST)
    assert ops(result) == ["MatMul", "Clip"]
    (found,) = run_model(result, x=X)
    assert_close(found, np.clip(X, 0, np.float32(127 * np.float32(0.05))), relative=ROUNDINGS)


def test_the_bound_moves_to_the_rectifier_in_front_of_a_pooling() -> None:
    model = quantized(
        " r = Reshape(x1, four) h = Relu(r) p = MaxPool <kernel_shape = [1, 2]>(h) f = Flatten(p)"
        + pair("f"),
        four=np.array([-1, 1, 1, 6]),
    )
    assert ops(rewritten(model, LAST)) == [
        "MatMul",
        "Reshape",
        "Clip",
        "MaxPool",
        "Flatten",
        "Identity",
    ]


def test_a_relu_that_others_read_keeps_its_own_values() -> None:
    model = quantized(
        " h = Relu(x1) q = QuantizeLinear(h, s, z) d = DequantizeLinear(q, s, z) y = Add(h, d)"
    )
    result = rewritten(model, LAST)
    assert sorted(ops(result)) == ["Add", "Clip", "Identity", "MatMul", "Relu"]
    (found,) = run_model(result, x=X)
    rectified = np.maximum(X, 0)
    assert_close(
        found, rectified + np.minimum(rectified, 127 * np.float32(0.05)), relative=ROUNDINGS
    )


def test_a_range_met_twice_is_limited_once() -> None:
    """Poolings, moves and a second pair on the same grid leave the values inside."""
    model = quantized(
        " h = Relu(x1) q = QuantizeLinear(h, s, z) d = DequantizeLinear(q, s, z)"
        " r = Reshape(d, four) p = AveragePool <kernel_shape = [1, 2]>(r) f = Flatten(p)"
        " q2 = QuantizeLinear(f, s, z) y = DequantizeLinear(q2, s, z)",
        four=np.array([-1, 1, 1, 6]),
    )
    assert [op for op in ops(rewritten(model, LAST)) if op in ("Clip", "Max", "Min")] == ["Clip"]


def test_channels_have_ranges_of_their_own() -> None:
    scale = np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0.06], np.float32)
    body = " q = QuantizeLinear <axis = -1>(x1, s, z) y = DequantizeLinear <axis = 1>(q, s, z)"
    zero = np.array([0, 1, 2, 3, -128, -1], np.int8)
    (found,) = run_model(rewritten(quantized(body, scale, zero), LAST), x=X)
    low, high = ((limit - zero.astype(int)) * scale for limit in (-128, 127))
    assert_close(found, np.clip(X, low, high).astype(np.float32), relative=ROUNDINGS)


# --- what stands between, against the file as onnxruntime runs it ---


@pytest.mark.parametrize("zero", [np.uint8(0), np.uint8(100), np.int8(0), np.int8(-100)])
@pytest.mark.parametrize(
    ("between", "steps"),
    [
        ("k = Identity(q)", 0.5),
        ("k = Clip(q, lo, hi)", 0.5),
        ("k = Clip(q, , hi)", 0.5),
        ("k = Clip(q, lo)", 0.5),
        ("k = Max(q, hi)", 0.5),
        ("k = Min(lo, q)", 0.5),
        ("i = Transpose(q) k = Transpose(i)", 0.5),
        ("i = Slice(q, one, five, one) k = Concat <axis = 1>(i, q)", 0.5),
        ("a, b = Split <axis = 1, num_outputs = 2>(q) k = Max(a, b)", 0.5),
        ("i = Reshape(q, four) p = MaxPool <kernel_shape = [1, 3]>(i) k = Flatten(p)", 0.5),
        ("k = Pad(q, pads, lo)", 0.5),
        ("k = Pad(q, pads)", 0.5),
        ("i = Gather <axis = 1>(q, one) k = Concat <axis = 1>(i, q)", 0.5),
        ("i = Unsqueeze(q, one) j = Expand(i, wide) k = Flatten(j)", 0.5),
        ("k = Concat <axis = 0>(q, other)", 0.5),
        # Two roundings, the second on a grid of four times the step, read as if it were s.
        ("d1 = DequantizeLinear(q, s, z) k = QuantizeLinear(d1, s4, z)", 0.625),
        # Quantized twice, on grids of their own.
        ("p = QuantizeLinear(x1, s4, z) k = Concat <axis = 1>(q, p)", 0.5),
    ],
)
def test_integers_in_between(between: str, steps: float, zero: Any) -> None:
    """Each rounding is off by half a step of its grid at most, and none of these makes it more."""
    scale = 0.05
    body = f" q = QuantizeLinear(x1, s, z) {between} y = DequantizeLinear(k, s, z)"
    model = quantized(
        body,
        scale,
        zero,
        lo=zero.dtype.type(3),
        hi=zero.dtype.type(90),
        one=np.array([1]),
        five=np.array([5]),
        four=np.array([-1, 1, 1, 6]),
        wide=np.array([1, 2, 1]),
        pads=np.array([0, 1, 0, 2]),
        s4=np.float32(4 * scale),
        other=np.full((2, 6), 50, zero.dtype),
    )
    result = rewritten(model, LAST)
    assert not [op for op in ops(result) if "Linear" in op]
    assert ("Mul" in ops(result)) == ("s4" in between)  # on one grid nothing is scaled
    (found,), (wanted,) = run_model(result, x=X), run_model(model, x=X)
    half = steps * scale * (1 + 1e-5)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= half


def test_another_scale_behind_is_a_product() -> None:
    """(q - z)·s, read as (q - z')·s'."""
    model = quantized(
        " q = QuantizeLinear(x1, s, z) y = DequantizeLinear(q, s2, z2)",
        0.05,
        np.uint8(10),
        s2=np.float32(0.2),
        z2=np.uint8(30),
    )
    (found,) = run_model(rewritten(model, LAST), x=X)
    wanted = (np.clip(X / 0.05 + 10, 0, 255) - 30) * 0.2
    assert_close(found, wanted.astype(np.float32), relative=64 * 2.0**-24)


def test_one_quantization_read_by_several() -> None:
    model = quantized(
        " q = QuantizeLinear(x1, s, z) a = DequantizeLinear(q, s, z) b = DequantizeLinear(q, s, z)"
        " y = Add(a, b)"
    )
    (found,) = run_model(rewritten(model, LAST), x=X)
    limited = np.clip(X, -128 * np.float32(0.05), 127 * np.float32(0.05))
    assert_close(found, 2 * limited, relative=ROUNDINGS)


def test_channels_that_move_keep_their_scales() -> None:
    scale = np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0.06], np.float32)
    model = quantized(
        " q = QuantizeLinear <axis = 1>(x1, s, z) t = Transpose(q) u = Transpose(t)"
        " y = DequantizeLinear <axis = 1>(u, s, z)",
        scale,
        np.zeros(6, np.int8),
    )
    (found,) = run_model(rewritten(model, LAST), x=X)
    wanted = np.clip(X, -128 * scale, 127 * scale)
    assert_close(found, wanted, relative=64 * 2.0**-24)


@pytest.mark.parametrize("zero", [np.uint8(0), np.uint8(9)])
@pytest.mark.parametrize("weight_zero", [np.uint8(0), np.uint8(100)])
@pytest.mark.parametrize("point", [0, 9, 20])
def test_products_of_integers(zero: Any, weight_zero: Any, point: int) -> None:
    """MatMulInteger less the zero points, a bias of 32 bit, and scaled: the sums are exact."""
    w = np.random.default_rng(1).integers(0, 200, (6, 3)).astype(np.uint8)
    model = quantized(
        " q = QuantizeLinear(x1, s, z) i = MatMulInteger(q, w, p, wz) j = Add(i, b)"
        " c = Cast <to = 1>(j) y = Mul(c, s)",
        0.5,
        zero,
        w=w,
        wz=weight_zero,
        p=np.uint8(point),
        b=np.array([5, -70, 900], np.int32),
    )
    result = rewritten(model, LAST)
    assert not [op for op in ops(result) if "Linear" in op or "Integer" in op]
    (found,), (wanted,) = run_model(result, x=X), run_model(model, x=X)
    # Half a step for each of the inputs, times its weight.
    most = 0.25 * np.abs(w.astype(float) - float(weight_zero)).sum(axis=0).max()
    assert np.abs(found - wanted).max() <= most * (1 + 1e-5)
    # And without rounding they are equal.
    (exact,) = run_model(unrounded(model), x=X)
    assert_close(found, exact, relative=64 * 2.0**-24)


@pytest.mark.parametrize("weight_zero", [3, [3, -2]])
def test_a_convolution_of_integers_pads_with_its_zero_point(weight_zero: Any) -> None:
    rng = np.random.default_rng(2)
    w = rng.integers(-9, 9, (2, 1, 3, 3)).astype(np.int8)
    model = quantized(
        " r = Reshape(x1, four) q = QuantizeLinear(r, s, z)"
        " i = ConvInteger <pads = [1, 1, 1, 1]>(q, w, z, wz) c = Cast <to = 1>(i) f = Flatten(c)"
        " y = Mul(f, s)",
        0.1,
        np.uint8(40),
        w=w,
        wz=np.array(weight_zero, np.int8),
        four=np.array([-1, 1, 2, 3]),
    )
    # onnxruntime has no kernel for signed weights here, so the wanted values are computed apart.
    (found,) = run_model(rewritten(model, LAST), x=X)
    (wanted,) = run_model(unrounded(model), x=X)
    assert_close(found, wanted, relative=64 * 2.0**-24)


def test_sums_of_integers_are_quantized_again() -> None:
    """QuantizeLinear takes 32-bit integers, too: sums to 8 bit, as integer networks do."""
    w = np.random.default_rng(1).integers(0, 9, (6, 3)).astype(np.uint8)
    model = quantized(
        " q = QuantizeLinear(x1, s, z) i = MatMulInteger(q, w, z) k = QuantizeLinear(i, big, z)"
        " y = DequantizeLinear(k, s, z)",
        0.5,
        np.uint8(20),
        w=w,
        big=np.float32(4),
    )
    model.opset_import[0].version = 17  # later versions want a scale of the type of the sums
    (found,) = run_model(rewritten(model, LAST), x=X)
    sums = (np.clip(X / 0.5 + 20, 0, 255) - 20) @ w.astype(float)
    wanted = (np.clip(sums / 4 + 20, 0, 255) - 20) * 0.5
    assert_close(found, wanted.astype(np.float32), relative=64 * 2.0**-24)


def test_scales_that_are_computed_from_constants() -> None:
    """As a Constant of one float, and by arithmetic; both are known to the comparison, too."""
    model = parse(
        """
        g (float[N, 6] x) => (float[N, 6] y) {
            half = Constant <value_float = 0.5>()
            s = Mul(half, tenth)
            h = Relu(x)
            q = QuantizeLinear(h, s, z)
            d = DequantizeLinear(q, s, z)
            y = Relu(d)
        }
        """,
        {"tenth": np.float32(0.1), "z": np.int8(0)},
    )
    prepared = prepare(model)
    check_source(prepared, {"x": X[:1]})
    told = [one for one in prepared.findings if one.message.startswith("without its rounding")]
    assert len(told) == 1
    assert [op for op in ops(prepared.ann) if op in ("Clip", "Relu")] == ["Clip"]


def test_the_shape_of_integers_is_that_of_what_they_stand_for() -> None:
    model = parse(
        """
        g (float[N, L, 6] x) => (float[N, M] y) {
            h = Relu(x)
            q = QuantizeLinear(h, s, z)
            t = Shape <start = 0, end = 1>(q)
            u = Concat <axis = 0>(t, rest)
            r = Reshape(q, u)
            y = DequantizeLinear(r, s, z)
        }
        """,
        {"s": np.float32(0.05), "z": np.int8(0), "rest": np.array([-1])},
    )
    assert "QuantizeLinear" not in ops(rewritten(model))


# --- dynamic ranges ---

DYNAMIC = (
    " q, a, p = DynamicQuantizeLinear(x1) i = MatMulInteger(q, w, p) c = Cast <to = 1>(i)"
    " m = Mul(a, ws) y = Mul(c, m)"
)


def test_a_dynamic_range_only_rounds() -> None:
    w = np.random.default_rng(3).integers(-9, 9, (6, 3)).astype(np.int8)
    model = quantized(DYNAMIC, w=w, ws=np.float32(0.25))
    result = rewritten(model, LAST)
    assert ops(result) == ["MatMul", "MatMul", "Identity", "Mul"]  # one number scales it
    (found,) = run_model(result, x=X)
    assert_close(found, X @ (w * np.float32(0.25)), relative=64 * 2.0**-24)


@pytest.mark.parametrize(
    "body",
    [
        # The scale gets out, so that it cannot be any.
        " q, a, p = DynamicQuantizeLinear(x1) i = MatMulInteger(q, w, p) y = Cast <to = 1>(i)",
        " q, a, p = DynamicQuantizeLinear(x1) i = MatMulInteger(q, w) c = Cast <to = 1>(i)"
        " y = Mul(c, a)",
        DYNAMIC + " e = Add(a, a)".replace("e = Add", "h = Mul(y, a) e = Add"),
    ],
)
def test_a_scale_that_does_not_cancel_stays(body: str) -> None:
    w = np.random.default_rng(3).integers(-9, 9, (6, 3)).astype(np.int8)
    model = quantized(body, w=w, ws=np.float32(0.25))
    if "e = Add" in body:
        model.graph.output[0].name = "h"
    assert "DynamicQuantizeLinear" in ops(rewritten(model, LAST))


# --- what stays as it is ---


def test_an_input_is_rounded_as_the_file_says() -> None:
    model = parse(
        """
        g (float[N, 6] x) => (float[N, 6] y) {
            q = QuantizeLinear(x, s, z)
            d = DequantizeLinear(q, s, z)
            y = Relu(d)
        }
        """,
        {"s": np.float32(0.5), "z": np.int8(0)},
    )
    result = rewritten(model)
    assert ops(result) == ["QuantizeLinear", "DequantizeLinear", "Relu"]
    (found,) = run_model(result, x=X)
    assert np.array_equal(found, np.maximum(np.rint(X / 0.5) * np.float32(0.5), 0))


def test_integers_given_as_input_are_only_read() -> None:
    model = parse(
        """
        g (uint8[N, 6] x) => (float[N, 3] y) {
            d = DequantizeLinear(x, s, z)
            h = MatMul(d, w)
            y = Relu(h)
        }
        """,
        {"s": np.float32(0.5), "z": np.uint8(7), "w": random(1, 6, 3)},
    )
    result = rewritten(model)
    assert "DequantizeLinear" in ops(result)
    x = np.arange(24, dtype=np.uint8).reshape(4, 6)
    assert_close(run_model(result, x=x)[0], run_model(model, x=x)[0], relative=ROUNDINGS)


def test_an_output_of_integers_stays_one() -> None:
    model = parse(
        """
        g (float[N, 6] x) => (uint8[N, 3] y) {
            h = MatMul(x, w)
            r = Relu(h)
            y = QuantizeLinear(r, s, z)
        }
        """,
        {"s": np.float32(0.02), "z": np.uint8(0), "w": random(1, 6, 3)},
    )
    result = rewritten(model)
    assert ops(result)[-1] == "QuantizeLinear"
    assert np.array_equal(run_model(result, x=X)[0], run_model(model, x=X)[0])


@pytest.mark.parametrize(
    ("between", "node"),
    [
        ('k = BitShift <direction = "RIGHT">(q, one)', "BitShift"),
        ("k = Add(q, q)", "Add"),  # wraps around
        ("k = Cast <to = 3>(q)", "Cast"),  # uint8 to int8 wraps around
    ],
)
def test_what_is_not_known_on_integers_is_refused_by_name(between: str, node: str) -> None:
    zero = "z3" if "Cast" in between else "z"
    body = (
        f" h = Relu(x1) q = QuantizeLinear(h, s, z) {between} d = DequantizeLinear(k, s, {zero})"
        " y = Relu(d)"
    )
    model = quantized(body, 0.05, np.uint8(0), one=np.uint8(1), z3=np.int8(0))
    findings = refused(model)
    assert {finding.code for finding in findings} == {"SNNC202"}
    assert any(finding.node.startswith("QuantizeLinear") for finding in findings)


# --- the whole way ---


def network(seed: int, percent: float, zero: Any) -> onnx.ModelProto:
    """conv, ReLU, pair, conv, pair, added to the first, ReLU, pooling, pair, product, pair."""
    w1, w2, w3 = (
        random(seed, 4, 2, 3, 3) / 3,
        random(seed + 1, 4, 4, 3, 3) / 5,
        random(seed + 2, 4, 3),
    )
    nodes = """
        c1 = Conv <pads = [1, 1, 1, 1]>(x, w1)
        r1 = Relu(c1)
        q1 = QuantizeLinear(r1, s1, z)
        d1 = DequantizeLinear(q1, s1, z)
        c2 = Conv <pads = [1, 1, 1, 1]>(d1, w2)
        q2 = QuantizeLinear(c2, s2, zi)
        d2 = DequantizeLinear(q2, s2, zi)
        a = Add(d1, d2)
        r2 = Relu(a)
        p = GlobalAveragePool(r2)
        f = Flatten(p)
        y = MatMul(f, w3)
    """
    text = f"g (float[N, 2, 6, 6] x) => (float[N, 3] y) {{ {nodes} }}"
    top = 4.0 * percent
    weights = {
        "w1": w1, "w2": w2, "w3": w3, "z": zero, "zi": np.int8(0),
        "s1": np.float32(top / (np.iinfo(zero.dtype).max - int(zero))),
        "s2": np.float32(top / 2 / 127),
    }  # fmt: skip
    return parse(text, weights)


@pytest.mark.parametrize("zero", [np.int8(0), np.uint8(0), np.int8(-128)])
@pytest.mark.parametrize("percent", [1.0, 0.4])
def test_quantized_networks_converge_to_themselves_without_rounding(
    percent: float, zero: Any
) -> None:
    """In three ways; .4 of the range saturates a good part of the values.

    A neuron is off by at most a few thresholds however long it runs, so the error falls as 1/T: from
    64 to 512 steps to an eighth, and a half of that again is allowed for where the bound is not met.
    """
    model = network(5, percent, zero)
    x = random(9, 6, 2, 6, 6)
    (wanted,) = run_model(unrounded(model), x=x)
    errors = {}
    for steps in (64, 512):
        compiled = compile_text(model, x, steps=steps)
        for way in ({}, {"events": False}, {"native": False}):
            (found,) = create_session(compiled, threads=1, **way).run(None, {"x": x})
            errors[steps, str(way)] = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    for way in ({}, {"events": False}, {"native": False}):
        assert errors[512, str(way)] <= max(errors[64, str(way)] / 4, 1e-3)
        assert errors[512, str(way)] < 0.02


def test_a_wrong_pass_is_caught_on_a_quantized_network() -> None:
    """Each change to the normalized network is refused: another bound, weight or scale."""
    model = network(5, 0.4, np.int8(0))
    prepared = prepare(model)
    x = random(9, 1, 2, 6, 6)
    check_source(prepared, {"x": x})
    right = prepared.ann.SerializeToString()
    changed = 0
    for tensor in onnx.load_from_string(right).graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype != np.float32 or not array.any():
            continue
        wrong = onnx.load_from_string(right)
        (place,) = [one for one in wrong.graph.initializer if one.name == tensor.name]
        place.CopyFrom(numpy_helper.from_array(array * np.float32(0.7), tensor.name))
        prepared.ann = wrong
        with pytest.raises(Refused, match="SNNC208"):
            check_source(prepared, {"x": x})
        changed += 1
    assert changed >= 5


def test_a_limit_that_is_never_met_is_no_dead_layer() -> None:
    """Its neurons are to be silent; their threshold is the limit, in case that data does meet it."""
    model = network(5, 8.0, ZERO)
    x = random(9, 6, 2, 6, 6)
    made = pipeline.compile_model(model, Options(steps=16, threshold="max"), x)
    told = [one for one in made.prepared.findings if one.code == "SNNC305"]
    assert [one.severity for one in told] == ["note"] * 2
    rectifiers = [node for node in made.prepared.graph.nodes if node.op == "Relu"]
    limits = {node.name: size for node in rectifiers if (size := limit_of(node))}
    assert limits.keys() == {"QuantizeLinear_5/max/relu", "QuantizeLinear_5/min/relu"}
    for name, size in limits.items():
        assert (made.calibration.thresholds[name] == np.float32(size)).all()


def test_what_the_rounding_does_is_told() -> None:
    model = network(5, 0.4, np.int8(0))
    prepared = prepare(model)
    x = random(9, 1, 2, 6, 6)
    check_source(prepared, {"x": x})
    texts = [one.message for one in prepared.findings if one.code == "SNNC206"]
    (dropped,) = [text for text in texts if text.startswith("the rounding of ")]
    assert dropped.startswith("the rounding of 2 quantizations is dropped; their ranges stay, 1 as")
    (told,) = [text for text in texts if text.startswith("without its rounding")]
    share = np.abs(run_model(model, x=x)[0] - run_model(unrounded(model), x=x)[0]).max()
    assert f"by up to {share:.3g} of" in told and share > 0


def test_average_pooling_takes_the_place_of_a_pooling_of_integers() -> None:
    model = quantized(
        " r = Reshape(x1, four) h = Relu(r) q = QuantizeLinear(h, s, z)"
        " p = MaxPool <kernel_shape = [1, 2]>(q) d = DequantizeLinear(p, s, z) f = Flatten(d)"
        " y = Relu(f)",
        four=np.array([-1, 1, 1, 6]),
    )
    graph = prepare(model, maxpool="average").graph
    assert "AveragePool" in ops(graph) and "MaxPool" not in ops(graph)
    assert "MaxPool" in ops(after(model, "")[0])


def test_float16_scales() -> None:
    """The source is float16; its pairs keep their ranges."""
    model = parse(
        """
        g (float16[N, 6] x) => (float16[N, 6] y) {
            h = Relu(x)
            q = QuantizeLinear(h, s, z)
            d = DequantizeLinear(q, s, z)
            y = Relu(d)
        }
        """,
        {"s": np.float16(0.03125), "z": np.int8(0)},
        opset=19,
    )
    x = X.astype(np.float16)
    (found,) = run_model(rewritten(model), x=x)
    assert found.dtype == np.float16
    # Rounded once to float16, 2^-11.
    assert_close(found, np.clip(x, 0, np.float16(127 * 0.03125)), relative=2.0**-11)
    prepared = prepare(model)
    check_source(prepared, {"x": x[:1]})


def test_quantization_to_float8_is_refused() -> None:
    kind = onnx.TensorProto.FLOAT8E4M3FN
    model = quantized(
        " h = Relu(x1) q = QuantizeLinear(h, s, z) d = DequantizeLinear(q, s, z) y = Relu(d)"
    )
    model.graph.initializer.remove(next(t for t in model.graph.initializer if t.name == "z"))
    model.graph.initializer.append(helper.make_tensor("z", kind, [], [0.0]))
    (finding,) = refused(model)
    assert finding.code == "SNNC109" and "FLOAT8E4M3FN" in finding.message


def deep(seed: int) -> onnx.ModelProto:
    """Five convolutions, each quantized without a ReLU to some 20 values, and the mean over the map."""
    rng, x, channels, nodes, weights = np.random.default_rng(seed), "x", 3, "", {}
    for i in range(5):
        nodes += f"""
            c{i} = Conv <pads = [1, 1, 1, 1]>({x}, w{i})
            q{i} = QuantizeLinear(c{i}, s, z)
            d{i} = DequantizeLinear(q{i}, s, z)
        """
        drawn = rng.standard_normal((8, channels, 3, 3)) * np.sqrt(2 / (9 * channels))
        weights[f"w{i}"] = drawn.astype(np.float32)
        x, channels = f"d{i}", 8
    nodes += f"y = GlobalAveragePool({x})"
    text = f"g (float[N, 3, 12, 12] x) => (float[N, 8, 1, 1] y) {{ {nodes} }}"
    scale = {"s": np.float32(0.2), "z": np.int8(-128)}
    return parse(text, {**weights, **scale}, opset=19)


def test_rounding_is_no_difference() -> None:
    """Eight networks; most are more than 1 % off by their rounding alone, in onnxruntime as it is and
    without its optimizer, which computes in 8 bit."""
    off = 0
    for seed in range(8):
        model, x = deep(seed), random(seed, 1, 3, 12, 12)
        check_source(prepare(model), {"x": x})
        (exact,) = run_model(unrounded(model), x=x)
        (rounded,) = create_session(model, threads=1, optimize=False).run(None, {"x": x})
        off += bool(np.abs(rounded - exact).max() > 0.01 * np.abs(exact).max())
    assert off > 4


def test_what_folding_changed_leaves_the_rounding_out() -> None:
    """A batch-norm folds behind a coarse quantization: float32 roundings only, not the steps of .2."""
    model = parse(
        """
        g (float[N, 2, 5, 5] x) => (float[N, 3, 5, 5] y) {
            c = Conv <pads = [1, 1, 1, 1]>(x, w)
            r = Relu(c)
            q = QuantizeLinear(r, s, z)
            d = DequantizeLinear(q, s, z)
            h = Conv <pads = [1, 1, 1, 1]>(d, v)
            n = BatchNormalization(h, one, two, zero, four)
            y = Relu(n)
        }
        """,
        {
            "w": random(1, 4, 2, 3, 3), "v": random(2, 3, 4, 3, 3), "s": np.float32(0.2),
            "z": np.int8(0), "one": np.full(3, 1.5, np.float32), "two": np.full(3, 0.5, np.float32),
            "zero": np.zeros(3, np.float32), "four": np.full(3, 4, np.float32),
        },
    )  # fmt: skip
    prepared = prepare(model)
    measure_folds(prepared, {"x": random(3, 1, 2, 5, 5)})
    (layer,) = [one for one in prepared.context.layers.values() if one.folded]
    assert layer.change is not None and layer.change[1] < 256 * 2.0**-24
