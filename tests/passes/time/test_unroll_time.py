"""sink-time-mean and unroll-time: fold, loop and steps give the same; T and K may be changed."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, assert_close, compile_text, op_counts, parse, random, run_model, told
from onnx import helper

from snncompiler import models, pipeline
from snncompiler.emission.save import serialize
from snncompiler.errors import Refused
from snncompiler.findings import Finding
from snncompiler.ir.phases import TIME_MEAN
from snncompiler.ir.settings import Options
from snncompiler.network import prepared
from snncompiler.runtime.stream import Stream

#: MaxPool, a residual, and a static side branch that meets temporal values: the Tile path.
SIDE = """g (float[N,2,8,8] x) => (float[N,3] y)
{
  c = Conv <pads = [1, 1, 1, 1]> (x, a)  r = Relu (c)
  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
  side = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (x)
  wide = Concat <axis = 1> (p, side)
  d = Conv <pads = [1, 1, 1, 1]> (wide, b)  s = Add (d, p)  q = Relu (s)
  m = ReduceMean <axes = [2, 3], keepdims = 0> (q)  z = Gemm (m, o)  y = Softmax (z)
}"""


def side() -> onnx.ModelProto:
    weights = {
        "a": random(1, 4, 2, 3, 3) / 3,
        "b": random(2, 4, 6, 3, 3) / 5,
        "o": random(3, 4, 3),
    }
    return parse(SIDE, weights)


def digits() -> Array:
    with np.load(models.path("digits-test")) as archive:
        images: Array = archive["x"][:8].transpose(0, 3, 1, 2).astype(np.float32) / 255
        return images


NETWORKS: dict[str, Any] = {
    "digits-cnn": (lambda: onnx.load(str(models.path("digits-cnn"))), digits, "input"),
    "digits-resnet": (lambda: onnx.load(str(models.path("digits-resnet"))), digits, "input"),
    "side": (side, lambda: random(4, 8, 2, 8, 8), "x"),
}

#: The neurons' and the sums' arithmetic is the same in every way of unrolling; a convolution of
#: K·N rows may sum in another order than one of N, so that a current within some 2^-20 of θ moves a
#: spike to the next step.  Such a spike is at most 1 of T in one neuron of many: with T = 16 its
#: share in an output is θ·w/16 of one among dozens of inputs.  Allowed: 2 % of the largest output.
#: Seen: none moves, the outputs are equal to the last roundings.
MOVED = 0.02


def equal(found: Array, wanted: Array) -> None:
    assert_close(found, wanted, relative=MOVED)
    # Nearly all outputs are the same up to the rounding of the read-out, 2^-24 for some 100 terms.
    scale = np.abs(wanted).max()
    assert (np.abs(found - wanted) <= 100 * 2.0**-24 * scale).mean() > 0.9


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("steps", [16])
def test_the_three_ways_agree(name: str, steps: int) -> None:
    build, inputs, feed = NETWORKS[name]
    model, x = build(), inputs()
    prepared = pipeline.prepare(model)
    calibration = pipeline.compile_model(model, Options(threshold="max"), x).calibration

    def emitted(**options: Any) -> onnx.ModelProto:
        return pipeline.emit(prepared, calibration, Options(steps=steps, **options))

    (copies,) = run_model(emitted(unroll="steps"), **{feed: x})
    (loop,) = run_model(emitted(unroll="loop"), **{feed: x})
    equal(loop, copies)
    for chunk in (1, 4, 5, 16):
        (fold,) = run_model(emitted(unroll="fold", chunk=chunk), **{feed: x})
        equal(fold, copies)
    (ann,) = run_model(model, **{feed: x})
    # Rough, at T = 16: the ways agree on the right thing.
    assert (copies.argmax(axis=1) == ann.argmax(axis=1)).mean() >= 0.75


@pytest.mark.parametrize("name", ["digits-cnn", "side"])
def test_steps_and_chunks_may_be_changed_when_running(name: str) -> None:
    build, inputs, feed = NETWORKS[name]
    model, x = build(), inputs()
    fold, loop = (compile_text(model, x, steps=8, unroll=way) for way in ("fold", "loop"))
    ran = 0
    for steps in (1, 7, 24):
        baked = compile_text(model, x, steps=steps, unroll="steps")
        (wanted,) = run_model(baked, **{feed: x})
        count = np.array(steps)
        equal(run_model(loop, **{feed: x}, snnc_steps=count)[0], wanted)
        for chunk in (1, 5, 32):
            feeds = {feed: x, "snnc_steps": count, "snnc_chunk": np.array(chunk)}
            equal(run_model(fold, **feeds)[0], wanted)
            ran += 1
    assert ran == 9


def test_any_batch_gives_what_each_sample_gives() -> None:
    x = random(4, 5, 2, 8, 8)
    for way in ("fold", "loop", "steps"):
        snn = compile_text(side(), x, steps=6, unroll=way)
        (together,) = run_model(snn, x=x)
        alone = np.concatenate([run_model(snn, x=x[i : i + 1])[0] for i in range(5)])
        equal(together, alone)


def test_a_static_branch_is_repeated_in_fold_only() -> None:
    x = random(4, 2, 2, 8, 8)
    fold, loop = (op_counts(compile_text(side(), x, unroll=way)) for way in ("fold", "loop"))
    assert fold["Drive"] == 1 and fold["Tile"] == 0
    assert loop["Drive"] == 0 and loop["Tile"] == 0


def test_the_static_part_and_the_read_out_stand_outside_of_time() -> None:
    snn = compile_text(side(), random(4, 2, 2, 8, 8))
    outside = [node.op_type for node in snn.graph.node]
    for op in ("Conv", "AveragePool", "ReduceMean", "Gemm", "Softmax", "Loop"):
        assert outside.count(op) == 1, op
    assert op_counts(snn)["Conv"] == 2 and op_counts(snn)[TIME_MEAN] == 0


def test_steps_bakes_its_number_in() -> None:
    snn = compile_text(side(), random(4, 2, 2, 8, 8), steps=3, unroll="steps")
    assert [entry.name for entry in snn.graph.input] == ["x"]
    assert op_counts(snn)["RMPNeuron"] == 6 and op_counts(snn)["Loop"] == 0
    properties = {p.key: p.value for p in snn.metadata_props}
    assert properties["snnc.steps_input"] == properties["snnc.chunk_input"] == ""


def test_the_metadata_names_the_inputs() -> None:
    text = """g (float[N,2] snnc_steps) => (float[N,2] snnc_chunk) { snnc_chunk = Relu (snnc_steps) }"""
    x = random(0, 2, 2)
    snn = compile_text(parse(text), x, steps=9, chunk=4)
    properties = {p.key: p.value for p in snn.metadata_props}
    steps, chunk = properties["snnc.steps_input"], properties["snnc.chunk_input"]
    assert len({steps, chunk, "snnc_steps", "snnc_chunk"}) == 4
    assert (told(snn)["steps"], told(snn)["chunk"]) == ("9", 4)
    inputs = {entry.name for entry in snn.graph.input}
    assert inputs == {"snnc_steps", steps, chunk}
    (more,) = run_model(snn, snnc_steps=x, **{steps: np.array(4096)})
    # θ/2T, θ at most the maximum; float32: v is rounded T times to 2^-24.
    assert np.abs(more - np.maximum(x, 0)).max() <= np.abs(x).max() * (1 / 8192 + 4096 * 2.0**-24)


def test_too_many_copies_are_refused_before_the_calibration() -> None:
    with pytest.raises(Refused) as caught:
        compile_text(side(), random(4, 2, 2, 8, 8), steps=1_000_000, unroll="steps")
    (finding,) = caught.value.findings
    assert finding.code == "SNNC209" and "1,000,000 steps of 2" in finding.message


def test_too_many_copies_of_other_nodes_are_refused_too() -> None:
    # 2 neurons a step pass the early check, the 10 nodes of a step do not.
    with pytest.raises(Refused) as caught:
        compile_text(side(), random(4, 2, 2, 8, 8), steps=5_000, unroll="steps")
    (finding,) = caught.value.findings
    assert finding.code == "SNNC209" and "the limit is 20,000" in finding.message


# --- shapes of networks ---


def decodes(text: str, relative: float, **feeds: Array) -> None:
    """Compiled in all three ways: every output within `relative`/T of the ANN's."""
    model = parse(text)
    wanted = run_model(model, **feeds)
    for way, steps in (("fold", 256), ("loop", 256), ("steps", 16)):
        snn = compile_text(model, feeds, steps=steps, unroll=way)
        assert [o.name for o in snn.graph.output] == [o.name for o in model.graph.output]
        for found, want in zip(run_model(snn, **feeds), wanted, strict=True):
            assert_close(found, want, relative=relative / steps)


