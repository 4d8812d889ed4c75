"""Synaptic operations: against brute force, and the same in every form of a file."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, compile_text, parse, random
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import snncompiler
from snncompiler.analysis import walk
from snncompiler.analysis.count import macs_of
from snncompiler.analysis.evaluation import Evaluation
from snncompiler.emission.compiled import read_compiled
from snncompiler.ir.synapses import Axis, Synapses, synapses_of
from snncompiler.runtime import create_session, library_path

STEPS, SAMPLES = 6, 3

#: Stride, padding on one side, dilation, groups, both poolings, a Concat, a residual, dense layers.
NETWORK = """g (float[N,2,9,9] x) => (float[N,5] y)
{
  c = Conv <pads = [1, 1, 1, 1]> (x, a, ab)  r = Relu (c)
  m = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (r)
  d = Conv <group = 2, pads = [2, 0, 2, 1], dilations = [2, 1]> (m, b)  dr = Relu (d)
  two = Concat <axis = 1> (dr, m)
  e = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (two, w)  er = Relu (e)
  f = Conv <pads = [1, 1, 1, 1]> (er, h)  fs = Add (f, er)  fr = Relu (fs)
  v = AveragePool <kernel_shape = [2, 2]> (fr)
  i = Conv (v, k)  ir = Relu (i)
  q = Flatten (ir)  z = Gemm (q, l)  zr = Relu (z)
  y = Gemm (zr, o)
}"""


def on_a_grid(seed: int, *shape: int) -> Array:
    return np.round(random(seed, *shape) * 32).astype(np.float32) / 64


WEIGHTS = {
    "a": on_a_grid(1, 4, 2, 3, 3),
    "ab": on_a_grid(2, 4),
    "b": on_a_grid(3, 4, 2, 3, 2),
    "w": on_a_grid(4, 6, 8, 3, 3),
    "h": on_a_grid(5, 6, 6, 3, 3),
    "k": on_a_grid(6, 3, 6, 1, 1),
    "l": on_a_grid(7, 12, 7),
    "o": on_a_grid(8, 7, 5),
}
X = on_a_grid(9, SAMPLES, 2, 9, 9)


def source() -> onnx.ModelProto:
    return parse(NETWORK, WEIGHTS)


def compiled(**options: Any) -> onnx.ModelProto:
    return compile_text(source(), on_a_grid(10, 16, 2, 9, 9), **{"steps": STEPS, **options})


def evaluated(snn: onnx.ModelProto, **options: Any) -> Evaluation:
    return snncompiler.evaluate(source(), snn, X, threads=1, **options)


def body_of(model: onnx.ModelProto) -> tuple[onnx.NodeProto, onnx.GraphProto]:
    loop = next(node for node in model.graph.node if node.op_type == "Loop")
    return loop, next(entry.g for entry in loop.attribute if entry.name == "body")


def by_brute_force(snn: onnx.ModelProto, steps: int = STEPS) -> dict[str, tuple[int, int]]:
    """Every layer's SynOps and dense operations, from what the Loop's layers really read."""
    copy = onnx.ModelProto.FromString(snn.SerializeToString())
    loop, body = body_of(copy)
    weights = {
        t.name: numpy_helper.to_array(t) for t in (*copy.graph.initializer, *body.initializer)
    }
    nodes = [node for node in body.node if node.op_type in ("Conv", "Gemm")]
    for node in nodes:
        body.node.append(helper.make_node("Identity", [node.input[0]], [f"seen/{node.name}"]))
        info = helper.make_tensor_value_info(f"seen/{node.name}", TensorProto.FLOAT, None)
        body.output.append(info)
        loop.output.append(f"all/{node.name}")
        copy.graph.output.append(
            helper.make_tensor_value_info(f"all/{node.name}", TensorProto.FLOAT, None)
        )
    names = [f"all/{node.name}" for node in nodes]
    feeds = {"x": X, "snnc_steps": np.array(steps), "snnc_chunk": np.array(1)}
    values = create_session(copy, native=False, threads=1).run(names, feeds)
    return {
        node.name: counted(node, np.concatenate(value), weights[node.input[1]])
        for node, value in zip(nodes, values, strict=True)
    }


def counted(node: onnx.NodeProto, read: Array, weights: Array) -> tuple[int, int]:
    """Non-zero and all products of a layer, one output position and one tap after the other."""
    some = read != 0
    if node.op_type == "Gemm":
        outputs = weights.shape[0 if any(a.name == "transB" and a.i for a in node.attribute) else 1]
        return int(some.sum()) * outputs, some.size * outputs
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    top, left, bottom, right = attributes.get("pads", [0] * 4)
    some = np.pad(some, ((0, 0), (0, 0), (top, bottom), (left, right)))
    there = np.pad(np.ones_like(read, bool), ((0, 0), (0, 0), (top, bottom), (left, right)))
    (sy, sx), (dy, dx) = attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1])
    height, width = weights.shape[2:]
    done = dense = 0
    for y in range(0, some.shape[2] - (height - 1) * dy, sy):
        for x in range(0, some.shape[3] - (width - 1) * dx, sx):
            for i in range(height):
                for j in range(width):
                    done += int(some[:, :, y + i * dy, x + j * dx].sum())
                    dense += int(there[:, :, y + i * dy, x + j * dx].sum())
    outputs = len(weights) // int(attributes.get("group", 1))
    return done * outputs, dense * outputs


def layers_in_order(snn: onnx.ModelProto) -> list[tuple[int, int]]:
    return list(by_brute_force(snn).values())


@pytest.mark.parametrize("native", [True, False])
def test_against_brute_force(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(walk, "runs_events", lambda: False)
        original = create_session
        monkeypatch.setattr(
            walk, "create_session", lambda *a, **o: original(*a, **{**o, "native": False})
        )
    elif library_path() is None:
        pytest.skip("the native library is not built")
    snn = compiled()
    expected = layers_in_order(snn)
    assert len(expected) == 5 and all(0 < done < dense for done, dense in expected)
    (result,) = evaluated(snn).results
    found = [(part.done * SAMPLES, part.dense * SAMPLES) for part in result.synops]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    total = result.all_synops
    assert total.done * SAMPLES == pytest.approx(sum(done for done, _ in expected))
    assert total.avoided == pytest.approx(total.dense - total.done)


FORMS: list[dict[str, Any]] = [
    {"unroll": "loop"},
    {"unroll": "steps"},
    {"chunk": 4},
    {"target": "cpu"},
    {"target": "cpu", "unroll": "loop"},
    {"emit": "cuda-graph", "batch": 2},
]


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_the_same_in_every_form(options: dict[str, Any]) -> None:
    """A fixed batch that is filled up counts no sample twice."""
    plain, other = evaluated(compiled()), evaluated(compiled(**options))
    # Convolutions of other shapes may sum in another order, and a spike may move.
    for mine, part in zip(plain.results[0].synops, other.results[0].synops, strict=True):
        assert part.layer == mine.layer and part.dense == mine.dense
        assert part.done == pytest.approx(mine.done, rel=0.02)
    assert other.macs == plain.macs


def test_at_every_number_of_steps_and_beside_the_currents() -> None:
    snn = compiled(chunk=2)
    together = evaluated(snn, steps=[2, 4, 6]).results
    for result in together:
        expected = by_brute_force(snn, result.steps)
        found = [part.done * SAMPLES for part in result.synops]
        np.testing.assert_allclose(found, [done for done, _ in expected.values()], rtol=0.02)
    diagnosed = evaluated(snn, steps=[2, 4, 6], diagnose=True)
    for first, second in zip(together, diagnosed.results, strict=True):
        assert second.all_synops.done == pytest.approx(first.all_synops.done, rel=0.02)
    assert {note.reason for note in diagnosed.events} == {"--diagnose looks at the currents"}


def test_multiply_accumulates() -> None:
    """Those of the ANN are all layers once, taps in the padding left out."""
    snn = compiled()
    macs = macs_of(read_compiled(snn))
    assert macs is not None
    dense = [part for _, part in by_brute_force(snn, 1).values()]
    assert list(macs.layers.values()) == [part // SAMPLES for part in dense]
    # The first layer reads 9 places in 9 - 2/3 of them a row; the last one has 7 inputs.
    assert macs.once == 2 * 25 * 25 * 4 + 7 * 5
    assert macs.ann == macs.a_step + macs.once
    assert evaluated(snn).macs == macs


def test_unknown_shapes_have_no_count() -> None:
    text = "g (float[N,2,H,W] x) => (float[N,2,H,W] y) { y = Relu (x) }"
    assert macs_of(read_compiled(compile_text(parse(text), random(0, 4, 2, 3, 3)))) is None


@given(
    size=st.integers(1, 12),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 3),
    pads=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_reads_of_an_axis(
    size: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int]
) -> None:
    expected = np.zeros(size, np.int64)
    start = -pads[0]
    while start + (kernel - 1) * dilation < size + pads[1]:
        for tap in range(kernel):
            if 0 <= start + tap * dilation < size:
                expected[start + tap * dilation] += 1
        start += stride
    assert np.array_equal(Axis(kernel, stride, dilation, pads).reads(size), expected)


ONE_NODE = [
    ("Conv <auto_pad = \"SAME_UPPER\", strides = [2, 2]> (x, w)", (1, 2, 7, 6), (3, 2, 3, 2)),
    ("Conv <auto_pad = \"SAME_LOWER\", strides = [2, 1]> (x, w)", (1, 2, 6, 5), (3, 2, 4, 2)),
    ("Conv <auto_pad = \"VALID\"> (x, w)", (1, 2, 6, 5), (3, 2, 4, 2)),
    ("Conv <group = 2> (x, w)", (1, 2, 6), (4, 1, 3)),
    ("ConvTranspose <strides = [2, 2], pads = [1, 0, 1, 1]> (x, w)", (1, 2, 4, 5), (2, 3, 3, 3)),
    ("ConvTranspose <strides = [2, 2], auto_pad = \"SAME_UPPER\"> (x, w)", (1, 2, 4, 5), (2, 3, 3, 3)),
    ("ConvTranspose <strides = [2, 2], auto_pad = \"SAME_LOWER\"> (x, w)", (1, 2, 4, 5), (2, 3, 3, 3)),
    ("ConvTranspose <strides = [3, 2], output_padding = [1, 1]> (x, w)", (1, 2, 4, 5), (2, 3, 2, 3)),
    ("ConvTranspose <strides = [2], output_shape = [8], group = 2> (x, w)", (1, 2, 4), (2, 1, 3)),
    ("Gemm <transB = 1> (x, w)", (3, 4), (5, 4)),
    ("Gemm (w, x)", (4, 3), (5, 4)),
    ("Gemm <transA = 1> (w, x)", (4, 3), (4, 5)),
    ("MatMul (x, w)", (2, 3, 4), (4, 5)),
    ("MatMul (w, x)", (2, 4, 3), (5, 4)),
    ("MatMul (x, w)", (3, 4), (2, 4, 5)),
    ("MatMul (x, w)", (3, 4), (4,)),
]  # fmt: skip


@pytest.mark.parametrize(("text", "shape", "weights"), ONE_NODE, ids=str)
def test_fan_out_is_what_onnxruntime_adds(
    text: str, shape: tuple[int, ...], weights: tuple[int, ...]
) -> None:
    """With all weights 1, one spike at a place adds up to its fan-out."""
    dims = ",".join(map(str, shape))
    model = parse(
        f"g (float[{dims}] x) => (float y) {{ z = {text} y = ReduceSum <keepdims = 0> (z) }}"
    )
    ones = numpy_helper.from_array(np.ones(weights, np.float32), "w")
    model.graph.initializer.append(ones)
    (found,) = synapses_of(model.graph.node[0], {"w": ones})
    assert isinstance(found, Synapses) and found.source == "x"
    session = create_session(model, threads=1)
    fan = np.broadcast_to(found.fan_out(shape), shape)
    for place in np.ndindex(*shape):
        x = np.zeros(shape, np.float32)
        x[place] = 1
        assert session.run(None, {"x": x})[0] == fan[place], place
    assert found.dense(shape) == fan.sum() == found.done(np.ones(shape, np.float32))
