"""The operators by counts: numpy reference = function body = native kernel, bit for bit.

Sums are whole numbers below 2^24, which float32 holds, so there is no tolerance anywhere.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from snncompiler.ir import dialect
from snncompiler.runtime import build, create_session, library, reference

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("library")

Array = NDArray[Any]

TYPES = {
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "float32": TensorProto.FLOAT,
}
WINDOW: dict[str, Any] = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)}
DATA = ("counts", "more_counts", "residual", "current", "values", "levels")


def one_node(name: str, constants: dict[str, Array], attributes: dict[str, Any]) -> onnx.ModelProto:
    operator = dialect.COUNT_OPERATORS[name]
    node = helper.make_node(
        name,
        [port.name for port in operator.inputs],
        [port.name for port in operator.outputs],
        name=f"my_{name}",
        domain=dialect.DOMAIN,
        **attributes,
    )
    graph = helper.make_graph(
        [node],
        "one_node",
        [
            helper.make_tensor_value_info(port.name, TYPES[port.type], None)
            for port in operator.inputs
            if port.name not in constants
        ],
        [helper.make_tensor_value_info(p.name, TYPES[p.type], None) for p in operator.outputs],
        initializer=[onnx.numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    opset = dialect.BASE_OPSET
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(dialect.DOMAIN, 1)],
        ir_version=dialect.MAX_IR_VERSION,
        functions=dialect.functions([name], opset),
    )


def run(
    name: str,
    feeds: dict[str, Array],
    attributes: dict[str, Any],
    *,
    native: bool = True,
    threads: int = 1,
    constant: bool = True,
    events: bool = True,
) -> Array:
    fixed = {key: value for key, value in feeds.items() if constant and key not in DATA}
    model = one_node(name, fixed, attributes)
    session = create_session(model, native=native, threads=threads, events=events)
    left = {key: value for key, value in feeds.items() if key not in fixed}
    result: Array = session.run(None, left)[0]
    return result


def wanted(name: str, feeds: dict[str, Array], attributes: dict[str, Any]) -> Array:
    def convolved(prefix: str, group: int) -> Array:
        window = {key: attributes[prefix + key] for key in WINDOW}
        weights = feeds[prefix + "weights"].astype(np.float64)
        counts = feeds[prefix + "counts"].astype(np.int64)
        if not prefix:
            counts -= attributes["origin"]
        return reference.spike_convolution(counts, weights, group, **window)

    total = convolved("", attributes["group"]).astype(np.int64)
    if name == "CountConvScaled":
        product = (total + feeds["bias"]).astype(np.float32) * feeds["factor"]
        total = np.rint(np.clip(product, attributes["lowest"], attributes["highest"]))
    if name == "CountConvAdd":
        total = total + feeds["residual"].astype(np.int64) * feeds["coefficient"]
    if name == "CountConvPair":
        total = total + convolved("more_", 1).astype(np.int64)
    return reference.count_neuron(
        total + feeds["membrane"], feeds["threshold"], int(feeds["levels"])
    )


def layer(rng: np.random.Generator) -> tuple[str, dict[str, Array], dict[str, Any]]:
    """A random layer whose sums are below 2^24, with thresholds such that all counts occur."""
    name = str(rng.choice(["CountConv", "CountConvScaled", "CountConvAdd", "CountConvPair"]))
    group = int(rng.choice([1, 1, 1, 2, 3])) if name != "CountConvPair" else 1
    depthwise = name != "CountConvPair" and rng.random() < 0.2
    kernel = tuple(rng.choice([1, 1, 2, 3, 3, 5, 7], 2))
    each = int(rng.integers(1, 131 if max(kernel) < 4 else 24))
    share = int(rng.integers(1, 100))
    if depthwise:
        group, each, share = int(rng.integers(2, 50)), 1, 1
    samples, height, width = int(rng.integers(1, 4)), *(int(n) for n in rng.integers(1, 14, 2))
    if rng.random() < 0.1:
        height = width = 40
        each = min(each, 40)
    levels_in = int(rng.choice([1, 7, 16, 32, 64, 129, 130, 255]))
    levels = int(rng.choice([1, 3, 16, 100, 255]))
    channels = share * group

    def window(size: tuple[Any, ...], kernel: tuple[Any, ...]) -> dict[str, Any]:
        strides = tuple(int(n) for n in rng.choice([1, 1, 2, 3], 2))
        dilations = tuple(int(n) for n in rng.choice([1, 1, 1, 2], 2))
        pads = []
        for end in (False, True):
            for n, k, d in zip(size, kernel, dilations, strict=True):
                least = max(0, (k - 1) * d + 1 - n) if end else 0
                pads.append(int(least + rng.integers(0, 3)))
        return {"strides": strides, "pads": tuple(pads), "dilations": dilations}

    shape = window((height, width), kernel)
    weights = rng.integers(-127, 128, (*kernel, each, channels)).astype(np.int8)
    weights[rng.random(weights.shape) < 0.1] = 127
    charge = np.abs(weights.astype(np.int64)).sum((0, 1, 2))
    levels_in = int(min(levels_in, (2**24 - 1) // charge.max()))
    feeds: dict[str, Array] = {
        "counts": rng.integers(0, levels_in + 1, (samples, height, width, each * group)),
        "weights": weights,
    }
    attributes = {"group": group, "top": 255, "levels_in": levels_in, "origin": 0, **shape}
    if rng.random() < 0.2:
        attributes["origin"] = int(rng.integers(1, levels_in + 1))
    if rng.random() < 0.3 and levels_in >= levels:
        feeds["counts"], attributes["levels_in"] = np.minimum(feeds["counts"], levels), 0
    feeds["levels"] = np.array(levels, np.int64)
    out = reference.spike_convolution(
        feeds["counts"], weights.astype(np.float64), group, **shape
    ).shape
    reach = charge * levels_in
    if name == "CountConvAdd":
        most = int(rng.choice([100, 32767]))
        feeds["residual"] = rng.integers(0, 256, out)
        feeds["coefficient"] = rng.integers(-most - 1, most + 1, channels).astype(np.int32)
    if name == "CountConvScaled":
        factor = rng.choice([1, 0.5, 0.02]) * rng.uniform(0.1, 1, channels)
        feeds["factor"] = factor.astype(np.float32)
        feeds["bias"] = rng.integers(-(2**12), 2**12, channels).astype(np.int32)
        bound = int(rng.choice([2**23, reach.max() // 2]))
        attributes |= {"lowest": -bound, "highest": bound - 1}
        reach = reach * factor
    if name == "CountConvPair":
        # Of any stride over an input that is as large as this needs.
        more = int(rng.integers(1, 80))
        stride = tuple(int(n) for n in rng.choice([1, 2], 2))
        size = tuple((n - 1) * s + 1 for n, s in zip(out[1:3], stride, strict=True))
        feeds["more_counts"] = rng.integers(0, levels_in + 1, (samples, *size, more))
        feeds["more_weights"] = rng.integers(-127, 128, (1, 1, more, channels)).astype(np.int8)
        attributes |= {"more_strides": stride, "more_pads": (0, 0, 0, 0), "more_dilations": (1, 1)}
        attributes["more_levels_in"] = levels_in
        reach += np.abs(feeds["more_weights"].astype(np.int64)).sum((0, 1, 2)) * levels_in
    for key in ("counts", "more_counts", "residual"):
        if key in feeds:
            feeds[key] = feeds[key].astype(np.uint8)
    # Some beyond what float32 divides exactly, and some of 1.
    scale = float(rng.choice([0.05, 0.3, 1.0, 8.0]))
    threshold = np.maximum(reach * scale / (4 * levels) * rng.random(channels), 1)
    feeds["threshold"] = threshold.astype(np.int32)
    feeds["membrane"] = rng.integers(-(2**12), 2**12, channels).astype(np.int32)
    return name, feeds, attributes


def check(seeds: range, native: bool = True) -> int:
    """Compares random layers with the reference; how many there were."""
    for seed in seeds:
        rng = np.random.default_rng(seed)
        name, feeds, attributes = layer(rng)
        got = run(
            name, feeds, attributes, native=native, threads=1 + seed % 2, constant=seed % 5 > 0
        )
        correct = wanted(name, feeds, attributes)
        assert got.dtype == np.uint8 and got.shape == correct.shape, (seed, name, attributes)
        assert np.array_equal(got, correct), (
            seed,
            name,
            attributes,
            np.argwhere(got != correct)[:4],
        )
    return len(seeds)


def test_kernels_give_the_numbers_of_the_reference() -> None:
    assert check(range(40)) == 40


def test_bodies_give_the_numbers_of_the_reference() -> None:
    assert check(range(40, 60), native=False) == 20


def test_neurons_of_a_current_are_exact_where_the_quotient_rounds() -> None:
    """Potentials on both sides of every threshold, and what is no number."""
    rng = np.random.default_rng(1)
    threshold = np.array([1, 3, 49, 999, 65535], np.float32)
    membrane = rng.integers(-50, 50, 5).astype(np.float32)
    for levels in (1, 15, 255):
        whole = rng.integers(-1, levels + 3, (2, 5, 7, 40)) * threshold[:, None, None]
        near = np.nextafter(
            np.float32(whole), np.float32(np.inf) * rng.choice([-1, 1], whole.shape)
        )
        potential = np.where(rng.random(whole.shape) < 0.5, whole, near).astype(np.float32)
        current = (potential - membrane[:, None, None]).astype(np.float32)
        current[0, 0, 0, :3] = np.nan, np.inf, -np.inf
        feeds = {"current": current, "membrane": membrane, "threshold": threshold}
        held = (current + membrane[:, None, None]).astype(np.float64)  # exact from here on
        correct = np.clip(
            np.floor(np.nan_to_num(held, posinf=1e9) / threshold[:, None, None].astype(np.float64)),
            0,
            levels,
        )
        correct = correct.transpose(0, 2, 3, 1).astype(np.uint8)
        assert len(np.unique(correct)) == levels + 1
        for native in (True, False):
            feeds["levels"] = np.array(levels, np.int64)
            got = run("CountNeuron", feeds, {"top": 255}, native=native, constant=native)
            assert np.array_equal(got, correct), (levels, native)


def test_levels_of_real_thresholds_are_exact_where_the_quotient_rounds() -> None:
    rng = np.random.default_rng(2)
    threshold = rng.uniform(0.01, 3, (5, 1, 1)).astype(np.float32)
    membrane = np.zeros_like(threshold)
    for levels in (1, 15, 255, 1 << 20):
        # Products that float32 rounds, and their neighbours.
        near = (rng.integers(-1, levels + 2, (2, 5, 7, 40)) * threshold).astype(np.float32)
        current = np.nextafter(near, np.float32(np.inf) * rng.choice([-1, 1], near.shape))
        current = np.where(rng.random(near.shape) < 0.5, near, current).astype(np.float32)
        current[0, 0, 0, :3] = np.nan, np.inf, -np.inf
        wide = np.nan_to_num(current.astype(np.longdouble), posinf=1e30, neginf=-1e30)
        correct = np.clip(np.floor(wide / threshold.astype(np.longdouble)), 0, levels)
        feeds = {"current": current, "membrane": membrane, "threshold": threshold}
        feeds["levels"] = np.array(levels, np.int64)
        for native in (True, False):
            got = run("LevelNeuron", feeds, {}, native=native, constant=native, events=False)
            assert np.array_equal(got, correct.astype(np.float32)), (levels, native)


def test_inputs_are_rounded_to_their_grid() -> None:
    rng = np.random.default_rng(3)
    for channels, width in ((1, 5), (3, 70), (17, 33)):
        # Halves are rounded to the even number.
        values = (rng.integers(-300, 300, (2, channels, 4, width)) / 2).astype(np.float32)
        values[:, :, 1:3] += rng.normal(0, 1, values[:, :, 1:3].shape).astype(np.float32)
        values[0, 0, 0, :2] = np.inf, -np.inf
        feeds = {"values": values, "factor": rng.choice([1, 0.37], channels).astype(np.float32)}
        grid = np.rint(np.clip(values * feeds["factor"][:, None, None], -100, 127)) + 128
        correct = grid.transpose(0, 2, 3, 1).astype(np.uint8)
        attributes = {"lowest": -100, "highest": 127, "origin": 128}
        for native in (True, False):
            got = run("CountInput", feeds, attributes, native=native, constant=native)
            assert np.array_equal(got, correct), (channels, native)


def test_max_pooling_of_counts() -> None:
    for seed in range(12):
        rng = np.random.default_rng(seed)
        kernel = tuple(int(n) for n in rng.integers(1, 4, 2))
        pads = tuple(int(rng.integers(0, kernel[i % 2])) for i in range(4))
        window = {
            "kernel_shape": kernel,
            "strides": tuple(int(n) for n in rng.integers(1, 4, 2)),
            "pads": pads,
            "dilations": (1, 1),
        }
        shape = (2, *(int(n) for n in rng.integers(3, 30, 2)), int(rng.integers(1, 70)))
        counts = rng.integers(0, 256, shape).astype(np.uint8)
        planes = counts.transpose(0, 3, 1, 2).astype(np.float32)
        none = np.zeros_like(planes)
        correct, _ = reference.spike_max_pool(planes, none, 1, **window)
        for native in (True, False):
            got = run("CountMaxPool", {"counts": counts}, window, native=native)
            assert np.array_equal(got, correct.transpose(0, 2, 3, 1)), (seed, window)


def test_what_a_byte_or_32_bits_do_not_hold_is_refused() -> None:
    feeds: dict[str, Array] = {
        "counts": np.zeros((1, 1, 1, 70000), np.uint8),
        "weights": np.full((1, 1, 70000, 1), 127, np.int8),
        "membrane": np.zeros(1, np.int32),
        "threshold": np.ones(1, np.int32),
        "levels": np.array(4, np.int64),
    }
    attributes: dict[str, Any] = {"group": 1, "top": 5, "levels_in": 4, "origin": 0, **WINDOW}
    with pytest.raises(Exception, match="more than 32 bits"):
        run("CountConv", feeds, attributes, events=False)
    small = {key: value[..., :9, :] if value.ndim > 1 else value for key, value in feeds.items()}
    small["counts"] = feeds["counts"][..., :9]
    assert run("CountConv", small, attributes).tolist() == [[[[0]]]]
    with pytest.raises(Exception, match="`top` must be 1 to 255, not 256"):
        run("CountConv", small, {**attributes, "top": 256}, events=False)
    with pytest.raises(Exception, match="`levels` is 6, and by counts at most 5 are exact here"):
        run("CountConv", {**small, "levels": np.array(6, np.int64)}, attributes, events=False)
    with pytest.raises(Exception, match="`threshold` must be at least 1, not 0"):
        run("CountConv", {**small, "threshold": np.zeros(1, np.int32)}, attributes, events=False)
    more: dict[str, Array] = {
        **small,
        "residual": np.zeros((1, 1, 1, 1), np.uint8),
        "coefficient": np.array([40000], np.int32),
    }
    with pytest.raises(Exception, match="`coefficient` 40000 needs more than 16 bits"):
        run("CountConvAdd", more, attributes, events=False)


@pytest.mark.slow
@pytest.mark.parametrize("isa", library.ISAS)
def test_every_instruction_set_gives_the_numbers_of_the_reference(isa: str) -> None:
    """In a process of its own, since the library reads the limit once."""
    done = subprocess.run(
        [sys.executable, "-c", "import test_counts; print(test_counts.check(range(100, 600)))"],
        env={**os.environ, library.ISA_VARIABLE: isa},
        cwd=os.path.dirname(__file__),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["500"]


@pytest.mark.slow
def test_neon_gives_the_numbers_of_plain_loops(tmp_path: Path) -> None:
    """The kernels alone, for aarch64, with products of bytes and without."""
    compiler, emulator = "aarch64-linux-gnu-g++", "qemu-aarch64"
    for tool in (compiler, emulator):
        if not shutil.which(tool):
            pytest.skip(f"no {tool}")
    program, here = tmp_path / "count_driver", Path(__file__).parent
    units = [build.SOURCES / f"{name}.cc" for name in ("count_kernels", "cpu_isa")]
    command = [compiler, "-std=c++17", "-O1", "-ffp-contract=off", f"-I{build.SOURCES}", "-static"]
    subprocess.run([*command, here / "count_driver.cc", *units, "-o", program], check=True)
    done = subprocess.run([emulator, program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["120", "layers", "in", "2", "ways"]


@pytest.mark.slow
def test_threads_share_work_without_races(tmp_path: Path) -> None:
    """Under ThreadSanitizer."""
    if not (cxx := build.find_cxx()):
        pytest.skip("no C++ compiler")
    program, source = tmp_path / "crew_driver", Path(__file__).with_name("crew_driver.cc")
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", f"-I{build.SOURCES}", "-pthread"]
    subprocess.run([cxx, *flags, source, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "60 rounds\n"
