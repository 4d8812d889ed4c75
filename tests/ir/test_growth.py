"""Thresholds that grow with time: their text, where they can, and that the emitted file, whose own
thresholds stay as they are, does what neurons with growing ones would do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import Array, assert_close, compile_text, op_counts, parse, random, run_model, told
from onnx import numpy_helper

import snncompiler
from snncompiler import models, pipeline
from snncompiler.analysis.trace import trace
from snncompiler.calibration import charges as running
from snncompiler.emission.compiled import read_compiled
from snncompiler.errors import Refused, UsageError
from snncompiler.ir.growth import STEADY, Growth
from snncompiler.ir.settings import DEFAULT_GROWTH, Options
from snncompiler.network.growable import hindrance
from snncompiler.passes.lower.lower_events import lower_events
from snncompiler.runtime import Stream
from snncompiler.runtime.session import create_session

GROWTH = "0.75@1,1@4,1.5@9"
MLP = """g (float[N,4] x) => (float[N,3] y)
{ a = Gemm (x, w1, b1)  h = Relu (a)  c = Gemm (h, w2, b2)  s = Relu (c)  y = MatMul (s, w3) }"""
WEIGHTS = {
    "w1": random(1, 4, 8), "b1": random(2, 8), "w2": random(3, 8, 8) / 2, "b2": random(4, 8),
    "w3": random(5, 8, 3),
}  # fmt: skip
X = random(6, 64, 4)
CONV = """g (float[N,2,6,6] x) => (float[N,3] y)
{ a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)  h = Relu (a)
  c = Conv <pads = [1, 1, 1, 1]> (h, w2, b2)  d = Relu (c)  e = Add (d, h)  f = Relu (e)
  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (f)
  q = Conv (p, w3, b3)  r = Relu (q)  m = GlobalAveragePool (r)  y = Flatten (m) }"""
CONV_WEIGHTS = {
    "w1": random(1, 4, 2, 3, 3) / 3, "b1": random(2, 4), "w2": random(3, 4, 4, 3, 3) / 6,
    "b2": random(4, 4), "w3": random(5, 3, 4, 1, 1) / 2, "b3": random(6, 3),
}  # fmt: skip
PICTURES = random(7, 40, 2, 6, 6)


def grown(growth: str = GROWTH, **options: Any) -> Any:
    return compile_text(
        parse(MLP, WEIGHTS), X, correction="schedule", growth=growth, schedule_steps=5, **options
    )


def grown_conv(growth: str = GROWTH, **options: Any) -> Any:
    chosen = {"correction": "schedule", "steps": 24, **options}
    return compile_text(parse(CONV, CONV_WEIGHTS), PICTURES, growth=growth, **chosen)


# --- the text ---


def test_factors_by_step() -> None:
    growth = Growth.parse("0.75@1,1@4,1.5@9")
    assert str(growth) == GROWTH and growth and growth.last == 1.5
    assert np.allclose(growth.worth(12), np.array([0.75] * 3 + [1] * 5 + [1.5] * 4) / 1.5)
    assert np.array_equal(growth.table, growth.worth(9)) and growth.table[-1] == 1
    assert np.allclose(growth.drive * growth.table, 1) and growth.drive[-1] == 1
    late = Growth.parse("2@3")
    assert np.array_equal(late.worth(4), np.float32([0.5, 0.5, 1, 1]))
    assert np.array_equal(late.worth(2), np.float32([0.5, 0.5]))
    assert not Growth.parse("none") and str(Growth.parse("none")) == "none"
    assert str(Growth.parse("0.75@1,1.0@4,01.50@9")) == GROWTH
    # The same factor all along drives nothing.
    assert not Growth.parse("2@1") and Growth.parse("2@1").last == 2
    assert np.array_equal(Growth.parse("none").table, np.ones(1, np.float32))


@pytest.mark.parametrize(
    "text",
    ["", "1.2", "1.2@", "@5", "a@5", "1.2@-5", "1.2@5.5", "0@5", "nan@5", "inf@5", "1.2@5,1.1@9",
     "1.2@9,1.3@5", "1.2@5,1.3@5", "0.9@5", "1.2@0", "1.2@2000", "1.2@5;1.3@9", " 1.2@5", "1.2@5,",
     "1_0@5", "1e3@5", "1001@5", "0.0009@1,1@5", "-1@1,1@5", "1.2@\u0665"],
)  # fmt: skip
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--growth"):
        snncompiler.compile(parse(MLP, WEIGHTS), growth=text)


@pytest.mark.parametrize("text", ["1.2@5,1.1@9", "1.2@9,1.3@5", "1.2@5,1.3@5", "0.9@5"])
def test_steps_and_factors_rise(text: str) -> None:
    with pytest.raises(ValueError, match="steps and factors rise"):
        Growth.parse(text)


def test_a_factor_may_stay() -> None:
    assert Growth.parse("1@1,1.5@5,1.5@9").last == 1.5


# --- where thresholds can grow ---


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a = Relu (x)  b = Neg (a)  y = Relu (b)", ""),
        ("a = Relu (x)  b = Add (a, k)  c = Relu (b)  y = Add (c, k)", ""),
        ("zero = Constant <value_float = 0.0> ()  six = Constant <value_float = 6.0> ()  "
         "y = Clip (x, zero, six)", "upper bound"),
        ("a = Relu (x)  b = Sub (a, x)  y = Relu (b)", "does not change with time"),
        ("a = Relu (x)  b = Add (a, k)  y = Relu (b)  z = Neg (b)", "is read out"),
        ("a = Relu (x)  b = Sigmoid (a)  y = Relu (b)", "kept analog"),
        ("a = Relu (x)  b = Flatten (a)  c = Relu (b)  y = Add (b, c)", ""),
        ("a = Relu (x)  n = Shape (a)  m = Mul (n, one)  b = Reshape (a, m)  y = Relu (b)", ""),
    ],
)  # fmt: skip
def test_where_thresholds_can_grow(text: str, reason: str) -> None:
    more = ", float[N,4] z" if "z =" in text else ""
    # The same for every element: a bias that differs within a channel is found later.
    weights = {"k": np.float32([[0.5]]), "one": np.array([1, 1])}
    model = parse(f"g (float[N,4] x) => (float[N,4] y{more}) {{ {text} }}", weights)
    found = hindrance(pipeline.prepare(model, allow_analog=True).graph)
    assert reason in found and bool(reason) == bool(found)
    options: dict[str, Any] = {"task": "classification", "allow_analog": True}
    made = pipeline.compile_model(model, Options(**options), random(1, 50, 4))
    assert (read_compiled(made.model).options.growth == STEADY) == bool(reason)
    told = [note.message for note in made.prepared.findings if note.code == "SNNC310"]
    assert told == ([f"thresholds do not grow: {found}"] if reason else [])
    if reason:
        with pytest.raises(UsageError, match="is not possible") as raised:
            snncompiler.compile(model, calibration=X, growth="2@9", **options)
        assert found in str(raised.value)


# --- it is what neurons with growing thresholds do ---


def growing(made: pipeline.Compiled, x: Array, steps: int, growth: Growth, power: int) -> Array:
    """The MLP with thresholds that grow, in their own units, in float64.

    A potential stands in units of θ when that changes, so it grows as well.  The charges of a schedule
    are what is left of its rows without what drives the bias, which the current has in full here.
    """
    factor = growth.worth(steps).astype(np.float64) * growth.last
    theta = [t.astype(np.float64) / growth.last for t in made.calibration.thresholds.values()]
    rows = [s.astype(np.float64) for s in made.calibration.schedules.values()]
    bias = np.outer(growth.drive.astype(np.float64) - 1, WEIGHTS["b2"])
    charges = [rows[0], rows[1].copy()]
    charges[1][: len(bias)] -= bias
    first = x.astype(np.float64) @ WEIGHTS["w1"] + WEIGHTS["b1"]
    v = [np.full((len(x), 8), theta[i] * factor[0] / 2) for i in range(2)]
    total = np.zeros((len(x), 8))
    for t in range(steps):
        g = factor[t]
        current = first
        for i in range(2):
            if t and factor[t] != factor[t - 1]:
                v[i] = v[i] * (factor[t] / factor[t - 1])
            charge = charges[i][min(t, len(charges[i]) - 1)] * (g / growth.last)
            u = v[i] + current + charge
            fires = u >= theta[i] * g
            v[i] = u - theta[i] * g * fires
            sent = theta[i] * g * fires
            current = sent @ WEIGHTS["w2"] + WEIGHTS["b2"]
        total += (t + 1) ** power * sent
    weights = sum(t**power for t in range(1, steps + 1))
    return np.asarray(total / weights @ WEIGHTS["w3"])


@pytest.mark.parametrize(("readout", "power"), [("mean", 0), ("ramp:2", 2)])
def test_a_file_does_what_growing_thresholds_do(readout: str, power: int) -> None:
    """Float32 against float64: a spike may move where a potential comes within a rounding of θ, which
    changes an output by about 1/T; so the median is held to rounding, and hardly any output is off."""
    model, growth = parse(MLP, WEIGHTS), Growth.parse(GROWTH)
    options = Options(
        task="classification", tau=5.0, growth=GROWTH, schedule_steps=5, readout=readout
    )
    made = pipeline.compile_model(model, options, X)
    assert {len(rows) for rows in made.calibration.schedules.values()} == {10}
    for steps in (2, 8, 9, 40):
        (found,) = run_model(made.model, x=X, snnc_steps=np.array(steps))
        wanted = growing(made, X, steps, growth, power)
        off = np.abs(found - wanted).max(axis=1)
        assert np.median(off) < 1e-5 * np.abs(wanted).max()
        assert np.mean(off > 1e-4 * np.abs(wanted).max()) < 0.1


def test_clipping_vanishes_with_growing_thresholds() -> None:
    """Balance with a small τ clips much of the MLP's activations, for ever or until θ has grown."""
    (ann,) = run_model(parse(MLP, WEIGHTS), x=X)
    error = {}
    for growth in ("none", "4@17"):
        snn = snncompiler.compile(
            parse(MLP, WEIGHTS), calibration=X, task="classification", tau=5.0, growth=growth
        )
        for steps in (16, 4096):
            (found,) = run_model(snn, x=X, snnc_steps=np.array(steps))
            error[growth, steps] = float(np.abs(found - ann).max() / np.abs(ann).max())
    # Four times θ clips little; the rest are 16 of 4096 steps and the rounding of 4096.
    assert error["4@17", 4096] < error["none", 4096] / 10
    # Up to there it is the same network, but for rounding.
    assert error["4@17", 16] == pytest.approx(error["none", 16], rel=0.05)


