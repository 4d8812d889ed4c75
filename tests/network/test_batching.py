"""Outputs whose batch is not on the first axis: eval, trace, run and the search for α take each sample
for what it is.  Whatever is right comes from runs of one sample at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, compile_text, parse, random, run_model

import snncompiler
from snncompiler import pipeline
from snncompiler.analysis.trace import trace
from snncompiler.cli.main import app
from snncompiler.emission.compiled import read_compiled
from snncompiler.errors import Refused, UsageError
from snncompiler.network.batching import CONSTANT, RUN, Gathered, differing, squares
from snncompiler.runtime.session import create_session

SAMPLES, SIZE = 7, 6
IMAGES = random(0, SAMPLES, 3, SIZE, SIZE)
WEIGHTS = {
    "w": (random(1, 6, 3, 3, 3) / 3).astype(np.float32),
    "v": (random(2, 4, 6, 1, 1) / 2).astype(np.float32),
    "kernel": (random(3, 1, 20, 4) / 2).astype(np.float32),
    "again": (random(4, 1, 20, 5) / 4).astype(np.float32),
    "boxes": np.array([-1, 4]),
    "second": np.array([1]),
    "anchors": 10 * random(5, 9, 4),
    "bar": np.array(0.8, np.float32),
}
HEAD = "c = Conv <pads = [1, 1, 1, 1]> (x, w)  r = Relu (c)  d = Conv (r, v)\n"
ROWS = "t = Transpose <perm = [0, 2, 3, 1]> (d)  u = Reshape (t, boxes)\n"
#: What comes behind the head, and the names of the outputs.
TAILS: dict[str, tuple[str, list[str]]] = {
    # Every place has a box: [N·36, 4].
    "boxes": (ROWS + "y = Identity (u)", ["y"]),
    # One box of all places, and its sums: the batch is in neither.
    "mixed": (ROWS + "y = ReduceMean <axes = [0], keepdims = 0> (u)", ["y"]),
    "time-major": (
        "m = ReduceMean <axes = [3], keepdims = 0> (d)  y = Transpose <perm = [2, 0, 1]> (m)",
        ["y"],
    ),
    "lstm": (
        """m = ReduceMean <axes = [3], keepdims = 0> (d)  t = Transpose <perm = [2, 0, 1]> (m)
        q, hidden, cell = LSTM <hidden_size = 5> (t, kernel, again)  y = Squeeze (q, second)""",
        ["y", "hidden"],
    ),
    # Boxes of a detector, and its scores, and what it does not compute from the picture.
    "anchors": (
        ROWS + "y = Identity (u)  z = Identity (anchors)  s = GlobalMaxPool (d)",
        ["z", "y", "s"],
    ),
}


def network(tail: str, batch: str | int) -> onnx.ModelProto:
    text, names = TAILS[tail]
    outputs = ", ".join(f"float[?] {name}" for name in names)
    used = {name: array for name, array in WEIGHTS.items() if name in HEAD + text}
    model = parse(f"g (float[{batch},3,{SIZE},{SIZE}] x) => ({outputs}) {{ {HEAD} {text} }}", used)
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    return model


def alone(model: onnx.ModelProto, **more: Array) -> list[list[Array]]:
    """Every output of each sample, which runs alone, or with its neighbour where two must."""
    dim = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1
    starts = range(0, SAMPLES, dim)
    parts = [np.resize(np.arange(at, min(at + dim, SAMPLES)), dim) for at in starts]
    runs = [run_model(model, x=IMAGES[part], **more) for part in parts]
    return [list(values) for values in zip(*runs, strict=True)]


def relative(found: list[list[Array]], wanted: list[list[Array]]) -> float:
    error = sum(
        float(np.square(a.astype(np.float64) - b).sum())
        for f, w in zip(found, wanted, strict=True)
        for a, b in zip(f, w, strict=True)
    )
    norm = sum(float(np.square(b.astype(np.float64)).sum()) for w in wanted for b in w)
    return float(np.sqrt(error / norm))


@pytest.mark.parametrize("batch", ["N", 1])
@pytest.mark.parametrize("tail", TAILS)
def test_the_error_is_that_of_runs_of_one_sample(tail: str, batch: str | int) -> None:
    model = network(tail, batch)
    snn = compile_text(model, IMAGES, steps=8, chunk=None)
    (result,) = snncompiler.evaluate(model, snn, IMAGES).results
    wanted = relative(alone(snn), alone(model))
    assert wanted > 0.01
    # Kernels of other batch sizes round otherwise, and event kernels add in another order.
    assert result.relative_error == pytest.approx(wanted, rel=1e-4)
    assert result.agreement is None and result.accuracy is None
    assert [one.output for one in result.outputs] == TAILS[tail][1]
    assert not any(one.differ for one in result.outputs)


@pytest.mark.parametrize("diagnose", [False, True])
@pytest.mark.parametrize("tail", ["boxes", "time-major", "anchors"])
def test_two_samples_at_once_and_one_over(tail: str, diagnose: bool) -> None:
    """A source for two: seven samples are three runs and a half, whose repetition counts half."""
    model = network(tail, 2)
    snn = compile_text(model, IMAGES[:6], steps=8)
    single = network(tail, 1)
    wanted = snncompiler.evaluate(
        single, compile_text(single, IMAGES[:6], steps=8), IMAGES, diagnose=diagnose
    ).results[0]
    (result,) = snncompiler.evaluate(model, snn, IMAGES, diagnose=diagnose).results
    # The last sample twice is the last sample at half the weight.
    assert result.relative_error == pytest.approx(wanted.relative_error, rel=1e-4)
    assert result.agreement is None
    if diagnose:
        assert result.diagnosis is not None and wanted.diagnosis is not None
        mine, other = (found.diagnosis.quantised.relative_error for found in (result, wanted))  # type: ignore[union-attr]
        assert mine == pytest.approx(other, rel=1e-4)


def test_the_metadata_tells_where_the_batch_is() -> None:
    axes = {
        (tail, batch): read_compiled(compile_text(network(tail, batch), IMAGES)).output_axes
        for tail in TAILS
        for batch in ("N", 1)
    }
    for batch in ("N", 1):
        assert axes["boxes", batch] == axes["mixed", batch] == {"y": RUN}
        assert axes["time-major", batch] == {"y": 1}
        assert axes["anchors", batch] == {"z": CONSTANT, "y": RUN, "s": 0}
    # Three samples at once show the axis; a source for one sample does not.
    assert axes["lstm", "N"] == {"y": 1, "hidden": 1}
    assert axes["lstm", 1] == {"y": RUN, "hidden": RUN}


def test_an_ordinary_network_has_nothing_to_tell() -> None:
    model = parse("g (float[N,3] x) => (float[N,3] y) { y = Relu (x) }")
    compiled = read_compiled(compile_text(model, random(0, 4, 3)))
    assert compiled.metadata["snnc.output_axes"] == compiled.metadata["snnc.layer_axes"] == "{}"


@pytest.mark.parametrize("tail", TAILS)
def test_files_of_earlier_versions(tail: str) -> None:
    """They do not tell the axes: eval prepares the network again, run sees them in the shapes."""
    model = network(tail, "N")
    snn = compile_text(model, IMAGES, steps=8)
    wanted = snncompiler.evaluate(model, snn, IMAGES).results[0]
    kept = [entry for entry in snn.metadata_props if not entry.key.endswith("_axes")]
    del snn.metadata_props[:]
    snn.metadata_props.extend(kept)
    again = snncompiler.evaluate(model, snn, IMAGES).results[0]
    assert again.relative_error == wanted.relative_error
    axes = read_compiled(snn).output_axes
    assert axes["y"] == (RUN if tail in ("boxes", "mixed", "anchors") else 1)


# --- rows whose number depends on the data ---

SELECTED = (
    ROWS
    + """m = ReduceMax <axes = [1], keepdims = 0> (u)  g = Greater (m, bar)  at = NonZero (g)
    which = Transpose <perm = [1, 0]> (at)  y = GatherND (u, which)  s = GlobalMaxPool (d)"""
)


@pytest.mark.parametrize("batch", ["N", 1])
def test_rows_that_depend_on_the_data(batch: str | int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TAILS, "selected", (SELECTED, ["y", "s"]))
    model = network("selected", batch)
    snn = compile_text(model, IMAGES)
    found = snncompiler.evaluate(model, snn, IMAGES, steps=[2, 512])
    for result in found.results:
        steps = np.array(result.steps)
        mine, wanted = alone(snn, snnc_steps=steps), alone(model)
        differ = sum(a.shape != b.shape for a, b in zip(mine[0], wanted[0], strict=True))
        assert result.outputs[0].differ == differ
        assert (result.outputs[0].relative_error is None) == bool(differ)
        compared = slice(1, 2) if differ else slice(0, 2)
        assert result.relative_error == pytest.approx(
            relative(mine[compared], wanted[compared]), rel=1e-3
        )
    assert found.results[0].outputs[0].differ
    (finding,) = found.findings
    assert finding.code == "SNNC404" and "'y'" in finding.message and "T = 2" in finding.message


def test_nothing_can_be_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    monkeypatch.setitem(TAILS, "selected", (SELECTED.split("s = Glo")[0], ["y"]))
    model = network("selected", "N")
    paths = [tmp_path / name for name in ("m.onnx", "s.onnx", "d.npy")]
    onnx.save(model, paths[0])
    onnx.save(compile_text(onnx.load(paths[0]), IMAGES), paths[1])
    np.save(paths[2], IMAGES)
    args = ["eval", *map(str, paths[:2]), "--data", str(paths[2]), "--steps", "2"]
    assert app(args, standalone_mode=False) in (None, 0)
    assert "SNNC404" in capsys.readouterr().err
    app([*args, "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["results"][0]["relative_error"] is None


# --- class scores ---


def scores(text: str, outputs: str, weights: dict[str, Array] | None = None, **options: Any) -> Any:
    model = parse(f"g (float[N,2,3] x) => ({outputs}) {{ r = Relu (x) {text} }}", weights)
    x = random(0, 9, 2, 3)
    snn = compile_text(model, x, **options)
    return model, snn, x


def test_scores_beside_the_first_axis() -> None:
    """[classes, N]: the batch is known, so they are class scores."""
    text = "m = ReduceSum <keepdims = 0> (r, one)  n = Neg (m)  y = Transpose <perm = [1, 0]> (n)"
    model, snn, x = scores(text, "float[3,N] y", {"one": np.array([1])}, task="classification")
    found = snncompiler.evaluate(model, snn, {"x": x, "y": np.arange(9) % 3})
    (wanted,) = run_model(model, x=x)
    assert found.ann_predictions == tuple(wanted.argmax(axis=0))
    assert found.ann_accuracy == (wanted.argmax(axis=0) == np.arange(9) % 3).mean()
    assert found.results[0].agreement == 1.0


def test_coordinates_are_no_scores() -> None:
    text = "m = ReduceSum <keepdims = 0> (r, one)  y = Neg (m)"
    for task, agrees in (("regression", False), ("classification", True)):
        model, snn, x = scores(text, "float[N,3] y", {"one": np.array([1])}, task=task)
        (result,) = snncompiler.evaluate(model, snn, x).results
        assert (result.agreement is not None) == agrees
        # Labels say that they are.
        (labelled,) = snncompiler.evaluate(model, snn, {"x": x, "y": np.zeros(9, int)}).results
        assert labelled.accuracy is not None and labelled.agreement is not None


def test_the_scores_of_a_detector() -> None:
    """Of rows of two sizes only labels tell which are scores: two classes do not need five."""
    text = "y = ReduceSum <keepdims = 0> (r, one)  z = ReduceSum <keepdims = 0> (r, two)"
    weights = {"one": np.array([2]), "two": np.array([1])}
    model, snn, x = scores(text, "float[N,2] y, float[N,3] z", weights, task="classification")
    assert snncompiler.evaluate(model, snn, x).results[0].agreement is None
    found = snncompiler.evaluate(model, snn, {"x": x, "y": np.full(9, 2)})
    (_, wanted) = run_model(model, x=x)
    assert found.ann_predictions == tuple(wanted.argmax(axis=1))


# --- run, trace, α ---


@pytest.mark.parametrize("batch", ["N", 1])
@pytest.mark.parametrize("tail", TAILS)
def test_what_run_writes(tail: str, batch: str | int, tmp_path: Path) -> None:
    model, names = network(tail, batch), TAILS[tail][1]
    snn = compile_text(model, IMAGES, steps=8, chunk=None)
    onnx.save(snn, tmp_path / "s.onnx")
    np.save(tmp_path / "d.npy", IMAGES)
    args = ["run", str(tmp_path / "s.onnx"), "--input", str(tmp_path / "d.npy")]
    app([*args, "-o", str(tmp_path / "o.npz")], standalone_mode=False)
    axes = read_compiled(snn).output_axes
    with np.load(tmp_path / "o.npz") as archive:
        assert set(archive) == set(names)
        for name, wanted in zip(names, alone(snn), strict=True):
            axis = axes[name]
            if axis == CONSTANT:
                joined = wanted[0]
            else:
                joined = np.stack(wanted) if axis == RUN else np.concatenate(wanted, axis=int(axis))
            assert archive[name].shape == joined.shape
            np.testing.assert_allclose(archive[name], joined, rtol=1e-4, atol=1e-5)


def test_run_writes_one_array_for_each_sample_where_shapes_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TAILS, "selected", (SELECTED, ["y", "s"]))
    snn = compile_text(network("selected", 1), IMAGES, steps=8)
    onnx.save(snn, tmp_path / "s.onnx")
    np.save(tmp_path / "d.npy", IMAGES)
    args = ["run", str(tmp_path / "s.onnx"), "--input", str(tmp_path / "d.npy")]
    app([*args, "-o", str(tmp_path / "o.npz")], standalone_mode=False)
    wanted = alone(snn)
    assert len({one.shape for one in wanted[0]}) > 1
    with np.load(tmp_path / "o.npz") as archive:
        assert set(archive) == {"s", *(f"y/{at}" for at in range(SAMPLES))}
        for at, one in enumerate(wanted[0]):
            np.testing.assert_allclose(archive[f"y/{at}"], one, rtol=1e-4, atol=1e-5)
        assert archive["s"].shape == (SAMPLES, 4, 1, 1)


#: The spikes of r are [T, N, C] with T = 4, as many as samples run at once.
MOVED = """g (float[N,3,4] x) => (float[N,3,4] y)
{ h = Relu (x)  t = Transpose <perm = [2, 0, 1]> (h)  r = Relu (t)
  n = Neg (r)  b = Transpose <perm = [1, 2, 0]> (n)  s = Sub (x, b)  y = Relu (s) }"""


def test_layers_with_the_batch_elsewhere_and_sizes_that_coincide() -> None:
    model, x = parse(MOVED), random(0, 6, 3, 4)
    snn = compile_text(model, x, steps=16)
    assert read_compiled(snn).layer_axes == {"Relu_2": 1}
    found = trace(snn, x, samples=6, neurons=None, ann=model)
    second = found.layers[1]
    assert second.shape == (4, 3)
    wanted = np.maximum(x, 0).transpose(0, 2, 1).reshape(6, 12)
    assert second.activation is not None and np.array_equal(second.activation, wanted)
    silent = [layer.silent for layer in snncompiler.evaluate(model, snn, x[:4]).results[0].layers]
    counts = found.layers[1].spikes[:, :4].sum(axis=0)
    assert silent[1] == pytest.approx(1 - (counts > 0).any(axis=0).mean())


def test_a_layer_of_many_samples_cannot_be_traced() -> None:
    text = """g (float[{n},3,4] x) => (float[m] y) {{ h = Relu (x)  f = Reshape (h, flat)
      n = Neg (f)  y = Relu (n) }}"""
    flat = {"flat": np.array([-1])}
    x = random(0, 6, 3, 4)
    single = compile_text(parse(text.format(n=1), flat), x, steps=8)
    recorded = trace(single, x, samples=3, neurons=None)
    assert [layer.spikes.shape for layer in recorded.layers] == [(8, 3, 12)] * 2
    both = compile_text(parse(text.format(n=2), flat), x, steps=8)
    with pytest.raises(Refused, match="SNNC404"):
        trace(both, x, samples=3)
    assert len(trace(both, x, samples=3, layers=["Relu_0"]).layers) == 1


@pytest.mark.parametrize("tail", ["anchors", "mixed"])
def test_alpha_is_searched_by_the_error_of_all_rows(tail: str) -> None:
    options = pipeline.Options(steps=8, alpha="auto", task="regression", correction="none")
    chosen = []
    for batch in ("N", 1):
        made = pipeline.compile_model(network(tail, batch), options, random(7, 16, 3, SIZE, SIZE))
        (note,) = [one for one in made.prepared.findings if one.code == "SNNC308"]
        chosen.append((made.calibration.alpha, note.message))
    assert chosen[0] == chosen[1]


def test_alpha_is_searched_on_whole_runs() -> None:
    """Three rows are one softmax, told apart in the data or not: every fourth run is held out."""
    model = parse("g (float[3,4] x) => (float[3,4] y) { h = Softmax <axis = 0> (x)  y = Relu (h) }")
    options = pipeline.Options(steps=8, alpha="auto", task="regression", correction="none")
    x = random(1, 20, 3, 4) * np.linspace(0.1, 4, 20, dtype=np.float32)[:, None, None]
    found = []
    for data, samples in ((x, 5), (x.reshape(60, 4), 15)):
        made = pipeline.compile_model(model, options, data)
        (note,) = [one for one in made.prepared.findings if one.code == "SNNC308"]
        text, end = note.message.rsplit(" on ", 1)
        assert end == f"{samples} held-out samples"
        found.append((made.calibration.alpha, text, *made.calibration.thresholds.values()))
    assert found[0][:2] == found[1][:2] and np.array_equal(found[0][2], found[1][2])
    rest = np.delete(x, np.s_[::4], axis=0)
    shares = np.exp(rest) / np.exp(rest).sum(axis=1, keepdims=True)
    # Softmax rounds a few times.
    np.testing.assert_allclose(found[0][2], found[0][0] * shares.max(axis=(0, 1)), rtol=1e-5)
    with pytest.raises(UsageError, match="at least 4 calibration samples times the 3 of a run"):
        pipeline.compile_model(model, options, x.reshape(60, 4)[:9])


def test_gathered_by_hand() -> None:
    second = Gathered(1)
    second.add(np.arange(6).reshape(3, 2), 2, 2)
    second.add(np.arange(6, 12).reshape(3, 2), 1, 2)
    assert [part.tolist() for part in second.parts] == [[0, 2, 4], [1, 3, 5], [6, 8, 10]]
    assert second.weights == [1, 1, 1] and second.named("y")["y"].shape == (3, 3)
    whole = Gathered(RUN)
    whole.add(np.float32([1, 2]), 2, 2)
    whole.add(np.float32([3]), 1, 2)
    assert whole.weights == [1, 0.5] and not whole.even
    assert squares(whole, [np.float32([0, 0]), np.float32([1])]) == (5 + 0.5 * 4, 0.5)
    assert differing(whole.parts, [np.zeros(2), np.zeros(2)]) == 1
    same = Gathered(CONSTANT)
    for count in (2, 1):
        same.add(np.float32([7]), count, 2)
    assert same.weights == [3] and same.of(slice(0, 2), 1) == same.parts


def test_sessions_are_the_default_ones() -> None:
    """`alone` runs bodies; the default session says the same of boxes."""
    model = network("boxes", 1)
    snn = compile_text(model, IMAGES, steps=8)
    (mine,) = create_session(snn).run(None, {"x": IMAGES[:1]})
    np.testing.assert_allclose(mine, alone(snn)[0][0], rtol=1e-4, atol=1e-5)
