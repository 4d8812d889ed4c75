"""keep-rounding: a quantized network becomes spikes that stand for its integers, in layered time."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, codes, parse, random, refused, run_model

from snncompiler import pipeline
from snncompiler.emission.compiled import read_compiled
from snncompiler.errors import UsageError
from snncompiler.ir.graph import with_outputs
from snncompiler.ir.grids import grids_of
from snncompiler.ir.settings import Coding, Options
from snncompiler.network.prepare import prepare
from snncompiler.network.prepared import checking_session
from snncompiler.pipeline import Compiled

#: Scales whose ratios are no simple fractions, so that no value lies half-way between two integers.
S, T, U = np.float32(0.0371), np.float32(0.0523), np.float32(0.0417)
ZERO, MIDDLE = np.uint8(0), np.uint8(121)
WEIGHTS = {
    "s": S, "t": T, "u": U, "z": ZERO, "m": MIDDLE, "i": np.int8(0), "low": np.int8(-128),
    "is": np.float32(0.031), "im": np.uint8(128),
}  # fmt: skip


def weights(seed: int, *shape: int) -> Array:
    """What 8-bit weights stand for."""
    whole = np.random.default_rng(seed).integers(-127, 128, shape)
    return (whole * np.float32(0.00173)).astype(np.float32)


def network(body: str, **given: Any) -> onnx.ModelProto:
    """An image [N, 2, 6, 6], quantized, a layer, and `body` from c, its output, to r; then a layer."""
    text = (
        "g (float[N,2,6,6] x) => (float[N,3,h,w] y) {"
        " xq = QuantizeLinear(x, is, im) xd = DequantizeLinear(xq, is, im)"
        f" c = Conv <pads = [1, 1, 1, 1]>(xd, w1, b1) {body} y = Conv(r, w2, b2) }}"
    )
    layers = {
        "w1": weights(1, 4, 2, 3, 3), "b1": 0.1 * random(2, 4),
        "w2": weights(3, 3, 4, 1, 1), "b2": 0.1 * random(4, 3),
    }  # fmt: skip
    arrays = {**WEIGHTS, **layers, **given}
    used = {name: np.asarray(one) for name, one in arrays.items() if f"{name}" in text}
    return parse(text, used, opset=19)


X = 2 * random(0, 32, 2, 6, 6)


def compiled(
    model: onnx.ModelProto, steps: int = 8, coding: Coding = "radix", **options: Any
) -> Compiled:
    return pipeline.compile_model(
        model, Options(timing="layered", coding=coding, steps=steps, **options)
    )


def integers(result: Compiled, x: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    """What the rectifiers of the source send, in integers, and what the spikes stand for."""
    options, prepared = result.prepared.context, result.prepared
    assert options.keeps_rounding
    grids = grids_of(prepared.graph)
    names = {name: grid.rounded.name for name, grid in grids.items()}
    ann = with_outputs(prepared.ann, list(names.values()))
    values = checking_session(ann, optimize=False).run(list(names.values()), {"x": x})
    wanted = {}
    for (name, grid), value in zip(grids.items(), values, strict=True):
        scale = (
            grid.scale.reshape(-1, *[1] * (value.ndim - 2)) if grid.scale.size > 1 else grid.scale
        )
        wanted[name] = np.rint(value / scale)
    neurons = {
        node.name: node for node in result.model.graph.node if node.op_type == "LayeredRMPNeuron"
    }
    assert set(neurons) == set(grids)
    outputs = [node.output[0] for node in neurons.values()]
    found = {}
    for name, spikes in zip(
        neurons, run_model(with_outputs(result.model, outputs), x=x)[-len(outputs) :], strict=True
    ):
        radix = onnx.helper.get_node_attr_value(neurons[name], "radix")
        assert set(np.unique(spikes)) <= {0, 1}
        steps = spikes.reshape(-1, len(x), *spikes.shape[1:])
        worth = 2.0 ** np.arange(len(steps))[::-1] if radix else np.ones(len(steps))
        found[name] = np.tensordot(worth, steps, 1)
    return wanted, found


def assert_same_integers(model: onnx.ModelProto, **options: Any) -> Compiled:
    """The spikes stand for the integers of the source, and the outputs agree up to float32's rounding:
    sums of 36 products."""
    result = compiled(model, **options)
    wanted, found = integers(result, X)
    for name, integer in wanted.items():
        np.testing.assert_array_equal(found[name], integer, err_msg=name)
        assert integer.max() > 1
    source = checking_session(model, optimize=False).run(None, {"x": X})[0]
    (output,) = run_model(result.model, x=X)
    np.testing.assert_allclose(output, source, rtol=0, atol=64 * 2.0**-24 * np.abs(source).max())
    return result


def pair(x: str, q: str, scale: str = "s", zero: str = "z", result: str = "") -> str:
    name = result or f"{q}d"
    return (
        f" {q} = QuantizeLinear({x}, {scale}, {zero})"
        f" {name} = DequantizeLinear({q}, {scale}, {zero})"
    )


BODIES = {
    "fused": pair("c", "q", result="r"),
    "unfused": " a = Relu(c)" + pair("a", "q", result="r"),
    "int8": " a = Relu(c)" + pair("a", "q", zero="i", result="r"),
    "int8, full range": " a = Relu(c)" + pair("a", "q", zero="low", result="r"),
    "rounded before and after": pair("c", "p", "t", "m")
    + " a = Relu(pd)"
    + pair("a", "q", result="r"),
    "rectified on its grid": pair("c", "p", "t", "m") + " r = Relu(pd)",
    "rectified as integers": " p = QuantizeLinear(c, t, i) a = Relu(p) r = DequantizeLinear(a, t, i)",
    "bounded": " a = Clip(c, nil, six)" + pair("a", "q", result="r"),
    "max pooling behind": pair("c", "q")
    + " k = MaxPool <kernel_shape = [2, 2], strides = [2, 2]>(qd)"
    + pair("k", "o", result="r"),
    "max pooling of integers": " q = QuantizeLinear(c, s, z)"
    " k = MaxPool <kernel_shape = [2, 2], strides = [2, 2]>(q) r = DequantizeLinear(k, s, z)",
    "max pooling before": " k = MaxPool <kernel_shape = [2, 2], strides = [2, 2]>(c) a = Relu(k)"
    + pair("a", "q", result="r"),
    "max pooling of both signs": pair("c", "p", "t", "m")
    + " k = MaxPool <kernel_shape = [2, 2]>(pd) a = Relu(k)"
    + pair("a", "q", result="r"),
    "average pooling": pair("c", "q")
    + " k = AveragePool <kernel_shape = [2, 2], strides = [2, 2]>(qd)"
    + pair("k", "o", result="r"),
    "residual": pair("c", "q")
    + " c2 = Conv <pads = [1, 1, 1, 1]>(qd, w3)"
    + pair("c2", "p", "t", "m")
    + " a = Add(pd, qd) e = Relu(a)"
    + pair("e", "o", "u", result="r"),
    "concat": pair("c", "q")
    + " n = Neg(c)"
    + pair("n", "o", "t")
    + " r = Concat <axis = 1>(qd, od)",
    "products of integers": " q = QuantizeLinear(c, s, z)"
    " k = ConvInteger <pads = [1, 1, 1, 1]>(q, whole, z) f = Cast <to = 1>(k) e = Mul(f, both)"
    " a = Relu(e)" + pair("a", "o", "u", result="r"),
    "upsampled": pair("c", "q")
    + " k = Resize <mode = \"nearest\">(qd, , twice)"
    + pair("k", "o", result="r"),
    "quantized once, read twice": " q = QuantizeLinear(c, s, z) d = DequantizeLinear(q, s, z)"
    " e = DequantizeLinear(q, s, z) c2 = Conv(d, w3)" + pair("c2", "p", "t", "m")
    + " a = Add(pd, e)" + pair("a", "o", "u", result="r"),
    "other readers": " a = Relu(c)" + pair("a", "q") + " r = Add(a, qd)",
    "clipped integers": " p = QuantizeLinear(c, s, i) k = Clip(p, nothing, fifteen)"
    " r = DequantizeLinear(k, s, i)",
    "channels": " a = Relu(c) q = QuantizeLinear <axis = 1>(a, ss, zs)"
    " r = DequantizeLinear <axis = 1>(q, ss, zs)",
}  # fmt: skip
GIVEN = {
    "products of integers": {
        "whole": np.random.default_rng(8).integers(-127, 128, (4, 4, 3, 3)).astype(np.int8),
        "both": np.float32(0.0371 * 0.0011),
    },
    "upsampled": {"twice": np.float32([1, 1, 2, 2])},
    "quantized once, read twice": {"w3": weights(5, 4, 4, 1, 1)},
    "bounded": {"nil": np.float32(0), "six": np.float32(1.3)},
    "residual": {"w3": weights(5, 4, 4, 3, 3)},
    "concat": {"w2": weights(6, 3, 8, 1, 1)},
    "clipped integers": {"nothing": np.int8(0), "fifteen": np.int8(15)},
    "channels": {
        "ss": np.float32([0.0371, 0.0291, 0.0417, 0.0233]), "zs": np.zeros(4, np.uint8),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in BODIES if name != "other readers"])
def test_the_spikes_are_the_integers_of_the_source(name: str) -> None:
    result = assert_same_integers(network(BODIES[name], **GIVEN.get(name, {})))
    assert result.calibration.source == "quantized source"
    assert "SNNC304" not in codes(result.prepared.findings)


def test_rate_spikes_count_the_levels() -> None:
    assert_same_integers(
        network(BODIES["clipped integers"], **GIVEN["clipped integers"]), steps=15, coding="rate"
    )


@pytest.mark.parametrize("steps", [7, 8, 12])
def test_the_top_level_is_that_of_the_source(steps: int) -> None:
    """127 with int8: with more digits the current is limited, so that spikes say no more."""
    model = network(BODIES["int8"])
    result = assert_same_integers(model, steps=steps)
    _, found = integers(result, 20 * X)
    assert max(one.max() for one in found.values()) == 127
    limits = [node for node in result.model.graph.node if node.op_type == "Min"]
    assert len(limits) == (steps > 7)


def test_a_rectifier_that_others_read_is_converted_beside() -> None:
    """Unrounded for them, which the calibration is for."""
    model = network(BODIES["other readers"])
    result = pipeline.compile_model(model, Options(timing="layered", coding="radix", steps=10), X)
    grids = grids_of(result.prepared.graph)
    assert len(grids) == 1 and len(result.calibration.thresholds) == 2
    assert set(result.calibration.thresholds) > set(grids)
    notes = [one.message for one in result.prepared.findings if one.code == "SNNC206"]
    assert any("its threshold is calibrated" in one for one in notes)
    source = checking_session(model, optimize=False).run(None, {"x": X})[0]
    (output,) = run_model(result.model, x=X)
    # 1023 levels for what is not rounded: half a level of its largest value in each of 4 products.
    assert np.abs(output - source).max() < 4 / 1023 * np.abs(source).max()


def test_values_of_both_signs_are_rounded_without_spikes() -> None:
    result = compiled(network(BODIES["residual"], **GIVEN["residual"]))
    (note,) = [one.message for one in result.prepared.findings if "is kept" in one.message]
    assert "2 rectifiers send spikes on its grids, 1 other values are rounded" in note
    ops = [node.op_type for node in result.model.graph.node]
    assert ops.count("Round") == 2  # the input's, and that in front of the sum
    assert not any("Quantize" in op for op in ops)


def test_what_lies_on_the_grid_is_not_rounded_again() -> None:
    result = compiled(network(BODIES["max pooling behind"]))
    assert sum(node.op_type == "LayeredRMPNeuron" for node in result.model.graph.node) == 1


def test_too_few_steps_drop_the_rounding_and_say_so() -> None:
    model = network(BODIES["fused"])
    result = pipeline.compile_model(model, Options(timing="layered", coding="radix", steps=4), X)
    assert not result.prepared.context.keeps_rounding
    (warning,) = [one for one in result.prepared.findings if one.severity == "warning"]
    assert "255 levels" in warning.message and "-T 8" in (warning.hint or "")
    assert result.calibration.source == "data"


def test_a_range_that_follows_the_input_cannot_be_kept() -> None:
    text = (
        "g (float[N,3] x) => (float[N,2] y) { h = MatMul(x, a) r = Relu(h)"
        " q, s, z = DynamicQuantizeLinear(r) d = DequantizeLinear(q, s, z) y = MatMul(d, b) }"
    )
    prepared = prepare(
        parse(text, {"a": random(1, 3, 4), "b": random(2, 4, 2)}), keep_rounding=True
    )
    assert not prepared.context.keeps_rounding
    assert any("takes its range from every input" in one.message for one in prepared.findings)


def test_corrected_weights_are_not_those_of_the_source() -> None:
    with pytest.raises(UsageError, match="--correct weights"):
        compiled(network(BODIES["fused"]), correct="weights")


def test_streaming_time_drops_the_rounding_as_ever() -> None:
    result = pipeline.compile_model(network(BODIES["fused"]), Options(steps=8), X)
    assert not result.prepared.context.keeps_rounding
    assert not any("Quantize" in node.op for node in result.prepared.graph.nodes[3:])


@pytest.mark.parametrize(("name", "digits"), [("fused", 8), ("int8", 7), ("clipped integers", 4)])
def test_the_source_says_how_many_digits_there_are(name: str, digits: int) -> None:
    model = network(BODIES[name], **GIVEN.get(name, {}))
    result = pipeline.compile_model(model, Options(timing="layered", coding="radix"))
    assert read_compiled(result.model).steps == digits
    assert any(f"T = {digits}:" in one.message for one in result.prepared.findings)


def test_without_a_quantized_source_the_digits_are_asked_for() -> None:
    text = "g (float[N,3] x) => (float[N,2] y) { h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }"
    model = parse(text, {"a": random(1, 3, 4), "b": random(2, 4, 2)})
    for asked in ({}, {"steps": 64}):
        options = Options(timing="layered", coding="radix", **asked)
        with pytest.raises(UsageError, match="digits with --coding radix"):
            pipeline.compile_model(model, options, random(3, 8, 3))


@pytest.mark.parametrize("quantizer", ["Softmax", "Sigmoid"])
def test_scores_that_are_rounded_do_not_spike(quantizer: str) -> None:
    """Behind the last layer, where no weights read them."""
    body = pair("c", "q", result="r")
    model = network(body)
    model.graph.node[-1].output[0] = "k"
    for node in (
        onnx.helper.make_node(quantizer, ["k"], ["v"]),
        onnx.helper.make_node("QuantizeLinear", ["v", "fine", "z"], ["vq"]),
        onnx.helper.make_node("DequantizeLinear", ["vq", "fine", "z"], ["y"]),
    ):
        model.graph.node.append(node)
    fine = onnx.numpy_helper.from_array(np.asarray(np.float32(1 / 255)), "fine")
    model.graph.initializer.append(fine)
    result = compiled(model)
    assert len(result.calibration.thresholds) == 1
    source = checking_session(model, optimize=False).run(None, {"x": X})[0]
    (output,) = run_model(result.model, x=X)
    # A score may fall to the next of its 255 levels.
    assert np.abs(output - source).max() <= 1.01 / 255


# --- few bits ---


@pytest.mark.parametrize(
    ("kind", "rectified", "top"),
    [("UINT4", False, 15), ("INT4", True, 7), ("UINT4", True, 15)],
)
def test_integers_of_four_bits(kind: str, rectified: bool, top: int) -> None:
    """Of opset 21, against onnxruntime's own kernels for them."""
    before = " a = Relu(c)" if rectified else ""
    body = before + pair("a" if rectified else "c", "q", scale="wide", zero="narrow", result="r")
    model = network(body, wide=np.float32(0.171))
    model.opset_import[0].version = 21
    zero = onnx.helper.make_tensor("narrow", getattr(onnx.TensorProto, kind), [], [0])
    model.graph.initializer.append(zero)
    result = assert_same_integers(model, steps=4)
    _, found = integers(result, 20 * X)
    assert max(one.max() for one in found.values()) == top


