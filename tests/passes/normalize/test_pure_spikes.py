"""With --pure no weights multiply real numbers, and the network stays the same."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import Array, assert_close, parse, random, run_model

from snncompiler import pipeline
from snncompiler.analysis.constraints import constraints
from snncompiler.analysis.verify import verify
from snncompiler.emission.compiled import read_compiled
from snncompiler.ir.rectifiers import rectifiers_of
from snncompiler.ir.settings import Options

BOTTLENECK = """g (float[N,2,8,8] x) => (float[N,3] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w, b)  r = Relu (a)
    d = Conv <group = 4, pads = [1, 1, 1, 1]> (r, k, b)  p = Conv (d, v, b)
    e = Conv (p, v)  t = Relu (e)  f = Conv (t, v, b)  s = Add (f, p)  h = Conv (s, v)  q = Relu (h)
    m = GlobalAveragePool (q)  l = Flatten (m)  c = Gemm (l, z)  y = Gemm (c, z2) }"""
GATE = """g (float[N,2,8,8] x) => (float[N,3] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w, b)  r = Relu (a)  e = Sigmoid (r)  p = Conv (e, v, b)
    q = Relu (p)  m = GlobalAveragePool (q)  l = Flatten (m)  y = Gemm (l, z) }"""


def weights() -> dict[str, Array]:
    return {
        "w": random(1, 4, 2, 3, 3), "b": random(2, 4), "k": random(3, 4, 1, 3, 3),
        "v": random(4, 4, 4, 1, 1), "z": random(5, 4, 3), "z2": random(6, 3, 3),
    }  # fmt: skip


def used(text: str) -> dict[str, Array]:
    return {name: array for name, array in weights().items() if f" {name}" in text}


def test_real_numbers_are_sent_as_spikes() -> None:
    model = parse(BOTTLENECK, used(BOTTLENECK))
    plain, pure = pipeline.prepare(model), pipeline.prepare(model, pure=True)
    reads = [layer["reads"] for layer in constraints(plain)["linear_layers"]]
    assert reads.count("real numbers") == 4
    # Two halves for each of four values; the layer behind the input stays.
    assert len(rectifiers_of(pure.graph)) == len(rectifiers_of(plain.graph)) + 8
    notes = [finding for finding in pure.findings if finding.code == "SNNC221"]
    assert len(notes) == 4 and notes[0].message.startswith("two spiking layers send what it reads")
    x = random(7, 3, 2, 8, 8)
    (found,), (wanted,) = run_model(pure.ann, x=x), run_model(model, x=x)
    # Sums of at most 18 products a layer, in another order, and their differences.
    assert_close(found, wanted, relative=1e-5)


@pytest.mark.parametrize("timing", ["streaming", "layered"])
def test_compiled_network_multiplies_no_real_numbers(timing: str) -> None:
    model, x = parse(BOTTLENECK, used(BOTTLENECK)), random(7, 16, 2, 8, 8)
    options = Options(pure=True, timing=timing, steps=32)  # type: ignore[arg-type]
    snn = pipeline.compile_model(model, options, x).model
    compiled = read_compiled(snn)
    assert compiled.options.pure
    kinds = list(compiled.reads.values())
    assert "real numbers" not in kinds and kinds.count("the input") == 1 and len(kinds) >= 9
    assert verify(model, snn).passed
    (found,), (wanted,) = run_model(snn, x=x), run_model(model, x=x)
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert error < 0.25  # 32 levels, and six layers one behind the other


def test_what_is_never_negative_takes_one_layer() -> None:
    model = parse(GATE, used(GATE))
    pure = pipeline.prepare(model, pure=True, allow_analog=True)
    plain = pipeline.prepare(model, allow_analog=True)
    assert len(rectifiers_of(pure.graph)) == len(rectifiers_of(plain.graph)) + 1
    x = random(7, 3, 2, 8, 8)
    (found,), (wanted,) = run_model(pure.ann, x=x), run_model(model, x=x)
    np.testing.assert_array_equal(found, wanted)
