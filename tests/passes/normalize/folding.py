"""What the tests of fold-batch-norm and of fold-affine have in common."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from helpers import (
    Array,
    assert_close,
    in_type,
    ops,
    random,
    rewritten,
    run_model,
)

from snncompiler import pipeline
from snncompiler.network.checks import check_source, measure_folds

#: Folding rounds every weight and every bias once to float32 (2^-24 each); source and result sum at
#: most 200 products each, and the batch-norm step rounds four times: under 512 roundings.  The bound
#: is relative to the largest |weight|·|input| sum, which the outputs here reach within a factor 8.
FOLD = 8 * 512 * 2.0**-24


def bn(channels: int, seed: int = 0, prefix: str = "") -> dict[str, Array]:
    """Parameters of a batch-norm: γ of both signs, variances from 0.3 to 3."""
    rng = np.random.default_rng(seed)
    gamma = rng.uniform(0.5, 2, channels) * rng.choice([-1, 1], channels)
    made = {
        "g": gamma,
        "b": rng.standard_normal(channels),
        "m": rng.standard_normal(channels),
        "v": rng.uniform(0.3, 3, channels),
    }
    return {prefix + name: array.astype(np.float32) for name, array in made.items()}


def folded_in(kind: str, model: onnx.ModelProto, *shape: int) -> list[str]:
    """The operators after both folds of the network exported in `kind`, without the casts of its own.

    Source and result agree in onnxruntime.
    """
    source, x = in_type(model, kind), random(7, *shape).astype(kind)
    result = rewritten(source, "fold-affine")
    # onnxruntime has no float64 convolutions and rounds every float16 value: the same in float32.
    wanted = run_model(in_type(source, "float32"), x=x.astype(np.float32))
    # The last cast to float16 rounds once more.
    rounding = 2.0**-11 if kind == "float16" else 0.0
    for now, before in zip(run_model(result, x=x), wanted, strict=True):
        assert now.dtype == kind
        assert_close(now, before, relative=FOLD + rounding)
    return [op for op in ops(result) if op != "Cast"]


@pytest.fixture(params=["float32", "float16", "float64"])
def folds(request: pytest.FixtureRequest) -> Callable[..., list[str]]:
    """`folded_in` each type; a twin is also compared with its source, and its folds are measured."""

    def fold(model: onnx.ModelProto, *shape: int) -> list[str]:
        found = folded_in(request.param, model, *shape)
        if request.param == "float32":
            return found
        prepared = pipeline.prepare(in_type(model, request.param))
        feeds = {"x": random(7, *shape).astype(request.param)}
        check_source(prepared, feeds)
        assert not any("was not compared" in finding.message for finding in prepared.findings)
        measure_folds(prepared, feeds)
        made = {tensor.name for node in prepared.graph.nodes for tensor in node.outputs}
        for layer in prepared.context.layers.values():
            if layer.folded and layer.output in made:
                assert layer.change is not None and layer.change[1] <= FOLD
        return found

    return fold


BN = "BatchNormalization <epsilon = 0.01>"
