"""For every operator: numpy reference = function body = CPU kernel, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from one_node import Array, assert_same_bits, one_node, run
from onnx import TensorProto, helper

from snncompiler.ir import dialect
from snncompiler.runtime import reference, register

#: onnxruntime 1.20 keeps a last window that starts in the padding at the end; ONNX and all later
#: ones drop it, and so do the kernels.
OLD_POOLING = onnxruntime.__version__.startswith("1.20.")

pytestmark = pytest.mark.usefixtures("library")

NEURONS: dict[str, Callable[..., tuple[Array, Array]]] = {
    "RMPNeuron": reference.rmp_neuron,
    "HardResetNeuron": reference.hard_reset_neuron,
}
#: Of each operator around one that is kept analog: the name of its state, and its reference.
ANALOG: dict[str, tuple[str, Callable[..., tuple[Array, Array]]]] = {
    "RunningMean": ("total", reference.running_mean),
    "Telescope": ("previous", reference.telescope),
}
#: Of each neuron with a schedule: its reference, and its levels, if it has any.
SCHEDULED: dict[str, tuple[Callable[..., tuple[Array, ...]], dict[str, int]]] = {
    "ScheduledRMPNeuron": (reference.scheduled_rmp_neuron, {}),
    "BurstNeuron": (reference.burst_neuron, {"levels": 3}),
    "SignedNeuron": (reference.signed_neuron, {"levels": 2}),
}
DTYPES = ("float32", "float16")
SEEDS = st.integers(0, 2**32 - 1)
#: Shapes of the samples, `[N, ...]`: empty ones, single neurons, odd sizes, long rows.
SAMPLES = st.lists(st.sampled_from([0, 1, 1, 2, 3, 5, 7, 17, 40]), min_size=1, max_size=5).filter(
    lambda shape: np.prod(shape) <= 5000
) | st.sampled_from([[1, 4099], [2, 3, 16, 16], [2048], [1]])


@st.composite
def broadcastable(draw: st.DrawFn, sample: list[int]) -> list[int]:
    """A shape that broadcasts to `sample`: a scalar, per channel, full or anything else."""
    kinds = [[], list(sample), [extent if draw(st.booleans()) else 1 for extent in sample]]
    if len(sample) > 1:
        kinds.append([sample[1]] + [1] * (len(sample) - 2))
    return draw(st.sampled_from(kinds))


def normal(seed: int, shape: list[int], dtype: str = "float32") -> Array:
    return np.random.default_rng(seed).normal(0.2, 1.0, shape).astype(dtype)


def positive(seed: int, shape: list[int]) -> Array:
    return np.random.default_rng(seed).uniform(0.3, 2.0, shape).astype(np.float32)


@pytest.mark.parametrize("static", [False, True], ids=["temporal", "static"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NEURONS)
def test_neuron(name: str, dtype: str, static: bool) -> None:
    cases = 0

    @given(SAMPLES, st.integers(1, 9), st.sampled_from([1, 2]), SEEDS, st.data())
    def check(sample: list[int], steps: int, threads: int, seed: int, data: st.DataObject) -> None:
        nonlocal cases
        leading = sample[0] if static else steps * sample[0]
        current = normal(seed, [leading, *sample[1:]], dtype)
        threshold = positive(seed + 1, data.draw(broadcastable(sample)))
        membrane = normal(seed + 2, data.draw(broadcastable(sample)))
        feeds = {"current": current, "threshold": threshold, "membrane": membrane, "steps": steps}
        wanted = list(NEURONS[name](current, threshold, membrane, steps, static))
        for native in (False, True):
            attributes = {"static_current": int(static)}
            got = run(name, feeds, attributes=attributes, native=native, threads=threads)
            assert_same_bits(got, wanted, f"native={native}")
        cases += 1

    check()
    assert cases > 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NEURONS)
def test_neuron_at_the_edges_of_tiles_and_blocks(name: str, dtype: str) -> None:
    cases = 0
    for neurons in (1, 15, 16, 17, 63, 64, 255, 256, 257, 2047, 2049, 4097, 40_000):
        for steps in (1, 3):
            current = normal(neurons, [steps, neurons], dtype)
            threshold, membrane = positive(1, [neurons]), np.float32(0.25)
            feeds = {"current": current, "threshold": threshold, "membrane": membrane}
            wanted = list(NEURONS[name](current, threshold, membrane, steps))
            for threads in (1, 2):
                got = run(name, {**feeds, "steps": steps}, threads=threads)
                assert_same_bits(got, wanted, f"{neurons} neurons, {steps} steps")
                cases += 1
    assert cases == 13 * 2 * 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("static", [False, True], ids=["temporal", "static"])
def test_neuron_with_spikes_past_the_caches(dtype: str, static: bool) -> None:
    """So many spikes that they are streamed: 33 MB."""
    steps, neurons = 16, 33 * 2**20 // 16 // (4 if dtype == "float32" else 2) // 64 * 64
    current = normal(5, [1 if static else steps, neurons], dtype)
    threshold, membrane = np.array(0.7, np.float32), np.array(0.35, np.float32)
    feeds = {"current": current, "threshold": threshold, "membrane": membrane}
    wanted = reference.rmp_neuron(current, threshold, membrane, steps, static)
    attributes = {"static_current": int(static)}
    got = run("RMPNeuron", {**feeds, "steps": steps}, attributes=attributes, threads=2)
    assert_same_bits(got, list(wanted))


@pytest.mark.parametrize("name", NEURONS)
def test_neuron_takes_special_values(name: str) -> None:
    """Infinities, NaN, zeros of both signs, subnormal numbers and ties at the threshold."""
    values = np.array(
        [np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-45, -1e-45, 1.0, 0.5, 3.4e38], np.float32
    )
    current = np.tile(values, (4, 3))
    threshold = np.resize(np.array([1.0, 0.5, 3e38, 1e-45], np.float32), current.shape[1])
    membrane = np.resize(np.array([0.0, -0.0, 0.5], np.float32), current.shape[1])
    feeds = {"current": current, "threshold": threshold, "membrane": membrane, "steps": 4}
    with np.errstate(invalid="ignore", over="ignore"):
        wanted = NEURONS[name](current, threshold, membrane, 4)
    for native in (False, True):
        got = run(name, feeds, native=native)
        for one, other in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(one, other)  # the bits of a NaN are free
            assert (np.signbit(one) == np.signbit(other))[~np.isnan(other)].all()


@pytest.mark.parametrize("static", [False, True], ids=["temporal", "static"])
@pytest.mark.parametrize("radix", [False, True], ids=["rate", "radix"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layered_neuron(dtype: str, radix: bool, static: bool) -> None:
    cases = 0

    @given(SAMPLES, st.integers(1, 9), st.sampled_from([1, 2]), SEEDS, st.data())
    def check(sample: list[int], steps: int, threads: int, seed: int, data: st.DataObject) -> None:
        nonlocal cases
        leading = sample[0] if static else steps * sample[0]
        current = normal(seed, [leading, *sample[1:]], dtype)
        threshold = positive(seed + 1, data.draw(broadcastable(sample)))
        membrane = normal(seed + 2, data.draw(broadcastable(sample)))
        feeds = {"current": current, "threshold": threshold, "membrane": membrane, "steps": steps}
        wanted = reference.layered_rmp_neuron(current, threshold, membrane, steps, static, radix)
        for native in (False, True):
            attributes = {"static_current": int(static), "radix": int(radix)}
            got = run(
                "LayeredRMPNeuron", feeds, attributes=attributes, native=native, threads=threads
            )
            assert_same_bits(got, [wanted], f"native={native}")
        cases += 1

    check()
    assert cases > 0


@pytest.mark.parametrize("radix", [False, True], ids=["rate", "radix"])
def test_layered_neuron_counts_levels(radix: bool) -> None:
    """In whole numbers the spikes stand for clip(floor(X/θ + 1/2), 0, L), and in rate coding they come
    without a gap."""
    steps, theta = 5, 7  # odd: X/θ is never half-way between two whole numbers
    levels = 2**steps - 1 if radix else steps
    weights = 2 ** np.arange(steps)[::-1] if radix else np.ones(steps, np.int64)
    current = np.arange(-3 * theta, (levels + 3) * theta, dtype=np.float32)[None]
    feeds = {"threshold": np.float32(theta), "membrane": np.float32((theta - 1) // 2)}
    attributes = {"static_current": 1, "radix": int(radix)}
    (spikes,) = run(
        "LayeredRMPNeuron", {"current": current, **feeds, "steps": steps}, attributes=attributes
    )
    wanted = np.clip((current[0] * 2 + theta) // (2 * theta), 0, levels)
    np.testing.assert_array_equal(weights @ spikes, wanted)
    if not radix:
        assert (np.diff(spikes, axis=0) <= 0).all()


@pytest.mark.parametrize("radix", [False, True], ids=["rate", "radix"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layered_neuron_at_the_edges_of_tiles_and_blocks(dtype: str, radix: bool) -> None:
    cases = 0
    for neurons in (1, 15, 16, 17, 63, 64, 255, 256, 257, 2047, 2049, 4097, 40_000):
        for steps in (1, 3):
            current = normal(neurons, [steps, neurons], dtype)
            threshold, membrane = positive(1, [neurons]), np.float32(0.25)
            feeds = {"current": current, "threshold": threshold, "membrane": membrane}
            wanted = reference.layered_rmp_neuron(current, threshold, membrane, steps, radix=radix)
            for threads in (1, 2):
                got = run(
                    "LayeredRMPNeuron",
                    {**feeds, "steps": steps},
                    attributes={"radix": int(radix)},
                    threads=threads,
                )
                assert_same_bits(got, [wanted], f"{neurons} neurons, {steps} steps")
                cases += 1
    assert cases == 13 * 2 * 2


def test_layered_neuron_takes_special_values() -> None:
    """Infinities, NaN, zeros of both signs, subnormal numbers and ties at the threshold."""
    values = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-45, -1e-45, 1.0, 3.4e38], np.float32)
    current = np.tile(values, (4, 3))
    threshold = np.resize(np.array([1.0, 0.5, 3e38, 1e-45], np.float32), current.shape[1])
    feeds = {"current": current, "threshold": threshold, "membrane": np.float32(0), "steps": 4}
    for radix in (False, True):
        with np.errstate(invalid="ignore", over="ignore"):
            wanted = reference.layered_rmp_neuron(
                current, threshold, feeds["membrane"], 4, radix=radix
            )
        for native in (False, True):
            attributes = {"radix": int(radix)}
            got = run("LayeredRMPNeuron", feeds, attributes=attributes, native=native)
            assert_same_bits(got, [wanted], (radix, native))


def test_layered_neuron_takes_digits_that_float32_counts() -> None:
    feeds = {"current": np.ones((1, 3), np.float32), "membrane": np.float32(0.5)}
    attributes = {"static_current": 1, "radix": 1}
    most = {**feeds, "threshold": np.float32(2.0**-23), "steps": 24}
    wanted = reference.layered_rmp_neuron(
        feeds["current"], most["threshold"], feeds["membrane"], 24, True, True
    )
    for native in (False, True):
        got = run("LayeredRMPNeuron", most, attributes=attributes, native=native)
        assert_same_bits(got, [wanted], native)
    with pytest.raises(Exception, match="`steps` must be at most 24 with `radix`, not 25"):
        run("LayeredRMPNeuron", {**most, "steps": 25}, attributes=attributes)


def scheduled_feeds(
    name: str, current: Array, threshold: Array, membrane: Array, **others: Any
) -> dict[str, Any]:
    """The inputs of a neuron with a schedule; `balance` is left out where it has none."""
    feeds = {"current": current, "threshold": threshold, "membrane": membrane, **others}
    if name != "SignedNeuron":
        feeds.pop("balance", None)
    return feeds


@pytest.mark.parametrize("static", [False, True], ids=["temporal", "static"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SCHEDULED)
def test_scheduled_neuron(name: str, dtype: str, static: bool) -> None:
    """Schedules shorter and longer than the window, of one row, before and behind their end."""
    cases = 0
    numpy, levels = SCHEDULED[name]
    starts = st.sampled_from([0, 0, 1, 2, 7, 1000, 2**63 - 1])

    @given(
        SAMPLES,
        st.integers(1, 9),
        starts,
        st.sampled_from([1, 1, 2, 3, 8, 25]),
        st.sampled_from([1, 2]),
        SEEDS,
        st.data(),
    )
    def check(
        sample: list[int],
        steps: int,
        start: int,
        rows: int,
        threads: int,
        seed: int,
        data: st.DataObject,
    ) -> None:
        nonlocal cases
        leading = sample[0] if static else steps * sample[0]
        schedule = normal(seed + 3, [rows, *data.draw(broadcastable(sample))])
        if data.draw(st.booleans()):
            schedule[-1] = 0
        feeds = scheduled_feeds(
            name,
            normal(seed, [leading, *sample[1:]], dtype),
            positive(seed + 1, data.draw(broadcastable(sample))),
            normal(seed + 2, data.draw(broadcastable(sample))),
            balance=np.float32(data.draw(st.integers(0, 3))),
            schedule=schedule,
            start=start,
            steps=steps,
        )
        wanted = list(numpy(**feeds, **levels, static_current=static))
        for native in (False, True):
            attributes = {"static_current": int(static), **levels}
            got = run(name, feeds, attributes=attributes, native=native, threads=threads)
            assert_same_bits(got, wanted, f"native={native}")
        cases += 1

    check()
    assert cases > 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", dialect.DRIVEN)
def test_driven_neuron(name: str, dtype: str) -> None:
    """Drive and the neuron behind it, at once: factors and schedules that end within and behind the
    window, and none of either; tiles, what is left of them, and blocks."""
    cases = 0
    numpy, levels = SCHEDULED[name]
    factors = np.array([1.75, 0.3, 1.1, 1], np.float32)
    for sample in ([0, 3], [1], [2, 3, 5, 7], [2, 16, 8, 8], [3, 1025], [1, 4099]):
        for start, rows, count in ((0, 1, 4), (0, 6, 2), (2, 4, 4), (9, 12, 3), (2**63 - 1, 2, 4)):
            steps, current = 6, normal(cases, sample, dtype)
            feeds = scheduled_feeds(
                name,
                current,
                positive(1, [*sample[1:2], *[1] * (len(sample) - 2)]),
                normal(2, sample),
                balance=np.float32(1),
                schedule=normal(3, [rows, *sample[1:2], *[1] * (len(sample) - 2)]),
                start=start,
                steps=steps,
            )
            driven = reference.drive(current, factors[-count:], start, steps)
            wanted = list(numpy(**{**feeds, "current": driven}, **levels))
            for native, threads in ((False, 1), (True, 1), (True, 2)):
                got = run(
                    dialect.DRIVEN[name],
                    {**feeds, "drive": factors[-count:]},
                    attributes=levels,
                    native=native,
                    threads=threads,
                )
                assert_same_bits(got, wanted, (sample, start, native, threads))
            cases += 1
    assert cases == 6 * 5


def test_a_drive_has_factors() -> None:
    feeds = {"current": np.ones((1, 3), np.float32), "threshold": np.float32(1), "start": 0}
    feeds |= {"membrane": np.float32(0), "schedule": np.zeros(1, np.float32), "steps": 2}
    for drive in (np.zeros(0, np.float32), np.float32(1)):
        with pytest.raises(Exception, match="`drive` of shape"):
            run("DrivenRMPNeuron", {**feeds, "drive": drive})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SCHEDULED)
def test_scheduled_neuron_at_the_edges_of_tiles_and_blocks(name: str, dtype: str) -> None:
    """Rows of one number, of one per channel (of 49 neurons, or of many) and of one per neuron."""
    cases = 0
    numpy, levels = SCHEDULED[name]
    for channels, each in ((1, 1), (1, 255), (1, 256), (3, 49), (40, 49), (2, 1025), (512, 1)):
        for row in ((), (channels, 1), (channels, each), (1, each)):
            for rows in (1, 12):
                schedule = normal(cases, [rows, *row])
                schedule[-1] = 0
                feeds = scheduled_feeds(
                    name,
                    normal(channels, [11, channels, each], dtype),
                    positive(1, [channels, 1]),
                    np.float32(0.25),
                    balance=np.float32(1),
                    schedule=schedule,
                    start=2,
                    steps=11,
                )
                wanted = list(numpy(**feeds, **levels))
                for threads in (1, 2):
                    got = run(name, feeds, attributes=levels, threads=threads)
                    assert_same_bits(got, wanted, (channels, each, row, rows))
                    cases += 1
    assert cases == 7 * 4 * 2 * 2


@pytest.mark.parametrize("name", SCHEDULED)
def test_scheduled_neuron_takes_special_values(name: str) -> None:
    """Infinities, NaN, zeros of both signs, subnormal numbers, quotients that are too large."""
    numpy, levels = SCHEDULED[name]
    values = [np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-45, -1e-45, 1.0, 0.5, -3.0, 3.4e38]
    current = np.tile(np.array([np.roll(values, step) for step in range(4)], np.float32), (1, 3))
    count = current.shape[1]
    feeds = scheduled_feeds(
        name,
        current,
        np.resize(np.array([1.0, 0.5, 3e38, 1e-45], np.float32), count),
        np.resize(np.array([0.0, -0.0, 0.5], np.float32), count),
        balance=np.resize(np.array([0.0, -0.0, 5.0], np.float32), count),
        schedule=np.array([-0.0, 0.0], np.float32),
        start=0,
        steps=4,
    )
    with np.errstate(all="ignore"):
        wanted = numpy(**feeds, **levels)
    for native in (False, True):
        got = run(name, feeds, attributes=levels, native=native)
        for one, other in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(one, other)  # the bits of a NaN are free
            assert (np.signbit(one) == np.signbit(other))[~np.isnan(other)].all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SCHEDULED)
def test_scheduled_neuron_with_spikes_past_the_caches(name: str, dtype: str) -> None:
    steps, neurons = 16, 33 * 2**20 // 16 // (4 if dtype == "float32" else 2) // 64 * 64
    numpy, levels = SCHEDULED[name]
    feeds = scheduled_feeds(
        name,
        normal(5, [steps, neurons], dtype),
        np.float32(0.7),
        np.float32(0.35),
        balance=np.float32(0),
        schedule=np.array([0.5, -0.25, 0], np.float32),
        start=0,
        steps=steps,
    )
    got = run(name, feeds, attributes=levels, threads=2)
    assert_same_bits(got, list(numpy(**feeds, **levels)))


def test_a_silent_schedule_changes_nothing() -> None:
    feeds = {"current": normal(1, [5, 3, 40]), "threshold": np.float32(0.7)}
    feeds |= {"membrane": np.float32(0.35), "steps": 5}
    zero = np.zeros((1, 3, 1), np.float32)
    got = run("ScheduledRMPNeuron", {**feeds, "schedule": zero, "start": 0})
    assert_same_bits(got, run("RMPNeuron", feeds))
    got = run(
        "BurstNeuron", {**feeds, "schedule": zero, "start": 0}, attributes={"levels": 1}
    )  # floor(u / θ) > 0 where u >= θ: the quotient of ordered numbers is at least 1
    assert_same_bits(got, run("RMPNeuron", feeds))


def test_a_signed_neuron_never_owes() -> None:
    current, steps = normal(2, [64, 3, 40]) * 3, 64
    feeds = {"current": current, "threshold": np.float32(0.5), "membrane": np.float32(0)}
    feeds |= {"balance": np.float32(0), "schedule": np.zeros(1, np.float32), "start": 0}
    k, _, n = run("SignedNeuron", {**feeds, "steps": steps}, attributes={"levels": 4})
    sent = np.cumsum(k, axis=0)
    assert k.min() == -4 and k.max() == 4 and sent.min() == 0
    assert_same_bits([n[0]], [sent[-1]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_weighted_time_sum(dtype: str) -> None:
    cases = 0

    @given(SAMPLES, st.integers(1, 9), st.sampled_from([1, 2]), SEEDS, st.data())
    def check(sample: list[int], steps: int, threads: int, seed: int, data: st.DataObject) -> None:
        nonlocal cases
        values = normal(seed, [steps * sample[0], *sample[1:]], dtype)
        weights = normal(seed + 1, [steps])
        total = normal(seed + 2, data.draw(broadcastable(sample)))
        feeds = {"values": values, "weights": weights, "total": total, "steps": steps}
        wanted = [reference.weighted_time_sum(values, weights, total, steps)]
        for native in (False, True):
            got = run("WeightedTimeSum", feeds, native=native, threads=threads)
            assert_same_bits(got, wanted, f"native={native}")
        cases += 1

    check()
    assert cases > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_poisson_encoder(dtype: str) -> None:
    cases = 0
    whole = st.sampled_from([0, 1, 5, 2**32 - 2, 2**32, 2**63 - 1])

    @given(
        SAMPLES,
        st.integers(1, 6),
        whole,
        whole | st.just(-3),
        whole,
        st.sampled_from([1, 2]),
        SEEDS,
    )
    def check(
        sample: list[int], steps: int, start: int, seed: int, image: int, threads: int, data: int
    ) -> None:
        nonlocal cases
        feeds = {
            "values": normal(data, sample, dtype),
            "scale": np.float32(1.5),
            "seed": seed,
            "first_image": image,
            "start": start,
            "steps": steps,
        }
        wanted = [reference.poisson_encoder(**feeds)]
        for native in (False, True):
            got = run("PoissonEncoder", feeds, native=native, threads=threads)
            assert_same_bits(got, wanted, f"native={native}")
        cases += 1

    check()
    assert cases > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_drive(dtype: str) -> None:
    cases = 0

    @given(SAMPLES, st.integers(1, 6), st.integers(0, 9), st.integers(1, 5), SEEDS, st.data())
    def check(
        sample: list[int], steps: int, start: int, length: int, seed: int, data: st.DataObject
    ) -> None:
        nonlocal cases
        threads = data.draw(st.sampled_from([1, 2]))
        factors = np.linspace(1.7, 1, length, dtype=np.float32)
        feeds = {"values": normal(seed, sample, dtype), "start": start, "steps": steps}
        wanted = [reference.drive(feeds["values"], factors, start, steps)]
        for native in (False, True):
            got = run("Drive", {**feeds, "drive": factors}, native=native, threads=threads)
            assert_same_bits(got, wanted, f"native={native}")
        cases += 1

    check()
    assert cases > 0


@pytest.mark.parametrize("native", [False, True], ids=["body", "kernel"])
def test_the_last_factor_of_a_drive_holds_however_late_it_is(native: bool) -> None:
    values, factors = normal(0, [2, 3]), np.array([3, 2], np.float32)
    for start, steps in ((0, 3), (1, 3), (2**62, 3), (2**63 - 1, 40)):
        feeds = {"values": values, "drive": factors, "start": start, "steps": steps}
        (driven,) = run("Drive", feeds, native=native)
        wanted = [np.float32(3 if start + t == 0 else 2) * values for t in range(steps)]
        assert_same_bits([driven], [np.concatenate(wanted)])


@pytest.mark.parametrize("native", [False, True], ids=["body", "kernel"])
def test_poisson_encoder_does_not_depend_on_batch_or_chunk(native: bool) -> None:
    values = normal(1, [6, 3, 700])
    feeds = {"scale": np.float32(2), "seed": 7}

    def call(images: slice, first: int, last: int) -> Array:
        part = values[images]
        more = {"first_image": 100 + images.start, "start": first, "steps": last - first}
        (spikes,) = run("PoissonEncoder", {"values": part, **feeds, **more}, native=native)
        return spikes.reshape(last - first, *part.shape)

    whole = call(slice(0, 6), 0, 9)
    for images in (slice(0, 1), slice(1, 4), slice(5, 6)):
        for first, last in ((0, 9), (0, 1), (3, 8)):
            part = np.ascontiguousarray(whole[first:last, images])
            assert_same_bits([call(images, first, last)], [part])


def test_poisson_encoder_has_the_rates_it_should_have() -> None:
    """Values of 0, beyond the scale and of both signs; the mean within five standard deviations."""
    values = np.array([[0.0, -0.0, 0.25, -0.25, 1.0, -1.0, 1.5, np.nan, -1e-12]], np.float32)
    steps = 20_000
    feeds = {"values": values, "scale": np.float32(1), "seed": 3, "first_image": 0, "start": 0}
    (spikes,) = run("PoissonEncoder", {**feeds, "steps": steps})
    wanted = np.array([0, 0, 0.25, -0.25, 1, -1, 1, 0, 0])
    bound = 5 * np.sqrt(np.abs(wanted) * (1 - np.abs(wanted)) / steps)
    assert (np.abs(spikes.mean(axis=0) - wanted) <= bound).all()


def _z_of_counts(counts: Array) -> float:
    """How many standard deviations chi-square lies from what equal chances would give."""
    expected, freedom = counts.sum() / counts.size, counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 - 1])
def test_random_numbers_are_uniform_and_independent(seed: int) -> None:
    """Mean, variance, histograms, correlations and pairs along steps, images and elements."""
    axes = [np.arange(count, dtype=np.uint64) for count in (32, 32, 1024)]
    step, image, element = np.ix_(*axes)
    words = reference.random_words(seed, image, step, element)
    assert words.shape == (32, 32, 1024)
    uniform = (words >> np.uint32(8)).astype(np.float64) / 2**24 - 0.5
    count = uniform.size
    assert abs(uniform.mean()) < 5 / np.sqrt(12 * count)
    assert abs((uniform**2).mean() - 1 / 12) < 5 * np.sqrt((1 / 80 - 1 / 144) / count)
    for shift in (24, 16, 8, 0):
        octet = (words >> np.uint32(shift)) & np.uint32(255)
        assert abs(_z_of_counts(np.bincount(octet.ravel(), minlength=256))) < 5
    top = (words >> np.uint32(24)).astype(np.int64)
    for axis in range(3):
        along, bits = np.moveaxis(uniform, axis, 0), np.moveaxis(top, axis, 0)
        for lag in (1, 2, 3, 8, 16):
            products = along[:-lag] * along[lag:]
            assert abs(products.mean()) * 12 * np.sqrt(products.size) < 5
        pairs = np.bincount((bits[:-1] * 256 + bits[1:]).ravel(), minlength=2**16)
        assert abs(_z_of_counts(pairs)) < 5
        sums = along.sum(axis=0) * np.sqrt(12 / len(along))
        assert abs(sums.var() - 1) < 5 * np.sqrt(2 / sums.size)


def test_random_numbers_of_different_seeds_are_independent() -> None:
    seeds = [*range(40), *(2**bit for bit in range(6, 63)), 2**63 - 1]
    element = np.arange(4096, dtype=np.uint64)
    words = np.array([reference.random_words(seed, 0, 0, element) for seed in seeds])
    uniform = ((words >> np.uint32(8)).astype(np.float64) / 2**24 - 0.5) * np.sqrt(12)
    correlations = (uniform @ uniform.T / np.sqrt(element.size))[np.triu_indices(len(seeds), 1)]
    assert np.abs(correlations).max() < 6 and abs(correlations.std() - 1) < 0.1


def test_every_bit_of_seed_image_step_and_element_matters() -> None:
    """Flipping any of them flips every bit of the result half the time."""
    rng = np.random.default_rng(0)
    count = 4000
    numbers = [rng.integers(0, most, count).astype(np.uint64) for most in (50_000, 500, 4000)]
    plain = reference.random_words(5, *numbers)
    cases = 0
    for which in range(4):
        for bit in range(63):
            flipped, seed = list(numbers), 5
            if which == 3:
                seed = 5 ^ (1 << bit)
            else:
                flipped[which] = flipped[which] ^ np.uint64(1 << bit)
            change = plain ^ reference.random_words(seed, *flipped)
            flips = np.unpackbits(change.view(np.uint8).reshape(count, 4), axis=1).mean(axis=0)
            assert np.abs(flips - 0.5).max() < 6 * 0.5 / np.sqrt(count), (which, bit)
            cases += 1
    assert cases == 4 * 63


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_half_is_read_and_written_right(dtype: str) -> None:
    """All 65536 halves as currents of one step."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[~np.isnan(halves)]
    current = halves.astype(dtype)[None, :]
    zero, one = np.array(0, np.float32), np.array(1, np.float32)
    got = run("TimeSum", {"values": current, "total": zero, "steps": 1})
    assert_same_bits(got, [reference.time_sum(current, zero, 1)])
    got = run("RMPNeuron", {"current": current, "threshold": one, "membrane": zero, "steps": 1})
    assert_same_bits(got, list(reference.rmp_neuron(current, one, zero, 1)))
    # Halves of halves: every tie between subnormal ones is among them.
    feeds = {"values": current, "total": zero, "start": 1, "steps": 1}
    wanted = list(reference.running_mean(current, zero, 1, 1))
    for native in (False, True):
        assert_same_bits(run("RunningMean", feeds, native=native), wanted, f"native={native}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_time_sum(dtype: str) -> None:
    cases = 0

    @given(SAMPLES, st.integers(1, 9), st.sampled_from([1, 2]), SEEDS, st.data())
    def check(sample: list[int], steps: int, threads: int, seed: int, data: st.DataObject) -> None:
        nonlocal cases
        values = normal(seed, [steps * sample[0], *sample[1:]], dtype)
        total = normal(seed + 1, data.draw(broadcastable(sample)))
        feeds = {"values": values, "total": total, "steps": steps}
        wanted = [reference.time_sum(values, total, steps)]
        for native in (False, True):
            got = run("TimeSum", feeds, native=native, threads=threads)
            assert_same_bits(got, wanted, f"native={native}")
        cases += 1

    check()
    assert cases > 0


def test_time_sum_over_several_blocks() -> None:
    values = normal(3, [5, 2, 7001])
    total = normal(4, [7001])
    folded = values.reshape(10, 7001)
    feeds = {"values": folded, "total": total, "steps": 5}
    wanted = [reference.time_sum(folded, total, 5)]
    for threads in (1, 2):
        assert_same_bits(run("TimeSum", feeds, threads=threads), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ANALOG)
def test_analog(name: str, dtype: str) -> None:
    cases = 0
    state_name, numpy = ANALOG[name]
    starts = st.sampled_from([0, 0, 1, 2, 31, 1000, 2**24 - 10])  # steps are counted in float32

    @given(SAMPLES, st.integers(1, 9), starts, st.sampled_from([1, 2]), SEEDS, st.data())
    def check(
        sample: list[int], steps: int, start: int, threads: int, seed: int, data: st.DataObject
    ) -> None:
        nonlocal cases
        values = normal(seed, [steps * sample[0], *sample[1:]], dtype)
        state = normal(seed + 1, data.draw(broadcastable(sample)))
        feeds = {"values": values, state_name: state, "start": start, "steps": steps}
        with np.errstate(over="ignore"):  # halves, late increments
            wanted = list(numpy(values, state, start, steps))
        for native in (False, True):
            got = run(name, feeds, native=native, threads=threads)
            assert_same_bits(got, wanted, f"native={native}")
        cases += 1

    check()
    assert cases > 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ANALOG)
