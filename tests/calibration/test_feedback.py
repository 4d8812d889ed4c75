"""Error feedback in the running network: what is changed is kept, emitted again, and is less wrong."""

from __future__ import annotations

import numpy as np
import onnx
from helpers import Array, parse, random
from onnx import numpy_helper

from snncompiler import pipeline
from snncompiler.calibration.record import Calibration
from snncompiler.emission.metadata import grid_of
from snncompiler.ir.settings import Options

#: Inputs that go together, as neighbouring pixels do.
X = np.repeat(random(1, 128, 8), 4, axis=1) + random(2, 128, 32) / 4
WEIGHTS = {"a": random(3, 32, 24) / 4, "b": random(4, 24, 20) / 4, "c": random(5, 20, 4)}
NETWORK = """g (float[N,32] x) => (float[N,4] y) {
    p = Gemm (x, a)  r = Relu (p)  q = Gemm (r, b)  s = Relu (q)  y = Gemm (s, c) }"""


def second_layer(model: onnx.ModelProto) -> Array:
    loop = next(node for node in model.graph.node if node.op_type == "Loop")
    held = {t.name: numpy_helper.to_array(t) for t in loop.attribute[0].g.initializer}
    return next(array for array in held.values() if array.shape == (24, 20))


def test_few_bits_are_rounded_by_feedback_and_are_less_wrong_in_what_they_give() -> None:
    options = Options(steps=16, weights="int4", task="regression")
    made = pipeline.compile_model(parse(NETWORK, WEIGHTS), options, X)
    changes = made.calibration.whole
    assert len(changes) == 2 and all(np.abs(change).max() >= 1 for change in changes.values())
    numbers, layer = second_layer(made.model), grid_of(made.model).layers[1]
    assert (numbers % layer.step == 0).all() and np.abs(numbers).max() <= 7 * layer.step
    (change,) = (array for array in changes.values() if array.shape == (24, 20))
    nearest = numbers - layer.step * change.astype(np.float64)
    # What the layer reads is the ANN's rectified values over θ, up to what spikes are off by.
    theta = next(iter(made.calibration.thresholds.values()))
    read = np.maximum(X @ WEIGHTS["a"], 0) / theta
    wanted = WEIGHTS["b"] * np.reshape(theta, (-1, 1)) / layer.scale
    errors = [np.square(read @ (wanted - kind)).sum() for kind in (numbers, nearest)]
    assert errors[0] < errors[1]


def test_what_feedback_changes_is_kept_and_gives_the_same_file_again() -> None:
    options = Options(steps=16, weights="int4", task="regression")
    made = pipeline.compile_model(parse(NETWORK, WEIGHTS), options, X)
    read = Calibration.from_json(made.calibration.to_json())
    for name, changes in made.calibration.whole.items():
        assert np.array_equal(read.whole[name], changes) and read.whole[name].dtype == np.int8
    again = pipeline.emit(made.prepared, read, options)
    assert np.array_equal(second_layer(again), second_layer(made.model))


def test_eight_bits_need_no_feedback() -> None:
    made = pipeline.compile_model(parse(NETWORK, WEIGHTS), Options(steps=4, weights="int8"), X)
    assert made.calibration.whole == {}
