"""Activations with a lower bound are coded in spikes, and the network stays what it is.

The normalized network computes relu(f(x) - m) + m for f(x), whose roundings, and those of the biases
that m goes into, are some 1e-7 of the values: 1e-5 is far above them, and far below what a wrong
offset, or one at a border where zeros are padded, would change.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, op_counts, parse, random, run_model
from onnx import numpy_helper

import snncompiler
from snncompiler import pipeline
from snncompiler.analysis.constraints import constraints
from snncompiler.emission.compiled import read_compiled
from snncompiler.ir.settings import Options
from snncompiler.network.prepare import normalization_passes
from snncompiler.network.prepared import Prepared, imported
from snncompiler.passes.base import run_passes
from snncompiler.passes.normalize import sink_offsets
from snncompiler.passes.source.verify_input import verify_input
from snncompiler.runtime import Stream, create_session

LAYERED = Options(timing="layered", coding="radix", steps=8, allow_analog=True)
CONV = "kernel_shape = [3, 3], pads = [1, 1, 1, 1]"
WEIGHTS: dict[str, Any] = {
    "w": random(1, 4, 2, 3, 3), "b": random(2, 4), "v": random(3, 5, 4, 3, 3), "e": random(4, 5),
    "z": random(5, 4, 3), "three": np.float32(3), "six": np.float32(6), "none": np.float32(0),
    "half": np.float32(0.5), "one": np.float32(1), "root": np.float32(np.sqrt(2)),
    "most": np.float32(1.702),
}  # fmt: skip

#: y of c, and what it is called: what exporters write, and single operators of opset 17.
WRITTEN = {
    "SiLU": ("s = Sigmoid (c)  y1 = Mul (c, s)", "SiLU", -0.278465),
    "quick GELU": ("i = Mul (most, c)  s = Sigmoid (i)  y1 = Mul (c, s)", "quick GELU", -0.163609),
    "HardSwish": ("y1 = HardSwish (c)", "HardSwish", -0.375),
    "HardSwish in parts": (
        "i = Add (c, three)  s = Clip (i, none, six)  j = Mul (c, s)  y1 = Div (j, six)",
        "HardSwish", -0.375,
    ),
    "GELU": (
        "i = Div (c, root)  j = Erf (i)  k = Add (j, one)  l = Mul (c, k)  y1 = Mul (l, half)",
        "GELU", -0.169971,
    ),
    "Mish": ("i = Softplus (c)  j = Tanh (i)  y1 = Mul (c, j)", "Mish", -0.308843),
    "Sigmoid": ("y1 = Sigmoid (c)", "Sigmoid", 0.0),
    "Tanh": ("y1 = Tanh (c)", "Tanh", -1.0),
    "Softplus": ("y1 = Softplus (c)", "Softplus", 0.0),
    "ELU": ("y1 = Elu <alpha = 0.5> (c)", "ELU", -0.5),
    "SELU": ("y1 = Selu (c)", "SELU", -1.758099),
    "CELU": ("y1 = Celu (c)", "CELU", -1.0),
}  # fmt: skip


def network(text: str, **more: Any) -> onnx.ModelProto:
    """Behind a convolution, c [N, 4, 6, 6]."""
    head = f"g (float[N,2,6,6] x) => (float[N,M] y) {{ c = Conv <{CONV}> (x, w, b) "
    return parse(head + text + " }", {**WEIGHTS, **more})


def prepared_as_it_is(model: onnx.ModelProto, seed: int = 9) -> Prepared:
    """The normalized network, which gives what the source gives."""
    prepared = pipeline.prepare(model, allow_analog=True, layered=True)
    x = 3 * random(seed, 3, 2, 6, 6)
    for found, wanted in zip(run_model(prepared.ann, x=x), run_model(model, x=x), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
    return prepared


def reads(prepared: Prepared) -> list[str]:
    return [layer["reads"] for layer in constraints(prepared)["linear_layers"]]


def _but_for(few: Collection[str], names: Collection[str]) -> list[Any]:
    """The names; those that are not among the few are slow."""
    return [pytest.param(one, marks=[] if one in few else pytest.mark.slow) for one in names]


@pytest.mark.parametrize("name", _but_for(("HardSwish in parts", "GELU", "ELU"), WRITTEN))
def test_an_activation_is_coded_however_it_is_written(name: str) -> None:
    text, function, least = WRITTEN[name]
    end = f"  d = Conv <{CONV}> (y1, v, e)  m = GlobalAveragePool (d)  y = Flatten (m)"
    prepared = prepared_as_it_is(network(text + end))
    (coded,) = prepared.context.coded.values()
    assert coded.function == function
    assert coded.offset == pytest.approx(least, abs=2e-6)
    assert reads(prepared) == ["the input", "spikes"]
    codes = [one["codes"] for one in constraints(prepared)["rectifiers"]]
    assert codes == [{"function": function, "offset": coded.offset}]
    found = [(one.code, one.node) for one in prepared.findings if one.severity == "warning"]
    assert found == [("SNNC225", next(iter(prepared.context.coded)))]


#: What reads y1 = SiLU(c), and what the weights behind it read; `kind` of the last layer.
SILU = WRITTEN["SiLU"][0] + "  "
READERS = {
    "no padding": ("d = Conv (y1, v, e)", "spikes"),
    "padding and strides": (
        "d = Conv <pads = [0, 1, 2, 1], strides = [2, 1], dilations = [1, 2]> (y1, v, e)", "spikes",
    ),
    "padding as TensorFlow has it": ("d = Conv <auto_pad = \"SAME_LOWER\", strides = [2, 2]> (y1, v)",
                                     "spikes"),
    "depthwise": (f"d = Conv <group = 4, {CONV}> (y1, dw)", "spikes"),
    "an explicit Pad": ("p = Pad (y1, pads)  d = Conv (p, v, e)", "spikes"),
    "max pooling": (
        "p = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (y1)"
        f"  d = Conv <{CONV}> (p, v, e)", "spikes",
    ),
    "average pooling": (
        "p = AveragePool <kernel_shape = [2, 2]> (y1)"
        f"  d = Conv <{CONV}> (p, v, e)", "sums of spikes",
    ),
    "averages with padded zeros": (
        "p = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> (y1)"
        "  d = Conv (p, v, e)", "sums of spikes",
    ),
    "halves put together": (
        "a, k = Split <axis = 1> (y1)  p = Concat <axis = 1> (k, a)"
        f"  d = Conv <{CONV}> (p, v, e)", "spikes",
    ),
    # These get the sum, as it stands.
    "a transposed convolution": ("d = ConvTranspose (y1, tw)", "sums of spikes"),
    "a shortcut beside it": (
        f"a = Conv <{CONV}> (y1, sw)  p = Add (a, y1)  q = Relu (p)  d = Conv (q, v, e)", "spikes",
    ),
}  # fmt: skip
MORE = {
    "dw": random(6, 4, 1, 3, 3), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "tw": random(7, 4, 5, 3, 3), "sw": random(8, 4, 4, 3, 3),
}  # fmt: skip


FEW = ("padding and strides", "an explicit Pad", "max pooling", "a shortcut beside it")


@pytest.mark.parametrize(
    "stored", [pytest.param(True, marks=pytest.mark.slow), False], ids=["stored", "gathered"]
)
@pytest.mark.parametrize("name", _but_for(FEW, READERS))
def test_an_offset_goes_into_what_reads_it(
    name: str, stored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padded zeros are zeros of the activation, not of its spikes; maps of biases are right, whether
    they are stored as they are or spread when the network runs."""
    monkeypatch.setattr(sink_offsets, "_STORED", 1 << 16 if stored else 0)
    text, last = READERS[name]
    prepared = prepared_as_it_is(
        network(SILU + text + "  m = GlobalAveragePool (d)  y = Flatten (m)", **MORE)
    )
    assert reads(prepared)[-1] == last


