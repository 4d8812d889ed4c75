"""evaluate: every number of time-steps from one run, the drop and its interval, odd networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, compile_text, in_type, parse, random, run_model
from hypothesis import given
from hypothesis import strategies as st

import snncompiler
from snncompiler import models
from snncompiler.analysis.evaluate import BATCH, DIAGNOSIS_BATCH
from snncompiler.analysis.instrument import Watched, watch
from snncompiler.analysis.tally import paired_interval
from snncompiler.analysis.walk import Walk, common_chunk
from snncompiler.emission.compiled import read_compiled
from snncompiler.errors import Refused, UsageError
from snncompiler.runtime.session import create_session

#: Pooled spikes, a residual, a static branch beside temporal values, and a softmax.
SIDE = """g (float[N,2,8,8] x) => (float[N,3] y)
{
  c = Conv <pads = [1, 1, 1, 1]> (x, a)  r = Relu (c)
  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
  side = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (x)
  wide = Concat <axis = 1> (p, side)
  d = Conv <pads = [1, 1, 1, 1]> (wide, b)  s = Add (d, p)  q = Relu (s)
  m = ReduceMean <axes = [2, 3], keepdims = 0> (q)  z = Gemm (m, o)  y = Softmax (z)
}"""

#: The batch is on the second axis between the transpositions, so time is not folded.
ELSEWHERE = """g (float[N,2,3] x) => (float[N,2,3] y)
{ h = Relu (x)  t = Transpose <perm = [1, 0, 2]> (h)  r = Relu (t)
  n = Neg (r)  b = Transpose <perm = [1, 0, 2]> (n)  s = Sub (x, b)  y = Relu (s) }"""

TWO_LAYERS = (
    "g (float[N,3] x) => (float[N,3] y) { h = Relu (x)  n = Neg (h)  s = Sub (x, n)  y = Relu (s) }"
)


def side() -> onnx.ModelProto:
    weights = {
        "a": random(1, 4, 2, 3, 3) / 3,
        "b": random(2, 4, 6, 3, 3) / 5,
        "o": random(3, 4, 3),
    }
    return parse(SIDE, weights)


def digits(count: int) -> tuple[Array, Array]:
    with np.load(models.path("digits-test")) as archive:
        images = archive["x"][:count].transpose(0, 3, 1, 2).astype(np.float32) / 16
        return np.ascontiguousarray(images), archive["y"][:count]


RESNET, CNN = models.path("digits-resnet"), models.path("digits-cnn")
IMAGES, LABELS = digits(40)
NETWORKS: dict[str, Any] = {
    "side": (side(), {"x": random(4, 5, 2, 8, 8)}),
    "resnet": (onnx.load(RESNET), {"input": IMAGES[:5]}),
    "elsewhere": (parse(ELSEWHERE), {"x": random(0, 4, 2, 3)}),
}

#: Forms of a file whose T is free, with the numbers of time-steps that one run gives.
FORMS: list[tuple[str, dict[str, Any], list[int]]] = [
    ("side", {}, [1, 2, 3, 16]),
    ("side", {"chunk": 4}, [4, 8, 12, 15]),
    ("side", {"chunk": 5}, [6, 9, 20]),
    ("side", {"unroll": "loop"}, [3, 7, 8]),
    ("side", {"reset": "hard"}, [4, 9]),
    ("side", {"readout": "ramp", "chunk": 4}, [4, 8, 13]),
    ("side", {"readout": "ramp", "unroll": "loop"}, [2, 5]),
    ("side", {"readout": "delay:3", "chunk": 4}, [4, 6, 13]),
    ("side", {"neuron": "burst:3", "readout": "mean"}, [2, 4, 9]),
    ("side", {"neuron": "signed:2", "correction": "schedule"}, [2, 4, 40]),
    ("side", {"correction": "schedule", "readout": "ramp"}, [6, 30, 47]),
    ("side", {"correction": "none", "readout": "mean", "precision": "fp16"}, [4, 8]),
    ("side", {"encode": "poisson", "correction": "none"}, [4, 6, 11]),
    ("resnet", {"correction": "none", "readout": "mean"}, [4, 16, 64]),
    ("resnet", {"correction": "schedule", "readout": "ramp"}, [8, 16, 50]),
    ("elsewhere", {}, [1, 4, 6]),
]


# --- one run for every T ---


@pytest.mark.parametrize(("name", "options", "stops"), FORMS, ids=lambda part: str(part))
def test_one_run_gives_what_runs_of_their_own_give(
    name: str, options: dict[str, Any], stops: list[int]
) -> None:
    """Bit for bit, outputs and counts and currents, with the chunks of the one run."""
    model, feeds = NETWORKS[name]
    snn = compile_text(model, feeds, **options)
    compiled = read_compiled(snn)
    walk = Walk(compiled, currents=True, threads=1)
    chunk: Mapping[str, Array] = {}
    if compiled.metadata["snnc.chunk_input"]:
        chunk = compiled.overrides(chunk=common_chunk(stops, int(compiled.metadata["snnc.chunk"])))
    plain = create_session(snn, threads=1)
    watched = watch(snn, currents=True)
    inside = create_session(watched.model, threads=1)
    names = [entry.name for entry in watched.model.graph.output]
    seen = []
    # In one run from the smallest on, whatever the order that is asked for.
    for steps, values in walk.run(feeds, stops[::-1]):
        seen.append(steps)
        asked = {**feeds, **compiled.overrides(steps=steps), **chunk}
        for output, wanted in zip(compiled.outputs, plain.run(None, asked), strict=True):
            assert np.array_equal(values[output], wanted), (steps, output)
        for output, wanted in zip(names, inside.run(None, asked), strict=True):
            assert values[output].dtype == wanted.dtype
            # Of |v| each call leaves one behind: the calls are the same.
            assert np.array_equal(values[output], wanted), (steps, output)
    assert seen == stops


@pytest.mark.parametrize("options", [{}, {"unroll": "loop"}, {"readout": "ramp"}])
def test_evaluating_at_once_is_evaluating_one_by_one(options: dict[str, Any]) -> None:
    snn = compile_text(onnx.load(CNN), IMAGES, chunk=None, **options)
    data = {"x": IMAGES, "y": LABELS}
    wanted = [16, 4, 32, 4]
    at_once = snncompiler.evaluate(onnx.load(CNN), snn, data, steps=wanted)
    assert [result.steps for result in at_once.results] == wanted
    for result, steps in zip(at_once.results, wanted, strict=True):
        (alone,) = snncompiler.evaluate(onnx.load(CNN), snn, data, steps=[steps]).results
        # A single T takes the file's own chunk: a convolution of other rows may round otherwise.
        assert result.predictions == alone.predictions and result.accuracy == alone.accuracy
        assert result.relative_error == pytest.approx(alone.relative_error, rel=1e-3)
    assert at_once.results[1] == at_once.results[3]


def test_random_input_depends_on_the_image_and_not_on_the_batch() -> None:
    assert BATCH != DIAGNOSIS_BATCH
    snn = compile_text(onnx.load(CNN), IMAGES, encode="poisson", correction="none", readout="mean")
    data = {"x": IMAGES, "y": LABELS}
    small, large = (
        snncompiler.evaluate(onnx.load(CNN), snn, data, steps=[8], diagnose=diagnose)
        for diagnose in (True, False)
    )
    assert small.results[0].predictions == large.results[0].predictions
    assert small.results[0].layers[0].firing_rate == large.results[0].layers[0].firing_rate


@given(st.lists(st.integers(1, 300), min_size=1, max_size=5), st.integers(1, 64))
def test_the_common_chunk_is_the_largest_that_stops_everywhere(stops: list[int], own: int) -> None:
    size = common_chunk(stops, own)
    before = sorted(set(stops))[:-1]
    assert 1 <= size <= own and all(steps % size == 0 for steps in before)
    better = [k for k in range(size + 1, own + 1) if all(steps % k == 0 for steps in before)]
    assert not better
    assert before or size == own


# --- the drop ---


def test_the_drop_and_its_interval_by_hand() -> None:
    ann, snn = np.ones(100, bool), np.ones(100, bool)
    snn[:5] = False  # five that only the ANN gets right
    ann[5:7] = False  # two that only the SNN does
    low, high = paired_interval(ann, snn)
    worse, better = 6 / 102, 3 / 102
    half = 1.959964 * np.sqrt((worse + better - (worse - better) ** 2) / 102)
    assert (low, high) == pytest.approx((worse - better - half, worse - better + half), abs=1e-12)
    back = paired_interval(snn, ann)
    assert back == pytest.approx((-high, -low), abs=1e-12)


@pytest.mark.parametrize(("worse", "better"), [(0.0, 0.0), (0.01, 0.01), (0.05, 0.02), (0.3, 0.1)])
@pytest.mark.parametrize("count", [50, 370])
def test_the_interval_covers_the_drop_19_times_of_20(
    worse: float, better: float, count: int
) -> None:
    rng = np.random.default_rng(0)
    draws = 1000
    covered = 0
    for _ in range(draws):
        kind = rng.random(count)
        low, high = paired_interval(kind >= better, (kind < better) | (kind >= better + worse))
        covered += low <= worse - better <= high
    # 1000 draws of 95 %: a standard error of 0.7 points.
    assert covered / draws >= 0.93


def test_the_drop_is_of_the_same_images() -> None:
    snn = compile_text(onnx.load(RESNET), IMAGES[:8], correction="none", readout="mean")
    found = snncompiler.evaluate(
        onnx.load(RESNET), snn, {"x": IMAGES, "y": LABELS}, steps=[1, 2, 64]
    )
    assert found.ann_predictions is not None and found.ann_accuracy is not None
    mine = np.array(found.ann_predictions) == LABELS
    for result in found.results:
        assert result.predictions is not None and result.accuracy is not None
        right = np.array(result.predictions) == LABELS
        assert result.accuracy == right.mean()
        assert result.drop == pytest.approx(mine.mean() - right.mean(), abs=1e-12)
        assert result.drop_interval == paired_interval(mine, right)
        low, high = result.drop_interval
        assert -1 <= low <= high <= 1
    assert found.results[0].drop is not None and found.results[0].drop > 0.2


def test_predictions_are_written_where_they_are_asked_for() -> None:
    snn = compile_text(onnx.load(CNN), IMAGES)
    found = snncompiler.evaluate(onnx.load(CNN), snn, {"x": IMAGES, "y": LABELS})
    plain, whole = found.as_dict(), found.as_dict(predictions=True)
    assert "predictions" not in plain["results"][0] and "ann_predictions" not in plain
    assert len(whole["results"][0]["predictions"]) == len(whole["ann_predictions"]) == 40
    assert "diagnosis" not in plain["results"][0]


# --- what networks and data there are ---


def test_one_sample() -> None:
    snn = compile_text(onnx.load(CNN), IMAGES)
    data = {"x": IMAGES[:1], "y": LABELS[:1]}
    found = snncompiler.evaluate(onnx.load(CNN), snn, data, steps=[8, 32], diagnose=True)
    assert found.samples == 1 and found.results[1].accuracy == 1.0
    assert found.results[1].drop == 0.0 and found.results[1].diagnosis is not None


def test_without_labels_or_scores_there_is_no_drop() -> None:
    model = parse(TWO_LAYERS)
    x = random(0, 7, 3)
    found = snncompiler.evaluate(model, compile_text(model, x, task="classification"), x)
    (result,) = found.results
    assert (result.drop, result.drop_interval, result.accuracy) == (None, None, None)
    assert result.agreement is not None and len(result.predictions or ()) == 7
    images = parse("g (float[N,2,3] x) => (float[N,2,3] y) { y = Relu (x) }")
    x = random(0, 7, 2, 3)
    found = snncompiler.evaluate(images, compile_text(images, x), x)
    assert found.results[0].predictions is found.ann_predictions is None
    assert found.as_dict(predictions=True)["ann_predictions"] is None


def test_a_double_network_with_convolutions_is_run_in_float32_and_that_is_told() -> None:
    """onnxruntime has no float64 convolutions on the CPU."""
    text = """g (double[N,1,5,5] x) => (double[N,2] y)
    { c = Conv (x, w)  r = Relu (c)  f = Flatten (r)  y = MatMul (f, z) }"""
    weights = {"w": random(1, 2, 1, 3, 3), "z": random(2, 18, 2)}
    x = random(3, 8, 1, 5, 5)
    single = parse(text.replace("double", "float"), weights)
    source = in_type(single, "float64")
    snn = compile_text(source, x.astype(np.float64), steps=512)
    result = snncompiler.evaluate(source, snn, x.astype(np.float64))
    ours = snncompiler.evaluate(single, compile_text(single, x, steps=512), x)
    # The same weights, the same spikes, float32 outputs behind a cast.
    assert result.results[0].relative_error == ours.results[0].relative_error
    (note,) = [f for f in result.findings if f.code == "SNNC208"]
    assert note.severity == "note" and "in float32" in note.message


def test_several_outputs() -> None:
    text = """g (float[N,2] x) => (float[N,2] h, float[N,1,2] u, float[N,2] y)
    <int64[1] one = {1}>
    { h = Relu (x)  u = Unsqueeze (x, one)  s = Add (h, x)  y = Relu (s) }"""
    model, x = parse(text), random(0, 9, 2)
    snn = compile_text(model, x, task="classification")
    found = snncompiler.evaluate(model, snn, x, steps=[4, 64], diagnose=True)
    outputs = run_model(snn, x=x, snnc_steps=np.array(64))
    wanted = run_model(model, x=x)
    error = sum(
        np.square(a.astype(np.float64) - b).sum() for a, b in zip(outputs, wanted, strict=True)
    )
    norm = sum(np.square(b.astype(np.float64)).sum() for b in wanted)
    assert found.results[1].relative_error == pytest.approx(np.sqrt(error / norm), rel=1e-4)
    # `h` is the first with two axes.
    assert found.ann_predictions == tuple(wanted[0].argmax(axis=1))


@pytest.mark.parametrize("count", [1, 3, 4, 6])
def test_a_fixed_batch_is_filled_up_and_what_fills_it_is_not_counted(count: int) -> None:
    model, x = parse(TWO_LAYERS), random(0, count, 3)
    chosen: dict[str, Any] = {"steps": 8, "correction": "none", "readout": "mean"}
    fixed: dict[str, Any] = {"emit": "cuda-graph", "batch": 4}
    free, frozen = (compile_text(model, random(0, 8, 3), **chosen, **form) for form in ({}, fixed))
    assert read_compiled(frozen).fixed_batch == 4
    results = [
        snncompiler.evaluate(model, snn, x, diagnose=diagnose).results[0]
        for snn in (free, frozen)
        for diagnose in (False, True)
    ]
    for found in results[1:]:
        assert found.layers == results[0].layers and found.predictions == results[0].predictions
        assert found.relative_error == pytest.approx(results[0].relative_error)
    splits = [found.diagnosis for found in results]
    assert splits[1] is not None and splits[3] is not None
    for mine, wanted in zip(splits[3].layers, splits[1].layers, strict=True):
        assert mine.total == pytest.approx(wanted.total)
        assert mine.rounding == pytest.approx(wanted.rounding)


@pytest.mark.parametrize("count", [1, 3, 18])
def test_a_batch_on_another_axis_is_not_cut(count: int) -> None:
    model, x = parse(ELSEWHERE), random(0, count, 2, 3)
    snn = compile_text(model, random(1, 18, 2, 3))
    found = snncompiler.evaluate(model, snn, x, steps=[8], diagnose=True)
    watched = watch(snn)
    names = [entry.name for entry in watched.model.graph.output]
    values = run_model(watched.model, x=x, snnc_steps=np.array(8))
    by_name = dict(zip(names, values, strict=True))
    for layer, seen in zip(watched.layers, found.results[0].layers, strict=True):
        counts = by_name[Watched.output(layer, "count")]
        assert seen.firing_rate == pytest.approx(counts.mean() / 8)
        where = list(counts.shape).index(count) if count != 2 else 0
        assert seen.silent == pytest.approx(1 - (counts > 0).any(axis=where).mean())


def test_files_with_their_steps_baked_in() -> None:
    model, x = side(), random(4, 6, 2, 8, 8)
    chosen: dict[str, Any] = {"steps": 8, "correction": "none", "readout": "mean"}
    free = compile_text(model, x, **chosen)
    wanted = snncompiler.evaluate(model, free, x, diagnose=True).results[0]
    baked: list[dict[str, Any]] = [
        {"unroll": "steps"},
        {"emit": "cuda-graph", "batch": 4},
    ]
    for form in baked:
        snn = compile_text(model, x, **chosen, **form)
        (found,) = snncompiler.evaluate(model, snn, x, diagnose=True).results
        assert found.predictions == wanted.predictions
        assert [layer.firing_rate for layer in found.layers] == pytest.approx(
            [layer.firing_rate for layer in wanted.layers], abs=1e-3
        )
        assert found.diagnosis is not None and wanted.diagnosis is not None
        assert found.diagnosis.quantised.accuracy == wanted.diagnosis.quantised.accuracy
        with pytest.raises(UsageError, match="baked in"):
            snncompiler.evaluate(model, snn, x, steps=[4, 8])


def test_a_step_model_and_steps_out_of_reach_are_refused() -> None:
    model, x = parse(TWO_LAYERS), random(0, 4, 3)
    step = compile_text(model, x, emit="step")
    with pytest.raises(UsageError, match="one time-step"):
        snncompiler.evaluate(model, step, x, diagnose=True)
    snn = compile_text(model, x)
    for steps in (0, -1, (1 << 24) + 1):
        with pytest.raises(UsageError, match="out of range"):
            snncompiler.evaluate(model, snn, x, steps=[8, steps])
    with pytest.raises(UsageError, match="cannot have 0 time-steps"):
        list(Walk(read_compiled(snn)).run({"x": x}, [0]))
    with pytest.raises(Refused, match="SNNC402"):
        snncompiler.evaluate(side(), snn, x, diagnose=True)


def test_progress_goes_to_the_end() -> None:
    told: list[tuple[str, int, int]] = []
    model, x = parse(TWO_LAYERS), random(0, 40, 3)
    snncompiler.evaluate(
        model,
        compile_text(model, x),
        x,
        steps=[2, 8],
        diagnose=True,
        progress=lambda *what: told.append(what),
    )
    assert told == [("T = 8", done, 10) for done in range(1, 11)]


# --- activity of the neurons that send more ---


def test_activity_of_burst_and_signed_neurons() -> None:
    model, x = side(), random(4, 6, 2, 8, 8)
    for neuron, most in (("burst:3", 3), ("signed:2", 2)):
        snn = compile_text(model, x, neuron=neuron, correction="none", readout="mean")
        (found,) = snncompiler.evaluate(model, snn, x, steps=[8]).results
        for layer in found.layers:
            assert 0 <= layer.saturated <= 1 and 0 <= layer.firing_rate <= most
        assert found.firing_rate > 0.05
    # Negative spikes are spikes: more are sent than the sum tells.
    walk = Walk(read_compiled(snn))
    ((_, values),) = walk.run({"x": x}, [8])
    layer = walk.layers[1]
    events, count = (values[Watched.output(layer, what)] for what in ("events", "count"))
    assert (events >= count).all() and events.sum() > count.sum() and (count >= 0).all()
    assert found.layers[1].firing_rate == pytest.approx(events.mean() / 8)


# --- the identity that verify checks, with charges and several levels ---


@pytest.mark.parametrize("neuron", ["binary", "burst:3", "burst:4", "signed:1", "signed:5"])
@pytest.mark.parametrize("correction", ["none", "schedule"])
def test_the_identity_holds_for_every_neuron(neuron: str, correction: str) -> None:
    model, x = side(), random(4, 6, 2, 8, 8)
    snn = compile_text(model, x, neuron=neuron, correction=correction, steps=40)
    found = snncompiler.verify(model, snn, data=x)
    assert found.passed and len(found.layers) == 2
    for layer in found.layers:
        # The bound is no wish: it is within some ten times of what is seen.
        assert layer.bound / 50 < layer.deviation <= layer.bound
