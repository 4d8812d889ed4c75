"""track-batch: what was exported for one sample takes any number, or says where it cannot."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import (
    Array,
    after,
    assert_close,
    compile_text,
    parse,
    random,
    run_model,
)

from snncompiler import pipeline
from snncompiler.emission.compiled import read_compiled
from snncompiler.errors import Refused
from snncompiler.ir.graph import BATCH

#: The same products summed for one sample and for three, perhaps in another order: at most 100
#: float32 roundings of 2^-24.
ORDER = 100 * 2.0**-24


def three_alone(model: onnx.ModelProto, x: Array) -> list[Array]:
    """The outputs of the source for three samples, run one by one."""
    runs = [run_model(model, x=x[i : i + 1]) for i in range(3)]
    return [np.concatenate(parts) for parts in zip(*runs, strict=True)]


def tracked(text: str, *shape: int, weights: dict[str, Array] | None = None) -> pipeline.Prepared:
    """Prepared, any batch, and three samples at once give what the source gives one by one."""
    model = parse(text, weights)
    prepared = pipeline.prepare(model)
    assert prepared.any_batch, prepared.context.batch_lost
    assert prepared.graph.inputs[0].shape[0] == BATCH
    x = random(3, 3, *shape)
    for now, before in zip(run_model(prepared.ann, x=x), three_alone(model, x), strict=True):
        assert_close(now, before, relative=ORDER)
    return prepared


STATIC = {
    "reshape": ("r = Reshape (x, t)", "int64[3] t = {1, 8, 4}", "1,8,4"),
    "reshape with -1": ("r = Reshape (x, t)", "int64[3] t = {1, -1, 2}", "1,16,2"),
    "reshape -1 first": ("r = Reshape (x, t)", "int64[2] t = {-1, 32}", "1,32"),
    "reshape 0": ("r = Reshape (x, t)", "int64[3] t = {0, 0, -1}", "1,2,16"),
    "unsqueezed": ("r = Unsqueeze (x, t)", "int64[1] t = {1}", "1,1,2,4,4"),
    "flatten": ("r = Flatten (x)", "int64 t = {0}", "1,32"),
    "flatten 2": ("m = ReduceMean <axes = [1]> (x)  r = Flatten <axis = 2> (m)",
        "int64 t = {0}", "1,16"),
    "flatten to one row": ("r = Flatten <axis = 0> (x)", "int64 t = {0}", "1,32"),
    "flatten at -rank": ("r = Flatten <axis = -4> (x)", "int64 t = {0}", "1,32"),
    "flatten from the end": ("r = Flatten <axis = -3> (x)", "int64 t = {0}", "1,32"),
    # Of four axes again: the second is no batch.
    "an axis in front of the batch": (
        "u = Unsqueeze (x, t)  q = Squeeze (u, t)  r = Softmax <axis = 1> (q)",
        "int64[1] t = {0}", "1,2,4,4"),
    "unsqueeze from the end": ("r = Unsqueeze (x, t)", "int64[2] t = {-1, -5}", "1,1,2,4,4,1"),
    "split from the end": ("r, q = Split <axis = -1> (x)", "int64 t = {0}", "1,2,4,2"),
    "concat from the end": ("r = Concat <axis = -3> (x, x)", "int64 t = {0}", "1,4,4,4"),
    "softmax from the end": ("r = Softmax <axis = -3> (x)", "int64 t = {0}", "1,2,4,4"),
    "a slice of all": ("r = Slice (x, t, e)", "int64[1] t = {0}, int64[1] e = {9223372036854775807}",
        "1,2,4,4"),
    "a sum of nothing": ("r = ReduceSum <noop_with_empty_axes = 1> (x)", "int64 t = {0}", "1,2,4,4"),
    "layer norm": ("r = LayerNormalization <axis = -3> (x, t)", "float[2,1,1] t = {1, 2}", "1,2,4,4"),
    "squeeze": (
        "m = ReduceMean <axes = [2, 3]> (x)  r = Squeeze (m, t)", "int64[2] t = {-1, 2}", "1,2"),
    "transpose": ("r = Transpose <perm = [0, 2, 3, 1]> (x)", "int64 t = {0}", "1,4,4,2"),
    "resize to sizes": ('r = Resize <mode = "linear"> (x, , , t)', "int64[4] t = {1, 2, 8, 6}",
        "1,2,8,6"),
    "resize down": ('r = Resize (x, , , t)', "int64[4] t = {1, 2, 3, 3}", "1,2,3,3"),
    "slice": ("r = Slice (x, t, e, t)", "int64[1] t = {1}, int64[1] e = {2}", "1,1,4,4"),
    "slice from the end": (
        "r = Slice (x, t, e, a)",
        "int64[1] t = {-2}, int64[1] e = {9}, int64[1] a = {-1}",
        "1,2,4,2",
    ),
    "gather": ("r = Gather <axis = 1> (x, t)", "int64[2] t = {1, 1}", "1,2,4,4"),
    "gather one": ("r = Gather <axis = 1> (x, t)", "int64 t = {1}", "1,4,4"),
    "pad": ("r = Pad (x, t)", "int64[8] t = {0, 1, 0, 0, 0, 0, 2, 0}", "1,3,6,4"),
    "expand": ("m = ReduceMean <axes = [2, 3]> (x)  r = Expand (m, t)",
        "int64[4] t = {1, 2, 3, 3}", "1,2,3,3"),
    "tile": ("r = Tile (x, t)", "int64[4] t = {1, 2, 1, 1}", "1,4,4,4"),
    "concat with itself": ("r = Concat <axis = 1> (x, x)", "int64 t = {0}", "1,4,4,4"),
    "split": ("r, q = Split <axis = 2> (x)", "int64 t = {0}", "1,2,2,4"),
    "reduce": ("r = ReduceMax <axes = [1], keepdims = 0> (x)", "int64 t = {0}", "1,4,4"),
    "arg max": ("i = ArgMax <axis = 1> (x)  r = Cast <to = 1> (i)", "int64 t = {0}", "1,1,4,4"),
    "softmax": ("r = Softmax <axis = 1> (x)", "int64 t = {0}", "1,2,4,4"),
    "matmul on the left": ("r = MatMul (w, x)", "float[3,4] w = {0,1,2,3,4,5,6,7,8,9,0,1}", "1,2,3,4"),
    "depth to space": (
        "c = Concat <axis = 1> (x, x)  r = DepthToSpace <blocksize = 2> (c)",
            "int64 t = {0}", "1,1,8,8"),
    "there and back": (
        "q = Transpose <perm = [1, 0, 2, 3]> (x)  p = Relu (q)"
        "  r = Transpose <perm = [1, 0, 2, 3]> (p)",
        "int64 t = {0}", "1,2,4,4"),
    "batch in the middle": (
        "q = Transpose <perm = [1, 0, 2, 3]> (x)  p = Reshape (q, t)"
        "  r = Transpose <perm = [1, 0, 2]> (p)",
        "int64[3] t = {2, 1, 16}", "1,2,16"),
}  # fmt: skip


@pytest.mark.parametrize("case", STATIC)
def test_static_models_take_any_batch(case: str) -> None:
    body, constants, out = STATIC[case]
    text = f"g (float[1,2,4,4] x) => (float[{out}] y) <{constants}> {{ {body}  y = Relu (r) }}"
    prepared = tracked(text, 2, 4, 4)
    assert prepared.graph.outputs[0].shape[0] == BATCH


def test_every_static_case_ran() -> None:
    assert len(STATIC) == 38


def test_a_whole_static_network() -> None:
    text = """g (float[1,2,4,4] x) => (float[1,3] y)
    <int64[2] flat = {1, 64}, int64[3] rows = {1, 4, 16}, int64[4] big = {1, 4, 8, 8}>
    {
      c = Conv <pads = [1, 1, 1, 1]> (x, w)  r = Relu (c)  u = Resize (r, , , big)
      p = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (u)
      q = Reshape (p, rows)  t = Transpose <perm = [0, 2, 1]> (q)
      f = Reshape (t, flat)  h = Gemm (f, v)  s = Relu (h)  y = Gemm (s, o)
    }"""
    weights = {"w": random(0, 4, 2, 3, 3), "v": random(1, 64, 5), "o": random(2, 5, 3)}
    tracked(text, 2, 4, 4, weights=weights)


def test_two_resizes_may_share_their_sizes() -> None:
    text = """g (float[1,2,4,4] x) => (float[1,2,8,8] y) <int64[4] sizes = {1, 2, 8, 8}>
    {
      a = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (x)
      p = Resize (x, , , sizes)  q = Resize (a, , , sizes)  s = Add (p, q)  y = Relu (s)
    }"""
    tracked(text, 2, 4, 4)


#: Point clouds [batch, points, 2]: points first and back, before and behind a rectifier.
POINTS = {
    "in place": "a = MatMul (x, v)  h = Relu (a)  b = MatMul (h, w)  r = Relu (b)",
    "first in the ANN": """t = Transpose <perm = [1, 0, 2]> (x)  a = MatMul (t, v)  h = Relu (a)
        b = MatMul (h, w)  s = Relu (b)  r = Transpose <perm = [1, 0, 2]> (s)""",
    "back between spikes": """t = Transpose <perm = [1, 0, 2]> (x)  a = MatMul (t, v)  h = Relu (a)
        u = Transpose <perm = [1, 0, 2]> (h)  b = MatMul (u, w)  r = Relu (b)""",
}
#: What the source may call its dimensions, and what the emitted file then calls them.
NAMES = {
    ("B", "P"): ("N", "P"),
    ("B", "N"): ("batch", "N"),
    ("N", "B"): ("N", "B"),
    ("N", "N"): ("batch", "N"),
    ("P", "P"): ("N", "P"),
    ("N", "batch"): ("N", "batch"),
    ("", "N"): ("batch", "N"),
    ("B", ""): ("N", ""),
    ("B", BATCH): ("N", ""),
    (BATCH, "N"): ("batch", "N"),
}


def cloud(body: str, batch: str, points: str) -> onnx.ModelProto:
    text = f"""g (float[A,C,2] x) => (float[A,3] y)
    {{ {body}  m = ReduceMean <axes = [1], keepdims = 0> (r)  y = Gemm (m, o) }}"""
    weights = {"v": random(1, 2, 4), "w": random(2, 4, 4), "o": random(3, 4, 3)}
    model = parse(text, weights)
    for entry in (*model.graph.input, *model.graph.output):
        for dim, name in zip(entry.type.tensor_type.shape.dim, (batch, points), strict=False):
            if dim.HasField("dim_param"):
                dim.dim_param = name
    return model


@pytest.mark.parametrize(
    ("body", "names"),
    [("back between spikes", names) for names in NAMES]
    + [(body, names) for body in ("in place", "first in the ANN") for names in list(NAMES)[1:4]],
)
def test_what_the_user_calls_a_dimension_means_nothing(body: str, names: tuple[str, str]) -> None:
    model, plain = cloud(POINTS[body], *names), cloud(POINTS[body], "B", "P")
    x = random(0, 16, 8, 2)
    snn, usual = compile_text(model, x, steps=32), compile_text(plain, x, steps=32)
    dims = [dim.dim_param for dim in snn.graph.input[0].type.tensor_type.shape.dim[:2]]
    assert tuple(dims) == NAMES[names]
    (wanted,) = run_model(model, x=x)
    for count in (16, 5, 1):
        (decoded,) = run_model(snn, x=x[:count])
        assert np.array_equal(decoded, run_model(usual, x=x[:count])[0])
        # Two layers of neurons, a mean, and a read-out: some θ/T of the largest output.
        assert_close(decoded, wanted[:count], relative=20 / 32)


def test_names_of_dimensions_that_are_all_taken() -> None:
    text = """g (float[B,N,batch,batch_2] x) => (float[B,N,batch,batch_2] y) { y = Relu (x) }"""
    snn = compile_text(parse(text), x := random(0, 2, 3, 4, 5), steps=32)
    for entry in (snn.graph.input[0], snn.graph.output[0]):
        dims = [dim.dim_param for dim in entry.type.tensor_type.shape.dim]
        assert dims == ["batch_3", "N", "batch", "batch_2"]
    # One neuron with a constant current: half a step.
    assert_close(run_model(snn, x=x)[0], np.maximum(x, 0), relative=1.01 / 64)


@pytest.mark.parametrize("names", [("B", "P"), ("B", "N"), ("N", "N")])
def test_a_fixed_batch_fixes_the_batch_alone(names: tuple[str, str]) -> None:
    model, x = cloud(POINTS["in place"], *names), random(0, 2, 8, 2)
    snn = compile_text(model, x, steps=64, emit="cuda-graph", batch=2)
    dims = snn.graph.input[0].type.tensor_type.shape.dim
    assert (dims[0].dim_value, dims[1].dim_param) == (2, names[1])
    for points in (8, 3):
        decoded, wanted = (run_model(m, x=x[:, :points])[0] for m in (snn, model))
        assert_close(decoded, wanted, relative=20 / 64)


def test_a_batch_of_nothing_is_any_batch() -> None:
    # Old exporters write 0 where they know no size.
    model = parse("g (float[N,4] x) => (float[N,4] y) { y = Relu (x) }")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 0
    assert pipeline.prepare(model).any_batch
    assert read_compiled(compile_text(model, random(0, 3, 4))).fixed_batch is None


# --- where it is lost ---

LOST = {
    "to one axis": ("[bad] r = Reshape (x, t)", "int64[1] t = {-1}", "8", "Reshape 'bad'"),
    "reduced": ("[bad] r = ReduceMean <axes = [0]> (x)", "int64 t = {0}", "1,2,4", "ReduceMean 'bad'"),
    "reduced all": ("[bad] r = ReduceSum <keepdims = 1> (x)",
        "int64 t = {0}", "1,1,1", "ReduceSum 'bad'"),
    "softmax over the batch": ("[bad] r = Softmax <axis = 0> (x)",
        "int64 t = {0}", "1,2,4", "Softmax 'bad'"),
    "squeezed away": ("[bad] r = Squeeze (x, t)", "int64[1] t = {0}", "2,4", "Squeeze 'bad'"),
    "squeezed whatever is one": ("[bad] r = Squeeze (x)", "int64 t = {0}", "2,4", "Squeeze 'bad'"),
    "picked": ("[bad] r = Gather <axis = 0> (x, t)", "int64 t = {0}", "2,4", "Gather 'bad'"),
    "cut": ("[bad] r = Slice (x, t, e)", "int64[1] t = {0}, int64[1] e = {1}", "1,2,4", "Slice 'bad'"),
    "repeated": ("[bad] r = Tile (x, t)", "int64[3] t = {2, 1, 1}", "2,2,4", "Tile 'bad'"),
    "spread": ("[bad] r = Expand (x, t)", "int64[3] t = {3, 2, 4}", "3,2,4", "Expand 'bad'"),
    "joined": ("[bad] r = Concat <axis = 0> (x, x)", "int64 t = {0}", "2,2,4", "Concat 'bad'"),
    "padded": ("[bad] r = Pad (x, t)", "int64[6] t = {1, 0, 0, 0, 0, 0}", "2,2,4", "Pad 'bad'"),
    "a table of samples": ("[bad] r = Add (x, k)", "float[2,1,1] k = {1, 2}", "2,2,4", "Add 'bad'"),
    "two batch axes": (
        "t = Transpose <perm = [1, 0, 2]> (x)  [bad] r = Add (x, t)", "int64 u = {0}", "2,2,4",
        "Add 'bad'"),
    "softmax over the batch from the end": ("[bad] r = Softmax <axis = -3> (x)",
        "int64 t = {0}", "1,2,4", "Softmax 'bad'"),
    "normalized over the batch": (
        "t = Transpose <perm = [1, 2, 0]> (x)  [bad] r = LayerNormalization <axis = 1> (t, k)",
        "float[4,1] k = {1, 2, 3, 4}", "2,4,1", "LayerNormalization 'bad'"),
    "flattened with another axis": (
        "t = Transpose <perm = [1, 0, 2]> (x)  [bad] r = Flatten <axis = -2> (t)", "int64 u = {0}",
        "2,4", "Flatten 'bad'"),
    "one of two samples": ("[bad] r = Slice (x, t, e, t, s)",
        "int64[1] t = {0}, int64[1] e = {9223372036854775807}, int64[1] s = {2}", "1,2,4",
        "Slice 'bad'"),
    "summed": (
        "t = Transpose <perm = [2, 1, 0]> (x)  [bad] r = MatMul (t, w)", "float[1,3] w = {1, 2, 3}",
        "4,2,3", "MatMul 'bad'"),
    "mixed after a transposition": (
        "t = Transpose <perm = [1, 0, 2]> (x)  [bad] r = Reshape (t, s)", "int64[1] s = {8}", "8",
        "Reshape 'bad'"),
    "summed up along it": ("[bad] r = CumSum (x, t)", "int64 t = {0}", "1,2,4", "CumSum 'bad'"),
}  # fmt: skip


@pytest.mark.parametrize("case", LOST)
def test_where_the_batch_is_lost_the_node_is_named(case: str) -> None:
    body, constants, out, where = LOST[case]
    text = f"g (float[1,2,4] x) => (float[{out}] y) <{constants}> {{ {body}  y = Relu (r) }}"
    model = parse(text)
    prepared = pipeline.prepare(model)
    assert list(prepared.context.batch_lost) == [where] and not prepared.any_batch
    (warning,) = [f for f in prepared.findings if f.code == "SNNC205"]
    assert warning.node == where and prepared.graph.inputs[0].shape == [1, 2, 4]
    # One sample at a time is still right, and the spiking network runs one sample, too.
    x = random(5, 1, 2, 4)
    (before,) = run_model(model, x=x)
    assert_close(run_model(prepared.ann, x=x)[0], before, relative=ORDER)
    (decoded,) = run_model(compile_text(model, x, steps=256), x=x)
    # One neuron with a constant current and θ = max: at most θ/2T off, at most θ = the maximum.
    assert np.abs(decoded - np.maximum(before, 0)).max() <= np.abs(before).max() / 512 * 1.01


def test_every_lost_case_ran() -> None:
    assert len(LOST) == 21


# --- how many samples there are, as a value ---

#: What is made of r [N,4], n, the number of samples, and n1, the same as [1]; and what may be done
#: then: "each" sample is what it is alone, "all" outputs depend on n, as the source's do, or only "one"
#: sample at a time can run.
COUNTED = {
    "times": ("y = Mul (r, f)", "all"),
    "divided": ("y = Div (r, f)", "all"),
    "before weights": ("g = Mul (r, f)  y = Gemm (g, w)", "all"),
    "bounded": ("g = Min (r, f)  y = Neg (g)", "all"),
    "all values": ("p = ReduceProd <keepdims = 0> (s)  q = Cast <to = 1> (p)  y = Add (r, q)", "all"),
    "all sizes": ("z = Size (x)  q = Cast <to = 1> (z)  y = Mul (r, q)", "all"),
    "size of spikes": ("z = Size (r)  q = Cast <to = 1> (z)  y = Mul (r, q)", "all"),
    "shape of spikes": ("z = Shape (r)  i = Gather (z, zero)  q = Cast <to = 1> (i)  y = Mul (r, q)",
        "all"),
    "numbered": ("k = Range (zero, n, one)  q = Cast <to = 1> (k)  u = Unsqueeze (q, i1)"
        "  y = Add (r, u)", "all"),
    "sum of numbers": ("k = Range (zero, n, one)  q = Cast <to = 1> (k)  u = ReduceSum (q)"
        "  y = Add (r, u)", "all"),
    "rows of a table": ("k = Slice (table, i0, n1, i0)  y = Add (r, k)", "all"),
    "five are others": ("e = Equal (n, five)  q = Where (e, r, h)  y = Neg (q)", "all"),
    # For 1 and 7 samples the same row.
    "from nine on others": ("e = Less (n, nine)  k = Where (e, bias, other)  y = Add (r, k)", "all"),
    "rounded": ("e = Div (n, five)  q = Cast <to = 1> (e)  y = Add (r, q)", "all"),
    "in front of a rectifier": ("g = Mul (h, f)  y = Relu (g)", "one"),
    "in front of weights and a rectifier": ("g = Div (r, f)  k = Gemm (g, w)  y = Relu (k)", "one"),
    "mean of all": ("m = ReduceSum (r, i0)  d = Div (m, f)  y = Sub (r, d)", "one"),
    "a row for each": ("c = Concat <axis = 0> (n1, n1, i4)  y = Expand (r, c)", "one"),
    "columns": ("c = Concat <axis = 0> (m1, n1)  y = Reshape (r, c)", "one"),
    "zeros": ("c = Concat <axis = 0> (n1, i4)  k = ConstantOfShape (c)  y = Add (r, k)", "each"),
    "ones": ("c = Shape (r)  k = ConstantOfShape <value = float[1] {1}> (c)  y = Add (r, k)", "each"),
    "a bias for each": ("c = Concat <axis = 0> (n1, i4)  k = Expand (bias, c)  y = Add (r, k)", "each"),
    "spread": ("m = ReduceMean <axes = [1]> (r)  c = Concat <axis = 0> (n1, i4)  y = Expand (m, c)",
        "each"),
    "reshaped": ("c = Concat <axis = 0> (n1, m1)  y = Reshape (r, c)", "each"),
    "inner sizes": ("t = Slice (s, i1, i2)  c = Concat <axis = 0> (n1, t)  y = Reshape (r, c)", "each"),
    "a state beside": ("c = Concat <axis = 0> (n1, i4)  k = ConstantOfShape (c)"
        "  y = Concat <axis = 1> (r, k)", "all"),
}  # fmt: skip


@pytest.mark.parametrize("case", COUNTED)
def test_how_many_samples_there_are_is_never_frozen(case: str) -> None:
    body, kind = COUNTED[case]
    text = f"""g (float[B,4] x) => (float y)
    <int64[1] i0 = {{0}}, int64[1] i1 = {{1}}, int64[1] i2 = {{2}}, int64[1] i4 = {{4}},
     int64[1] m1 = {{-1}}, int64 zero = {{0}}, int64 one = {{1}}, int64 five = {{5}},
     int64 nine = {{9}}, float[1,4] bias = {{1, 2, 3, 4}}, float[1,4] other = {{8, 7, 6, 5}}>
    {{ h = Gemm (x, v)  r = Relu (h)  s = Shape (x)  n1 = Slice (s, i0, i1)  n = Gather (s, zero)
       f = Cast <to = 1> (n)  {body} }}"""
    model = parse(text, {"v": random(1, 4, 4), "w": random(2, 4, 4), "table": random(3, 50, 4)})
    model.graph.output[0].type.tensor_type.ClearField("shape")
    prepared = pipeline.prepare(model)
    assert (prepared.any_batch, prepared.counts_samples) == (kind != "one", kind == "all")
    x = random(0, 32, 4)
    snn = compile_text(model, x, steps=256)
    assert read_compiled(snn).fixed_batch == (1 if kind == "one" else None)
    for count in (1,) if kind == "one" else (1, 5, 11):
        decoded, wanted = (run_model(m, x=x[:count])[0] for m in (snn, model))
        if kind == "each":
            wanted = np.concatenate([run_model(model, x=x[i : i + 1])[0] for i in range(count)])
        # One or two layers of neurons, and weights whose absolute sum is a few units: some θ/2T.
        scale = max(float(np.abs(wanted).max()), float(np.abs(x).max()))
        assert decoded.shape == wanted.shape and np.abs(decoded - wanted).max() < 10 / 256 * scale


def test_indices_of_every_sample_pick_from_a_table() -> None:
    text = """g (int64[B,3] x) => (float[B,2] y)
    { e = Gather <axis = -2> (table, x)  m = ReduceMean <axes = [1], keepdims = 0> (e)
      y = Relu (m) }"""
    prepared = pipeline.prepare(parse(text, {"table": random(1, 9, 2)}))
    assert prepared.any_batch and not prepared.context.batch_lost
    assert prepared.graph.outputs[0].shape == [BATCH, 2]


@pytest.mark.parametrize(
    "body",
    [
        # For N samples the first makes [1, 4N, 2]; the second mixes the samples' halves.
        "r = Reshape (x, a)  y = Relu (r)",
        "t = Transpose <perm = [1, 0]> (x)  q = Reshape (t, b)"
        "  r = Relu (q)  y = ReduceMean <axes = [1]> (r)",
        "q = Reshape (x, c)  r = Relu (q)  y = ReduceMean <axes = [0]> (r)",
    ],
)  # fmt: skip
def test_dynamic_models_that_mix_samples_never_give_wrong_numbers(body: str) -> None:
    text = f"""g (float[B,8] x) => (float y)
    <int64[3] a = {{1, -1, 2}}, int64[2] b = {{2, -1}}, int64[2] c = {{-1, 4}}>
    {{ {body} }}"""
    model = parse(text.replace("float y", "float[?,?,?] y" if "a)" in body else "float[?,?] y"))
    prepared = pipeline.prepare(model)
    x = random(0, 3, 8)
    if prepared.any_batch:
        assert_close(run_model(prepared.ann, x=x)[0], three_alone(model, x)[0], relative=ORDER)
        pipeline.check_batch(prepared, 0)
    else:
        (where,) = prepared.context.batch_lost
        assert where
        with pytest.raises(Exception, match=r"[Ii]nvalid|dimension"):
            run_model(prepared.ann, x=x)


def test_a_static_batch_of_three_that_is_lost_is_calibrated_as_it_is() -> None:
    text = """g (float[3,4] x) => (float[3,4] y)
    { h = Softmax <axis = 0> (x)  y = Relu (h) }"""
    model = parse(text)
    assert not pipeline.prepare(model).any_batch
    x = random(0, 3, 4)
    (decoded,) = run_model(compile_text(model, x, steps=256), x=x)
    assert_close(decoded, run_model(model, x=x)[0], relative=1 / 512 * 1.01)


def test_a_product_of_two_single_features_is_no_batch() -> None:
    # [1, 1] x [1, 1]: for three samples there is no such product.
    text = """g (float[1,1] x) => (float[1,1] y) { m = MatMul (x, x)  y = Relu (m) }"""
    prepared = pipeline.prepare(parse(text))
    assert list(prepared.context.batch_lost) == ["MatMul 'MatMul_0'"]


def test_a_wrong_proof_is_found_by_running() -> None:
    prepared = pipeline.prepare(parse("g (float[N,2] x) => (float[N,2] y) { y = Relu (x) }"))
    mixing = parse(
        """g (float[N,2] x) => (float[N,2] y)
        { m = ReduceMean <axes = [0]> (x)  s = Sub (x, m)  y = Relu (s) }"""
    )
    pipeline.check_batch(prepared, 0)
    prepared.ann = mixing
    with pytest.raises(Refused, match="SNNC205"):
        pipeline.check_batch(prepared, 0)


def test_where_onnxruntime_makes_no_session_the_batch_is_lost() -> None:
    """No channels, and a shape that has to be computed at run time: found by fuzzing."""
    model = parse(
        """g (float[?,0,2,?] x) => (float[N,0] y)
        { s = Shape (x)  i = Constant <value_int = 0> ()  n = Gather (s, i)
          u = Constant <value_ints = [0]> ()  v = Unsqueeze (n, u)
          r = Constant <value_ints = [0]> ()  t = Concat <axis = 0> (v, r)
          q = Relu (x)  y = Reshape (q, t) }""",
        {},
    )
    assert not pipeline.prepare(model).any_batch


def test_outputs_may_have_the_batch_on_another_axis() -> None:
    text = """g (float[1,2,4] x) => (float[2,1,4] y)
    { h = Relu (x)  y = Transpose <perm = [1, 0, 2]> (h) }"""
    model = parse(text)
    x = random(0, 3, 2, 4)
    (decoded,) = run_model(compile_text(model, x, steps=256), x=x)
    wanted = np.maximum(x, 0).transpose(1, 0, 2)
    # θ/2T, with θ at most the maximum.
    assert_close(decoded, wanted, relative=1 / 512 * 1.01)


def test_the_batch_of_several_inputs_is_one() -> None:
    text = """g (float[1,2] x, float[1,2] z) => (float[1,2] y)
    { h = Relu (x)  s = Add (h, z)  y = Relu (s) }"""
    graph, _ = after(parse(text))
    assert [tensor.shape for tensor in graph.inputs] == [[BATCH, 2], [BATCH, 2]]
    assert graph.outputs[0].shape == [BATCH, 2]
