"""How stored values become the input of a network: layout, size, scale, mean, standard deviation.

Preprocessing is explicit; what is assumed where nothing is said comes back as a note.  It treats every
sample by itself, so that it does not matter how many are read at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from snncompiler.errors import Refused, UsageError, refuse
from snncompiler.findings import Finding
from snncompiler.ir.option import (
    Option,
    Range,
    check_values,
    height_width,
    height_width_or_side,
    numbers,
    plain_numbers,
)

Array = NDArray[Any]
Layout = Literal["NCHW", "NHWC"]

Preset = Literal[
    "imagenet", "imagenet-232", "inception", "keras-tf", "keras-caffe", "keras-torch", "none"
]  # fmt: skip

_POSITIVE = Range("positive and finite", lambda value: 0 < value < float("inf"))
_ALL_POSITIVE = Range("every value is positive", lambda values: all(value > 0 for value in values))


_SIZES = Range(
    "one side, or height and width",
    lambda sizes: len(sizes) in (1, 2) and all(size > 0 for size in sizes),
)


@dataclass(frozen=True)
class Preprocess:
    """How stored pixels become the network's input: ((value / scale) - mean) / std, per channel.

    `layout` is the layout that the network wants; images are stored as NHWC.  `size` (height, width)
    cuts the centre out; `resize` comes before it and is for image files only: (height, width), or
    (side,) for the shorter side, so that the aspect stays; `bgr` swaps red and blue.
    `preset` stands for the others as in PRESETS; those that are given beside it go before it.
    An option that applies to none of the network's inputs is an error.  None means that nothing was
    said: then the layout follows from the network's input, and the scale is 255 for image files and
    arrays of uint8.
    """

    preset: Annotated[
        Preset | None,
        Option(
            "Preprocessing by name: torchvision's imagenet (resize 256, crop 224x224), imagenet-232 "
            "(of the weights of version 2) and inception; Keras's modes; none. Options beside it go "
            "before it."
        ),
    ] = None
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
        tuple[int, ...] | None,
        Option(
            "Resize images before the crop: HxW, or N for the shorter side, bilinear.",
            range=_SIZES,
            read=height_width_or_side,
        ),
    ] = None
    bgr: Annotated[bool, Option("The network wants blue, green, red.", flags=("--bgr",))] = False

    def __post_init__(self) -> None:
        plain_numbers(self)

    def check(self) -> None:
        """Raises UsageError for the first value that is of a wrong type or out of range."""
        check_values(self)

    @property
    def said(self) -> dict[str, Any]:
        """What was said, by name."""
        return {
            name: given for name, given in vars(self).items() if given != getattr(Preprocess, name)
        }

    def resolved(self) -> Preprocess:
        """The same without a preset: what it stands for."""
        if self.preset is None:
            return self
        values: dict[str, Any] = {**PRESETS[self.preset], **self.said, "preset": None}
        return Preprocess(**values)

    def flags(self) -> str:
        """As options of the command line."""
        return " ".join(f"--{name}{_flag_value(given)}" for name, given in self.said.items())

    def as_dict(self) -> dict[str, Any]:
        """What was said, as plain data."""
        plain = self.resolved().said
        return {n: list(v) if isinstance(v, (tuple, list)) else v for n, v in plain.items()}

    @staticmethod
    def from_dict(stored: Mapping[str, Any]) -> Preprocess:
        """Of `as_dict`.  Raises TypeError or UsageError where it is none."""
        values: dict[str, Any] = {
            name: tuple(given) if isinstance(given, list) else given
            for name, given in stored.items()
        }
        found = Preprocess(**values)
        found.check()
        return found


def _flag_value(given: Any) -> str:
    if given is True:
        return ""
    if isinstance(given, (tuple, list)):
        whole = all(isinstance(number, int) for number in given)
        return " " + ("x" if whole else ",").join(f"{number:g}" for number in given)
    return f" {given:g}" if isinstance(given, float) else f" {given}"


_IMAGENET = {
    "scale": 255.0, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
}  # fmt: skip
#: What networks are trained with.  torchvision: the `transforms` of its weights (IMAGENET1K_V1 of most
#: networks; IMAGENET1K_V2; Inception_V3_Weights).  Keras: the modes of `imagenet_utils`'s
#: `preprocess_input`, which takes images that have their size.
PRESETS: dict[str, dict[str, Any]] = {
    "imagenet": {"resize": (256,), "size": (224, 224), **_IMAGENET},
    "imagenet-232": {"resize": (232,), "size": (224, 224), **_IMAGENET},
    "inception": {"resize": (342,), "size": (299, 299), **_IMAGENET},
    "keras-tf": {"scale": 127.5, "mean": (1.0,)},
    "keras-caffe": {"scale": 1.0, "mean": (103.939, 116.779, 123.68), "bgr": True},
    "keras-torch": _IMAGENET,
    "none": {},
}


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

    @property
    def grey(self) -> bool:
        """Whether images for it have one channel."""
        return 1 in (self.shape[1:2] + self.shape[3:4])


@dataclass
class Seen:
    """What a preprocessing did: the options that were of use, and what there is to say.

    count: how many samples there are, of which it may see the first only.
    """

    count: int | None = None
    applied: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)


def check_applied(how: Preprocess, applied: set[str], where: str) -> None:
    """Raises UsageError for an option that applies to none of the arrays."""
    for name in _NEEDS:
        if name in how.resolved().said.keys() - applied:
            option = f"--{name}" if name in how.said else f"--preset {how.preset}, with --{name},"
            raise UsageError(f"{option} does not apply to {where}", hint=_NEEDS[name])


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


def fit(array: Array, spec: InputSpec, how: Preprocess, where: str, seen: Seen) -> Array:
    """`array` [n, ...] preprocessed, of the input's type and shape.

    Raises Refused where it does not fit, UsageError where an option does not.
    """
    if array.dtype.kind not in "fiub":
        raise refuse("SNNC302", f"{where} has type {array.dtype}, the network wants {spec.dtype}")
    pixels = array.dtype == spec.dtype == np.uint8
    stored_integers = array.dtype.kind in "iu" and (spec.dtype.kind == "f" or pixels)
    asked = any(
        option is not None for option in (how.scale, how.mean, how.std, how.size, how.layout)
    )
    if stored_integers or asked or how.bgr:
        array = _prepare(array, spec, how, where, seen)
    array = np.ascontiguousarray(_cast(array, spec, where))
    if fits(array.shape, spec):
        return array
    sizes = [dim for dim in spec.shape[1:] if dim is not None]
    held = [dim for dim in array.shape[1:] if dim != 1]
    flat = len(held) <= 1 or held == [dim for dim in sizes if dim != 1]
    if len(sizes) == len(spec.shape) - 1 and flat and array.ndim and array[:1].size == prod(sizes):
        # The same values, flat or without axes of 1: [n, 784] or [n, 28, 28] for [n, 1, 28, 28].
        return array.reshape(len(array), *sizes)
    count = len(array) if seen.count is None else seen.count
    raise wrong_shape((count, *array.shape[1:]), spec, where)


def _cast(array: Array, spec: InputSpec, where: str) -> Array:
    """In the type that the network takes.  Raises Refused where an integer is another number then."""
    cast = array.astype(spec.dtype, copy=False)
    if spec.dtype.kind in "iu" and array.dtype != spec.dtype and not np.array_equal(cast, array):
        raise refuse(
            "SNNC302",
            f"{where} has numbers that are no {spec.dtype}, as the network's input '{spec.name}' takes",
            hint="give the integers as they are stored, without scale, mean and deviation",
        )
    return cast


def fits(shape: Sequence[int], spec: InputSpec) -> bool:
    return len(shape) == len(spec.shape) and all(
        want is None or want == have for want, have in zip(spec.shape[1:], shape[1:], strict=True)
    )


def wrong_shape(shape: Sequence[int], spec: InputSpec, where: str) -> Refused:
    want = ["N", *("any" if dim is None else dim for dim in spec.shape[1:])]
    return refuse(
        "SNNC302",
        f"{where} has shape {list(shape)}, the network's input '{spec.name}' wants {want}",
        hint="say --layout and --size if it holds images",
    )


def _stored_as_images(shape: tuple[int, ...], spec: InputSpec, how: Preprocess) -> bool:
    """Whether an array is [n, H, W, C], from what the network wants where that is known."""
    if len(shape) != 4 or len(spec.shape) != 4 or shape[-1] not in (1, 3, 4):
        return False
    layout = how.layout or layout_of(spec)
    channels, height, width = (
        spec.shape[1:] if layout == "NCHW" else (spec.shape[3], *spec.shape[1:3])
    )
    if channels is not None and shape[-1] != channels:
        return False
    if how.size is None and (height not in (None, shape[1]) or width not in (None, shape[2])):
        return False
    # With a network of unknown size, channels first is told by its own place.
    return channels is None or height is not None or shape[1] != channels or shape[-1] == shape[1]


def _prepare(array: Array, spec: InputSpec, how: Preprocess, where: str, seen: Seen) -> Array:
    image = _stored_as_images(array.shape, spec, how)
    # Else the channels of four axes come first, as the network wants them.
    channels_first = not image and array.ndim == 4 and how.layout != "NHWC"
    if image or channels_first:
        seen.applied.add("layout")
    if how.bgr and (image or channels_first) and array.shape[3 if image else 1] == 3:
        array = array[..., ::-1] if image else array[:, ::-1]
        seen.applied.add("bgr")
    if how.size and (image or channels_first):
        array = _centre_crop(array, how.size, where, 1 if image else 2)
        seen.applied.add("size")
    if spec.dtype.kind == "f":
        array = _normalised(array, how, image, where, seen)
        seen.applied |= {"scale", "mean", "std"}
    if image and (how.layout or layout_of(spec)) == "NCHW":
        array = array.transpose(0, 3, 1, 2)
    return array


def _normalised(array: Array, how: Preprocess, image: bool, where: str, seen: Seen) -> Array:
    """((value / scale) - mean) / std in float32."""
    stored_as = array.dtype
    scale = how.scale
    if scale is None:
        scale = 255.0 if stored_as == np.uint8 else 1.0
        if stored_as == np.uint8:
            seen.findings.append(
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


def layout_of(spec: InputSpec) -> Layout:
    """The layout of a network's image input, from where its channels are."""
    if len(spec.shape) == 4 and spec.shape[3] in (1, 3, 4) and spec.shape[1] not in (1, 3, 4):
        return "NHWC"
    return "NCHW"


def _centre_crop(values: Array, size: tuple[int, int], where: str, axis: int) -> Array:
    """The middle of images whose height is on `axis`; of two middles the one that torchvision takes."""
    height, width = values.shape[axis : axis + 2]
    if height < size[0] or width < size[1]:
        raise refuse(
            "SNNC302", f"{where} is {height}x{width}, smaller than --size {size[0]}x{size[1]}"
        )
    top, left = round((height - size[0]) / 2), round((width - size[1]) / 2)
    rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
    return values[:, rows, columns] if axis == 1 else values[..., rows, columns]
