"""lower-precision: what becomes float16, and what stays; networks in float16 are in test_emission."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import assert_close, compile_text, parse, random, run_model

from snncompiler.errors import Refused


def test_an_input_of_whole_numbers_stays() -> None:
    """float16 would round indices above 2048."""
    text = """g (int64[N,2] i, float[N,4] x) => (float[N,3] y)
    { e = Gather <axis = 0> (table, i)  m = ReduceMean <axes = [1], keepdims = 0> (e)
      s = Add (m, x)  c = MatMul (s, w)  r = Relu (c)  y = MatMul (r, v) }"""
    weights = {"table": random(1, 3000, 4), "w": random(2, 4, 6) / 2, "v": random(3, 6, 3) / 2}
    model = parse(text, weights)
    feeds = {"i": np.array([[2999, 2049], [1, 2051], [2047, 0]]), "x": random(4, 3, 4)}
    snn = compile_text(model, feeds, precision="fp16", steps=512)
    (found,), (wanted,) = run_model(snn, **feeds), run_model(model, **feeds)
    # C/T: six neurons, each off by θ/2T; weights and currents round by 2^-11.
    assert_close(found, wanted, relative=20 / 512 + 16 * 2.0**-11)


@pytest.mark.parametrize(("size", "fits"), [(65504.0, True), (-65504.0, True), (65536.0, False)])
def test_the_largest_weight_is_that_of_float16(size: float, fits: bool) -> None:
    model = parse(
        "g (float[N,2] x) => (float[N,2] y) { h = MatMul (x, w)  y = Relu (h) }",
        {"w": np.float32([[size, 0.5], [0, 1]])},
    )
    x = np.float32([[1e-4, 1], [2e-4, -1]])
    if fits:
        assert compile_text(model, x, precision="fp16")
        return
    with pytest.raises(Refused, match="does not fit float16"):
        compile_text(model, x, precision="fp16")


def test_an_input_of_the_read_out_alone_stays_exact() -> None:
    """It isn't cast: 1 + 2^-20 is no number of float16."""
    text = """g (float[N,2] x, float[N,2] z) => (float[N,2] y)
    { r = Relu (x)  c = MatMul (r, w)  y = Add (c, z) }"""
    model = parse(text, {"w": np.zeros((2, 2), np.float32)})
    feeds = {"x": np.float32([[1, -1]]), "z": np.float32([[1 + 2.0**-20, 3]])}
    snn = compile_text(model, feeds, precision="fp16")
    assert np.array_equal(run_model(snn, **feeds)[0], feeds["z"])
    cast = [node.input[0] for node in snn.graph.node if node.op_type == "Cast"]
    assert "x" in cast and "z" not in cast
