"""Parts of an evaluation: n shards give what one gives; what does not belong together is refused."""

from __future__ import annotations

import io
import json
import random as orders
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import compile_text, parse, random
from PIL import Image
from typer.testing import CliRunner

import snncompiler
from snncompiler.analysis.evaluate import evaluate_part
from snncompiler.analysis.parts import Part, Shard, merge
from snncompiler.cli.main import app
from snncompiler.errors import Refused, UsageError

CONV = """g (float[N,1,6,6] x) => (float[N,3] y, float[N,2,6,6] h)
{ c = Conv <pads = [1, 1, 1, 1]> (x, a)  h = Relu (c)  f = Flatten (h)
  d = MatMul (f, b)  r = Relu (d)  y = MatMul (r, o) }"""
#: One value for a run: the samples run one at a time.
ROWS = """g (float[N,4] x) => (float[N,3] y, float[K,4] rows)
{ h = Relu (x)  z = MatMul (h, o)  r = Relu (z)  y = Neg (r)  k = NonZero (r)  t = Transpose (k)
  i = Cast <to = 7> (t)  first = Gather <axis = 1> (i, zero)  rows = Gather <axis = 0> (h, first) }"""


def conv() -> onnx.ModelProto:
    return parse(CONV, {"a": random(1, 2, 1, 3, 3), "b": random(2, 72, 5), "o": random(3, 5, 3)})


SAMPLES = 44
DATA = {"x": random(4, SAMPLES, 1, 6, 6), "y": np.arange(SAMPLES) % 3}
#: Ways to evaluate, each with the options of the compilation and of the evaluation.
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "streaming": ({}, {"steps": [8, 2, 8]}),
    "diagnosed": ({}, {"steps": [4], "diagnose": True, "limit": 20}),
    "a fixed batch": (
        {"emit": "cuda-graph", "batch": 4, "steps": 8, "readout": "mean", "correction": "none"},
        {},
    ),
    "random input": (
        {"encode": "poisson", "correction": "none", "readout": "mean"},
        {"steps": [8]},
    ),
    "layered": (
        {"timing": "layered", "steps": 4, "readout": "auto", "correction": "auto"},
        {},
    ),
}


@lru_cache
def compiled(way: str) -> onnx.ModelProto:
    return compile_text(conv(), DATA["x"][:32], task="classification", **WAYS[way][0])


def parts(folder: Path, way: str, count: int, **more: Any) -> list[Path]:
    paths = []
    for index in range(1, count + 1):
        path = folder / f"{count}-{index}.json"
        given = {"data": DATA, **WAYS[way][1], **more}
        evaluate_part(conv(), compiled(way), shard=Shard(index, count), **given).save(path)
        paths.append(path)
    return paths


@pytest.mark.parametrize(
    "way",
    [
        "streaming",
        "diagnosed",
        *(pytest.param(way, marks=pytest.mark.slow) for way in list(WAYS)[2:]),
    ],
)
def test_any_number_of_shards_in_any_order_gives_the_bytes_of_one(tmp_path: Path, way: str) -> None:
    whole = snncompiler.evaluate(conv(), compiled(way), DATA, **WAYS[way][1])
    wanted = json.dumps(whole.as_dict(predictions=True))
    assert whole.samples == WAYS[way][1].get("limit", SAMPLES)
    assert whole.results[0].predictions is not None
    for count in (1, 2, 3, 7) if way == "streaming" else (3,):
        paths = parts(tmp_path, way, count)
        for seed in (0, 1):
            orders.Random(seed).shuffle(paths)
            found = merge(paths)
            assert json.dumps(found.as_dict(predictions=True)) == wanted and found == whole


def test_there_may_be_more_shards_than_batches(tmp_path: Path) -> None:
    data = {"x": DATA["x"][:20], "y": DATA["y"][:20]}
    paths = parts(tmp_path, "streaming", 5, data=data)
    empty = [path for path in paths if not Part.load(path).tally.samples]
    assert len(empty) == 3
    assert merge(paths[::-1]) == snncompiler.evaluate(
        conv(), compiled("streaming"), data, **WAYS["streaming"][1]
    )


def test_the_same_part_has_the_same_bytes_and_is_read_as_it_was_written(tmp_path: Path) -> None:
    (path,) = parts(tmp_path, "streaming", 1)
    first = path.read_bytes()
    Part.load(path).save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == first
    parts(tmp_path, "streaming", 1)
    assert path.read_bytes() == first


def test_shards_cover_all_batches_once_and_evenly() -> None:
    for batches in (0, 1, 5, 16, 33):
        for count in (1, 2, 3, 7, 40):
            ranges = [Shard(i, count).of_batches(batches) for i in range(1, count + 1)]
            assert [at for start, stop in ranges for at in range(start, stop)] == list(
                range(batches)
            )
            sizes = [stop - start for start, stop in ranges]
            assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("text", ["", "1", "0/3", "4/3", "-1/3", "1/0", "a/b", "1/3/5", "1.5/3"])
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(UsageError, match="is not i/n"):
        Shard.parse(text)


# --- one value for a run ---


def test_outputs_of_a_whole_run(tmp_path: Path) -> None:
    model = parse(ROWS, {"o": random(5, 4, 3), "zero": np.array(0)})
    x = random(6, 9, 4)
    snn = compile_text(model, random(7, 16, 4), steps=16)
    paths = []
    for index in (1, 2, 3):
        paths.append(tmp_path / f"{index}.json")
        evaluate_part(model, snn, x, Shard(index, 3)).save(paths[-1])
    assert merge(paths) == snncompiler.evaluate(model, snn, x)


