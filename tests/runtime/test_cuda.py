"""The CUDA kernels against numpy, bit for bit.  `make test-gpu`; skipped where there is no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_node import Array, assert_same_bits, one_node, run

from snncompiler import dialect
from snncompiler.errors import EnvironmentMissing
from snncompiler.runtime import build, create_session, reference
from snncompiler.runtime.library import LIBRARY_VARIABLE, inspect_library

pytestmark = pytest.mark.gpu

DTYPES = ("float32", "float16")
#: Multiples of what a thread moves at once, others, one neuron, none, five dimensions.
SAMPLES = ((1,), (2, 1, 1), (0, 3), (3, 5, 7), (2, 16, 8, 8), (2, 3, 2, 3, 5), (1, 64, 33, 31))


@pytest.fixture(scope="module", autouse=True)
def cuda_library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A library with CUDA kernels, found by all tests here."""
    pytest.importorskip("onnxruntime")
    try:
        create_session(one_node("TimeSum"), device="cuda", native=False)
    except EnvironmentMissing as missing:
        pytest.skip(str(missing))
    path = build.DEFAULT_OUT / build.LIBRARY_NAME
    current = path.is_file() and inspect_library(path)["sources"] == build.source_digest()
    if not current or not inspect_library(path)["cuda"]:
        if build.find_nvcc() is None:
            pytest.skip("no library with CUDA kernels, and no nvcc to build one")
        path = build.build(Path(tmp_path_factory.mktemp("cuda")), cuda=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LIBRARY_VARIABLE, str(path))
        yield path


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
@pytest.mark.parametrize("name", ["RMPNeuron", "TimeSum", "RunningMean", "Telescope"])
def test_chunks_give_what_the_whole_gives(name: str, dtype: str) -> None:
    """The state that comes out of one call goes into the next, on the GPU as on the CPU."""
    operator = dialect.OPERATORS[name]
    values_name = operator.inputs[0].name
    state_name = operator.inputs[operator.states[0][0]].name
    values = np.random.default_rng(4).normal(0.2, 1, (9, 2, 3, 7)).astype(dtype)

    def call(first: int, last: int, state: Array) -> list[Array]:
        feeds: dict[str, Any] = {
            values_name: values[first:last].reshape(-1, 3, 7),
            "threshold": np.float32(0.6),
            state_name: state,
            "start": first,
            "steps": last - first,
        }
        known = {port.name for port in operator.inputs}
        return list(on_gpu(name, {key: feeds[key] for key in feeds if key in known}))

    whole = call(0, 9, np.zeros((), np.float32))
    state, trains = np.zeros((), np.float32), []
    for first, last in ((0, 1), (1, 5), (5, 9)):
        *train, state = call(first, last, state)
        trains.append(train)
    joined = [np.concatenate(parts) for parts in zip(*trains, strict=True)]
    assert_same_bits([*joined, state], whole)


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
