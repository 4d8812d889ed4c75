"""The networks of the test material, and the data of each as it wants them."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Material:
    """The test material: the list of networks, and every network's data as it wants them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        entries = json.loads((root / "material.json").read_text(encoding="utf-8"))
        self.entries: dict[str, dict[str, Any]] = {Path(e["model"]).stem: e for e in entries}
        for name, how in _PICTURES.items():
            if name in self.entries and self.entries[name]["data"] is None:
                self.entries[name] |= {"data": "sets/ultraface_imgs", "preprocess": how}

    def model(self, name: str) -> Path:
        return self.root / str(self.entries[name]["model"])

    def set(self, name: str) -> Path:
        return self.root / "sets" / name

    def samples(self, name: str, count: int) -> tuple[Array, Array | None]:
        """The first `count` samples of a network's own data, preprocessed, and their labels."""
        entry = self.entries[name]
        how = entry["preprocess"]
        values, labels = _stored(self.root, name, entry["data"], how, count)
        return _preprocessed(values, how), labels

    def calibration(self, name: str, count: int) -> Array:
        """`count` samples of the set that belongs to the network's test set, or of that itself."""
        other = {
            "cifar10_test_lossless": "cifar10_train4k_lossless",
            "mnist_test": "mnist_calib5k",
            "digits_test": "digits_train",
        }
        entry = self.entries[name]
        data = entry["data"]
        for test, train in other.items():
            data = data and data.replace(test, train)
        values, _ = _stored(self.root, name, data, entry["preprocess"], count)
        return _preprocessed(values, entry["preprocess"])


#: Networks for pictures without a data set of their own: they get the pictures of people.
_PICTURES: dict[str, dict[str, Any]] = {
    "face_resnet_dlib_tfjs13": {"layout": "NHWC", "size": [150, 150]},
    "blazeface_front128_mediapipe": {
        "layout": "NHWC",
        "size": [128, 128],
        "shift": -127.5,
        "divide": 127.5,
    },
    "denoise_waifu2x_json13": {"layout": "NCHW", "scale": 255, "size": [46, 46]},
}

#: Inputs of the other networks without a data set of their own, as (low, high): the ranges of the iris
#: measurements in cm, of a cart-pole's state, and of the scaled collision-avoidance inputs.
_RANGES: dict[str, tuple[list[float], list[float], tuple[int, ...]]] = {
    "iris_mlp_pytorch_winml": ([4.3, 2.0, 1.0, 0.1], [7.9, 4.4, 6.9, 2.5], (4,)),
    "rl_cartpole": ([-2.4, -2.0, -0.2, -2.0], [2.4, 2.0, 0.2, 2.0], (4,)),
    "acasxu_1_1": ([-0.5] * 5, [0.5] * 5, (1, 1, 5)),
}


def _stored(
    root: Path, name: str, data: str | None, how: dict[str, Any], count: int
) -> tuple[Array, Array | None]:
    """Samples as they are stored; images as NHWC."""
    if data is None:
        low, high, shape = _RANGES[name]  # a new network without data needs its row there
        drawn = np.random.default_rng(0).uniform(low, high, (count, len(low)))
        return drawn.reshape(count, *shape), None
    path = root / data
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            values, labels = archive["x"], archive["y"]
        if data.endswith("ad01_mlperftiny.npz"):
            # Windows of 5 frames of 128: the first 20 of each recording.
            windows = np.concatenate([values[:, i : i + 20] for i in range(5)], axis=2)
            return windows.reshape(-1, 640)[:count], None
        return values[:count], labels[:count].astype(np.int64)
    pixels = _pictures(path, how.get("size"), count)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = sorted(archive.namelist())[:count]
        return pixels, np.array([int(Path(n).name.split("_")[0]) for n in names], np.int64)
    return pixels, None


def _pictures(path: Path, size: Any, count: int) -> Array:
    from PIL import Image

    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            raw = [archive.read(name) for name in sorted(archive.namelist())[:count]]
    else:
        files = [path] if path.is_file() else sorted(path.iterdir())[:count]
        raw = [file.read_bytes() for file in files]
    grey = path.is_file() and path.suffix == ".jpg"
    images = [Image.open(io.BytesIO(one)).convert("YCbCr" if grey else "RGB") for one in raw]
    if isinstance(size, list):
        images = [image.resize((size[1], size[0]), Image.Resampling.BILINEAR) for image in images]
    pixels = np.stack([np.asarray(image, np.uint8) for image in images])
    if grey:
        # The luminance alone, over 255.
        return (pixels[..., :1] / np.float32(255)).transpose(0, 3, 1, 2)
    if isinstance(size, int):
        top = (pixels.shape[1] - size) // 2
        pixels = pixels[:, top : top + size, top : top + size]
    return pixels


def _preprocessed(values: Array, how: dict[str, Any]) -> Array:
    values = values.astype(np.float32)
    if how.get("bgr"):
        values = values[..., ::-1]
    values = values + np.float32(how.get("shift", 0))
    values = values * np.float32(how.get("multiply", 1)) / np.float32(how.get("divide", 1))
    values = values / np.float32(how.get("scale", 1)) + np.float32(how.get("shift_after", 0))
    if "mean" in how:
        values = values - np.asarray(how["mean"], np.float32)
    if "std" in how:
        values = values / np.asarray(how["std"], np.float32)
    if how.get("layout") == "NCHW":
        values = values.transpose(0, 3, 1, 2)
    if "shape" in how:
        values = values.reshape(len(values), *how["shape"])
    return np.ascontiguousarray(values, np.float32)
