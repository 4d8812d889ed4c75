"""A network that takes pixels: the bits of the one that is fed what the preprocessing makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, codes, parse, random
from onnx import TensorProto, helper

import snncompiler
from snncompiler import Preprocess
from snncompiler.emission.compiled import read_compiled
from snncompiler.errors import Refused, UsageError
from snncompiler.ir.pixels import InputType
from snncompiler.ir.settings import Options
from snncompiler.network.data import load_data
from snncompiler.network.prepare import prepare
from snncompiler.pipeline import compile_model
from snncompiler.runtime import Stream, create_session

HOW = Preprocess(scale=255.0, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
PIXELS = np.random.default_rng(3).integers(0, 256, (24, 8, 8, 3), np.uint8)
#: The first convolution pads, with zeros that are no pixels.
NETWORK = """g (float[N,3,8,8] x) => (float[N,5] y) {
    c = Conv <pads = [1, 1, 1, 1]> (x, w, b)  r = Relu (c)  d = Conv (r, v)  q = Relu (d)
    m = GlobalAveragePool (q)  f = Flatten (m)  y = MatMul (f, z) }"""


def network() -> onnx.ModelProto:
    weights = {
        "w": random(1, 8, 3, 3, 3) / 3, "b": random(2, 8), "v": random(3, 6, 8, 3, 3) / 5,
        "z": random(4, 6, 5),
    }  # fmt: skip
    return parse(NETWORK, weights)


def compiled(**options: Any) -> onnx.ModelProto:
    return snncompiler.compile(network(), calibration=PIXELS, preprocess=HOW, steps=9, **options)


def real_input() -> Array:
    """What the preprocessing makes of the pixels, outside of the network."""
    dataset = load_data(PIXELS, prepare(network()).inputs, HOW)
    values: Array = dataset.in_memory().feeds["x"]
    return values


def run(model: onnx.ModelProto, x: Array, **how: Any) -> bytes:
    output: Array = create_session(model, threads=1, **how).run(None, {"x": x})[0]
    return output.tobytes()


def chw() -> Array:
    return np.ascontiguousarray(PIXELS.transpose(0, 3, 1, 2))


def without_front(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same file, fed behind its preprocessing."""
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    front = [node for node in cut.graph.node if node.name.startswith("x/")]
    last = next(node for node in front if node.output[0] == "x/div_2")
    for node in cut.graph.node:
        node.input[:] = ["x" if name == last.output[0] else name for name in node.input]
    kept = [
        n for n in cut.graph.node if n.output[0] not in ("x/pixels", "x/div", "x/sub", "x/div_2")
    ]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del cut.graph.node[:], cut.graph.value_info[:]
    cut.graph.node.extend(copies)
    cut.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return cut


def test_pixels_give_the_bits_of_the_preprocessed_input() -> None:
    """With real weights, the same as a file compiled without pixels."""
    taking = compiled(input_type="uint8")
    assert [spec.dtype for spec in read_compiled(taking).inputs] == [np.uint8]
    given = compiled()
    assert run(taking, chw()) == run(given, real_input())
    assert run(taking, chw(), native=False) == run(given, real_input(), native=False)


@pytest.mark.parametrize(
    "form",
    [
        {},
        pytest.param({"unroll": "loop"}, marks=pytest.mark.slow),
        {"timing": "layered", "coding": "radix", "steps": 4},
    ],
    ids=str,
)
def test_whole_numbers_of_pixels_are_those_of_the_preprocessed_input(form: dict[str, Any]) -> None:
    options = {"steps": 6, "weights": "int8", "input_type": "uint8", **form}
    made = snncompiler.compile(network(), calibration=PIXELS, preprocess=HOW, **options)
    wanted = run(without_front(made), real_input(), native=False)
    for way in ({"native": False}, {"events": False}, {}):
        assert run(made, chw(), **way) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_a_file_that_takes_pixels_is_verified(weights: str) -> None:
    made = compiled(weights=weights, input_type="uint8")
    assert snncompiler.verify(network(), made, data=PIXELS).passed
    assert snncompiler.verify(network(), made).passed


@pytest.mark.slow
def test_evaluation_feeds_both_networks_with_the_same_pictures() -> None:
    results = [
        snncompiler.evaluate(network(), compiled(**more), PIXELS, preprocess=how).results[0]
        for more, how in (({"input_type": "uint8"}, None), ({}, HOW))
    ]
    assert results[0].relative_error == results[1].relative_error


@pytest.mark.slow
def test_a_stream_of_pixels() -> None:
    stream = Stream(compiled(input_type="uint8", emit="step"))
    outputs = [stream.step(chw()) for _ in range(9)][-1]
    assert outputs["y"].tobytes() == run(compiled(unroll="loop"), real_input(), events=False)


def test_what_is_not_said_of_pixels_is_told() -> None:
    made = compile_model(network(), Options(steps=2, input_type="uint8"), PIXELS)
    assert "SNNC307" in codes(made.prepared.findings)
    assert read_compiled(made.model).options.input_type == InputType(True, 255.0)


@pytest.mark.parametrize(
    ("text", "again"),
    [("float32", "float32"), ("uint8", "uint8"), ("uint8:1::", "uint8:1.0::"),
     ("uint8:255:0.5:0.25,0.5,1", "uint8:255.0:0.5:0.25,0.5,1.0")],
)  # fmt: skip
def test_an_input_type_has_a_text(text: str, again: str) -> None:
    assert str(InputType.parse(text)) == again
    assert InputType.parse(again) == InputType.parse(text)


@pytest.mark.parametrize(
    "text", ["int8", "uint8:1", "uint8:0::", "uint8:1::0", "float32:1::", "uint8:a::"]
)
def test_any_other_text_is_none(text: str) -> None:
    with pytest.raises(ValueError):
        InputType.parse(text)


def test_what_takes_no_pixels_is_refused() -> None:
    with pytest.raises(Refused, match="has 3 channels"):
        snncompiler.compile(network(), preprocess=Preprocess(mean=[1, 2]), input_type="uint8")
    with pytest.raises(Refused, match="are no uint8"):
        snncompiler.compile(network(), calibration=real_input(), input_type="uint8")
    with pytest.raises(UsageError, match="said twice"):
        compiled(input_type="uint8:255::")
    with pytest.raises(UsageError, match="spikes code real numbers"):
        compiled(input_type="uint8", encode="poisson")
    integers = helper.make_model(
        helper.make_graph(
            [helper.make_node("Cast", ["x"], ["c"], to=1), helper.make_node("Relu", ["c"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.INT64, ["N", 3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    with pytest.raises(Refused, match="no input of floating point"):
        snncompiler.compile(integers, input_type="uint8")