def quantized(x: Array, scale: Array, bits: int, signed: bool, narrow: bool) -> Array:
    """Quant of QONNX in numpy, float32, with zero point 0."""
    low = -(2 ** (bits - 1)) + narrow if signed else 0
    high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1 - narrow
    whole = np.rint(np.clip(x / scale, np.float32(low), np.float32(high)))
    return np.asarray(whole * scale, np.float32)


@pytest.mark.parametrize(
    ("bits", "domain"),
    [(2, "onnx.brevitas"), (3, "qonnx.custom_op.general"), (8, "qonnx.custom_op.general")],
)
def test_quant_of_qonnx(bits: int, domain: str) -> None:
    """Weights with a scale for each channel, an unsigned and a signed activation: their integers are
    those of the definition."""
    scales = np.abs(random(7, 4, 1, 1, 1)) / 50 + np.float32(0.01)
    text = """g (float[N,2,6,6] x) => (float[N,3,6,6] y) {
        xq = Quant <signed = 1, narrow = 0, rounding_mode = "ROUND">(x, is, nil, eight)
        wq = Quant <signed = 1, narrow = 1, rounding_mode = "ROUND">(w1, ws, nil, eight)
        c = Conv <pads = [1, 1, 1, 1]>(xq, wq)  a = Relu(c)
        r = Quant <signed = 0, narrow = 0, rounding_mode = "ROUND">(a, s, nil, bits)
        k = Conv(r, w2, b2)  y = Quant <signed = 1, narrow = 1>(k, t, nil, eight) }"""
    arrays = {
        "is": np.float32(0.031), "nil": np.float32(0), "eight": np.float32(8), "ws": scales,
        "w1": random(1, 4, 2, 3, 3), "s": np.float32(2.6 / 2**bits), "bits": np.float32(bits),
        "w2": random(3, 3, 4, 1, 1), "b2": random(4, 3), "t": np.float32(0.0523),
    }  # fmt: skip
    model = parse(
        text,
        {name: np.asarray(one) for name, one in arrays.items()},
        opset=17,
        imports=f', "{domain}" : 1',
    )
    for node in model.graph.node:
        node.domain = domain if node.op_type == "Quant" else ""
    result = compiled(model, steps=bits)
    wanted, found = integers(result, X)
    (name,) = wanted
    np.testing.assert_array_equal(found[name], wanted[name])
    assert found[name].max() == 2**bits - 1
    x = quantized(X, arrays["is"], 8, True, False)
    weights = quantized(arrays["w1"], scales, 8, True, True)
    layer = "g (float[N,2,6,6] x) => (float[N,4,6,6] c) { c = Conv <pads = [1, 1, 1, 1]>(x, w) }"
    (current,) = run_model(parse(layer, {"w": weights}), x=x)
    rounded = quantized(np.maximum(current, 0), arrays["s"], bits, False, False)
    np.testing.assert_array_equal(found[name], np.rint(rounded / arrays["s"]))
    (output,) = run_model(result.model, x=X)
    k = np.einsum("nchw,oc->nohw", rounded, arrays["w2"][:, :, 0, 0]) + arrays["b2"][:, None, None]
    wanted_output = quantized(k.astype(np.float32), arrays["t"], 8, True, True)
    # What lies between two integers of the output up to float32's rounding may fall to either side.
    assert np.mean(np.abs(output - wanted_output) > 1e-6) < 1e-3


