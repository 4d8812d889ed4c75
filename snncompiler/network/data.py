"""Calibration and evaluation data: samples of any number, which are read when they are wanted.

A `Dataset` of arrays is in memory.  One of files knows how many samples there are, and their labels;
it reads, decodes and preprocesses samples batch by batch (`Dataset.batches`), in threads that run ahead
of whoever takes the batches, so that memory does not depend on the number of samples.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snncompiler.errors import EnvironmentMissing, UsageError, refuse
from snncompiler.findings import Finding
from snncompiler.network.preprocess import (
    InputSpec,
    Layout,
    Preprocess,
    Seen,
    check_applied,
    fit,
    fits,
    wrong_shape,
)
from snncompiler.network.sources import (
    DAMAGE,
    DATA_NAMES,
    IMAGE_SUFFIXES,
    InMemory,
    Numbers,
    Opened,
    Pictures,
    Rows,
    first_line,
    labels_of,
    opened,
)

__all__ = [
    "IMAGE_SUFFIXES", "Batch", "Dataset", "InputSpec", "Layout", "Preprocess", "load_data",
]  # fmt: skip

Array = NDArray[Any]

_LABEL_NAMES = ("y", "labels")
#: Threads that read and decode; each has one batch, and as many batches wait to be taken.
READERS = min(4, os.cpu_count() or 1)


# --- samples that are read when they are wanted ---


@dataclass(frozen=True)
class Read:
    """Samples [m, ...] as a network takes them, their places among those that were asked for, and the
    names of those that are damaged."""

    values: Array
    places: Numbers
    damaged: tuple[str, ...] = ()


class Samples(ABC):
    """One input of all samples, [n, ...] as the network takes it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @abstractmethod
    def read(self, numbers: Numbers, skip_damaged: bool = False) -> Read:
        """The samples with these numbers.  Raises Refused where one does not fit, or is damaged."""


class ArraySamples(Samples):
    """Samples from the rows of an array."""

    def __init__(
        self, rows: Rows, spec: InputSpec, how: Preprocess, where: str, seen: Seen
    ) -> None:
        self._rows, self._spec, self._how, self._where = rows, spec, how, where
        if not rows.shape:
            raise wrong_shape(rows.shape, spec, where)
        seen.count = rows.shape[0]
        first = fit(rows.read(np.arange(min(1, rows.shape[0]))), spec, how, where, seen)
        self.shape, self.dtype = (rows.shape[0], *first.shape[1:]), first.dtype

    def read(self, numbers: Numbers, skip_damaged: bool = False) -> Read:
        stored = self._rows.read(numbers)
        values = fit(stored, self._spec, self._how, self._where, Seen())
        check_finite(values, self._spec.name, numbers)
        return Read(values, np.arange(len(numbers)))


class ImageSamples(Samples):
    """Samples from encoded images, each of which is decoded and preprocessed by itself."""

    def __init__(
        self, pictures: Pictures, spec: InputSpec, how: Preprocess, seen: Seen, skip_damaged: bool
    ) -> None:
        self.pictures, self._spec, self._how = pictures, spec, how
        seen.applied.add("resize")
        seen.count = len(pictures)
        self._first = ""
        first = self._first_of(seen, skip_damaged)
        self.shape, self.dtype = (len(pictures), *first.shape[1:]), first.dtype

    def _first_of(self, seen: Seen, skip_damaged: bool) -> Array:
        """The first image that can be read, which tells how all are."""
        for number in range(len(self.pictures)):
            try:
                pixels = self._decoded(number)
            except _Damaged as damaged:
                if not skip_damaged:
                    raise _refused(damaged) from None
                continue
            self._first = self.pictures.name(number)
            return fit(pixels, self._spec, self._how, self.pictures.where, seen)
        raise refuse("SNNC303", f"no image of {self.pictures.where} can be read")

    def read(self, numbers: Numbers, skip_damaged: bool = False) -> Read:
        values = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        places: list[int] = []
        lost: list[str] = []
        for place, number in enumerate(numbers.tolist()):
            try:
                pixels = self._decoded(number)
            except _Damaged as damaged:
                if not skip_damaged:
                    raise _refused(damaged) from None
                lost.append(str(damaged))
                continue
            name = f"image {self.pictures.name(number)}"
            (value,) = fit(pixels, self._spec, self._how, name, Seen())
            if value.shape != self.shape[1:]:
                raise refuse(
                    "SNNC302",
                    f"{name} becomes {list(value.shape)}, the first one, {self._first}, "
                    f"{list(self.shape[1:])}",
                    hint="say --resize HxW",
                )
            values[len(places)] = value
            places.append(place)
        return Read(values[: len(places)], np.array(places, np.int64), tuple(lost))

    def _decoded(self, number: int) -> Array:
        """Pixels [1, H, W, C] of an image, resized.  Raises _Damaged."""
        try:
            raw = self.pictures.raw(number)
        except DAMAGE as error:
            text = getattr(error, "strerror", None) or first_line(error)
            raise _Damaged(f"image {self.pictures.name(number)} cannot be read: {text}") from None
        return _pixels(self.pictures.name(number), raw, self._spec.grey, self._how)[None]


