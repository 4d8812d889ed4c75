"""The steps of `material.json` become one `snncompiler.Preprocess`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks import bench

from snncompiler import Preprocess
from snncompiler.network.data import InputSpec, load_data

STEPS: list[dict[str, Any]] = [
    {"layout": "NCHW", "scale": 255, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]},
    {"layout": "NHWC", "scale": 127.5, "shift_after": -1},
    {"layout": "NCHW", "scale": 1, "bgr": True, "mean": [104, 117, 123], "size": 4},
    {"layout": "NCHW", "shift": -127, "divide": 128},
    {"layout": "NHWC", "shift": -83, "multiply": 0.58},
]


@pytest.mark.parametrize("how", STEPS, ids=range(len(STEPS)))
def test_steps_of_the_material_become_one_preprocess(how: dict[str, Any]) -> None:
    """In the order that is said there: shift, multiply or divide, scale, shift_after, mean, std."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3), np.uint8)
    size = how.get("size", 6)
    shape = (3, size, size) if how["layout"] == "NCHW" else (size, size, 3)
    spec = InputSpec("x", (None, *shape), np.dtype(np.float32))
    step = bench.preprocess_of(how)
    assert isinstance(step, Preprocess)
    found = load_data(pixels, [spec], step).feeds["x"]
    wanted = pixels.astype(np.float64)[..., :: -1 if how.get("bgr") else 1]
    cut = (6 - size) // 2
    wanted = wanted[:, cut : cut + size, cut : cut + size]
    wanted = (wanted + how.get("shift", 0)) * how.get("multiply", 1) / how.get("divide", 1)
    wanted = wanted / how.get("scale", 1) + how.get("shift_after", 0)
    wanted = (wanted - how.get("mean", 0)) / how.get("std", 1)
    if how["layout"] == "NCHW":
        wanted = wanted.transpose(0, 3, 1, 2)
    # Three float32 roundings of values up to 255.
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=255 * 2.0**-22)
