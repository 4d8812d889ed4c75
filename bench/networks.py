"""The networks with labels, and those without, of the accuracy tables, and the data of each.

Real networks and their data lie in the folder that `SNNC_MATERIAL` names (see bench/zoo.py); the two
that read digits come with the compiler.  Calibration and test samples are never the same: they are of
two sets, or the first third of a set, in a seeded order, calibrates and the rest tests.  Test samples
are in a seeded order too, so that the first N are a fair sample of all.

A choice between settings must not be made by test samples.  For that, half of what calibrates is held
out, in a seeded order, and takes the place of the test samples.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.zoo import entries, preprocess_of
from snncompiler.network.data import IMAGE_SUFFIXES, Dataset, InputSpec, load_data
from snncompiler.pipeline import prepare

Array = NDArray[Any]
Row = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
#: Of recordings of 200 frames: frames of a window, and all windows of a recording.
FRAMES, WINDOWS = 5, 196
_CIFAR = ("sets/cifar10_test_lossless.npz", "sets/cifar10_train4k_lossless.npz")
_JPEG = ("sets/cifar10_test_jpegq75.zip", "sets/cifar10_train_jpegq75.zip")
_MNIST = ("sets/mnist_test.npz", "sets/mnist_calib5k.npz")
_DIGITS = ("sets/digits_test.npz", "sets/digits_train.npz")
_BUNDLED = ("models/digits_test.npz", "models/digits_train.npz")
_IMAGENET = ("sets/imagenet_sample.zip",)


@dataclass(frozen=True)
class Case:
    """A network with its data.  Paths are below the material, or below the repository."""

    name: str
    model: str
    test: str
    #: Without it, a third of the test set calibrates.
    calibration: str = ""
    #: At most so many test images.
    images: int | None = None
    #: What the preprocessing of `material.json` lacks.
    how: tuple[tuple[str, Any], ...] = ()

    @property
    def bundled(self) -> bool:
        """Whether network and data come with the compiler."""
        return (ROOT / self.test).is_file()


def _case(name: str, model: str, sets: Sequence[str], images: int | None = None) -> Case:
    test, calibration = (*sets, "")[:2]
    return Case(name, f"models/{model}.onnx", test, calibration, images)


#: Networks with class scores, and labels.
CLASSIFIERS = {
    case.name: case
    for case in (
        _case("resnet20-jpeg", "c10_resnet20_aka_bn_ts17", _JPEG),
        _case("resnet20", "c10_resnet20_aka_bn_ts17", _CIFAR),
        _case("resnet32", "c10_resnet32_aka_bn_ts17", _CIFAR),
        _case("resnet32-jpeg", "c10_resnet32_aka_bn_ts17", _JPEG, 2000),
        _case("vgg16slim", "c10_vgg16slim_avgpool_bn_ts17", _CIFAR),
        _case("vgg16slim-jpeg", "c10_vgg16slim_avgpool_bn_ts17", _JPEG, 2000),
        _case("resnet8", "c10_resnet8_mlperf_keras_tf13", _CIFAR),
        _case("caffe-quick", "c10_caffe_quick_op12", _CIFAR),
        _case("tutorial-cnn", "c10_tutorialcnn_pytorch_winml", _CIFAR),
        _case("vnn-small", "c10_vnn21_cifar10_small", _CIFAR),
        _case("vnn-base", "c10_vnn21_cifar_base_kw", _CIFAR),
        _case("vnn-resnet2b", "c10_vnn21_resnet_2b", _CIFAR),
        _case("lenet5", "mnist_lenet5_avgpool_here_fold_ts17", _MNIST, 2000),
        _case("mnist-cntk", "mnist_cntk_winml", _MNIST, 2000),
        _case("mnist-convnet", "mnist_vnn21_Convnet_maxpool", _MNIST, 2000),
        _case("mnist-256x2", "mnist_vnn21_mnist-net_256x2", _MNIST, 2000),
        _case("digits-mlp", "digits_mlp128x64_skl2onnx", _DIGITS),
        replace(_case("digits-cnn", "digits-cnn", _BUNDLED), how=(("scale", 16),)),
        replace(_case("digits-resnet", "digits-resnet", _BUNDLED), how=(("scale", 16),)),
        _case("kws", "kws_dscnn_tflite13", ("sets/kws01_mlperftiny.npz",)),
        _case("vww", "vww_mobilenetv1_025_keras_tf13", ("sets/vww01_mlperftiny.npz",)),
        _case("resnet18", "in1k_resnet18_ktb_small_bn_ts17", _IMAGENET),
        _case("squeezenet", "in1k_squeezenet10_deepcomp_nobn_ts17", _IMAGENET),
        _case("mobilenet", "in1k_mobilenetv1_025_keras_tf13", _IMAGENET),
    )
}
#: Networks whose output values count.  Super-resolution takes the luminance of ImageNet pictures.
REGRESSORS = {
    case.name: case
    for case in (
        _case("toycar", "toycar_fcae_keras_tf13", ("sets/ad01_mlperftiny.npz",)),
        replace(
            _case("superres", "superres_espcn_pytorch", _IMAGENET, 8),
            how=(("luminance", True), ("size", 224), ("scale", 255), ("layout", "NCHW")),
        ),
        _case("ultraface", "ultraface_slim320_simplified", ("sets/ultraface_imgs",)),
    )
}


@dataclass(frozen=True)
class Stored:
    """A set as it is stored: how many samples, their labels, and a way to read some of them."""

    count: int
    read: Callable[[Array], Array]
    labels: Array | None = None


def stored(path: Path, how: Row) -> Stored:
    """A set of the material.  Of a folder or zip of pictures, only those asked for are decoded."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            values, labels = archive["x"], archive["y"].astype(np.int64)
        if "shape" in how:
            values = values.reshape(len(values), *how["shape"])
        if (
            values.ndim == 3
            and values.shape[1] == WINDOWS + FRAMES - 1
            and values.dtype.kind == "f"
        ):
            return Stored(len(values), lambda rows: windows(values[rows]), labels)
        return Stored(len(values), lambda rows: values[rows], labels)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = sorted(n for n in archive.namelist() if n.lower().endswith(IMAGE_SUFFIXES))

        def unzip(rows: Array) -> Array:
            with zipfile.ZipFile(path) as archive:
                return np.stack([picture(archive.read(names[row]), how) for row in rows])

        return Stored(len(names), unzip, classes(names))
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    return Stored(
        len(files), lambda rows: np.stack([picture(files[row].read_bytes(), how) for row in rows])
    )


