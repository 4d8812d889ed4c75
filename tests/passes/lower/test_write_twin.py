"""The integer twin of a layered network: the bytes of the counts, in stock onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import snncompiler
from snncompiler.emission.compiled import read_compiled
from snncompiler.errors import Refused, UsageError
from snncompiler.ir import dialect
from snncompiler.models import path
from snncompiler.passes.lower.collapse_time import collapse_time
from snncompiler.passes.lower.write_twin import write_twin
from snncompiler.runtime import create_session

ort = pytest.importorskip("onnxruntime")

Array = NDArray[Any]
LEVELS = [ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL]


def stock(model: onnx.ModelProto, feeds: dict[str, Array], level: Any) -> list[Array]:
    """What onnxruntime gives without anything of ours."""
    assert not [node.op_type for node in model.graph.node if node.domain]
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    providers = ["CPUExecutionProvider"]
    session = ort.InferenceSession(model.SerializeToString(), options, providers=providers)
    found: list[Array] = session.run(None, feeds)
    return found


def watched(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for name in names:
        copy.graph.output.append(helper.make_tensor_value_info(name, TensorProto.UINT8, None))
    return copy


def random_network() -> onnx.ModelProto:
    """Every operator of bytes, with thresholds at the limits of what is proved."""
    rng = np.random.default_rng(8)
    tensors: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def tensor(name: str, values: Any, kind: Any) -> str:
        tensors.append(numpy_helper.from_array(np.asarray(values).astype(kind), name))
        return name

    def add(op: str, inputs: list[str], out: str, **more: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [out], f"{out}_n", domain=dialect.DOMAIN, **more))
        return out

    def neurons(out: str, most: int, levels: int, kind: Any = np.int32) -> list[str]:
        theta = 2 * rng.integers(most // 4, most // 2, 8) + 1
        start = theta // 2 + rng.integers(-99, 99, 8)
        values = (
            (f"{out}_v", start, kind),
            (f"{out}_t", theta, kind),
            (f"{out}_l", levels, np.int64),
        )
        return [tensor(*entry) for entry in values]

    def layer(op: str, x: str, before: int, out: str, most: int, *more: str, **extra: Any) -> str:
        group = extra.get("group", 1)
        weights = rng.integers(-127, 128, (3, 3, before // group, 8))
        if most > 2**15 and before == 8:
            weights = np.abs(weights)  # for large sums
        window = {"strides": [1, 1], "pads": [1] * 4, "dilations": [1, 1]}
        settings = {"group": 1, "origin": 0, "top": 255, "levels_in": 0, **window, **extra}
        inputs = [x, tensor(f"{out}_w", weights, np.int8), *more]
        return add(op, [*inputs, *neurons(out, most, extra["top"])], out, **settings)

    unit = tensor("unit", [1.0, 0.7, 2.0], np.float32)
    x = add("CountInput", ["x", unit], "in", lowest=-127, highest=127, origin=128)
    scaled = [tensor("bias", rng.integers(-999, 999, 8), np.int32)]
    scaled.append(tensor("factor", rng.uniform(0.5, 4, 8), np.float32))
    bounds = {"lowest": -(2**22), "highest": 2**22, "origin": 128}
    a = layer("CountConvScaled", x, 3, "a", 65535, *scaled, top=15, **bounds)
    b = layer("CountConv", a, 8, "b", 8, top=255)
    c = layer("CountConv", b, 8, "c", 65535, top=255)  # the factor is not exact enough here
    d = layer("CountConv", c, 8, "d", 200, top=100, group=8)
    charge = tensor("charge", rng.integers(-2000, 2000, 8), np.int32)
    e = layer("CountConvAdd", d, 8, "e", 1200, a, charge, top=15)
    other = tensor("other", rng.integers(-127, 128, (1, 1, 8, 8)), np.int8)
    side = {"more_strides": [1, 1], "more_pads": [0] * 4, "more_dilations": [1, 1]}
    f = layer("CountConvPair", e, 8, "f", 500, a, other, top=15, more_levels_in=0, **side)
    pool = {"kernel_shape": [2, 2], "pads": [0] * 4, "dilations": [1, 1]}
    g = add("CountMaxPool", [f], "g", strides=[1, 1], **pool)
    h = add("EventSumPool", [g], "h", strides=[2, 2], **pool)
    ends = {"starts": [1, 0], "ends": [4, 4], "axes": [1, 2], "steps": [1, 2]}
    cut = [h, *(tensor(name, values, np.int64) for name, values in ends.items())]
    nodes.append(helper.make_node("Slice", cut, ["cut"], "cut"))
    pads = [tensor("pads", [0, 1, 0, 0, 0, 0, 2, 0], np.int64), tensor("zero", 0, np.uint8)]
    nodes.append(helper.make_node("Pad", ["cut", *pads], ["pad"], "pad"))
    nodes.append(helper.make_node("Concat", [h, "pad"], ["i"], "i", axis=3))
    nodes.append(helper.make_node("Cast", ["i"], ["wide"], "wide", to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Transpose", ["wide"], ["first"], "t", perm=[0, 3, 1, 2]))
    half = tensor("half", 0.37, np.float32)
    nodes.append(helper.make_node("Mul", ["first", half], ["y"], "mul"))
    nodes.append(helper.make_node("Conv", ["y", tensor("k", np.ones((8, 16, 1, 1)), "f4")], ["z"]))
    add("CountNeuron", ["z", *neurons("last", 40, 15, np.float32)], "last", top=15)
    opset = dialect.BASE_OPSET
    shape: list[str | int | None] = ["N", 3, 9, 9]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "counts",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            initializer=tensors,
        ),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(dialect.DOMAIN, 1)],
        ir_version=8,
        functions=dialect.functions({n.op_type for n in nodes if n.domain}, opset),
    )


@pytest.mark.parametrize("level", LEVELS)
def test_every_operator_gives_its_bytes(level: Any) -> None:
    model = random_network()
    names = [node.output[0] for node in model.graph.node if node.domain == dialect.DOMAIN]
    x = np.random.default_rng(2).normal(0, 60, (4, 3, 9, 9)).astype(np.float32)
    wanted = create_session(watched(model, names), events=False).run(None, {"x": x})
    found = stock(watched(write_twin(model), names), {"x": x}, level)
    assert np.array_equal(found[0], wanted[0])
    for name, one, two in zip(names, found[1:], wanted[1:], strict=True):
        assert np.array_equal(one, two.transpose(0, 3, 1, 2)), name
        assert len(np.unique(one)) > 3, name


def test_thresholds_that_are_not_proved_are_refused_together() -> None:
    model = random_network()
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).copy()
        if tensor.name == "b_t":
            tensor.CopyFrom(numpy_helper.from_array(values + 1, "b_t"))
        if tensor.name == "c_t":
            values[0] = 65537
            tensor.CopyFrom(numpy_helper.from_array(values, "c_t"))
    with pytest.raises(Refused) as refused:
        write_twin(model)
    told = [(finding.node, finding.message.partition(",")[0]) for finding in refused.value.findings]
    assert told == [("b", "even thresholds"), ("c", "a threshold of 65537 beside 255 levels")]


def compiled(name: str, steps: int, **more: Any) -> onnx.ModelProto:
    return snncompiler.compile(
        path(name),
        timing="layered",
        coding="radix",
        steps=steps,
        calibration=path("digits-train"),
        samples=32,
        **more,
    )


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("digits-cnn", 4),
        pytest.param("digits-resnet", 8, marks=pytest.mark.slow),
    ],
)
def test_twins_of_compiled_networks(name: str, steps: int) -> None:
    whole = {"weights": "int8", "input_bits": 8}
    spiking = compiled(name, steps, **whole)
    twin = compiled(name, steps, emit="counts", **whole)
    told = {entry.key: entry.value for entry in twin.metadata_props}
    assert told["snnc.form"] == "integer twin of a spiking network"
    with pytest.raises(Refused, match="has no spikes"):
        read_compiled(twin)
    collapsed = collapse_time(spiking).model
    names = [n.output[0] for n in collapsed.graph.node if n.op_type.startswith("CountConv")]
    (image,) = (entry.name for entry in twin.graph.input)
    x = np.random.default_rng(1).uniform(0, 1, (8, 1, 8, 8)).astype(np.float32)
    wanted = create_session(watched(collapsed, names), events=False).run(None, {image: x})
    for level in LEVELS:
        found = stock(watched(twin, names), {image: x}, level)
        assert found[0].tobytes() == wanted[0].tobytes()
        for one, two in zip(found[1:], wanted[1:], strict=True):
            assert np.array_equal(one, two.transpose(0, 3, 1, 2))


def test_what_has_no_twin_is_refused() -> None:
    with pytest.raises(UsageError, match="--emit counts collapses a window of layered time"):
        snncompiler.compile(path("digits-cnn"), emit="counts")
    with pytest.raises(Refused) as refused:
        compiled("digits-cnn", 4, emit="counts")
    assert {finding.code for finding in refused.value.findings} == {"SNNC223"}
    assert len(refused.value.findings) == 4  # every layer
