"""The event-driven operators: numpy reference = function body = native kernel.

Where every sum is exact (weights on a dyadic grid) they agree bit for bit, by events, by tables and
by dense arithmetic, for any number of threads; elsewhere within what the order of a sum may move.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from snncompiler.ir import dialect
from snncompiler.runtime import create_session, reference
from snncompiler.runtime.library import ISAS

Array = NDArray[Any]

pytestmark = pytest.mark.usefixtures("library")

TYPES = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
WINDOW = {"group": 1, "levels": 1, "strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)}


def one_node(name: str, constants: dict[str, Array], attributes: dict[str, Any]) -> onnx.ModelProto:
    operator = dialect.EVENT_OPERATORS[name]
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
        [
            helper.make_tensor_value_info(port.name, TYPES[port.type], None)
            for port in operator.outputs
        ],
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
    feeds: dict[str, Any],
    attributes: dict[str, Any],
    *,
    native: bool,
    threads: int = 1,
    constant: bool = True,
) -> list[Array]:
    arrays = {key: np.asarray(value) for key, value in feeds.items()}
    fixed: dict[str, Array] = {
        key: arrays[key] for key in ("weights", "more_weights") if key in arrays
    }
    if not constant or name == "EventSum":
        fixed = {}
    model = one_node(name, fixed, attributes)
    session = create_session(model, native=native, threads=threads)
    left = {key: value for key, value in arrays.items() if key not in fixed}
    result: list[Array] = session.run(None, left)
    return result


def wanted(name: str, feeds: dict[str, Any], attributes: dict[str, Any]) -> tuple[Array, Array]:
    convolved = []
    if name != "EventNeuron":
        window = {k: attributes[k] for k in ("group", "strides", "pads", "dilations")}
        convolved.append(reference.spike_convolution(feeds["spikes"], feeds["weights"], **window))
    if name == "EventConvAdd":
        convolved.append(feeds["residual"] * feeds["amplitude"])
    if name == "EventConvPair":
        window = {k: attributes[f"more_{k}"] for k in ("strides", "pads", "dilations")}
        convolved.append(
            reference.spike_convolution(feeds["more_spikes"], feeds["more_weights"], **window)
        )
    rest = ("threshold", "membrane", "schedule", "start", "steps")
    return reference.event_layer(
        feeds["current"], convolved, *(feeds[key] for key in rest), factors=feeds.get("drive")
    )


def dyadic(rng: np.random.Generator, shape: Any, least: int = -64, most: int = 64) -> Array:
    values: Array = (rng.integers(least, most + 1, shape) / 64).astype(np.float32)
    return values


def weights_of(rng: np.random.Generator, shape: Any, most: int) -> Array:
    """Whole numbers of up to so many, or multiples of 2^-6 where there are none."""
    return dyadic(rng, shape, -64 * most, 64 * most).round() if most else dyadic(rng, shape)


def spikes(rng: np.random.Generator, shape: Any, density: float, levels: int = 1) -> Array:
    """Random spikes; one sample of them is silent, because a tile may have none."""
    made: Array = (rng.random(shape) < density) * rng.integers(1, levels + 1, shape)
    made[:1] = 0
    return made.astype(np.uint8, copy=False)


@st.composite
def layers(draw: st.DrawFn) -> tuple[str, dict[str, Any], dict[str, Any]]:
    name = draw(st.sampled_from(["EventConv", "EventConvAdd", "EventConvPair"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps, samples = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    density = draw(st.sampled_from([0.02, 0.1, 0.3, 0.9, 1.0]))
    group = 1 if name == "EventConvPair" else draw(st.sampled_from([1, 1, 1, 2, 3, 20]))
    each = draw(st.sampled_from([1, 3, 16, 20, 64] if group == 1 else [1, 2, 16]))
    share = draw(st.sampled_from([1, 5, 16, 33, 48, 80, 144] if group == 1 else [1, 3, 16]))
    levels = draw(st.sampled_from([1, 1, 4]))
    # Whole weights of up to so many beside whole numbers or not, or none: all sums are exact.
    most, rest = draw(st.sampled_from([(0, 0), (127, 0), (127, 127), (2000, 2000)]))

    def numbers(shape: Any, least: int = -64, greatest: int = 64) -> Array:
        made = dyadic(rng, shape, least, greatest)
        return (rest * made).round() if rest else made

    size = [draw(st.integers(1, 9)) for _ in range(2)]
    kernel = [draw(st.integers(1, 4)) for _ in range(2)]
    attributes: dict[str, Any] = {
        "group": group,
        "levels": levels,
        "strides": [draw(st.integers(1, 3)) for _ in range(2)],
        "dilations": [draw(st.sampled_from([1, 1, 2, 3])) for _ in range(2)],
    }
    attributes["pads"] = [draw(st.integers(0, 2)) for _ in range(4)]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, attributes["dilations"], strict=True)]
    for axis in range(2):  # the window fits at least once
        missing = reach[axis] - size[axis] - attributes["pads"][axis] - attributes["pads"][axis + 2]
        attributes["pads"][axis] += max(0, missing)
    channels = share * group
    feeds: dict[str, Any] = {
        "spikes": spikes(rng, (steps * samples, *size, each * group), density, levels),
        "weights": weights_of(rng, (*kernel, each, channels), most),
    }
    window = {k: attributes[k] for k in ("group", "strides", "pads", "dilations")}
    out = reference.spike_convolution(feeds["spikes"], feeds["weights"], **window).shape
    if name == "EventConvAdd":
        feeds["residual"] = spikes(rng, out, density)
        feeds["amplitude"] = numbers(channels)
    if name == "EventConvPair":
        # A 1x1 convolution that reads every second or every pixel.
        apart = draw(st.sampled_from([1, 2]))
        inner = draw(st.sampled_from([1, 16, 24]))
        seen = [(extent - 1) * apart + 1 for extent in out[1:3]]
        feeds["more_spikes"] = spikes(rng, (steps * samples, *seen, inner), density)
        feeds["more_weights"] = weights_of(rng, (1, 1, inner, channels), most)
        attributes["more_strides"] = [apart, apart]
        attributes["more_pads"], attributes["more_dilations"] = [0] * 4, [1, 1]
    full = (samples, *out[1:])
    feeds["current"] = numbers(draw(st.sampled_from([(channels,), full])))
    feeds["threshold"] = numbers(channels, 16, 128)
    feeds["membrane"] = numbers(draw(st.sampled_from([(channels,), full])))
    rows = draw(st.integers(1, 4))
    feeds["schedule"] = numbers((rows, channels)) * draw(st.sampled_from([0, 1]))
    feeds["start"], feeds["steps"] = draw(st.integers(0, 5)), steps
    return name, feeds, attributes


def test_layers_have_the_same_bits() -> None:
    """Strides, padding, dilation, groups, depthwise, counts, residuals, static currents."""
    cases = 0

    @given(layers(), st.sampled_from([1, 2, 3]), st.booleans())
    def check(layer: Any, threads: int, constant: bool) -> None:
        nonlocal cases
        name, feeds, attributes = layer
        expected = wanted(name, feeds, attributes)
        native = run(name, feeds, attributes, native=True, threads=threads, constant=constant)
        body = run(name, feeds, attributes, native=False)
        for got in (native, body):
            for one, other in zip(got, expected, strict=True):
                assert one.dtype == other.dtype
                np.testing.assert_array_equal(one, other)
        cases += 1

    check()
    assert cases >= 10


@lru_cache(maxsize=1)
def wide_case() -> tuple[dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(5)
    steps, samples, size, channels = 16, 2, 14, 128
    feeds: dict[str, Any] = {
        "weights": rng.normal(0, 0.2, (3, 3, channels, channels)).astype(np.float32),
        "current": rng.normal(0, 0.2, channels).astype(np.float32),
        "threshold": rng.uniform(0.5, 2, channels).astype(np.float32),
        "membrane": np.zeros(channels, np.float32),
        "schedule": np.zeros((1, channels), np.float32),
        "start": 0,
        "steps": steps,
    }
    feeds["spikes"] = spikes(rng, (steps * samples, size, size, channels), 0.1)
    return feeds, {**WINDOW, "pads": (1, 1, 1, 1)}


def test_any_number_of_threads_gives_the_same_bits() -> None:
    feeds, attributes = wide_case()
    alone = run("EventConv", feeds, attributes, native=True)
    for threads in (2, 3, 5):
        for one, other in zip(
            run("EventConv", feeds, attributes, native=True, threads=threads), alone, strict=True
        ):
            assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("inputs", [65_000, 140_000])
def test_sums_of_very_many_spikes(inputs: int) -> None:
    """All fire, all weights are the largest: sums of their 8-bit digits need 31 bits, or more."""
    feeds: dict[str, Any] = {
        "spikes": np.ones((1, 1, 1, inputs), np.uint8),
        "weights": np.full((1, 1, inputs, 2), 0.75, np.float32),
        "current": np.zeros(2, np.float32),
        "threshold": np.array([0.75, 0.75], np.float32) * (inputs - 1),
        "membrane": np.zeros(2, np.float32),
        "schedule": np.zeros((1, 2), np.float32),
        "start": 0,
        "steps": 1,
    }
    out, membrane = run("EventConv", feeds, {**WINDOW, "pads": (0, 0, 0, 0)}, native=True)
    np.testing.assert_array_equal(out.ravel(), [1, 1])
    np.testing.assert_array_equal(membrane.ravel(), [0.75, 0.75])


def test_steps_one_by_one_give_the_same_bits() -> None:
    """However a window is cut into chunks."""
    feeds, attributes = wide_case()
    steps = int(feeds["steps"])
    together = run("EventConv", feeds, attributes, native=True)
    given = feeds["spikes"].reshape(steps, -1, *feeds["spikes"].shape[1:])
    membrane, fired = feeds["membrane"], []
    for step in range(steps):
        one = {**feeds, "spikes": given[step], "membrane": membrane, "steps": 1, "start": step}
        out, membrane = run("EventConv", one, attributes, native=True)
        fired.append(out)
    assert np.concatenate(fired).tobytes() == together[0].tobytes()
    assert membrane.tobytes() == together[1].tobytes()


@lru_cache(maxsize=1)
def whole_case() -> tuple[dict[str, Any], dict[str, Any]]:
    """The same in whole numbers, sparse and dense samples together, with charges and a residual."""
    rng = np.random.default_rng(6)
    feeds, attributes = wide_case()
    steps, channels = int(feeds["steps"]), feeds["threshold"].size
    sparse = feeds["spikes"].copy()
    sparse[::2] = rng.random(sparse[::2].shape) < 0.6
    whole = {
        "spikes": sparse,
        "weights": rng.integers(-127, 128, feeds["weights"].shape),
        "residual": spikes(rng, sparse.shape, 0.2),
        "amplitude": rng.integers(-300, 301, channels),
        "current": rng.integers(-100, 101, channels),
        "threshold": rng.integers(200, 900, channels) | 1,
        "membrane": rng.integers(0, 300, channels),
        "schedule": rng.integers(-50, 51, (5, channels)),
    }
    arrays = {k: v if v.dtype == np.uint8 else v.astype(np.float32) for k, v in whole.items()}
    return {**arrays, "start": 0, "steps": steps}, attributes


def test_whole_numbers_have_the_bits_of_the_body_in_any_cut() -> None:
    """Wide enough that blocks are added by events here and multiplied there: threads, chunks, forms."""
    feeds, attributes = whole_case()
    body = run("EventConvAdd", feeds, attributes, native=False)
    assert 0.05 < body[0].mean() < 0.95
    for threads in (1, 2, 3):
        native = run("EventConvAdd", feeds, attributes, native=True, threads=threads)
        assert [out.tobytes() for out in native] == [out.tobytes() for out in body]
    steps = int(feeds["steps"])
    split = {k: feeds[k].reshape(steps, -1, *feeds[k].shape[1:]) for k in ("spikes", "residual")}
    membrane, fired, first = feeds["membrane"], [], 0
    for count in (1, 2, 13):
        part = {k: v[first : first + count].reshape(-1, *v.shape[2:]) for k, v in split.items()}
        cut = {**feeds, **part, "membrane": membrane, "steps": count, "start": first}
        out, membrane = run("EventConvAdd", cut, attributes, native=True)
        fired.append(out)
        first += count
    assert np.concatenate(fired).tobytes() == body[0].tobytes()
    assert membrane.tobytes() == body[1].tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_whole_numbers_have_the_same_bits_on_every_instruction_set(isa: str) -> None:
    """In a process of its own, which reads the limit once."""
    code = (
        "import hashlib, sys; sys.path[:0] = sys.argv[1:]\n"
        "import test_events as t\n"
        "feeds, attributes = t.whole_case()\n"
        "for native in (True, False):\n"
        "    out = t.run('EventConvAdd', feeds, attributes, native=native)\n"
        "    print(*(hashlib.sha256(one.tobytes()).hexdigest() for one in out))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        env={**os.environ, "SNNC_MAX_ISA": isa},
        capture_output=True,
        text=True,
        check=True,
    )
    native, body = done.stdout.splitlines()
    assert native == body


def test_events_and_dense_arithmetic_give_the_same_bits() -> None:
    """A sample among busy ones is computed densely or by events; its result is the same."""
    feeds, attributes = wide_case()
    steps, sample = int(feeds["steps"]), slice(0, 1)
    busy = feeds["spikes"].reshape(steps, 2, *feeds["spikes"].shape[1:]).copy()
    # Rows of one picture that are nearly all spikes: its tiles are dense, the others are not.
    busy[:, 1] = np.random.default_rng(1).random(busy[:, 1].shape) < 0.95
    both = run(
        "EventConv",
        {**feeds, "spikes": busy.reshape(feeds["spikes"].shape)},
        attributes,
        native=True,
    )
    quiet = run(
        "EventConv",
        {**feeds, "spikes": np.ascontiguousarray(busy[:, sample]).reshape(steps, *busy.shape[2:])},
        attributes,
        native=True,
    )
    assert both[1][sample].tobytes() == quiet[1].tobytes()
    body = run(
        "EventConv",
        {**feeds, "spikes": busy.reshape(feeds["spikes"].shape)},
        attributes,
        native=False,
    )
    # Sums of 1152 weights of about 0.2: where a current comes near θ, a spike may move.
    assert np.mean(body[0] != both[0]) < 1e-4
    same = np.all((body[0] == both[0]).reshape(steps, 2, *body[0].shape[1:]), axis=0)
    assert np.max(np.abs(body[1] - both[1])[same]) < 1e-3


@pytest.mark.parametrize("drive", [[1.0], [1.5, 1.25, 1.0], [0.5]])
def test_static_current_and_sum(drive: list[float]) -> None:
    rng = np.random.default_rng(3)
    steps, samples, channels = 7, 3, 21
    feeds = {
        "current": dyadic(rng, (samples, 4, 5, channels)),
        "drive": np.array(drive, np.float32),
        "threshold": dyadic(rng, channels, 16, 128),
        "membrane": dyadic(rng, channels),
        "schedule": dyadic(rng, (3, channels)),
        "start": 1,
        "steps": steps,
    }
    expected = wanted("EventNeuron", feeds, {})
    totals: dict[str, Any] = {
        "spikes": expected[0],
        "weights": np.arange(1, steps + 1, dtype=np.float32),
        "total": np.float32(0),
        "steps": steps,
    }
    mean = reference.weighted_time_sum(
        expected[0].astype(np.float32), totals["weights"], totals["total"], steps
    )
    for native in (True, False):
        got = run("EventNeuron", feeds, {}, native=native)
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(run("EventSum", totals, {}, native=native)[0], mean)


def test_tables_hold_their_last_row_however_late_it_is() -> None:
    feeds = {
        "current": np.ones((1, 1, 1, 3), np.float32),
        "drive": np.array([7, 2], np.float32),
        "threshold": np.full(3, 1000, np.float32),
        "membrane": np.zeros(3, np.float32),
        "schedule": np.array([[5] * 3, [1, 2, 3]], np.float32),
        "start": 2**63 - 1,
        "steps": 40,
    }
    spikes, membrane = run("EventNeuron", feeds, {}, native=True)
    assert not spikes.any() and np.array_equal(membrane.ravel(), [120, 160, 200])


POOLS = ((2, 1, 0), (3, 2, 1), (3, 1, 1), (2, 2, 0))


@pytest.mark.parametrize(("kernel", "stride", "pad"), POOLS)
@pytest.mark.parametrize("channels", [3, 16, 40])
def test_pooling(kernel: int, stride: int, pad: int, channels: int) -> None:
    rng = np.random.default_rng(kernel + channels)
    steps, samples = 5, 2
    window: dict[str, Any] = {
        "kernel_shape": [kernel] * 2,
        "strides": [stride] * 2,
        "pads": [pad] * 4,
        "dilations": [1, 1],
    }
    x = spikes(rng, (steps * samples, 7, 9, channels), 0.3)
    ones = np.ones((kernel, kernel, 1, channels), np.float32)
    sums = reference.spike_convolution(
        x, ones, group=channels, strides=[stride] * 2, pads=[pad] * 4
    )
    counts = rng.integers(0, 3, (samples, 7, 9, channels)).astype(np.float32)
    planes = x.astype(np.float32).transpose(0, 3, 1, 2)
    pooled, after = reference.spike_max_pool(planes, counts.transpose(0, 3, 1, 2), steps, **window)
    feeds = {"spikes": x, "counts": counts, "steps": steps}
    for native in (True, False):
        got = run("EventSumPool", {"spikes": x}, window, native=native)[0]
        np.testing.assert_array_equal(got, sums)
        assert got.dtype == np.uint8
        got, counted = run("EventMaxPool", feeds, window, native=native, threads=2)
        np.testing.assert_array_equal(got, pooled.transpose(0, 2, 3, 1))
        np.testing.assert_array_equal(counted, after.transpose(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": np.ones(3, np.float32)}, "`threshold`"),
        ({"membrane": np.ones((1, 2, 2, 5), np.float32)}, "`membrane`"),
        ({"spikes": np.zeros((4, 3, 3, 7), np.uint8)}, "`spikes`"),
        ({"spikes": np.zeros((4, 3, 3), np.uint8)}, "`spikes`"),
        ({"spikes": np.zeros((3, 3, 3, 2), np.uint8)}, "divide"),
        ({"schedule": np.zeros((0, 5), np.float32)}, "`schedule`"),
        ({"steps": 0}, "`steps`"),
        ({"weights": np.zeros((17, 1, 2, 5), np.float32)}, "`weights`"),
    ],
)
def test_wrong_shapes_are_named(change: dict[str, Any], message: str) -> None:
    feeds: dict[str, Any] = {
        "spikes": np.zeros((4, 3, 3, 2), np.uint8),
        "weights": np.zeros((2, 2, 2, 5), np.float32),
        "current": np.zeros(5, np.float32),
        "threshold": np.ones(5, np.float32),
        "membrane": np.zeros(5, np.float32),
        "schedule": np.zeros((1, 5), np.float32),
        "start": 0,
        "steps": 2,
    }
    with pytest.raises(Exception, match=message):
        run("EventConv", {**feeds, **change}, WINDOW, native=True, constant=False)