def windows(recordings: Array) -> Array:
    """[n, frames, bands] -> [n·WINDOWS, FRAMES·bands]: the windows of each recording."""
    cut = [recordings[:, i : i + WINDOWS] for i in range(FRAMES)]
    return np.concatenate(cut, axis=2).reshape(-1, FRAMES * recordings.shape[2])


def classes(names: Sequence[str]) -> Array:
    """The number before the first underscore; else the place of the folder among the folders."""
    numbers = [re.match(r"(\d+)_", Path(name).name) for name in names]
    if all(numbers):
        return np.array([int(found.group(1)) for found in numbers if found], np.int64)
    folders = [Path(name).parent.name for name in names]
    return np.unique(folders, return_inverse=True)[1].astype(np.int64)


def picture(raw: bytes, how: Row) -> Array:
    """One picture as uint8 [H, W, C]: resized where the preprocessing names a height and a width."""
    from PIL import Image

    grey = bool(how.get("luminance"))
    image = Image.open(io.BytesIO(raw)).convert("YCbCr" if grey else "RGB")
    size = how.get("size")
    if isinstance(size, list):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.uint8)
    return pixels[..., :1] if grey else pixels


class Data:
    """The data of a case: its test samples, and draws of its calibration samples.

    With `held_out`, half of the calibration samples are the test samples.
    """

    def __init__(self, case: Case, root: Path, held_out: bool = False) -> None:
        base = ROOT if case.bundled else root
        self.case = case
        self.model = base / case.model
        listed = {} if case.bundled else entries(root)[Path(case.model).stem]["preprocess"]
        self.how = {**listed, **dict(case.how)}
        self.inputs: list[InputSpec] = prepare(self.model).inputs
        self.test_set = stored(base / case.test, self.how)
        order = np.random.default_rng(0).permutation(self.test_set.count)
        if case.calibration:
            self.pool_set = stored(base / case.calibration, self.how)
            self.pool, self.tested = np.arange(self.pool_set.count), order
        else:
            self.pool_set = self.test_set
            third = self.test_set.count // 3
            self.pool, self.tested = np.sort(order[:third]), order[third:]
        self.calibrates = case.calibration or f"{len(self.pool)} others of {case.test}"
        self.tests = case.test
        if held_out:
            order = np.random.default_rng(1).permutation(self.pool)
            half = len(order) // 2
            self.test_set, self.tests = self.pool_set, f"the held-out half of {self.calibrates}"
            self.calibrates = "the other half"
            self.pool, self.tested = np.sort(order[:half]), order[half:]

    def test(self, limit: int | None) -> Dataset:
        """The test samples with their labels (one label a recording, where there are such)."""
        given = [count for count in (limit, self.case.images) if count is not None]
        rows = self.tested[: min(given, default=len(self.tested))]
        labels = None if self.test_set.labels is None else self.test_set.labels[rows]
        return replace(self._fed(self.test_set.read(rows)), labels=labels)

    def calibration(self, seed: int, samples: int) -> Dataset:
        """`samples` of those that calibrate, drawn by `seed`, but no more than four fifths."""
        count = max(1, min(samples, len(self.pool) * 4 // 5))
        rows = np.random.default_rng(seed).choice(self.pool, count, replace=False)
        return self._fed(self.pool_set.read(np.sort(rows))).sample(samples, seed)

    def stored(self, count: int) -> Dataset:
        """`count` of the set that calibrates, in a seeded order, its test samples included."""
        rows = np.random.default_rng(0).permutation(self.pool_set.count)[:count]
        return self._fed(self.pool_set.read(np.sort(rows)))

    def _fed(self, values: Array) -> Dataset:
        # Pictures have their size already where it is a height and a width.
        how = {key: v for key, v in self.how.items() if not (key == "size" and isinstance(v, list))}
        if "dtype" in how:
            values = values.astype(how["dtype"])
        return load_data(values, self.inputs, preprocess_of(how))