class _Damaged(Exception):
    """An image that cannot be read, and why."""


def _refused(damaged: _Damaged) -> Exception:
    return refuse("SNNC301", str(damaged), hint="--skip-damaged leaves such images out")


def _pixels(name: str, raw: bytes, grey: bool, how: Preprocess) -> Array:
    """The pixels [H, W, C] of an encoded image.  Raises _Damaged."""
    try:
        from PIL import Image
    except ImportError as error:
        raise EnvironmentMissing(
            "pillow reads images and is missing", "pip install pillow"
        ) from error
    try:
        image = Image.open(BytesIO(raw)).convert("L" if grey else "RGB")
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise _Damaged(f"image {name} cannot be read: {first_line(error)}") from None
    if how.resize:
        height, width = _resized(how.resize, image.height, image.width)
        # Pillow's filters are wider where images become smaller, so that there is no aliasing.
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.uint8)
    return pixels[..., None] if grey else pixels


def _resized(asked: Sequence[int], height: int, width: int) -> tuple[int, int]:
    """The size of an image of which the shorter side, or both sides, are asked for.  The longer one is
    rounded down, as in torchvision."""
    if len(asked) == 2:
        return asked[0], asked[1]
    (side,) = asked
    return (
        (int(side * height / width), side)
        if width <= height
        else (side, int(side * width / height))
    )


def check_finite(values: Array, name: str, numbers: Numbers) -> None:
    """Raises Refused for NaN or infinity in samples with these numbers, with the place of the first."""
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        place = np.argwhere(~np.isfinite(values))[0]
        index = [int(numbers[place[0]]), *(int(i) for i in place[1:])]
        raise refuse("SNNC303", f"the data for '{name}' is {values[tuple(place)]} at {index}")


class Lazy(Mapping[str, Array]):
    """The inputs of a data set, of whose samples `read` reads some.

    As a mapping it gives whole arrays by input name, which it reads then and keeps.
    """

    def __init__(self, samples: Mapping[str, Samples], numbers: Numbers | range) -> None:
        self._samples, self._numbers = samples, numbers
        self._whole: dict[str, Array] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._samples)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, name: str) -> Array:
        if name not in self._whole:
            numbers = np.asarray(self._numbers, np.int64)
            self._whole[name] = self._samples[name].read(numbers).values
        return self._whole[name]

    @property
    def count(self) -> int:
        return len(self._numbers)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: (self.count, *one.shape[1:]) for name, one in self._samples.items()}

    @property
    def names(self) -> Iterator[str]:
        """The names that samples have in their source, where they have some."""
        for one in self._samples.values():
            if isinstance(one, ImageSamples):
                yield from (one.pictures.names[number] for number in self._numbers)

    def empty(self) -> dict[str, Array]:
        """Arrays that hold all samples, not filled yet."""
        return {n: np.empty(shape, self._samples[n].dtype) for n, shape in self.shapes.items()}

    def some(self, places: slice | Numbers) -> Lazy:
        """The same of some of the samples, none of which is read yet."""
        if isinstance(places, slice):
            return Lazy(self._samples, self._numbers[places])
        return Lazy(self._samples, np.asarray(self._numbers, np.int64)[places])

    def read(self, part: slice, skip_damaged: bool) -> tuple[dict[str, Array], Numbers, list[str]]:
        """Arrays by input name of the samples `part`, the places of those that could be read, and the
        names of the others."""
        numbers = np.asarray(self._numbers[part], np.int64)
        found = {name: one.read(numbers, skip_damaged) for name, one in self._samples.items()}
        (first, *_) = found.values()  # images serve networks with one input
        places = first.places + part.start
        return {name: one.values for name, one in found.items()}, places, list(first.damaged)


# --- data sets ---


