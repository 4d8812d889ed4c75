"""Statistics of more data than fits: n parts give the file of one, and what does not fit is refused."""

from __future__ import annotations

import random as orders
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, parse, random
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import snncompiler
from snncompiler.analysis.evaluate import evaluate_part
from snncompiler.analysis.parts import ALL, Part, Shard, merge
from snncompiler.calibration.histogram import Histogram
from snncompiler.cli.main import app
from snncompiler.emission.compiled import read_compiled
from snncompiler.errors import Refused, UsageError
from snncompiler.ir.settings import Options
from snncompiler.network.data import Preprocess
from snncompiler.pipeline import observed

NETWORK = """g (float[N,1,6,6] x) => (float[N,3] y)
{ c = Conv <pads = [1, 1, 1, 1]> (x, a)  h = Relu (c)  f = Flatten (h)
  d = MatMul (f, b)  r = Relu (d)  y = MatMul (r, o) }"""
X = random(4, 150, 1, 6, 6) * np.linspace(0.1, 3, 150, dtype=np.float32).reshape(-1, 1, 1, 1)
WAYS: dict[str, dict[str, Any]] = {
    "streaming": {"steps": 8},
    "whole numbers": {"steps": 8, "weights": "int8"},
    "layered": {"timing": "layered", "steps": 4},
}


@lru_cache
def network(seed: int = 0) -> onnx.ModelProto:
    weights = {"a": (2, 1, 3, 3), "b": (72, 5), "o": (5, 3)}
    return parse(NETWORK, {n: random(seed + i, *s) for i, (n, s) in enumerate(weights.items())})


def parts(
    folder: Path, count: int, *, model: Any = None, data: Any = X, **options: Any
) -> list[str]:
    how = options.pop("preprocess", None)
    paths = []
    for index in range(1, count + 1):
        path = folder / f"{count}-{index}.json"
        chosen = Options(**{"steps": 8, **options})
        observed(model or network(), chosen, data, Shard(index, count), how).save(path)
        paths.append(str(path))
    return paths


def compiled(statistics: list[str], **options: Any) -> bytes:
    given = {"steps": 8, "calibration": X[:32], **options}
    model = snncompiler.compile(network(), statistics=statistics, **given)
    return bytes(model.SerializeToString(deterministic=True))


@pytest.mark.parametrize(
    "way", ["streaming", *(pytest.param(way, marks=pytest.mark.slow) for way in list(WAYS)[1:])]
)
def test_any_number_of_parts_in_any_order_gives_the_same_file(tmp_path: Path, way: str) -> None:
    options = WAYS[way]
    (whole,) = parts(tmp_path, 1, **options)
    wanted = compiled([whole], **options)
    for count in (2, 3, 7) if way == "streaming" else (3,):
        paths = parts(tmp_path, count, **options)
        orders.Random(count).shuffle(paths)
        assert compiled(paths, **options) == wanted


def test_thresholds_are_those_of_all_samples(tmp_path: Path) -> None:
    """And a few samples of the data alone give others."""
    options = {"correction": "none", "readout": "mean", "growth": "none"}
    of_parts = read_compiled(compiled(parts(tmp_path, 3), **options)).calibration
    of_all, of_some = (
        read_compiled(
            snncompiler.compile(network(), calibration=data, samples=None, steps=8, **options)  # type: ignore[arg-type]
        ).calibration
        for data in (X, X[:32])
    )
    assert of_parts.samples == of_all.samples == 150 and of_parts.source == "data"
    for name, theta in of_all.thresholds.items():
        assert np.array_equal(of_parts.thresholds[name], theta)
        assert not np.array_equal(of_some.thresholds[name], theta)


def test_a_network_of_one_batch_size_leaves_out_what_does_not_fill_it(tmp_path: Path) -> None:
    """Its samples are mixed, so it takes 4 at once and no other number."""
    text = """g (float[4,3] x) => (float[4,3] y)
    { h = Relu (x)  m = MatMul (mix, h)  r = Relu (m)  y = Neg (r) }"""
    model, x = parse(text, {"mix": random(0, 4, 4)}), random(1, 30, 3)
    found = [Part.load(Path(one)).tally for one in parts(tmp_path, 3, model=model, data=x)]
    assert [one.samples for one in found] == [8, 8, 12]
    wanted = snncompiler.compile(model, calibration=x, samples=None, correction="none", steps=8)
    mine = snncompiler.compile(
        model,
        calibration=x,
        samples=None,
        correction="none",
        steps=8,
        statistics=[str(tmp_path / f"3-{index}.json") for index in (1, 2, 3)],
    )
    first, second = (read_compiled(one).calibration for one in (mine, wanted))
    for name, theta in second.thresholds.items():
        assert np.array_equal(first.thresholds[name], theta)


