"""Calibration and evaluation data: npz, npy, and folders or zips of images.

Pickled objects are never loaded.  Image preprocessing is explicit: layout, scale, mean, standard
deviation, size; what is assumed where nothing is said comes back as a note.
"""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from snncompiler.errors import EnvironmentMissing, Refused, UsageError, refuse
from snncompiler.findings import Finding
from snncompiler.ir.option import Option, Range, check_values, height_width, numbers, plain_numbers

Array = NDArray[Any]
Layout = Literal["NCHW", "NHWC"]

#: What numpy raises on damaged files.
_DAMAGE = (ValueError, OSError, EOFError, MemoryError, OverflowError)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp")
_DATA_NAMES = ("x", "images")
_LABEL_NAMES = ("y", "labels")


_POSITIVE = Range("positive and finite", lambda value: 0 < value < float("inf"))
_ALL_POSITIVE = Range("every value is positive", lambda values: all(value > 0 for value in values))


@dataclass(frozen=True)
class Preprocess:
    """How stored pixels become the network's input: ((value / scale) - mean) / std, per channel.

    `layout` is the layout that the network wants; images are stored as NHWC.  `size` (height, width)
    cuts the centre out; `resize` comes before it and is for image files only; `bgr` swaps red and blue.
    An option that applies to none of the network's inputs is an error.  None means that nothing was
    said: then the layout follows from the network's input, and the scale is 255 for image files and
    arrays of uint8.
    """

    layout: Annotated[
        Layout | None,
        Option("What the network wants, from images stored as NHWC.", unset="by its input"),
    ] = None
    scale: Annotated[
        float | None,
        Option("Divide pixels by this.", unset="255 for images and uint8 arrays", range=_POSITIVE),
    ] = None
    mean: Annotated[
        Sequence[float] | None,
        Option("Subtract after scaling: M or M,M,M per channel.", read=numbers),
    ] = None
    std: Annotated[
        Sequence[float] | None,
        Option("Divide by after that: S or S,S,S per channel.", range=_ALL_POSITIVE, read=numbers),
    ] = None
    size: Annotated[tuple[int, int] | None, Option("Centre crop, HxW.", read=height_width)] = None
    resize: Annotated[
        tuple[int, int] | None,
        Option("Resize images before the crop, HxW.", read=height_width),
    ] = None
    bgr: Annotated[bool, Option("The network wants blue, green, red.", flags=("--bgr",))] = False

    def __post_init__(self) -> None:
        plain_numbers(self)

    def check(self) -> None:
        """Raises UsageError for the first value that is of a wrong type or out of range."""
        check_values(self)


@dataclass(frozen=True)
class InputSpec:
    """What a network input wants: name, shape (None where any size goes) and type."""

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]

    @property
    def dims(self) -> list[int | str]:
        """The shape to be read: "N" for any batch, "any" for any other size."""
        open_ = ["N", *["any"] * len(self.shape)]
        return [name if dim is None else dim for dim, name in zip(self.shape, open_, strict=False)]