#: One neuron on a constant current is off by at most θ/2T; two and three in a row by some θ/T.
ONE, FEW = 0.51, 6.0


def test_from_a_rectifier_to_an_output() -> None:
    decodes("g (float[N,2] x) => (float[N,2] y) { y = Relu (x) }", ONE, x=random(0, 3, 2))


def test_an_output_in_the_middle_and_spikes_twice() -> None:
    text = """g (float[N,2] x) => (float[N,2] h, float[N,2] n, float[N,2] y, float[N,2] x2)
    { h = Relu (x)  n = Neg (h)  s = Add (n, x)  y = Relu (s)  x2 = Abs (x) }"""
    decodes(text, FEW, x=random(0, 3, 2))


def test_two_inputs_and_two_outputs() -> None:
    text = """g (float[N,2] x, float[N,2] z) => (float[N,2] y, float[N,2] w)
    { h = Relu (x)  a = Add (h, z)  y = Relu (a)  b = Sub (z, x)  w = Relu (b) }"""
    decodes(text, FEW, x=random(0, 3, 2), z=random(1, 3, 2))


def test_a_softmax_at_the_end() -> None:
    text = """g (float[N,3] x) => (float[N,3] y) { h = Relu (x)  y = Softmax (h) }"""
    # Softmax moves by at most half of what its inputs move.
    decodes(text, 4 * ONE, x=random(0, 3, 3))


