"""Histograms, thresholds, and the calibration as a value."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, parse, random, run_model
from hypothesis import given
from hypothesis import strategies as st

from snncompiler import models, pipeline
from snncompiler.calibration.histogram import BINS, Histogram
from snncompiler.calibration.observe import Observation, observe
from snncompiler.calibration.record import Calibration
from snncompiler.errors import Refused, UsageError
from snncompiler.ir.graph import with_outputs
from snncompiler.ir.growth import STEADY
from snncompiler.ir.settings import Options
from snncompiler.ir.spikes import BINARY

# --- histograms ---


def histogram(values: Array, *parts: int) -> Histogram:
    """The histogram of [n, C, ...], added whole or in parts of these sizes."""
    made = Histogram(values.shape[1])
    for part in np.split(values, np.cumsum(parts)) if parts else [values]:
        made.add(part)
    return made


def same(one: Histogram, other: Histogram) -> bool:
    return (
        np.array_equal(one.exponent, other.exponent)
        and one.total == other.total
        and np.array_equal(one.counts, other.counts)
        and np.array_equal(one.maximum, other.maximum)
    )


def activations(seed: int, n: int = 300) -> Array:
    """Rectified values [n, 3, 4] of very different channels and a rising range."""
    rising = np.geomspace(1e-3, 10, n, dtype=np.float32)[:, None, None]
    return np.maximum(random(seed, n, 3, 4), 0) * rising * np.array([[1], [0.01], [30]], np.float32)


def test_the_result_does_not_depend_on_order_or_batches() -> None:
    values = activations(0)
    whole = histogram(values)
    assert same(whole, histogram(values, *[1] * 299))
    assert same(whole, histogram(values, 7, 100, 3))
    assert same(whole, histogram(values[::-1]))
    assert same(whole, histogram(values[np.random.default_rng(1).permutation(300)], 50, 50))


def test_the_range_doubles_without_losing_a_value() -> None:
    made = Histogram(1)
    for exponent in range(-20, 20, 3):
        made.add(np.full((5, 1), 2.0**exponent, np.float32))
    assert made.total == made.counts.sum() == 5 * 14 and made.exponent == 20
    assert made.maximum[0] == 2.0**19
    # 2^e lies at the lower edge of its bin, or, once that is below a bin's width, in the first bin.
    width = 2.0**20 / BINS
    for exponent in range(10, 20, 3):
        assert made.counts[0, int(2.0**exponent / width)] == 5


def test_every_value_lies_between_the_edges_of_its_bin() -> None:
    made = histogram(np.array([[0.3, 20.0]], np.float32))
    for channel, value in enumerate([0.3, 20.0]):
        (at,) = np.nonzero(made.counts[channel])[0]
        below, above = made.edges[channel, at : at + 2]
        assert below <= np.float32(value) < above
        assert made.centres[channel, at] == (below + above) / 2
    assert made.edges[:, 0].tolist() == [0, 0] and made.edges[:, -1].tolist() == [0.5, 32]


@pytest.mark.parametrize("percent", [0.1, 25.0, 50.0, 90.0, 99.0, 99.9, 100.0])
def test_percentiles_are_within_a_bin_of_those_of_numpy(percent: float) -> None:
    values = activations(2, 3000)
    made = histogram(values)
    rows = np.moveaxis(values, 1, 0).reshape(3, -1)
    wanted = np.percentile(rows.astype(np.float64), percent, axis=1)
    # A bin, and the distance of the two order statistics between which numpy interpolates.
    rank = (rows.shape[1] - 1) * percent / 100
    ordered = np.sort(rows, axis=1)
    gap = ordered[:, int(np.ceil(rank))] - ordered[:, int(np.floor(rank))]
    width = np.ldexp(1.0 / BINS, made.exponent)
    assert (abs(made.percentile(percent) - wanted) <= width + gap).all()
    pooled = made.pooled().percentile(percent)
    assert abs(pooled[0] - np.percentile(rows, percent)) <= width.max() * 1.01


def test_a_percentile_is_never_above_the_maximum() -> None:
    made = histogram(np.full((10, 1), 0.3, np.float32))
    assert made.percentile(100.0)[0] == made.percentile(99.9)[0] == np.float32(0.3)


def test_zeros_count() -> None:
    values = np.zeros((1000, 1), np.float32)
    values[:5] = 1.0
    made = histogram(values)
    assert made.total == 1000 and made.counts.sum() == 5
    assert made.percentile(99.0)[0] == 0 and made.percentile(99.6)[0] > 0.99


def test_nothing_but_zeros() -> None:
    made = histogram(np.zeros((10, 2), np.float32))
    assert made.percentile(99.9).tolist() == made.maximum.tolist() == [0, 0]
    assert made.pooled().percentile(50).tolist() == [0]


def test_a_pooled_histogram_is_that_of_all_values() -> None:
    values = activations(3)
    assert same(histogram(values).pooled(), histogram(values.reshape(-1, 1)))


@given(
    st.lists(
        st.floats(0, 2.0**100, width=32).filter(lambda v: v == 0 or v > 1e-30),
        min_size=1,
        max_size=30,
    ),
    st.floats(1, 100),
)
def test_any_values_and_percentile(values: list[float], percent: float) -> None:
    rows = np.array(values, np.float32).reshape(-1, 1)
    made = histogram(rows)
    (found,) = made.percentile(percent)
    assert made.total == len(values) and made.maximum[0] == rows.max()
    assert 0 <= found <= rows.max()
    assert same(made, histogram(rows[::-1], *[1] * (len(values) - 1)))


@pytest.mark.parametrize(
    "value",
    [
        1e-30,
        1e38,
        pytest.param(1e-36),
        pytest.param(1e-40),
        pytest.param(3e38),
    ],
)
@pytest.mark.filterwarnings("error")
def test_values_at_the_ends_of_float32(value: float) -> None:
    values = np.linspace(0, value, 1001, dtype=np.float32).reshape(-1, 1)
    assert histogram(values).percentile(50)[0] == pytest.approx(value / 2, rel=0.01)


def test_activations_that_overflow_are_refused() -> None:
    text = "g (float[N,2] x) => (float[N,2] y) { h = Exp (x)  i = Mul (h, h)  y = Relu (i) }"
    with pytest.raises(Refused, match=r"SNNC\d\d\d"):
        pipeline.compile_model(parse(text), Options(), np.full((1, 2), 80, np.float32))


# --- thresholds ---

NETWORK = """g (float[N,2,4,4] x) => (float[N,3,4,4] y)
{ [one] a = Conv (x, w)  [first] r = Relu (a)  b = Conv (r, v)  [second] y = Relu (b) }"""


def network() -> onnx.ModelProto:
    return parse(NETWORK, {"w": random(0, 3, 2, 1, 1), "v": random(1, 3, 3, 1, 1)})


def thresholds(model: onnx.ModelProto, x: Array | None, **options: Any) -> pipeline.Compiled:
    return pipeline.compile_model(model, Options(**options), x)


def real(model: onnx.ModelProto, x: Array, *names: str) -> list[Array]:
    """The values of the named tensors."""
    return run_model(with_outputs(model, names), x=x)[-len(names) :]


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_max_is_the_largest_activation(alpha: float) -> None:
    model, x = network(), random(2, 50, 2, 4, 4)
    (r,) = real(model, x, "r")
    per_channel = thresholds(model, x, threshold="max", alpha=alpha).calibration.thresholds
    per_layer = thresholds(
        model, x, threshold="max", alpha=alpha, per_channel=False
    ).calibration.thresholds
    # The same convolution in batches of 32, perhaps summed in another order: 2^-22 is 4 roundings.
    np.testing.assert_allclose(per_channel["first"], alpha * r.max(axis=(0, 2, 3)), rtol=2.0**-22)
    np.testing.assert_allclose(per_layer["first"], [alpha * r.max()], rtol=2.0**-22)
    assert per_channel["second"].shape == (3,) and per_layer["second"].shape == (1,)


def test_percentile_is_that_of_all_activations() -> None:
    model, x = network(), random(2, 200, 2, 4, 4)
    (r,) = real(model, x, "r")
    found = thresholds(model, x, threshold="percentile", percentile=99.0).calibration.thresholds[
        "first"
    ]
    rows = np.moveaxis(r, 1, 0).reshape(3, -1)
    # A bin is at most 1/1024 of the layer's maximum wide; neighbours of 3,200 values are closer.
    assert (abs(found - np.percentile(rows, 99.0, axis=1)) <= 2 * r.max() / 1024).all()


def dead(model: onnx.ModelProto, channels: list[int]) -> onnx.ModelProto:
    """The network with a very negative bias in some channels of its first convolution."""
    bias = np.zeros(3, np.float32)
    bias[channels] = -1e6
    model.graph.node[0].input.append("bias")
    model.graph.initializer.append(onnx.numpy_helper.from_array(bias, "bias"))
    return model


def test_a_dead_channel_takes_the_threshold_of_its_layer() -> None:
    compiled = thresholds(dead(network(), [1]), random(2, 50, 2, 4, 4), threshold="max")
    theta = compiled.calibration.thresholds["first"]
    assert theta[1] == max(theta[0], theta[2])
    assert not [f for f in compiled.prepared.findings if f.code == "SNNC305"]


def test_a_dead_layer_is_named() -> None:
    compiled = thresholds(dead(network(), [0, 1, 2]), random(2, 50, 2, 4, 4), alpha=0.5)
    assert compiled.calibration.thresholds["first"].tolist() == [0.5] * 3
    warnings = [f for f in compiled.prepared.findings if f.code == "SNNC305"]
    assert [f.node for f in warnings] == ["Relu 'first'", "Relu 'second'"]
    assert all(f.severity == "warning" for f in warnings)


def test_a_layer_that_fires_rarely_takes_its_maximum() -> None:
    x = np.full((5000, 1), -1, np.float32)
    x[17] = 2.5
    model = parse("g (float[N,1] x) => (float[N,1] y) { [act] y = Relu (x) }")
    compiled = pipeline.compile_model(
        model, Options(threshold="percentile", percentile=99.0), x, samples=None
    )
    assert compiled.calibration.thresholds["act"].tolist() == [2.5]
    assert compiled.calibration.samples == 5000


@pytest.mark.parametrize("data", [True, False])
def test_an_upper_bound_bounds_the_threshold(data: bool) -> None:
    text = """g (float[N,2] x) => (float[N,2] y) <float zero = {0}, float cap = {0.75}>
    { h = Mul (x, g)  [act] y = Clip (h, zero, cap) }"""
    model = parse(text, {"g": np.array([100, 0.01], np.float32)})
    x = random(0, 100, 2) if data else None
    theta = thresholds(model, x, threshold="max", alpha=2.0).calibration.thresholds["act"]
    assert theta[0] == np.float32(0.75) and 0 < theta[1] < 0.75


def test_every_threshold_is_finite_and_positive() -> None:
    x = np.full((3, 2), 1e-33, np.float32)
    model = parse("g (float[N,2] x) => (float[N,2] y) { [act] y = Relu (x) }")
    theta = thresholds(model, x, threshold="max", alpha=1e-15).calibration.thresholds["act"]
    assert np.isfinite(theta).all() and (theta > 0).all()


def test_observing_sample_by_sample_and_in_batches_is_the_same() -> None:
    prepared, x = pipeline.prepare(network()), random(2, 70, 2, 4, 4)
    seen: list[tuple[int, int]] = []
    batches = observe(prepared.ann, prepared.graph, {"x": x}, progress=lambda *a: seen.append(a))
    single = observe(prepared.ann, prepared.graph, {"x": x}, batch=1)
    assert isinstance(batches, Observation) and batches.samples == single.samples == 70
    assert seen == [(32, 70), (64, 70), (70, 70)]
    for name in ("first", "second"):
        one, other = batches.histograms[name], single.histograms[name]
        assert one.total == other.total
        # Convolutions of another batch size may round otherwise, and a value may change its bin.
        assert abs(one.counts - other.counts).sum() <= 2 * 0.01 * one.counts.sum()
        np.testing.assert_allclose(one.maximum, other.maximum, rtol=2.0**-22)


def test_a_part_of_the_data_is_drawn_by_the_seed() -> None:
    model, x = network(), random(2, 400, 2, 4, 4)
    runs = [
        pipeline.compile_model(model, Options(seed=s), x, samples=50).calibration for s in (0, 0, 1)
    ]
    assert runs[0].to_json() == runs[1].to_json()
    assert runs[0].data_sha256 != runs[2].data_sha256 and runs[0].samples == 50


# --- as a value ---


def made(theta: Array) -> Calibration:
    return Calibration(
        thresholds={"relu é\n": theta, "other": np.ones(1, np.float32)},
        method="percentile",
        percentile=99.9,
        per_channel=True,
        alpha=0.1,
        source="data",
        samples=7,
        seed=3,
        model_sha256="ab",
        data_sha256="cd",
    )


def test_json_is_exact() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(1, 0x7F800000, 5000, dtype=np.uint32)
    theta = np.concatenate([bits.view(np.float32), np.float32([1e-45, 3.4028235e38, 0.1])])
    text = made(theta).to_json()
    read = Calibration.from_json(text)
    assert np.array_equal(read.thresholds["relu é\n"].view(np.uint32), theta.view(np.uint32))
    assert read.thresholds["other"].dtype == np.float32
    rest = {k: v for k, v in read.__dict__.items() if k != "thresholds"}
    assert rest == {k: v for k, v in made(theta).__dict__.items() if k != "thresholds"}
    assert read.to_json() == text and text.isascii()


def test_what_earlier_versions_did_not_write_is_as_it_was_then() -> None:
    content = json.loads(made(np.ones(2, np.float32)).to_json())
    later = {
        "tau": 500.0, "correction": "none", "schedules": {}, "growth": "none", "neuron": "binary",
        "initial": 0.5, "reset": "soft", "schedule_steps": 32, "input_scales": {},
    }  # fmt: skip
    assert {name: content.pop(name) for name in later} == later and "maxpool" not in content
    read = Calibration.from_json(json.dumps(content))
    # The texts among them are read as what they stand for.
    meant = later | {"growth": STEADY, "neuron": BINARY}
    assert {name: getattr(read, name) for name in later} == meant and read.maxpool == "exact"


def test_the_pooling_is_kept() -> None:
    average = replace(made(np.ones(2, np.float32)), maxpool="average")
    assert Calibration.from_json(average.to_json()).maxpool == "average"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "3",
        "null",
        '{"thresholds": 3}',
        '{"thresholds": {"a": ["b"]}}',
        made(np.ones(2, np.float32)).to_json()[:-20],
        json.dumps({**json.loads(made(np.ones(1, np.float32)).to_json()), "more": 1}),
    ],
)
def test_what_is_no_calibration_is_refused(text: str) -> None:
    with pytest.raises(Refused) as caught:
        Calibration.from_json(text)
    assert caught.value.findings[0].code == "SNNC401"


@pytest.mark.parametrize("theta", [[0.0], [-1.0], [float("nan")], [float("inf")], [1.0, 2.0], []])
def test_thresholds_that_cannot_be_are_refused(theta: list[float]) -> None:
    model = network()
    good = json.loads(thresholds(model, random(2, 9, 2, 4, 4)).calibration.to_json())
    good["thresholds"]["first"] = theta
    with pytest.raises(Refused):
        pipeline.compile_model(model, Options(), Calibration.from_json(json.dumps(good)))


# --- without data ---


def test_thresholds_from_batch_norm_are_near_those_of_data() -> None:
    # Batch-norm statistics that are true: the variance and mean of each convolution's output.
    x = random(5, 400, 3, 6, 6)
    w, v = random(6, 8, 3, 3, 3), random(7, 8, 8, 3, 3)
    rng = np.random.default_rng(8)
    gamma = rng.uniform(0.5, 2, (2, 8)).astype(np.float32)
    beta = rng.uniform(-0.5, 0.5, (2, 8)).astype(np.float32)
    weights = {"w": w, "v": v}
    for i in (1, 2):
        weights |= {f"g{i}": gamma[i - 1], f"b{i}": beta[i - 1]}
        weights |= {f"m{i}": np.zeros(8, np.float32), f"s{i}": np.ones(8, np.float32)}
    text = """g (float[N,3,6,6] x) => (float[N,8,6,6] y)
    {
      c1 = Conv <pads = [1, 1, 1, 1]> (x, w)
      n1 = BatchNormalization (c1, g1, b1, m1, s1)  [first] r = Relu (n1)
      c2 = Conv <pads = [1, 1, 1, 1]> (r, v)
      n2 = BatchNormalization (c2, g2, b2, m2, s2)  t = Add (n2, r)  [second] y = Relu (t)
    }"""
    for i in (1, 2):
        (c,) = real(parse(text, weights), x, f"c{i}")
        weights[f"m{i}"], weights[f"s{i}"] = c.mean(axis=(0, 2, 3)), c.var(axis=(0, 2, 3))
    model = parse(text, weights)
    ran = 0
    for method in ("max", "percentile"):
        data = pipeline.compile_model(model, Options(threshold=method), x, samples=None).calibration
        blind = pipeline.compile_model(model, Options(threshold=method))
        assert blind.calibration.source == "batch-norm" and blind.calibration.samples == 0
        assert [f.code for f in blind.prepared.findings if f.severity == "warning"] == ["SNNC304"]
        for layer in ("first", "second"):
            ratio = blind.calibration.thresholds[layer] / data.thresholds[layer]
            # The outputs are nearly Gaussian; the Add takes its inputs for independent, and four
            # deviations stand for any maximum: within a factor of 1.6 either way.
            assert (ratio > 1 / 1.6).all() and (ratio < 1.6).all(), (method, layer, ratio)
            ran += ratio.size
    assert ran == 32


@pytest.mark.parametrize(("percentile", "reach"), [(99.0, 2.3263479), (100.0, 4.0)])
def test_the_sum_of_two_batch_norms_adds_means_and_variances(
    percentile: float, reach: float
) -> None:
    """The quantile of the normal distribution, at most four deviations."""
    text = """g (float[N,3,4,4] x) => (float[N,3,4,4] y)
    { n = BatchNormalization (x, g, b, zero, one)  x2 = Neg (x)
      m = BatchNormalization (x2, h, c, zero, one)  s = Add (n, m)  y = Relu (s) }"""
    weights = {
        "g": np.array([1, -2, 0.5]), "h": np.array([2, 0.25, 3]), "b": np.array([0.5, -1, 2]),
        "c": np.array([1, 0.25, -3]), "zero": np.zeros(3), "one": np.ones(3),
    }  # fmt: skip
    model = parse(text, {name: array.astype(np.float32) for name, array in weights.items()})
    options = Options(threshold="percentile", percentile=percentile, per_channel=True)
    (theta,) = pipeline.compile_model(model, options).calibration.thresholds.values()
    mean, deviation = weights["b"] + weights["c"], np.hypot(weights["g"], weights["h"])
    # Rounded to float32 once.
    np.testing.assert_allclose(theta, mean + reach * deviation, rtol=2.0**-22)


def test_the_bundled_network_without_data() -> None:
    with np.load(models.path("digits-train")) as archive:
        x = archive["x"][:300]
    path = models.path("digits-resnet")
    prepared = pipeline.prepare(path)
    blind = pipeline.calibrated(prepared, Options(), None)
    data = pipeline.compile_model(path, Options(), x, samples=None).calibration
    ratios = [
        float(blind.thresholds[name].max() / data.thresholds[name].max())
        for name in data.thresholds
    ]
    assert blind.source in ("batch-norm", "synthetic", "batch-norm and synthetic")
    # Synthetic or Gaussian, the layers' thresholds have the right order of magnitude.
    assert len(ratios) >= 3 and min(ratios) > 1 / 10 and max(ratios) < 10


def test_without_data_and_batch_norm_the_input_is_synthetic() -> None:
    compiled = thresholds(network(), None, seed=3)
    again, other = thresholds(network(), None, seed=3), thresholds(network(), None, seed=4)
    assert compiled.calibration.source == "synthetic" and compiled.calibration.samples == 32
    assert compiled.calibration.to_json() == again.calibration.to_json()
    assert compiled.calibration.to_json() != other.calibration.to_json()


def test_constant_data_is_warned_of() -> None:
    compiled = thresholds(network(), np.ones((4, 2, 4, 4), np.float32))
    assert [f.code for f in compiled.prepared.findings if f.severity == "warning"] == ["SNNC303"]


# --- options ---


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0}, {"steps": -1}, {"steps": 1_000_000_000}, {"percentile": 0.0},
        {"percentile": 100.1}, {"percentile": float("nan")}, {"alpha": 0.0},
        {"alpha": float("inf")}, {"alpha": float("nan")}, {"initial": 1.0}, {"initial": -0.1},
        {"seed": -1}, {"chunk": 0}, {"chunk": 4, "unroll": "loop"}, {"threshold": "mean"},
        {"unroll": "scan"}, {"reset": "none"}, {"encode": "morse"}, {"neuron": "burst:0"},
        {"readout": "delay:64"},
    ],
)  # fmt: skip
def test_options_out_of_range_are_wrong_usage(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="SNNC501"):
        pipeline.compile_model(network(), Options(**options))


# --- upper bounds ---

#: Two rectifiers with an upper bound, behind a weight by which their currents go far above it.
BOUNDED = """g (float[N,8] x) => (float[N,3] y) <float zero = {0}, float six = {6}, float two = {2}>
{ a = MatMul (x, w)  [six] r = Clip (a, zero, six)
  b = MatMul (r, u)  [two] s = Clip (b, zero, two)  y = MatMul (s, v) }"""


def capped() -> onnx.ModelProto:
    weights = {"w": 4 * random(1, 8, 6), "u": 2 * random(2, 6, 5), "v": random(3, 5, 3)}
    return parse(BOUNDED, weights)


WAYS_TO_THRESHOLDS: list[dict[str, Any]] = [
    *({"threshold": t} for t in ("max", "percentile", "mmse", "balance", "vin-max")),
    *({"threshold": t, "alpha": 2.0} for t in ("max", "vin-max")),
    *({"threshold": "vin-max", "neuron": n} for n in ("burst:3", "signed:3")),
    {"threshold": "vin-max", "per_channel": False},
    {"threshold": "vin-max", "per_channel": False, "correction": "schedule"},
    {"threshold": "vin-max", "correction": "bias"},
    {"threshold": "max", "alpha": "auto", "steps": 16},
    {"threshold": "vin-max", "reset": "hard"},
    {"threshold": "vin-max", "encode": "poisson"},
    {"paper": True},
]  # fmt: skip


@pytest.mark.parametrize("options", WAYS_TO_THRESHOLDS, ids=str)
def test_no_threshold_is_above_the_upper_bound_of_its_rectifier(options: dict[str, Any]) -> None:
    """The neuron saturates at θ a step, which is what keeps the bound."""
    model, x = capped(), random(4, 32, 8)
    made = pipeline.compile_model(model, Options(**{"steps": 512, **options}), x)
    largest = {name: theta.max() for name, theta in made.calibration.thresholds.items()}
    assert set(largest) == {"six", "two"} and largest["six"] <= 6 and largest["two"] <= 2
    if options.get("reset") == "hard":
        return  # what a hard reset forgets does not vanish with T
    (decoded,) = run_model(made.model, x=x, snnc_steps=np.array(512))
    (wanted,) = run_model(model, x=x)
    error = np.linalg.norm(decoded - wanted) / np.linalg.norm(wanted)
    # C/T, with C of 10; thresholds below the maximum clip; random spikes are off by 1/sqrt(T).
    clips = options.get("threshold") in ("percentile", "mmse", "balance") or "alpha" in options
    drawn = options.get("encode") == "poisson" or "paper" in options
    assert error < (0.3 if clips or drawn else 10 / 512)


@pytest.mark.parametrize("threshold", ["max", "percentile"])
def test_statistics_of_batch_norm_know_the_upper_bound(threshold: Any) -> None:
    text = """g (float[N,4] x) => (float[N,3] y) <float zero = {0}, float six = {6}>
    { a = MatMul (x, w)  n = BatchNormalization (a, g, b, m, v)  [six] r = Clip (n, zero, six)
      y = MatMul (r, u) }"""
    norm = {"g": 9 * np.ones(5, "f4"), "b": random(5, 5), "m": random(6, 5), "v": np.ones(5, "f4")}
    model = parse(text, {"w": random(1, 4, 5), "u": random(2, 5, 3), **norm})
    made = pipeline.compile_model(model, Options(threshold=threshold))
    assert made.calibration.source == "batch-norm"
    assert made.calibration.thresholds["six"].tolist() == [6.0] * 5


def test_thresholds_with_an_upper_bound_do_not_grow() -> None:
    growing = Options(growth="1.5@9", threshold="balance")
    with pytest.raises(UsageError, match="upper bound"):
        pipeline.compile_model(capped(), growing, random(4, 32, 8))


def test_a_calibration_with_a_threshold_above_the_bound_is_refused() -> None:
    """Such calibrations by vin-max were written before; their networks are wrong."""
    made = pipeline.compile_model(capped(), Options(threshold="max"), random(4, 32, 8))
    given = {**made.calibration.thresholds, "two": np.float32([2, 2, 97, 2, 2])}
    with pytest.raises(Refused, match="97 is above the upper bound") as caught:
        pipeline.compile_model(capped(), Options(), replace(made.calibration, thresholds=given))
    assert [(f.code, f.node) for f in caught.value.findings] == [("SNNC306", "two")]