# --- histograms ---


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
)
def test_histograms_of_parts_are_those_of_the_whole(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Of every size, and of channels that are 0 in some parts or in all.
    powers = rng.integers(-60, 60, (sum(sizes), 4, 1))
    values = (rng.random((sum(sizes), 4, 5)) * 2.0**powers).astype(np.float32)
    values *= rng.random((sum(sizes), 4, 1)) < [[0.0], [0.1], [0.6], [1.0]]

    def histogram(rows: Array) -> Histogram:
        found = Histogram(4)
        if len(rows):
            found.add(rows)
        return found

    whole, merged = histogram(values), Histogram(4)
    for part in np.split(values, np.cumsum(sizes)[:-1]):
        merged = histogram(part).plus(merged)
    alive = whole.maximum > 0
    assert merged.total == whole.total and np.array_equal(merged.maximum, whole.maximum)
    assert np.array_equal(merged.counts, whole.counts)
    assert np.array_equal(merged.exponent[alive], whole.exponent[alive])


def test_histograms_of_other_channels_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="4 and 3 channels"):
        Histogram(4).plus(Histogram(3))


# --- what is refused ---


def test_statistics_of_something_else(tmp_path: Path) -> None:
    for options, said in (
        ({"model": network(1)}, "another network"),
        ({"preprocess": Preprocess(scale=2.0)}, "another preprocessing"),
    ):
        with pytest.raises(Refused, match=f"SNNC306 .*{said}"):
            compiled(parts(tmp_path, 1, **options))
    # Options with which the normalized network is the same do not matter.
    assert compiled(parts(tmp_path, 1, weights="int8", pure=True))


def test_statistics_with_options_that_change_the_network(tmp_path: Path) -> None:
    text = """g (float[N,1,6,6] x) => (float[N,2,3,3] y)
    { c = Conv <pads = [1, 1, 1, 1]> (x, a)  h = Relu (c)
      y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (h) }"""
    model = parse(text, {"a": random(0, 2, 1, 3, 3)})
    paths = parts(tmp_path, 1, model=model, maxpool="average")
    with pytest.raises(Refused, match=r"SNNC306 .*the network with other options"):
        snncompiler.compile(model, calibration=X[:32], statistics=paths, steps=8)


def test_parts_that_do_not_belong_together(tmp_path: Path) -> None:
    two = parts(tmp_path, 2)
    with pytest.raises(Refused, match=r"SNNC312 of 2 shards 1 are missing: 2"):
        compiled(two[:1])
    (other,) = parts(tmp_path, 1, data=X + 1)
    with pytest.raises(Refused, match="SNNC312"):
        compiled([two[0], other])
    with pytest.raises(UsageError, match="samples to run"):
        snncompiler.compile(network(), statistics=two)
    with pytest.raises(Refused, match=r"SNNC312 .*a part of statistics, not of evaluation"):
        merge([Path(path) for path in two])
    snn = snncompiler.compile(network(), calibration=X[:32], steps=8)
    evaluate_part(network(), snn, X[:20], ALL).save(tmp_path / "eval.json")
    with pytest.raises(Refused, match=r"SNNC312 .*a part of evaluation, not of statistics"):
        compiled([str(tmp_path / "eval.json")])


def test_the_command_line_and_damaged_images(tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "ann.onnx")
    (tmp_path / "images").mkdir()
    for number in range(70):
        image = Image.fromarray((np.abs(X[number, 0]) * 40).clip(0, 255).astype(np.uint8))
        image.save(tmp_path / "images" / f"{number:02}.png")
    (tmp_path / "images" / "33.png").write_bytes(b"damaged")
    data = ["--calibration", str(tmp_path / "images")]

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, [*arguments])

    files = []
    for shard in ("1/1", "1/2", "2/2"):
        files.append(str(tmp_path / f"{shard.replace('/', '-')}.json"))
        command = [
            "observe",
            str(tmp_path / "ann.onnx"),
            *data,
            "--shard",
            shard,
            "--out",
            files[-1],
        ]
        if shard != "1/2":
            refused = run(*command)
            assert refused.exit_code == 1 and "33.png" in refused.stderr
        assert run(*command, "--skip-damaged").exit_code == 0
    made = []
    for pattern in ("1-1.json", "*-2.json"):
        output = tmp_path / f"{len(made)}.onnx"
        command = [
            "compile",
            str(tmp_path / "ann.onnx"),
            "-o",
            str(output),
            *data,
            "--samples",
            "20",
        ]
        found = run(*command, "--skip-damaged", "--statistics", str(tmp_path / pattern))
        assert found.exit_code == 0, found.stderr
        assert "33.png" in found.stderr
        made.append(output.read_bytes())
    assert made[0] == made[1]
    assert run(*command, "--statistics", str(tmp_path / "none-*.json")).exit_code == 2