@pytest.mark.parametrize(
    ("attributes", "bits", "text"),
    [
        ('signed = 1, narrow = 0, rounding_mode = "FLOOR"', 8, "rounding_mode FLOOR"),
        ("signed = 1, narrow = 0", 1, "1 bits"),
        ("signed = 0, narrow = 0", 2.5, "2.5 bits"),
        ("signed = 0, narrow = 0", 24, "24 bits"),
    ],
)
def test_a_quant_that_has_no_integers_of_its_own_is_refused(
    attributes: str, bits: float, text: str
) -> None:
    body = (
        "g (float[N,3] x) => (float[N,2] y)"
        f" {{ h = MatMul(x, a) r = Relu(h) q = Quant <{attributes}>(r, s, z, b) y = MatMul(q, c) }}"
    )
    given = {"a": random(1, 3, 4), "c": random(2, 4, 2), "s": 0.1, "z": 0, "b": bits}
    arrays = {name: np.asarray(one, np.float32) for name, one in given.items()}
    model = parse(body, arrays, imports=', "onnx.brevitas" : 1')
    model.graph.node[2].domain = "onnx.brevitas"
    (finding,) = refused(model)
    assert finding.code == "SNNC106" and text in finding.message


@pytest.mark.parametrize("name", ["fused", "both signs", "int8"])
def test_pure_spikes_of_values_of_both_signs_are_on_their_grid(name: str) -> None:
    """A population for each sign where weights would read real numbers; none where they read spikes."""
    bodies = {**BODIES, "both signs": pair("c", "p", "t", "m", result="r")}
    body = (
        bodies[name]
        if name != "both signs"
        else pair("c", "q") + (" k = Conv(qd, w3)" + pair("k", "p", "t", "m", result="r"))
    )
    model = network(body, w3=weights(5, 4, 4, 1, 1))
    result = assert_same_integers(model, pure=True)
    layers = len(result.calibration.thresholds)
    assert layers == (3 if name == "both signs" else 1)
    assert result.calibration.source == "quantized source"
    tops = sorted(grid.top for grid in grids_of(result.prepared.graph).values())
    assert tops == {"fused": [255], "int8": [127], "both signs": [121, 134, 255]}[name]
