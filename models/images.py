"""Pictures to learn from: folders and zip files of them, and CIFAR as its makers publish it.

Needs Pillow for pictures; needs no PyTorch.
"""

from __future__ import annotations

import codecs
import io
import os
import pickle
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .registry import DATASETS

Part = Literal["train", "test"]
Pixels = NDArray[np.uint8]
Indices = NDArray[np.int64]

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
#: Folders that tell the parts of one data set apart.
PARTS: dict[str, Part] = {"train": "train", "test": "test", "val": "test", "validation": "test"}
#: Pictures larger than CIFAR's are stored this much larger than the network takes them.
MARGIN = 256 / 224
#: Random crops of training pictures: part of the area, and width over height (Szegedy et al.,
#: Going Deeper with Convolutions, CVPR 2015).
AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)

_BATCH = re.compile(
    r"(?:^|/)(?P<part>data_batch_\d+|train|test_batch|test)(?P<binary>\.bin)?$", re.ASCII
)


@dataclass
class Stored:
    """Pictures that are decoded once and kept: uint8 [n, S, S, 3], labels int64 [n]."""

    pixels: Pixels
    labels: Indices
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self, chosen: Iterable[tuple[Indices, NDArray[np.float32] | None]]
    ) -> Iterator[Pixels]:
        """The pictures [k, S, S, 3] of each group of indices; crops do not apply."""
        for indices, _ in chosen:
            yield self.pixels[indices]


@dataclass
class Files:
    """Pictures that are decoded each time, in threads, as ImageNet does not fit into memory."""

    read: Callable[[str], bytes]
    names: list[str]
    labels: Indices
    classes: tuple[str, ...]
    size: int

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self, chosen: Iterable[tuple[Indices, NDArray[np.float32] | None]]
    ) -> Iterator[Pixels]:
        """The pictures [k, S, S, 3] of each group of indices.

        With each group comes None, for the centre of each picture, or random numbers of 0 to 1,
        [k, 4], that choose a part of it. One group is decoded ahead of the one that is used.
        """
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            ahead: list[Future[Pixels]] = []
            for indices, draws in chosen:
                following = [
                    pool.submit(self._decode, self.names[index], None if draws is None else draw)
                    for index, draw in zip(
                        indices, indices if draws is None else draws, strict=True
                    )
                ]
                if ahead:
                    yield np.stack([future.result() for future in ahead])
                ahead = following
            if ahead:
                yield np.stack([future.result() for future in ahead])

    def _decode(self, name: str, draw: NDArray[np.float32] | None) -> Pixels:
        from PIL import Image

        image = _picture(self.read(name), name)
        box = _centre(image.size, self.size) if draw is None else _crop(image.size, draw)
        resized = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
        return np.asarray(resized, np.uint8)


Pictures = Stored | Files


def load(where: Path, part: Part, dataset: str | None = None) -> tuple[Pictures, str]:
    """Read a part of the data set at `where`; also return which of `DATASETS` it is.

    `where` is a folder or zip file with one folder of pictures per class, which may lie in folders
    called train, test or val; or CIFAR's batches, in Python's or the binary form, in a folder or a
    tar file. Without `dataset`, batches tell theirs by their form, and pictures by size and number
    of classes. Raises ValueError where there is nothing to read or it does not fit.
    """
    if dataset is not None and dataset not in DATASETS:
        raise ValueError(f"no data set {dataset!r}; there are: {', '.join(DATASETS)}")
    if not where.exists():
        raise ValueError(f"{where} does not exist")
    if where.is_file() and tarfile.is_tarfile(where):
        return _cifar(_from_tar(where, part), where, part, dataset)
    names, read = _members(where)
    batches = [name for name in names if _is_batch(name, part)]
    if batches:
        return _cifar({name: read(name) for name in batches}, where, part, dataset)
    return _pictures(names, read, where, part, dataset)


def load_test(
    data: Path, test: Path | None, dataset: str, classes: tuple[str, ...]
) -> Pictures | None:
    """The pictures to measure on: those at `test`, or else those of `data` that are for testing.

    None where neither is there. Raises ValueError where they do not fit the training pictures.
    """
    if test is None:
        if not _has_test(data):
            return None
        test = data
    pictures, _ = load(test, "test", dataset)
    if pictures.classes != classes:
        odd = sorted(set(pictures.classes) ^ set(classes))
        raise ValueError(f"{test}: classes differ from those of training: {', '.join(odd[:5])}")
    return pictures


