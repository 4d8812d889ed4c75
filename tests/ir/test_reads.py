"""What the weights of a network multiply, in the network as it came and in all compiled forms of it."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import parse, random

from snncompiler import pipeline
from snncompiler.analysis.constraints import constraints
from snncompiler.emission.compiled import read_compiled
from snncompiler.ir.settings import Options

TEXT = """g (float[N,2,8,8] x) => (float[N,3] y) {
    stem = Conv <pads = [1, 1, 1, 1]> (x, w)  r = Relu (stem)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)  a = Conv (p, v)  q = Relu (a)
    m = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (q)  b = Conv (m, v)
    c = Conv (b, v)  n = Relu (c)  s = Add (n, m)  d = Conv (s, v)  t = Relu (d)
    g = GlobalAveragePool (t)  f = Flatten (g)  y = Gemm (f, z) }"""
WANTED = {
    "Conv_0": "the input",
    "Conv_3": "spikes",
    "Conv_6": "sums of spikes",
    "Conv_7": "real numbers",
    "Conv_10": "sums of spikes",
    "Gemm_14": "sums of spikes",
}
FORMS: dict[str, dict[str, Any]] = {
    "fold": {},
    "loop": {"unroll": "loop"},
    "steps": {"unroll": "steps"},
    "rate": {"timing": "layered"},
    "radix": {"timing": "layered", "coding": "radix"},
}


@pytest.mark.parametrize("form", FORMS)
def test_what_weights_read(form: str) -> None:
    weights = {
        "w": random(1, 4, 2, 3, 3), "v": random(2, 4, 4, 1, 1), "z": random(3, 4, 3)
    }  # fmt: skip
    made = pipeline.compile_model(
        parse(TEXT, weights),
        Options(steps=3, correction="none", **FORMS[form]),
        random(4, 8, 2, 8, 8),
    )
    found = constraints(made.prepared)["linear_layers"]
    assert {layer["name"]: layer["reads"] for layer in found} == WANTED
    reads = dict(read_compiled(made.model).reads)
    assert reads == {name: kind for name, kind in WANTED.items() if name in reads}
    assert len(reads) >= 5
