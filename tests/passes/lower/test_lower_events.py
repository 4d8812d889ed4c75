"""lower-events: the same network on the event-driven operators, and what stays as it is."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, compile_text, parse, random
from onnx import helper, numpy_helper

from snncompiler.emission import emit as emission
from snncompiler.ir import dialect
from snncompiler.passes.lower import chunks
from snncompiler.passes.lower.lower_events import Lowered, lower_events
from snncompiler.runtime import create_session, library_path

pytestmark = pytest.mark.skipif(library_path() is None, reason="the native library is not built")

#: Residuals with and without a convolution, groups, depthwise, both poolings, a dense layer, and
#: a static side branch.
RESIDUAL = """g (float[N,2,8,8] x) => (float[N,5] y)
{
  c = Conv <pads = [1, 1, 1, 1]> (x, a, ab)  r = Relu (c)
  d = Conv <pads = [1, 1, 1, 1]> (r, b)  dr = Relu (d)
  e = Conv <pads = [1, 1, 1, 1]> (dr, f)  es = Add (e, r)  er = Relu (es)
  g1 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (er, h)
  g2 = Conv <strides = [2, 2]> (er, i)  gs = Add (g1, g2)  gr = Relu (gs)
  p = GlobalAveragePool (gr)  q = Flatten (p)  y = Gemm (q, o)
}"""

POOLED = """g (float[N,2,12,12] x) => (float[N,5] y)
{
  c = Conv <pads = [1, 1, 1, 1]> (x, a, ab)  r = Relu (c)
  m = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (r)
  d = Conv <group = 8, pads = [1, 1, 1, 1]> (m, w)  dr = Relu (d)
  e = Conv <group = 2> (dr, f)  er = Relu (e)
  v = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (er)
  q = Flatten (v)  z = Gemm (q, k, kb)  zr = Relu (z)
  u = Gemm (zr, l)  ur = Relu (u)  y = Gemm (ur, o)
}"""

#: Spike trains side by side: into a max pooling, and beside averages of spikes.
BESIDE = """g (float[N,2,12,12] x) => (float[N,5] y)
{
  c = Conv <pads = [1, 1, 1, 1]> (x, a)  r = Relu (c)
  d = Conv (r, b)  dr = Relu (d)
  e = Conv <pads = [1, 1, 1, 1]> (r, f)  er = Relu (e)
  s = Concat <axis = 1> (dr, er)
  m = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (s)
  g1 = Conv (m, h)  gr = Relu (g1)
  v = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (er)
  t = Concat <axis = -3> (gr, v)
  i1 = Conv <pads = [1, 1, 1, 1]> (t, i)  ir = Relu (i1)
  p = GlobalAveragePool (ir)  q = Flatten (p)  y = Gemm (q, o)
}"""

SIDE = """g (float[N,8,6,6] x) => (float[N,5] y)
{
  c = Conv <pads = [1, 1, 1, 1]> (x, a)  r = Relu (c)
  d = Conv <pads = [1, 1, 1, 1]> (r, b)  s = Add (d, x)  q = Relu (s)
  p = GlobalAveragePool (q)  f = Flatten (p)  y = Gemm (f, o)
}"""


RESIDUAL_WEIGHTS = {
    "a": random(1, 8, 2, 3, 3) / 3,
    "ab": random(2, 8) / 5,
    "b": random(3, 8, 8, 3, 3) / 5,
    "f": random(4, 8, 8, 3, 3) / 5,
    "h": random(5, 20, 8, 3, 3) / 5,
    "i": random(6, 20, 8, 1, 1) / 2,
    "o": random(7, 20, 5),
}
SIDE_WEIGHTS = {
    "a": random(1, 8, 8, 3, 3) / 5,
    "b": random(2, 8, 8, 3, 3) / 5,
    "o": random(3, 8, 5),
}


def residual() -> onnx.ModelProto:
    return compiled(RESIDUAL, RESIDUAL_WEIGHTS)


def pooled() -> onnx.ModelProto:
    weights = {
        "a": random(1, 8, 2, 3, 3) / 3,
        "ab": random(2, 8) / 5,
        "w": random(3, 8, 1, 3, 3) / 2,
        "f": random(4, 6, 4, 1, 1),
        "k": random(5, 54, 7) / 3,
        "kb": random(6, 7) / 5,
        "l": random(7, 7, 6),
        "o": random(8, 6, 5),
    }
    return compiled(POOLED, weights)


def side() -> onnx.ModelProto:
    return compiled(SIDE, SIDE_WEIGHTS)


#: The same without maps; the read-out sums what lies side by side, too.
ROWS = """g (float[N,6] x) => (float[N,5] y)
{
  a = MatMul (x, w)  r = Relu (a)
  b = MatMul (r, k)  br = Relu (b)  c = MatMul (r, l)  cr = Relu (c)
  s = Concat <axis = 1> (br, cr)  d = MatMul (s, m)  dr = Relu (d)
  e = MatMul (dr, o)  f = MatMul (s, p)  y = Add (e, f)
}"""


def rows() -> onnx.ModelProto:
    shapes = {"w": (6, 8), "k": (8, 7), "l": (8, 9), "m": (16, 6), "o": (6, 5), "p": (16, 5)}
    weights = {name: random(i, *shape) / 2 for i, (name, shape) in enumerate(shapes.items())}
    return compiled(ROWS, weights)


def beside() -> onnx.ModelProto:
    weights = {
        "a": random(1, 8, 2, 3, 3) / 3,
        "b": random(2, 6, 8, 1, 1),
        "f": random(3, 10, 8, 3, 3) / 3,
        "h": random(4, 4, 16, 1, 1),
        "i": random(5, 12, 14, 3, 3) / 3,
        "o": random(6, 12, 5),
    }
    return compiled(BESIDE, weights)


NETWORKS = {"residual": residual, "pooled": pooled, "side": side, "beside": beside, "rows": rows}


def compiled(text: str, weights: dict[str, Array], **options: Any) -> onnx.ModelProto:
    source = parse(text, weights)
    return compile_text(source, image(source, 16), **{"steps": 11, **options})


def dyadic(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every constant of its Loop on a grid of 1/256, where sums are exact."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    loop = next(node for node in copy.graph.node if node.op_type == "Loop")
    body = next(entry.g for entry in loop.attribute if entry.name == "body")
    for graph in (copy.graph, body):
        for tensor in graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype == np.float32:
                rounded = np.round(values * 256) / 256
                if tensor.name.endswith("threshold"):
                    rounded = np.maximum(rounded, 1 / 256)
                new = numpy_helper.from_array(rounded.astype(np.float32), tensor.name)
                tensor.CopyFrom(new)
    return copy


def outputs(model: onnx.ModelProto, x: Array, native: bool, threads: int = 1) -> list[Array]:
    session = create_session(model, native=native, threads=threads, events=False)
    result: list[Array] = session.run(None, {session.get_inputs()[0].name: x})
    return result


def image(model: onnx.ModelProto, samples: int) -> Array:
    dims = model.graph.input[0].type.tensor_type.shape.dim
    shape = [samples, *(dim.dim_value for dim in dims[1:])]
    return np.round(random(9, *shape) * 16).astype(np.float32) / 16


def operators(lowered: Lowered) -> list[str]:
    return [layer.operator for layer in lowered.layers]


def test_every_layer_is_lowered() -> None:
    assert operators(lower_events(residual())) == [
        "EventNeuron",
        "EventConv",
        "EventConvAdd",
        "EventConvPair",
    ]
    lowered = lower_events(beside())
    assert operators(lowered) == ["EventNeuron", *["EventConv"] * 4]
    loop = next(node for node in lowered.model.graph.node if node.op_type == "Loop")
    used = {node.op_type for entry in loop.attribute for node in entry.g.node}
    assert {"EventMaxPool", "EventSumPool", "Concat"} <= used and "SpikeMaxPool" not in used
    lowered = lower_events(pooled())
    assert operators(lowered) == ["EventNeuron", *["EventConv"] * 4]
    loop = next(node for node in lowered.model.graph.node if node.op_type == "Loop")
    used = {node.op_type for entry in loop.attribute for node in entry.g.node}
    assert {"EventMaxPool", "EventSumPool", "EventSum"} <= used
    assert not {"SpikeMaxPool", "AveragePool", "Conv", "Gemm", "RMPNeuron"} & used
    assert operators(lower_events(side())) == ["EventNeuron", "EventConv"]


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("network", NETWORKS)
def test_same_bits_where_sums_are_exact(network: str, samples: int) -> None:
    model = dyadic(NETWORKS[network]())
    lowered = lower_events(model).model
    onnx.checker.check_model(lowered)
    x = image(model, samples)
    wanted = outputs(model, x, native=False)
    for native in (True, False):
        for threads in (1, 2):
            for got, want in zip(outputs(lowered, x, native, threads), wanted, strict=True):
                np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)  # the read-out's sums


@pytest.mark.parametrize("network", NETWORKS)
def test_close_elsewhere_and_other_numbers_of_steps(network: str) -> None:
    model = NETWORKS[network]()
    lowered = lower_events(model).model
    session = create_session(lowered, events=False)
    plain = create_session(model, events=False)
    x = image(model, 2)
    for steps, chunk in ((11, 4), (1, 16), (40, 7)):
        feeds = {
            session.get_inputs()[0].name: x,
            "snnc_steps": np.array(steps),
            "snnc_chunk": np.array(chunk),
        }
        for got, want in zip(session.run(None, feeds), plain.run(None, feeds), strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=0.1 * np.abs(want).max())


def test_sessions_lower_by_themselves() -> None:
    model = residual()
    x = image(model, 2)
    by_itself = create_session(model, threads=1).run(None, {"x": x})
    expected = outputs(lower_events(model).model, x, native=True)
    np.testing.assert_array_equal(by_itself[0], expected[0])
    as_bytes = create_session(model.SerializeToString(), threads=1).run(None, {"x": x})
    np.testing.assert_array_equal(as_bytes[0], expected[0])


def test_chunks_are_longer_where_weights_come_from_far(monkeypatch: pytest.MonkeyPatch) -> None:
    def chunk(model: onnx.ModelProto) -> int:
        (found,) = {int(e.value) for e in model.metadata_props if e.key == "snnc.chunk"}
        (default,) = (t for t in model.graph.initializer if t.name == "snnc_chunk")
        assert int(numpy_helper.to_array(default)) == found
        return found

    model = compiled(RESIDUAL, RESIDUAL_WEIGHTS, steps=40)
    assert chunk(lower_events(model).model) == chunks.MAX_CHUNK == 16
    size = chunks.bytes_of_weights(lower_events(model).model.graph)
    weights = sum(
        value.nbytes for name, value in RESIDUAL_WEIGHTS.items() if name not in ("a", "ab")
    )
    assert weights <= size < 10 * weights  # with biases, thresholds and schedules
    monkeypatch.setattr(chunks, "FAR_BYTES", size)
    assert chunk(lower_events(model).model) == 16
    monkeypatch.setattr(chunks, "FAR_BYTES", size - 1)
    assert chunk(lower_events(model).model) == 32
    # What the memory of the portable file has cut short, and what has fewer steps, does not get there.
    assert chunk(lower_events(compiled(RESIDUAL, RESIDUAL_WEIGHTS, steps=11)).model) == 11
    monkeypatch.setattr(emission, "CHUNK_BYTES", 20_000)
    assert chunk(compiled(RESIDUAL, RESIDUAL_WEIGHTS, steps=40)) < 16
    assert chunk(lower_events(compiled(RESIDUAL, RESIDUAL_WEIGHTS, steps=40)).model) == 16


def test_one_threshold_for_a_layer() -> None:
    model = compiled(RESIDUAL, RESIDUAL_WEIGHTS, per_channel=False, initial=0.0)
    lowered = lower_events(model)
    assert all(operators(lowered)), lowered.layers
    x = image(model, 2)
    got, want = outputs(lowered.model, x, True)[0], outputs(model, x, False)[0]
    np.testing.assert_allclose(got, want, rtol=0, atol=0.1 * np.abs(want).max())


def test_what_is_not_understood_stays_with_a_reason() -> None:
    text = """g (float[N,2,6,6] x) => (float[N,4,12,6] y)
    {
      c = Conv <pads = [1, 1, 1, 1]> (x, a)  r = Relu (c)
      u = Concat <axis = 2> (r, r)
      d = Conv <pads = [1, 1, 1, 1]> (u, b)  y = Relu (d)
    }"""
    weights = {"a": random(1, 4, 2, 3, 3), "b": random(2, 4, 4, 3, 3)}
    model = compiled(text, weights)
    lowered = lower_events(model)
    first, second = lowered.layers
    assert first.operator == "EventNeuron" and not first.reason
    assert not second.operator and "Concat" in second.reason
    x = image(model, 2)
    np.testing.assert_allclose(
        outputs(lowered.model, x, True)[0], outputs(model, x, False)[0], rtol=0, atol=1e-5
    )


def test_other_neurons_and_other_models_stay() -> None:
    model = compiled(RESIDUAL, RESIDUAL_WEIGHTS, reset="hard")
    lowered = lower_events(model)
    assert not lowered.changed and lowered.model is model
    half = lower_events(compiled(RESIDUAL, RESIDUAL_WEIGHTS, precision="fp16"))
    assert not half.changed and "float16" in half.layers[0].reason
    plain = parse(SIDE, SIDE_WEIGHTS)
    assert lower_events(plain).model is plain
    assert not lower_events(plain).layers


def in_order(graph: onnx.GraphProto) -> bool:
    """Whether every node reads what stands before it."""
    known = {"", *(one.name for one in (*graph.initializer, *graph.input))}
    for node in graph.node:
        if not known.issuperset(node.input):
            return False
        known.update(node.output)
    return True


def test_spikes_and_states_that_are_read_keep_their_names_and_layout() -> None:
    """An extra output of the Loop's body, as `snnc watch` adds it, still has its channels first."""
    model = residual()
    lowered = lower_events(model).model
    for candidate in (model, lowered):
        loop = next(node for node in candidate.graph.node if node.op_type == "Loop")
        final = next(name for name in loop.output if "membrane" in name)
        candidate.graph.output.append(helper.make_tensor_value_info(final, 1, None))
    again = lower_events(model).model
    assert in_order(model.graph) and in_order(again.graph)
    x = image(model, 2)
    want, got = outputs(model, x, False), outputs(again, x, True)
    assert [array.shape for array in got] == [array.shape for array in want]
    np.testing.assert_allclose(got[1], want[1], rtol=0, atol=1e-4)


