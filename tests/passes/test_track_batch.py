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
from snncompiler.errors import Refused

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
    assert prepared.graph.inputs[0].shape[0] == "N"
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
    assert prepared.graph.outputs[0].shape[0] in ("N", None)


def test_every_static_case_ran() -> None:
    assert len(STATIC) == 27


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


def test_a_dimension_of_the_user_may_be_called_as_ours() -> None:
    # "N" points a sample, the batch in front: point clouds are often exported so.
    text = """g (float[B,N,2] x) => (float[B,N,2] y)
    {
      h = Relu (x)  t = Transpose <perm = [1, 0, 2]> (h)  m = ReduceMean <axes = [0]> (t)
      u = Transpose <perm = [1, 0, 2]> (m)  s = Sub (h, u)  y = Relu (s)
    }"""
    x = np.abs(random(1, 3, 5, 2))
    model = parse(text)
    (before,) = run_model(model, x=x)
    prepared = pipeline.prepare(model)
    (now,) = run_model(prepared.ann, x=x)
    assert_close(now, before, relative=ORDER)
    snn = compile_text(model, x, steps=2048)
    (decoded,) = run_model(snn, x=x)
    # Two layers of neurons, thresholds of at most 3: some θ/T each.
    assert np.abs(decoded - before).max() < 20 / 2048


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
    "summed": (
        "t = Transpose <perm = [2, 1, 0]> (x)  [bad] r = MatMul (t, w)", "float[1,3] w = {1, 2, 3}",
        "4,2,3", "MatMul 'bad'"),
    "mixed after a transposition": (
        "t = Transpose <perm = [1, 0, 2]> (x)  [bad] r = Reshape (t, s)", "int64[1] s = {8}", "8",
        "Reshape 'bad'"),
    "no rule": ("[bad] r = CumSum (x, t)", "int64 t = {1}", "1,2,4", "CumSum 'bad'"),
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
    assert len(LOST) == 17


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
    assert [tensor.shape for tensor in graph.inputs] == [["N", 2], ["N", 2]]
    assert graph.outputs[0].shape == ["N", 2]
