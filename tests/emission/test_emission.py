"""Single steps for streams, whole windows for CUDA graphs, and float16 emission."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import compile_text, parse, random
from numpy.typing import NDArray

import snncompiler
from snncompiler import pipeline
from snncompiler.errors import UsageError
from snncompiler.ir import dialect
from snncompiler.ir.settings import Options
from snncompiler.models import path
from snncompiler.runtime import Stream, create_session

NETWORKS = ["digits-cnn", pytest.param("digits-resnet", marks=pytest.mark.slow)]
HOW = snncompiler.Preprocess(scale=16)
STEPS = 12


def images(count: int) -> NDArray[np.float32]:
    stored = np.load(path("digits-test"))["x"][:count].astype(np.float32) / 16
    return np.ascontiguousarray(stored.transpose(0, 3, 1, 2))


@cache
def compiled(name: str, **options: Any) -> onnx.ModelProto:
    """The compiled network; the tests do not change it."""
    given = {"steps": STEPS, **options}
    return snncompiler.compile(
        path(name), calibration=path("digits-train"), preprocess=HOW, samples=32, **given
    )


def whole(name: str, x: NDArray[np.float32], steps: int) -> NDArray[np.float32]:
    feeds = {"input": x, "snnc_steps": np.array(steps)}
    logits: NDArray[np.float32] = create_session(compiled(name)).run(None, feeds)[0]
    return logits


@pytest.mark.parametrize("name", NETWORKS)
def test_a_stream_equals_the_window_after_every_step(name: str) -> None:
    x, stream = images(3), Stream(compiled(name, emit="step"))
    for done in range(1, STEPS + 1):
        logits = stream.step(x)["logits"]
        assert stream.steps_done == done
        assert np.array_equal(logits, whole(name, x, done))


def test_a_reset_stream_starts_again_with_another_batch() -> None:
    stream = Stream(compiled("digits-resnet", emit="step"))
    first = [out["logits"] for out in stream.run([images(2)] * 5)]
    stream.reset()
    again = [out["logits"] for out in stream.run([images(4)] * 5)]
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one, other[:2])


def test_a_stream_follows_an_input_that_changes() -> None:
    """The read-out is the mean over all frames: two frames in any order decode alike in the end."""
    stream = Stream(compiled("digits-cnn", emit="step", readout="mean"))
    one, other = images(2)[:1], images(2)[1:]
    steady = [out["logits"] for out in stream.run([one] * 32)][-1]
    stream.reset()
    mixed = [out["logits"] for out in stream.run([one, other] * 16)][-1]
    assert not np.allclose(steady, mixed, atol=0.5)


def test_stream_and_window_models_are_told_apart() -> None:
    with pytest.raises(snncompiler.UsageError, match="whole window"):
        Stream(compiled("digits-cnn"))
    stream = Stream(compiled("digits-cnn", emit="step"))
    with pytest.raises(snncompiler.UsageError, match="'input'"):
        stream.step({"wrong": images(1)})
    with pytest.raises(snncompiler.UsageError, match="one time-step"):
        snncompiler.evaluate(
            path("digits-cnn"),
            compiled("digits-cnn", emit="step"),
            path("digits-test"),
            preprocess=HOW,
        )


def test_every_state_is_an_input_and_an_output() -> None:
    model = compiled("digits-resnet", emit="step")
    ours = [node for node in model.graph.node if node.domain == "ai.snnc"]
    stateful = [node for node in ours if node.op_type not in ("Drive", "TimeSteps")]
    session = create_session(model)
    assert [entry.name for entry in session.get_inputs()] == ["input"]
    # Five neurons, one read-out sum, and the number of steps done.
    assert len(stateful) == 6
    assert len(session.get_overridable_initializers()) == 7
    assert len(session.get_outputs()) == 1 + 7


@pytest.mark.parametrize("name", NETWORKS)
def test_a_window_for_cuda_graphs_has_no_control_flow_and_no_free_shape(name: str) -> None:
    x, model = images(3), compiled(name, emit="cuda-graph", batch=3)
    ops = {node.op_type for node in model.graph.node}
    assert not ops & {"Loop", "If", "Scan", "Shape", "Tile"}
    for entry in (*model.graph.input, *model.graph.output):
        assert all(dim.dim_value > 0 for dim in entry.type.tensor_type.shape.dim)
    session = create_session(model)
    assert not session.get_overridable_initializers()
    assert np.array_equal(session.run(None, {"input": x})[0], whole(name, x, STEPS))


@pytest.mark.parametrize("coding", ["rate", "radix"])
def test_a_window_of_layered_time_for_cuda_graphs(coding: str) -> None:
    x, options = images(3), {"timing": "layered", "coding": coding, "steps": 4}
    fixed, free = (
        compiled("digits-resnet", **options, **more)
        for more in ({"emit": "cuda-graph", "batch": 3}, {})
    )
    ops = {node.op_type for node in fixed.graph.node}
    assert not ops & {"Loop", "If", "Scan", "Shape", "Tile", "TimeSteps"}
    for entry in (*fixed.graph.input, *fixed.graph.output):
        assert all(dim.dim_value > 0 for dim in entry.type.tensor_type.shape.dim)
    sessions = [create_session(model) for model in (fixed, free)]
    assert not sessions[0].get_overridable_initializers()
    found, wanted = (session.run(None, {"input": x})[0] for session in sessions)
    assert np.array_equal(found, wanted)


def test_a_static_side_branch_is_repeated_without_run_time_shapes() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,2,4,4] x) => (float[N,2,4,4] y)
    { a = Relu (x)  b = Add (a, x)  c = Relu (b)  y = Mul (c, x) }"""
    model, x = onnx.parser.parse_model(text), np.random.default_rng(0).normal(size=(2, 2, 4, 4))
    x = x.astype(np.float32)
    window = snncompiler.compile(model, calibration=x, steps=8)
    fixed = snncompiler.compile(model, calibration=x, steps=8, emit="cuda-graph", batch=2)
    expected, got = (create_session(m).run(None, {"x": x})[0] for m in (window, fixed))
    assert np.array_equal(expected, got)