def test_analog_at_the_edges_of_tiles_and_blocks(name: str, dtype: str) -> None:
    cases = 0
    state_name, numpy = ANALOG[name]
    for neurons in (1, 15, 16, 17, 31, 33, 63, 64, 255, 256, 257, 2047, 2049, 4097, 40_000):
        for steps in (1, 3):
            values, state = normal(neurons, [steps, neurons], dtype), normal(1, [neurons])
            feeds = {"values": values, state_name: state, "start": 5, "steps": steps}
            wanted = list(numpy(values, state, 5, steps))
            for threads in (1, 2):
                assert_same_bits(run(name, feeds, threads=threads), wanted, (neurons, steps))
                cases += 1
    assert cases == 15 * 2 * 2


@pytest.mark.parametrize("name", ANALOG)
def test_analog_takes_special_values(name: str) -> None:
    """Infinities, NaN, zeros of both signs, subnormal numbers, overflow."""
    state_name, numpy = ANALOG[name]
    numbers = [np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-45, -1e-45, 3e-39, 1.0, 3.4e38]
    values = np.array([np.roll(numbers, step) for step in range(4)], np.float32)
    values = np.tile(values, (1, 3))
    state = np.resize(np.array([0.0, -0.0, 3e38, np.inf, 1e-45], np.float32), values.shape[1])
    for start in (0, 7):
        feeds = {"values": values, state_name: state, "start": start, "steps": 4}
        with np.errstate(invalid="ignore", over="ignore"):
            wanted = numpy(values, state, start, 4)
        for native in (False, True):
            for one, other in zip(run(name, feeds, native=native), wanted, strict=True):
                np.testing.assert_array_equal(one, other)  # the bits of a NaN are free
                assert (np.signbit(one) == np.signbit(other))[~np.isnan(other)].all()


