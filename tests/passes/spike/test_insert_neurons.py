"""insert-neurons: thresholds, initial potentials, resets, and every rectifier becomes a neuron."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import compile_text, op_counts, parse, random, run_model

from snncompiler import pipeline
from snncompiler.ir.settings import Options


def test_one_neuron_is_exact_to_half_a_threshold() -> None:
    model = parse("g (float[N,3] x) => (float[N,3] y) { y = Relu (x) }")
    x = random(0, 50, 3)
    wanted = np.maximum(x, 0)
    theta = wanted.max(axis=0)
    for steps in (1, 2, 7, 64):
        (decoded,) = run_model(compile_text(model, x, steps=steps), x=x)
        # Starting from θ/2, T·x/θ is rounded to the nearest integer.  float32: T roundings of v.
        assert (np.abs(decoded - wanted) <= theta / (2 * steps) * (1 + steps * 2.0**-22)).all()


def test_starting_from_zero_rounds_down() -> None:
    model = parse("g (float[N,3] x) => (float[N,3] y) { y = Relu (x) }")
    x = random(0, 50, 3)
    (decoded,) = run_model(compile_text(model, x, steps=16, initial=0.0), x=x)
    assert (decoded <= np.maximum(x, 0) * (1 + 16 * 2.0**-22)).all() and decoded.max() > 0


def test_a_hard_reset_loses_the_residual() -> None:
    model = parse("g (float[N,1] x) => (float[N,1] y) { y = Relu (x) }")
    calibration, x = np.array([[1.0]], np.float32), np.array([[0.7]], np.float32)
    soft = compile_text(model, calibration, steps=100, initial=0.0)
    hard = compile_text(model, calibration, steps=100, initial=0.0, reset="hard")
    # θ = 1, x = 0.7: soft fires 70 times of 100, hard at every second step.
    assert run_model(soft, x=x)[0][0, 0] == pytest.approx(0.70, abs=0.011)
    assert run_model(hard, x=x)[0][0, 0] == pytest.approx(0.50, abs=1e-6)


@pytest.mark.parametrize(
    "rectify",
    [
        "Relu (h)",
        "Clip (h, zero)",
        "Clip (h, zero, six)",
        "Max (h, zero)",
        "Max (zero, h)",
        "Max (h, zeros)",
    ],
)
def test_every_spelling_of_a_rectifier(rectify: str) -> None:
    text = f"""g (float[N,3] x) => (float[N,2] y)
    <float zero = {{0}}, float six = {{6}}, float[1,4] zeros = {{0, 0, 0, 0}}>
    {{ h = Gemm (x, w)  r = {rectify}  y = Gemm (r, v) }}"""
    weights = {"w": 4 * random(1, 3, 4), "v": random(2, 4, 2)}
    model, x = parse(text, weights), random(0, 20, 3)
    snn = compile_text(model, x)
    assert op_counts(snn)["RMPNeuron"] == 1
    (wanted,) = run_model(model, x=x)
    (decoded,) = run_model(snn, x=x, snnc_steps=np.array(1024))
    # θ/2T for each of four inputs of a weight below 3; θ is below 30, or below 6 where it is capped.
    assert np.abs(decoded - wanted).max() <= 4 * 3 * 30 / 2048


@pytest.mark.parametrize("zeros", [(1, 1, 2), (2, 1)])
def test_a_max_that_broadcasts_keeps_its_shape(zeros: tuple[int, ...]) -> None:
    text = "g (float[N,1] x) => (float[%s] y) { r = Max (x, z)  y = Relu (r) }"
    text %= "1,N,2" if len(zeros) == 3 else "2,1"
    model, x = parse(text, {"z": np.zeros(zeros, np.float32)}), np.ones((1, 1), np.float32)
    (wanted,) = run_model(model, x=x)
    assert run_model(compile_text(model, x), x=x)[0].shape == wanted.shape


def test_a_layer_keeps_its_calibrated_threshold_per_channel() -> None:
    model = parse("g (float[N,2,3] x) => (float[N,2,3] y) { [act] y = Relu (x) }")
    x = np.abs(random(0, 5, 2, 3)) * np.array([1, 10], np.float32)[:, None]
    compiled = pipeline.compile_model(
        model, Options(threshold="max", correction="none", readout="mean"), x
    )
    assert np.array_equal(compiled.calibration.thresholds["act"], x.max(axis=(0, 2)))
    emitted = {t.name: t for t in compiled.model.graph.initializer}["act/threshold"]
    assert list(emitted.dims) == [2, 1]
