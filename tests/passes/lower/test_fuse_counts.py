"""Layers by counts that are one node: the bytes of the nodes that they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from snncompiler.ir import dialect
from snncompiler.passes.lower.fuse_counts import FUSED, fuse_counts
from snncompiler.runtime import create_session, library

pytest.importorskip("onnxruntime")

Array = NDArray[Any]
WINDOW: dict[str, Any] = {"strides": [1, 1], "pads": [1] * 4, "dilations": [1, 1]}


class Counts:
    """A random network by counts."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors = [numpy_helper.from_array(np.array(15, np.int64), "levels")]
        self.channels = {"x": 3}

    def tensor(self, name: str, values: Array, kind: Any) -> str:
        self.tensors.append(numpy_helper.from_array(values.astype(kind), name))
        return name

    def node(self, op: str, inputs: list[str], out: str, domain: str = "", **more: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [out], f"{out}_n", domain=domain, **more))
        self.channels.setdefault(out, self.channels[inputs[0]])
        return out

    def neurons(self, out: str, kind: Any = np.int32, threshold: int = 400) -> list[str]:
        count = self.channels[out]
        charge = self.rng.integers(threshold // 2, threshold, count)
        start = self.tensor(f"{out}_start", charge // 2, kind)
        return [start, self.tensor(f"{out}_charge", charge, kind), "levels"]

    def weights(self, x: str, out: str, kernel: int) -> str:
        shape = (kernel, kernel, self.channels[x], self.channels[out])
        return self.tensor(f"{out}_{x}_w", self.rng.integers(-127, 128, shape), np.int8)

    def read(self, current: str, out: str, charge: int = 30) -> str:
        self.channels[out] = self.channels[current]
        ports = self.neurons(out, np.float32, charge)
        return self.node("CountNeuron", [current, *ports], out, dialect.DOMAIN, top=255)

    def conv(self, x: str, out: str, channels: int, kind: str = "", other: str = "") -> str:
        self.channels[out] = channels
        inputs = [x, self.weights(x, out, 3)]
        more = {"group": 1, "origin": 0, "top": 255, "levels_in": 0, **WINDOW}
        if kind == "Add":
            charge = self.rng.integers(-900, 900, channels)
            inputs += [other, self.tensor(f"{out}_c", charge, np.int32)]
        if kind == "Pair":
            inputs += [other, self.weights(other, out, 1)]
            more |= {"more_strides": [1, 1], "more_pads": [0] * 4, "more_dilations": [1, 1]}
            more["more_levels_in"] = 0
        ports = self.neurons(out)
        return self.node(f"CountConv{kind}", [*inputs, *ports], out, dialect.DOMAIN, **more)

    def pool(self, x: str, out: str) -> str:
        more = {"kernel_shape": [3, 3], **WINDOW}
        return self.node("CountMaxPool", [x], out, dialect.DOMAIN, **more)

    def floats(self, x: str, out: str) -> str:
        wide = self.node("Cast", [x], f"{out}_wide", to=TensorProto.FLOAT)
        return self.node("Transpose", [wide], out, perm=[0, 3, 1, 2])

    def model(self, *outputs: str) -> onnx.ModelProto:
        kinds = {
            name: TensorProto.UINT8 if node.domain else TensorProto.FLOAT
            for node in self.nodes
            for name in node.output
        }
        opset = dialect.BASE_OPSET
        return helper.make_model(
            helper.make_graph(
                self.nodes,
                "counts",
                [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])],
                [helper.make_tensor_value_info(name, kinds[name], None) for name in outputs],
                initializer=self.tensors,
            ),
            opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(dialect.DOMAIN, 1)],
            ir_version=8,
            functions=dialect.functions({n.op_type for n in self.nodes if n.domain}, opset),
        )


def deep(seed: int = 1) -> onnx.ModelProto:
    """Every operator, values that are read late or go out, and a second region behind floats."""
    net = Counts(seed)
    a = net.conv(net.read("x", "in"), "a", 24)
    b = net.conv(a, "b", 24)
    c = net.conv(b, "c", 24, "Add", a)
    d = net.pool(c, "d")
    e = net.conv(d, "e", 40, "Pair", a)
    f = net.conv(e, "f", 20)
    back = net.read(net.floats(f, "floats"), "back", 4)
    g = net.conv(back, "g", 16, "Pair", e)
    return net.model(net.floats(g, "y"), c, g)


def test_layers_become_one_node_for_each_region() -> None:
    model = deep()
    assert fuse_counts(model)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds == [FUSED, "Cast", "Transpose", FUSED, "Cast", "Transpose"]
    first, second = (node for node in model.graph.node if node.op_type == FUSED)
    assert list(first.output) == ["c", "e", "f"]  # `a` is read within only
    assert list(second.output) == ["g"]
    assert not [entry for entry in model.functions if entry.name.startswith("Count")]
    plain = helper.make_model(
        helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [], [])
    )
    assert not fuse_counts(plain)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_one_node_gives_the_bytes_of_many(threads: int) -> None:
    if library.library_path() is None:
        pytest.skip("the native library is not built")
    model = deep(threads)
    bodies = create_session(model, native=False)
    many = create_session(model, threads=threads, events=False)
    one = create_session(model, threads=threads)
    rng = np.random.default_rng(threads)
    # Sizes change from call to call, and with them whether threads are shared.
    for samples, height, width in [(2, 5, 6), (9, 33, 31), (1, 1, 1), (3, 20, 20), (0, 4, 4)]:
        x = rng.normal(0, 200, (samples, 3, height, width)).astype(np.float32)
        wanted = bodies.run(None, {"x": x}) if samples else many.run(None, {"x": x})
        for session in (many, one, one):
            for a, b in zip(session.run(None, {"x": x}), wanted, strict=True):
                assert a.shape == b.shape and a.tobytes() == b.tobytes()
        assert not samples or np.ptp(wanted[0]) > 0


def test_faults_are_told_with_the_node() -> None:
    if library.library_path() is None:
        pytest.skip("the native library is not built")
    net = Counts(2)
    net.conv(net.conv(net.read("x", "in"), "a", 8), "b", 8, "Add", "in")
    session = create_session(net.model("b"), threads=2)
    with pytest.raises(Exception, match=r"CountNetwork.*`residual` of shape"):
        session.run(None, {"x": np.zeros((1, 3, 4, 4), np.float32)})
