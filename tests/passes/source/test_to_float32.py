"""to-float32: networks in other float types, and what is told of them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import (
    assert_close,
    compile_text,
    in_type,
    parse,
    random,
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