def test_a_static_gate_beside_spikes() -> None:
    text = """g (float[N,3] x, float[N,3] z) => (float[N,3] y)
    { h = Relu (x)  g = Sigmoid (z)  m = Mul (g, h)  y = Relu (m) }"""
    decodes(text, FEW, x=random(0, 3, 3), z=random(1, 3, 3))


def test_a_static_value_whose_batch_came_from_another_axis() -> None:
    text = """g (float[N,4] x) => (float[N,4] y)
    <int64[1] zero = {0}, int64[2] back = {-1, 4}>
    { h = Relu (x)  u = Unsqueeze (x, zero)  r = Reshape (u, back)  s = Sub (h, r)  y = Relu (s) }"""
    decodes(text, FEW, x=random(0, 3, 4))


def test_time_cannot_be_folded_where_the_batch_is_elsewhere() -> None:
    text = """g (float[N,2,3] x) => (float[N,2,3] y)
    { h = Relu (x)  t = Transpose <perm = [1, 0, 2]> (h)  r = Relu (t)
      n = Neg (r)  b = Transpose <perm = [1, 0, 2]> (n)  s = Sub (x, b)  y = Relu (s) }"""
    x = random(0, 3, 2, 3)
    decodes(text, FEW, x=x)
    compiled = pipeline.compile_model(parse(text), Options(threshold="max"), x)
    assert told(compiled.model)["unroll"] == "loop"
    assert any(f.code == "SNNC205" and "Transpose" in f.node for f in compiled.prepared.findings)
    with pytest.raises(pipeline.UsageError, match="--chunk 4"):
        compile_text(parse(text), x, chunk=4)