def _has_test(where: Path) -> bool:
    """Whether a data set has a part for testing beside that for training."""
    if where.is_file() and tarfile.is_tarfile(where):
        return True
    names, _ = _members(where)
    folders = {folder for name in names for folder in PurePosixPath(name).parts[:-2]}
    return any(_is_batch(name, "test") for name in names) or (
        {PARTS[folder] for folder in folders if folder in PARTS} == {"train", "test"}
    )


def _members(where: Path) -> tuple[list[str], Callable[[str], bytes]]:
    """The files in a folder or zip file, in order, by their path in it; and what reads one."""
    if where.is_dir():
        found = (file.relative_to(where).as_posix() for file in where.rglob("*") if file.is_file())
        return sorted(found), lambda name: (where / name).read_bytes()
    try:
        archive = zipfile.ZipFile(where)
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{where} is neither a folder nor a zip or tar file: {error}") from error

    def read(name: str) -> bytes:
        try:
            return archive.read(name)
        except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{where}: {name} cannot be read: {error}") from error

    return sorted(info.filename for info in archive.infolist() if not info.is_dir()), read


def _pictures(
    names: list[str],
    read: Callable[[str], bytes],
    where: Path,
    part: Part,
    dataset: str | None,
) -> tuple[Pictures, str]:
    """Pictures whose class is the folder they lie in."""
    paths = [PurePosixPath(name) for name in names]
    paths = [path for path in paths if path.suffix.lower() in SUFFIXES and not _hidden(path)]
    parts = {PARTS[folder] for path in paths for folder in path.parts[:-2] if folder in PARTS}
    if len(parts) > 1:
        paths = [p for p in paths if any(PARTS.get(folder) == part for folder in p.parts[:-2])]
    if not paths:
        raise ValueError(f"{where} holds no pictures ({', '.join(sorted(SUFFIXES))})")
    loose = next((path for path in paths if len(path.parts) < 2), None)
    if loose is not None:
        raise ValueError(f"{where}: {loose} lies in no folder that would name its class")
    classes = tuple(sorted({path.parts[-2] for path in paths}))
    if dataset is None:
        dataset = _guess(_picture(read(str(paths[0])), str(paths[0])).size, len(classes), where)
    _check_classes(len(classes), dataset, where)
    number = {name: index for index, name in enumerate(classes)}
    labels = np.array([number[path.parts[-2]] for path in paths], np.int64)
    size = DATASETS[dataset].size
    files = [str(path) for path in paths]
    if dataset == "imagenet":
        return Files(read, files, labels, classes, size), dataset
    pixels = np.empty((len(files), size, size, 3), np.uint8)
    for index, name in enumerate(files):
        image = _picture(read(name), name)
        if image.size != (size, size):
            width, height = image.size
            raise ValueError(f"{name} is {width}x{height}; {dataset} has {size}x{size}")
        pixels[index] = np.asarray(image)
    return Stored(pixels, labels, classes), dataset


def _hidden(path: PurePosixPath) -> bool:
    """Whether a file is what a desktop leaves beside pictures."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _guess(size: tuple[int, int], classes: int, where: Path) -> str:
    """The data set whose pictures have this width and height."""
    if min(size) >= DATASETS["imagenet"].size // 2:
        return "imagenet"
    for name, known in DATASETS.items():
        if size == (known.size, known.size) and classes == known.classes:
            return name
    raise ValueError(
        f"{where}: {classes} classes of pictures of {size[0]}x{size[1]} fit no data set; there are "
        f"{', '.join(DATASETS)}"
    )


def _check_classes(count: int, dataset: str, where: Path) -> None:
    wanted = DATASETS[dataset].classes
    if wanted is not None and count != wanted:
        raise ValueError(f"{where}: {count} classes, but {dataset} has {wanted}")
    if count < 2:
        raise ValueError(f"{where}: one class is nothing to learn")


def _picture(content: bytes, name: str) -> Any:
    """The RGB picture in a file's bytes."""
    from PIL import Image

    try:
        return Image.open(io.BytesIO(content)).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} is no picture that can be read: {error}") from error


