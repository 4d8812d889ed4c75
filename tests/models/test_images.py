"""Pictures to learn from are read as they are, and what is wrong is refused by name."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snncompiler.models import images
from snncompiler.models.registry import DATASETS

CLASSES = [f"kind{index}" for index in range(10)]


def png(size: tuple[int, int] = (32, 32), seed: int = 0) -> bytes:
    """A picture of noise, width by height, stored without loss."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    stream = io.BytesIO()
    image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def members(
    each: int = 2, size: tuple[int, int] = (32, 32), under: str = "", classes: int = 10
) -> dict[str, bytes]:
    """`each` pictures per class, by their path."""
    return {
        f"{under}{name}/{index}.png": png(size, seed=100 * number + index)
        for number, name in enumerate(CLASSES[:classes])
        for index in range(each)
    }


def folder(where: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_bytes(content)
    return where


def zipped(where: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(where, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return where


def tarred(where: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(where, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return where


def stored(where: Path, part: images.Part = "train", dataset: str | None = None) -> images.Stored:
    pictures, _ = images.load(where, part, dataset)
    assert isinstance(pictures, images.Stored)
    return pictures


def cifar(form: str, kind: str, each: int = 3) -> tuple[dict[str, bytes], Any, Any]:
    """Batches as CIFAR's makers write them, with their pixels [n, 32, 32, 3] and labels [n]."""
    rng = np.random.default_rng(5)
    binary = form == "binary"
    ten = kind == "cifar10"
    stems = [f"data_batch_{index}" for index in range(1, 6)] if ten else ["train"]
    files, pixels, labels = {}, [], []
    for stem in stems:
        planes = rng.integers(0, 256, (each, 3072), np.uint8)
        fine = rng.integers(0, DATASETS[kind].classes, each, np.uint8)
        coarse = rng.integers(0, 20, each, np.uint8)
        if binary:
            columns = [fine[:, None], planes] if ten else [coarse[:, None], fine[:, None], planes]
            content = np.concatenate(columns, 1).tobytes()
        else:
            batch = {b"data": planes, b"labels" if ten else b"fine_labels": fine.tolist()}
            content = pickle.dumps(batch, protocol=2)
        files[f"cifar/{stem}{'.bin' if binary else ''}"] = content
        pixels.append(planes.reshape(each, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(fine.astype(np.int64))
    files[f"cifar/test{'_batch' if ten else ''}{'.bin' if binary else ''}"] = content
    files["cifar/batches.meta"] = b"not read"
    return files, np.concatenate(pixels), np.concatenate(labels)


def test_folder_and_zip_hold_the_same(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    files = members()
    in_folder = stored(folder(tmp_path / "folder", files))
    in_zip = stored(zipped(tmp_path / "pictures.zip", files))
    assert in_folder.classes == in_zip.classes == tuple(CLASSES)
    assert in_folder.pixels.shape == (20, 32, 32, 3) and len(in_folder) == 20
    np.testing.assert_array_equal(in_folder.pixels, in_zip.pixels)
    np.testing.assert_array_equal(in_folder.labels, np.repeat(np.arange(10), 2))
    first = image.open(io.BytesIO(files["kind0/0.png"]))
    np.testing.assert_array_equal(in_folder.pixels[0], np.asarray(first))


def test_parts_of_one_data_set_are_told_apart(tmp_path: Path) -> None:
    where = zipped(
        tmp_path / "all.zip", members(3, under="set/train/") | members(1, under="set/val/")
    )
    assert len(stored(where, "train")) == 30
    assert len(stored(where, "test")) == 10
    found = images.load_test(where, None, "cifar10", tuple(CLASSES))
    assert found is not None and len(found) == 10


def test_one_part_alone_is_all_there_is(tmp_path: Path) -> None:
    where = zipped(tmp_path / "train.zip", members(1, under="train/"))
    assert len(stored(where)) == 10
    assert images.load_test(where, None, "cifar10", tuple(CLASSES)) is None


def test_what_desktops_leave_behind_is_no_picture(tmp_path: Path) -> None:
    left = {"__MACOSX/kind0/._0.png": b"x", "kind0/._0.png": b"x", "kind0/notes.txt": b"x"}
    assert len(stored(zipped(tmp_path / "a.zip", members(1) | left))) == 10


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
@pytest.mark.parametrize("form", ["python", "binary"])
@pytest.mark.parametrize("packed", [folder, tarred])
def test_cifar_as_published(
    packed: Callable[[Path, dict[str, bytes]], Path], form: str, kind: str, tmp_path: Path
) -> None:
    files, pixels, labels = cifar(form, kind)
    where = packed(tmp_path / "cifar.tar.gz", files)
    pictures, found = images.load(where, "train")
    assert isinstance(pictures, images.Stored)
    assert found == kind and len(pictures.classes) == DATASETS[kind].classes
    np.testing.assert_array_equal(pictures.pixels, pixels)
    np.testing.assert_array_equal(pictures.labels, labels)
    test = images.load_test(where, None, found, pictures.classes)
    assert test is not None and len(test) == 3


def test_cifar_as_python_2_pickled_it(tmp_path: Path) -> None:
    """The published files are of Python 2, which Python 3 cannot write: here, byte by byte."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3072), np.uint8)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"  # empty
        b"(K\x01K\x02M\x00\x0c\x86"  # version 1, shape (2, 3072)
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + len(pixels.tobytes()).to_bytes(4, "little") + pixels.tobytes() + b"tb"
    )
    content = b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x07K\x00eu."
    pictures = stored(folder(tmp_path, {"cifar-10-batches-py/data_batch_1": content}))
    expected = pixels.reshape(2, 3, 32, 32).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(pictures.pixels, expected)
    assert pictures.labels.tolist() == [7, 0]


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    where = folder(tmp_path / "cifar", {"data_batch_1": pickle.dumps({b"data": Evil()})})
    with pytest.raises(ValueError, match="data_batch_1 is no pickled batch of cifar10"):
        images.load(where, "train")
    assert not (tmp_path / "ran").exists()


def test_large_pictures_are_imagenet_and_decoded_in_batches(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    files = members(2, size=(320, 256), classes=3)
    pictures, found = images.load(folder(tmp_path, files), "train")
    assert found == "imagenet" and isinstance(pictures, images.Files)
    groups = [np.array([5, 0]), np.array([3])]
    whole = list(pictures.batches((group, None) for group in groups))
    assert [batch.shape for batch in whole] == [(2, 224, 224, 3), (1, 224, 224, 3)]
    # 256 high: the middle 224x224, pixel for pixel.
    decoded = np.asarray(image.open(io.BytesIO(files["kind0/0.png"])))
    np.testing.assert_array_equal(whole[0][1], decoded[16:240, 48:272])

    draws = [np.random.default_rng(1).random((len(g), 4), np.float32) for g in groups]
    crops = [list(pictures.batches(zip(groups, draws, strict=True))) for _ in range(2)]
    for first, second, plain in zip(*crops, whole, strict=True):
        np.testing.assert_array_equal(first, second)
        assert (first != plain).any()


@pytest.mark.parametrize("draw", [(0, 0, 0, 0), (1, 1, 1, 1), (0.5, 0, 1, 0), (1, 0, 0, 1)])
@pytest.mark.parametrize("size", [(1, 1), (500, 3), (3, 500), (256, 256)])
def test_crops_stay_inside(size: tuple[int, int], draw: tuple[float, ...]) -> None:
    left, top, right, bottom = images._crop(size, np.array(draw, np.float32))
    assert 0 <= left < right <= size[0] + 1e-6
    assert 0 <= top < bottom <= size[1] + 1e-6


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "holds no pictures"),
        ({"notes.txt": b"x"}, "holds no pictures"),
        ({"a.png": b"x"}, "a.png lies in no folder"),
        ({"kind0/broken.png": b"x"}, "kind0/broken.png is no picture"),
        ({"data_batch_1.bin": b"x" * 3072}, "3072 bytes are no records of 3073"),
        ({"data_batch_1.bin": b""}, "0 bytes are no records"),
        ({"data_batch_1.bin": b"\x0a" + b"x" * 3072}, "labels are not 0 to 9"),
        ({"train.bin": b"\0" * 3074, "data_batch_1.bin": b"\0" * 3073}, "both CIFAR-10 and"),
        ({"data_batch_1": b"x"}, "is no pickled batch of cifar10"),
        (
            {"train": pickle.dumps({b"data": np.zeros((2, 3), np.uint8), b"fine_labels": [1, 2]})},
            "3]",
        ),
    ],
)
def test_bad_data_is_refused(files: dict[str, bytes], said: str, tmp_path: Path) -> None:
    if "broken" in str(files):
        pytest.importorskip("PIL", reason="Pillow is not installed")
    where = tmp_path / "data"
    where.mkdir()
    with pytest.raises(ValueError) as refused:
        images.load(folder(where, files), "train")
    assert said in str(refused.value)


def test_pictures_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    odd = folder(tmp_path / "odd", members(1) | {"kind3/odd.png": png((32, 31))})
    with pytest.raises(ValueError, match=r"kind3/odd.png is 32x31; cifar10 has 32x32"):
        images.load(odd, "train")
    few = folder(tmp_path / "few", members(1, classes=9))
    with pytest.raises(ValueError, match="9 classes of pictures of 32x32 fit no data set"):
        images.load(few, "train")
    with pytest.raises(ValueError, match="9 classes, but cifar10 has 10"):
        images.load(few, "train", "cifar10")
    one = folder(tmp_path / "one", members(1, size=(224, 224), classes=1))
    with pytest.raises(ValueError, match="one class is nothing to learn"):
        images.load(one, "train")
    with pytest.raises(ValueError, match="no data set 'mnist'; there are: cifar10, "):
        images.load(one, "train", "mnist")
    renamed = members(1) | {"other/0.png": png()}
    del renamed["kind9/0.png"]
    with pytest.raises(ValueError, match="classes differ from those of training: kind9, other"):
        images.load_test(few, folder(tmp_path / "renamed", renamed), "cifar10", tuple(CLASSES))


def test_files_that_are_no_archives_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        images.load(tmp_path / "nothing", "train")
    plain = tmp_path / "plain.zip"
    plain.write_bytes(b"x" * 1000)
    with pytest.raises(ValueError, match="neither a folder nor a zip or tar file"):
        images.load(plain, "train")
    with pytest.raises(ValueError, match="holds no CIFAR batches"):
        images.load(tarred(tmp_path / "a.tar.gz", {"kind0/0.png": b"x"}), "train")
    files, _, _ = cifar("python", "cifar10")
    with pytest.raises(ValueError, match="holds cifar10, not cifar100"):
        images.load(tarred(tmp_path / "b.tar.gz", files), "train", "cifar100")


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    where = zipped(tmp_path / "damaged.zip", members(1))
    content = bytearray(where.read_bytes())
    content[content.index(b"IDAT") + 100] ^= 0xFF
    where.write_bytes(content)
    with pytest.raises(ValueError, match=r"kind0/0.png cannot be read: Bad CRC"):
        images.load(where, "train")
    files, _, _ = cifar("python", "cifar10", each=20)
    whole = tarred(tmp_path / "cut.tar.gz", files)
    whole.write_bytes(whole.read_bytes()[:-100000])
    with pytest.raises(ValueError, match=r"cut.tar.gz (cannot be read|is neither)"):
        images.load(whole, "train")
