"""The handwritten digits of scikit-learn, as two files: a training and a test part."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import path

LEVELS = 16  # the scans count ink in 4x4 cells, so a pixel is one of 0..16
TEST_DIGITS = 500
SPLIT_SEED = 0


def write_digits(folder: Path) -> list[Path]:
    """Split scikit-learn's 1797 digits, stratified by label, and write both parts.

    Each file holds `x`, uint8 [n, 8, 8, 1] (NHWC) of 0..16, and `y`, int64 [n] of 0..9.
    The same scikit-learn and NumPy give the same bytes each time.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x = digits.images.astype(np.uint8)[..., np.newaxis]
    y = digits.target.astype(np.int64)
    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=TEST_DIGITS, stratify=y, random_state=SPLIT_SEED
    )
    parts = {"digits-train": (x_train, y_train), "digits-test": (x_test, y_test)}
    files = []
    folder.mkdir(parents=True, exist_ok=True)
    for name, (images, labels) in parts.items():
        files.append(folder / path(name).name)
        np.savez_compressed(files[-1], x=images, y=labels)
    return files


def load(name: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Read "digits-train" or "digits-test" as the networks take it.

    Returns the images, float32 [n, 1, 8, 8] (NCHW) of 0..1, and the labels, int64 [n].
    """
    with np.load(path(name)) as file:
        x, y = file["x"], file["y"]
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2), np.float32) / np.float32(LEVELS), y
