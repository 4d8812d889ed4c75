"""Calibration data: names, shapes, types, images, labels, and what is refused."""

from __future__ import annotations

import os
import re
import signal
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Array
from PIL import Image

from snncompiler.errors import Refused, SnncError, UsageError
from snncompiler.network.data import Dataset, InputSpec, Preprocess, load_data

IMAGE = InputSpec("input", (None, 3, 5, 6), np.dtype(np.float32))
GREY = InputSpec("input", (None, 1, 5, 6), np.dtype(np.float32))
ROW = InputSpec("input", (None, 5), np.dtype(np.float32))


def floats(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def pixels(*shape: int) -> Array:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def npz(folder: Path, **arrays: Array) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def code_of(data: object, *specs: InputSpec, how: Preprocess | None = None) -> str:
    with pytest.raises((Refused, UsageError)) as caught:
        load_data(data, specs or (ROW,), how).in_memory()  # type: ignore[arg-type]
    (finding,) = caught.value.findings
    return finding.code


# --- names ---


@pytest.mark.parametrize("name", ["input", "x", "images"])
@pytest.mark.parametrize("labels", ["y", "labels"])
def test_names_in_an_npz(tmp_path: Path, name: str, labels: str) -> None:
    rows, classes = floats(7, 5), np.arange(7)
    found = load_data(npz(tmp_path, **{name: rows, labels: classes}), [ROW])
    assert np.array_equal(found.feeds["input"], rows) and np.array_equal(found.labels, classes)
    assert len(found) == 7 and not found.findings


def test_the_name_of_the_input_comes_first() -> None:
    found = load_data({"x": floats(3, 5) + 1, "input": floats(3, 5)}, [ROW])
    assert np.array_equal(found.feeds["input"], floats(3, 5))


def test_two_inputs_go_by_their_names(tmp_path: Path) -> None:
    other = InputSpec("y", (None, 2), np.dtype(np.float32))
    arrays = {"input": floats(3, 5), "y": floats(3, 2), "labels": np.arange(3)}
    found = load_data(npz(tmp_path, **arrays), [ROW, other])
    assert set(found.feeds) == {"input", "y"} and np.array_equal(found.labels, np.arange(3))
    assert code_of({"x": floats(3, 5), "y": floats(3, 2)}, ROW, other) == "SNNC302"


def test_an_array_and_an_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", floats(3, 5))
    for data in (floats(3, 5), tmp_path / "data.npy", str(tmp_path / "data.npy")):
        found = load_data(data, [ROW])
        assert np.array_equal(found.feeds["input"], floats(3, 5)) and found.labels is None


def test_a_dataset_comes_back_as_it_is() -> None:
    dataset = Dataset({"input": floats(3, 5)})
    assert load_data(dataset, [ROW]) is dataset


# --- types and layouts ---


def test_floats_are_not_touched() -> None:
    values = 300 * floats(3, 3, 5, 6)
    found = load_data(values, [IMAGE])
    assert np.array_equal(found.feeds["input"], values) and not found.findings


def test_double_is_rounded_to_the_type_of_the_input() -> None:
    values = np.random.default_rng(0).standard_normal((3, 5))
    found = load_data(values, [ROW]).feeds["input"]
    assert found.dtype == np.float32 and np.array_equal(found, values.astype(np.float32))


def test_bytes_become_zero_to_one_in_the_layout_of_the_input() -> None:
    stored = pixels(3, 5, 6, 3)
    found = load_data(stored, [IMAGE])
    wanted = stored.astype(np.float32).transpose(0, 3, 1, 2) / np.float32(255)
    assert np.array_equal(found.feeds["input"], wanted)
    (note,) = found.findings
    assert (note.code, note.severity) == ("SNNC307", "note") and "255" in note.message


def test_bytes_that_have_the_layout_keep_it() -> None:
    stored = pixels(3, 3, 5, 6)
    found = load_data(stored, [IMAGE]).feeds["input"]
    assert np.array_equal(found, stored.astype(np.float32) / np.float32(255))


def test_a_network_that_takes_channels_last() -> None:
    stored = pixels(3, 5, 6, 3)
    last = InputSpec("input", (None, 5, 6, 3), np.dtype(np.float32))
    found = load_data(stored, [last]).feeds["input"]
    assert np.array_equal(found, stored.astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("height", [1, 3, 4])
def test_low_images_are_not_scrambled(height: int) -> None:
    stored = pixels(2, height, 6, 3)
    spec = InputSpec("input", (None, 3, height, 6), np.dtype(np.float32))
    found = load_data(stored, [spec]).feeds["input"]
    assert np.array_equal(found, stored.astype(np.float32).transpose(0, 3, 1, 2) / np.float32(255))


def test_float_images_with_the_channels_last_are_not_scrambled() -> None:
    stored = floats(2, 5, 6, 3)
    try:
        found = load_data(stored, [IMAGE]).feeds["input"]
    except Refused as error:
        assert error.findings[0].code == "SNNC302"
    else:
        assert np.array_equal(found, stored.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 1, 5, 6), (2, 30), (2, 1, 1, 30), (2, 5, 6, 1)])