@pytest.mark.parametrize("batch", [None, 0, -1])
def test_cuda_graphs_need_a_batch(batch: int | None) -> None:
    with pytest.raises(snncompiler.UsageError):
        compiled("digits-cnn", emit="cuda-graph", batch=batch)


@pytest.mark.parametrize("name", NETWORKS)
def test_float16_keeps_membranes_and_thresholds_in_float32(name: str) -> None:
    model = compiled(name, precision="fp16")
    (loop,) = [node for node in model.graph.node if node.op_type == "Loop"]
    body = next(a.g for a in loop.attribute if a.name == "body")
    kinds = {tensor.name: tensor.data_type for tensor in body.initializer}
    kinds.update({tensor.name: tensor.data_type for tensor in model.graph.initializer})
    neurons = [node for node in body.node if node.op_type in dialect.NEURONS]
    layers = [node for node in body.node if node.op_type in ("Conv", "Gemm")]
    assert neurons and layers
    # θ, and the charges of the schedule.
    assert {node.op_type for node in neurons} == {"ScheduledRMPNeuron"}
    assert {kinds[node.input[1]] for node in neurons} == {onnx.TensorProto.FLOAT}
    assert {kinds[node.input[3]] for node in neurons} == {onnx.TensorProto.FLOAT}
    assert {kinds[node.input[1]] for node in layers} == {onnx.TensorProto.FLOAT16}
    # Half of the weights; the charges stay.
    assert model.ByteSize() < 0.8 * compiled(name).ByteSize()


@pytest.mark.parametrize("name", NETWORKS)
def test_float16_stays_close_to_float32(name: str) -> None:
    """A weight rounds by 2^-11, so a current moves by some 2^-11 of its size and single spikes move;
    the accuracy on 200 images stays within 1 point, the logits within 5 % of the largest."""
    x, labels = images(200), np.load(path("digits-test"))["y"][:200]
    full, half = (
        create_session(compiled(name, steps=32, precision=precision)).run(None, {"input": x})[0]
        for precision in ("fp32", "fp16")
    )
    assert half.dtype == np.float32
    assert np.abs(full - half).max() <= 0.05 * np.abs(full).max()
    accuracy = [(logits.argmax(axis=1) == labels).mean() for logits in (full, half)]
    assert abs(accuracy[0] - accuracy[1]) <= 0.01


def test_weights_that_float16_cannot_hold_are_refused() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1e6, 0, 0, 1}>
    { h = Gemm (x, w)  y = Relu (h) }"""
    with pytest.raises(snncompiler.Refused, match="float16"):
        snncompiler.compile(
            onnx.parser.parse_model(text), calibration=np.ones((2, 2), np.float32), precision="fp16"
        )


@pytest.mark.parametrize(
    "options",
    [
        {"emit": "step"},
        {"emit": "cuda-graph", "batch": 2},
        {"precision": "fp16"},
        {"precision": "fp16", "emit": "step"},
        {"unroll": "steps"},
        {"reset": "hard"},
    ],
)
def test_every_form_verifies(options: dict[str, Any]) -> None:
    result = snncompiler.verify(path("digits-resnet"), compiled("digits-resnet", **options))
    assert result.passed, result.checks
    assert len(result.checks) >= 5


def test_a_stream_keeps_its_sizes_until_it_is_reset() -> None:
    text = """g (float[N,2,L] x) => (float[N,3,L] y)
    { c = Conv <pads = [1, 1]> (x, w)  r = Relu (c)  y = Neg (r) }"""
    model, x = parse(text, {"w": random(1, 3, 2, 3)}), random(2, 4, 2, 8)
    stream = Stream(compile_text(model, x, emit="step"))
    first = stream.step(x[:1])["y"]
    for other in (x, x[:1, :, :4], x[:0]):
        with pytest.raises(UsageError, match="reset it first"):
            stream.step(other)
    assert stream.steps_done == 1
    stream.reset()
    assert np.array_equal(stream.step(x)["y"][:1], first)


@pytest.mark.parametrize(("made", "asked"), [("average", "exact"), ("exact", "average")])
def test_a_calibration_is_of_one_way_of_pooling(made: Any, asked: Any) -> None:
    text = """g (float[N,2,8,8] x) => (float[N,2,4,4] y)
    { r = Relu (x)  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)  y = Relu (p) }"""
    model, x = parse(text), random(2, 4, 2, 8, 8)
    found = pipeline.compile_model(model, Options(maxpool=made), x).calibration
    again = pipeline.Calibration.from_json(found.to_json())
    assert again.maxpool == made
    pipeline.compile_model(model, Options(maxpool=made), again)
    with pytest.raises(UsageError, match=f"--maxpool {made}"):
        pipeline.compile_model(model, Options(maxpool=asked), again)


def test_a_calibration_on_random_spikes_is_not_one_for_a_constant_input() -> None:
    text = "g (float[N,4] x) => (float[N,3] y) { h = MatMul (x, w)  r = Relu (h)  y = Neg (r) }"
    model, x = parse(text, {"w": random(1, 4, 3)}), random(2, 16, 4)
    options = Options(encode="poisson", threshold="vin-max")
    found = pipeline.compile_model(model, options, x).calibration
    with pytest.raises(UsageError, match="--encode constant"):
        pipeline.compile_model(model, Options(encode="constant"), found)
