"""What the tools say of a file in layered time."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, parse, random, run_model, tell
from onnx import numpy_helper

from snncompiler import pipeline
from snncompiler.analysis.count import macs_of, thresholds_of
from snncompiler.analysis.evaluate import evaluate
from snncompiler.analysis.trace import trace
from snncompiler.analysis.verify import verify
from snncompiler.cli.tables import described
from snncompiler.emission.compiled import read_compiled
from snncompiler.ir.settings import Options

TEXT = """g (float[N,2,8,8] x) => (float[N,3] y) {
    c = Conv <pads = [1, 1, 1, 1]> (x, w, b)  r = Relu (c)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)  d = Conv (p, v, e)  q = Relu (d)
    h = Conv <pads = [1, 1, 1, 1]> (q, u)  a = Add (h, q)  s = Relu (a)
    m = GlobalAveragePool (s)  f = Flatten (m)  y = Gemm (f, z) }"""
T = 5
CODES = ["rate", "radix"]


@cache
def network() -> onnx.ModelProto:
    weights = {
        "w": random(1, 4, 2, 3, 3), "b": random(2, 4), "v": random(3, 4, 4, 2, 2),
        "e": random(4, 4), "u": random(5, 4, 4, 3, 3), "z": random(6, 4, 3),
    }  # fmt: skip
    return parse(TEXT, {name: array * 0.5 for name, array in weights.items()})


@cache
def compiled(coding: Any) -> onnx.ModelProto:
    # Corrected weights give another current than the ANN's, in the first layer too.
    options = Options(timing="layered", coding=coding, steps=T, correct="none")
    return pipeline.compile_model(network(), options, random(0, 32, 2, 8, 8)).model


def spikes_of(snn: onnx.ModelProto, x: Array) -> dict[str, Array]:
    """Layer -> the spikes of every step, [T, N, ...], read from the file itself."""
    twin = onnx.ModelProto()
    twin.CopyFrom(snn)
    neurons = [node for node in twin.graph.node if node.op_type == "LayeredRMPNeuron"]
    for node in neurons:
        twin.graph.output.add(name=node.output[0])
    values = run_model(twin, x=x)[1:]
    return {
        node.name: spikes.reshape(T, -1, *spikes.shape[1:])
        for node, spikes in zip(neurons, values, strict=True)
    }


@pytest.mark.parametrize("coding", CODES)
def test_evaluation_counts_spikes(coding: str) -> None:
    x = random(7, 6, 2, 8, 8)
    snn = compiled(coding)
    found = evaluate(network(), snn, x)
    (result,) = found.results
    spikes = spikes_of(snn, x)
    assert result.latency == 4 * T and result.steps == T
    assert result.spikes == sum(s.sum() for s in spikes.values()) / len(x)
    for activity in result.layers:
        fired = spikes[activity.layer]
        assert activity.firing_rate == pytest.approx(fired.mean(), abs=1e-7)  # float32 sums
        assert activity.saturated == pytest.approx((fired.sum(axis=0) == T).mean())
        assert activity.silent == pytest.approx((fired.sum(axis=(0, 1)) == 0).mean())
    # Every spike that the last convolution reads meets 4 channels at each of the taps that see it.
    seen = spikes[result.layers[-2].layer].sum(axis=(0, 2))
    taps = np.array([2, 3, 2])[:, None] * np.array([2, 3, 2])
    assert result.synops[-1].done == pytest.approx((seen * taps * 4).sum() / len(x))
    assert result.synops[-1].dense == taps.sum() * 4 * 4 * T
    macs = macs_of(read_compiled(snn))
    # A window of 3 sees 8 places 22 times, and 3 places 7 times; one of 2 sees 3 of 4 places each.
    assert macs is not None and macs.once == 22 * 22 * 2 * 4 + 4 * 3
    assert list(macs.layers.values()) == [9 * 4 * 16, 7 * 7 * 16]
    assert all("spikes are looked at" in note.reason for note in found.events)


@pytest.mark.parametrize("coding", CODES)
def test_error_is_rounding_and_clipping_and_never_unevenness(coding: str) -> None:
    x = random(8, 5, 2, 8, 8)
    (result,) = evaluate(network(), compiled(coding), x, diagnose=True).results
    found = result.diagnosis
    assert found is not None
    assert found.layers[0].inherited < 1e-6  # the first layer has the ANN's own current
    for layer in found.layers:
        # A neuron's own float32 sum is rounded; that is far below one level.
        assert layer.unevenness < 1e-3 * layer.rounding
        assert layer.total > 0
    # Without unevenness the SNN is the ANN whose activations have so many levels, up to a level where
    # a current is half-way between two.
    assert found.quantised.relative_error == pytest.approx(result.relative_error, rel=0.05)


def test_rate_file_is_evaluated_at_several_numbers_of_steps() -> None:
    x = random(9, 6, 2, 8, 8)
    snn = compiled("rate")
    results = evaluate(network(), snn, x, steps=[2, 5, 9], diagnose=True).results
    assert [result.latency for result in results] == [8, 20, 36]
    for result in results:
        (alone,) = evaluate(network(), snn, x, steps=[result.steps], diagnose=True).results
        assert alone == result
        (wanted,) = run_model(snn, x=x, snnc_steps=np.array(result.steps))
        assert result.predictions == tuple(wanted.argmax(axis=1))
    with pytest.raises(Exception, match="baked in"):
        evaluate(network(), compiled("radix"), x, steps=[4])


@pytest.mark.parametrize("coding", CODES)
def test_trace_has_every_step_of_the_window(coding: str) -> None:
    x = random(10, 3, 2, 8, 8)
    snn = compiled(coding)
    recorded = trace(snn, x, samples=3, ann=network(), neurons=None)
    spikes = spikes_of(snn, x)
    weights = 2.0 ** np.arange(T)[::-1] if coding == "radix" else np.ones(T)
    assert recorded.arrays()["worth"].tolist() == weights.tolist()
    for layer in recorded.layers:
        flat = spikes[layer.layer].reshape(T, 3, -1)
        np.testing.assert_array_equal(layer.spikes, flat)
        value = np.tensordot(weights, flat, 1) * layer.threshold
        np.testing.assert_allclose(layer.decoded, value, rtol=1e-6)
        # What is left is below a level, unless the neuron sent all it can; nothing is taken from
        # a potential that is too low.
        left, full = layer.membrane[-1], (flat == 1).all(axis=0)
        assert (left[~full] < np.broadcast_to(layer.threshold, left.shape)[~full] * 1.0001).all()
        assert (left[flat.any(axis=0)] > -1e-4).all()
        assert layer.activation is not None and layer.activation.shape == value.shape


@pytest.mark.parametrize("coding", CODES)
def test_verify_holds_a_file_to_its_levels(coding: str) -> None:
    found = verify(network(), compiled(coding))
    assert found.passed, found.checks
    assert [layer.holds for layer in found.layers] == [True] * 3
    damaged = onnx.ModelProto()
    damaged.CopyFrom(compiled(coding))
    node = next(node for node in damaged.graph.node if node.op_type == "LayeredRMPNeuron")
    (tensor,) = (t for t in damaged.graph.initializer if t.name == node.input[2])
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, tensor.name))
    assert not verify(network(), damaged).passed


@pytest.mark.parametrize("coding", CODES)
def test_description_has_latency_and_period(coding: str) -> None:
    content = described(read_compiled(compiled(coding)))
    wanted = {"timing": "layered", "coding": coding, "latency": 4 * T, "period": T}
    assert {name: content[name] for name in wanted} == wanted
    assert content["unroll"] is None and content["chunk"] is None and content["growth"] is None
    rows = thresholds_of(read_compiled(compiled(coding)))
    assert {row["neuron"] for row in rows} == {"LayeredRMPNeuron"}
    levels = 2**T - 1 if coding == "radix" else T
    for row in rows:
        assert row["threshold"] == pytest.approx(row["per_spike"] * levels)


def test_calibration_of_other_levels_is_refused() -> None:
    made = pipeline.compile_model(
        network(), Options(timing="layered", steps=T), random(0, 32, 2, 8, 8)
    )
    for options in (Options(timing="layered", steps=T + 1), Options(steps=T)):
        with pytest.raises(Exception, match="the calibration is for layered time with 5 levels"):
            pipeline.compile_model(network(), options, made.calibration)
    again = pipeline.compile_model(network(), Options(timing="layered", steps=T), made.calibration)
    assert again.model == made.model


def test_changed_timing_is_noticed() -> None:
    snn = onnx.ModelProto()
    snn.CopyFrom(compiled("rate"))
    tell(snn, coding="radix")
    assert not verify(network(), snn).passed