def test_grey_rows_and_planes_fit(shape: tuple[int, ...]) -> None:
    found = load_data(floats(*shape), [GREY]).feeds["input"]
    assert np.array_equal(found, floats(*shape).reshape(2, 1, 5, 6))


def test_flat_rows_take_the_shape_of_the_input() -> None:
    found = load_data(pixels(3, 30), [GREY]).feeds["input"]
    assert np.array_equal(found, pixels(3, 30).astype(np.float32).reshape(3, 1, 5, 6) / 255)


def test_scale_mean_std_size_and_bgr() -> None:
    stored = pixels(2, 8, 9, 3)
    how = Preprocess(scale=128.0, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0), size=(5, 6), bgr=True)
    found = load_data(stored, [IMAGE], how)
    swapped = stored[:, 2:7, 2:8, ::-1].astype(np.float32)
    wanted = (swapped / np.float32(128) - np.float32([0.1, 0.2, 0.3])) / np.float32([0.5, 1, 2])
    # The same float32 operations in the same order: exact.
    assert np.array_equal(found.feeds["input"], wanted.transpose(0, 3, 1, 2))
    assert not found.findings, "a scale that is said is not assumed"


def test_mean_and_std_of_stored_channels_first() -> None:
    stored = pixels(2, 3, 5, 6)
    how = Preprocess(mean=(0.1, 0.2, 0.3), std=(2.0,))
    found = load_data(stored, [IMAGE], how).feeds["input"]
    column = np.float32([0.1, 0.2, 0.3]).reshape(3, 1, 1)
    assert np.array_equal(found, (stored.astype(np.float32) / 255 - column) / np.float32(2))


def test_preprocessing_that_does_not_fit() -> None:
    assert code_of(pixels(2, 5, 6, 3), IMAGE, how=Preprocess(mean=(1.0, 2.0))) == "SNNC501"
    assert code_of(pixels(2, 2, 6, 3), IMAGE, how=Preprocess(size=(5, 6))) == "SNNC302"


def test_integers_for_an_input_of_integers_stay() -> None:
    tokens = InputSpec("input", (None, 5), np.dtype(np.int64))
    found = load_data(np.arange(10, dtype=np.int32).reshape(2, 5), [tokens])
    assert found.feeds["input"].dtype == np.int64 and not found.findings
    assert np.array_equal(found.feeds["input"], np.arange(10).reshape(2, 5))


# --- what is refused ---


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({"other": np.zeros((3, 5), np.float32)}, "SNNC302"),
        ({"x": np.zeros((3, 4), np.float32)}, "SNNC302"),
        ({"x": np.zeros((3, 5, 1, 2), np.float32)}, "SNNC302"),
        ({"x": np.float32(3)}, "SNNC302"),
        ({"x": np.zeros((3, 5), complex)}, "SNNC302"),
        ({"x": np.full((3, 5), "a")}, "SNNC302"),
        ({"x": np.full((3, 5), None)}, "SNNC302"),
        ({"x": np.zeros((0, 5), np.float32)}, "SNNC303"),
        ({"x": np.zeros((3, 5), np.float32), "y": np.arange(4)}, "SNNC302"),
        ({"x": np.zeros((3, 5), np.float32), "y": np.zeros(3)}, "SNNC302"),
        ({"x": np.zeros((3, 5), np.float32), "y": np.full(3, None)}, "SNNC302"),
        ({"x": np.full((3, 5), 1e300)}, "SNNC303"),
        ({}, "SNNC302"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_arrays_that_do_not_fit(data: Mapping[str, Array], code: str) -> None:
    assert code_of({name: np.asarray(array) for name, array in data.items()}) == code


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_data_is_shown_with_its_place(bad: float) -> None:
    rows = floats(3, 5)
    rows[1, 4] = bad
    with pytest.raises(Refused) as caught:
        load_data(rows, [ROW])
    (finding,) = caught.value.findings
    assert finding.code == "SNNC303" and "[1, 4]" in finding.message and str(bad) in finding.message


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (Bomb.target,))

    target = ""


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_pickles_are_never_loaded(tmp_path: Path, kind: str) -> None:
    Bomb.target = str(tmp_path / "exploded")
    array = np.array([Bomb()], dtype=object)
    path = tmp_path / f"data.{kind}"
    if kind == "npz":
        np.savez(path, x=array)
    else:
        np.save(path, array, allow_pickle=True)
    assert code_of(path) == "SNNC301"
    assert not os.path.exists(Bomb.target)


