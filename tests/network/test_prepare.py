"""preparation: what a network takes at once, and what it is compared on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, assert_close, codes, compile_text, parse, random, refused, run_model

import snncompiler
from snncompiler import pipeline
from snncompiler.calibration.calibrate import SYNTHETIC_SAMPLES
from snncompiler.emission.compiled import read_compiled
from snncompiler.errors import Refused
from snncompiler.ir.settings import Options
from snncompiler.network.checks import check_source
from snncompiler.runtime.session import create_session

CONV = "c = Conv <pads = [1, 1, 1, 1]> (u, w)"
BATCH_NORM = f"{CONV}  n = BatchNormalization (c, g1, b, b, v)  r = Relu (n)"
WEIGHTS = {
    "w": random(1, 4, 3, 3, 3), "g1": 1 + np.abs(random(2, 4)), "b": random(3, 4),
    "v": 1 + np.abs(random(4, 4)), "a": random(5, 6, 5), "o": random(6, 5, 3), "k": random(7, 4, 5),
}  # fmt: skip

#: Networks that take one size only: the input's shape, the output's, statements from u to y, and how
#: many rows of axis 0 the compiled file takes at once, None for any.
FIXED: dict[str, tuple[tuple[int, ...], tuple[int, ...], str, int | None]] = {
    "four images": ((4, 3, 6, 6), (4, 4, 6, 6), f"u = Neg (x)  {BATCH_NORM}  y = Neg (r)", None),
    "four images, nothing folded": ((4, 3, 6, 6), (4, 4, 6, 6),
        f"u = Neg (x)  {CONV}  r = Relu (c)  y = Neg (r)", None),
    "four rows that know each other": ((4, 6), (4, 3),
        "h = Gemm (x, a)  r = Relu (h)  m = ReduceMean <axes = [0]> (r)  d = Sub (r, m)"
        "  y = Gemm (d, o)", 4),
    "four images, mixed, folded": ((4, 3, 6, 6), (1, 4, 6, 6),
        f"u = Neg (x)  {BATCH_NORM}  y = ReduceSum <keepdims = 1> (r, zero)", 4),
    "an image without a batch": ((3, 6, 6), (4, 6, 6),
        f"u = Unsqueeze (x, zero)  {BATCH_NORM}  y = Squeeze (r, zero)", 3),
    "an image, a row of scores": ((3, 6, 6), (3,),
        f"u = Unsqueeze (x, zero)  {CONV}  r = Relu (c)  p = ReduceMean <axes = [2, 3]> (r)"
        "  f = Flatten (p)  h = Gemm (f, k)  s = Relu (h)  q = Gemm (s, o)  y = Squeeze (q, zero)", 3),
    "a vector": ((6,), (3,), "h = MatMul (x, a)  r = Relu (h)  y = MatMul (r, o)", 6),
    "a matrix of a vector": ((6,), (5, 1),
        "h = MatMul (x, a)  r = Relu (h)  y = Reshape (r, column)", 6),
    "time in front": ((7, 4, 6), (4, 3),
        "h = MatMul (x, a)  r = Relu (h)  m = ReduceMean <axes = [0], keepdims = 0> (r)"
        "  y = MatMul (m, o)", 7),
    "one row, no axis left": ((1, 6), (3,),
        "h = Gemm (x, a)  r = Relu (h)  q = Gemm (r, o)  y = Squeeze (q, zero)", 1),
}  # fmt: skip


def fixed(case: str) -> onnx.ModelProto:
    taken, given, body, _ = FIXED[case]
    sizes = [",".join(map(str, shape)) for shape in (taken, given)]
    text = f"""g (float[{sizes[0]}] x) => (float[{sizes[1]}] y)
    <int64[1] zero = {{0}}, int64[2] column = {{5, 1}}> {{ {body} }}"""
    return parse(text, {name: array for name, array in WEIGHTS.items() if f" {name}" in body})


@pytest.mark.parametrize("case", FIXED)
def test_networks_of_one_size_convert_and_converge(case: str) -> None:
    shape, _, _, rows = FIXED[case]
    model, x = fixed(case), random(0, 12, *shape)
    # Samples one behind the other, not a multiple of what runs at once; or whole inputs, stacked.
    flat = x.reshape(-1, *shape[1:])
    for data in (flat[:-1] if shape[0] > 1 else flat, *([x] if rows else [])):
        compiled = pipeline.prepare(model)
        assert compiled.fixed_batch == rows
        snn = compile_text(model, data, steps=256)
        assert read_compiled(snn).fixed_batch == rows
        (wanted,) = run_model(model, x=x[0])
        for way in ({}, {"events": False}, {"native": False}):
            (decoded,) = create_session(snn, threads=1, **way).run(None, {"x": x[0]})
            # Two layers of neurons and weights whose absolute sum is a few units: some θ/T.
            assert_close(decoded, wanted, relative=20 / 256)


def test_every_fixed_case_ran() -> None:
    assert len(FIXED) == 10


@pytest.mark.parametrize("case", FIXED)
def test_the_source_is_compared_on_what_it_takes(case: str) -> None:
    shape, _, _, _ = FIXED[case]
    prepared = pipeline.prepare(fixed(case))
    # Too few, too many, and just enough.
    for count in (1, shape[0], 2 * shape[0] + 1):
        check_source(prepared, {"x": random(1, count, *shape[1:])})
    assert "SNNC208" not in codes(prepared.findings)
    prepared.ann = pipeline.prepare(fixed(case)).ann
    for tensor in prepared.ann.graph.initializer:
        if tensor.dims and tensor.data_type == onnx.TensorProto.FLOAT:
            array = 2 * onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    with pytest.raises(Refused, match="SNNC208"):
        check_source(prepared, {"x": random(1, shape[0], *shape[1:])})


@pytest.mark.parametrize("case", ["four images, mixed, folded", "an image without a batch"])
def test_what_folding_changed_is_measured_on_what_the_source_takes(case: str) -> None:
    made = pipeline.compile_model(fixed(case), Options(steps=4))
    (layer,) = (one for one in made.prepared.context.layers.values() if one.folded)
    # A weight is rounded once: some roundings of 2^-24 of a sum of 27 products.
    assert layer.change is not None and layer.change[1] < 100 * 2.0**-24


@pytest.mark.parametrize("case", FIXED)
def test_evaluated_and_verified_as_it_is(case: str) -> None:
    shape, _, _, rows = FIXED[case]
    model, x = fixed(case), random(0, 9, *shape)
    data = x if rows else x.reshape(-1, *shape[1:])
    snn = compile_text(model, data, steps=64)
    found = snncompiler.evaluate(model, snn, data, steps=[64])
    assert found.samples == len(data) and found.results[0].relative_error < 20 / 64
    assert snncompiler.verify(model, snn, data=data).passed


def test_whole_inputs_stay_together_when_samples_are_drawn() -> None:
    # A sequence is one sample: rows of several would be another sequence.
    model = fixed("time in front")
    x = random(0, 20, 7, 4, 6) + np.arange(20, dtype=np.float32)[:, None, None, None]
    for data in (x, x.reshape(-1, 4, 6)):
        samples = 5 if data is x else 5 * 7
        made = pipeline.compile_model(
            model, Options(threshold="max", steps=4), data, samples=samples
        )
        chosen = np.sort(np.random.default_rng(made.calibration.seed).choice(20, 5, replace=False))
        assert made.calibration.samples == 5 * 7
        largest = np.maximum(x[chosen] @ WEIGHTS["a"], 0).max(axis=(0, 1, 3))
        theta = made.calibration.thresholds["Relu_1"]
        # The same products, summed in another order.
        assert_close(theta, largest.astype(np.float32), relative=100 * 2.0**-24)


@pytest.mark.parametrize("case", ["a vector", "time in front", "one row, no axis left"])
def test_without_data_thresholds_come_from_many_whole_inputs(case: str) -> None:
    made = pipeline.compile_model(fixed(case), Options(threshold="max", readout="mean"))
    shape, _, _, rows = FIXED[case]
    assert made.calibration.samples == SYNTHETIC_SAMPLES * (rows or 1)
    x = random(99, *shape)
    (wanted,) = run_model(fixed(case), x=x)
    (decoded,) = run_model(made.model, x=x, snnc_steps=np.array(512))
    # Maxima of 32 samples: a value of one more is seldom far above, and then cut off.
    assert_close(decoded, wanted, relative=0.2)


@pytest.mark.parametrize("diagnose", [False, True])
def test_both_networks_count_the_same_samples(diagnose: bool) -> None:
    # The outputs depend on how many run at once: sixteen, four of a diagnosis, and a rest of them.
    text = """g (float[B,6] x) => (float[B,5] y) <int64 zero = {0}>
    { h = MatMul (x, a)  r = Relu (h)  s = Shape (x)  n = Gather (s, zero)  f = Cast <to = 1> (n)
      y = Mul (r, f) }"""
    model, x = parse(text, {"a": WEIGHTS["a"]}), random(0, 21, 6)
    snn = compile_text(model, x, steps=256)
    found = snncompiler.evaluate(model, snn, x, diagnose=diagnose)
    # One neuron with a constant current: half a step of θ, over the mean output.
    assert found.results[0].relative_error < 2 / 256
    assert snncompiler.verify(model, snn, data=x).passed


# --- outputs without a batch ---

ANCHORS = {
    "an initializer": ("float[4,2] k", "", {"k": random(3, 4, 2)}),
    "an initializer that is read, too": ("float[5,3] o", "", {}),
    "passed on": ("float[4,2] k", "k = Identity (c)", {"c": random(3, 4, 2)}),
    "a Constant": ("float[2] k", "k = Constant <value = float[2] {1, 2}> ()", {}),
    "filled": ("float[2,3] k", "k = ConstantOfShape <value = float[1] {2}> (s)", {}),
    "computed": ("float[4,2] k", "k = Add (c, c)", {"c": random(3, 4, 2)}),
    "of integers": ("int64[2] k", "k = Identity (s)", {}),
}  # fmt: skip


@pytest.mark.parametrize("batch", ["N", "1", "4"])
@pytest.mark.parametrize("case", ANCHORS)
def test_constant_outputs_are_kept(case: str, batch: str) -> None:
    declared, body, more = ANCHORS[case]
    text = f"""g (float[{batch},6] x) => (float[{batch},3] y, {declared}) <int64[2] s = {{2, 3}}>
    {{ h = Gemm (x, a)  r = Relu (h)  y = Gemm (r, o)  {body} }}"""
    model = parse(text, {"a": WEIGHTS["a"], "o": WEIGHTS["o"], **more})
    x = random(0, 12, 6)
    count = 4 if batch == "4" else 1
    wanted = run_model(model, x=x[:count])
    snn = compile_text(model, x, steps=256)
    assert [entry.name for entry in snn.graph.output] == [
        entry.name for entry in model.graph.output
    ]
    for some in (1, 4, 12):
        decoded, kept = run_model(snn, x=x[:some])
        assert np.array_equal(kept, wanted[1]) and len(decoded) == some
    assert_close(run_model(snn, x=x[:count])[0], wanted[0], relative=10 / 256)
    found = snncompiler.evaluate(model, snn, x, steps=[256])
    assert found.results[0].relative_error < 10 / 256


# --- inputs of which there is no sample i ---

SHARED = {
    "a number": "float s",
    "a table beside any batch": "float[5,6] s",
    "a table of three rows": "float[3,6] s",
}


@pytest.mark.parametrize("batch", ["N", "4"])
@pytest.mark.parametrize("case", SHARED)
def test_inputs_without_samples_are_refused_by_name(case: str, batch: str) -> None:
    text = f"""g (float[{batch},6] x, {SHARED[case]}) => (float y)
    {{ h = Gemm (x, a)  r = Relu (h)  m = ReduceSum <keepdims = 0> (s)  y = Mul (r, m) }}"""
    model = parse(text, {"a": WEIGHTS["a"]})
    model.graph.output[0].type.tensor_type.ClearField("shape")
    (finding,) = refused(model)
    assert finding.code == "SNNC205" and "'s'" in finding.message and finding.hint


GRAPH = """a = MatMul (adj, x)  h = MatMul (a, u)  r = Relu (h)  b = MatMul (adj, r)  q = MatMul (b, t)
    s = Relu (q)  y = MatMul (s, o)"""


def graph_network(nodes: str) -> onnx.ModelProto:
    """Two graph convolutions: features and adjacency of every node, no batch."""
    text = f"""g (float[{nodes},3] x, float[{nodes},{nodes}] adj) => (float[{nodes},3] y)
    {{ {GRAPH} }}"""
    return parse(text, {"u": random(1, 3, 5), "t": random(2, 5, 5), "o": WEIGHTS["o"]})


def test_an_axis_that_is_tied_to_another_is_no_batch() -> None:
    (finding,) = refused(graph_network("N"))
    assert finding.code == "SNNC205" and "axis 0 of the inputs is no batch" in finding.message
    # With a fixed size, as the hint says, a graph is one sample.
    model = graph_network("5")
    feeds = {"x": random(0, 12, 5, 3), "adj": np.abs(random(1, 12, 5, 5))}
    snn = compile_text(model, feeds, steps=256)
    one = {name: array[0] for name, array in feeds.items()}
    # Two layers of neurons and weights whose absolute sum is a few units: some θ/T.
    assert_close(run_model(snn, **one)[0], run_model(model, **one)[0], relative=20 / 256)
    assert snncompiler.evaluate(model, snn, feeds).results[0].relative_error < 20 / 256


@pytest.mark.parametrize("batches", [("4", "1"), ("1", "4"), ("N", "4"), ("4", "N")])
def test_inputs_of_different_numbers_of_samples_are_refused(batches: tuple[str, str]) -> None:
    text = f"""g (float[{batches[0]},6] x, float[{batches[1]},6] z) => (float y)
    {{ h = Add (x, z)  r = Relu (h)  y = Neg (r) }}"""
    model = parse(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    (finding,) = refused(model)
    assert finding.code == "SNNC205" and "along axis 0" in finding.message


def test_several_inputs_of_one_sample_each_are_not() -> None:
    chosen: dict[str, Any] = {"a": WEIGHTS["a"]}
    for first, second in (("N", "1"), ("1", "N"), ("4", "4"), ("N", "M"), ("6", "6")):
        text = f"""g (float[{first},6] x, float[{second},5] z) => (float y)
        {{ h = Gemm (x, a)  s = Add (h, z)  y = Relu (s) }}"""
        model = parse(text, chosen)
        model.graph.output[0].type.tensor_type.ClearField("shape")
        x: dict[str, Array] = {"x": random(0, 8, 6), "z": random(1, 8, 5)}
        (decoded,) = run_model(compile_text(model, x, steps=256), **x)
        # One neuron with a constant current: half a step of θ.
        assert_close(decoded, np.maximum(x["x"] @ WEIGHTS["a"] + x["z"], 0), relative=1.01 / 512)


@pytest.mark.parametrize("case", ["a vector", "an image, a row of scores", "one row, no axis left"])
def test_labels_of_whole_inputs(case: str) -> None:
    shape, _, _, _ = FIXED[case]
    model, x = fixed(case), random(0, 20, *shape)
    wanted = np.array([run_model(model, x=one)[0].argmax() for one in x])
    labels = np.where(np.arange(20) < 5, (wanted + 1) % 3, wanted)
    snn = compile_text(model, x, steps=1024)
    found = snncompiler.evaluate(model, snn, {"x": x, "labels": labels})
    assert found.samples == 20 and found.ann_accuracy == 0.75
    assert found.results[0].agreement == 1.0 and found.results[0].accuracy == 0.75
    some = snncompiler.evaluate(model, snn, {"x": x, "labels": labels}, limit=10)
    assert some.samples == 10 and some.ann_accuracy == 0.5


#: What takes maps of one size only, though height and width are declared open: statements, the rank of
#: the result, and the weights for maps of 6 by the given width.
TAKEN: dict[str, tuple[str, int, Callable[[int], dict[str, Array]]]] = {
    "row": ("m = Add (c, k)", 4, lambda width: {"k": random(10, width)}),
    "reshaped": ("m = Reshape (c, k)", 4, lambda width: {"k": np.array([0, 2, 12, width])}),
    "batch open": ("m = Reshape (c, k)", 4, lambda width: {"k": np.array([-1, 4, 6, width])}),
    "flat": (
        "f = Flatten (c)  m = MatMul (f, k)", 2, lambda width: {"k": random(11, 24 * width, 5)}
    ),
}  # fmt: skip


def of_one_size(case: str, width: int) -> onnx.ModelProto:
    middle, rank, weights = TAKEN[case]
    out = ",".join("?" * rank)
    text = f"""g (float[N,3,H,W] x) => (float[{out}] y)
    {{ a = Conv <pads = [1, 1, 1, 1]> (x, w)  r = Relu (a)  c = Neg (r)  {middle}
      y = LeakyRelu <alpha = 0.5> (m) }}"""
    return parse(text, {"w": WEIGHTS["w"], **weights(width)})


@pytest.mark.parametrize("case", TAKEN)
def test_sizes_that_are_not_as_open_as_they_are_declared(case: str) -> None:
    model, x = of_one_size(case, 6), random(12, 5, 3, 6, 6)
    snncompiler.check(model)
    (wanted,) = run_model(model, x=x)
    (found,) = run_model(compile_text(model, x, steps=64), x=x)
    assert_close(found, wanted, relative=4 / 64)
    # Without data, too: a size is found with which it runs.
    with_stand_ins = pipeline.compile_model(model, Options()).model
    assert run_model(with_stand_ins, x=x)[0].shape == wanted.shape


@pytest.mark.parametrize("case", ["reshaped", "flat"])
def test_of_two_sizes_that_differ_the_data_tells(case: str) -> None:
    model, x = of_one_size(case, 4), random(13, 5, 3, 6, 4)
    assert pipeline.prepare(model).sizes == {}
    with pytest.raises(Refused, match="sizes that the source leaves open are not free"):
        pipeline.compile_model(model, Options())
    (wanted,) = run_model(model, x=x)
    spiking = compile_text(model, x, steps=64)
    assert_close(run_model(spiking, x=x)[0], wanted, relative=4 / 64)
    assert snncompiler.verify(model, spiking, data=x).passed


def test_no_samples_are_any_number_and_no_size_is_none() -> None:
    # Some exporters write 0 for the batch; onnxruntime would take 0 samples of it, and no other number.
    text = """g (float[0,3,6,6] x) => (float[0,4,6,6] y)
    { a = Conv <pads = [1, 1, 1, 1]> (x, w)  y = Relu (a) }"""
    model, x = parse(text, {"w": WEIGHTS["w"]}), random(14, 5, 3, 6, 6)
    spiking = compile_text(model, x, steps=64)
    found = snncompiler.evaluate(model, spiking, x, steps=[64])
    assert found.samples == 5 and found.results[0].relative_error < 4 / 64
    for sizes, axis in (("N,3,0,6", 2), ("0,3,6,0", 3)):
        empty = parse(
            text.replace("0,3,6,6", sizes).replace("0,4,6,6", "?,?,?,?"), {"w": WEIGHTS["w"]}
        )
        with pytest.raises(Refused, match=f"size along axis {axis} is 0") as caught:
            pipeline.compile_model(empty, Options())
        assert codes(caught.value.findings) == ["SNNC107"]


ONE_ROW = """g (float[%s,6] x) => (float[%s,3] y)
{ a = MatMul (x, w)  r = Relu (a)  q = ScatterElements <axis = 1> (r, at, put)  y = MatMul (q, v) }"""


@pytest.mark.parametrize("batch", ["N", "1"])
def test_a_source_that_treats_samples_by_their_place_is_refused(batch: str) -> None:
    """Among three samples only the first is written to; alone each of them is."""
    weights = {
        "w": random(1, 6, 8), "v": random(2, 8, 3),
        "at": np.array([[0, 3]]), "put": np.array([[2, -1]], np.float32),
    }  # fmt: skip
    model, x = parse(ONE_ROW % (batch, batch), weights), random(3, 8, 6)
    if batch == "1":
        assert pipeline.compile_model(model, Options(), x).prepared.any_batch
        return
    with pytest.raises(Refused, match="otherwise among three samples than alone") as caught:
        pipeline.compile_model(model, Options(), x)
    assert [finding.code for finding in caught.value.findings] == ["SNNC205"]
