"""spell-max-pool, swap-max-pool and pool-spikes: every max pooling, in all three ways of running."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from helpers import Array, assert_close, op_counts, parse, random, refused, run_model

from snncompiler import pipeline
from snncompiler.ir.graph import with_outputs
from snncompiler.ir.settings import Options
from snncompiler.runtime.session import create_session

#: Folding reorders sums of at most a hundred float32 products: a hundred roundings of 2^-24.
ROUNDING = 100 * 2.0**-24
#: |SNN - ANN| <= UNITS/T of the largest output: a neuron is off by about θ/T, and the two to four
#: layers here sum a few dozen of these with weights whose absolute sum is a few units.
UNITS = 30.0

CONSTANTS = """float zero = {0}, float low = {-0.4}, float high = {0.6}, float third = {0.3},
float lowest = {-3.4028234e38}, float minus = {-0.2}, float plus = {0.2}, float unit = {1},
int64[8] one = {0, 0, 1, 1, 0, 0, 1, 1}, int64[8] two = {0, 0, 2, 2, 0, 0, 2, 2},
int64[4] narrow = {1, 1, 1, 0}, int64[2] maps = {2, 3}, int64[1] last = {-1}, int64[1] first = {1},
int64[8] uneven = {0, 0, 1, 0, 0, 0, 2, 1}, int64[8] more = {0, 0, 3, 3, 0, 0, 3, 3}"""
#: Constants per channel of four channels.
CHANNELS = {
    "slopes": np.array([0.25, 0.0, 2.0, 0.5], np.float32).reshape(4, 1, 1),
    "mixed": np.array([0.25, -0.5, 2.0, -0.1], np.float32).reshape(4, 1, 1),
    "falling": np.array([-0.25, -0.5, -2.0, -0.1], np.float32).reshape(4, 1, 1),
    "offset": np.array([0.1, -0.2, 0.3, -0.4], np.float32).reshape(4, 1, 1),
    "zeros": np.zeros((1, 4, 3, 3), np.float32),
    "g": np.array([0.5, 1.0, 1.5, 2.0], np.float32),
    "gm": np.array([0.5, -1.0, 1.5, -2.0], np.float32),
    "gn": np.array([-0.5, -1.0, -1.5, -2.0], np.float32),
    "b": np.array([0.1, 0.3, -0.2, 0.0], np.float32),
    "m": np.array([0.2, -0.1, 0.0, 0.1], np.float32),
    "v": np.array([1.0, 0.5, 2.0, 1.5], np.float32),
}
WINDOW = "MaxPool <kernel_shape = [2, 2], strides = [2, 2]>"


@dataclass(frozen=True)
class Case:
    """From currents `c` and their rectified `s`, both [N,4,6,6], to `p`; how many neurons `p` takes."""

    text: str
    neurons: int
    #: How many poolings of spikes are left.
    pools: int = 1
    #: Whether a spiking layer of its own is reported.
    noted: bool = False
    shape: tuple[int, ...] = (3, 6, 6)
    opset: int = 17
    weights: dict[str, Array] = field(default_factory=dict)


def norm(gamma: str) -> str:
    return f"BatchNormalization <epsilon = 0.01> (%s, {gamma}, b, m, v)"


CASES = {
    # --- padding before the pooling, behind a rectifier ---
    "pad with zeros": Case("d = Pad (s, one)  p = MaxPool <kernel_shape = [3, 3]> (d)", 1),
    "pad with the lowest": Case(
        "d = Pad (s, one, lowest)  p = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (d)", 1),
    "pad below zero": Case("d = Pad (s, one, minus)  p = MaxPool <kernel_shape = [2, 2]> (d)", 1),
    "pad of uneven sides": Case(
        "d = Pad (s, uneven)  p = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (d)", 1),
    "pad and pads": Case(
        "d = Pad (s, one)  p = MaxPool <kernel_shape = [3, 3], pads = [1, 0, 1, 1]> (d)", 1),
    "pad and ceil_mode": Case(
        "d = Pad (s, uneven)  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (d)",
        1),
    "windows in the padding alone": Case(
        "d = Pad (s, more)  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (d)", 1),
    "windows in padding below zero": Case(
        "d = Pad (s, more, minus)  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (d)",
        3, 2, noted=True),
    "wider windows in padding below zero": Case(
        "d = Pad (s, more, minus)  p = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (d)",
        3, 2, noted=True),
    "pad with more than zero": Case(
        "d = Pad (s, one, plus)  p = MaxPool <kernel_shape = [3, 3]> (d)", 2, noted=True),
    "pad and dilations": Case(
        "d = Pad (s, two)  p = MaxPool <kernel_shape = [3, 3], dilations = [2, 2]> (d)", 1),
    "pad and SAME": Case(
        'd = Pad (s, one)  p = MaxPool <kernel_shape = [3, 3], auto_pad = "SAME_UPPER"> (d)', 1),
    "reflected": Case(
        'd = Pad <mode = "reflect"> (s, one)  p = MaxPool <kernel_shape = [3, 3]> (d)', 1),
    "pad of some axes": Case(
        "d = Pad (s, narrow, , maps)  p = MaxPool <kernel_shape = [3, 3]> (d)", 1, opset=18),
    "pad of currents, then a rectifier": Case(
        f"d = Pad (c, one, lowest)  q = {WINDOW} (d)  p = Relu (q)", 1),
    "pad of currents with the lowest": Case(
        f"d = Pad (c, one, lowest)  p = {WINDOW} (d)", 2, 2, noted=True),
    "pooled twice": Case(f"q = {WINDOW} (s)  p = MaxPool <kernel_shape = [2, 2]> (q)", 1, 2),
    "a volume": Case("p = MaxPool <kernel_shape = [2, 2, 2]> (s)", 1, shape=(3, 3, 4, 4)),
    # --- a kernel of 1 ---
    "subsampled spikes": Case("p = MaxPool <kernel_shape = [1, 1], strides = [2, 2]> (s)", 1, 0),
    "subsampled currents": Case("p = MaxPool <kernel_shape = [1, 1], strides = [2, 3]> (c)", 0, 0),
    "subsampled, ceil_mode": Case(
        "p = MaxPool <kernel_shape = [1, 1], strides = [4, 5], ceil_mode = 1> (c)", 0, 0),
    "subsampled, VALID": Case(
        'p = MaxPool <kernel_shape = [1, 1], strides = [2, 1], auto_pad = "VALID"> (c)', 0, 0),
    "a kernel of 1 without strides": Case("p = MaxPool <kernel_shape = [1, 1]> (c)", 0, 0),
    "subsampled line": Case(
        "p = MaxPool <kernel_shape = [1], strides = [2], dilations = [3]> (c)", 0, 0, shape=(3, 7)),
    "subsampled long line": Case(
        "p = MaxPool <kernel_shape = [1], strides = [3]> (c)", 0, 0, shape=(3, 70)),
    "subsampled volume": Case(
        "p = MaxPool <kernel_shape = [1, 1, 1], strides = [2, 1, 2]> (c)", 0, 0, shape=(3, 3, 4, 4)),
    # --- reductions ---
    "over points": Case("p = ReduceMax <axes = [2]> (s)", 1, shape=(3, 9)),
    "over points, dropped": Case("p = ReduceMax <axes = [-1], keepdims = 0> (s)", 1, shape=(3, 9)),
    "over the map": Case("p = ReduceMax <axes = [2, 3], keepdims = 0> (s)", 1),
    "over rows": Case("p = ReduceMax <axes = [2], keepdims = 0> (s)", 1),
    "axes as an input": Case("p = ReduceMax <keepdims = 0> (s, last)", 1, opset=18),
    "over currents": Case("p = ReduceMax <axes = [3]> (c)", 2, 2, noted=True),
    "over channels": Case("p = ReduceMax <axes = [1]> (s)", 2, noted=True),
    "over channels, dropped": Case("p = ReduceMax <axes = [-3], keepdims = 0> (s)", 2, noted=True),
    "over channels and columns": Case("p = ReduceMax <axes = [1, 3]> (s)", 2, noted=True),
    "over all but the batch": Case(
        "p = ReduceMax <axes = [1, 2, 3], keepdims = 0> (s)", 2, noted=True),
    "over features": Case("p = ReduceMax <axes = [1]> (s)", 2, noted=True, shape=(5,)),
    "over points that come first": Case(
        "t = Transpose <perm = [0, 2, 1]> (s)  p = ReduceMax <axes = [1], keepdims = 0> (t)", 1,
        shape=(3, 9)),
    "over points, the batch last": Case(
        "t = Transpose <perm = [1, 2, 0]> (s)  q = ReduceMax <axes = [1]> (t)"
        "  p = Transpose <perm = [2, 0, 1]> (q)", 1, shape=(3, 9)),
    "over points, the batch last, dropped": Case(
        "t = Transpose <perm = [2, 1, 0]> (s)  q = ReduceMax <axes = [0], keepdims = 0> (t)"
        "  p = Transpose <perm = [1, 0]> (q)", 1, shape=(3, 9)),
    "over a volume": Case("p = ReduceMax <axes = [2, 3, 4]> (s)", 1, shape=(3, 3, 4, 4)),
    "no axes at all": Case("p = ReduceMax <noop_with_empty_axes = 1> (c)", 0, 0, opset=18),
    "the least over points": Case("p = ReduceMin <axes = [3]> (s)", 1, shape=(3, 6, 2)),
    "the least of currents": Case("p = ReduceMin <axes = [2, 3]> (c)", 2, 2, noted=True),
    "global": Case("p = GlobalMaxPool (s)", 1),
    "global, of currents": Case("p = GlobalMaxPool (c)", 2, 2, noted=True),
    # --- halves of leaky rectifiers ---
    "leaky": Case(f"a = LeakyRelu <alpha = 0.3> (c)  p = {WINDOW} (a)", 2, 2),
    "leaky, read twice": Case(
        f"a = LeakyRelu <alpha = 0.3> (c)  q = {WINDOW} (a)  o = {WINDOW} (c)  n = Relu (o)"
        "  p = Sub (q, n)", 3, 3),
    "leaky, falling": Case(
        f"a = LeakyRelu <alpha = -0.3> (c)  p = {WINDOW} (a)", 3, noted=True),
    "slopes per channel": Case(f"a = PRelu (c, slopes)  p = {WINDOW} (a)", 2, 2),
    "slopes of both signs": Case(f"a = PRelu (c, mixed)  p = {WINDOW} (a)", 4, 2, noted=True),
    "leaky, overlapping and padded": Case(
        "a = LeakyRelu (c)  p = MaxPool <kernel_shape = [3, 3], strides = [2, 2],"
        " pads = [1, 1, 1, 1]> (a)", 2, 2),
    "leaky behind the pooling": Case(f"a = {WINDOW} (c)  p = LeakyRelu <alpha = 0.3> (a)", 2, 2),
    "leaky, pooled twice": Case(
        f"a = LeakyRelu <alpha = 0.3> (c)  q = {WINDOW} (a)  p = MaxPool <kernel_shape = [2, 2]> (q)",
        2, 4),
    "clipped": Case(f"a = Clip (c, low, high)  p = {WINDOW} (a)", 1),
    "clipped above": Case(f"a = Clip (c, , high)  p = {WINDOW} (a)", 1),
    "hard sigmoid": Case(f"a = HardSigmoid <alpha = 0.3> (c)  p = {WINDOW} (a)", 1),
    "at least a constant": Case(f"a = Max (c, low)  p = {WINDOW} (a)", 1),
    "absolute": Case(f"a = Abs (c)  p = {WINDOW} (a)", 3, noted=True),
    # --- affine steps between a rectifier and the pooling ---
    "norm": Case(f"a = {norm('g') % 's'}  p = {WINDOW} (a)", 1),
    "norm that falls": Case(f"a = {norm('gn') % 's'}  p = {WINDOW} (a)", 1),
    "norm of both signs": Case(f"a = {norm('gm') % 's'}  p = {WINDOW} (a)", 1),
    "negative": Case(f"a = Neg (s)  p = {WINDOW} (a)", 1),
    "one minus": Case(f"a = Sub (high, s)  p = {WINDOW} (a)", 1),
    "divided": Case(f"a = Div (s, falling)  p = {WINDOW} (a)", 1),
    "norm, then the rectifier": Case(
        f"q = {WINDOW} (c)  a = {norm('g') % 'q'}  p = Relu (a)", 1),
    "norm of both signs, then the rectifier": Case(
        f"q = {WINDOW} (c)  a = {norm('gm') % 'q'}  p = Relu (a)", 1),
    "norm that falls, then a leaky one": Case(
        f"q = {WINDOW} (c)  a = {norm('gn') % 'q'}  p = LeakyRelu <alpha = 0.2> (a)", 2, 2),
    "affine, then clipped": Case(
        f"q = {WINDOW} (c)  a = Mul (q, mixed)  d = Add (a, offset)  p = Clip (d, low, high)", 1),
    "a map of constants": Case(
        f"a = Mul (s, map)  p = {WINDOW} (a)", 2, noted=True,
        weights={"map": np.abs(random(3, 1, 4, 6, 6))}),
    # --- rectifiers behind the pooling ---
    "max with zeros of its shape": Case(f"q = {WINDOW} (c)  p = Max (q, zeros)", 1),
    "max with zeros first": Case(f"q = {WINDOW} (c)  p = Max (zeros, q)", 1),
    "clipped behind": Case(f"q = {WINDOW} (c)  p = Clip (q, zero, high)", 1),
    "bounded behind": Case(f"q = {WINDOW} (c)  a = Relu (q)  p = Min (a, high)", 1),
    "two rectifiers": Case(
        f"q = {WINDOW} (c)  a = Relu (q)  d = Clip (q, zero, third)  p = Add (a, d)", 2, 2),
    "a rectifier and another reader": Case(
        f"q = {WINDOW} (c)  a = Relu (q)  p = Add (a, q)", 3, 2, noted=True),
    "unread indices": Case(f"p, i = {WINDOW} (s)", 1),
    # --- what is no spike train of one threshold ---
    "currents": Case(f"p = {WINDOW} (c)", 2, 2, noted=True),
    "currents, odd windows": Case(
        "p = MaxPool <kernel_shape = [3, 2], strides = [2, 1], pads = [1, 0, 0, 1],"
        " dilations = [1, 2], ceil_mode = 1> (c)", 2, 2, noted=True),
    "currents, SAME": Case(
        'p = MaxPool <kernel_shape = [3, 3], strides = [2, 2], auto_pad = "SAME_LOWER"> (c)',
        2, 2, noted=True),
    "currents, pooled twice": Case(
        f"q = {WINDOW} (c)  p = MaxPool <kernel_shape = [2, 2]> (q)", 2, 4, noted=True),
    "currents of a line": Case("p = MaxPool <kernel_shape = [4]> (c)", 2, 2, noted=True, shape=(3, 9)),
    "the largest less the smallest": Case(
        f"n = Neg (c)  t = Relu (n)  a = {WINDOW} (s)  o = {WINDOW} (t)  d = Sub (a, o)"
        "  p = MaxPool <kernel_shape = [2, 2]> (d)", 4, 4, noted=True),
    "the sum of two rectifiers": Case(
        f"n = Neg (c)  t = Relu (n)  a = Add (s, t)  p = {WINDOW} (a)", 3, noted=True),
    "averages": Case(f"a = AveragePool <kernel_shape = [2, 2]> (s)  p = {WINDOW} (a)", 2, noted=True),
    "thresholds that mix in space": Case(
        f"a = DepthToSpace <blocksize = 2> (s)  p = {WINDOW} (a)", 2, noted=True),
    "rectifiers side by side": Case(
        f"n = Neg (c)  t = Relu (n)  a = Concat <axis = 2> (s, t)  p = {WINDOW} (a)", 3, noted=True),
    "the same twice": Case(f"a = Concat <axis = 1> (s, s)  p = {WINDOW} (a)", 2, noted=True),
    "channels as depth": Case(
        "a = Unsqueeze (s, first)  p = MaxPool <kernel_shape = [2, 1, 1]> (a)", 2, noted=True),
    "spikes beside currents": Case(
        f"a = Concat <axis = 1> (s, c)  p = {WINDOW} (a)", 3, 2, noted=True),
}  # fmt: skip


def network(case: Case) -> tuple[onnx.ModelProto, Array]:
    """Conv, Relu, Conv: `c`; the case: `p`; and relu(2p + 1), which no rewriting can put before it."""
    channels, *space = case.shape
    weights = {
        "w1": random(1, 4, channels, *[1] * len(space)) / np.float32(np.sqrt(channels)),
        "w2": random(2, 4, 4, *[1] * len(space)) / np.float32(2),
        **CHANNELS,
        **case.weights,
    }
    layer = "Conv" if space else "MatMul"
    if not space:
        weights["w1"] = weights["w1"].T
    text = f"""g (float[N,{",".join(map(str, case.shape))}] x) => (float[M] y) <{CONSTANTS}>
    {{ c0 = {layer} (x, w1)  s0 = Relu (c0)  c = {layer} (s0, w2)  s = Relu (c)
       {case.text}
       l = Add (p, p)  h = Add (l, unit)  y = Relu (h) }}"""
    used = {name: a for name, a in weights.items() if f"{name})" in text or f"{name}," in text}
    model = parse(text, used, opset=case.opset, ir=8)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model, random(7, 4, *case.shape)


@pytest.mark.parametrize("name", CASES)
def test_every_pooling_converges_in_all_ways(name: str) -> None:
    case = CASES[name]
    model, x = network(case)
    (wanted,) = run_model(model, x=x)
    assert np.ptp(wanted) > 0
    options = Options(threshold="max", correction="none", readout="mean", growth="none")
    compiled = pipeline.compile_model(model, options, x)
    (folded,) = run_model(compiled.prepared.ann, x=x)
    assert_close(folded, wanted, relative=ROUNDING)
    noted = [f for f in compiled.prepared.findings if f.code == "SNNC220"]
    assert bool(noted) == case.noted and all(f.severity == "note" for f in noted)
    counts = op_counts(compiled.model)
    # The first layer's neurons, those of `s` where it is read, and the last ones.
    assert (counts["RMPNeuron"] - 2, counts["SpikeMaxPool"]) == (case.neurons, case.pools)
    for more in ({}, {"events": False}, {"native": False}):
        session = create_session(compiled.model, threads=1, **more)
        for steps in (64, 1024):
            (decoded,) = session.run(None, {"x": x, "snnc_steps": np.array(steps)})
            assert_close(decoded, wanted, relative=UNITS / steps)


#: Networks whose maximum has no spiking form, and why; s [N,4,H,W] is a rectifier's output.
REFUSED = {
    "p = GlobalMaxPool (s)": "whose size is not known",
    "p = ReduceMax <axes = [2]> (s)": "whose size is not known",
    "p = ReduceMin <axes = [-1], keepdims = 0> (s)": "whose size is not known",
    "p = ReduceMax (s)": "reduces the batch axis",
    "p = ReduceMax <axes = [0, 1]> (s)": "reduces the batch axis",
    "a = Unsqueeze (s, maps)  p = ReduceMax <axes = [1]> (a)": "a window of more than 3 axes",
    f"q, i = {WINDOW} (s)  d = Cast <to = 1> (i)  p = Add (q, d)": "its indices are used",
    f"d = Pad (s, more, lowest)  p = {WINDOW} (d)": "it pads with minus infinity",
}  # fmt: skip


@pytest.mark.parametrize("step", REFUSED)
def test_what_is_in_the_way_is_told(step: str) -> None:
    text = f"""g (float[N,4,H,W] x) => (float[M] y) <{CONSTANTS}>
    {{ c = Conv (x, w2)  s = Relu (c)  {step}  l = Neg (p)  y = Relu (l) }}"""
    if "more" in step or "Unsqueeze" in step:
        text = text.replace("H,W", "6,6")
    model = parse(text, {"w2": random(2, 4, 4, 1, 1)})
    model.graph.output[0].type.tensor_type.ClearField("shape")
    found = refused(model)
    reason = next(reason for body, reason in REFUSED.items() if body == step)
    assert {finding.code for finding in found} == {"SNNC202"}
    assert any(reason in finding.message for finding in found), [f.message for f in found]
    assert not any("train the network with ReLU" in finding.hint for finding in found)


@pytest.mark.parametrize("seen", ["r", "d"])
def test_padding_with_the_lowest_is_none_of_an_average(seen: str) -> None:
    """On request the maximum becomes an average, and what counts for nothing still does."""
    text = f"""g (float[N,2,6,6] x) => (float[N,2,3,3] y) <{CONSTANTS}>
    {{ c = Neg (x)  r = Relu (c)  d = Pad (r, one, lowest)
       p = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> ({seen})  l = Neg (p)  y = Relu (l) }}"""
    model = parse(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    prepared = pipeline.prepare(model, maxpool="average")
    assert op_counts(prepared.ann)["AveragePool"] == 1
    x = -np.abs(random(0, 2, 2, 6, 6))
    wanted = -run_model(prepared.ann, x=-x)[0]
    assert np.array_equal(wanted, np.zeros_like(wanted))
    watched = run_model(with_outputs(prepared.ann, ["p"]), x=x)[-1]
    wide = np.pad(np.abs(x), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=np.nan)
    wide = wide if seen == "d" else np.abs(x)
    places = range(0, wide.shape[2] - 2, 2)
    means = [[np.nanmean(wide[:, :, i : i + 3, j : j + 3], (2, 3)) for j in places] for i in places]
    # Sums of nine float32.
    np.testing.assert_allclose(watched, np.transpose(means, (2, 3, 0, 1)), rtol=1e-6)


def test_a_pooling_that_something_else_reads_is_not_swapped() -> None:
    """Rectifiers move in front of a pooling only if nothing needs the pooled currents."""
    text = f"""g (float[N,2,6,6] x) => (float[N,2,3,3] y, float[N,2,3,3] q)
    {{ s = Relu (x)  c = Conv (s, w)  q = {WINDOW} (c)  y = Relu (q) }}"""
    model, x = parse(text, {"w": random(1, 2, 2, 1, 1)}), random(0, 3, 2, 6, 6)
    snn = pipeline.compile_model(model, Options(threshold="max", growth="none"), x).model
    for found, wanted in zip(run_model(snn, x=x), run_model(model, x=x), strict=True):
        assert_close(found[: len(wanted)], wanted, relative=UNITS / 64)


def test_subsampling_as_onnx_defines_it_where_onnxruntime_does_not_run_it() -> None:
    """SAME with a stride above the kernel has no padding; onnxruntime computes a negative one."""
    text = """g (float[N,2,%d,7] x) => (float[M] y) { c = Neg (x)  s = Relu (c)
      p = MaxPool <kernel_shape = [1, 1], strides = [2, 3], auto_pad = "SAME_UPPER"> (s)
      l = Neg (p)  d = Add (l, k)  y = Relu (d) }"""
    for height in (5, 6):
        model = parse(text % height, {"k": np.float32(3)})
        model.graph.output[0].type.tensor_type.ClearField("shape")
        ann, x = pipeline.prepare(model).ann, random(0, 2, 2, height, 7)
        wanted = np.maximum(3 - np.maximum(-x, 0)[:, :, ::2, ::3], 0)
        assert_close(run_model(ann, x=x)[0], wanted, relative=ROUNDING)


#: What maps of any size can be pooled with, and the size that they were calibrated with.
ANY_SIZE = [
    "leaky", "slopes of both signs", "norm of both signs", "norm, then the rectifier", "currents",
    "currents, odd windows", "currents, SAME", "currents, pooled twice", "pad with the lowest",
    "pad of currents with the lowest", "pad below zero", "subsampled currents", "clipped above",
    "over channels", "two rectifiers", "thresholds that mix in space",
]  # fmt: skip


@pytest.mark.parametrize("name", ANY_SIZE)
def test_maps_of_any_size(name: str) -> None:
    model, x = network(CASES[name])
    for axis, dim in enumerate(model.graph.input[0].type.tensor_type.shape.dim[2:]):
        dim.dim_param = f"S{axis}"
    options = Options(threshold="max", correction="none", readout="mean", growth="none")
    snn = pipeline.compile_model(model, options, x).model
    for other in (x, x[..., :5, :4], np.concatenate([x, x[:, :, ::-1]], axis=2)):
        (wanted,) = run_model(model, x=other)
        for more in ({}, {"native": False}):
            session = create_session(snn, threads=1, **more)
            (decoded,) = session.run(None, {"x": other, "snnc_steps": np.array(1024)})
            assert_close(decoded, wanted, relative=UNITS / 1024)


@pytest.mark.parametrize("kind", ["a chain of norms", "a sum of itself"])
def test_what_is_pooled_may_be_deep(kind: str) -> None:
    """1,200 steps above a pooling, and 60 of which each is read twice: no walk is recursive without a
    bound, none goes every way."""
    count, step = {
        "a chain of norms": (1200, "t%d = Mul (t%d, k)"),
        "a sum of itself": (60, "t%d = Add (t%d, t%d)"),
    }[kind]
    lines = [step % ((i + 1, *[i] * (step.count("%d") - 1))) for i in range(count)]
    text = "g (float[N,2,4,4] x) => (float[N,2,2,2] y) {{ t0 = Relu (x)\n{}\n{}\n{} }}".format(
        "\n".join(lines),
        f"p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (t{count})",
        "c = Conv (p, w)  y = Relu (c)",
    )
    weights = {"w": random(1, 2, 2, 1, 1), "k": np.full((1, 2, 1, 1), 0.999, np.float32)}
    prepared = pipeline.prepare(parse(text, weights))
    assert Counter(node.op for node in prepared.graph.nodes)["Relu"] in (2, 3)
