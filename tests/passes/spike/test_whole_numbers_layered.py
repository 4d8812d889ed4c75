"""whole-numbers in layered time: sums of a window are whole, and exact on every way of running."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import Array, parse, random, run_model
from random_networks import seeded

from snncompiler import pipeline
from snncompiler.analysis.verify import verify
from snncompiler.emission.metadata import grid_of
from snncompiler.errors import Refused
from snncompiler.ir.settings import Options
from snncompiler.ir.whole import EXACT, Weights
from snncompiler.runtime.session import create_session

POOLED = """
g (float[N,3,8,8] x) => (float[N,5] y) {
    c0 = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)  r0 = Relu (c0)
    p0 = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (r0)
    c1 = Conv <pads = [1, 1, 1, 1]> (p0, w1, b1)  r1 = Relu (c1)
    c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2)  s2 = Add (c2, r1)  r2 = Clip (s2, zero, top)
    m = GlobalAveragePool (r2)  f = Flatten (m)  y = Gemm (f, w4, b4) }
"""


def compiled(x: Array, weights: str, **options: Any) -> pipeline.Compiled:
    shapes = {
        "w0": (6, 3, 3, 3), "b0": (6,), "w1": (6, 6, 3, 3), "b1": (6,), "w2": (6, 6, 3, 3),
        "w4": (6, 5), "b4": (5,),
    }  # fmt: skip
    arrays = {name: random(seed, *shape) / 3 for seed, (name, shape) in enumerate(shapes.items())}
    model = parse(POOLED, {**arrays, "zero": np.float32(0), "top": np.float32(2)})
    chosen = Options(timing="layered", weights=Weights.parse(weights), **options)
    return pipeline.compile_model(model, chosen, x)


@pytest.mark.parametrize(("coding", "steps"), [("rate", 6), ("radix", 8)])
def test_all_ways_of_running_give_the_same_bits(coding: Any, steps: int) -> None:
    x = random(9, 40, 3, 8, 8)
    made = compiled(x, "int8", coding=coding, steps=steps)
    ways = [{"native": False}, {"threads": 1}, {"threads": 2}]
    first, *others = (create_session(made.model, **way).run(None, {"x": x}) for way in ways)
    for other in others:
        assert all(a.tobytes() == b.tobytes() for a, b in zip(first, other, strict=True))
    # Of sums and potentials of a whole window, whatever arrives.
    assert all(layer.reach < EXACT and layer.bound < EXACT for layer in grid_of(made.model).layers)


def test_more_bits_come_nearer_to_real_weights() -> None:
    """Of the outputs, over all samples, with nothing that mends them: 8 bits leave at most half of the
    error that 4 bits leave."""
    x = random(9, 40, 3, 8, 8)
    real, eight, four = (
        run_model(compiled(x, weights, coding="rate", steps=4, correct="none").model, x=x)[0]
        for weights in ("float32", "int8", "int4")
    )
    assert np.linalg.norm(eight - real) <= np.linalg.norm(four - real) / 2


@pytest.mark.parametrize("seed", range(4))
def test_random_networks(seed: int) -> None:
    """Every check of `snnc verify` holds, or the network is refused for a reason that is its own."""
    network = seeded(seed)
    options = Options(timing="layered", coding="radix", steps=3, weights=Weights(8))
    try:
        made = pipeline.compile_model(network.model, options, network.x)
    except Refused as refused:
        assert {finding.code for finding in refused.findings} <= {"SNNC221", "SNNC223"}
        return
    assert verify(network.model, made.model, data=network.x).passed
