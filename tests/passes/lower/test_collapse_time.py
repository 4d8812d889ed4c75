"""Layered networks in whole numbers, by counts: the bits of the spiking file, or a reason.

Everything is a whole number below 2^24, so there is no tolerance anywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import snncompiler
from snncompiler.ir import dialect
from snncompiler.models import path
from snncompiler.passes.lower.collapse_time import collapse_time
from snncompiler.runtime import create_session, library

pytest.importorskip("onnxruntime")

Array = NDArray[Any]


class Network:
    """A layered network as it is emitted, with random whole numbers."""

    def __init__(
        self, size: tuple[int, ...], steps: int, radix: bool, overridable: bool = False
    ) -> None:
        self.rng = np.random.default_rng(3)
        self.steps, self.radix, self.overridable = steps, radix, overridable
        self.levels = 2**steps - 1 if radix else steps
        self.size = size
        self.nodes: list[onnx.NodeProto] = []
        self.tensors = [numpy_helper.from_array(np.array(steps, np.int64), "snnc_steps")]
        self.now = "snnc_steps"
        if overridable:
            ends = {"no_trip": 0, "endless": 2**62}
            self.tensors += [
                numpy_helper.from_array(np.array(n, np.int64), key) for key, n in ends.items()
            ]
            self.now = "window_steps"
            self._node(
                "TimeSteps",
                ["no_trip", "no_trip", "snnc_steps", "endless"],
                ["window_start", self.now, "window_end", "window_going"],
                dialect.DOMAIN,
            )
        self.channels: dict[str, int] = {"x": size[0]}

    def _node(
        self, op: str, inputs: list[str], outputs: list[str], domain: str = "", **more: Any
    ) -> str:
        self.nodes.append(
            helper.make_node(op, inputs, outputs, outputs[0] + "_n", domain=domain, **more)
        )
        return outputs[0]

    def constant(self, name: str, value: Any) -> str:
        self.tensors.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def integers(self, name: str, values: list[int]) -> str:
        self.tensors.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def conv(self, x: str, out: str, channels: int, kernel: int = 3, **more: Any) -> str:
        group = more.get("group", 1)
        axes = len(self.size) - 1
        shape = (channels, self.channels[x] // group, *[kernel] * axes)
        weights = self.constant(f"{out}_w", self.rng.integers(-127, 128, shape))
        inputs = [x, weights]
        if more.pop("bias", False):
            inputs.append(self.constant(f"{out}_b", self.rng.integers(-99, 99, channels)))
        self.channels[out] = channels
        return self._node("Conv", inputs, [out], **more)

    def gemm(self, x: str, out: str, rows: int, channels: int) -> str:
        weights = self.constant(f"{out}_w", self.rng.integers(-127, 128, (rows, channels)))
        self.channels[out] = channels
        return self._node("MatMul", [x, weights], [out])

    def scaled(self, x: str, out: str, most: int = 900) -> str:
        shape = (self.channels[x], *[1] * (len(self.size) - 1))
        factor = self.constant(f"{out}_f", self.rng.integers(-most, most, shape))
        self.channels[out] = self.channels[x]
        return self._node("Mul", [x, factor], [out])

    def neuron(self, x: str, out: str, charge: float = 300, rank: int = 0, static: int = 0) -> str:
        axes = (rank or len(self.size) + 1) - 2
        shape = (self.channels[x], *[1] * axes)
        threshold = 2 * self.rng.integers(charge / 4, charge / 2, shape) + 1
        start = threshold // 2 + self.rng.integers(-99, 99, shape)
        ports = [self.constant(f"{out}_t", threshold), self.constant(f"{out}_v", start)]
        self.channels[out] = self.channels[x]
        return self._node(
            "LayeredRMPNeuron",
            [x, *ports, self.now],
            [out],
            dialect.DOMAIN,
            static_current=static,
            radix=int(self.radix),
        )

    def op(self, op: str, inputs: list[str], out: str, **more: Any) -> str:
        self.channels[out] = self.channels[inputs[0]]
        if op == "Concat":
            self.channels[out] = sum(self.channels[name] for name in inputs)
        return self._node(op, inputs, [out], **more)

    def complete(self, x: str, out: str) -> str:
        inputs = [x, self.constant(f"{out}_before", [0.0]), self.now]
        self.channels[out] = self.channels[x]
        if self.radix:
            worth = np.exp2(np.arange(self.steps - 1, -1, -1))
            inputs.insert(1, self.constant(f"{out}_weights", worth))
            return self._node("WeightedTimeSum", inputs, [out], dialect.DOMAIN)
        return self._node("TimeSum", inputs, [out], dialect.DOMAIN)

    def model(self, *outputs: str) -> onnx.ModelProto:
        opset = dialect.BASE_OPSET
        inputs = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *self.size]),
        ]
        if self.overridable:
            inputs.append(helper.make_tensor_value_info("snnc_steps", TensorProto.INT64, []))
        used = {node.op_type for node in self.nodes if node.domain}
        return helper.make_model(
            helper.make_graph(
                self.nodes,
                "layered",
                inputs,
                [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
                initializer=self.tensors,
            ),
            opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(dialect.DOMAIN, 1)],
            ir_version=8,
            functions=dialect.functions(used, opset),
        )


@pytest.mark.parametrize(
    ("name", "coding", "steps"),
    [
        pytest.param("digits-resnet", "radix", 4),
        pytest.param("digits-cnn", "rate", 8, marks=pytest.mark.slow),
    ],
)
def test_compiled_networks_are_verified(name: str, coding: str, steps: int, tmp_path: Path) -> None:
    """Residuals, averages and a read-out as the compiler writes them, by both codings."""
    data = path("digits-train")
    source, file = path(name), tmp_path / f"{name}.snn.onnx"
    compiled = snncompiler.compile(
        source,
        timing="layered",
        coding=coding,
        steps=steps,
        weights="int8",
        input_bits=8,
        calibration=data,
        samples=64,
    )
    onnx.save(compiled, file)
    found = operators(onnx.load(file))
    assert found[0] == "CountConvScaled" and all(op.startswith("CountConv") for op in found)
    checks = {check.name: check for check in snncompiler.verify(source, file).checks}
    assert checks["by counts = spiking file"].passed
    assert "the same bits" in checks["by counts = spiking file"].detail


def same_bits(model: onnx.ModelProto, samples: int = 3, **feeds: Array) -> None:
    """The collapsed network gives the bits of the spiking file by its function bodies."""
    lowered = collapse_time(model).model
    size = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    x = np.random.default_rng(4).normal(0, 60, (samples, *size)).astype(np.float32)
    wanted = create_session(model, native=False).run(None, {"x": x, **feeds})
    native: list[bool] = [False, *([True] if library.library_path() else [])]
    for one in native:
        got = create_session(lowered, native=one, events=False).run(None, {"x": x, **feeds})
        for a, b in zip(got, wanted, strict=True):
            assert a.shape == b.shape and a.tobytes() == b.tobytes(), one
    assert any(np.ptp(array) > 0 for array in wanted)


def operators(model: onnx.ModelProto) -> list[str]:
    return [layer.operator for layer in collapse_time(model).layers]


def reasons(model: onnx.ModelProto) -> list[str]:
    return [layer.reason for layer in collapse_time(model).layers]


CODES = [(4, True, False), (8, True, False), (7, False, False), (5, False, True)]


@pytest.mark.parametrize(("steps", "radix", "overridable"), CODES)
def test_residual_networks(steps: int, radix: bool, overridable: bool) -> None:
    """Static stem, identity and projected residuals, read-out: every layer is one operator."""
    net = Network((3, 9, 9), steps, radix, overridable)
    a = net.neuron(net.conv("x", "stem", 16, pads=[1] * 4, bias=True), "a", static=1, charge=4000)
    inner = net.neuron(net.conv(a, "c1", 16, pads=[1] * 4), "b", 900)
    net.conv(inner, "c2", 16, pads=[1] * 4)
    net.op("Add", ["c2", net.scaled(a, "past")], "sum")
    c = net.neuron("sum", "c", 900)
    net.conv(c, "c3", 24, pads=[1] * 4, strides=[2, 2])
    net.op("Add", ["c3", net.conv(c, "side", 24, 1, strides=[2, 2])], "sum2")
    d = net.neuron("sum2", "d", 900)
    net.complete(d, "whole")
    net.op("GlobalAveragePool", ["whole"], "y")
    model = net.model("y")
    assert operators(model) == ["CountNeuron", "CountConv", "CountConvAdd", "CountConvPair"]
    left = [node.op_type for node in collapse_time(model).model.graph.node]
    assert "LayeredRMPNeuron" not in left and "WeightedTimeSum" not in left
    same_bits(model)
    if overridable:
        same_bits(model, snnc_steps=np.array(11, np.int64))


@pytest.mark.parametrize(("steps", "radix", "overridable"), CODES)
def test_pooling_concat_groups_and_flat_maps(steps: int, radix: bool, overridable: bool) -> None:
    net = Network((2, 8, 10), steps, radix, overridable)
    a = net.neuron(net.conv("x", "stem", 8, pads=[1] * 4, bias=True), "a", static=1, charge=3000)
    window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}
    if radix:  # the complete current is pooled, before the neuron
        whole = net.complete(net.conv(a, "c1", 8, pads=[1] * 4, group=8), "whole")
        pooled = net.neuron(net.op("MaxPool", [whole], "largest", **window), "b", 200, static=1)
    else:
        b = net.neuron(net.conv(a, "c1", 8, pads=[1] * 4, group=8), "b", 200)
        pooled = net.op("MaxPool", [b], "pooled", **window)
    c = net.neuron(net.conv(pooled, "c2", 12, 1, group=2), "c", 300)
    joined = net.op("Concat", [pooled, c], "joined", axis=1)
    d = net.neuron(net.conv(joined, "c3", 6, dilations=[2, 2], pads=[2] * 4), "d", 500)
    flat = net.op("Flatten", [d], "flat", axis=1)
    e = net.neuron(net.gemm(flat, "g1", 6 * 4 * 5, 20), "e", 900, rank=2)
    f = net.neuron(net.gemm(e, "g2", 20, 7), "f", 300, rank=2)
    net.complete(f, "y")
    model = net.model("y")
    assert operators(model) == ["CountNeuron", *["CountConv"] * 5]
    same_bits(model)


def test_one_axis_and_sums_of_spikes() -> None:
    net = Network((2, 30), 3, True)
    a = net.neuron(net.conv("x", "stem", 5, pads=[1, 1], bias=True), "a", static=1, charge=3000)
    net.conv(a, "c1", 5, 3, pads=[2, 0], strides=[2])
    b = net.neuron("c1", "b", 300)
    net.op("Sub", [net.scaled(b, "one"), net.scaled(b, "two", 100)], "sum")
    c = net.neuron("sum", "c", 500)  # residuals alone
    net.complete(c, "y")
    model = net.model("y")
    assert operators(model) == ["CountNeuron", "CountConv", "CountConvAdd"]
    same_bits(model)

    net = Network((2, 8, 8), 4, True)
    a = net.neuron(net.conv("x", "stem", 5, pads=[1] * 4, bias=True), "a", static=1, charge=3000)
    net.op("AveragePool", [a], "mean", kernel_shape=[2, 2], strides=[2, 2])
    net.op("Mul", ["mean", net.constant("places", 4)], "sums")
    net.op("Round", ["sums"], "exact")
    b = net.neuron(net.conv("exact", "c1", 9), "b", 900)
    net.complete(b, "y")
    assert operators(net.model("y")) == ["CountNeuron", "CountConv"]
    same_bits(net.model("y"))

    # Sums that are complete, as compiled networks have them, and rounded there.
    net = Network((2, 8, 8), 5, False, True)
    a = net.neuron(net.conv("x", "stem", 5, pads=[1] * 4, bias=True), "a", static=1, charge=3000)
    net.op("AveragePool", [a], "mean", kernel_shape=[2, 2], strides=[2, 2])
    net.op("Mul", ["mean", net.constant("places", 4)], "sums")
    net.op("Round", [net.complete("sums", "whole")], "exact")
    b = net.neuron(net.conv("exact", "c1", 9, bias=True), "b", 900, static=1)
    net.op("AveragePool", [b], "mean2", kernel_shape=[2, 2])
    net.op("Mul", ["mean2", "places"], "sums2")
    net.op("Round", [net.complete("sums2", "whole2")], "exact2")
    net.op("Flatten", ["exact2"], "flat", axis=1)
    c = net.neuron(net.gemm("flat", "g", 9, 6), "c", 900, rank=2, static=1)
    net.complete(c, "y")
    assert operators(net.model("y")) == ["CountNeuron", "CountConv", "CountConv"]
    same_bits(net.model("y"), snnc_steps=np.array(9, np.int64))


def test_an_input_of_8_bits_is_read_as_bytes() -> None:
    net = Network((3, 9, 9), 4, True)
    at = "x"
    for op, value in (("Mul", 0.5), ("Max", -127.0), ("Min", 127.0)):
        at = net.op(op, [at, net.constant(f"{op}_c", value)], f"{op}_x")
    net.op("Round", [at], "rounded")
    net.conv("rounded", "stem", 16, pads=[1, 2, 1, 0], strides=[2, 2], bias=True)
    a = net.neuron("stem", "a", 4000, static=1)
    b = net.neuron(net.conv(a, "c1", 4), "b", 900)
    net.complete(b, "y")
    model = net.model("y")
    assert operators(model) == ["CountConv", "CountConv"]
    assert "Conv" not in {node.op_type for node in collapse_time(model).model.graph.node}
    same_bits(model)


@pytest.mark.parametrize(("steps", "radix", "overridable"), CODES)
def test_shortcuts_without_weights(steps: int, radix: bool, overridable: bool) -> None:
    """Every other place, and channels without spikes: the first residual networks for CIFAR."""

    def network(**pad: Any) -> Network:
        net = Network((3, 8, 9), steps, radix, overridable)
        a = net.neuron(net.conv("x", "s", 6, pads=[1] * 4, bias=True), "a", static=1, charge=3000)
        b = net.neuron(net.conv(a, "c1", 10, pads=[1] * 4, strides=[2, 2]), "b", 500)
        ends = {"starts": [0, 1], "ends": [2**63 - 1, 9], "axes": [2, -1], "places": [2, 2]}
        names = [net.integers(key, value) for key, value in ends.items()]
        net.op("Slice", [a, *names], "half")
        net.op("Pad", ["half", net.integers("pads", [0, 1, 0, 0, 0, 3, 0, 1])], "wide", **pad)
        net.channels["wide"] = 10
        net.op("Add", [net.conv(b, "c2", 10, pads=[1] * 4), net.scaled("wide", "past")], "sum")
        net.complete(net.neuron("sum", "d", 900), "y")
        return net

    model = network().model("y")
    assert operators(model) == ["CountNeuron", "CountConv", "CountConvAdd"]
    same_bits(model)
    edge = network(mode="edge").model("y")
    assert reasons(edge)[2] == "Pad `wide_n` adds more than places without spikes"


@pytest.mark.parametrize("differ", [False, True])
def test_a_first_layer_on_another_grid_than_its_neurons_reads_bytes(differ: bool) -> None:
    """As compiled networks have it: the sums are rounded, within bounds, to the neurons' grid."""
    net = Network((3, 9, 9), 4, True)
    at = "x"
    for op, value in (("Mul", 0.5), ("Max", -127.0), ("Min", 127.0)):
        at = net.op(op, [at, net.constant(f"{op}_c", value)], f"{op}_x")
    net.op("Round", [at], "rounded")
    net.conv("rounded", "stem", 16, pads=[1] * 4, strides=[2, 2], bias=True)
    net.op("Round", ["stem"], "sums")
    factor = net.rng.uniform(0.2, 3, (16, 1, 1))
    net.op("Mul", ["sums", net.constant("factor", factor)], "scaled")
    charge = 2 * net.rng.integers(900, 2000, (1, 16, 1, 1)) + 1
    for op, sign in (("Max", -1), ("Min", 15)):
        bound = sign * (charge if differ else np.full_like(charge, charge.max()))
        net.op(
            op, ["scaled" if op == "Max" else "Max_s", net.constant(f"{op}_b", bound)], f"{op}_s"
        )
    net.op("Round", ["Min_s"], "current")
    ports = [net.constant("a_t", charge), net.constant("a_v", charge // 2)]
    node, net.channels["a"] = {"static_current": 1, "radix": 1}, 16
    net._node("LayeredRMPNeuron", ["current", *ports, net.now], ["a"], dialect.DOMAIN, **node)
    b = net.neuron(net.conv("a", "c1", 4), "b", 900)
    net.complete(b, "y")
    model = net.model("y")
    assert operators(model) == ["CountConvScaled", "CountConv"]
    lowered = [node.op_type for node in collapse_time(model).model.graph.node]
    assert lowered[0] == "CountInput" and not {"Conv", "Round", "Mul"}.intersection(lowered)
    same_bits(model, samples=9)
    # Where a bound lies between a neuron's levels, the current stays as it was.
    for tensor in net.tensors:
        if tensor.name == "Min_b":
            low = numpy_helper.to_array(tensor).copy()
            low[0, 0] = 14 * charge[0, 0]
            tensor.CopyFrom(numpy_helper.from_array(low, "Min_b"))
    assert operators(net.model("y")) == ["CountNeuron", "CountConv"]
    same_bits(net.model("y"), samples=9)


@pytest.mark.parametrize(("steps", "radix", "overridable"), CODES)
def test_layers_that_stay_get_their_spikes_back(steps: int, radix: bool, overridable: bool) -> None:
    net = Network((3, 6, 7), steps, radix, overridable)
    a = net.neuron(net.conv("x", "stem", 6, pads=[1] * 4, bias=True), "a", static=1, charge=3000)
    b = net.neuron(net.conv(a, "c1", 6, pads=[1] * 4), "b", 500)
    net.conv(b, "c2", 6, pads=[1] * 4)
    large = next(tensor for tensor in net.tensors if tensor.name == "c2_w")
    wide = numpy_helper.to_array(large).copy()
    wide[0, 0, 0, 0] = 128
    large.CopyFrom(numpy_helper.from_array(wide, "c2_w"))
    c = net.neuron("c2", "c", 500)
    d = net.neuron(net.conv(c, "c3", 6), "d", 500)
    net.complete(d, "y")
    model = net.model("y", a)  # spikes may be an output, too
    assert operators(model) == ["CountNeuron", "CountConv", "", ""]
    assert reasons(model)[2:] == [
        "its weights are not whole numbers of 8 bits",
        "`c_n` before it stays",
    ]
    same_bits(model)


def test_what_is_not_proved_stays() -> None:
    def model(charge: float = 1.0, start: float = 0.0, steps: int = 4, width: int = 4) -> Any:
        net = Network((3, 6, 7), steps, True)
        a = net.neuron(net.conv("x", "s", width, bias=True), "a", static=1, charge=3000)
        b = net.neuron(net.conv(a, "c", 6, pads=[1] * 4), "b", 500)
        for tensor in net.tensors:
            if tensor.name in ("b_t", "b_v"):
                value = numpy_helper.to_array(tensor)
                value = value * charge if tensor.name == "b_t" else value + start
                tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))
        net.complete(b, "y")
        return net.model("y")

    assert reasons(model()) == ["", ""]
    assert reasons(model(charge=1.25))[1] == "its thresholds are not whole numbers"
    assert reasons(model(start=0.25))[1] == "its potential at the start is not whole"
    assert operators(model(steps=9)) == ["LevelNeuron"] * 2  # counts up to 511 are no bytes
    same_bits(model(steps=9))
    assert reasons(model(width=1500, steps=8))[1] == "its sums may exceed 2^24"
    same_bits(model(start=0.5))


def test_sessions_collapse_by_themselves() -> None:
    if library.library_path() is None:
        pytest.skip("the native library is not built")
    net = Network((3, 6, 7), 6, False, True)
    a = net.neuron(net.conv("x", "stem", 6, pads=[1] * 4, bias=True), "a", static=1, charge=3000)
    b = net.neuron(net.conv(a, "c1", 6, pads=[1] * 4), "b", 500)
    net.complete(b, "y")
    model = net.model("y")
    x = np.random.default_rng(4).normal(0, 60, (2, 3, 6, 7)).astype(np.float32)
    session = create_session(model)
    (wanted,) = create_session(model, events=False).run(None, {"x": x})
    assert session.run(None, {"x": x})[0].tobytes() == wanted.tobytes()
    # Only the collapsed network has a limit.
    many = {"x": x, "snnc_steps": np.array(300, np.int64)}
    with pytest.raises(Exception, match="by counts at most 255"):
        session.run(None, many)
    create_session(model, events=False).run(None, many)
