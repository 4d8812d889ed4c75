"""Inferred shapes: a number is right in every run, and a symbol is one number in a run."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import Array, compile_text, parse, random, run_model

from snncompiler.ir.graph import with_outputs
from snncompiler.ir.symbolic import Shape, Shapes

#: Operators on maps of any size.
NETWORK = """g (float[N,4,H,W] x, float[N,4,H,W] z, float[M,4,H,V] u) => (float[N,?,?,?] y)
{
  a = Conv <pads = [1, 1, 1, 1]> (x, k3)  b = Conv (x, k1)  c = Add (a, z)
  d = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (c)
  e = MaxPool <kernel_shape = [3, 3], auto_pad = "SAME_UPPER"> (d)
  f = Conv <pads = [2, 2, 2, 2], dilations = [2, 2]> (e, k3)
  s1 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (f, k3)  s2 = Conv <strides = [2, 2]> (x, k1)
  s3 = Slice (x, zeros, ends, axes, twos)
  s4 = AveragePool <kernel_shape = [2, 2], strides = [2, 2], auto_pad = "SAME_LOWER"> (x)
  s5 = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (x)
  q1 = Conv <strides = [2, 2]> (s3, k1)  q2 = Conv <strides = [4, 4]> (x, k1)
  q3 = Slice (s5, zeros, ends, behind, twos)
  p = Pad (x, pads)  h1 = Conv (p, k3)  h2 = Conv <pads = [1, 0, 1, 0]> (x, k3)
  r1 = Resize (x, , double)  r2 = Resize (b, , double)  r3 = Resize (x, , triple)
  t1 = ConvTranspose <strides = [2, 2]> (x, k2)  t2 = ConvTranspose <strides = [2, 2]> (b, k2)
  g1 = GlobalAveragePool (x)  g2 = ReduceMean <axes = [2, 3]> (z)
  l1 = Reshape (x, back)  l2 = Reshape (x, lines)  l3 = Tile (x, twice)
  m = Concat <axis = 1> (x, l1)  n1, n2 = Split <axis = 1> (m)
  c1 = MaxPool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (x)
  c2 = MaxPool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (z)
  w1 = Slice (x, ones, ends, axes)  w2 = Transpose <perm = [0, 1, 3, 2]> (x)  w3 = Flatten (x)
  o = Conv <pads = [1, 1, 1, 1]> (u, k3)  y = Neg (s1)
}"""
WEIGHTS: dict[str, Array] = {
    "k3": random(1, 4, 4, 3, 3),
    "k2": random(2, 4, 4, 2, 2),
    "k1": random(3, 4, 4, 1, 1),
    "zeros": np.zeros(2, np.int64),
    "ones": np.ones(2, np.int64),
    "twos": np.full(2, 2),
    "ends": np.full(2, 2**31 - 1),
    "axes": np.array([2, 3]),
    "behind": np.array([-2, -1]),
    "pads": np.array([0, 0, 1, 0, 0, 0, 1, 0]),
    "double": np.array([1, 1, 2, 2], np.float32),
    "triple": np.array([1, 1, 3, 3], np.float32),
    "back": np.array([-1, 4, 0, 0]),
    "lines": np.array([0, 2, -1]),
    "twice": np.array([1, 1, 2, 1]),
}
#: Results of one shape, whatever goes in.
ALIKE = [
    ("x", "a", "b", "c", "d", "e", "f", "l1", "n1", "n2"),
    ("s1", "s2", "s3", "s4", "s5", "y"),
    ("q1", "q2", "q3"),
    ("h1", "h2"),
    ("r1", "r2"),
    ("t1", "t2"),
    ("g1", "g2"),
    ("c1", "c2"),
]


def shape_of(shapes: Shapes, name: str) -> Shape:
    found = shapes.of(name)
    assert found is not None, name
    return found


def test_what_has_one_shape_is_known_to() -> None:
    shapes = Shapes(parse(NETWORK, WEIGHTS))
    groups = [{shape_of(shapes, name) for name in names} for names in ALIKE]
    assert all(len(group) == 1 for group in groups), groups
    # No two of them have one shape in every run, nor have those that were left out.
    others = [{shape_of(shapes, name)} for name in ("r3", "l2", "l3", "w1", "w2", "w3", "o", "u")]
    distinct = [next(iter(group)) for group in [*groups, *others[:-1]]]
    assert len(set(distinct)) == len(distinct)
    assert shape_of(shapes, "o") == shape_of(shapes, "u")


@pytest.mark.parametrize(("height", "width"), [(6, 9), (7, 4), (5, 5), (8, 12), (12, 8)])
def test_a_number_is_right_and_a_symbol_is_one_number(height: int, width: int) -> None:
    model = parse(NETWORK, WEIGHTS)
    shapes = Shapes(model)
    names = [name for node in model.graph.node for name in node.output]
    feeds = {
        "x": random(4, 3, 4, height, width),
        "z": random(5, 3, 4, height, width),
        "u": random(6, 2, 4, height, 11),
    }
    watched = with_outputs(model, names)
    results = dict(
        zip(
            [entry.name for entry in watched.graph.output], run_model(watched, **feeds), strict=True
        )
    )
    meant: dict[int | str, set[int]] = {}
    for name, array in {**feeds, **results}.items():
        shape = shape_of(shapes, name)
        assert len(shape) == array.ndim, name
        for dim, size in zip(shape, array.shape, strict=True):
            meant.setdefault(dim, set()).add(size)
    assert all(sizes == {dim} for dim, sizes in meant.items() if isinstance(dim, int))
    assert all(len(sizes) == 1 for sizes in meant.values())
    assert sum(isinstance(dim, str) for dim in meant) > 20


def test_names_of_the_file_are_no_symbols_of_ours() -> None:
    """Dimensions named as we name ours are told apart all the same."""
    text = "g (float[d0,4,d1,d2] x, float[d2,4,?,?] z) => (float y) { a = Neg (x)  y = Neg (z) }"
    shapes = Shapes(parse(text))
    x, z = shape_of(shapes, "x"), shape_of(shapes, "z")
    assert len({*x, *z}) == 6 and x[3] == z[0] and shape_of(shapes, "a") == x


def test_what_the_file_says_of_its_own_tensors_is_not_believed() -> None:
    model = parse("g (float[N,4] x) => (float[N,9] y) <float[7,7] a> { a = Neg (x)  y = Exp (a) }")
    assert {shape_of(Shapes(model), name)[1] for name in ("a", "y")} == {4}


def test_what_cannot_be_inferred_is_unknown() -> None:
    model = parse(
        "g (float[N,4] x) => (float y) { a = Neg (x)  b = Heard (a)  c = Add (a, b)  y = Neg (c) }"
    )
    shapes = Shapes(model)
    assert shapes.of("a") is not None
    assert shapes.of("b") is shapes.of("c") is shapes.of("y") is shapes.of("absent") is None


@pytest.mark.parametrize("unroll", ["fold", "loop"])
def test_time_in_a_loop(unroll: str) -> None:
    """K·N rows where time is folded, as many as samples where it is not."""
    text = """g (float[N,2,H,W] x) => (float[N,4,?,?] y)
    {
      c = Conv <pads = [1, 1, 1, 1]> (x, a)  r = Relu (c)
      d = Conv (r, b)  s = Add (d, c)  t = Relu (s)
      m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (t)  e = Conv (m, b)  y = Relu (e)
    }"""
    weights = {"a": random(1, 4, 2, 3, 3), "b": random(2, 4, 4, 1, 1)}
    model = compile_text(parse(text, weights), random(3, 4, 2, 6, 6), steps=5, unroll=unroll)
    shapes = Shapes(model)
    loop = next(node for node in model.graph.node if node.op_type == "Loop")
    body = next(entry.g for entry in loop.attribute if entry.name == "body")
    made = {node.op_type: node for node in body.node}
    static, temporal = shape_of(shapes, "c"), shape_of(shapes, "d")
    assert temporal[1:] == static[1:] and temporal[1] == 4
    assert (temporal[0] == static[0]) == (unroll == "loop")
    neurons = [node for node in body.node if "Neuron" in node.op_type]
    assert len(neurons) == 3
    steps = shapes.number(neurons[0].input[-1])
    assert steps is not None and shapes.product(steps, static[0]) == temporal[0]
    assert [shape_of(shapes, node.output[0])[0] for node in neurons] == [temporal[0]] * 3
    pooled = shape_of(shapes, made["SpikeMaxPool"].output[0])
    assert pooled[:2] == temporal[:2] and pooled[2] != temporal[2]
    assert shapes.of(loop.output[0]) is None


def test_a_product_and_a_ratio_of_a_ratio_have_one_name() -> None:
    shapes = Shapes(parse("g (float[N,H] x) => (float y) { y = Neg (x) }"))
    n, h = shape_of(shapes, "x")
    assert shapes.product(n, h) == shapes.product(h, n) != n
    assert shapes.product(n, 1) == n and shapes.product(3, 4) == 12
    assert shapes._ratio(shapes._ratio(h, 1, 2), 1, 2) == shapes._ratio(h, 3, 4)
    assert shapes._ratio(shapes._ratio(h, 2, 1), -2, 1) == h


def test_onnx_agrees_on_plain_sizes() -> None:
    text = NETWORK.replace("N,4,H,W", "3,4,7,9").replace("M,4,H,V", "2,4,7,5")
    model = parse(text, WEIGHTS)
    shapes = Shapes(model)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    found = {
        entry.name: tuple(dim.dim_value for dim in entry.type.tensor_type.shape.dim)
        for entry in (*inferred.value_info, *inferred.output)
    }
    assert len(found) > 30
    assert {name: shapes.of(name) for name in found} == found
