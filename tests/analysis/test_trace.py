"""snnc trace: what single neurons did, step by step, and its plots."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from commands import RESNET, SCALED, TEST, TRAIN, errors, good, listing, snnc
from helpers import Array, compile_text, parse, random, run_model

from snncompiler.analysis import trace as trace_module
from snncompiler.analysis.instrument import Watched
from snncompiler.analysis.trace import Trace, trace
from snncompiler.analysis.walk import Walk
from snncompiler.emission.compiled import read_compiled
from snncompiler.errors import Refused, UsageError

CONV = """g (float[N,2,5,5] x) => (float[N,3] y)
{
  c = Conv <pads = [1, 1, 1, 1]> (x, a)  r = Relu (c)
  d = Conv (r, b)  q = Relu (d)
  m = ReduceMean <axes = [2, 3], keepdims = 0> (q)  y = Gemm (m, o)
}"""
INPUT = random(4, 6, 2, 5, 5)

#: plain, with a schedule, and neurons that send more than 0 and 1.
NEURONS: list[dict[str, Any]] = [
    {"correction": "none"},
    {"correction": "schedule", "readout": "ramp"},
    {"neuron": "burst:4"},
    {"neuron": "signed:2", "unroll": "loop"},
    {"reset": "hard"},
]


def network() -> onnx.ModelProto:
    weights = {
        "a": random(1, 4, 2, 3, 3) / 3,
        "b": random(2, 5, 4, 3, 3) / 4,
        "o": random(3, 5, 3),
    }
    return parse(CONV, weights)


def compiled_network(**options: Any) -> onnx.ModelProto:
    return compile_text(network(), INPUT, **options)


@pytest.fixture(scope="module")
def snn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("trace") / "resnet.snn.onnx"
    good("compile", RESNET, "-o", target, "--calibration", TRAIN, *SCALED, "--samples", 64)
    return target


def has_matplotlib() -> bool:
    try:
        import matplotlib
    except ImportError:
        return False
    return bool(matplotlib.__version__)


needs_matplotlib = pytest.mark.skipif(not has_matplotlib(), reason="matplotlib is not installed")


# --- what is recorded ---


@pytest.mark.parametrize("options", NEURONS, ids=str)
def test_every_step_of_every_neuron(options: dict[str, Any]) -> None:
    model = compiled_network(**options)
    found = trace(model, INPUT, samples=6, steps=9, neurons=None)
    walk = Walk(read_compiled(model))
    ((_, values),) = walk.run({"x": INPUT}, [9])
    assert [layer.layer for layer in found.layers] == [layer.name for layer in walk.layers]
    for recorded, layer in zip(found.layers, walk.layers, strict=True):
        count, end = (
            values[Watched.output(layer, what)].reshape(6, -1) for what in ("count", "membrane_end")
        )
        size = count.shape[1]
        assert recorded.spikes.shape == recorded.membrane.shape == (9, 6, size)
        assert np.array_equal(recorded.neuron, np.arange(size))
        # Samples run in batches of 4 and 2 here, and at once above; no spike depends on that.
        assert np.array_equal(recorded.spikes.sum(axis=0, dtype=np.int64), count)
        assert np.abs(recorded.membrane[-1] - end).max() < 1e-5
        low = -layer.levels if layer.signed else 0
        assert recorded.spikes.min() >= low and recorded.spikes.max() <= layer.levels
        assert recorded.spikes.dtype == (np.int8 if layer.signed else np.uint8)
        assert np.array_equal(recorded.rate, (count / 9).astype(np.float32))
        assert recorded.activation is None
    # Under a constant current there is nothing to take back.
    assert not walk.layers[0].signed or found.layers[1].spikes.min() < 0


def test_a_membrane_moves_by_what_comes_in_and_goes_out() -> None:
    """The first layer gets the same current at every step: v_t - v_{t-1} + θ·s_t."""
    found = trace(compiled_network(correction="none"), INPUT, samples=6, steps=12, neurons=None)
    first = found.layers[0]
    current = np.diff(first.membrane.astype(np.float64), axis=0)
    current += first.spikes[1:] * first.threshold.astype(np.float64)
    # Two roundings a step, of numbers of some 10.
    assert np.abs(current - current[:1]).max() < 1e-5 and np.abs(current).max() > 0.1


def test_rates_approach_the_activations() -> None:
    model = compiled_network(correction="none", threshold="max")
    found = trace(model, INPUT, samples=6, steps=256, neurons=None, ann=network())
    (ann,) = run_model(network(), x=INPUT)
    assert ann.shape == (6, 3)
    for layer in found.layers:
        assert layer.activation is not None and layer.activation.shape == layer.rate.shape
        assert (layer.activation >= 0).all() and layer.activation.max() > 0.5
        # Half a level in the first layer; the second takes on what the first is off.
        assert np.abs(layer.decoded - layer.activation).max() < 8 * layer.threshold.max() / 256


def test_neurons_are_drawn_by_seed() -> None:
    model = compiled_network()
    whole = trace(model, INPUT, samples=2, steps=5, neurons=None)
    few, again, other = (
        trace(model, INPUT, samples=2, steps=5, neurons=7, seed=seed) for seed in (1, 1, 2)
    )
    for index, layer in enumerate(few.layers):
        assert len(layer.neuron) == 7 and np.array_equal(layer.neuron, again.layers[index].neuron)
        all_of_it = whole.layers[index]
        assert np.array_equal(layer.spikes, all_of_it.spikes[:, :, layer.neuron])
        assert np.array_equal(layer.membrane, all_of_it.membrane[:, :, layer.neuron])
        assert np.array_equal(layer.threshold, all_of_it.threshold[layer.neuron])
    pairs = zip(few.layers, other.layers, strict=True)
    assert any(not np.array_equal(a.neuron, b.neuron) for a, b in pairs)
    assert not np.array_equal(few.layers[0].neuron, few.layers[1].neuron)


def test_layers_samples_and_odd_shapes() -> None:
    model = compiled_network()
    names = [layer.layer for layer in trace(model, INPUT, samples=1, steps=1).layers]
    found = trace(model, INPUT, samples=100, steps=2, layers=[names[1], names[1]])
    assert [layer.layer for layer in found.layers] == names[1:] and found.samples == 6
    assert found.layers[0].shape == (5, 3, 3)
    flat = parse("g (float[N,3] x) => (float[N,3] y) { h = Relu (x)  n = Neg (h)  y = Relu (n) }")
    x = random(0, 4, 3)
    square = trace(compile_text(flat, x), x[:3], samples=3, steps=4, neurons=None, ann=flat)
    assert square.layers[0].spikes.shape == (4, 3, 3)
    assert square.layers[0].activation is not None
    assert np.array_equal(square.layers[0].activation, np.maximum(x[:3], 0))
    elsewhere = parse(
        """g (float[N,2,3] x) => (float[N,2,3] y)
        { h = Relu (x)  t = Transpose <perm = [1, 0, 2]> (h)  r = Relu (t)
          n = Neg (r)  b = Transpose <perm = [1, 0, 2]> (n)  s = Sub (x, b)  y = Relu (s) }"""
    )
    x = random(0, 3, 2, 3)
    moved = trace(compile_text(elsewhere, x), x, samples=3, steps=64, neurons=None, ann=elsewhere)
    assert [layer.shape for layer in moved.layers] == [(2, 3)] * 3
    for layer in moved.layers[:2]:
        assert layer.activation is not None
        assert np.array_equal(layer.activation, np.maximum(x, 0).reshape(3, 6))


# --- the command ---


def test_the_command_writes_what_it_says(snn: Path, tmp_path: Path) -> None:
    target = tmp_path / "t.npz"
    args = ("trace", snn, "--data", TEST, *SCALED, "-T", 8, "--samples", 3, "--neurons", 10)
    ran = good(*args, "-o", target, "--ann", RESNET, "--json")
    content = ran.json()
    assert (content["output"], content["plot"], content["steps"]) == (str(target), None, 8)
    assert [entry["neurons"] for entry in content["layers"]] == [10] * 5
    assert content["bytes"] == target.stat().st_size
    with np.load(target, allow_pickle=False) as archive:
        assert list(archive["layers"]) == [entry["layer"] for entry in content["layers"]]
        assert (int(archive["steps"]), str(archive["source"])) == (8, "digits-resnet.onnx")
        for index in range(5):
            assert archive[f"spikes_{index}"].shape == (8, 3, 10)
            assert archive[f"membrane_{index}"].dtype == np.float32
            for what in ("rate", "activation"):
                assert archive[f"{what}_{index}"].shape == (3, 10)
            for what in ("threshold", "neuron"):
                assert archive[f"{what}_{index}"].shape == (10,)
    assert list(listing(tmp_path)) == ["t.npz"]
    plain = good(*args, "-o", target)
    assert "5 layers, 3 samples, T = 8" in plain.out
    again = target.read_bytes()
    good(*args, "-o", target)
    with np.load(target) as archive:
        assert "activation_0" not in archive
    assert target.read_bytes() == again


@needs_matplotlib
@pytest.mark.parametrize(
    ("kind", "start"),
    [
        ("svg", b"<?xml"),
        pytest.param("png", b"\x89PNG", marks=pytest.mark.slow),
        pytest.param("pdf", b"%PDF", marks=pytest.mark.slow),
    ],
)
def test_plots(kind: str, start: bytes, snn: Path, tmp_path: Path) -> None:
    args = ("trace", snn, "--data", TEST, *SCALED, "-T", 8, "-o", tmp_path / "t.npz")
    for more in ((), ("--ann", RESNET)):
        plot = tmp_path / f"t.{kind}"
        ran = good(*args, *more, "--plot", plot, "--json")
        assert ran.json()["plot"] == str(plot)
        assert plot.read_bytes().startswith(start) and plot.stat().st_size > 5000
    assert sorted(listing(tmp_path)) == ["t.npz", f"t.{kind}"]


@needs_matplotlib
def test_a_plot_of_names_that_look_like_mathematics(tmp_path: Path) -> None:
    found = trace(compiled_network(neuron="signed:2"), INPUT, steps=8, ann=network())
    from dataclasses import replace

    from snncompiler.cli.plots import plot_trace

    odd = tuple(replace(layer, layer="$\\frac{1\n" + layer.layer) for layer in found.layers)
    plot_trace(replace(found, layers=odd), tmp_path / "t.png")
    assert (tmp_path / "t.png").stat().st_size > 5000


def test_without_matplotlib_nothing_is_written(
    snn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    args = ("trace", snn, "--data", TEST, *SCALED, "-T", 2, "-o", tmp_path / "t.npz")
    ran = snnc(*args, "--plot", tmp_path / "t.png")
    (message,) = errors(ran)
    assert ran.code == 3 and 'pip install "snnc[plot]"' in message and "SNNC503" in message
    assert not listing(tmp_path)
    assert good(*args).code == 0


# --- what is refused ---


def test_what_cannot_be_traced(snn: Path, tmp_path: Path) -> None:
    args = ("trace", snn, "--data", TEST, *SCALED, "-o", tmp_path / "t.npz")
    cases: list[tuple[tuple[object, ...], str]] = [
        (("--layers", "no such"), "there is no layer 'no such'"),
        (("--samples", 0), "--samples 0 is out of range"),
        (("--neurons", -1), "--neurons -1 is out of range"),
        (("-T", 0), "-T 0 is out of range"),
        (("--seed", -1), "--seed -1 is out of range"),
        (("--plot", tmp_path / "t.txt"), "of no kind that can be plotted"),
        (("--plot", tmp_path / "none" / "t.png"), "does not exist"),
        (("-o", snn), "is the input, which is never overwritten"),
        (("--ann", TEST), "is a zip archive"),
    ]
    for more, message in cases:
        ran = snnc(*args, *more)
        assert ran.code in (1, 2) and any(message in text for text in errors(ran)), (more, ran.err)
    assert len(cases) == 9 and not listing(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unroll": "steps", "steps": 4}, "baked in"),
        ({"emit": "cuda-graph", "batch": 2, "steps": 4}, "baked in"),
        ({"emit": "step"}, "one time-step"),
    ],
)
def test_files_that_cannot_be_stepped_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        trace(compiled_network(**options), INPUT, ann=network())


def test_another_ann_and_too_much_to_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = compiled_network()
    other = parse("g (float[N,2,5,5] x) => (float[N,2,5,5] y) { y = Relu (x) }")
    with pytest.raises(Refused, match="SNNC402"):
        trace(model, INPUT, ann=other)
    monkeypatch.setattr(trace_module, "MAX_BYTES", 1000)
    with pytest.raises(UsageError, match="the limit is 1,000"):
        trace(model, INPUT, steps=50)
    few: Trace = trace(model, INPUT, steps=2, neurons=2, samples=1)
    arrays: dict[str, Array] = few.arrays()
    assert set(arrays) >= {"layers", "spikes_0", "spikes_1", "steps", "seed"}