@pytest.mark.parametrize("start", [2**24 - 1, 2**24 + 1, 2**40 + 5, 2**63 - 1])
@pytest.mark.parametrize("name", ANALOG)
def test_analog_after_very_many_steps(name: str, start: int) -> None:
    """Counts that float32 rounds: the kernel rounds each, as the reference does."""
    state_name, numpy = ANALOG[name]
    values, state = normal(1, [6, 2, 300]), normal(2, [2, 300])
    feeds = {"values": values, state_name: state, "start": start, "steps": 3}
    assert_same_bits(run(name, feeds), list(numpy(values, state, start, 3)))


def test_the_telescope_undoes_the_running_mean() -> None:
    """The mean of the increments is the value they were made from, up to rounding."""
    values, zero = normal(1, [16, 5, 7]), np.float32(0)
    means, _ = run("RunningMean", {"values": values, "total": zero, "start": 0, "steps": 16})
    increments, last = run(
        "Telescope", {"values": means, "previous": zero, "start": 0, "steps": 16}
    )
    np.testing.assert_allclose(increments, values, rtol=0, atol=1e-4)
    assert_same_bits([last[0]], [means[-1]])


@st.composite
def windows(draw: st.DrawFn, rank: int) -> dict[str, Any]:
    def each(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank))

    kernel = each(1, 4)
    padding = draw(st.sampled_from(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    pads = [draw(st.integers(0, extent - 1)) for extent in kernel * 2]
    return {
        "auto_pad": padding,
        "ceil_mode": draw(st.sampled_from([0, 1])),
        "dilations": each(1, 2) if padding in ("NOTSET", "VALID") else [1] * rank,
        "kernel_shape": kernel,
        "pads": pads if padding == "NOTSET" else [0] * 2 * rank,
        "strides": each(1, 3),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_spike_max_pool(rank: int, dtype: str) -> None:
    cases = 0

    @given(windows(rank), st.integers(1, 4), st.sampled_from([1, 2]), SEEDS, st.data())
    def check(
        window: dict[str, Any], steps: int, threads: int, seed: int, data: st.DataObject
    ) -> None:
        nonlocal cases
        extents = st.integers(1, {1: 40, 2: 12, 3: 6}[rank])
        sample = [data.draw(st.integers(0, 3)), data.draw(st.integers(1, 3))]
        sample += data.draw(st.lists(extents, min_size=rank, max_size=rank))
        rng = np.random.default_rng(seed)
        spikes = rng.integers(0, 2, [steps * sample[0], *sample[1:]]).astype(dtype)
        counts = rng.integers(0, 4, data.draw(broadcastable(sample))).astype(np.float32)
        feeds = {"spikes": spikes, "counts": counts, "steps": steps}
        assume(fits(window, sample[2:]))
        wanted = run("SpikeMaxPool", feeds, attributes=window, native=False)
        got = run("SpikeMaxPool", feeds, attributes=window, threads=threads)
        assert_same_bits(got, wanted, "kernel and body")
        if window["auto_pad"] in ("NOTSET", "VALID"):
            explicit = {key: value for key, value in window.items() if key != "auto_pad"}
            numpy = reference.spike_max_pool(spikes, counts, steps, **explicit)
            assert_same_bits(got, list(numpy), "kernel and reference")
        cases += 1

    check()
    assert cases > 0


def fits(window: dict[str, Any], extents: list[int]) -> bool:
    """Whether every window sees something: otherwise ONNX leaves the result open."""
    rank = len(extents)
    if window["auto_pad"].startswith("SAME"):  # onnxruntime refuses negative padding
        return all(
            (-(-extent // stride) - 1) * stride + kernel >= extent
            for extent, stride, kernel in zip(
                extents, window["strides"], window["kernel_shape"], strict=True
            )
        )
    for axis, extent in enumerate(extents):
        kernel, stride = window["kernel_shape"][axis], window["strides"][axis]
        dilation, begin = window["dilations"][axis], window["pads"][axis]
        room = extent + begin + window["pads"][rank + axis] - dilation * (kernel - 1) - 1
        if room < 0:
            return False
        places = room // stride + 1 + (window["ceil_mode"] and room % stride > 0)
        if OLD_POOLING and (places - 1) * stride >= extent + begin:
            return False
        for place in range(places):
            start = place * stride - begin
            if start < extent and not any(
                0 <= start + tap * dilation < extent for tap in range(kernel)
            ):
                return False
    return True


@pytest.mark.parametrize("sample", [(0, 3, 6, 6), (2, 0, 6, 6)], ids=["samples", "channels"])
def test_spike_max_pool_of_nothing(sample: tuple[int, ...]) -> None:
    window: dict[str, Any] = {
        "ceil_mode": 0,
        "dilations": [1, 1],
        "kernel_shape": [3, 3],
        "pads": [1, 1, 1, 1],
        "strides": [2, 2],
    }
    spikes, zero = np.empty((sample[0] * 4, *sample[1:]), np.float32), np.zeros((), np.float32)
    wanted = list(reference.spike_max_pool(spikes, zero, 4, **window))
    assert wanted[0].shape == (*spikes.shape[:2], 3, 3)
    got = run(
        "SpikeMaxPool",
        {"spikes": spikes, "counts": zero, "steps": 4},
        attributes={"auto_pad": "NOTSET", **window},
    )
    assert_same_bits(got, wanted)


def test_spike_max_pool_of_common_networks() -> None:
    """The windows of VGG and ResNet at their sizes, on several threads."""
    cases = 0
    for kernel, stride, pad, extent in ((2, 2, 0, 32), (3, 2, 1, 56), (3, 2, 0, 55), (3, 1, 1, 14)):
        spikes = np.random.default_rng(cases).integers(0, 2, (6, 5, extent, extent))
        window = {
            "auto_pad": "NOTSET",
            "ceil_mode": 0,
            "dilations": [1, 1],
            "kernel_shape": [kernel] * 2,
            "pads": [pad] * 4,
            "strides": [stride] * 2,
        }
        feeds = {"spikes": spikes.astype(np.float32), "counts": np.float32(0), "steps": 3}
        wanted = run("SpikeMaxPool", feeds, attributes=window, native=False)
        for threads in (1, 2):
            got = run("SpikeMaxPool", feeds, attributes=window, threads=threads)
            assert_same_bits(got, wanted)
            cases += 1
    assert cases == 8


#: Of each operator with a state: the name of its values, of its last state, and its attributes.
STATEFUL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "RMPNeuron": ("current", "membrane", {"static_current": 0}),
    "HardResetNeuron": ("current", "membrane", {"static_current": 0}),
    "ScheduledRMPNeuron": ("current", "membrane", {"static_current": 0}),
    "BurstNeuron": ("current", "membrane", {"static_current": 0, "levels": 3}),
    "SignedNeuron": ("current", "balance", {"static_current": 0, "levels": 2}),
    "TimeSum": ("values", "total", {}),
    "WeightedTimeSum": ("values", "total", {}),
    "SpikeMaxPool": (
        "spikes",
        "counts",
        {
            "auto_pad": "NOTSET",
            "ceil_mode": 1,
            "dilations": [1, 1],
            "kernel_shape": [3, 3],
            "pads": [1, 1, 1, 1],
            "strides": [2, 2],
        },
    ),
    "RunningMean": ("values", "total", {}),
    "Telescope": ("values", "previous", {}),
}


@pytest.mark.parametrize("name", STATEFUL)
@pytest.mark.parametrize("native", [False, True], ids=["body", "kernel"])
def test_any_split_in_time_gives_the_same(name: str, native: bool) -> None:
    cases = 0
    values_name, _, attributes = STATEFUL[name]
    operator = dialect.OPERATORS[name]
    known = {port.name for port in operator.inputs}
    states = [operator.inputs[state_in].name for state_in, _ in operator.states]
    weights, schedule = normal(1, [30]), normal(2, [7, 3, 1, 1])

    @given(st.lists(st.integers(1, 6), min_size=2, max_size=5), SEEDS)
    def check(chunks: list[int], seed: int) -> None:
        nonlocal cases
        steps, sample = sum(chunks), (2, 3, 5, 5)
        values = normal(seed, [steps, *sample])
        if name == "SpikeMaxPool":
            values = (values > 0).astype(np.float32)

        def call(first: int, last: int, held: list[Array]) -> tuple[list[Array], list[Array]]:
            feeds = {
                values_name: values[first:last].reshape(-1, *sample[1:]),
                "threshold": np.float32(0.6),
                "schedule": schedule,
                "weights": weights[first:last],
                "start": first,
                "steps": last - first,
                **dict(zip(states, held, strict=True)),
            }
            feeds = {key: value for key, value in feeds.items() if key in known}
            got = run(name, feeds, attributes=attributes, native=native)
            after = [got[state_out] for _, state_out in operator.states]
            return got[: len(got) - len(after)], after

        start = [np.array(0.3 if state == "membrane" else 0, np.float32) for state in states]
        whole = call(0, steps, start)
        held, trains, done = start, [], 0
        for chunk in chunks:
            train, held = call(done, done + chunk, held)
            trains.append(train)
            done += chunk
        joined = [np.concatenate(parts) for parts in zip(*trains, strict=True)]
        assert_same_bits([*joined, *held], [*whole[0], *whole[1]])
        cases += 1

    check()
    assert cases > 0


@pytest.mark.parametrize("name", STATEFUL)
def test_state_may_take_the_place_of_its_input(name: str, library: Path) -> None:
    """With these shapes in the model, onnxruntime gives the state's buffer to the new state."""
    values_name, state_name, attributes = STATEFUL[name]
    sample = [2, 3, 5, 5]
    model = one_node(name, attributes=tuple(attributes.items()), shape=[None] * 4)
    graph = model.graph
    # The state comes out of another node, so that its buffer is free to be taken.
    node = graph.node[0]
    for value in graph.input:
        if value.name == state_name:
            value.CopyFrom(helper.make_tensor_value_info(state_name, TensorProto.FLOAT, sample))
        if value.name == "threshold":
            value.CopyFrom(helper.make_tensor_value_info("threshold", TensorProto.FLOAT, []))
        if value.name == "weights":
            value.CopyFrom(helper.make_tensor_value_info("weights", TensorProto.FLOAT, [4]))
    graph.node.insert(0, helper.make_node("Neg", [state_name], ["negated"]))
    node = graph.node[1]
    node.input[list(node.input).index(state_name)] = "negated"
    new_state = node.output[-1]
    node.output[-1] = "state_out"
    graph.node.append(helper.make_node("Neg", ["state_out"], [new_state]))
    graph.value_info.append(helper.make_tensor_value_info("state_out", TensorProto.FLOAT, sample))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert register(options)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    values = (normal(1, [8, *sample[1:]]) > 0).astype(np.float32)
    state = np.random.default_rng(2).integers(0, 3, sample).astype(np.float32)
    feeds = {values_name: values, state_name: -state, "steps": np.array(4)}
    more = {
        "threshold": np.array(0.6, np.float32),
        "schedule": normal(3, [5, 3, 1, 1]),
        "weights": normal(4, [4]),
        "start": np.array(3),
    }
    if name == "SignedNeuron":
        more["membrane"] = normal(5, sample)
    known = {port.name for port in dialect.OPERATORS[name].inputs}
    feeds |= {key: value for key, value in more.items() if key in known}
    got = session.run(None, feeds)
    plain = {**feeds, state_name: state}
    wanted = run(name, plain, attributes=attributes, native=False)
    wanted[-1] = -wanted[-1]
    assert_same_bits(got, wanted)