def test_the_product_of_a_gate_is_coded_too() -> None:
    """SiLU times a Sigmoid is no less than SiLU is; the gate itself, which no weights read, is not
    coded."""
    gate = SILU + (
        "a = GlobalAveragePool (y1)  k = Conv (a, gw)  g1 = Sigmoid (k)  h = Mul (y1, g1)"
        f"  d = Conv <{CONV}> (h, v, e)  m = GlobalAveragePool (d)  y = Flatten (m)"
    )
    prepared = prepared_as_it_is(network(gate, gw=random(6, 4, 4, 1, 1)))
    coded = sorted((one.function, round(one.offset, 3)) for one in prepared.context.coded.values())
    assert coded == [("SiLU", -0.278), ("gated product", -0.278)]
    assert reads(prepared) == ["the input", "sums of spikes", "spikes"]


def test_coding_and_sinking_again_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what they leave is a sound graph."""
    monkeypatch.setenv("SNNC_CHECK_PASSES", "1")
    text = (
        SILU + f"{READERS['a shortcut beside it'][0]}  m = GlobalAveragePool (d)  y = Flatten (m)"
    )
    checked, findings = verify_input(network(text, **MORE))
    graph, context = imported(checked, findings)
    for step in normalization_passes(allow_analog=True, layered=True):
        changed = run_passes([step], graph, context)
        if step.name in ("code-activations", "sink-offsets"):
            assert changed == [step.name]
            assert run_passes([step], graph, context) == []


@pytest.mark.parametrize(
    "text",
    [
        "y1 = Sin (c)  y2 = Mul (c, y1)",  # no lower bound
        "y1 = Mul (c, c)  y0 = Mul (y1, c)  y2 = Identity (y0)",
        "y1 = Exp (c)  y2 = Neg (y1)",
        "y1 = Relu (c)  y2 = Identity (y1)",  # a neuron already
        "y1 = LeakyRelu <alpha = 0.1> (c)  y2 = Identity (y1)",
    ],
)
def test_what_has_no_lower_bound_or_is_a_neuron_is_not_coded(text: str) -> None:
    end = f"  q = Relu (c)  f = Conv <{CONV}> (q, v)  d = Conv <{CONV}> (y2, v, e)  i = Add (f, d)"
    model = network(text + end + "  m = GlobalAveragePool (i)  y = Flatten (m)")
    prepared = pipeline.prepare(model, allow_analog=True, layered=True)
    assert not prepared.context.coded
    # Nothing is coded in streaming time, nor where it was not asked for.
    again = pipeline.prepare(model, allow_analog=True)
    assert op_counts(again.ann) == op_counts(prepared.ann)


def test_rows_have_a_threshold_for_each_of_their_channels() -> None:
    """Behind a product with a matrix the channels are the last axis; its weights read spikes."""
    text = """g (float[N,7,5] x) => (float[N,7,3] y) { a = MatMul (x, w)  c = Add (a, b)
        s = Sigmoid (c)  r = Mul (c, s)  d = MatMul (r, z)  y = Add (d, e) }"""
    weights = {"w": random(1, 5, 4), "b": random(2, 4), "z": random(3, 4, 3), "e": random(4, 3)}
    model = parse(text, weights)
    x = random(5, 64, 7, 5)
    compiled = pipeline.compile_model(model, LAYERED, x)
    assert [theta.size for theta in compiled.calibration.thresholds.values()] == [4]
    assert list(read_compiled(compiled.model).reads.values()) == ["the input", "sums of spikes"]
    error, size = _error(compiled.model, model, x[:8])
    assert error < 0.02 * size


def _error(snn: onnx.ModelProto, model: onnx.ModelProto, x: Array) -> tuple[float, float]:
    (found,), (wanted,) = run_model(snn, x=x), run_model(model, x=x)
    return float(np.linalg.norm(found - wanted)), float(np.linalg.norm(wanted))


GATED = SILU + (
    "a = GlobalAveragePool (y1)  k = Conv (a, gw)  g1 = Sigmoid (k)  h = Mul (y1, g1)"
    f"  d = Conv <{CONV}> (h, v, e)  t = Sigmoid (d)  u = Mul (d, t)"
    "  m = GlobalAveragePool (u)  f = Flatten (m)  y = Gemm (f, z5)"
)


def test_a_network_without_any_rectifier_is_compiled_and_labelled() -> None:
    """Two SiLUs and a gate, from 255 levels each: an error of less than 2 % of the outputs.  A pipeline
    of layers answers the same, but for sums in another order."""
    model = network(GATED, gw=random(6, 4, 4, 1, 1), z5=random(7, 5, 3))
    x = random(8, 64, 2, 6, 6)
    with pytest.raises(snncompiler.Refused, match="--timing layered --allow-analog"):
        pipeline.prepare(model, allow_analog=True)
    compiled = pipeline.compile_model(model, LAYERED, x)
    snn = compiled.model
    error, size = _error(snn, model, x[:8])
    assert error < 0.02 * size
    told = read_compiled(snn)
    assert sorted(one["function"] for one in told.coded.values()) == [
        "SiLU", "SiLU", "gated product"
    ]  # fmt: skip
    assert set(told.coded) == set(compiled.calibration.thresholds)
    assert "real numbers" not in told.reads.values()
    stepped = pipeline.emit(compiled.prepared, compiled.calibration, replace(LAYERED, emit="step"))
    (answer,) = Stream(stepped, threads=1).answers([x[:3]])
    np.testing.assert_allclose(
        answer["y"], create_session(snn, threads=1).run(None, {"x": x[:3]})[0], rtol=1e-4, atol=1e-5
    )


def test_spikes_are_those_of_the_activation_at_every_level() -> None:
    """By hand: n = floor((f(x) - m)/θ + 1/2), no more than L."""
    text = "g (float[N,4] x) => (float[N,3] y) { a = Gemm (x, eye)  s = Tanh (a)  y = Gemm (s, z) }"
    model = parse(text, {"eye": np.eye(4, dtype=np.float32), "z": random(5, 4, 3)})
    options = replace(LAYERED, steps=4, threshold="max", correct="none")
    x = random(6, 32, 4)
    compiled = pipeline.compile_model(model, options, x)
    (theta,) = compiled.calibration.thresholds.values()
    n = np.clip(np.floor((np.tanh(x) + 1) / theta + 0.5), 0, 15)
    z = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "z")
    # Sums of four products in float32.
    np.testing.assert_allclose(run_model(compiled.model, x=x)[0], (n * theta - 1) @ z, atol=1e-5)
