"""compact: smaller files that give the same bits, and that expand to what they were."""

from __future__ import annotations

import onnx
import pytest
from helpers import parse, random

import snncompiler
from snncompiler import models
from snncompiler.errors import UsageError
from snncompiler.passes.lower.compact import compact, expand
from snncompiler.runtime.session import create_session

NETWORK = models.path("digits-resnet")
X = random(1, 16, 1, 8, 8)


@pytest.mark.parametrize("unroll", ["fold", "loop", "steps"])
def test_a_compact_file_is_smaller_and_gives_the_same_bits(unroll: str) -> None:
    how = {"calibration": X, "weights": "int8", "steps": 3, "unroll": unroll}
    plain = snncompiler.compile(NETWORK, **how)
    small = snncompiler.compile(NETWORK, **how, compact=True)
    sizes = [len(model.SerializeToString()) for model in (plain, small)]
    # 19,000 weights lose three bytes each.
    assert sizes[1] < sizes[0] - 2.5 * 19_000
    for way in ({"native": False}, {"events": False}, {}, {"optimize": False, "native": False}):
        wanted, found = (
            create_session(model, **way).run(None, {"input": X})[0] for model in (plain, small)
        )
        assert wanted.tobytes() == found.tobytes()


def test_expand_undoes_it() -> None:
    plain = snncompiler.compile(NETWORK, calibration=X, weights="int8", steps=2)
    copy = onnx.ModelProto()
    copy.CopyFrom(plain)
    compact(copy)
    assert copy.SerializeToString(deterministic=True) != plain.SerializeToString(deterministic=True)
    expand(copy)
    assert copy.SerializeToString(deterministic=True) == plain.SerializeToString(deterministic=True)
    expand(copy)
    assert copy.SerializeToString(deterministic=True) == plain.SerializeToString(deterministic=True)


def test_a_lowered_file_is_not_compact() -> None:
    with pytest.raises(UsageError, match="--compact"):
        snncompiler.compile(NETWORK, calibration=X, weights="int8", target="cpu", compact=True)


def test_wide_layers_keep_their_thresholds_where_they_are_looked_for() -> None:
    text = """g (float[N,8] x) => (float[N,4] y) {
        p = Gemm (x, a)  r = Relu (p)  q = Gemm (r, b)  s = Relu (q)  y = Gemm (s, c) }"""
    weights = {"a": random(3, 8, 80), "b": random(4, 80, 96), "c": random(5, 96, 4)}
    x = random(6, 16, 8)
    made = snncompiler.compile(
        parse(text, weights), calibration=x, weights="int8", steps=3, compact=True
    )
    assert create_session(made).run(None, {"x": x})[0].shape == (16, 4)
