"""--paper: the network, the input, the thresholds and the neurons as RMP-SNN has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, codes, op_counts, parse, random, run_model, told

import snncompiler
from snncompiler import models, pipeline
from snncompiler.emission.compiled import read_compiled
from snncompiler.emission.save import serialize
from snncompiler.errors import Refused
from snncompiler.ir.settings import Options

CNN, RESNET = models.path("digits-cnn"), models.path("digits-resnet")

MLP = """g (float[N,6] x) => (float[N,4] y)
{ a = MatMul (x, w0)  [one] p = Relu (a)  b = MatMul (p, w1)  [two] q = Relu (b)
  y = MatMul (q, w2) }"""


def mlp() -> onnx.ModelProto:
    weights = {"w0": random(1, 6, 8), "w1": random(2, 8, 8) / 2, "w2": random(3, 8, 4)}
    return parse(MLP, weights)


def digits(count: int) -> tuple[Array, Array]:
    with np.load(models.path("digits-test")) as archive:
        images = archive["x"][:count].transpose(0, 3, 1, 2).astype(np.float32) / 16
        return np.ascontiguousarray(images), archive["y"][:count]


def compiled(model: Any, data: Any, **options: Any) -> pipeline.Compiled:
    return pipeline.compile_model(model, Options(paper=True, **options), data)


def test_bias_and_batch_norm_are_refused_layer_by_layer() -> None:
    with pytest.raises(Refused) as caught:
        compiled(RESNET, None)
    assert codes(caught.value.findings) == ["SNNC203"] * 7 + ["SNNC204"] * 6
    text = """g (float[N,6] x) => (float[N,8] y)
    { a = Gemm (x, w0, bias)  y = Relu (a) }"""
    biased = parse(text, {"w0": random(1, 6, 8), "bias": random(2, 8)})
    with pytest.raises(Refused) as caught:
        snncompiler.compile(biased, paper=True)
    assert codes(caught.value.findings) == ["SNNC203"]
    # A bias of zeros is none.
    zero = parse(text, {"w0": random(1, 6, 8), "bias": np.zeros(8, np.float32)})
    assert snncompiler.compile(zero, paper=True, steps=2, calibration=random(3, 8, 6)).graph.node


def test_a_network_of_the_paper_is_compiled_as_the_paper_has_it() -> None:
    x = random(4, 20, 6)
    made = compiled(mlp(), x)
    meta = told(made.model)
    assert meta["paper"] is meta["strict"] is True
    wanted = {"threshold": "vin-max", "correction": "none", "readout": "mean", "encode": "poisson",
              "neuron": "binary", "reset": "soft", "initial": 0.0}  # fmt: skip
    assert {key: meta[key] for key in wanted} == wanted
    assert made.calibration.method == "vin-max" and not made.calibration.per_channel
    assert all(theta.shape == (1,) for theta in made.calibration.thresholds.values())
    assert not made.calibration.schedules
    counts = op_counts(made.model)
    assert counts["RMPNeuron"] == 2 and counts["PoissonEncoder"] == counts["TimeSum"] == 1
    assert counts["ScheduledRMPNeuron"] == counts["WeightedTimeSum"] == 0
    read = read_compiled(made.model).options
    assert read.paper and read.strict and read.initial == 0.0 and read.per_channel is False


def test_what_is_given_wins_over_the_paper() -> None:
    given: dict[str, Any] = {"threshold": "max", "encode": "constant", "initial": 0.5,
        "per_channel": True, "correction": "schedule", "readout": "ramp:3"}  # fmt: skip
    x = random(4, 20, 6)
    made = compiled(mlp(), x, **given)
    meta = told(made.model)
    for key in ("threshold", "encode", "correction", "readout"):
        assert meta[key] == given[key]
    assert meta["initial"] == 0.5 and meta["paper"] is True and made.calibration.per_channel
    plain = pipeline.compile_model(mlp(), Options(**given), x)
    (one,), (other,) = (run_model(model.model, x=x) for model in (made, plain))
    assert np.array_equal(one, other)
    for option, value in given.items():
        assert told(compiled(mlp(), x, **{option: value}).model)[option] == value, option


def test_the_paper_is_nothing_but_its_options() -> None:
    x = random(4, 20, 6)
    spelled: dict[str, Any] = {"strict": True, "threshold": "vin-max", "encode": "poisson",
        "per_channel": False, "initial": 0.0, "correction": "none", "readout": "mean"}  # fmt: skip
    whole = compiled(mlp(), x)
    parts = pipeline.compile_model(mlp(), Options(**spelled), x)
    assert parts.calibration.to_json() == whole.calibration.to_json()
    assert parts.model.graph == whole.model.graph


def test_alpha_scales_the_thresholds_of_the_paper() -> None:
    x = random(4, 20, 6)
    plain, scaled = (compiled(mlp(), x, alpha=alpha).calibration for alpha in (1.0, 0.75))
    one = plain.thresholds["one"]
    # The first layer's currents do not depend on any threshold.
    assert np.array_equal(scaled.thresholds["one"], one * np.float32(0.75))
    assert scaled.thresholds["two"] != plain.thresholds["two"]


def test_outputs_converge_to_those_of_the_ann() -> None:
    x = random(4, 20, 6)
    model = mlp()
    (wanted,) = run_model(model, x=x)
    snn = compiled(model, x).model
    errors = []
    for steps in (64, 4096):
        (found,) = run_model(snn, x=x, snnc_steps=np.array(steps))
        errors.append(np.sqrt(np.square(found - wanted).mean() / np.square(wanted).mean()))
    # θ is the largest current of one step: far above any mean, so nothing is clipped.
    assert errors[1] < errors[0] / 3 and errors[1] < 0.1


def test_a_network_of_the_paper_reads_digits() -> None:
    x, y = digits(100)
    with np.load(models.path("digits-train")) as archive:
        train = (archive["x"][:64].astype(np.float32) / 16).transpose(0, 3, 1, 2)
    snn = compiled(CNN, train, steps=256).model
    (logits,) = run_model(snn, input=x)
    # The ANN reads 99.6 % of all scans.
    assert (logits.argmax(axis=1) == y).mean() >= 0.95


def test_the_same_bytes_twice_and_others_for_another_seed() -> None:
    x = random(4, 20, 6)
    one, two, other = (compiled(mlp(), x, seed=seed) for seed in (0, 0, 1))
    assert serialize(one.model) == serialize(two.model)
    (first,), (second,) = (run_model(made.model, x=x) for made in (one, other))
    assert not np.array_equal(first, second)