def test_bodies_of_all_operators_are_attached() -> None:
    lowered = lower_events(residual()).model
    have = {function.name for function in lowered.functions if function.domain == dialect.DOMAIN}
    assert {"EventNeuron", "EventConv", "EventConvAdd", "EventConvPair"} <= have
    assert "ScheduledRMPNeuron" in have and "RMPNeuron" not in have


# --- sizes that coincide: an axis is told by its place, never by its size ---

#: Channels, height, width and features all have the size 4.
EQUAL_SHAPES = {
    "a": (4, 4, 3, 3),
    "b": (4, 4, 3, 3),
    "k": (4, 4, 1, 1),
    "one": (1, 4, 1, 1),
    "m": (4, 4),
    "g": (4, 1, 3, 3),
    "t": (4, 4, 2, 2),
    "tg": (4, 1, 2, 2),
    "line": (4, 4, 3),
    "cube": (4, 4, 3, 3, 3),
    "v": (4,),
    "w": (64, 4),
    "wide": (8, 4, 1, 1),
    "whole": (4, 4, 4, 4),
    "pair": (2, 2),
}
RAMP = np.array([-1.5, -0.5, 0.75, 1.25], np.float32)
EQUAL_WEIGHTS: dict[str, Array] = {
    **{
        name: np.round(random(seed, *shape) * 64 / float(np.prod(shape[1:])) ** 0.5) / 64
        for seed, (name, shape) in enumerate(EQUAL_SHAPES.items())
    },
    "ramp": RAMP,
    "row": RAMP.reshape(1, 4),
    "column": RAMP.reshape(4, 1),
    "channel": RAMP.reshape(4, 1, 1),
    "slope": np.abs(RAMP) / 4,
    "half": np.array(0.5, np.float32),
    "first": np.array([0], np.int64),
    "end": np.array([2**31 - 1], np.int64),
    "height": np.array([-2], np.int64),
    "places": np.array([0, 4, 1, 1], np.int64),
    "two": np.array([2], np.int64),
    "beside": np.array([0, 2, 0, 0, 0, 2, 0, 0], np.int64),
    "below": np.array([0, 0, 2, 0, 0, 0, 2, 0], np.int64),
}

