"""float16 in layered time: what is there for every step is float16, what is complete is float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from helpers import parse, random, run_model

import snncompiler
from snncompiler import pipeline
from snncompiler.analysis.verify import verify
from snncompiler.emission.compiled import read_compiled
from snncompiler.ir.settings import Options
from snncompiler.pipeline import compile_model

TEXT = """g (float[N,2,6,6] x) => (float[N,3] y) {
    c = Conv <pads = [1, 1, 1, 1]> (x, w, b)  r = Relu (c)
    d = Conv <pads = [1, 1, 1, 1]> (r, v, e)  a = Add (d, r)  q = Relu (a)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (q)  f = Conv (p, u)  o = Relu (f)
    m = GlobalAveragePool (o)  l = Flatten (m)  y = Gemm (l, z) }"""
WEIGHTS = {
    "w": random(1, 4, 2, 3, 3), "b": random(2, 4), "v": random(3, 4, 4, 3, 3), "e": random(4, 4),
    "u": random(5, 4, 4, 2, 2), "z": random(6, 4, 3),
}  # fmt: skip
X = random(7, 64, 2, 6, 6)


def options(**more: Any) -> Options:
    return Options(
        **{"timing": "layered", "coding": "radix", "steps": 8, "precision": "fp16", **more}
    )


@pytest.mark.parametrize(
    ("coding", "steps"), [pytest.param("rate", 16, marks=pytest.mark.slow), ("radix", 8)]
)
def test_it_costs_the_rounding_of_weights_and_currents(coding: str, steps: int) -> None:
    """Half a level of the largest weights is 2^-11 of them: beside the float32 network, which differs
    from the ANN by its levels, outputs move by less than that does."""
    model = parse(TEXT, WEIGHTS)
    half = compile_model(model, options(coding=coding, steps=steps), X)
    whole = compile_model(model, options(coding=coding, steps=steps, precision="fp32"), X)
    x = random(8, 16, 2, 6, 6)
    (found,), (exact,), (ann,) = (run_model(one, x=x) for one in (half.model, whole.model, model))
    assert found.dtype == np.float32
    assert np.linalg.norm(found - exact) < np.linalg.norm(exact - ann)
    assert verify(model, half.model, data=x[:2]).passed


def test_only_what_is_there_for_every_step_is_float16() -> None:
    snn = compile_model(parse(TEXT, WEIGHTS), options(), X).model
    kinds = {t.name: t.data_type for t in snn.graph.initializer}
    weights = {n.name: kinds[n.input[1]] for n in snn.graph.node if n.op_type in ("Conv", "Gemm")}
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    # The first layer reads the input, and the read-out complete values.
    assert list(weights.values()) == [single, half, half, single]
    neurons = [node for node in snn.graph.node if node.op_type == "LayeredRMPNeuron"]
    assert all(kinds[node.input[1]] == single for node in neurons)
    assert set(read_compiled(snn).reads.values()) == {"the input", "spikes", "sums of spikes"}


def test_a_pipeline_of_layers_in_float16() -> None:
    model = parse(TEXT, WEIGHTS)
    stepped = compile_model(model, options(emit="step"), X).model
    assert verify(model, stepped, data=X[:2]).passed


def test_weights_that_float16_does_not_hold_are_named() -> None:
    """The current of one of 65,535 levels."""
    with pytest.raises(snncompiler.Refused, match="float16 does not hold its weights") as caught:
        small = {**WEIGHTS, "v": WEIGHTS["v"] / 16}
        compile_model(parse(TEXT, small), options(steps=16), X)
    (finding,) = caught.value.findings
    assert finding.node.startswith("Conv ") and "--precision fp32" in finding.hint


def test_a_quantized_source_is_not_rounded() -> None:
    text = """g (float[N,4] x) => (float[N,3] y) { c = Gemm (x, w)  r = Relu (c)
        q = QuantizeLinear (r, s, o)  d = DequantizeLinear (q, s, o)  y = Gemm (d, z) }"""
    given = {
        "w": random(1, 4, 4), "z": random(2, 4, 3), "s": np.float32(0.05), "o": np.uint8(0),
    }  # fmt: skip
    model = parse(text, {name: np.asarray(one) for name, one in given.items()})
    with pytest.raises(snncompiler.UsageError, match="beside a quantized source"):
        pipeline.compile_model(model, options(), random(3, 8, 4))
