"""The threshold strategies against what they say, computed on the raw values."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, parse, random, run_model
from hypothesis import given
from hypothesis import strategies as st

from snncompiler import pipeline
from snncompiler.calibration.histogram import BINS, Histogram
from snncompiler.calibration.thresholds import HEADROOM, STRATEGIES
from snncompiler.ir.graph import with_outputs
from snncompiler.ir.settings import Options

METHODS = sorted(STRATEGIES)


def heavy_tailed(seed: int, count: int = 4000) -> Array:
    """Activations [n, 3]: half of them zero, with tails of three weights and maxima 3, 0.06 and 3.9."""
    rng = np.random.default_rng(seed)
    values = np.maximum(rng.standard_normal((count, 3)), 0) ** np.array([1, 2, 3])
    return (values / values.max(axis=0) * np.array([3, 0.06, 3.9])).astype(np.float32)


def histogram(values: Array, *parts: int) -> Histogram:
    """The histogram of [n, C], added whole or in parts of these sizes."""
    made = Histogram(values.shape[1])
    for part in np.split(values, np.cumsum(parts)) if parts else [values]:
        made.add(part)
    return made


def thresholds(method: str, values: Array, *parts: int, **options: Any) -> Array:
    return STRATEGIES[method](histogram(values, *parts), Options(**options))


def width(values: Array) -> float:
    """Of a bin: the power of two above the largest value of all channels, by the number of bins."""
    return float(2.0 ** np.frexp(values.max())[1] / BINS)


# --- all of them ---


@pytest.mark.parametrize("method", METHODS)
def test_neither_order_nor_batches_matter(method: str) -> None:
    values = heavy_tailed(0)
    whole = thresholds(method, values)
    assert np.array_equal(thresholds(method, values[::-1], 1, 7, 900), whole)
    shuffled = values[np.random.default_rng(1).permutation(len(values))]
    assert np.array_equal(thresholds(method, shuffled, *[500] * 7), whole)


@pytest.mark.parametrize("method", METHODS)
def test_thresholds_scale_with_the_activations(method: str) -> None:
    values = heavy_tailed(2)
    plain = thresholds(method, values)
    most = values.max(axis=0) * (HEADROOM if method == "headroom" else 1)
    assert plain.dtype == np.float32 and (plain > 0).all() and (plain <= most).all()
    for power in (2.0**-20, 0.5, 2.0**30):
        scaled = thresholds(method, values * np.float32(power))
        np.testing.assert_array_equal(scaled, plain * np.float32(power))
    if method != "mmse":  # one grid value may win over its neighbour by a hair
        tripled = thresholds(method, values * 3)
        # Other bins, of at most the width for 3 times the values, on either side.
        assert (abs(tripled - 3 * plain) <= 3 * width(values) + width(values * 3)).all()


@pytest.mark.parametrize("method", METHODS)
def test_channels_do_not_see_each_other(method: str) -> None:
    values = heavy_tailed(3)
    together = thresholds(method, values)
    moved = values.copy()
    moved[:, 0] *= 0.5
    other = thresholds(method, moved)
    assert np.array_equal(other[1:], together[1:]) and other[0] < together[0]


@pytest.mark.parametrize("method", METHODS)
def test_of_nothing_but_zeros_the_threshold_is_zero(method: str) -> None:
    values = heavy_tailed(4)
    values[:, 1] = 0
    found = thresholds(method, values)
    assert found[1] == 0 and (found[[0, 2]] > 0).all()
    assert thresholds(method, np.zeros((9, 2), np.float32)).tolist() == [0, 0]


@pytest.mark.parametrize("method", METHODS)
@given(
    values=st.lists(
        st.floats(0, 2.0**60, width=32, allow_subnormal=False), min_size=1, max_size=20
    ),
    tau=st.floats(1e-3, 1e6),
    steps=st.integers(1, 512),
    percent=st.floats(0.5, 100),
)
def test_any_values_give_a_threshold_up_to_the_maximum(
    method: str, values: list[float], tau: float, steps: int, percent: float
) -> None:
    column = np.array(values, np.float32)[:, None]
    (found,) = thresholds(method, column, tau=tau, steps=steps, percentile=percent)
    most = column.max() * (HEADROOM if method == "headroom" else 1)
    assert np.isfinite(found) and 0 <= found <= most


# --- balance ---


def integrated(values: Array, tau: float) -> float:
    """θ at τ of dθ/dτ = 2·E[(x - θ)·1(x > θ)] on the values themselves, by Runge and Kutta."""
    ordered = np.sort(values.astype(np.float64))
    above = np.concatenate([np.cumsum(ordered[::-1])[::-1], [0.0]])

    def slope(theta: float) -> float:
        first = int(np.searchsorted(ordered, theta, side="right"))
        return float(2 * (above[first] - theta * (len(ordered) - first)) / len(ordered))

    steps = max(200, int(tau * 50))
    h, theta = tau / steps, 0.0
    for _ in range(steps):
        a = slope(theta)
        b = slope(theta + h / 2 * a)
        c = slope(theta + h / 2 * b)
        d = slope(theta + h * c)
        theta += h / 6 * (a + 2 * b + 2 * c + d)
    return theta


@pytest.mark.parametrize("tau", [0.1, 1.0, 10.0, 100.0])
def test_balance_integrates_the_excess(tau: float) -> None:
    values = heavy_tailed(5)
    found = thresholds("balance", values, tau=tau)
    wanted = [integrated(values[:, channel], tau) for channel in range(3)]
    # Moving every value by at most a bin moves θ by at most a bin: the right side falls in θ.  The
    # integration itself is exact to some 1e-6.
    assert (abs(found - wanted) <= width(values) + 1e-5).all(), (found, wanted)
    # A bin is far finer than what is to be seen: the two large channels are far from their maxima.
    assert (found[[0, 2]] < values.max(axis=0)[[0, 2]] - 20 * width(values)).all()


@pytest.mark.parametrize("tau", [0.25, 1.0, 3.0, 9.0, 99.0])
def test_balance_has_a_closed_form_for_uniform_and_for_constant_values(tau: float) -> None:
    uniform = ((np.arange(20000) + 0.5) / 20000).astype(np.float32)
    constant = np.full_like(uniform, 0.7)
    found = thresholds("balance", np.stack([uniform, constant], axis=1), tau=tau)
    # dθ/dτ = (1 - θ)² and dθ/dτ = 2·(0.7 - θ).
    wanted = [tau / (1 + tau), 0.7 * (1 - np.exp(-2 * tau))]
    assert (abs(found - wanted) <= width(uniform)).all(), (found, wanted)


def test_zeros_slow_balance_down() -> None:
    values = heavy_tailed(6)
    diluted = np.concatenate([values, np.zeros((3 * len(values), 3), np.float32)])
    for tau in (1.0, 8.0):
        plain, slow = (
            thresholds("balance", v, tau=t) for v, t in ((values, tau), (diluted, 4 * tau))
        )
        np.testing.assert_allclose(slow, plain, rtol=1e-5)


def test_balance_rises_with_tau_to_the_maximum() -> None:
    values = heavy_tailed(7, 300)
    rising = [thresholds("balance", values, tau=tau) for tau in np.geomspace(0.01, 1e5, 40)]
    assert all((late >= early).all() for early, late in itertools.pairwise(rising))
    assert (rising[10] > rising[0]).all() and (rising[20] > rising[10]).all()
    # One of 300 values is the largest: exp(-2·1e5/300) is 0.
    assert np.array_equal(rising[-1], values.max(axis=0))


# --- mmse ---


def quantization_error(values: Array, theta: float, steps: int) -> float:
    """The root of E(a - what T spikes of θ/T can say of it)², on the values themselves."""
    levels = np.linspace(0, theta, steps + 1)
    distance = abs(values.astype(np.float64)[:, None] - levels).min(axis=1)
    return float(np.sqrt(np.square(distance).mean()))


@pytest.mark.parametrize(("steps", "gain"), [(1, 0.8), (4, 0.8), (16, 0.98)])
def test_mmse_is_the_best_of_its_grid_on_the_values_themselves(steps: int, gain: float) -> None:
    values = heavy_tailed(8, 2000)
    found = thresholds("mmse", values, steps=steps)
    gained = []
    for channel in (0, 2):
        column = values[:, channel]
        top = float(column.max())
        grid = [quantization_error(column, top * part, steps) for part in np.linspace(1, 0.02, 99)]
        error = quantization_error(column, float(found[channel]), steps)
        # Values stand for a middle at most two bins away, and a distance to the nearest level moves
        # with its value at most: four bins between two of them.
        assert error <= min(grid) + 4 * width(values)
        assert error <= 1.02 * min(grid)
        gained.append(error / grid[0])
    # The maximum is worse, for few steps far worse.
    assert min(gained) < gain


def test_mmse_clips_an_outlier_and_says_so_with_its_steps() -> None:
    values = np.ones((1000, 1), np.float32)
    values[0] = 10
    # T = 1 says 0 or θ: θ = 1 costs one error of 9, θ = 10 costs 999 of 1.
    (one,) = thresholds("mmse", values, steps=1)
    assert one == pytest.approx(1.0, abs=0.1)
    # T = 10 says 1 and 10 at θ = 10.
    (ten,) = thresholds("mmse", values, steps=10)
    assert ten == pytest.approx(10.0, rel=0.01)


@pytest.mark.parametrize(
    "method",
    ["max", "balance", "mmse", "percentile"],
)
def test_a_small_channel_beside_a_large_one_takes_the_threshold_it_has_alone(method: str) -> None:
    values = heavy_tailed(9)
    pair = np.stack([values[:, 0], values[:, 2] * 100], axis=1)
    settings: dict[str, Any] = {"tau": 5.0, "percentile": 99.0, "steps": 8}
    alone = thresholds(method, pair[:, :1], **settings)
    assert thresholds(method, pair, **settings)[0] == pytest.approx(alone[0], rel=0.01)


# --- in a compilation ---

NETWORK = """g (float[N,2,4,4] x) => (float[N,3,4,4] y) <float zero = {0}, float cap = {0.75}>
{ a = Conv (x, w)  [first] r = Relu (a)  b = Conv (r, v)  [second] y = Clip (b, zero, cap) }"""


def network() -> onnx.ModelProto:
    return parse(NETWORK, {"w": random(0, 3, 2, 1, 1), "v": random(1, 3, 3, 1, 1)})


def compiled(x: Array, **options: Any) -> dict[str, Array]:
    given = {"correction": "none", "steps": 8, **options}
    return dict(pipeline.compile_model(network(), Options(**given), x).calibration.thresholds)


@pytest.mark.parametrize("method", METHODS)
def test_a_compilation_applies_the_strategy_per_channel_or_per_layer(method: str) -> None:
    x = random(2, 100, 2, 4, 4)
    r = run_model(with_outputs(network(), ["r"]), x=x)[-1]
    rows = np.moveaxis(r, 1, 0).reshape(3, -1).T
    settings: dict[str, Any] = {"tau": 5.0, "percentile": 98.0, "steps": 8}
    given: dict[str, Any] = {"threshold": method, "tau": 5.0, "percentile": 98.0}
    channels = compiled(x, **given)
    # Convolutions of another batch size may round otherwise, and a value may change its bin.
    np.testing.assert_allclose(channels["first"], thresholds(method, rows, **settings), rtol=1e-3)
    layer = compiled(x, **given, per_channel=False)
    whole = thresholds(method, rows.reshape(-1, 1), **settings)
    np.testing.assert_allclose(layer["first"], whole, rtol=1e-3)
    scaled = compiled(x, **given, alpha=0.5)
    assert np.array_equal(scaled["first"], np.float32(0.5) * channels["first"])
    # No threshold above the layer's own bound.
    doubled = compiled(x, **{**given, "threshold": "max"}, alpha=2.0)
    assert np.array_equal(doubled["second"], np.full(3, 0.75, np.float32))


def test_mmse_aims_at_the_steps_of_the_compilation() -> None:
    x = random(3, 200, 2, 4, 4)
    few, many = (compiled(x, threshold="mmse", steps=steps)["first"] for steps in (2, 256))
    assert (few < many).all()