#: A layer that stays behind one that is lowered, and what is wrong with it.
STAY = {
    "matmul along the last axis": "p = MatMul (r, m)  y = Relu (p)",
    "matmul from the left": "p = MatMul (m, r)  y = Relu (p)",
    "add [W]": "p = Add (d, ramp)  y = Relu (p)",
    "add [1, W]": "p = Add (row, d)  y = Relu (p)",
    "add [H, 1]": "p = Add (d, column)  y = Relu (p)",
    "subtract [W]": "p = Sub (ramp, d)  y = Relu (p)",
    "multiply by [W]": "p = Mul (r, ramp)  q = Conv (p, k)  y = Relu (q)",
    "multiply by [H, 1]": "p = Mul (column, r)  q = Conv (p, k)  y = Relu (q)",
    "divide by [W]": "p = Div (r, ramp)  q = Conv (p, k)  y = Relu (q)",
    "multiply a residual by [W]": "p = Mul (r, ramp)  q = Add (d, p)  y = Relu (q)",
    "a residual of one place": """
      p = AveragePool <kernel_shape = [4, 4]> (r)  q = Add (d, p)  y = Relu (q)""",
    "a residual pooled globally": "p = GlobalAveragePool (r)  q = Add (d, p)  y = Relu (q)",
    "a residual of one row": """
      p = AveragePool <kernel_shape = [4, 1]> (r)  q = Add (d, p)  y = Relu (q)""",
    "a residual of one column": """
      p = AveragePool <kernel_shape = [1, 4]> (r)  q = Add (p, d)  y = Relu (q)""",
    "a convolution of one channel": "p = Conv (r, one)  q = Add (p, r)  y = Relu (q)",
    "a convolution of one place": "p = Conv (r, whole)  q = Add (p, r)  y = Relu (q)",
    "static [N, C, 1, 1]": "p = GlobalAveragePool (x)  q = Add (d, p)  y = Relu (q)",
    "static [N, 1, H, W]": "p = Conv (x, one)  q = Add (p, d)  y = Relu (q)",
    "axes that change places": """
      p = Transpose <perm = [0, 3, 2, 1]> (r)  q = Add (d, p)  y = Relu (q)""",
    "silent rows": "p = Pad (r, below)  q = Conv (p, k)  y = Relu (q)",
    "side by side in width": "p = Concat <axis = -1> (r, r)  q = Conv (p, k)  y = Relu (q)",
    "transposed": "p = ConvTranspose (r, t)  y = Relu (p)",
    "transposed by groups": "p = ConvTranspose <group = 4> (r, tg)  y = Relu (p)",
}
#: A layer that is lowered behind one that is.
FALL = {
    "add [C, 1, 1]": ("p = Add (d, channel)  y = Relu (p)", "EventConv"),
    "add a number": ("p = Add (half, d)  y = Relu (p)", "EventConv"),
    "a residual times [C, 1, 1]": (
        "p = Mul (r, channel)  q = Add (d, p)  y = Relu (q)",
        "EventConvAdd",
    ),
    "static [N, C, H, W]": ("p = Conv (x, k)  q = Add (p, d)  y = Relu (q)", "EventConv"),
    "every second row": (
        """p = Slice (r, first, end, height, two)  q = Conv <strides = [2, 1]> (r, k)
        s = Add (q, p)  y = Relu (s)""",
        "EventConvPair",
    ),
    "silent channels": (
        "p = Pad (r, beside)  q = Conv (r, wide)  s = Add (q, p)  y = Relu (s)",
        "EventConvPair",
    ),
    "groups": (
        "p = Conv <group = 4, pads = [1, 1, 1, 1]> (r, g)  y = Relu (p)",
        "EventConv",
    ),
    "maps into rows": (
        "p = Flatten <axis = -3> (r)  q = Gemm (p, w, v)  s = Relu (q)  y = Reshape (s, places)",
        "EventConv",
    ),
}
#: Inputs of other ranks: declaration, shape, network, and what its layers become.
RANKS: dict[str, tuple[str, tuple[int, ...], str, list[str]]] = {
    "rows": (
        "N,4",
        (4,),
        "c = MatMul (x, m)  r = Relu (c)  p = Gemm (r, m, v)  q = Add (row, p)  y = Relu (q)",
        ["EventNeuron", "EventConv"],
    ),
    "sequences": (
        "N,4,4",
        (4, 4),
        "c = MatMul (x, m)  r = Relu (c)  p = MatMul (r, m)  y = Relu (p)",
        ["", ""],
    ),
    "sequences of any length": (
        "N,L,4",
        (4, 4),
        "c = MatMul (x, m)  r = Relu (c)  p = MatMul (r, m)  y = Relu (p)",
        ["", ""],
    ),
    "one axis of space": (
        "N,4,4",
        (4, 4),
        "c = Conv <pads = [1, 1]> (x, line)  r = Relu (c)  p = Conv (r, line)  y = Relu (p)",
        ["", ""],
    ),
    "three axes of space": (
        "N,4,4,4,4",
        (4, 4, 4, 4),
        "c = Conv (x, cube)  r = Relu (c)  p = MatMul (r, pair)  y = Relu (p)",
        ["", ""],
    ),
    "one number": ("N", (), "c = Mul (x, half)  y = Relu (c)", [""]),
}