@pytest.mark.parametrize(
    "middle",
    [
        'm = Resize <mode = "linear"> (h, , twice)',
        "m = Tile (h, times)",
        "m = Slice (h, from, to)",
        "m = Slice (h, from, to, each, one)",
    ],
)
def test_time_folds_behind_what_leaves_the_batch_alone(middle: str) -> None:
    # ONNX infers nothing of an axis of unknown size there: "1 times it" and "all of it" are known.
    text = f"""g (float[N,2,4,6] x) => (float[N,2,?,?] y)
    <float[4] twice = {{1, 1, 2, 2}}, int64[4] times = {{1, 1, 2, 1}}, int64[4] from = {{0, 0, 0, 1}},
     int64[4] to = {{9223372036854775807, 2147483647, 9, 6}}, int64[4] each = {{-4, 1, 2, 3}},
     int64[4] one = {{1, 1, 1, 1}}>
    {{ h = Relu (x)  {middle}  n = Neg (m)  y = LeakyRelu (n) }}"""
    x = random(0, 3, 2, 4, 6)
    decodes(text, FEW, x=x)
    compiled = pipeline.compile_model(parse(text), Options(threshold="vin-max"), x)
    assert told(compiled.model)["unroll"] == "fold"
    assert not [finding for finding in compiled.prepared.findings if finding.code == "SNNC205"]


@pytest.mark.parametrize("way", ["fold", "loop", "steps"])
def test_shapes_of_temporal_values_are_no_temporal_values(way: str) -> None:
    # Height and width are unknown, so the exporter computes the sizes when running.
    text = """g (float[N,2,H,W] x) => (float[N,2,?,?] y) <int64[2] two = {2, 2}>
    { h = Relu (x)  p = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (h)
      lead = Shape <end = 2> (p)  hw = Shape <start = 2> (h)  t = Concat <axis = 0> (lead, hw)
      u = Resize <mode = "nearest"> (p, , , t)  n = Sub (h, u)  y = Relu (n) }"""
    model, x = parse(text), random(0, 1, 2, 4, 6)
    (wanted,) = run_model(model, x=x)
    (found,) = run_model(compile_text(model, x, steps=16, unroll=way), x=x)
    assert_close(found, wanted, relative=FEW / 16)


def test_hard_reset_unrolls_alike() -> None:
    x = random(4, 3, 2, 8, 8)
    runs = [
        run_model(compile_text(side(), x, steps=12, unroll=way, reset="hard"), x=x)[0]
        for way in ("fold", "loop", "steps")
    ]
    equal(runs[0], runs[2])
    equal(runs[1], runs[2])


# --- what is written ---


@pytest.mark.parametrize("unroll", ["fold", "loop", "steps"])
def test_two_compilations_write_the_same_bytes(unroll: str) -> None:
    x = random(4, 3, 2, 8, 8)
    first, second = (
        serialize(compile_text(side(), x, steps=6, unroll=unroll, threshold="percentile"))
        for _ in range(2)
    )
    assert first == second and len(first) > 1000


def test_emitting_twice_gives_the_same_and_leaves_the_network_alone() -> None:
    x = random(4, 3, 2, 8, 8)
    compiled = pipeline.compile_model(side(), Options(), x)
    before = serialize(compiled.prepared.ann)
    again = pipeline.emit(compiled.prepared, compiled.calibration, Options())
    assert serialize(again) == serialize(compiled.model)
    assert serialize(prepared.as_model(compiled.prepared.graph)) == before


def test_an_emission_leaves_nothing_behind_for_the_next() -> None:
    """Facts, findings, layers and axes of one form are not those of another."""
    x = random(4, 3, 2, 8, 8)
    made = pipeline.compile_model(side(), Options(), x)
    known = deepcopy(made.prepared.context)
    forms: list[dict[str, Any]] = [
        {"target": "cpu"}, {"encode": "poisson"}, {"emit": "step"}, {"unroll": "loop"},
        {"emit": "cuda-graph", "batch": 2}, {"precision": "fp16"},
    ]  # fmt: skip
    calibration = replace(made.calibration, input_scales={"x": 4.0})
    alone = [
        serialize(pipeline.emit(pipeline.prepare(side()), calibration, Options(**form)))
        for form in forms
    ]
    after_each_other = [
        serialize(pipeline.emit(made.prepared, calibration, Options(**form)))
        for form in [*forms, *forms[::-1]]
    ]
    assert after_each_other == alone + alone[::-1]
    assert vars(made.prepared.context) == vars(known)


