"""The emitted graphs of three small networks as text, in `golden/`: a review shows what changes.

    make golden

writes the texts anew, where a change of the emission is meant.  Weights, thresholds and charges are
small binary fractions, so that all arithmetic on them is exact, and the calibration is given: nothing
depends on onnxruntime.  Texts are compared as this version of onnx prints them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx.printer
import pytest
from helpers import Array, parse

import snncompiler
from snncompiler import Calibration

FOLDER = Path(__file__).with_name("golden")


def fractions(*shape: int) -> Array:
    """Weights that are multiples of 1/8 between -1 and 1."""
    values = np.arange(np.prod(shape)) * 5 % 17 - 8
    return (values / 8).astype(np.float32).reshape(shape)


#: Two layers, and every option at its default.
MLP = parse(
    """mlp (float[N,4] x) => (float[N,2] y) {
        a = Gemm (x, w, b)
        r = Relu (a)
        y = Gemm <transB = 1> (r, v, c)
    }""",
    {"w": fractions(4, 3), "b": fractions(3), "v": fractions(2, 3), "c": fractions(2)},
)

#: Convolutions with a batch-norm and a shortcut, and max pooling.
RESIDUAL = parse(
    """residual (float[N,1,4,4] image) => (float[N,3] scores) {
        a = Conv <pads = [1, 1, 1, 1]> (image, stem)
        n = BatchNormalization <epsilon = 0.25> (a, scale, shift, mean, variance)
        r = Relu (n)
        p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
        c = Conv <kernel_shape = [1, 1]> (p, branch, bias)
        s = Add (c, p)
        t = Relu (s)
        g = GlobalAveragePool (t)
        f = Flatten (g)
        scores = Gemm (f, w)
    }""",
    {
        "stem": fractions(2, 1, 3, 3),
        "scale": np.float32([2, 0.5]),
        "shift": np.float32([0.25, -0.5]),
        "mean": np.float32([0, 1]),
        "variance": np.float32([0.75, 3.75]),
        "branch": fractions(2, 2, 1, 1),
        "bias": fractions(2),
        "w": fractions(2, 3),
    },
)

#: A rectifier with a bound, and two outputs, one of which is that of the spiking layer.
SIGNAL = parse(
    """signal (float[N,2,6] x) => (float[N,3,4] rate, float[N,2] y) {
        a = Conv <kernel_shape = [3]> (x, filter)
        rate = Clip (a, low, high)
        m = ReduceMean <axes = [2], keepdims = 0> (rate)
        y = MatMul (m, w)
    }""",
    {
        "filter": fractions(3, 2, 3),
        "w": fractions(3, 2),
        "low": np.float32(0),
        "high": np.float32(2),
    },
)

#: Network, thresholds and charges by layer, and the options.
CASES: dict[str, tuple[onnx.ModelProto, dict[str, Any], dict[str, Any]]] = {
    "mlp": (MLP, {"thresholds": {"Relu_1": [1.5]}}, {}),
    "residual": (
        RESIDUAL,
        {
            "thresholds": {"Relu_2": [2.0, 0.5], "Relu_6": [4.0, 1.0]},
            "schedules": {
                "Relu_2": [[0.5, 0.25], [0.0, 0.125]],
                "Relu_6": [[1.0, 0.5], [0.0, 0.0]],
            },
            "correction": "schedule",
            "growth": "0.5@1,1@5",
            "neuron": "signed:2",
        },
        {"task": "classification", "neuron": "signed:2", "readout": "ramp:1"},
    ),
    "signal": (
        SIGNAL,
        {"thresholds": {"Clip_1": [1.0, 2.0, 0.5]}},
        {"emit": "step", "readout": "delay:2", "steps": 8},
    ),
    "layered-rate": (
        RESIDUAL,
        {"thresholds": {"Relu_2": [0.5, 0.125], "Relu_6": [1.0, 0.25]}, "levels": 4},
        {"timing": "layered", "steps": 4},
    ),
    "layered-radix": (
        RESIDUAL,
        {"thresholds": {"Relu_2": [0.5, 0.125], "Relu_6": [1.0, 0.25]}, "levels": 7},
        {"timing": "layered", "coding": "radix", "steps": 3},
    ),
}


def emitted(name: str) -> onnx.ModelProto:
    """The compiled network without its metadata."""
    model, given, options = CASES[name]
    source = snncompiler.compile(model)  # which tells the source's checksum
    known = next(e.value for e in source.metadata_props if e.key == "snnc.source_sha256")
    arrays = {
        key: {layer: np.float32(values) for layer, values in given.get(key, {}).items()}
        for key in ("thresholds", "schedules")
    }
    calibration = Calibration(
        method="max",
        percentile=99.9,
        per_channel=True,
        alpha=1.0,
        source="data",
        samples=1,
        seed=0,
        model_sha256=known,
        **{**given, **arrays},
    )
    spiking = snncompiler.compile(model, calibration=calibration, **options)
    del spiking.metadata_props[:]
    spiking.producer_version = ""
    return spiking


@pytest.mark.parametrize("name", CASES)
def test_the_emitted_graph_is_the_stored_one(name: str, request: pytest.FixtureRequest) -> None:
    path, found = FOLDER / f"{name}.txt", onnx.printer.to_text(emitted(name))
    if request.config.getoption("--write-golden"):
        # A line for every weight.
        path.write_text(found.replace("}, ", "},\n      ") + "\n", encoding="utf-8")
    stored = onnx.parser.parse_model(path.read_text(encoding="utf-8"))
    assert found == onnx.printer.to_text(stored), "meant? then: make golden"


def test_the_folder_holds_what_is_tested() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(CASES)