def npy_of_shape(shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("data.npz", b""),
        ("data.npz", b"no zip"),
        ("data.npz", b"PK\x03\x04 cut off"),
        ("data.npy", b""),
        ("data.npy", b"no numpy"),
        ("data.npy", npy_of_shape("(3, 5)") + bytes(8)),
        ("data.npy", npy_of_shape("(-3, 5)")),
        pytest.param("data.npy", npy_of_shape("(1 << 50,)"), id="code in the header"),
        pytest.param("data.npy", npy_of_shape("(1125899906842624, 5)"), id="20 PiB"),
        pytest.param(
            "data.npz",
            npy_of_shape("(1, 5)") + bytes(20),
            id="an npy named npz",
        ),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, raw: bytes) -> None:
    (tmp_path / name).write_bytes(raw)
    assert code_of(tmp_path / name) == "SNNC301"


@pytest.mark.parametrize("save", [np.savez_compressed, np.savez])
def test_a_damaged_npz(tmp_path: Path, save: Callable[..., None]) -> None:
    path = tmp_path / "data.npz"
    save(path, x=np.arange(5000, dtype=np.float32).reshape(-1, 5))
    whole, ran = path.read_bytes(), 0
    # All of the header of the array, and some of what follows.
    for place in (*range(30, 200), *range(200, len(whole), len(whole) // 40)):
        flipped = 0xFF if save is np.savez_compressed else 0x20
        path.write_bytes(whole[:place] + bytes([whole[place] ^ flipped]) + whole[place + 1 :])
        try:
            load_data(path, [ROW]).in_memory()
        except SnncError as error:
            assert error.findings[0].code in ("SNNC301", "SNNC302", "SNNC303")
        ran += 1
    assert ran >= 40


def test_paths_of_no_known_kind(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("1,2,3")
    assert code_of(tmp_path / "data.csv") == "SNNC301"
    assert code_of(tmp_path / "none.npz") == "SNNC301"


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data.npz")

    def late(signum: int, frame: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(1)
    try:
        assert code_of(tmp_path / "data.npz") == "SNNC301"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# --- images ---


def draw(path: Path, image: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.squeeze()).save(path)


def zipped(folder: Path) -> Path:
    path = folder.parent / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return path


@pytest.mark.parametrize("as_zip", [False, True])
@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["3_a.png", "10_b.png", "3_c.png"], [10, 3, 3]),
        (["cat/1.png", "dog/2.png", "ant/3.png"], [0, 1, 2]),
        (["7/a.png", "7/b.png", "12/c.png"], [12, 7, 7]),
        (["a.png", "b.png", "c.png"], None),
        (["one/a.png", "one/b.png", "one/c.png"], None),
    ],
)
def test_labels_of_images(
    tmp_path: Path, as_zip: bool, names: list[str], labels: list[int] | None
) -> None:
    folder = tmp_path / "images"
    for i, name in enumerate(names):
        draw(folder / name, pixels(5, 6, 3) // (i + 1))
    (folder / "README.txt").write_text("not an image")
    found = load_data(zipped(folder) if as_zip else folder, [IMAGE])
    assert found.feeds["input"].shape == (3, 3, 5, 6)
    assert (found.labels if labels is None else found.labels.tolist()) == labels  # type: ignore
    first = sorted(names).index(names[0])
    wanted = pixels(5, 6, 3).astype(np.float32).transpose(2, 0, 1) / np.float32(255)
    assert np.array_equal(found.feeds["input"][first], wanted)


def test_grey_images(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", pixels(5, 6))
    draw(tmp_path / "b.png", np.repeat(pixels(5, 6)[..., None], 3, axis=2))
    found = load_data(tmp_path, [GREY]).feeds["input"]
    assert found.shape == (2, 1, 5, 6) and np.array_equal(found[0], found[1])


def test_images_of_several_sizes(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", pixels(5, 6, 3))
    draw(tmp_path / "b.png", pixels(6, 6, 3))
    assert code_of(tmp_path, IMAGE) == "SNNC302"
    resized = load_data(tmp_path, [IMAGE], Preprocess(resize=(5, 6)))
    assert resized.feeds["input"].shape == (2, 3, 5, 6)


def test_images_of_another_size_than_the_input(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", pixels(8, 8, 3))
    assert code_of(tmp_path, IMAGE) == "SNNC302"
    cropped = load_data(tmp_path, [IMAGE], Preprocess(size=(5, 6))).feeds["input"]
    wanted = pixels(8, 8, 3)[2:7, 1:7].astype(np.float32).transpose(2, 0, 1) / np.float32(255)
    assert np.array_equal(cropped[0], wanted)


def test_no_images(tmp_path: Path) -> None:
    assert code_of(tmp_path, IMAGE) == "SNNC303"
    (tmp_path / "images.zip").write_bytes(b"no zip")
    assert code_of(tmp_path / "images.zip", IMAGE) == "SNNC301"
    assert code_of(tmp_path, IMAGE, ROW) == "SNNC501"


def test_damaged_images(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", pixels(5, 6, 3))
    path, ran = tmp_path / "a.png", 0
    whole = path.read_bytes()
    for place in range(0, len(whole), 2):
        for raw in (
            whole[:place],
            whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :],
        ):
            path.write_bytes(raw)
            try:
                load_data(tmp_path, [IMAGE])
            except SnncError as error:
                assert error.findings[0].code in ("SNNC301", "SNNC302")
            ran += 1
    assert ran >= 100


def test_a_folder_that_is_called_like_an_image(tmp_path: Path) -> None:
    draw(tmp_path / "classes.png" / "a.png", pixels(5, 6, 3))
    assert len(load_data(tmp_path, [IMAGE])) == 1


# --- parts of a dataset ---


def test_head_and_sample_keep_labels_beside_their_data() -> None:
    rows = np.arange(50, dtype=np.float32).reshape(10, 5)
    dataset = Dataset({"input": rows}, np.arange(10))
    head, drawn = dataset.head(4), dataset.sample(4, seed=1)
    assert np.array_equal(head.feeds["input"], rows[:4]) and head.labels.tolist() == [0, 1, 2, 3]  # type: ignore
    assert drawn.labels is not None and sorted(set(drawn.labels.tolist())) == drawn.labels.tolist()
    assert np.array_equal(drawn.feeds["input"], rows[drawn.labels])
    assert dataset.sample(4, seed=1).labels.tolist() == drawn.labels.tolist()  # type: ignore
    assert dataset.head(None) is dataset.sample(99, 0) is dataset.head(10) is dataset


def test_the_hash_is_of_names_types_shapes_and_values() -> None:
    base = Dataset({"input": floats(5, 6)})
    others = [
        Dataset({"other": floats(5, 6)}),
        Dataset({"input": floats(5, 6).astype(np.float64)}),
        Dataset({"input": floats(5, 6).reshape(10, 3)}),
        Dataset({"input": -floats(5, 6)}),
    ]
    assert base.sha256() == Dataset({"input": floats(5, 6)}, np.arange(4)).sha256()
    assert len({base.sha256(), *(other.sha256() for other in others)}) == 5


def test_whole_inputs_of_a_network_of_one_size_are_samples() -> None:
    spec = InputSpec("x", (3, 2), np.dtype(np.float32))
    x = np.arange(60, dtype=np.float32).reshape(10, 3, 2)
    whole = load_data({"x": x, "y": np.arange(10)}, [spec])
    assert whole.rows == 3 and len(whole) == 30
    assert np.array_equal(whole.feeds["x"], x.reshape(30, 2))
    for some in (whole.head(4), whole.sample(4, seed=1), whole.take(np.array([7, 2]))):
        assert some.labels is not None
        assert np.array_equal(some.feeds["x"].reshape(-1, 3, 2), x[some.labels])
    assert len(whole.head(4)) == 12 and whole.head(10) is whole.sample(10, 0) is whole
    with pytest.raises(Refused, match="SNNC302"):
        load_data({"x": x, "y": np.arange(30)}, [spec])
    # Its rows, one behind the other, are samples of their own; what runs at once may stay together.
    flat = load_data({"x": x.reshape(30, 2)}, [spec])
    assert flat.rows == 1
    drawn = flat.sample(9, seed=1, together=3).feeds["x"].reshape(-1, 3, 2)
    assert len(drawn) == 3 and all((x == one).all(axis=(1, 2)).any() for one in drawn)
    with pytest.raises(Refused, match="SNNC302"):
        load_data({"x": x.reshape(10, 2, 3)}, [spec])


# --- options that do not apply ---

COLOURS = [InputSpec("x", (None, 3, 4, 5), np.dtype(np.float32))]


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_channels_of_arrays_are_swapped_wherever_they_are(kind: type) -> None:
    first = pixels(2, 3, 4, 5).astype(kind)
    last = np.ascontiguousarray(first.transpose(0, 2, 3, 1))
    swapped = load_data({"x": first}, COLOURS, Preprocess(bgr=True)).feeds["x"]
    assert np.array_equal(swapped, load_data({"x": first}, COLOURS).feeds["x"][:, ::-1])
    assert np.array_equal(swapped, load_data({"x": last}, COLOURS, Preprocess(bgr=True)).feeds["x"])


def test_arrays_with_channels_first_are_cropped_in_the_middle() -> None:
    big = pixels(2, 3, 8, 9)
    found = load_data({"x": big}, COLOURS, Preprocess(size=(4, 5), scale=1.0)).feeds["x"]
    assert np.array_equal(found, big[:, :, 2:6, 2:7])


@pytest.mark.parametrize(
    ("option", "given"),
    [("resize", (4, 5)), ("layout", "NHWC"), ("bgr", True), ("size", (4, 5))],
)
def test_an_option_that_does_not_apply_is_named(option: str, given: Any) -> None:
    stored = {"resize": pixels(2, 4, 5, 3), "layout": pixels(2, 3, 4, 5)}
    flat = [InputSpec("x", (None, 7), np.dtype(np.float32))]
    array, spec = (stored[option], COLOURS) if option in stored else (pixels(2, 7), flat)
    with pytest.raises(UsageError, match=f"--{option} does not apply"):
        load_data({"x": array}, spec, Preprocess(**{option: given}))


@pytest.mark.parametrize("option", ["scale", "mean", "std"])
def test_whole_numbers_are_not_normalised(option: str) -> None:
    """They would be rounded to 0; and uint8 is not divided by 255 where the network wants it."""
    ids = [InputSpec("x", (None, 4, 5, 3), np.dtype(np.uint8))]
    array = pixels(2, 4, 5, 3)
    how = Preprocess(layout="NHWC", bgr=True)
    assert np.array_equal(load_data({"x": array}, ids, how).feeds["x"], array[..., ::-1])
    with pytest.raises(UsageError, match=f"--{option} does not apply"):
        load_data({"x": array}, ids, Preprocess(**{option: 2.0 if option == "scale" else (2.0,)}))


def test_an_option_applies_to_the_inputs_that_it_is_for() -> None:
    inputs = [*COLOURS, InputSpec("v", (None, 7), np.dtype(np.float32))]
    arrays = {"x": pixels(2, 3, 4, 5), "v": np.ones((2, 7), np.float32)}
    found = load_data(arrays, inputs, Preprocess(bgr=True)).feeds
    assert np.array_equal(found["x"], (arrays["x"][:, ::-1] / np.float32(255)).astype("f4"))
    assert np.array_equal(found["v"], arrays["v"])


def test_a_dataset_takes_no_preprocessing() -> None:
    dataset = load_data({"x": pixels(2, 3, 4, 5)}, COLOURS)
    with pytest.raises(UsageError, match="does not apply to a Dataset"):
        load_data(dataset, COLOURS, Preprocess(scale=2.0))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"scale": 0.0}, "--scale 0.0 is out of range"),
        ({"scale": float("nan")}, "--scale nan is out of range"),
        ({"scale": "16"}, "scale is '16', it should be a number"),
        ({"std": (0.5, -1.0)}, "--std 0.5,-1 is out of range"),
        ({"layout": "CHWN"}, "--layout CHWN is unknown"),
        ({"bgr": 1}, "bgr is 1, it should be True or False"),
    ],
    ids=str,
)
def test_a_preprocessing_that_cannot_be_is_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        load_data({"x": pixels(2, 4, 5, 3)}, COLOURS, Preprocess(**values))


def test_numpy_numbers_are_numbers_in_a_preprocessing() -> None:
    stored = {"x": pixels(2, 4, 5, 3)}
    given = load_data(stored, COLOURS, Preprocess(scale=np.float32(16)))  # type: ignore[arg-type]
    plain = load_data(stored, COLOURS, Preprocess(scale=16.0))
    for name, array in plain.feeds.items():
        assert np.array_equal(given.feeds[name], array)