# --- what is refused ---


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return parts(tmp_path_factory.mktemp("parts"), "streaming", 2)


def refused(paths: list[Path]) -> str:
    with pytest.raises(Refused) as caught:
        merge(paths)
    (finding,) = caught.value.findings
    assert finding.code == "SNNC312"
    return finding.message


def test_a_part_that_is_missing_or_there_twice(two: list[Path], tmp_path: Path) -> None:
    assert refused(two[:1]) == "of 2 shards 1 are missing: 2"
    assert "are both shard 1/2" in refused([*two, two[0]])
    seven = parts(tmp_path, "streaming", 7)
    assert refused(seven[2:4]) == "of 7 shards 5 are missing: 1, 2, 5, 6, 7"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"steps": [8, 4]}, "the time-steps is another"),
        ({"limit": 40}, "the number of samples"),
        ({"data": {**DATA, "x": DATA["x"] + 1}}, "the data, its labels or its preprocessing"),
        ({"data": {**DATA, "y": DATA["y"][::-1]}}, "the data, its labels"),
        ({"data": {"x": DATA["x"]}}, "the data, its labels"),
        ({"diagnose": True}, "--diagnose is another"),
    ],
)
def test_parts_of_other_data_or_options(
    two: list[Path], tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    other = parts(tmp_path, "streaming", 2, **more)
    text = refused([two[0], other[1]])
    assert "does not belong to" in text and said in text


def test_parts_of_another_file_number_or_version(two: list[Path], tmp_path: Path) -> None:
    other = Part.load(two[1])
    other.about["snn_sha256"] = "0"
    other.save(tmp_path / "other.json")
    assert "the compiled file is another" in refused([two[0], tmp_path / "other.json"])
    third = parts(tmp_path, "streaming", 3)
    assert "it is shard 2/3, not one of 2" in refused([two[0], third[1]])
    part = Part.load(two[1])
    part.about["version"] = "0.0.1"
    part.save(tmp_path / "old.json")
    assert "the version of snnc is another" in refused([two[0], tmp_path / "old.json"])


def test_a_part_that_is_damaged_or_cut_off(two: list[Path], tmp_path: Path) -> None:
    raw = two[1].read_bytes()
    path = tmp_path / "part.json"
    for end in (1, 30, 100, len(raw) // 2, len(raw) - 3):
        path.write_bytes(raw[:end])
        assert str(path) in refused([two[0], path])
    for place in range(10, len(raw) - 2, len(raw) // 40):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        assert str(path) in refused([two[0], path])
    for other in (b"", b"\xff\xfe", b"{}", b"[1, 2]", json.dumps({"a": 1}).encode()):
        path.write_bytes(other)
        assert "no part" in refused([two[0], path])
    with pytest.raises(UsageError, match=r"SNNC312 .*No such file"):
        merge([two[0], tmp_path / "none.json"])


# --- damaged images ---


def pictures(folder: Path, count: int, damaged: set[int]) -> Path:
    for number in range(count):
        stream = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (6, 6)).astype(np.uint8)
        Image.fromarray(pixels).save(stream, "png")
        raw = stream.getvalue()
        path = folder / f"{number % 3}_{number:03}.png"
        path.write_bytes(raw[: len(raw) // 2] if number in damaged else raw)
    return folder


@pytest.mark.parametrize("damaged", [{0, 1, 47}, set(range(0, 32))])
def test_damaged_images_are_counted_once_whatever_the_shards(
    tmp_path: Path, damaged: set[int]
) -> None:
    (tmp_path / "images").mkdir()
    images = pictures(tmp_path / "images", 48, damaged)
    with pytest.raises(Refused, match="SNNC301"):
        snncompiler.evaluate(conv(), compiled("streaming"), images, steps=[8])
    given = {"data": images, "steps": [8], "skip_damaged": True}
    whole = snncompiler.evaluate(conv(), compiled("streaming"), **given)
    assert whole.samples == 48 - len(damaged)
    (warning,) = [one for one in whole.findings if one.code == "SNNC311"]
    assert warning.message.startswith(f"{len(damaged)} image")
    assert merge(parts(tmp_path, "streaming", 3, **given)) == whole


# --- the command line ---


def test_shards_and_merge_on_the_command_line(tmp_path: Path) -> None:
    onnx.save(conv(), tmp_path / "ann.onnx")
    onnx.save(compiled("streaming"), tmp_path / "snn.onnx")
    np.savez(tmp_path / "data.npz", **DATA)
    both = [str(tmp_path / name) for name in ("ann.onnx", "snn.onnx")]
    command = ["eval", *both, "--data", str(tmp_path / "data.npz"), "--steps", "4,8"]

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, arguments)

    whole = run(*command, "--json", "--predictions")
    assert whole.exit_code == 0
    paths = [str(tmp_path / f"{index}.json") for index in (3, 1, 2)]
    for path in paths:
        made = run(*command, "--shard", f"{Path(path).stem}/3", "--out", path, "--json")
        assert made.exit_code == 0 and json.loads(made.stdout)["samples"] in (16, 12)
    assert run("merge", *paths, "--json", "--predictions").stdout == whole.stdout
    assert run("merge", *paths).stdout == run(*command).stdout
    assert run("merge", *paths[:2]).exit_code == 1
    for wrong in (["--shard", "1/3"], ["--out", paths[0]], ["--shard", "4/3", "--out", paths[0]]):
        assert run(*command, *wrong).exit_code == 2