UNEVEN = {
    "tokens": ("float[N,3,4] x) => (float[N,3,4] y) { a = Relu (x)  b = MatMul (a, w)  c = Add (b, k)  "
               "y = Relu (c)", (4,)),
    "a map": ("float[N,3,4] x) => (float[N,3,4] y) { a = Relu (x)  b = Add (a, k)  y = Relu (b)",
              (3, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", UNEVEN)
def test_thresholds_stay_where_a_bias_is_not_one_for_a_channel(name: str) -> None:
    text, shape = UNEVEN[name]
    model = parse(f"g ({text} }}", {"w": random(1, 4, 4), "k": random(2, *shape)})
    x = random(3, 50, 3, 4)
    options = Options(task="classification")
    made = pipeline.compile_model(model, options, x)
    assert made.calibration.growth == STEADY and op_counts(made.model)["Drive"] == 0
    (note,) = [f.message for f in made.prepared.findings if f.code == "SNNC310"]
    assert "the bias of" in note and "is not the same all over a channel" in note
    steady = pipeline.compile_model(model, replace(options, growth="none"), x)
    assert made.calibration.to_json() == steady.calibration.to_json()
    with pytest.raises(UsageError, match="is not the same all over a channel"):
        pipeline.compile_model(model, replace(options, growth="2@9"), x)
    # One value for a channel is fine, wherever it comes from.
    even = parse(f"g ({text} }}", {"w": random(1, 4, 4), "k": np.full((1, 1), 0.5, np.float32)})
    assert pipeline.compile_model(even, options, x).calibration.growth != STEADY


def test_every_layer_that_the_input_drives_is_driven() -> None:
    """Also one that stands behind a layer of spikes."""
    text = """g (float[N,4] x) => (float[N,3] y)
    { a = MatMul (x, w)  p = Relu (a)  b = MatMul (p, v)  q = Relu (b)
      c = MatMul (x, u)  r = Relu (c)  s = Add (q, r)  y = MatMul (s, o) }"""
    shapes = {"w": (4, 4), "v": (4, 4), "u": (4, 4), "o": (4, 3)}
    weights = {name: random(at, *shape) for at, (name, shape) in enumerate(shapes.items())}
    model, x = parse(text, weights), random(9, 50, 4)
    snn = compile_text(model, x, growth="2@3", correction="schedule", schedule_steps=5, steps=64)
    assert op_counts(snn)["Drive"] == 2
    (wanted,), (found,) = run_model(model, x=x), run_model(snn, x=x)
    # C/T: two layers of four neurons, each off by a spike of the end, 2θ, with weights of a few units.
    assert_close(found, wanted, relative=20 / 64)


def test_growth_is_refused_where_time_cannot_be_folded() -> None:
    text = """g (float[N,2,3] x) => (float[2,N,3] y)
    { a = Relu (x)  b = Transpose <perm = [1, 0, 2]> (a)  y = Relu (b) }"""
    x = random(3, 50, 2, 3)
    options = Options(task="classification")
    made = pipeline.compile_model(parse(text), options, x)
    assert (made.calibration.growth, made.calibration.correction) == (STEADY, "none")
    with pytest.raises(UsageError, match=r"--growth 2@9 is not possible: .*folded"):
        pipeline.compile_model(parse(text), replace(options, growth="2@9"), x)


# --- in every form ---


def test_every_form_gives_the_same() -> None:
    reference = run_model(grown_conv(unroll="loop"), x=PICTURES)[0]
    for options in (
        {"unroll": "steps"},
        {"chunk": 5},
        {"chunk": 24},
        {"emit": "cuda-graph", "batch": 40},
        {"target": "cpu"},
    ):
        model = grown_conv(**options)
        for native in (False, True) if options.get("target") != "cpu" else (True,):
            session = create_session(model, native=native, events=False, threads=1)
            found = session.run(None, {"x": PICTURES})[0]
            # The order of a sum may move a spike.
            assert np.median(np.abs(found - reference)) < 1e-5, options
            assert np.mean(np.abs(found - reference) > 1e-3) < 0.02, options
    stream = Stream(grown_conv(emit="step"))
    for _ in range(24):
        outputs = stream.step({"x": PICTURES})
    assert np.mean(np.abs(outputs["y"] - reference) > 1e-3) < 0.02
    assert snncompiler.verify(parse(CONV, CONV_WEIGHTS), grown_conv()).passed


def test_a_step_model_that_reads_its_input_out() -> None:
    """The mean of what no spike changes weighs its steps as well: it has to be driven for that."""
    text = """g (float[N,4] x) => (float[N,3] y)
    { a = Gemm (x, w1, b1)  h = Relu (a)  c = Gemm (h, w2, b2)  s = Relu (c)  d = MatMul (s, w3)
      e = Gemm (x, w4)  y = Add (d, e) }"""
    model = parse(text, {**WEIGHTS, "w4": random(9, 4, 3)})
    options = {"correction": "schedule", "growth": GROWTH, "steps": 16}
    stream = Stream(compile_text(model, X, emit="step", **options))
    window = compile_text(model, X, unroll="loop", **options)
    for step in range(1, 17):
        outputs = stream.step({"x": X})
        wanted = create_session(window, events=False).run(
            None, {"x": X, "snnc_steps": np.array(step)}
        )
        # The mean of 16 equal values rounds.
        assert np.abs(outputs["y"] - wanted[0]).max() < 1e-5 * np.abs(wanted[0]).max()


def test_one_threshold_a_layer_is_lowered_too() -> None:
    layers = [lower_events(grown_conv(g, per_channel=False)).layers for g in (GROWTH, "none")]
    assert layers[0] == layers[1] and layers[0][0].operator == "EventNeuron"


@pytest.mark.parametrize("options", [{"neuron": "burst:3"}, {"neuron": "signed:2"}], ids=str)
def test_other_neurons_grow_too(options: dict[str, Any]) -> None:
    model = parse(CONV, CONV_WEIGHTS)
    (ann,) = run_model(model, x=PICTURES)
    error = []
    for steps in (8, 256):
        snn = grown_conv(**options, steps=steps)
        (found,) = run_model(snn, x=PICTURES)
        error.append(float(np.abs(found - ann).max() / np.abs(ann).max()))
    assert error[1] < error[0] / 8
    assert snncompiler.verify(model, snn).passed


def test_the_drive_stands_before_the_first_neurons_and_goes_into_them_by_events() -> None:
    model = grown_conv()
    assert op_counts(model)["Drive"] == 1
    assert {function.name for function in model.functions} >= {"Drive"}
    lowered = lower_events(model).model
    counts = op_counts(lowered)
    assert counts["EventNeuron"] == 1 and counts["Drive"] == 0
    (loop,) = [node for node in lowered.graph.node if node.op_type == "Loop"]
    body = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
    (neuron,) = [node for node in body.node if node.op_type == "EventNeuron"]
    tables = {tensor.name: tensor for tensor in (*body.initializer, *lowered.graph.initializer)}
    table = numpy_helper.to_array(tables[neuron.input[1]])
    assert np.array_equal(table, Growth.parse(GROWTH).drive)
    assert op_counts(grown_conv("none"))["Drive"] == 0


# --- looking inside ---


@pytest.mark.parametrize("growth", ["none", GROWTH])
def test_the_parts_of_an_error_sum_to_it(growth: str) -> None:
    """With the mean as the read-out the last layer's output is what the network gives."""
    model = parse("g (float[N,4] x) => (float[N,4] y) { a = Relu (x)  b = Neg (a)  c = Add (b, k)  "
                  "y = Relu (c) }", {"k": np.full(4, 2, np.float32)})  # fmt: skip
    snn = compile_text(model, X, correction="schedule", growth=growth, schedule_steps=4, steps=16)
    (ann,), (found,) = run_model(model, x=X), run_model(snn, x=X)
    split = snncompiler.evaluate(model, snn, X, steps=[6, 16], diagnose=True)
    diagnosis = split.results[1].diagnosis
    assert diagnosis is not None
    last = diagnosis.layers[-1]
    norm = np.linalg.norm(ann.astype(np.float64))
    wanted = np.linalg.norm(found.astype(np.float64) - ann) / norm
    assert last.total == pytest.approx(wanted, rel=1e-4)
    recorded = trace(snn, X, samples=64, steps=16, neurons=None)
    assert np.allclose(recorded.layers[-1].decoded, found, rtol=0, atol=1e-5)
    assert np.array_equal(recorded.arrays()["worth"], Growth.parse(growth).worth(16))


# --- calibration ---


def test_a_layer_without_charges_has_its_bias_driven() -> None:
    few = X[:8]
    assert len(few) < running.LEAST_POSITIONS
    options = Options(correction="schedule", growth="2@4", threshold="max", schedule_steps=1)
    made = pipeline.compile_model(parse(MLP, WEIGHTS), options, few)
    first, second = made.calibration.schedules.values()
    assert np.array_equal(first, np.zeros((5, 8), np.float32))
    assert np.allclose(second, np.outer([1, 1, 1, 0, 0], WEIGHTS["b2"]), rtol=1e-6)


def test_the_bias_of_a_map_is_found_without_spikes() -> None:
    made = pipeline.compile_model(
        parse(CONV, CONV_WEIGHTS),
        Options(correction="schedule", growth="2@40", schedule_steps=1, threshold="max"),
        PICTURES,
    )
    rows = list(made.calibration.schedules.values())
    assert [np.abs(row[1:39]).max() > 0 for row in rows] == [False, True, False, True]
    assert np.allclose(rows[1][1:39], CONV_WEIGHTS["b2"], rtol=1e-6)
    assert np.allclose(rows[3][1:39], CONV_WEIGHTS["b3"], rtol=1e-6)


def test_a_calibration_is_used_again_as_it_is() -> None:
    model = parse(MLP, WEIGHTS)
    options = Options(correction="schedule", growth=GROWTH, threshold="max")
    calibration = pipeline.compile_model(model, options, X).calibration
    again = pipeline.compile_model(model, Options(), calibration)
    assert str(read_compiled(again.model).options.growth) == GROWTH
    assert str(type(calibration).from_json(calibration.to_json()).growth) == GROWTH
    with pytest.raises(UsageError, match=r"--growth 2@9 needs data, a calibration with 0\.75@1"):
        pipeline.compile_model(model, replace(options, growth="2@9"), calibration)
    same = pipeline.compile_model(
        model, replace(options, growth="0.750@1,1.0@4,1.5@9"), calibration
    )
    assert same.calibration.to_json() == again.calibration.to_json()
    assert str(read_compiled(same.model).options.growth) == GROWTH
    # Without charges nothing grows, and θ is what it would be without a growth: 2^-22 for its factor
    # multiplied and divided again in float32.
    plain = pipeline.compile_model(model, Options(correction="none"), calibration)
    assert plain.calibration.growth == STEADY and op_counts(plain.model)["Drive"] == 0
    steady = pipeline.compile_model(model, Options(correction="none", threshold="max"), X)
    assert steady.calibration.thresholds.keys() == plain.calibration.thresholds.keys()
    for name, theta in steady.calibration.thresholds.items():
        np.testing.assert_allclose(plain.calibration.thresholds[name], theta, rtol=2.0**-22)
    with pytest.raises(Refused, match="no schedules"):
        pipeline.compile_model(model, options, replace(calibration, schedules={}))
    with pytest.raises(Refused, match="cannot be read"):
        type(calibration).from_json(calibration.to_json().replace("0.75@1", "0.75@"))


def test_the_default_of_a_classifier_grows() -> None:
    snn = snncompiler.compile(
        models.path("digits-cnn"), calibration=models.path("digits-train"),
        preprocess=snncompiler.network.data.Preprocess(scale=16.0), samples=32,
    )  # fmt: skip
    found = read_compiled(snn)
    assert found.options.growth == found.calibration.growth == DEFAULT_GROWTH
    assert told(snn)["growth"] == str(DEFAULT_GROWTH)


def test_a_calibration_for_another_form_of_the_network_is_refused() -> None:
    """A maximum over maps of any size is kept analog, the average lets thresholds grow."""
    text = """g (float[N,2,H,W] x) => (float[N,2,1,1] y)
    { a = Relu (x)  b = Conv (a, w)  c = GlobalMaxPool (b)  d = Neg (c)  y = Relu (d) }"""
    model, x = parse(text, {"w": random(1, 2, 2, 1, 1)}), random(2, 50, 2, 4, 4)
    options = Options(task="classification", maxpool="average")
    calibration = pipeline.compile_model(model, options, x).calibration
    assert calibration.growth != STEADY
    exact = replace(options, maxpool="exact", allow_analog=True)
    with pytest.raises(UsageError, match="with --maxpool average"):
        pipeline.compile_model(model, exact, calibration)
    with pytest.raises(UsageError, match="is kept analog"):
        pipeline.compile_model(model, exact, replace(calibration, maxpool="exact"))
