"""The CUDA kernels against numpy, bit for bit.  `make test-gpu`; skipped where there is no GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from one_node import Array, assert_same_bits, run

from snncompiler.ir import dialect
from snncompiler.runtime import reference

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda_library")]

DTYPES = ("float32", "float16")
#: Multiples of what a thread moves at once, others, one neuron, none, five dimensions.
SAMPLES = ((1,), (2, 1, 1), (0, 3), (3, 5, 7), (2, 16, 8, 8), (2, 3, 2, 3, 5), (1, 64, 33, 31))


def on_gpu(name: str, feeds: dict[str, Any], attributes: dict[str, Any] | None = None) -> Any:
    return run(name, feeds, attributes=attributes, native=True, device="cuda")


def thresholds(sample: tuple[int, ...], rng: np.random.Generator) -> list[Array]:
    shapes: list[tuple[int, ...]] = [(), sample]
    if len(sample) > 1:
        shapes.append((sample[1], *[1] * (len(sample) - 2)))
    return [rng.uniform(0.3, 2.0, shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("static", [False, True], ids=["temporal", "static"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["RMPNeuron", "HardResetNeuron"])
def test_neuron(name: str, dtype: str, static: bool) -> None:
    rng = np.random.default_rng(0)
    numpy = reference.rmp_neuron if name == "RMPNeuron" else reference.hard_reset_neuron
    cases = 0
    for sample in SAMPLES:
        for steps in (1, 4, 7):
            for threshold in thresholds(sample, rng):
                for full in (False, True):
                    leading = sample[0] * (1 if static else steps)
                    current = rng.normal(0.2, 1, (leading, *sample[1:])).astype(dtype)
                    membrane = rng.normal(0, 1, sample if full else ()).astype(np.float32)
                    feeds = {"current": current, "threshold": threshold, "membrane": membrane}
                    wanted = list(numpy(current, threshold, membrane, steps, static))
                    got = on_gpu(name, {**feeds, "steps": steps}, {"static_current": int(static)})
                    assert_same_bits(got, wanted, (sample, steps, threshold.shape))
                    cases += 1
    assert cases > 0


@pytest.mark.parametrize("static", [False, True], ids=["temporal", "static"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["ScheduledRMPNeuron", "BurstNeuron", "SignedNeuron"])
def test_scheduled_neuron(name: str, dtype: str, static: bool) -> None:
    rng = np.random.default_rng(5)
    numpy: Any = {
        "ScheduledRMPNeuron": reference.scheduled_rmp_neuron,
        "BurstNeuron": reference.burst_neuron,
        "SignedNeuron": reference.signed_neuron,
    }[name]
    levels = {} if name == "ScheduledRMPNeuron" else {"levels": 3}
    cases = 0
    for sample in SAMPLES:
        for start, steps, rows in ((0, 1, 1), (0, 7, 1), (0, 7, 4), (2, 7, 30), (9, 4, 5)):
            for threshold in thresholds(sample, rng):
                leading = sample[0] * (1 if static else steps)
                feeds: dict[str, Any] = {
                    "current": rng.normal(0.2, 1, (leading, *sample[1:])).astype(dtype),
                    "threshold": threshold,
                    "membrane": rng.normal(0, 1, sample).astype(np.float32),
                }
                if name == "SignedNeuron":
                    feeds["balance"] = rng.integers(0, 3, sample).astype(np.float32)
                schedule = rng.normal(0, 1, (rows, *threshold.shape)).astype(np.float32)
                feeds |= {"schedule": schedule, "start": start, "steps": steps}
                wanted = list(numpy(**feeds, **levels, static_current=static))
                got = on_gpu(name, feeds, {"static_current": int(static), **levels})
                assert_same_bits(got, wanted, (sample, start, steps, rows, threshold.shape))
                cases += 1
    assert cases > 0


@pytest.mark.parametrize("static", [False, True], ids=["temporal", "static"])
@pytest.mark.parametrize("radix", [False, True], ids=["rate", "radix"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layered_neuron(dtype: str, radix: bool, static: bool) -> None:
    rng = np.random.default_rng(9)
    cases = 0
    for sample in SAMPLES:
        for steps in (1, 4, 7):
            for threshold in thresholds(sample, rng):
                leading = sample[0] * (1 if static else steps)
                current = rng.normal(0.2, 1, (leading, *sample[1:])).astype(dtype)
                membrane = rng.normal(0, 1, sample).astype(np.float32)
                feeds = {"current": current, "threshold": threshold, "membrane": membrane}
                wanted = reference.layered_rmp_neuron(
                    current, threshold, membrane, steps, static, radix
                )
                attributes = {"static_current": int(static), "radix": int(radix)}
                got = on_gpu("LayeredRMPNeuron", {**feeds, "steps": steps}, attributes)
                assert_same_bits(got, [wanted], (sample, steps, threshold.shape))
                cases += 1
    assert cases > 0


def test_level_neuron() -> None:
    """Near the products of thresholds, which float32 rounds, and with a number for each channel."""
    rng = np.random.default_rng(11)
    cases = 0
    for sample in SAMPLES:
        if len(sample) < 2:
            continue
        shape = (sample[1], *[1] * (len(sample) - 2))
        for levels in (1, 15, 255, 1 << 20):
            threshold = rng.uniform(0.01, 3, shape).astype(np.float32)
            near = (rng.integers(-1, levels + 2, sample) * threshold).astype(np.float32)
            aside = np.nextafter(near, np.float32(np.inf) * rng.choice([-1, 1], sample))
            current = np.where(rng.random(sample) < 0.5, near, aside).astype(np.float32)
            if current.size > 3:
                current.reshape(-1)[:3] = np.nan, np.inf, -np.inf
            # A quotient of float32 numbers is in float64 on the right side of every whole number.
            wide = np.nan_to_num(current.astype(np.float64), posinf=1e30, neginf=-1e30)
            wanted = np.clip(np.floor(wide / threshold), 0, levels).astype(np.float32) + 0.0
            feeds = {"current": current, "membrane": np.zeros(shape, np.float32)}
            feeds |= {"threshold": threshold, "levels": np.array(levels)}
            assert_same_bits(on_gpu("LevelNeuron", feeds), [wanted], (sample, levels))
            cases += 1
    assert cases == 4 * (len(SAMPLES) - 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", dialect.DRIVEN)
def test_driven_neuron(name: str, dtype: str) -> None:
    rng = np.random.default_rng(10)
    numpy: Any = {
        "ScheduledRMPNeuron": reference.scheduled_rmp_neuron,
        "BurstNeuron": reference.burst_neuron,
        "SignedNeuron": reference.signed_neuron,
    }[name]
    levels = {} if name == "ScheduledRMPNeuron" else {"levels": 3}
    factors = np.array([1.75, 0.3, 1], np.float32)
    cases = 0
    for sample in SAMPLES:
        for start, rows in ((0, 1), (1, 4), (9, 3)):
            for threshold in thresholds(sample, rng):
                current = rng.normal(0.2, 1, sample).astype(dtype)
                feeds: dict[str, Any] = {
                    "current": current,
                    "threshold": threshold,
                    "membrane": rng.normal(0, 1, sample).astype(np.float32),
                }
                if name == "SignedNeuron":
                    feeds["balance"] = rng.integers(0, 3, sample).astype(np.float32)
                schedule = rng.normal(0, 1, (rows, *threshold.shape)).astype(np.float32)
                feeds |= {"schedule": schedule, "start": start, "steps": 7}
                driven = reference.drive(current, factors, start, 7)
                wanted = list(numpy(**{**feeds, "current": driven}, **levels))
                got = on_gpu(dialect.DRIVEN[name], {**feeds, "drive": factors}, levels)
                assert_same_bits(got, wanted, (sample, start, rows, threshold.shape))
                cases += 1
    assert cases > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_weighted_time_sum(dtype: str) -> None:
    rng = np.random.default_rng(6)
    cases = 0
    for sample in SAMPLES:
        for steps in (1, 4, 7):
            values = rng.normal(0, 1, (steps * sample[0], *sample[1:])).astype(dtype)
            weights = rng.normal(0, 1, steps).astype(np.float32)
            feeds = {"values": values, "weights": weights, "total": np.float32(0.5), "steps": steps}
            wanted = [reference.weighted_time_sum(values, weights, np.array(0.5), steps)]
            assert_same_bits(on_gpu("WeightedTimeSum", feeds), wanted, sample)
            cases += 1
    assert cases == len(SAMPLES) * 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_drive(dtype: str) -> None:
    rng = np.random.default_rng(8)
    factors = np.array([1.75, 1.5, 1], np.float32)
    cases = 0
    for sample in SAMPLES:
        for start in (0, 1, 9):
            values = rng.normal(0, 1, sample).astype(dtype)
            wanted = [reference.drive(values, factors, start, 4)]
            feeds = {"values": values, "drive": factors, "start": start, "steps": 4}
            assert_same_bits(on_gpu("Drive", feeds), wanted, (sample, start))
            cases += 1
    assert cases == len(SAMPLES) * 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_poisson_encoder(dtype: str) -> None:
    rng = np.random.default_rng(7)
    cases = 0
    for sample in SAMPLES:
        for seed, image, start, steps in ((0, 0, 0, 1), (5, 2**32 - 1, 7, 4), (2**63 - 1, 3, 0, 3)):
            feeds: dict[str, Any] = {
                "values": rng.normal(0, 1, sample).astype(dtype),
                "scale": np.float32(1.5),
                "seed": seed,
                "first_image": image,
                "start": start,
                "steps": steps,
            }
            wanted = [reference.poisson_encoder(**feeds)]
            assert_same_bits(on_gpu("PoissonEncoder", feeds), wanted, (sample, seed))
            cases += 1
    assert cases == len(SAMPLES) * 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_time_sum(dtype: str) -> None:
    rng = np.random.default_rng(1)
    cases = 0
    for sample in SAMPLES:
        for steps in (1, 4, 7):
            for full in (False, True):
                values = rng.normal(0, 1, (steps * sample[0], *sample[1:])).astype(dtype)
                total = rng.normal(0, 1, sample if full else ()).astype(np.float32)
                got = on_gpu("TimeSum", {"values": values, "total": total, "steps": steps})
                assert_same_bits(got, [reference.time_sum(values, total, steps)], sample)
                cases += 1
    assert cases > 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["RunningMean", "Telescope"])
def test_analog(name: str, dtype: str) -> None:
    rng = np.random.default_rng(3)
    numpy = reference.running_mean if name == "RunningMean" else reference.telescope
    state_name = "total" if name == "RunningMean" else "previous"
    cases = 0
    for sample in SAMPLES:
        for start, steps in ((0, 1), (0, 4), (5, 7), (2**24 - 10, 3)):
            for full in (False, True):
                values = rng.normal(0, 1, (steps * sample[0], *sample[1:])).astype(dtype)
                state = rng.normal(0, 1, sample if full else ()).astype(np.float32)
                feeds = {"values": values, state_name: state, "start": start, "steps": steps}
                with np.errstate(over="ignore"):
                    wanted = list(numpy(values, state, start, steps))
                assert_same_bits(on_gpu(name, feeds), wanted, (sample, start, steps))
                cases += 1
    assert cases == len(SAMPLES) * 4 * 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name",
    [
        "RMPNeuron",
        "ScheduledRMPNeuron",
        "BurstNeuron",
        "SignedNeuron",
        "TimeSum",
        "WeightedTimeSum",
        "RunningMean",
        "Telescope",
    ],
)
def test_chunks_give_what_the_whole_gives(name: str, dtype: str) -> None:
    """The states that come out of one call go into the next, on the GPU as on the CPU."""
    operator = dialect.OPERATORS[name]
    rng = np.random.default_rng(4)
    values = rng.normal(0.2, 1, (9, 2, 3, 7)).astype(dtype)
    weights, schedule = (rng.normal(0, 1, shape).astype(np.float32) for shape in ((9,), (4, 3, 1)))
    levels = {"levels": 2} if any(a.name == "levels" for a in operator.attributes) else {}
    states = [operator.inputs[state_in].name for state_in, _ in operator.states]
    known = {port.name for port in operator.inputs}

    def call(first: int, last: int, held: list[Array]) -> tuple[list[Array], list[Array]]:
        feeds: dict[str, Any] = {
            operator.inputs[0].name: values[first:last].reshape(-1, 3, 7),
            "threshold": np.float32(0.6),
            "weights": weights[first:last],
            "schedule": schedule,
            **dict(zip(states, held, strict=True)),
            "start": first,
            "steps": last - first,
        }
        got = list(on_gpu(name, {key: feeds[key] for key in feeds if key in known}, levels))
        after = [got[state_out] for _, state_out in operator.states]
        return got[: len(got) - len(after)], after

    zeros = [np.zeros((), np.float32) for _ in states]
    whole, whole_after = call(0, 9, zeros)
    held, trains = zeros, []
    for first, last in ((0, 1), (1, 5), (5, 9)):
        train, held = call(first, last, held)
        trains.append(train)
    joined = [np.concatenate(parts) for parts in zip(*trains, strict=True)]
    assert_same_bits([*joined, *held], [*whole, *whole_after])


@pytest.mark.parametrize("dtype", DTYPES)
def test_spike_max_pool(dtype: str) -> None:
    """Windows of up to 4, 9 and 64 taps, and larger ones, which take the kernel per plane."""
    rng = np.random.default_rng(2)
    cases = 0
    for kernel, stride, pad, dilation in (
        ([2], 2, 0, 1),
        ([2, 2], 2, 0, 1),
        ([3, 3], 2, 1, 1),
        ([3, 3], 1, 1, 2),
        ([5, 4], 3, 2, 1),
        ([9, 9], 2, 4, 1),
        ([2, 3, 2], 2, 1, 1),
        ([5, 5, 5], 2, 2, 1),
    ):
        rank = len(kernel)
        for ceil_mode in (0, 1):
            sample = (2, 3, *(13, 12, 11)[:rank])
            window: dict[str, Any] = {
                "auto_pad": "NOTSET",
                "ceil_mode": ceil_mode,
                "dilations": [dilation] * rank,
                "kernel_shape": kernel,
                "pads": [pad] * 2 * rank,
                "strides": [stride] * rank,
            }
            spikes = rng.integers(0, 2, (4 * sample[0], *sample[1:])).astype(dtype)
            counts = rng.integers(0, 4, sample).astype(np.float32)
            feeds = {"spikes": spikes, "counts": counts, "steps": 4}
            explicit = {key: value for key, value in window.items() if key != "auto_pad"}
            wanted = list(reference.spike_max_pool(spikes, counts, 4, **explicit))
            assert_same_bits(on_gpu("SpikeMaxPool", feeds, window), wanted, window)
            cases += 1
    assert cases == 16