def _centre(size: tuple[int, int], wanted: int) -> tuple[float, float, float, float]:
    """The middle square of a picture: what is left when MARGIN is cut from its shorter side."""
    width, height = size
    side = min(width, height) / (MARGIN if min(width, height) > wanted else 1)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _crop(size: tuple[int, int], draw: NDArray[np.float32]) -> tuple[float, float, float, float]:
    """The part of a picture that four random numbers of 0 to 1 choose."""
    width, height = size
    area = (AREA[0] + (AREA[1] - AREA[0]) * float(draw[0])) * width * height
    aspect = ASPECT[0] * (ASPECT[1] / ASPECT[0]) ** float(draw[1])
    across = min(width, max(1.0, (area * aspect) ** 0.5))
    down = min(height, max(1.0, (area / aspect) ** 0.5))
    left, top = (width - across) * float(draw[2]), (height - down) * float(draw[3])
    return left, top, left + across, top + down


def _is_batch(name: str, part: Part) -> bool:
    """Whether a file is called like one of CIFAR's batches, for training or for testing."""
    match = _BATCH.search(name)
    return match is not None and match["part"].startswith("test") == (part == "test")


def _from_tar(where: Path, part: Part) -> dict[str, bytes]:
    """The CIFAR batches in a tar file."""
    found = {}
    try:
        with tarfile.open(where) as archive:
            for member in archive:
                if member.isfile() and _is_batch(member.name, part):
                    content = archive.extractfile(member)
                    assert content is not None  # it is a file
                    found[member.name] = content.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise ValueError(f"{where} cannot be read: {error}") from error
    if not found:
        raise ValueError(f"{where} holds no CIFAR batches; pictures come in a folder or a zip file")
    return dict(sorted(found.items()))


def _cifar(
    batches: dict[str, bytes], where: Path, part: Part, dataset: str | None
) -> tuple[Stored, str]:
    """CIFAR's batches, decoded: each picture is 3 planes of 32x32 bytes."""
    fine = {PurePosixPath(name).stem in ("train", "test") for name in batches}
    if len(fine) > 1:
        raise ValueError(f"{where} holds both CIFAR-10 and CIFAR-100")
    found = "cifar100" if fine.pop() else "cifar10"
    if dataset not in (None, found):
        raise ValueError(f"{where} holds {found}, not {dataset}")
    known = DATASETS[found]
    assert known.classes is not None
    planes, labels = [], []
    for name, content in batches.items():
        decode = _binary_batch if name.endswith(".bin") else _python_batch
        x, y = decode(content, found, f"{where}: {name}")
        planes.append(x)
        labels.append(y)
    x = np.concatenate(planes).reshape(-1, 3, known.size, known.size)
    y = np.concatenate(labels).astype(np.int64)
    if y.size == 0 or y.min() < 0 or y.max() >= known.classes:
        raise ValueError(f"{where}: labels are not 0 to {known.classes - 1}")
    names = tuple(str(index) for index in range(known.classes))
    return Stored(np.ascontiguousarray(x.transpose(0, 2, 3, 1)), y, names), found


def _binary_batch(content: bytes, dataset: str, name: str) -> tuple[Pixels, Pixels]:
    """The planes [n, 3072] and labels [n] of a batch of records: labels, then planes."""
    labels = 2 if dataset == "cifar100" else 1  # CIFAR-100 has the coarse class before the fine
    record = labels + 3 * 32 * 32
    if not content or len(content) % record:
        raise ValueError(f"{name}: {len(content)} bytes are no records of {record}")
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    return records[:, labels:], records[:, labels - 1]


class _ArraysOnly(pickle.Unpickler):
    """Reads pickled NumPy arrays, lists and numbers, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): codecs.encode,  # how Python 3 writes bytes for Python 2
        }
        try:
            return allowed[module.rpartition(".")[2], name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in CIFAR") from None


def _python_batch(content: bytes, dataset: str, name: str) -> tuple[Pixels, Indices]:
    """The planes [n, 3072] and labels [n] of a pickled batch."""
    key = b"fine_labels" if dataset == "cifar100" else b"labels"
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        x, y = np.asarray(batch[b"data"]), np.asarray(batch[key], np.int64)
    except Exception as error:  # a broken pickle can raise nearly anything
        raise ValueError(f"{name} is no pickled batch of {dataset}: {error!r}") from error
    if x.dtype != np.uint8 or x.shape != (len(y), 3 * 32 * 32) or y.ndim != 1:
        raise ValueError(f"{name}: pictures {x.dtype} {list(x.shape)}, labels {list(y.shape)}")
    return x, y