FIRST = "c = Conv <pads = [1, 1, 1, 1]> (x, a)  r = Relu (c)  "


def equal_sizes(text: str, declared: str, *shape: int) -> tuple[onnx.ModelProto, Array]:
    """A compiled network whose sums are exact, and what goes in."""
    used = set(re.findall(r"\w+", text))
    weights = {name: array for name, array in EQUAL_WEIGHTS.items() if name in used}
    result = "N" + ",?" * len(shape)
    source = parse(f"g (float[{declared}] x) => (float[{result}] y) {{ {text} }}", weights)
    x = np.round(random(9, 5, *shape) * 16).astype(np.float32) / 16
    return dyadic(compile_text(source, x, steps=7)), x


def check_equal_sizes(model: onnx.ModelProto, x: Array, layers: list[str]) -> None:
    """What the layers become; and the default session gives what the function bodies give."""
    lowered = lower_events(model)
    assert operators(lowered) == layers, lowered.layers
    wanted = outputs(model, x, native=False)[0]
    assert np.unique(wanted).size > 3
    found = create_session(model, threads=1).run(None, {"x": x})[0]
    # Sums are exact but for those of the read-out.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    if lowered.changed:
        found = outputs(lowered.model, x, native=False)[0]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("text", STAY.values(), ids=STAY)