def test_what_is_said_of_an_emission_is_said_once_and_to_who_asks() -> None:
    text = """g (float[N,2,3] x) => (float[N,2,3] y)
    { h = Relu (x)  t = Transpose <perm = [1, 0, 2]> (h)  r = Relu (t)
      n = Neg (r)  b = Transpose <perm = [1, 0, 2]> (n)  s = Sub (x, b)  y = Relu (s) }"""
    made = pipeline.compile_model(parse(text), Options(correction="none"), random(1, 4, 2, 3))
    assert [f.code for f in made.prepared.findings].count("SNNC205") == 1
    told: list[Finding] = []
    pipeline.emit(made.prepared, made.calibration, Options(correction="none"), told)
    pipeline.emit(made.prepared, made.calibration, Options(correction="none"))
    assert [finding.code for finding in told] == ["SNNC205"]
    assert [f.code for f in made.prepared.findings].count("SNNC205") == 1


def test_a_saved_calibration_gives_the_same_bytes() -> None:
    x = random(4, 3, 2, 8, 8)
    compiled = pipeline.compile_model(side(), Options(), x)
    read = pipeline.Calibration.from_json(compiled.calibration.to_json())
    again = pipeline.compile_model(side(), Options(), read)
    assert serialize(again.model) == serialize(compiled.model)


def test_a_calibration_of_another_model_is_refused() -> None:
    x = random(4, 3, 2, 8, 8)
    calibration = pipeline.compile_model(side(), Options(), x).calibration
    other = side()
    other.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(random(9, 4, 2, 3, 3), other.graph.initializer[0].name)
    )
    with pytest.raises(Refused, match="SNNC306"):
        pipeline.compile_model(other, Options(), calibration)


def test_the_result_is_valid_and_old_enough_for_old_runtimes() -> None:
    snn = compile_text(side(), random(4, 2, 2, 8, 8))
    onnx.checker.check_model(snn, full_check=True)
    assert snn.ir_version <= 10
    assert {f.name for f in snn.functions} == {
        "Drive", "RMPNeuron", "SpikeMaxPool", "TimeSteps", "TimeSum",
    }  # fmt: skip
    assert helper.make_opsetid("", 17) in snn.opset_import


def test_an_input_of_a_stream_that_the_read_out_reads_is_averaged() -> None:
    """y is the mean of x, in steps of the same model; in a window x does not change."""
    text = "g (float[N,3] x) => (float[N,3] y) { r = Relu (x)  z = MatMul (r, w)  y = Add (z, x) }"
    model = parse(text, {"w": np.zeros((3, 3), np.float32)})
    first, second = np.float32([[1, -2, 0.5]]), np.float32([[0, 4, 0.25]])
    stream = Stream(compile_text(model, first, steps=4, emit="step"))
    assert np.array_equal(stream.step({"x": first})["y"], first)
    assert np.array_equal(stream.step({"x": second})["y"], (first + second) / 2)
    window = compile_text(model, first, steps=4)
    assert np.array_equal(run_model(window, x=second)[0], second)


@pytest.mark.parametrize("power", [1, 2, 3])
@pytest.mark.parametrize("form", [{}, {"unroll": "loop"}, {"emit": "step"}])
def test_the_weights_of_time_sum_to_one(form: dict[str, Any], power: int) -> None:
    """A neuron that fires in every step gives its θ: for any weights t^P, and after any step."""
    x = np.float32([[0.75]])
    model = parse("g (float[N,1] x) => (float[N,1] y) { y = Relu (x) }")
    chosen = {"readout": f"ramp:{power}", "correction": "none", "threshold": "max", **form}
    snn = compile_text(model, x, **chosen)
    stream = Stream(snn) if "emit" in form else None
    for steps in range(1, 9):
        if stream is not None:
            found = stream.step({"x": x})["y"]
        else:
            (found,) = run_model(snn, x=x, snnc_steps=np.array(steps))
        # Weights and sums round a few times.
        assert_close(found, x, relative=8 * 2.0**-24)