@dataclass(frozen=True)
class Dataset:
    """Samples for a network: arrays [n, ...] by input name, and labels [n] if there are any.

    If the network has no batch axis, `rows` rows of its input's leading axis are one sample, and the
    arrays are [rows·n, ...].
    """

    feeds: Mapping[str, Array]
    labels: Array | None = None
    findings: tuple[Finding, ...] = ()
    rows: int = 1

    def __len__(self) -> int:
        return len(next(iter(self.feeds.values())))

    def head(self, count: int | None) -> Dataset:
        """The first `count` samples; all of them for None."""
        if count is None or count * self.rows >= len(self):
            return self
        labels = None if self.labels is None else self.labels[:count]
        feeds = {name: array[: count * self.rows] for name, array in self.feeds.items()}
        return replace(self, feeds=feeds, labels=labels)

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
        return replace(self, feeds={n: a[rows] for n, a in self.feeds.items()}, labels=labels)

    def sha256(self) -> str:
        """Hash of the arrays as they are fed."""
        digest = hashlib.sha256()
        for name in sorted(self.feeds):
            array = self.feeds[name]
            digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def load_data(
    data: str | os.PathLike[str] | Array | Mapping[str, Array] | Dataset,
    inputs: Sequence[InputSpec],
    preprocess: Preprocess | None = None,
) -> Dataset:
    """Read data for a network with the given inputs.

    `data` is a path (.npz, .npy, folder or zip of images), an array (one input), a mapping of arrays
    by input name, or a Dataset, which comes back as it is.
    Raises Refused where shapes, types, names or values do not fit; UsageError for a wrong path.
    """
    how = preprocess or Preprocess()
    how.check()
    if isinstance(data, Dataset):
        if how != Preprocess():
            raise UsageError("preprocessing does not apply to a Dataset, which is taken as it is")
        return _from_dataset(data, inputs)
    if isinstance(data, Mapping):
        return _from_arrays(dict(data), inputs, how, "the arrays")
    if isinstance(data, np.ndarray):
        return _from_arrays({_DATA_NAMES[0]: data}, inputs, how, "the array")
    path = Path(data)
    try:
        if not path.exists():
            raise UsageError(f"{path} does not exist", code="SNNC301")
        if not path.is_dir() and not path.is_file():
            raise UsageError(f"{path} is neither a file nor a folder", code="SNNC301")
    except OSError as error:
        raise UsageError(f"{path} cannot be a file: {error.strerror}", code="SNNC301") from None
    if path.is_dir() or path.suffix.lower() == ".zip":
        return _from_images(path, inputs, how)
    if path.suffix.lower() == ".npz":
        return _from_arrays(_read_npz(path), inputs, how, str(path))
    if path.suffix.lower() == ".npy":
        return _from_arrays({_DATA_NAMES[0]: _read_numpy(path)}, inputs, how, str(path))
    raise UsageError(
        f"{path} is of no kind that is known",
        hint="give an .npz, an .npy, or a folder or zip of images",
        code="SNNC301",
    )


def _from_dataset(data: Dataset, inputs: Sequence[InputSpec]) -> Dataset:
    """A Dataset is taken as it is, if it fits."""
    names = sorted(spec.name for spec in inputs)
    if sorted(data.feeds) != names:
        raise refuse("SNNC302", f"the dataset has {sorted(data.feeds)}, the network wants {names}")
    for spec in inputs:
        array = data.feeds[spec.name]
        if not isinstance(array, np.ndarray) or array.dtype != spec.dtype:
            kind = getattr(array, "dtype", type(array).__name__)
            text = f"the dataset's '{spec.name}' is {kind}, the network wants {spec.dtype}"
            raise refuse("SNNC302", text)
        if not _fits(array, spec):
            raise _wrong_shape(array, spec, f"the dataset's '{spec.name}'")
    _checked(dict(data.feeds), data.labels, list(data.findings), "the dataset", data.rows)
    return data


def _read_numpy(path: Path) -> Array:
    try:
        with path.open("rb") as file:
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
    except _DAMAGE as error:
        raise refuse("SNNC301", f"{path} cannot be read: {_first_line(error)}") from None


