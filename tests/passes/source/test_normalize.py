"""fold-constants, remove-noops and unify-linear: before and after, and the same numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import (
    after,
    assert_close,
    compile_text,
    in_type,
    ops,
    parse,
    random,
    refused,
    rewritten,
    run_model,
)
from onnx import numpy_helper

from snncompiler.errors import Refused
from snncompiler.ir.graph import import_model, value
from snncompiler.network.checks import check_source, measure_folds
from snncompiler.network.prepare import prepare
from snncompiler.passes.base import Context
from snncompiler.passes.source.to_float32 import ToFloat32
from snncompiler.runtime.session import create_session

#: Sums of at most 16 products, once in the source's order and once in ours: 16 roundings of 2^-24
#: each way, with room to spare.
ROUNDING = 32 * 2.0**-24


def same(model: onnx.ModelProto, last: str, *shape: int) -> list[str]:
    """The operators after `last`; source and result agree in onnxruntime on one sample."""
    result = rewritten(model, last)
    x = random(7, *shape)
    for now, before in zip(run_model(result, x=x), run_model(model, x=x), strict=True):
        assert_close(now, before, relative=ROUNDING)
    return ops(result)


# --- fold-constants ---


def test_shape_arithmetic_folds() -> None:
    # How PyTorch writes x.view(x.size(0), -1).
    text = """g (float[N,2,3] x) => (float[N,6] y) <int64 zero = {0}, int64[1] first = {0}>
    {
      s = Shape (x)  n = Gather <axis = 0> (s, zero)  u = Unsqueeze (n, first)
      m = Constant <value_ints = [-1]> ()  t = Concat <axis = 0> (u, m)
      r = Reshape (x, t)  y = Relu (r)
    }"""
    assert same(parse(text), "fold-constants", 1, 2, 3) == ["Reshape", "Relu"]
    assert same(parse(text), "track-batch", 3, 2, 3) == ["Reshape", "Relu"]


def test_shape_with_start_and_end_folds() -> None:
    text = """g (float[N,2,3] x) => (float[N,2] y) <int64[1] all = {-1}>
    { s = Shape <start = -2, end = -1> (x)  t = Concat <axis = 0> (all, s)
      r = Relu (x)  y = Reshape (r, t) }"""
    graph, _ = after(parse(text), "fold-constants")
    assert [node.op for node in graph.nodes] == ["Relu", "Reshape"]
    assert value(graph.nodes[1].inputs[1]).tolist() == [-1, 2]  # type: ignore[union-attr]


def test_a_shape_that_the_user_reads_is_that_of_the_batch() -> None:
    text = "g (float[N,3] x) => (float[N,3] y, int64[2] n) { y = Relu (x)  n = Shape (x) }"
    snn = compile_text(parse(text), random(0, 8, 3), steps=2)
    assert run_model(snn, x=random(1, 5, 3))[1].tolist() == [5, 3]


def test_what_is_computed_from_a_shape_alone_is_no_output() -> None:
    """Shapes are folded for one sample; the user would read that one."""
    text = """g (float[N,3] x) => (float[N,3] y, int64 n) <int64 first = {0}>
    { y = Relu (x)  s = Shape (x)  [pick] n = Gather (s, first) }"""
    (finding,) = refused(parse(text))
    assert finding.code == "SNNC205" and "pick" in finding.node and "'n'" in finding.message


def test_weights_that_are_computed_fold() -> None:
    text = """g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1, 2, 3, 4}, float two = {2}>
    { t = Transpose <perm = [1, 0]> (w)  d = Mul (t, two)  h = MatMul (x, d)  y = Relu (h) }"""
    assert same(parse(text), "fold-constants", 1, 2) == ["MatMul", "Relu"]


@pytest.mark.parametrize(
    ("attribute", "wanted"),
    [
        ("value = float[2] {1, 2}", [1.0, 2.0]),
        ("value_float = 3.0", 3.0),
        ("value_floats = [1.0, 2.0]", [1.0, 2.0]),
    ],
)
def test_every_spelling_of_constant(attribute: str, wanted: object) -> None:
    text = f"""g (float[N,2] x) => (float[N,2] y)
    {{ c = Constant <{attribute}> ()  a = Add (x, c)  y = Relu (a) }}"""
    graph, _ = after(parse(text), "fold-constants")
    found = value(graph.nodes[0].inputs[1])
    assert found is not None and found.dtype == np.float32 and found.tolist() == wanted


def test_a_constant_of_text_is_an_output_as_it_is() -> None:
    text = """g (float[N,2] x) => (float[N,2] y, string z)
    { [text] z = Constant <value_string = "a"> ()  y = Relu (x) }"""
    outputs = run_model(rewritten(parse(text)), x=random(1, 3, 2))
    assert np.asarray(outputs[1]).tolist() == "a"


def test_a_big_constant_is_refused_before_it_is_made() -> None:
    text = """g (float[N,2] x) => (float[N,2] y)
    <int64[2] big = {1073741824, 1073741824}, int64[1] a = {0}>
    { [bomb] c = ConstantOfShape (big)  m = ReduceMax <keepdims = 0> (c)
      h = Add (x, m)  y = Relu (h) }"""
    (finding,) = refused(parse(text))
    assert finding.code == "SNNC209" and finding.node == "ConstantOfShape 'bomb'"
    assert f"{1 << 60:,}" in finding.message


@pytest.mark.parametrize(
    "random_op",
    [
        "RandomNormal <shape = [1, 2]> ()",
        "RandomUniformLike (w)",
        pytest.param("Bernoulli (w)"),
        "Multinomial <sample_size = 2> (w)",
    ],
)
def test_random_operators_are_not_folded(random_op: str) -> None:
    text = f"""g (float[N,2] x) => (float[N,2] y) <float[1,2] w = {{0.5, 0.5}}>
    {{ r = {random_op}  c = Cast <to = 1> (r)  h = Add (x, c)  y = Relu (h) }}"""
    assert random_op.split(" ")[0] in ops(after(parse(text), "fold-constants")[0])


def test_a_constant_that_is_an_output_stays_an_output() -> None:
    text = """g (float[N,2] x) => (float[N,2] y, float[2] z) <float[2] a = {1, 2}>
    { z = Neg (a)  y = Relu (x) }"""
    model = rewritten(parse(text), "fold-constants")
    y, z = run_model(model, x=random(0, 1, 2))
    assert z.tolist() == [-1, -2] and y.shape == (1, 2)


def test_dead_nodes_are_dropped() -> None:
    text = "g (float[N,2] x) => (float[N,2] y) { a = Exp (x)  b = Neg (a)  y = Relu (x) }"
    assert ops(after(parse(text), "fold-constants")[0]) == ["Relu"]


# --- remove-noops ---


def test_noops_disappear() -> None:
    text = """g (float[N,2] x) => (float[N,2] y) <float half = {0.5}, bool no = {0}>
    {
      a = Identity (x)  b = Dropout (a)  c = Cast <to = 1> (b)  d, mask = Dropout (c, half, no)
      e = Relu (d)  y = Identity (e)
    }"""
    assert same(parse(text), "remove-noops", 1, 2) == ["Relu"]


def test_what_does_something_stays() -> None:
    text = """g (float[N,2] x) => (float[N,2] y, bool[N,2] kept) <float half = {0.5}, bool yes = {1}>
    { a, mask = Dropout (x, half)  b = Cast <to = 6> (a)  c = Cast <to = 1> (b)
      d = Dropout (c, half, yes)  kept = Not (mask)  y = Relu (d) }"""
    found = ops(after(parse(text), "remove-noops")[0])
    # The mask of the first one is true everywhere: a comparison of the input with itself.
    assert sorted(found) == ["Cast", "Cast", "Dropout", "Equal", "Not", "Relu"]


def test_what_is_computed_of_a_mask_alone_has_all_samples() -> None:
    text = """g (float[N,2] x) => (float[N,2] y, bool[N,2] kept)
    { d, mask = Dropout (x)  kept = Not (mask)  y = Relu (d) }"""
    snn = compile_text(parse(text), random(0, 8, 2), steps=4)
    _, kept = run_model(snn, x=random(1, 5, 2))
    assert kept.shape == (5, 2) and not kept.any()


def test_an_input_passed_on_keeps_its_names() -> None:
    text = "g (float[N,2] x) => (float[N,2] y, float[N,2] z) { y = Identity (x)  z = Relu (x) }"
    model = rewritten(parse(text), "remove-noops")
    assert [output.name for output in model.graph.output] == ["y", "z"]
    x = random(0, 1, 2)
    assert np.array_equal(run_model(model, x=x)[0], x)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(
            "h = Relu (x)  y = Identity (h)  z = Identity (h)",
        ),
        "y = Relu (x)  z = Identity (y)",
        "h = Relu (x)  y = Identity (h)  z = Neg (h)",
    ],
)
def test_outputs_keep_their_names(body: str) -> None:
    text = f"g (float[N,2] x) => (float[N,2] y, float[N,2] z) {{ {body} }}"
    source = parse(text)
    model = rewritten(source, "remove-noops")
    assert [output.name for output in model.graph.output] == ["y", "z"]
    x = random(0, 1, 2)
    for now, before in zip(run_model(model, x=x), run_model(source, x=x), strict=True):
        assert np.array_equal(now, before)


# --- unify-linear ---


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 1.0), (1.0, 2.0), (-3.0, 0.0)])
@pytest.mark.parametrize("bias", ["3", "1,3", "1", ""])
def test_every_gemm_becomes_plain(transposed: int, alpha: float, beta: float, bias: str) -> None:
    weights = {"w": random(1, 3, 4) if transposed else random(1, 4, 3)}
    if bias:
        weights["c"] = random(2, *(int(dim) for dim in bias.split(",")))
    text = f"""g (float[N,4] x) => (float[N,3] y)
    {{ h = Gemm <transB = {transposed}, alpha = {alpha}, beta = {beta}> (x, w{", c" if bias else ""})
      y = Relu (h) }}"""
    model = parse(text, weights)
    assert same(model, "unify-linear", 3, 4) == ["Gemm", "Relu"]
    graph, context = after(model, "unify-linear")
    assert not graph.nodes[0].attrs
    (facts,) = context.layers.values()
    assert facts.bias == (bool(bias) and beta != 0)


def test_a_transposed_input_is_left_alone() -> None:
    text = """g (float[4,N] x) => (float[?,3] y)
    { h = Gemm <transA = 1, alpha = 2.0> (x, w)  y = Relu (h) }"""
    graph, _ = after(parse(text, {"w": random(0, 4, 3)}), "unify-linear")
    gemm = next(node for node in graph.nodes if node.op == "Gemm")
    assert gemm.attrs["transA"] == 1 and gemm.attrs["alpha"] == 2.0


def test_a_bias_at_run_time_is_left_alone() -> None:
    text = """g (float[N,4] x, float[1,3] b) => (float[N,3] y)
    { h = Gemm <beta = 2.0> (x, w, b)  y = Relu (h) }"""
    graph, _ = after(parse(text, {"w": random(0, 4, 3)}), "unify-linear")
    assert graph.nodes[0].attrs["beta"] == 2.0


@pytest.mark.parametrize(
    ("behind", "bias"),
    [
        ("h = Add (m, c)", True),
        ("h = Add (c, m)", True),
        ("h = Add (m, none)", False),
        ("h = Add (m, m)", False),
        ("h = Mul (m, c)", False),
        ("h = Neg (m)", False),
    ],
)
def test_a_matmul_that_stays_has_the_bias_that_is_added(behind: str, bias: bool) -> None:
    text = f"""g (float[N,5,4] x) => (float[N,5,3] y)
    {{ m = MatMul (x, w)  {behind}  y = Relu (h) }}"""
    arrays = {"w": random(1, 4, 3), "c": random(2, 3), "none": np.zeros(3, np.float32)}
    graph, context = after(parse(text, arrays), "unify-linear")
    assert ops(graph)[0] == "MatMul"
    assert [layer.bias for layer in context.layers.values()] == [bias]


@pytest.mark.parametrize("order", ["m, c", "c, m"])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 1), (1, 3)])
def test_matmul_and_add_become_gemm(order: str, shape: tuple[int, ...]) -> None:
    text = f"""g (float[N,4] x) => (float[N,3] y)
    {{ m = MatMul (x, w)  h = Add ({order})  y = Relu (h) }}"""
    model = parse(text, {"w": random(1, 4, 3), "c": random(2, *shape)})
    assert same(model, "unify-linear", 5, 4) == ["Gemm", "Relu"]
    (facts,) = after(model, "unify-linear")[1].layers.values()
    assert facts.bias and facts.output == "h"


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((3, 1)),
        (3, 3),
        (1, 1, 3),
    ],
)
def test_an_add_of_more_than_a_row_stays(shape: tuple[int, ...]) -> None:
    out = "float[1,3,3]" if len(shape) == 3 else "float[3,3]"
    text = f"""g (float[3,4] x) => ({out} y)
    {{ m = MatMul (x, w)  h = Add (m, c)  y = Relu (h) }}"""
    model = parse(text, {"w": random(1, 4, 3), "c": random(2, *shape)})
    assert same(model, "unify-linear", 3, 4) == ["Gemm", "Add", "Relu"]


def test_a_product_with_two_readers_keeps_its_add() -> None:
    text = """g (float[N,4] x) => (float[N,3] y, float[N,3] m)
    { m = MatMul (x, w)  h = Add (m, c)  y = Relu (h) }"""
    model = parse(text, {"w": random(1, 4, 3), "c": random(2, 3)})
    assert same(model, "unify-linear", 2, 4) == ["Gemm", "Add", "Relu"]


def test_matmul_on_more_axes_stays() -> None:
    text = "g (float[N,2,4] x) => (float[N,2,3] y) { m = MatMul (x, w)  y = Relu (m) }"
    graph, context = after(parse(text, {"w": random(1, 4, 3)}), "unify-linear")
    assert ops(graph) == ["MatMul", "Relu"]
    assert [facts.op for facts in context.layers.values()] == ["MatMul"]


def test_matmul_of_a_constant_on_the_left_stays() -> None:
    text = "g (float[N,4,2] x) => (float[N,3,2] y) { m = MatMul (w, x)  y = Relu (m) }"
    assert same(parse(text, {"w": random(1, 3, 4)}), "unify-linear", 3, 4, 2) == ["MatMul", "Relu"]


# --- the mask of Dropout ---

MASK = """g (float[N,2,4,4] x) => (float[N,3] y%s)
{ c = Conv <pads = [1, 1, 1, 1]> (x, w)  r = Relu (c)  d, mask = Dropout (r)  %s
  f = Flatten (k)  y = MatMul (f, z) }"""


@pytest.mark.parametrize("output", [False, True])
@pytest.mark.parametrize(
    "step",
    [
        "k = Identity (d)",
        "m = Cast <to = 1> (mask)  k = Mul (r, m)",
        "k = Where (mask, d, zero)",
        "i = Not (mask)  m = Cast <to = 1> (i)  k = Sub (d, m)",
        "m = Cast <to = 1> (mask)  s = ReduceMean <axes = [1, 2, 3]> (m)  k = Mul (d, s)",
    ],
)
def test_the_mask_of_dropout_is_true_at_inference(step: str, output: bool) -> None:
    text = MASK % (", bool[N,2,4,4] mask" if output else "", step)
    weights = {"w": random(1, 2, 2, 3, 3), "z": random(2, 32, 3), "zero": np.zeros((), "f4")}
    model, x = parse(text, weights), random(3, 8, 2, 4, 4)
    wanted = run_model(model, x=x)
    for native in (True, False):
        found = create_session(compile_text(model, x, steps=512), threads=1, native=native).run(
            None, {"x": x}
        )
        # C/T, with C of 10.
        assert_close(found[0], wanted[0], relative=10 / 512)
        assert not output or (found[1].all() and found[1].shape == (8, 2, 4, 4))


# --- to-float32 ---

CONVOLUTIONS = """g (float[N,2,6,6] x) => (float[N,5] y)
{ c = Conv <pads = [1, 1, 1, 1]> (x, w)  n = BatchNormalization (c, g, b, m, v)  r = Relu (n)
  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)  k = Constant <value = float {2.0}> ()
  t = Mul (p, k)  q = Conv (t, u)  s = Relu (q)  f = Flatten (s)  y = Gemm (f, z) }"""


def convolutions() -> onnx.ModelProto:
    weights = {"w": random(1, 3, 2, 3, 3), "u": random(2, 4, 3, 3, 3), "z": random(3, 4, 5)}
    norm = {"g": random(4, 3), "b": random(5, 3), "m": random(6, 3), "v": random(7, 3) ** 2 + 1}
    return parse(CONVOLUTIONS, {**weights, **norm})


@pytest.mark.parametrize("kind", ["float16", "float64"])
def test_a_network_with_folds_in_another_float_type_converges(kind: str) -> None:
    source, x = in_type(convolutions(), kind), random(0, 16, 2, 6, 6).astype(kind)
    (wanted,) = run_model(in_type(source, "float32"), x=x.astype(np.float32))
    snn = compile_text(source, x, steps=1024)
    for native, events in ((False, False), ("auto", False), ("auto", True)):
        session = create_session(snn, threads=1, native=native, events=events)
        (decoded,) = session.run(None, {"x": x})
        assert decoded.dtype == kind
        # C/T with C of 10 here, as in the tests of convergence; float16 outputs have 11 bits.
        assert_close(decoded, wanted, relative=10 / 1024 + 2.0**-11)


def test_what_a_double_network_was_compared_with_is_told() -> None:
    """onnxruntime has no float64 convolutions on the CPU: the source runs in float32."""
    source, x = in_type(convolutions(), "float64"), random(0, 1, 2, 6, 6).astype(np.float64)
    prepared = prepare(source)
    check_source(prepared, {"x": x})
    (note,) = [finding for finding in prepared.findings if finding.code == "SNNC208"]
    assert note.severity == "note" and "computed in float32" in note.message
    (weight,) = [t for t in prepared.ann.graph.initializer if t.dims == [4, 3, 3, 3]]
    weight.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(weight), weight.name))
    with pytest.raises(Refused, match="SNNC208"):
        check_source(prepared, {"x": x})


def test_folding_is_measured_without_the_rounding_of_the_source() -> None:
    source, x = in_type(convolutions(), "float16"), random(0, 1, 2, 6, 6).astype(np.float16)
    prepared = prepare(source)
    measure_folds(prepared, {"x": x})
    changes = [layer.change for layer in prepared.context.layers.values() if layer.folded]
    assert changes
    # Weights and outputs are rounded to float32 a few times, never to float16's 2^-11.
    assert all(change is not None and change[1] < 64 * 2.0**-24 for change in changes)


@pytest.mark.parametrize("kind", ["float16", "float64"])
def test_types_that_attributes_name_become_float32(kind: str) -> None:
    number = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    text = f"""g (float[N,3] x) => (float[N,3] y) <int64[1] size = {{3}}>
    {{ e = EyeLike <dtype = {number}> (w)  t = CastLike (x, e)  h = MatMul (t, e)
       o = ConstantOfShape <value = float[1] {{0.5}}> (size)  l = CastLike (o, h)
       a = Add (h, l)  r = Relu (a)  y = Cast <to = 1> (r) }}"""
    x = random(0, 1, 3)
    (found,) = run_model(rewritten(parse(text, {"w": random(1, 3, 3)})), x=x)
    # By the unit matrix and one sum: exact in float32, rounded to 2^-11 in float16.
    assert np.array_equal(found, np.maximum(x + np.float32(0.5), 0))


@pytest.mark.parametrize("kind", ["float16", "float64"])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_end_of_a_type_bounds_nothing(kind: str, sign: int) -> None:
    """As a bound it becomes infinite, as a weight it stays what it is; other bounds stay."""
    text = """g (float[N,2] x) => (float[N,2] y)
    { a = Add (x, large)  b = Clip (a, low, end)  c = Max (b, end)  d = Min (low, c)
      e = Pow (d, end)  y = Relu (e) }"""
    types = np.finfo(kind), np.finfo(np.float32)
    end = sign * min(types, key=lambda one: one.max).max
    bounds = {"large": end, "low": 0.25, "end": end}  # shape ()
    model = in_type(parse(text, {name: np.float64(a) for name, a in bounds.items()}), kind)
    graph, context = import_model(model), Context()
    context.output_types = {"y": np.dtype(kind)}
    ToFloat32().run(graph, context)
    found = {
        node.op: [array.item() for array in map(value, node.inputs) if array is not None]
        for node in graph.nodes
        if node.op != "Cast"
    }
    none = sign * np.inf
    assert found == {
        "Add": [end], "Clip": [0.25, none], "Max": [none], "Min": [0.25], "Pow": [end], "Relu": [],
    }  # fmt: skip
