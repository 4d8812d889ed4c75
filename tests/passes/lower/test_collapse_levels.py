"""Layered networks of real weights without time: the counts of the spiking file, but for rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import parse, random
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import snncompiler
from snncompiler import pipeline
from snncompiler.analysis import verify as verifying
from snncompiler.ir import dialect
from snncompiler.ir.settings import Options
from snncompiler.models import path
from snncompiler.passes.lower.collapse_levels import LevelNote, collapse_levels
from snncompiler.passes.lower.collapse_time import collapse_time
from snncompiler.runtime import create_session

pytest.importorskip("onnxruntime")

Array = NDArray[Any]
STEPS = 4


class Network:
    """A layered network as it is emitted, with random real weights in quarters: every sum is exact."""

    def __init__(self, radix: bool) -> None:
        self.rng = np.random.default_rng(5)
        self.radix = radix
        self.nodes: list[onnx.NodeProto] = []
        steps = np.array(STEPS, np.int64)
        self.tensors = [numpy_helper.from_array(steps, "snnc_steps")]

    def add(self, op: str, inputs: list[str], out: str, domain: str = "", **more: Any) -> str:
        node = helper.make_node(op, inputs, [out], f"{out}_n", domain=domain, **more)
        self.nodes.append(node)
        return out

    def tensor(self, name: str, shape: tuple[int, ...], low: int = -8, high: int = 9) -> str:
        values = (self.rng.integers(low, high, shape) / 4).astype(np.float32)
        self.tensors.append(numpy_helper.from_array(values, name))
        return name

    def conv(self, x: str, out: str, channels: int, before: int, **more: Any) -> str:
        weights = self.tensor(f"{out}_w", (channels, before, 3, 3))
        return self.add("Conv", [x, weights], out, pads=[1] * 4, **more)

    def neuron(self, x: str, out: str, channels: int, static: int = 0) -> str:
        ports = [self.tensor(f"{out}_t", (channels, 1, 1), 9, 40)]
        ports.append(self.tensor(f"{out}_v", (channels, 1, 1), -9, 20))
        more = {"static_current": static, "radix": int(self.radix)}
        inputs = [x, *ports, "snnc_steps"]
        return self.add("LayeredRMPNeuron", inputs, out, dialect.DOMAIN, **more)

    def complete(self, x: str, out: str) -> str:
        nothing = numpy_helper.from_array(np.zeros(1, np.float32), f"{out}_0")
        self.tensors.append(nothing)
        if not self.radix:
            return self.add("TimeSum", [x, nothing.name, "snnc_steps"], out, dialect.DOMAIN)
        worth = np.exp2(np.arange(STEPS - 1, -1, -1)).astype(np.float32)
        self.tensors.append(numpy_helper.from_array(worth, f"{out}_w"))
        inputs = [x, f"{out}_w", nothing.name, "snnc_steps"]
        return self.add("WeightedTimeSum", inputs, out, dialect.DOMAIN)

    def model(self, *outputs: str) -> onnx.ModelProto:
        opset = dialect.BASE_OPSET
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])
        given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        used = {node.op_type for node in self.nodes if node.domain}
        return helper.make_model(
            helper.make_graph(self.nodes, "layered", [x], given, initializer=self.tensors),
            opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(dialect.DOMAIN, 1)],
            ir_version=8,
            functions=dialect.functions(used, opset),
        )


def everything(radix: bool) -> Network:
    """Every operator that may stand between neurons."""
    net = Network(radix)
    a = net.neuron(net.conv("x", "stem", 8, 3), "a", 8, static=1)
    b = net.neuron(net.conv(a, "c1", 8, 8), "b", 8)
    if not radix:
        b = net.add("MaxPool", [b], "b_most", kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1])
    both = net.add("Concat", [a, b], "both", axis=1)
    past = net.add("Mul", [b, net.tensor("f", (8, 1, 1))], "past")
    net.add("Sub", [net.conv(both, "c2", 8, 16), past], "sum")
    c = net.neuron(net.add("Neg", ["sum"], "less"), "c", 8)
    net.add("AveragePool", [c], "mean", kernel_shape=[2, 2], strides=[2, 2])
    deep = net.add("DepthToSpace", ["mean"], "deep", blocksize=2)
    d = net.neuron(net.conv(deep, "c3", 4, 2), "d", 4)
    ends = {"starts": [1], "ends": [7], "axes": [3], "pads": [0, 0, 0, 2, 0, 0, 8, 0]}
    for name, values in ends.items():
        net.tensors.append(numpy_helper.from_array(np.array(values, np.int64), name))
    cut = net.add("Slice", [d, "starts", "ends", "axes"], "cut")
    net.add("GlobalAveragePool", [net.add("Pad", [cut, "pads"], "wide")], "all")
    net.add("Identity", ["all"], "same")
    net.add("Flatten", ["same"], "flat")
    net.add("Gemm", ["flat", net.tensor("g", (6, 4))], "gemm", transB=1)
    net.add("MatMul", ["gemm", net.tensor("m", (6, 5))], "product")
    net.complete("product", "y")
    net.complete(d, "counts")
    return net


@pytest.mark.parametrize("radix", [False, True])
def test_one_pass_gives_what_every_step_gives(radix: bool) -> None:
    """All sums are exact here, so nothing differs."""
    model = everything(radix).model("y", "counts")
    lowered = collapse_time(model)
    assert [note.operator for note in lowered.layers] == ["LevelNeuron"] * 4
    kinds = [node.op_type for node in lowered.model.graph.node if node.domain]
    assert kinds == ["LevelNeuron"] * 4
    x = (np.random.default_rng(1).integers(-20, 20, (3, 3, 8, 8)) / 4).astype(np.float32)
    wanted = create_session(model, events=False).run(None, {"x": x})
    for native in ("auto", False):
        session = create_session(lowered.model, events=False, native=native)
        for one, two in zip(session.run(None, {"x": x}), wanted, strict=True):
            assert np.array_equal(one, two)
    (_, counts) = create_session(model).run(None, {"x": x})
    assert np.array_equal(counts, wanted[1]) and len(np.unique(counts)) > 2


def test_bounds_are_those_of_the_weights() -> None:
    net = everything(True)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in net.tensors}
    notes = collapse_levels(net.model("y")).layers
    assert all(isinstance(note, LevelNote) for note in notes)
    first, second, third, _ = (note for note in notes if isinstance(note, LevelNote))
    assert (first.size, first.products) == (0, 0)
    reach = np.abs(values["c1_w"]).sum((1, 2, 3)).max()
    assert (second.size, second.products) == (reach, 8 * 9 + 1)
    reach = np.abs(values["c2_w"]).sum((1, 2, 3)).max() + np.abs(values["f"]).max()
    assert third.size == reach


def refused(net: Network, *outputs: str) -> str:
    model = net.model(*outputs)
    lowered = collapse_levels(model)
    assert not lowered.changed and lowered.model.SerializeToString() == model.SerializeToString()
    reasons = {note.reason for note in lowered.layers}
    assert len(reasons) == 1
    return reasons.pop()


def test_what_treats_steps_apart_is_told() -> None:
    def begun(radix: bool = True) -> tuple[Network, str]:
        net = Network(radix)
        return net, net.neuron(net.conv("x", "stem", 8, 3), "a", 8, static=1)

    net, a = begun()
    assert refused(net, a) == "the spikes `a` go out"
    net, a = begun()
    net.complete(net.add("Relu", [a], "r"), "y")
    assert refused(net, "y") == "Relu `r_n` has no form without time"
    net, a = begun()
    net.complete(net.add("MaxPool", [a], "p", kernel_shape=[2, 2]), "y")
    assert refused(net, "y") == "MaxPool `p_n` does not pool spikes of rate coding"
    net, a = begun()
    net.complete(net.add("Add", [a, net.tensor("t", (8, 1, 1))], "s"), "y")
    assert refused(net, "y") == "Add `s_n` takes something at every step"
    net, a = begun()
    net.complete(
        net.add("Conv", [a, net.tensor("w", (2, 8, 1, 1)), net.tensor("b", (2,))], "c"), "y"
    )
    assert refused(net, "y") == "Conv `c_n` has a bias at every step"
    net, a = begun()
    net.tensors.append(numpy_helper.from_array(np.array([1, 0, 0, 0, 0, 0, 0, 0]), "pads"))
    net.complete(net.add("Pad", [a, "pads"], "p"), "y")
    assert refused(net, "y") == "Pad `p_n` adds more than places without spikes"
    net, a = begun()
    net.complete(net.add("Round", [a], "r"), "y")
    assert refused(net, "y") == "Round `r_n` rounds every step"
    net, a = begun()
    net.radix = False
    net.complete(a, "y")
    assert refused(net, "y") == "TimeSum `y_n` weighs steps as neurons do not"


@pytest.mark.parametrize(
    ("coding", "steps"), [("radix", 4), pytest.param("rate", 6, marks=pytest.mark.slow)]
)
def test_compiled_networks_are_verified(
    coding: Any, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, file = path("digits-resnet"), tmp_path / "digits.snn.onnx"
    compiled = snncompiler.compile(
        source,
        timing="layered",
        coding=coding,
        steps=steps,
        calibration=path("digits-train"),
        samples=64,
    )
    onnx.save(compiled, file)
    name = "by counts = spiking file, but for rounding"

    def check() -> Any:
        checks = {check.name: check for check in snncompiler.verify(source, file).checks}
        return checks[name]

    assert check().passed, check().detail

    def wrong(model: onnx.ModelProto) -> Any:
        """A collapsed network in which one weight has another value."""
        lowered = collapse_time(model)
        conv = [node for node in lowered.model.graph.node if node.op_type == "Conv"][2]
        tensor = next(t for t in lowered.model.graph.initializer if t.name == conv.input[1])
        values = numpy_helper.to_array(tensor).copy()
        values[0, 0] *= 1.01
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        return lowered

    monkeypatch.setattr(verifying, "collapse_time", wrong)
    assert not check().passed


def test_averages_that_a_quantized_source_rounds_are_added_up_as_in_the_file() -> None:
    """Many of them lie half-way between two integers, and fall as their sum does."""
    text = """g (float[N,2,6,6] x) => (float[N,3,3,3] y) {
        c = Conv <pads = [1, 1, 1, 1]>(x, a)  r = Relu(c)
        q = QuantizeLinear(r, s, z)  d = DequantizeLinear(q, s, z)
        m = AveragePool <kernel_shape = [2, 2], strides = [2, 2]>(d)
        o = QuantizeLinear(m, t, z)  e = DequantizeLinear(o, t, z)
        k = Conv(e, b)  f = Relu(k)  i = QuantizeLinear(f, s, z)  j = DequantizeLinear(i, s, z)
        y = Conv(j, w) }"""
    given = {
        "a": random(1, 4, 2, 3, 3), "b": random(2, 4, 4, 1, 1), "w": random(3, 3, 4, 1, 1),
        "s": np.float32(0.0471), "t": np.float32(0.0431), "z": np.uint8(0),
    }  # fmt: skip
    model = parse(text, {name: np.asarray(one) for name, one in given.items()})
    snn = pipeline.compile_model(model, Options(timing="layered", coding="radix")).model
    lowered = collapse_levels(snn)
    assert {layer.operator for layer in lowered.layers} == {""}
    assert all("rounds averages" in layer.reason for layer in lowered.layers)
    x = random(4, 16, 2, 6, 6)
    spiking = create_session(snn, events=False).run(None, {"x": x})[0]
    assert create_session(snn).run(None, {"x": x})[0].tobytes() == spiking.tobytes()