def test_a_layer_that_is_not_proved_stays(text: str) -> None:
    # A convolution of the same spikes where the layer adds something to it.
    conv = "d = Conv <pads = [1, 1, 1, 1]> (r, b)  " if re.search(r"\bd\b", text) else ""
    check_equal_sizes(*equal_sizes(FIRST + conv + text, "N,4,4,4", 4, 4, 4), ["EventNeuron", ""])


@pytest.mark.parametrize(("text", "operator"), FALL.values(), ids=FALL)
def test_a_layer_that_is_proved_is_lowered(text: str, operator: str) -> None:
    conv = "d = Conv <pads = [1, 1, 1, 1]> (r, b)  "
    for declared in ("N,4,4,4", "N,4,H,W"):
        if declared == "N,4,H,W" and "Flatten" in text:
            continue
        model, x = equal_sizes(FIRST + conv + text, declared, 4, 4, 4)
        check_equal_sizes(model, x, ["EventNeuron", operator])


@pytest.mark.parametrize(("declared", "shape", "text", "layers"), RANKS.values(), ids=RANKS)
def test_layers_of_every_rank(
    declared: str, shape: tuple[int, ...], text: str, layers: list[str]
) -> None:
    check_equal_sizes(*equal_sizes(text, declared, *shape), layers)