@dataclass(frozen=True)
class Batch:
    """Samples that run at once.

    feeds: arrays by input name, where a fixed batch wants more repeated from the first sample on.
    numbers: which samples of the data set they are.  damaged: what could not be read, and why.
    """

    feeds: Mapping[str, Array]
    numbers: Numbers
    damaged: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many samples are meant; the others fill the batch up."""
        return len(self.numbers)

    @property
    def size(self) -> int:
        """How many samples run."""
        return len(next(iter(self.feeds.values())))


@dataclass(frozen=True)
class Dataset:
    """Samples for a network: arrays [n, ...] by input name, and labels [n] if there are any.

    If the network has no batch axis, `rows` rows of its input's leading axis are one sample, and the
    arrays are [rows·n, ...].  `feeds` of files are read as whole arrays where they are asked for;
    `batches` reads no more than some batches at once.
    """

    feeds: Mapping[str, Array]
    labels: Array | None = None
    findings: tuple[Finding, ...] = ()
    rows: int = 1
    skip_damaged: bool = False

    def __len__(self) -> int:
        if isinstance(self.feeds, Lazy):
            return self.feeds.count
        return len(next(iter(self.feeds.values())))

    @property
    def values(self) -> int:
        """How many values a sample has, in all inputs together."""
        shapes = (
            self.feeds.shapes.values()
            if isinstance(self.feeds, Lazy)
            else [array.shape for array in self.feeds.values()]
        )
        return sum(prod(shape[1:]) for shape in shapes)

    def head(self, count: int | None) -> Dataset:
        """The first `count` samples; all of them for None."""
        if count is None or count * self.rows >= len(self):
            return self
        labels = None if self.labels is None else self.labels[:count]
        return replace(self, feeds=self._some(slice(count * self.rows)), labels=labels)

    def sample(self, count: int | None, seed: int, together: int = 1) -> Dataset:
        """`count` samples drawn without replacement, in their order; all of them for None.

        `together` samples that follow each other are drawn as one: a fixed batch may be a sequence.
        """
        if count is None or count * self.rows >= len(self):
            return self
        groups, wanted = self.groups(together), max(count // together, 1)
        chosen = np.sort(np.random.default_rng(seed).choice(groups, wanted, replace=False))
        return self.take(chosen, together)

    def groups(self, together: int) -> int:
        """How many times there are so many samples."""
        return len(self) // self.rows // together

    def take(self, groups: NDArray[np.int64], together: int = 1) -> Dataset:
        """The groups with the given numbers, of `together` samples that follow each other."""
        chosen = (together * groups[:, None] + np.arange(together)).reshape(-1)
        labels = None if self.labels is None else self.labels[chosen]
        rows = (self.rows * chosen[:, None] + np.arange(self.rows)).reshape(-1)
        return replace(self, feeds=self._some(rows), labels=labels)

    def _some(self, rows: slice | Numbers) -> Mapping[str, Array]:
        if isinstance(self.feeds, Lazy):
            return self.feeds.some(rows)
        return {name: array[rows] for name, array in self.feeds.items()}

    def in_memory(self) -> Dataset:
        """The same data set with all its samples read, without those that are damaged.

        Raises Refused where a sample does not fit, where none is left, and where one is damaged and
        `skip_damaged` was not asked for.
        """
        if not isinstance(self.feeds, Lazy):
            return self
        feeds = self.feeds.empty()
        kept: list[Numbers] = []
        lost: list[str] = []
        count = 0
        for batch in self.batches(_READ_AT_ONCE):
            for name, values in batch.feeds.items():
                feeds[name][count : count + batch.count] = values
            count += batch.count
            kept.append(batch.numbers)
            lost += batch.damaged
        if not count:
            raise refuse("SNNC303", f"none of the {len(self):,} samples can be read")
        labels = self.labels
        if lost and labels is not None:
            labels = labels[np.concatenate(kept)]
        feeds = {name: array[:count] for name, array in feeds.items()}
        findings = (*self.findings, *left_out(lost))
        return replace(self, feeds=feeds, labels=labels, findings=findings)

    def batches(
        self, size: int, fixed: int | None = None, first: int = 0, last: int | None = None
    ) -> Iterator[Batch]:
        """The data set, `size` samples at a time, of which the batches `first` to `last` (exclusive);
        each filled up to `fixed` samples where that is given.

        Files are read in READERS threads, which are at most twice as many batches ahead.
        """
        starts = range(0, len(self), size)[first:last]
        parts = [slice(start, min(start + size, len(self))) for start in starts]
        if not isinstance(self.feeds, Lazy):
            for part in parts:
                yield self._batch(part, fixed)
            return
        with ThreadPoolExecutor(READERS, "snnc-read") as pool:
            waiting: deque[Future[Batch]] = deque()
            try:
                for part in parts:
                    waiting.append(pool.submit(self._batch, part, fixed))
                    if len(waiting) > 2 * READERS:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _batch(self, part: slice, fixed: int | None) -> Batch:
        lost: list[str] = []
        if isinstance(self.feeds, Lazy):
            feeds, numbers, lost = self.feeds.read(part, self.skip_damaged)
        else:
            feeds = {name: array[part] for name, array in self.feeds.items()}
            numbers = np.arange(part.start, part.stop)
        if fixed is not None and 0 < len(numbers) < fixed:
            again = np.resize(np.arange(len(numbers)), fixed)
            feeds = {name: array[again] for name, array in feeds.items()}
        return Batch(feeds, numbers, tuple(lost))

    def fingerprint(self, first: Batch) -> str:
        """Hash of what tells the data set from others without reading it: number, shapes and names of
        the samples, labels, and a first batch."""
        digest = hashlib.sha256()
        for name in sorted(first.feeds):
            array = first.feeds[name]
            digest.update(f"{name}{array.dtype.str}{len(self)}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        if isinstance(self.feeds, Lazy):
            for text in self.feeds.names:
                digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
        if self.labels is not None:
            digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def sha256(self) -> str:
        """Hash of the arrays as they are fed."""
        digest = hashlib.sha256()
        for name in sorted(self.feeds):
            array = self.feeds[name]
            digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


#: Samples of files that are read at once where all are read.
_READ_AT_ONCE = 16


def left_out(damaged: Sequence[str]) -> list[Finding]:
    """A warning where damaged samples were left out, which names the first of them."""
    if not damaged:
        return []
    more = f", and {len(damaged) - _NAMED:,} more" if len(damaged) > _NAMED else ""
    count = "1 image was" if len(damaged) == 1 else f"{len(damaged):,} images were"
    text = f"{count} damaged and left out: {'; '.join(damaged[:_NAMED])}{more}"
    return [Finding("SNNC311", text, severity="warning")]


#: Damaged images that are named.
_NAMED = 10


def load_data(
    data: str | os.PathLike[str] | Array | Mapping[str, Array] | Dataset,
    inputs: Sequence[InputSpec],
    preprocess: Preprocess | None = None,
    *,
    labels: str | os.PathLike[str] | None = None,
    skip_damaged: bool = False,
) -> Dataset:
    """Data for a network with the given inputs.

    `data` is a path (.npz, .npy, .parquet, images in a folder, zip or tar), a pattern for several of
    them as `shards/*.tar`, an array (one input), a mapping of arrays by input name, or a Dataset, which
    comes back as it is.  Samples of files are read later.
    labels: a csv with name and class of every image.  skip_damaged: leave out images that cannot be
    read.
    Raises Refused where shapes, types, names or values do not fit; UsageError for a wrong path or an
    option that does not apply.
    """
    given = preprocess or Preprocess()
    given.check()
    if isinstance(data, Dataset):
        if given != Preprocess():
            raise UsageError("preprocessing does not apply to a Dataset, which is taken as it is")
        _check_images_only(labels, skip_damaged, "a Dataset")
        return _from_dataset(data, inputs)
    if isinstance(data, (Mapping, np.ndarray)):
        stored = dict(data) if isinstance(data, Mapping) else {DATA_NAMES[0]: data}
        where = "the arrays" if isinstance(data, Mapping) else "the array"
        _check_images_only(labels, skip_damaged, where)
        arrays = {name: InMemory(np.asarray(array)) for name, array in stored.items()}
        dataset = _from_arrays(arrays, inputs, given, where)
        return replace(dataset, feeds=dict(dataset.feeds))
    source = opened(data)
    if source.arrays is not None:
        _check_images_only(labels, skip_damaged, source.where)
        return _from_arrays(source.arrays, inputs, given, source.where)
    return _from_images(
        source, inputs, given, None if labels is None else Path(labels), skip_damaged
    )


def _check_images_only(labels: object, skip_damaged: bool, where: str) -> None:
    for option, given in (("--labels", labels is not None), ("--skip-damaged", skip_damaged)):
        if given:
            raise UsageError(f"{option} does not apply to {where}", hint="it is for images")


def _from_dataset(data: Dataset, inputs: Sequence[InputSpec]) -> Dataset:
    """A Dataset is taken as it is, if it fits."""
    names = sorted(spec.name for spec in inputs)
    if sorted(data.feeds) != names:
        raise refuse("SNNC302", f"the dataset has {sorted(data.feeds)}, the network wants {names}")
    lazy = data.feeds if isinstance(data.feeds, Lazy) else None
    for spec in inputs:
        array = lazy._samples[spec.name] if lazy else data.feeds[spec.name]
        if not isinstance(array, (np.ndarray, Samples)) or array.dtype != spec.dtype:
            kind = getattr(array, "dtype", type(array).__name__)
            text = f"the dataset's '{spec.name}' is {kind}, the network wants {spec.dtype}"
            raise refuse("SNNC302", text)
        if not fits(array.shape, spec):
            raise wrong_shape(array.shape, spec, f"the dataset's '{spec.name}'")
    if lazy is None:
        counts = {name: len(array) for name, array in data.feeds.items()}
        _check_counts(counts, data.labels, "the dataset", data.rows)
        for name, array in data.feeds.items():
            check_finite(array, name, np.arange(len(array)))
    return data


def _from_arrays(
    arrays: Mapping[str, Rows], inputs: Sequence[InputSpec], given: Preprocess, where: str
) -> Dataset:
    how = given.resolved()
    samples: dict[str, Samples] = {}
    seen = Seen()
    rows = 1
    for spec in inputs:
        names = (spec.name, *DATA_NAMES) if len(inputs) == 1 else (spec.name,)
        name = next((name for name in names if name in arrays), None)
        if name is None:
            raise refuse(
                "SNNC302",
                f"{where} has arrays {sorted(arrays)}, but the network's input is '{spec.name}'",
                hint="name the array after the input"
                + (", or 'x' or 'images'" if len(inputs) == 1 else ""),
            )
        array = arrays[name]
        if _holds_runs(array.shape, spec):
            rows = int(spec.shape[0] or 1)
            array = array.reshaped((-1, *array.shape[2:]))
        samples[spec.name] = ArraySamples(array, spec, how, f"array '{name}'", seen)
    check_applied(given, seen.applied, where)
    label_name = next((n for n in _LABEL_NAMES if n in arrays and n not in samples), None)
    labels = None
    if label_name is not None:
        stored = arrays[label_name]
        labels = (
            stored.read(np.arange(stored.shape[0])) if stored.shape else stored.read(np.array(()))
        )
        labels = np.asarray(labels).reshape(-1)
    counts = {name: one.shape[0] for name, one in samples.items()}
    count = _check_counts(counts, labels, where, rows)
    return Dataset(Lazy(samples, range(count * rows)), labels, tuple(seen.findings), rows)


def _holds_runs(shape: tuple[int, ...], spec: InputSpec) -> bool:
    """Whether an array is [n, ...] of whole inputs of a network that takes no other size: its own
    leading axis may be no batch, so that one such input is one sample."""
    return bool(spec.shape and spec.shape[0]) and (
        len(shape) == len(spec.shape) + 1
        and shape[1] == spec.shape[0]
        and all(want in (None, have) for want, have in zip(spec.shape, shape[1:], strict=True))
    )


def _check_counts(
    values: Mapping[str, int], labels: Array | None, where: str, rows: int = 1
) -> int:
    """The number of samples.  Raises Refused where it is not the same of all inputs and the labels,
    where there are none, and where labels are no whole numbers."""
    counts = {name: count // rows for name, count in values.items()}
    if labels is not None:
        counts["labels"] = len(labels)
    if len(set(counts.values())) != 1:
        raise refuse("SNNC302", f"{where} has different numbers of samples: {counts}")
    count = next(iter(counts.values()))
    if not count:
        raise refuse("SNNC303", f"{where} has no samples")
    if labels is not None and not np.issubdtype(labels.dtype, np.integer):
        raise refuse("SNNC302", f"the labels are {labels.dtype}, not integers")
    return count


def _from_images(
    source: Opened,
    inputs: Sequence[InputSpec],
    given: Preprocess,
    labels: Path | None,
    skip_damaged: bool,
) -> Dataset:
    pictures = source.pictures
    assert pictures is not None
    if len(inputs) != 1:
        raise UsageError(f"images serve a network with one input, this one has {len(inputs)}")
    if not len(pictures):
        raise refuse(
            "SNNC303", f"{source.where} holds no images", hint=f"known: {' '.join(IMAGE_SUFFIXES)}"
        )
    (spec,) = inputs
    seen = Seen()
    samples = ImageSamples(pictures, spec, given.resolved(), seen, skip_damaged)
    check_applied(given, seen.applied, source.where)
    return Dataset(
        Lazy({spec.name: samples}, range(len(pictures))),
        labels_of(pictures, labels),
        tuple(seen.findings),
        skip_damaged=skip_damaged,
    )
