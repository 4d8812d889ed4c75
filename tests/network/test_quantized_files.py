"""Files that onnxruntime's own quantization writes: QDQ, QOperator, dynamic; at several opsets."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, compile_text, ops, parse, random, run_model
from onnx import numpy_helper

import snncompiler
from snncompiler import models, pipeline
from snncompiler.analysis.integers import compare_integers
from snncompiler.ir.settings import Options
from snncompiler.network import checks
from snncompiler.network.checks import check_source
from snncompiler.network.prepare import prepare
from snncompiler.network.unrounded import unrounded
from snncompiler.runtime.session import create_session

pytest.importorskip("onnxruntime.quantization")
pytest.importorskip("sympy")  # which it needs and does not ask for

from onnxruntime import quantization


class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, x: Array) -> None:
        self.feeds: Iterator[dict[str, Array]] = iter([{name: one[None]} for one in x])

    def get_next(self) -> dict[str, Array] | None:
        return next(self.feeds, None)


def network(opset: int) -> onnx.ModelProto:
    """A residual network with max pooling; its values have both signs where they are added."""
    return parse(
        """
        g (float[1, 2, 8, 8] x) => (float[1, 3] y) {
            c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w1, b1)
            r1 = Relu(c1)
            p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]>(r1)
            c2 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(p, w2)
            r2 = Relu(c2)
            c3 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(r2, w3)
            a = Add(c3, p)
            r3 = Relu(a)
            q = GlobalAveragePool(r3)
            f = Flatten(q)
            y = Gemm(f, w4, b4)
        }
        """,
        {
            "w1": random(1, 4, 2, 3, 3) / 3, "b1": random(2, 4) / 4, "w2": random(3, 4, 4, 3, 3) / 5,
            "w3": random(4, 4, 4, 3, 3) / 5, "w4": random(5, 4, 3), "b4": random(6, 3),
        },
        opset=opset,
        ir=7,
    )  # fmt: skip


def quantized(tmp_path: Path, model: onnx.ModelProto, x: Array, **options: Any) -> onnx.ModelProto:
    given, made = tmp_path / "float.onnx", tmp_path / "quantized.onnx"
    onnx.save(model, given)
    name = model.graph.input[0].name
    if options.pop("dynamic", False):
        quantization.quantize_dynamic(given, made)
    else:
        quantization.quantize_static(given, made, Reader(name, x), **options)
    return onnx.load(made)


def exact(file: onnx.ModelProto, x: Array) -> Array:
    """What the file gives without its rounding, but for that of its input, which stays.  It is not
    optimized: onnxruntime would compute the products with 8-bit weights in 8 bit."""
    graph = prepare(file).graph
    kept = {one.outputs[0].name for one in graph.nodes if one.op == "QuantizeLinear"}
    session = create_session(unrounded(file, kept), threads=1, optimize=False)
    found: Array = session.run(None, {"x": x})[0]
    return found


FORMATS = {
    "QDQ": {"quant_format": quantization.QuantFormat.QDQ},
    "QOperator": {"quant_format": quantization.QuantFormat.QOperator},
    "dynamic": {"dynamic": True},
}
INT8, UINT8 = quantization.QuantType.QInt8, quantization.QuantType.QUInt8


@pytest.mark.parametrize(
    ("form", "opset", "kind", "channels"),
    [
        (form, opset, kind, channels)
        for form in FORMATS
        for opset in (11, 13, 17, 20)
        for kind, channels in [(UINT8, False), (INT8, False), (INT8, True)]
        if (form != "dynamic" or kind == UINT8)  # it has no such options
        # For channels onnxruntime writes an axis into QDQ files, which opset 13 brought.
        and (form == "QOperator" or not channels or opset >= 13)
    ],
)
def test_every_form_converts(
    tmp_path: Path, form: str, opset: int, kind: Any, channels: bool
) -> None:
    """The normalized network is the file without its rounding, and no integer is left behind the
    input; that the two are compared at all is seen from the note."""
    options: dict[str, Any] = dict(FORMATS[form])
    if form != "dynamic":
        options |= {"activation_type": kind, "weight_type": INT8, "per_channel": channels}
    x = random(7, 16, 2, 8, 8)
    prepared = prepare(quantized(tmp_path, network(opset), x, **options))
    check_source(prepared, {"x": x[:1]})
    told = [one for one in prepared.findings if one.message.startswith("without its rounding")]
    assert len(told) == 1
    assert not [one for one in prepared.findings if one.code == "SNNC208"]
    left = [op for op in ops(prepared.ann) if "Linear" in op or "Integer" in op]
    assert left in ([], ["QuantizeLinear", "DequantizeLinear"])


@pytest.mark.parametrize("form", FORMATS)
def test_they_converge(tmp_path: Path, form: str) -> None:
    """To the file without its rounding, as 1/T: a neuron is off by a few thresholds at any time, so
    that eight times the steps leave an eighth; a half of that is allowed for."""
    x = random(7, 12, 2, 8, 8)
    model = network(17)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "N"
    file = quantized(tmp_path, model, x, **FORMATS[form])
    wanted = exact(file, x)
    errors = []
    for steps in (64, 512):
        (found,) = run_model(compile_text(file, x, steps=steps), x=x)
        errors.append(float(np.abs(found - wanted).max() / np.abs(wanted).max()))
    assert errors[1] <= errors[0] / 4 and errors[1] < 0.01


TYPES = {"U8S8": (UINT8, INT8), "U8U8": (UINT8, UINT8), "S8S8": (INT8, INT8)}
QUICK = {("digits-cnn", "QDQ", "U8S8", False), ("digits-resnet", "QOperator", "S8S8", True)}


@pytest.mark.parametrize(
    ("name", "form", "types", "channels"),
    [
        pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
        for case in product(
            ("digits-cnn", "digits-resnet"), ("QDQ", "QOperator"), TYPES, (False, True)
        )
    ],
)
def test_in_layered_time_the_spikes_are_their_integers(
    tmp_path: Path, name: str, form: str, types: str, channels: bool
) -> None:
    """Of all values but a few: of a thousand, one may lie half-way between two integers up to float32's
    rounding, or behind one that does.  Every image has the arg-max that onnxruntime gives it, with its
    optimizer and without."""
    x, unseen = digits(64, 50)
    activations, weights = TYPES[types]
    options = {"activation_type": activations, "weight_type": weights, "per_channel": channels}
    given = onnx.load(models.path(name))
    file = quantized(tmp_path, given, x, **FORMATS[form], **options)
    result = pipeline.compile_model(file, Options(timing="layered", coding="radix"))
    feeds = {file.graph.input[0].name: unseen}
    found = compare_integers(result.prepared, result.model, feeds)
    assert found.different <= found.values / 1000 and found.values > 50 * 1000
    (scores,) = run_model(result.model, **feeds)
    for optimize in (True, False):
        wanted = create_session(file, threads=1, optimize=optimize).run(None, feeds)[0]
        np.testing.assert_array_equal(scores.argmax(1), wanted.argmax(1))


def digits(train: int, test: int) -> tuple[Array, Array]:
    """The first images of both sets."""
    return tuple(  # type: ignore[return-value]
        np.load(models.path(f"digits-{which}"))["x"]
        .transpose(0, 3, 1, 2)[:count]
        .astype(np.float32)
        / 16
        for which, count in (("train", train), ("test", test))
    )


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_digits_are_told_apart_as_before(tmp_path: Path, form: str) -> None:
    """The quantized network classifies 95 of 100 test images or more alike; so does the SNN."""
    x, unseen = digits(64, 100)
    given = onnx.load(models.path("digits-cnn"))
    file = quantized(tmp_path, given, x, **FORMATS[form])
    name = file.graph.input[0].name
    made = pipeline.compile_model(file, Options(steps=64), {name: x}).model
    (scores,), (wanted,) = run_model(made, **{name: unseen}), run_model(file, **{name: unseen})
    assert (scores.argmax(1) == wanted.argmax(1)).mean() >= 0.95


BETWEEN = """g (float[N,2,6,6] x) => (float[N,3,6,6] y) {
    c = Conv <pads = [1, 1, 1, 1]>(x, a)  r = Relu(c)
    q = QuantizeLinear(r, s, z)  d = DequantizeLinear(q, s, z)
    k = Conv <pads = [1, 1, 1, 1]>(d, b)  h = Sub(k, d)
    o = QuantizeLinear(h, t, n)  e = DequantizeLinear(o, t, n)
    l = Conv(e, w2)  f = Relu(l)  i = QuantizeLinear(f, s, z)  j = DequantizeLinear(i, s, z)
    y = Conv(j, w3) }"""


@pytest.mark.parametrize("factor", [1.0, 1.02])
def test_every_part_between_two_roundings_is_compared_with_the_source(factor: float) -> None:
    """A part that is off by 2 % is seen where it is, though the outputs change by less than roundings
    of other sums may make of them."""
    given = {
        "a": random(1, 4, 2, 3, 3), "b": random(2, 4, 4, 3, 3), "w2": random(3, 4, 4, 1, 1),
        "w3": random(4, 3, 4, 1, 1), "s": np.float32(0.0471), "t": np.float32(0.093),
        "z": np.uint8(0), "n": np.uint8(120),
    }  # fmt: skip
    model = parse(BETWEEN, {name: np.asarray(one) for name, one in given.items()})
    prepared = pipeline.prepare(model, keep_rounding=True)
    roundings = checks._roundings(prepared.ann, prepared.source.model)
    assert sorted(roundings.values()) == ["d", "e", "j"]
    for tensor in prepared.ann.graph.initializer:
        if tensor.dims == [4, 4, 1, 1]:
            values = numpy_helper.to_array(tensor) * np.float32(factor)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    x = {"x": random(5, 2, 2, 6, 6)}
    if factor == 1.0:
        checks.check_source(prepared, x)
        return
    behind = next(name for name, source in roundings.items() if source == "j")
    with pytest.raises(snncompiler.Refused, match=f"rounds '{behind}' otherwise than the source"):
        checks.check_source(prepared, x)
