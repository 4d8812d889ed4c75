"""Where samples are stored: arrays in memory and in files, and images in folders, archives and tables.

A source is opened without reading its samples: their number, names, shapes and labels follow from
headers and lists of names.  Samples are read by their numbers, from several threads at once.  Their
order is stable: names sorted within one source, and several sources in the order of their names.

Pickled objects are never loaded.
"""

from __future__ import annotations

import glob
import json
import os
import re
import tarfile
import threading
import tokenize
import zipfile
import zlib
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from snncompiler.errors import EnvironmentMissing, UsageError, refuse

Array = NDArray[Any]
Numbers = NDArray[np.int64]

#: What is raised on damaged files; the last one by numpy, which reads headers as Python.
DAMAGE = (
    ValueError, OSError, EOFError, MemoryError, OverflowError, SyntaxError, RuntimeError, KeyError,
    zipfile.BadZipFile, zlib.error, NotImplementedError, tokenize.TokenError,
)  # fmt: skip
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp")
#: What an array of a file may be called where the network has one input.
DATA_NAMES = ("x", "images")
#: No image file is larger; what is would take memory before it is found to be none.
MAX_IMAGE_BYTES = 1 << 28
_KNOWN = "an .npz, an .npy, a .parquet, or images in a folder, a .zip or a .tar"


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# --- arrays ---