def _read_npz(path: Path) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (*_DAMAGE, zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError) as error:
        raise refuse(
            "SNNC301",
            f"{path} cannot be read: {_first_line(error)}",
            hint="arrays of objects (pickles) are never loaded",
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _from_arrays(
    arrays: dict[str, Array], inputs: Sequence[InputSpec], how: Preprocess, where: str
) -> Dataset:
    feeds: dict[str, Array] = {}
    findings: list[Finding] = []
    applied: set[str] = set()
    rows = 1
    for spec in inputs:
        names = (spec.name, *_DATA_NAMES) if len(inputs) == 1 else (spec.name,)
        name = next((name for name in names if name in arrays), None)
        if name is None:
            raise refuse(
                "SNNC302",
                f"{where} has arrays {sorted(arrays)}, but the network's input is '{spec.name}'",
                hint="name the array after the input"
                + (", or 'x' or 'images'" if len(inputs) == 1 else ""),
            )
        array = arrays[name]
        if _holds_runs(array, spec):
            rows = int(spec.shape[0] or 1)
            array = array.reshape(-1, *array.shape[2:])
        feeds[spec.name] = _fit(array, spec, how, f"array '{name}'", findings, applied)
    _check_applied(how, applied, where)
    label_name = next((n for n in _LABEL_NAMES if n in arrays and n not in feeds), None)
    labels = None if label_name is None else np.asarray(arrays[label_name]).reshape(-1)
    return _checked(feeds, labels, findings, where, rows)


def _holds_runs(array: Array, spec: InputSpec) -> bool:
    """Whether an array is [n, ...] of whole inputs of a network that takes no other size: its own
    leading axis may be no batch, so that one such input is one sample."""
    return bool(spec.shape and spec.shape[0]) and (
        array.ndim == len(spec.shape) + 1
        and array.shape[1] == spec.shape[0]
        and all(
            want in (None, have) for want, have in zip(spec.shape, array.shape[1:], strict=True)
        )
    )


def _checked(
    feeds: dict[str, Array],
    labels: Array | None,
    findings: list[Finding],
    where: str,
    rows: int = 1,
) -> Dataset:
    counts = {name: len(array) // rows for name, array in feeds.items()}
    if labels is not None:
        counts["labels"] = len(labels)
    if len(set(counts.values())) != 1:
        raise refuse("SNNC302", f"{where} has different numbers of samples: {counts}")
    if not next(iter(counts.values())):
        raise refuse("SNNC303", f"{where} has no samples")
    if labels is not None and not np.issubdtype(labels.dtype, np.integer):
        raise refuse("SNNC302", f"the labels are {labels.dtype}, not integers")
    for name, array in feeds.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            index = [int(i) for i in np.argwhere(~np.isfinite(array))[0]]
            raise refuse("SNNC303", f"the data for '{name}' is {array[tuple(index)]} at {index}")
    return Dataset(feeds, labels, tuple(findings), rows)


def _check_applied(how: Preprocess, applied: set[str], where: str) -> None:
    """Raises UsageError for the options that apply to none of the arrays."""
    asked = {name for name, given in vars(how).items() if given != getattr(Preprocess, name)}
    for name in [name for name in _NEEDS if name in asked - applied]:
        raise UsageError(f"--{name} does not apply to {where}", hint=_NEEDS[name])


#: What an option of the preprocessing needs.
_NEEDS = {
    "resize": "it resamples image files; give arrays in the size that the network wants",
    "size": "it crops images, arrays [n, H, W, C] or [n, C, H, W]",
    "layout": "it is for images, arrays [n, H, W, C] or, for NCHW, [n, C, H, W]",
    "bgr": "it swaps the three channels of images",
    "scale": "it is for inputs of floating point",
    "mean": "it is for inputs of floating point",
    "std": "it is for inputs of floating point",
}


def _fit(
    array: Array,
    spec: InputSpec,
    how: Preprocess,
    where: str,
    findings: list[Finding],
    applied: set[str],
) -> Array:
    """`array` preprocessed, of the input's type and shape.  What was of use is added to `applied`."""
    if array.dtype.kind not in "fiub":
        raise refuse("SNNC302", f"{where} has type {array.dtype}, the network wants {spec.dtype}")
    stored_integers = array.dtype.kind in "iu" and spec.dtype.kind == "f"
    asked = any(
        option is not None for option in (how.scale, how.mean, how.std, how.size, how.layout)
    )
    if stored_integers or asked or how.bgr:
        array = _prepare(array, spec, how, where, findings, applied)
    array = np.ascontiguousarray(array.astype(spec.dtype, copy=False))
    if _fits(array, spec):
        return array
    sizes = [dim for dim in spec.shape[1:] if dim is not None]
    held = [dim for dim in array.shape[1:] if dim != 1]
    flat = len(held) <= 1 or held == [dim for dim in sizes if dim != 1]
    if len(sizes) == len(spec.shape) - 1 and flat and array.ndim and array[:1].size == prod(sizes):
        # The same values, flat or without axes of 1: [n, 784] or [n, 28, 28] for [n, 1, 28, 28].
        return array.reshape(len(array), *sizes)
    raise _wrong_shape(array, spec, where)


def _fits(array: Array, spec: InputSpec) -> bool:
    return array.ndim == len(spec.shape) and all(
        want is None or want == have
        for want, have in zip(spec.shape[1:], array.shape[1:], strict=True)
    )


def _wrong_shape(array: Array, spec: InputSpec, where: str) -> Refused:
    want = ["N", *("any" if dim is None else dim for dim in spec.shape[1:])]
    return refuse(
        "SNNC302",
        f"{where} has shape {list(array.shape)}, the network's input '{spec.name}' wants {want}",
        hint="say --layout and --size if it holds images",
    )


def _stored_as_images(shape: tuple[int, ...], spec: InputSpec, how: Preprocess) -> bool:
    """Whether an array is [n, H, W, C], from what the network wants where that is known."""
    if len(shape) != 4 or len(spec.shape) != 4 or shape[-1] not in (1, 3, 4):
        return False
    layout = how.layout or _layout_of(spec)
    channels, height, width = (
        spec.shape[1:] if layout == "NCHW" else (spec.shape[3], *spec.shape[1:3])
    )
    if channels is not None and shape[-1] != channels:
        return False
    if how.size is None and (height not in (None, shape[1]) or width not in (None, shape[2])):
        return False
    # With a network of unknown size, channels first is told by its own place.
    return channels is None or height is not None or shape[1] != channels or shape[-1] == shape[1]


def _prepare(
    array: Array,
    spec: InputSpec,
    how: Preprocess,
    where: str,
    findings: list[Finding],
    applied: set[str],
) -> Array:
    image = _stored_as_images(array.shape, spec, how)
    # Else the channels of four axes come first, as the network wants them.
    channels_first = not image and array.ndim == 4 and how.layout != "NHWC"
    if image or channels_first:
        applied.add("layout")
    if how.bgr and (image or channels_first) and array.shape[3 if image else 1] == 3:
        array = array[..., ::-1] if image else array[:, ::-1]
        applied.add("bgr")
    if how.size and (image or channels_first):
        array = _centre_crop(array, how.size, where, 1 if image else 2)
        applied.add("size")
    if spec.dtype.kind == "f":
        array = _normalised(array, how, image, where, findings)
        applied |= {"scale", "mean", "std"}
    if image and (how.layout or _layout_of(spec)) == "NCHW":
        array = array.transpose(0, 3, 1, 2)
    return array


def _normalised(
    array: Array, how: Preprocess, image: bool, where: str, findings: list[Finding]
) -> Array:
    """((value / scale) - mean) / std in float32."""
    stored_as = array.dtype
    scale = how.scale
    if scale is None:
        scale = 255.0 if stored_as == np.uint8 else 1.0
        if stored_as == np.uint8:
            findings.append(
                Finding(
                    "SNNC307",
                    f"{where} is uint8: its values were divided by 255",
                    severity="note",
                    hint="say --scale 1 if the network wants 0 to 255",
                )
            )
    values: Array = array.astype(np.float32) / np.float32(scale)
    axis = values.ndim - 1 if image or values.ndim != 4 else 1
    if how.mean is not None:
        values = values - _channel_values(how.mean, values, axis, "--mean")
    if how.std is not None:
        values = values / _channel_values(how.std, values, axis, "--std")
    return values


def _channel_values(given: Sequence[float], values: Array, axis: int, option: str) -> Array:
    row = np.asarray(given, np.float32)
    if row.size == 1:
        return row.reshape(())
    if values.shape[axis] != row.size:
        raise UsageError(
            f"{option} has {row.size} values, the data has {values.shape[axis]} channels"
        )
    return row.reshape([-1 if i == axis else 1 for i in range(values.ndim)])


def _layout_of(spec: InputSpec) -> Layout:
    """The layout of a network's image input, from where its channels are."""
    if len(spec.shape) == 4 and spec.shape[3] in (1, 3, 4) and spec.shape[1] not in (1, 3, 4):
        return "NHWC"
    return "NCHW"


def _centre_crop(values: Array, size: tuple[int, int], where: str, axis: int) -> Array:
    """The middle of images whose height is on `axis`."""
    height, width = values.shape[axis : axis + 2]
    if height < size[0] or width < size[1]:
        raise refuse(
            "SNNC302", f"{where} is {height}x{width}, smaller than --size {size[0]}x{size[1]}"
        )
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
    return values[:, rows, columns] if axis == 1 else values[..., rows, columns]


# --- images ---


def _from_images(path: Path, inputs: Sequence[InputSpec], how: Preprocess) -> Dataset:
    if len(inputs) != 1:
        raise UsageError(f"images serve a network with one input, this one has {len(inputs)}")
    pixels: list[Array] = []
    names: list[str] = []
    spec = inputs[0]
    grey = 1 in (spec.shape[1:2] + spec.shape[3:4])
    for name, raw in _image_files(path):
        pixels.append(_decode(name, raw, grey, how.resize))
        names.append(name)
    if not pixels:
        raise refuse(
            "SNNC303", f"{path} holds no images", hint=f"known: {' '.join(IMAGE_SUFFIXES)}"
        )
    shapes = {image.shape for image in pixels}
    if len(shapes) > 1:
        raise refuse(
            "SNNC302",
            f"{path} holds images of {len(shapes)} different sizes, such as {sorted(shapes)[:2]}",
            hint="say --resize HxW",
        )
    findings: list[Finding] = []
    applied = {"resize"}
    array = _fit(np.stack(pixels), spec, how, str(path), findings, applied)
    _check_applied(how, applied, str(path))
    return _checked({spec.name: array}, _labels_of(names), findings, str(path))


def _image_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every image below a folder or in a zip, sorted by name."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.suffix.lower() not in IMAGE_SUFFIXES or not file.is_file():
                continue
            yield str(file.relative_to(path)), file.read_bytes()
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                    yield name, archive.read(name)
    except zipfile.BadZipFile:
        raise refuse("SNNC301", f"{path} is not a zip archive") from None


def _decode(name: str, raw: bytes, grey: bool, resize: tuple[int, int] | None) -> Array:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise EnvironmentMissing(
            "pillow reads images and is missing", "pip install pillow"
        ) from error
    try:
        image = Image.open(BytesIO(raw)).convert("L" if grey else "RGB")
    except (UnidentifiedImageError, SyntaxError, *_DAMAGE, Image.DecompressionBombError) as error:
        raise refuse("SNNC301", f"image {name} cannot be read: {_first_line(error)}") from None
    if resize:
        image = image.resize((resize[1], resize[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.uint8)
    return pixels[..., None] if grey else pixels


def _labels_of(names: Sequence[str]) -> Array | None:
    """The classes of images: the number before the first underscore, or the folder they lie in.

    Folders count in alphabetical order, as in torchvision's ImageFolder, unless they are numbers.
    """
    prefixes = [re.match(r"(\d+)_", Path(name).name) for name in names]
    if all(prefixes):
        return np.array([int(prefix.group(1)) for prefix in prefixes if prefix], np.int64)
    folders = [Path(name).parent.name for name in names]
    if not all(folders) or len(set(folders)) < 2:
        return None
    if all(folder.isdigit() for folder in folders):
        return np.array([int(folder) for folder in folders], np.int64)
    order = {folder: index for index, folder in enumerate(sorted(set(folders)))}
    return np.array([order[folder] for folder in folders], np.int64)
