"""Error feedback in layered time: the emitted network is the one on which weights were rounded."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from helpers import parse, random, run_model

from snncompiler import pipeline
from snncompiler.analysis.instrument import Watched, watch
from snncompiler.analysis.verify import verify
from snncompiler.calibration.levels import calibrate_levels
from snncompiler.calibration.record import Calibration
from snncompiler.emission.emit import emit
from snncompiler.emission.metadata import grid_of
from snncompiler.errors import UsageError
from snncompiler.ir.graph import with_outputs
from snncompiler.ir.rectifiers import rectifiers_of
from snncompiler.ir.settings import Options
from snncompiler.network.data import Dataset
from snncompiler.runtime import create_session

#: Inputs that go together, as neighbouring pixels do.
X = np.repeat(random(1, 64, 3, 4, 4), 2, axis=2).repeat(2, axis=3) + random(2, 64, 3, 8, 8) / 4
NETWORK = """g (float[N,3,8,8] x) => (float[N,5] y) {
    c0 = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)  r0 = Relu (c0)
    c1 = Conv <pads = [1, 1, 1, 1]> (r0, w1, b1)  r1 = Relu (c1)
    c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2)  d = Conv (r0, w3)  s = Add (c2, d)  r2 = Relu (s)
    c3 = Conv <group = 8, strides = [2, 2]> (r2, w4, b4)  r3 = Clip (c3, zero, most)
    m = GlobalAveragePool (r3)  f = Flatten (m)  y = Gemm (f, w5) }"""
SHAPES = {
    "w0": (8, 3, 3, 3), "b0": (8,), "w1": (8, 8, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3),
    "w3": (8, 8, 1, 1), "w4": (8, 1, 3, 3), "b4": (8,), "w5": (8, 5),
}  # fmt: skip


def network() -> onnx.ModelProto:
    weights: dict[str, Any] = {
        name: random(3 + seed, *shape) / np.sqrt(max(np.prod(shape[1:]), 4))
        for seed, (name, shape) in enumerate(SHAPES.items())
    }
    weights |= {"zero": 0.0, "most": 1.5}
    return parse(NETWORK, {name: np.asarray(array, np.float32) for name, array in weights.items()})


def options(**given: Any) -> Options:
    asked = {"coding": "rate", "steps": 6, "weights": "int4", "task": "classification", **given}
    return Options(timing="layered", **asked)


@pytest.fixture(scope="module")
def compiled() -> pipeline.Compiled:
    return pipeline.compile_model(network(), options(), X)


def test_every_neuron_sends_in_the_mean_what_the_ann_sends(compiled: pipeline.Compiled) -> None:
    """So what was rounded is what was emitted.  Currents are multiples of the weights' step and a
    constant, so that no shift is finer; and a few values at the border of two counts move together."""
    watched = watch(compiled.model)
    names = [entry.name for entry in watched.model.graph.output]
    values = dict(zip(names, create_session(watched.model).run(None, {"x": X}), strict=True))
    nodes = {node.name: node for node in rectifiers_of(compiled.prepared.graph)}
    assert len(watched.layers) == 4
    for layer in watched.layers:
        told = grid_of(compiled.model).of(layer.name)
        scale, step = told.scale, told.step * told.scale
        quantum = layer.threshold.reshape(-1) * scale
        found = values[Watched.output(layer, "count")].mean(axis=(0, 2, 3)) * quantum
        output = nodes[layer.name].outputs[0].name
        activations = run_model(with_outputs(compiled.prepared.ann, [output]), x=X)[1]
        off = np.abs(found - activations.mean(axis=(0, 2, 3)))
        count = activations[:, 0].size
        assert (off <= step + quantum * (2.0**-12 + 8 / count)).all(), layer.name


def test_feedback_leaves_less_error_than_the_nearest_whole_numbers() -> None:
    prepared = pipeline.prepare(network())
    (wanted,) = run_model(prepared.ann, x=X)
    errors = []
    for feedback in (False, True):
        calibration = calibrate_levels(prepared, options(), Dataset({"x": X}), feedback=feedback)
        (found,) = run_model(emit(prepared, calibration, options()), x=X)
        errors.append(float(np.linalg.norm(found - wanted)))
    assert errors[1] < errors[0]


def test_weights_take_the_whole_numbers_that_were_found(compiled: pipeline.Compiled) -> None:
    assert len(compiled.calibration.whole) == 5
    assert all((change != 0).any() for change in compiled.calibration.whole.values())
    assert [layer.bits for layer in grid_of(compiled.model).layers] == [8] * 4
    assert [layer.step for layer in grid_of(compiled.model).layers] == [16] * 4
    report = compiled.calibration.report
    assert all(0 < parts["rounding"] < 1 for parts in report.values())
    # Of the branches of a sum all channels have one scale.
    assert verify(network(), compiled.model, data=X).passed


def test_a_calibration_gives_the_same_file_again_and_fits_no_other_bits(
    compiled: pipeline.Compiled,
) -> None:
    read = Calibration.from_json(compiled.calibration.to_json())
    again = pipeline.compile_model(network(), options(), read)
    raw = [made.model.SerializeToString(deterministic=True) for made in (compiled, again)]
    assert raw[0] == raw[1]
    with pytest.raises(UsageError, match="--weights int8 needs data"):
        pipeline.compile_model(network(), options(weights="int8"), read)


@pytest.mark.parametrize("given", [{"weights": "int8"}, {"correct": "none"}], ids=str)
def test_what_is_rounded_to_the_nearest(given: dict[str, Any]) -> None:
    assert pipeline.compile_model(network(), options(**given), X).calibration.whole == {}