class Rows(ABC):
    """An array [n, ...] some rows of which can be read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @abstractmethod
    def read(self, numbers: Numbers) -> Array:
        """The rows with these numbers, [len(numbers), ...].  Raises Refused where they are damaged."""

    @abstractmethod
    def reshaped(self, shape: tuple[int, ...]) -> Rows:
        """The same values as rows of another shape."""


@dataclass
class InMemory(Rows):
    """An array that is there already."""

    array: Array

    def __post_init__(self) -> None:
        self.shape, self.dtype = self.array.shape, self.array.dtype

    def read(self, numbers: Numbers) -> Array:
        count = len(numbers)
        if (
            count
            and int(numbers[-1]) - int(numbers[0]) == count - 1
            and (np.diff(numbers) == 1).all()
        ):
            return self.array[int(numbers[0]) : int(numbers[0]) + count]  # without a copy
        return self.array[numbers]

    def reshaped(self, shape: tuple[int, ...]) -> Rows:
        return InMemory(self.array.reshape(shape))


@dataclass
class OnDisk(Rows):
    """An array that lies in a file as it would in memory, its last axis innermost, from `offset` on.

    Its rows are read where they are asked for.  They are not mapped into memory: pages of a map count
    as the process's memory, and a file that is cut off while it is read would end the process.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, numbers: Numbers) -> Array:
        size = self.dtype.itemsize * prod(self.shape[1:])
        rows = np.empty((len(numbers), size), np.uint8)
        # Where rows follow each other, they are read at once.
        starts = np.flatnonzero(np.diff(numbers, prepend=-2) != 1)
        stops = [*starts[1:], len(numbers)][: len(starts)]
        try:
            with self.path.open("rb", buffering=0) as file:
                for start, stop in zip(starts, stops, strict=True):
                    file.seek(self.offset + int(numbers[start]) * size)
                    _read_into(file, rows[start:stop])
        except OSError as error:
            text = error.strerror or first_line(error)
            raise refuse("SNNC301", f"{self.path} cannot be read: {text}") from None
        return np.ndarray((len(numbers), *self.shape[1:]), self.dtype, buffer=rows.data)

    def reshaped(self, shape: tuple[int, ...]) -> Rows:
        known = prod(shape[1:])
        return replace(self, shape=(prod(self.shape) // max(known, 1), *shape[1:]))


def _read_into(file: Any, rows: NDArray[np.uint8]) -> None:
    """Fill an array with the next bytes of a file.  Raises OSError where it ends before."""
    view, done = memoryview(rows.reshape(-1).data), 0
    while done < len(view):
        read = file.readinto(view[done:])
        if not read:
            raise OSError("it is cut off")
        done += read


@dataclass
class Joined(Rows):
    """Arrays one behind the other."""

    parts: Sequence[Rows]

    def __post_init__(self) -> None:
        first = self.parts[0]
        self.dtype = first.dtype
        self.starts = np.cumsum([0, *(part.shape[0] for part in self.parts)])
        self.shape = (int(self.starts[-1]), *first.shape[1:])

    def read(self, numbers: Numbers) -> Array:
        rows = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        owner = np.searchsorted(self.starts, numbers, side="right") - 1
        for index in np.unique(owner):
            mine = owner == index
            rows[mine] = self.parts[index].read(numbers[mine] - self.starts[index])
        return rows

    def reshaped(self, shape: tuple[int, ...]) -> Rows:
        return Joined([part.reshaped(shape) for part in self.parts])


def rows_of_npy(path: Path) -> Rows:
    """The array of an .npy.  Raises Refused where it cannot be read."""
    try:
        with path.open("rb") as file:
            return _rows_at(path, file, os.fstat(file.fileno()).st_size)
    except DAMAGE as error:
        raise refuse("SNNC301", f"{path} cannot be read: {first_line(error)}") from None


def _rows_at(path: Path, file: IO[bytes], end: int) -> Rows:
    """The array whose .npy header is next in a file; `end`: where its bytes end at the latest.

    Raises ValueError where it is no such array.
    """
    start = file.tell()
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:  # which names fields of records in Unicode
        raise ValueError(f"it is an .npy of version {version[0]}.{version[1]}")
    if dtype.hasobject:
        raise ValueError("Object arrays are pickles")
    if any(size < 0 for size in shape):
        raise ValueError(f"its shape is {list(shape)}")
    if file.tell() + prod(shape) * dtype.itemsize > end:
        raise ValueError(f"it is cut off: it holds no {list(shape)} values of {dtype}")
    if not fortran or len(shape) < 2:
        if not shape:
            file.seek(start)
            return InMemory(np.asarray(np.lib.format.read_array(file, allow_pickle=False)))
        return OnDisk(path, file.tell(), tuple(shape), dtype)
    file.seek(start)
    return InMemory(np.asarray(np.lib.format.read_array(file, allow_pickle=False)))


def rows_of_npz(path: Path) -> dict[str, Rows]:
    """The arrays of an .npz by their names: those that are stored as they are stay in the file, those
    that are compressed are read.  Raises Refused where it cannot be read."""
    found: dict[str, Rows] = {}
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            for entry in archive.infolist():
                name = entry.filename.removesuffix(".npy")
                if entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1:
                    file.seek(_start_of(file, entry))
                    found[name] = _rows_at(path, file, file.tell() + entry.file_size)
                else:
                    with archive.open(entry) as member:
                        array = np.lib.format.read_array(member, allow_pickle=False)
                    found[name] = InMemory(np.asarray(array))
    except DAMAGE as error:
        raise refuse(
            "SNNC301",
            f"{path} cannot be read: {first_line(error)}",
            hint="arrays of objects (pickles) are never loaded",
        ) from None
    return found


def _start_of(file: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """Where the bytes of a member of a zip begin: behind its local header, whose name and extra field
    may be longer than those in the directory.  Raises ValueError where there is no such header."""
    file.seek(entry.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise ValueError(f"its member {entry.filename} is damaged")
    lengths = [int.from_bytes(header[at : at + 2], "little") for at in (26, 28)]
    return entry.header_offset + 30 + sum(lengths)


# --- images ---


class Pictures(ABC):
    """Encoded images by their numbers.

    where: what they lie in, for messages.  names: of each one, as its source has it.  labels: the
    classes that are stored beside the images.
    """

    where: str
    names: Sequence[str]
    labels: Array | None = None

    @abstractmethod
    def raw(self, number: int) -> bytes:
        """The bytes of an image.  Raises one of DAMAGE where they cannot be read."""

    def __len__(self) -> int:
        return len(self.names)

    def name(self, number: int) -> str:
        """How messages call an image."""
        return self.names[number]


def _check_size(size: int) -> None:
    """Raises ValueError for a file that is too large to be an image."""
    if size > MAX_IMAGE_BYTES:
        raise ValueError(f"it has {size:,} bytes, an image at most {MAX_IMAGE_BYTES:,}")


class Folder(Pictures):
    """The image files below a folder."""

    def __init__(self, path: Path) -> None:
        self.where, self._path = str(path), path
        self.names = _ordered(_below(path))

    def raw(self, number: int) -> bytes:
        path = self._path / self.names[number]
        _check_size(path.stat().st_size)
        return path.read_bytes()


def _below(path: Path) -> list[str]:
    found = []
    for folder, folders, names in os.walk(path):
        folders.sort()
        inner = Path(folder).relative_to(path)
        found += [(inner / name).as_posix() for name in names if _is_image(name)]
    return [name for name in found if (path / name).is_file()]


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _ordered(names: Sequence[str]) -> list[str]:
    """Names sorted, folder by folder."""
    return sorted(names, key=lambda name: name.split("/"))


class Zip(Pictures):
    """The image files in a zip."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        try:
            self._archive = zipfile.ZipFile(path)  # which several threads may read
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            raise refuse("SNNC301", f"{path} is not a zip archive") from None
        self.names = _ordered([name for name in self._archive.namelist() if _is_image(name)])

    def raw(self, number: int) -> bytes:
        # No more is unpacked than the directory says.
        _check_size(self._archive.getinfo(self.names[number]).file_size)
        return self._archive.read(self.names[number])


class Tar(Pictures):
    """The images in a tar, also in the WebDataset convention: a sample is the files whose names are
    equal up to the first dot, and its class stands in its .cls, .txt or .json."""

    def __init__(self, path: Path) -> None:
        self.where, self._path = str(path), path
        samples: dict[str, dict[str, tuple[int, int]]] = {}
        for name, place in _members(path).items():
            folder, base = os.path.split(name)
            key, dot, kind = base.partition(".")
            samples.setdefault(os.path.join(folder, key), {})[dot + kind] = place
        found: dict[str, tuple[tuple[int, int], Mapping[str, tuple[int, int]]]] = {}
        for key, files in samples.items():
            images = [kind for kind in files if _is_image(f"x{kind}")]
            plain = [kind for kind in images if kind.lower() in IMAGE_SUFFIXES]
            if len(plain) > 1:
                text = (
                    f"{path} has {len(plain)} images of one sample, {key}{plain[0]} and {plain[1]}"
                )
                raise refuse("SNNC302", text)
            for kind in plain or images:
                found[key + kind] = (files[kind], files if plain else {})
        self.names = _ordered(list(found))
        self._places = [found[name][0] for name in self.names]
        self.labels = self._classes([found[name][1] for name in self.names])

    def _classes(self, siblings: Sequence[Mapping[str, tuple[int, int]]]) -> Array | None:
        """The classes that stand beside the images, None where there are none."""
        classes: list[int | None] = []
        for name, files in zip(self.names, siblings, strict=True):
            kind = next((kind for kind in (".cls", ".json", ".txt") if kind in files), "")
            classes.append(_class_in(self._at(files[kind]), kind) if kind else None)
            if classes[-1] is None and any(one is not None for one in classes):
                raise refuse("SNNC302", f"{self.where} has no class beside {name}")
            if classes[0] is None and classes[-1] is not None:
                raise refuse("SNNC302", f"{self.where} has no class beside {self.names[0]}")
        return np.array(classes, np.int64) if classes and classes[0] is not None else None

    def raw(self, number: int) -> bytes:
        return self._at(self._places[number])

    def _at(self, place: tuple[int, int]) -> bytes:
        _check_size(place[1])
        with self._path.open("rb") as file:
            file.seek(place[0])
            return file.read(place[1])


def _members(path: Path) -> dict[str, tuple[int, int]]:
    """Where the files of a tar lie: offset and size by name.  Raises Refused where it is damaged."""
    found: dict[str, tuple[int, int]] = {}
    end = 0
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                end = member.offset_data + (-(-member.size // 512) * 512 if member.isreg() else 0)
                if member.isreg() and not member.issparse():
                    found[member.name] = (member.offset_data, member.size)
                archive.members = []  # type: ignore[attr-defined]  # which it would all keep
            file.seek(end)
            if file.read(512) != bytes(512):  # what every tar ends with
                raise refuse("SNNC301", f"{path} is cut off")
    except (tarfile.TarError, *DAMAGE) as error:
        hint = "a .tar that is compressed has to be unpacked: its files are read in any order"
        text = f"{path} is not a tar archive: {first_line(error)}"
        raise refuse("SNNC301", text, hint=hint) from None
    return found


def _class_in(raw: bytes, kind: str) -> int | None:
    """The class in a file beside an image: a whole number, in JSON as `label`, `cls` or `class` too."""
    try:
        content = json.loads(raw)
    except ValueError:
        return None  # of a caption, for one
    if kind == ".json" and isinstance(content, dict):
        content = next((content[key] for key in ("label", "cls", "class") if key in content), None)
    return content if isinstance(content, int) and not isinstance(content, bool) else None


class Parquet(Pictures):
    """The images of a Parquet table: a column of bytes, or of records with `bytes` as those of Hugging
    Face; the classes are a column of whole numbers.  Rows keep their order."""

    IMAGES = ("image", "img", *DATA_NAMES)
    CLASSES = ("label", "labels", "y", "cls", "class")

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise EnvironmentMissing(
                "pyarrow reads Parquet and is missing", "pip install 'snnc[parquet]'"
            ) from error
        self.where = str(path)
        try:
            self._file = pyarrow.parquet.ParquetFile(path)
            groups = range(self._file.num_row_groups)
            counts = [self._file.metadata.row_group(group).num_rows for group in groups]
            schema = self._file.schema_arrow
            self._column = self._image_column(pyarrow.types, schema)
            self.labels = self._classes(pyarrow.types, schema)
        except (pyarrow.ArrowException, *DAMAGE) as error:
            raise refuse("SNNC301", f"{path} cannot be read: {first_line(error)}") from None
        self._starts = [0]
        for count in counts:
            self._starts.append(self._starts[-1] + count)
        self.names = _RowNames(self._starts[-1])
        self._groups: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._damage = pyarrow.ArrowException

    def _image_column(self, types: Any, schema: Any) -> str:
        def holds_bytes(kind: Any) -> bool:
            if types.is_struct(kind):
                return any(one.name == "bytes" and holds_bytes(one.type) for one in kind)
            return bool(types.is_binary(kind) or types.is_large_binary(kind))

        fitting = [field.name for field in schema if holds_bytes(field.type)]
        named = [name for name in self.IMAGES if name in fitting] or fitting
        if len(named) == 1 or (named and named[0] in self.IMAGES):
            return named[0]
        raise refuse(
            "SNNC302",
            f"{self.where} has {len(named) or 'no'} columns of bytes, of {schema.names}",
            hint=f"call the column of the images {self.IMAGES[0]}",
        )

    def _classes(self, types: Any, schema: Any) -> Array | None:
        name = next((name for name in self.CLASSES if name in schema.names), None)
        if name is None or not types.is_integer(schema.field(name).type):
            return None
        column = self._file.read(columns=[name]).column(name)
        if column.null_count:
            raise refuse("SNNC302", f"{self.where} has rows without a {name}")
        return np.asarray(column.to_numpy(), np.int64)

    def raw(self, number: int) -> bytes:
        group = bisect_right(self._starts, number) - 1
        with self._lock:
            try:
                if group not in self._groups:
                    if len(self._groups) > 1:  # a batch may lie in two of them
                        self._groups.popitem(last=False)
                    table = self._file.read_row_group(group, columns=[self._column])
                    self._groups[group] = table.column(self._column)
                content = self._groups[group][number - self._starts[group]].as_py()
            except self._damage as error:
                raise OSError(first_line(error)) from None
        content = content.get("bytes") if isinstance(content, dict) else content
        if not content:
            raise ValueError("it has no bytes")
        return bytes(content)


class _RowNames(Sequence[str]):
    """The rows of a table, called by their numbers."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < self._count:
            raise IndexError(number)
        return f"row {number}"


class Several(Pictures):
    """Pictures of several sources, one behind the other."""

    def __init__(self, where: str, parts: Sequence[Pictures]) -> None:
        self.where, self._parts = where, parts
        self.names = [name for part in parts for name in part.names]
        self._starts = [0]
        for part in parts:
            self._starts.append(self._starts[-1] + len(part))
        labels = [part.labels for part in parts]
        if all(label is not None for label in labels):
            self.labels = np.concatenate([label for label in labels if label is not None])
        elif any(label is not None for label in labels):
            lacking = next(part.where for part in parts if part.labels is None)
            raise refuse("SNNC302", f"{lacking} has no classes, others of {where} have some")

    def _owner(self, number: int) -> tuple[Pictures, int]:
        at = bisect_right(self._starts, number) - 1
        return self._parts[at], number - self._starts[at]

    def raw(self, number: int) -> bytes:
        part, inner = self._owner(number)
        return part.raw(inner)

    def name(self, number: int) -> str:
        part, inner = self._owner(number)
        return f"{part.where}: {part.name(inner)}"


# --- from a path to a source ---


@dataclass
class Opened:
    """What lies at a path: arrays by name, or pictures."""

    where: str
    arrays: Mapping[str, Rows] | None = None
    pictures: Pictures | None = None


def opened(path: str | os.PathLike[str]) -> Opened:
    """The source at a path; several where it is a pattern, as `shards/*.tar`.

    Raises UsageError for a path that is not there or of no known kind, Refused for a damaged file.
    """
    text = os.fspath(path)
    try:
        there = os.path.lexists(text)
        matching = [] if there else sorted(glob.glob(text, recursive=True))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UsageError(f"{text} cannot be a file: {reason}", code="SNNC301") from None
    if there or not glob.has_magic(text):
        return _opened(Path(text))
    if not matching:
        raise UsageError(f"nothing is called {text}", code="SNNC301")
    return _joined(text, [_opened(Path(one)) for one in matching])


def _opened(path: Path) -> Opened:
    try:
        if not path.exists():
            raise UsageError(f"{path} does not exist", code="SNNC301")
        folder, file = path.is_dir(), path.is_file()
    except OSError as error:
        raise UsageError(f"{path} cannot be a file: {error.strerror}", code="SNNC301") from None
    if not folder and not file:
        raise UsageError(f"{path} is neither a file nor a folder", code="SNNC301")
    kind = path.suffix.lower()
    if folder:
        return Opened(str(path), pictures=Folder(path))
    if kind in _PICTURES:
        return Opened(str(path), pictures=_PICTURES[kind](path))
    if kind == ".npz":
        return Opened(str(path), arrays=rows_of_npz(path))
    if kind == ".npy":
        return Opened(str(path), arrays={DATA_NAMES[0]: rows_of_npy(path)})
    hint = f"give {_KNOWN}"
    if path.name.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        hint = "unpack it to a .tar, whose files can be read in any order"
    raise UsageError(f"{path} is of no kind that is known", hint=hint, code="SNNC301")


_PICTURES: dict[str, Callable[[Path], Pictures]] = {".zip": Zip, ".tar": Tar, ".parquet": Parquet}


def _joined(where: str, parts: Sequence[Opened]) -> Opened:
    pictures = [part.pictures for part in parts if part.pictures is not None]
    if len(pictures) == len(parts):
        return Opened(where, pictures=Several(where, pictures) if len(parts) > 1 else pictures[0])
    if pictures:
        raise UsageError(f"{where} stands for arrays and for images", hint="give one kind")
    arrays = [part.arrays for part in parts if part.arrays is not None]
    for part, other in zip(parts, arrays, strict=True):
        for name, rows in other.items():
            first = arrays[0].get(name)
            kind = (first.dtype, first.shape[1:]) if first is not None else None
            if (
                set(other) != set(arrays[0])
                or kind != (rows.dtype, rows.shape[1:])
                or not rows.shape
            ):
                raise refuse(
                    "SNNC302",
                    f"the arrays in {part.where} are not like those in {parts[0].where}",
                )
    return Opened(where, {n: Joined([other[n] for other in arrays]) for n in arrays[0]})


# --- labels ---


def labels_of(pictures: Pictures, file: Path | None) -> Array | None:
    """The classes of images: from a file that lists them, or those stored beside the images, or from
    their names."""
    if file is not None:
        return _listed(pictures, file)
    return _named(pictures.names) if pictures.labels is None else pictures.labels


def _named(names: Sequence[str]) -> Array | None:
    """The number before the first underscore of a name, or the folder in which the image lies.

    Folders count in alphabetical order, as in torchvision's ImageFolder, unless they are numbers.
    """
    prefixes = [re.match(r"(\d+)_", PurePosixPath(name).name) for name in names]
    if all(prefixes):
        return np.array([int(prefix.group(1)) for prefix in prefixes if prefix], np.int64)
    folders = [PurePosixPath(name).parent.name for name in names]
    if not all(folders) or len(set(folders)) < 2:
        return None
    return _numbered(folders, folders)


def _numbered(classes: Sequence[str], all_of_them: Sequence[str]) -> Array:
    """Classes that are called by numbers, or by names that count in alphabetical order."""
    if all(re.fullmatch(r"\d+", name) for name in all_of_them):
        return np.array([int(name) for name in classes], np.int64)
    order = {name: index for index, name in enumerate(sorted(set(all_of_them)))}
    return np.array([order[name] for name in classes], np.int64)


def _listed(pictures: Pictures, file: Path) -> Array:
    """The classes in a csv of file names and classes, which may have a heading."""
    import csv

    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            rows = [[cell.strip() for cell in row] for row in csv.reader(text) if row]
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UsageError(f"--labels {file} cannot be read: {reason}", code="SNNC301") from None
    short = next((number for number, row in enumerate(rows, 1) if len(row) < 2), None)
    if short is not None:
        raise refuse("SNNC302", f"{file} has no file name and class in its row {short}")
    bases = [PurePosixPath(name).name for name in pictures.names]
    known = {*pictures.names, *bases}
    if rows and rows[0][0] not in known:
        rows = rows[1:]  # a heading
    by_name: dict[str, str] = {}
    for name, kind in ((row[0], row[1]) for row in rows):
        if by_name.setdefault(name, kind) != kind:
            raise refuse("SNNC302", f"{file} has two classes of {name}")
    twice = len(set(bases)) < len(bases)
    found = [
        by_name.get(name, None if twice else by_name.get(base))
        for name, base in zip(pictures.names, bases, strict=True)
    ]
    lacking = [name for name, kind in zip(pictures.names, found, strict=True) if kind is None]
    if lacking:
        raise refuse(
            "SNNC302", f"{file} has no class of {len(lacking):,} images, such as {lacking[0]}"
        )
    return _numbered([kind for kind in found if kind is not None], list(by_name.values()))
