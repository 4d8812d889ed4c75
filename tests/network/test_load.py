"""Every byte in and out: what is no model is refused by what it is, writes are whole or nothing."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import BinaryIO

import numpy as np
import onnx
import pytest
from helpers import parse, random
from onnx import TensorProto

import snncompiler
from snncompiler import pipeline
from snncompiler.emission.compiled import read_compiled
from snncompiler.emission.save import check_writable, save, serialize, write_atomically
from snncompiler.errors import Refused, SnncError, UsageError
from snncompiler.network.load import load


def model() -> onnx.ModelProto:
    weights = {"w": np.arange(4, dtype=np.float32).reshape(2, 2)}
    return parse("g (float[N,2] x) => (float[N,2] y) { h = MatMul (x, w)  y = Relu (h) }", weights)


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fails, instead of hanging, where the body takes longer."""

    def late(signum: int, frame: FrameType | None) -> None:
        raise AssertionError(f"it hangs: more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# --- reading ---

WHOLE = model().SerializeToString()

BAD = {
    "empty": (b"", "empty"),
    "html": (b"\n<!DOCTYPE html><html><body>404</body></html>", "HTML"),
    "html without doctype": (b"<HTML><head></head>", "HTML"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "lfs"),
    "zip": (b"PK\x03\x04" + bytes(30), "zip"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(30), "HDF5"),
    "tflite": (bytes(4) + b"TFL3" + bytes(30), "TensorFlow Lite"),
    "truncated": (WHOLE[: len(WHOLE) // 2], "cut off"),
    "truncated by one": (WHOLE[:-1], "cut off"),
    "random": (np.random.default_rng(0).bytes(1000), "not an ONNX model"),
    "no graph": (b"\x08\x08", "no graph"),
    "text": (b"hello, world, this is text\n", "not an ONNX model"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_model_is_refused(kind: str, tmp_path: Path) -> None:
    raw, said = BAD[kind]
    path = tmp_path / "model.onnx"
    path.write_bytes(raw)
    for given in (path, str(path), raw):
        with pytest.raises(Refused) as caught:
            load(given)
        (finding,) = caught.value.findings
        assert finding.code == "SNNC101"
        assert said.lower() in finding.message.lower() and f"{len(raw):,} bytes" in finding.message
        assert finding.hint


@pytest.mark.parametrize("seed", range(50))
def test_random_bytes_never_crash(seed: int) -> None:
    rng = np.random.default_rng(seed)
    raw = bytearray(WHOLE)
    for place in rng.integers(0, len(raw), 3):
        raw[place] = rng.integers(0, 256)
    try:
        pipeline.prepare(bytes(raw))
    except SnncError as error:
        assert error.exit_code != 4, error


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        load(tmp_path / "none.onnx")
    with pytest.raises(UsageError, match="not a file"):
        load(tmp_path)
    os.mkfifo(tmp_path / "pipe.onnx")
    with at_most(5), pytest.raises(UsageError, match="not a file"):
        load(tmp_path / "pipe.onnx")


def test_all_ways_to_give_a_model(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(WHOLE)
    assert load(path).name == "net.onnx" and load(WHOLE).name == "model"
    digest = hashlib.sha256(WHOLE).hexdigest()
    assert load(path).sha256 == load(WHOLE).sha256 == digest
    given = model()
    assert load(given).model is not given and load(given).model == given


# --- external data ---


def external(
    folder: Path, location: str = "w.bin", data: bytes | None = bytes(16), **entries: object
) -> Path:
    """A model in `folder` whose weight lies in `location`, with the data file unless it is None."""
    made = model()
    weight = made.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        weight.external_data.add(key=key, value=str(value))
    if data is not None:
        (folder / "w.bin").write_bytes(data)
    path = folder / "net.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def refusal(path: Path) -> str:
    with at_most(5), pytest.raises(Refused) as caught:
        load(path)
    (finding,) = caught.value.findings
    assert finding.code == "SNNC113" and "'w'" in finding.message
    return finding.message


def test_where_the_weights_are_stored_does_not_matter(tmp_path: Path) -> None:
    """A file with external data, what onnx.load makes of it, and its bytes are the same network."""
    made, x = model(), random(1, 8, 2)
    onnx.save(made, tmp_path / "one.onnx")
    onnx.save(
        made, tmp_path / "two.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    for name in ("one", "two"):
        path = tmp_path / f"{name}.onnx"
        loaded = onnx.load(path)
        ways = [path, loaded, loaded.SerializeToString()]
        assert len({load(way).sha256 for way in ways}) == 1
        for way in ways:
            snn = snncompiler.compile(way, calibration=x, steps=4)
            calibration = read_compiled(snn).calibration
            for other in ways:
                snncompiler.evaluate(other, snn, x)
                assert (
                    snncompiler.compile(other, calibration=calibration, steps=4).graph == snn.graph
                )
    changed = onnx.load(tmp_path / "two.onnx")
    changed.graph.initializer[0].raw_data = bytes(16)
    with pytest.raises(Refused, match="SNNC402"):
        snncompiler.evaluate(changed, snn, x)


def test_a_file_that_another_library_wrote_is_the_same_network_when_it_is_loaded(
    tmp_path: Path,
) -> None:
    """Fields in another order: the bytes differ, and the network does not."""
    raw = model().SerializeToString()
    producer = onnx.ModelProto(producer_name="rust").SerializeToString()
    path = tmp_path / "net.onnx"
    path.write_bytes(raw + producer)
    assert onnx.load(path).SerializeToString() != raw + producer
    assert load(path).sha256 == load(onnx.load(path)).sha256 == load(raw + producer).sha256
    assert load(path).is_known_as(hashlib.sha256(raw + producer).hexdigest())


def test_parts_of_a_model_that_is_too_large_for_protobuf(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {"w": np.ones((32, 32), np.float32), "v": np.zeros((32, 32), np.float32)}
    made = parse(
        "g (float[N,32] x) => (float[N,32] y) { h = MatMul (x, w)  y = Add (h, v) }", weights
    )
    monkeypatch.setattr("snncompiler.network.load.MAX_PROTOBUF", 100)
    whole = load(made)
    assert whole.model == made and whole.sha256 == load(made.SerializeToString()).sha256
    made.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(weights["w"], "v"))
    assert load(made).sha256 != whole.sha256


# --- names of nodes ---


@pytest.mark.parametrize("name", ["same", ""])
def test_nodes_of_one_name_are_told_apart(name: str) -> None:
    """onnxruntime loads no model in which two nodes have the same name."""
    weights = {"w": random(1, 3, 4), "g": np.ones(4, "f4"), "b": random(2, 4), "m": random(3, 4)}
    made = parse(
        """g (float[N,3] x) => (float[N,4] y)
        { a = MatMul (x, w)  n = BatchNormalization (a, g, b, m, g)  r = Relu (n)
          c = Sub (r, b)  y = Relu (c) }""",
        weights,
    )
    for node in made.graph.node:
        node.name = name
    x = random(4, 6, 3)
    snn = snncompiler.compile(made, calibration=x, steps=8)
    assert len(read_compiled(snn).calibration.thresholds) == 2
    snncompiler.evaluate(made, snn, x, diagnose=True)
    assert {node.name for node in made.graph.node} == {name}  # what was given is not changed


def test_a_node_without_a_name_does_not_take_that_of_another() -> None:
    made = parse("""g (float[N,2] x) => (float[N,2] y)
    { r = Relu (x)  n = Neg (r)  s = Add (n, r)  y = Relu (s) }""")
    made.graph.node[3].name = "Relu_0"
    snn = snncompiler.compile(made, calibration=random(1, 8, 2), steps=4)
    assert list(read_compiled(snn).calibration.thresholds) == ["Relu_0_2", "Relu_0"]


def test_external_data_is_loaded_and_hashed(tmp_path: Path) -> None:
    data = np.arange(4, dtype=np.float32).tobytes()
    path = external(tmp_path, data=b"12345678" + data, offset=8, length=16)
    source = load(path)
    weight = source.model.graph.initializer[0]
    assert weight.raw_data == data and not weight.external_data
    assert weight.data_location == TensorProto.DEFAULT
    # Compiled files of earlier versions name it so.
    assert source.is_known_as(hashlib.sha256(path.read_bytes() + data).hexdigest())
    assert not source.is_known_as(hashlib.sha256(data).hexdigest())
    assert pipeline.prepare(path).any_batch


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file outside of the model's folder."""
    (tmp_path / "model").mkdir()
    file = tmp_path / "secret.bin"
    file.write_bytes(bytes(16))
    return file


def test_data_outside_of_the_folder(secret: Path) -> None:
    folder = secret.parent / "model"
    assert "outside" in refusal(external(folder, "../secret.bin"))
    assert "outside" in refusal(external(folder, "sub/../../secret.bin"))
    assert "outside" in refusal(external(folder, str(secret)))


def test_links_out_of_the_folder(secret: Path) -> None:
    folder = secret.parent / "model"
    (folder / "soft.bin").symlink_to(secret)
    assert "link" in refusal(external(folder, "soft.bin"))
    os.link(secret, folder / "hard.bin")
    assert "hard link" in refusal(external(folder, "hard.bin"))
    (folder / "up").symlink_to(secret.parent)
    assert "link" in refusal(external(folder, "up/secret.bin"))


def test_links_within_the_folder_are_links(tmp_path: Path) -> None:
    (tmp_path / "soft.bin").symlink_to(tmp_path / "w.bin")
    assert "link" in refusal(external(tmp_path, "soft.bin"))
    (tmp_path / "loop.bin").symlink_to("loop.bin")
    assert refusal(external(tmp_path, "loop.bin"))


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert "regular file" in refusal(external(tmp_path, "folder"))
    os.mkfifo(tmp_path / "pipe")
    assert "regular file" in refusal(external(tmp_path, "pipe"))
    assert refusal(external(tmp_path, "."))
    assert "not a file" in refusal(external(tmp_path, ""))


def test_missing_data(tmp_path: Path) -> None:
    assert "missing" in refusal(external(tmp_path, data=None))
    assert "missing" in refusal(external(tmp_path, "no/such/folder.bin"))


@pytest.mark.parametrize(
    "entries",
    [
        {"length": 17},
        {"offset": 1, "length": 16},
        {"offset": 17},
        {"offset": -1, "length": 16},
        {"length": -1},
        {"offset": 16 - (9 << 50), "length": 9 << 50},
        {"length": 9 << 50},
        {"offset": 9 << 50, "length": 0},
        {"offset": "none"},
        {"length": "1e3"},
    ],
)
def test_places_outside_of_the_data(tmp_path: Path, entries: dict[str, object]) -> None:
    assert refusal(external(tmp_path, **entries))


def test_data_shorter_than_the_shape(tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        pipeline.prepare(external(tmp_path, data=bytes(12)))
    assert caught.value.findings[0].code in ("SNNC107", "SNNC113")


def test_the_memory_marker_of_onnxruntime(tmp_path: Path) -> None:
    marker = "*/_ORT_MEM_ADDR_/*"
    assert "not a file" in refusal(external(tmp_path, marker, offset=140_000_000_000, length=16))


@pytest.mark.parametrize(
    "location",
    [
        pytest.param("w\0.bin"),
        pytest.param("w" * 5000),
    ],
)
def test_names_that_no_file_can_have(tmp_path: Path, location: str) -> None:
    assert refusal(external(tmp_path, location))


def test_external_data_of_constant_nodes_and_functions_is_checked_too(tmp_path: Path) -> None:
    made = parse(
        """g (float[N,2] x) => (float[N,2] y)
        { c = Constant <value = float[2] {1, 2}> ()  h = Add (x, c)  y = Relu (h) }"""
    )
    tensor = made.graph.node[0].attribute[0].t
    tensor.name = "w"
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    path = tmp_path / "net.onnx"
    path.write_bytes(made.SerializeToString())
    assert "outside" in refusal(path)


def test_all_unsafe_tensors_are_named_at_once(tmp_path: Path) -> None:
    path = external(tmp_path, "../w.bin")
    made = onnx.load(str(path), load_external_data=False)
    second = made.graph.initializer.add()
    second.CopyFrom(made.graph.initializer[0])
    second.name = "w2"
    path.write_bytes(made.SerializeToString())
    with pytest.raises(Refused) as caught:
        load(path)
    assert [f.code for f in caught.value.findings] == ["SNNC113", "SNNC113"]


@pytest.mark.parametrize("given", ["bytes", "proto"])
def test_external_data_has_no_folder_without_a_path(tmp_path: Path, given: str) -> None:
    raw = external(tmp_path).read_bytes()
    proto = onnx.ModelProto.FromString(raw)
    with pytest.raises(Refused) as caught:
        pipeline.prepare(raw if given == "bytes" else proto)
    assert caught.value.findings[0].code in ("SNNC107", "SNNC113")


# --- writing ---


def left_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left"), ValueError("ours"), KeyboardInterrupt()]
)
def test_a_failing_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "out.onnx"
    path.write_bytes(b"old")

    def fails(file: BinaryIO) -> None:
        file.write(b"new, but only half")
        raise error

    with pytest.raises((UsageError, type(error))) as caught:
        write_atomically(path, fails)
    if isinstance(error, OSError):
        assert isinstance(caught.value, UsageError) and "SNNC502" in str(caught.value)
    assert path.read_bytes() == b"old" and left_in(tmp_path) == ["out.onnx"]


def test_a_failing_rename_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(source: str, target: str) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(UsageError, match="Input/output error"):
        write_atomically(tmp_path / "out.onnx", lambda file: file.write(b"new"))
    assert left_in(tmp_path) == []


def test_a_file_is_replaced_whole_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    path.write_bytes(b"old")
    path.chmod(0o640)
    save(model(), path)
    assert onnx.load(str(path)) == model() and path.stat().st_mode & 0o777 == 0o640
    assert left_in(tmp_path) == ["out.onnx"]


def test_a_new_file_has_the_usual_mode(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        save(model(), tmp_path / "out.onnx")
    finally:
        os.umask(mask)
    assert (tmp_path / "out.onnx").stat().st_mode & 0o777 == 0o640


def test_a_link_keeps_pointing_to_its_file(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "real.onnx", tmp_path / "link.onnx"
    target.write_bytes(b"old")
    link.symlink_to(target)
    save(model(), link)
    assert link.is_symlink() and onnx.load(str(target)) == model()


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    for path in (tmp_path / "none" / "out.onnx", tmp_path):
        for write in (lambda p: save(model(), p), check_writable):
            with pytest.raises(UsageError, match="SNNC502"):
                write(path)
    assert left_in(tmp_path) == []


def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    for write in (lambda p: save(model(), p), check_writable):
        with at_most(5), pytest.raises(UsageError, match="SNNC502"):
            write(path)
    assert path.is_fifo()


def test_the_input_is_never_overwritten(tmp_path: Path) -> None:
    path, other = tmp_path / "net.onnx", tmp_path / "same.onnx"
    path.write_bytes(WHOLE)
    other.symlink_to(path)
    for output in (path, other, tmp_path / "." / "net.onnx"):
        with pytest.raises(UsageError, match="never overwritten"):
            check_writable(output, (path,))
    check_writable(tmp_path / "new.onnx", (path,))


def test_two_writers_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"

    def write_while_another_writes(file: BinaryIO) -> None:
        file.write(b"outer, ")
        write_atomically(path, lambda inner: inner.write(b"inner"))
        file.write(b"whole")

    write_atomically(path, write_while_another_writes)
    assert path.read_bytes() == b"outer, whole" and left_in(tmp_path) == ["out.onnx"]


def test_the_bytes_of_a_model_are_always_the_same() -> None:
    assert serialize(model()) == serialize(model())
