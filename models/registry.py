"""What can be trained, and how. Free of PyTorch, so that names and help need none."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How a network is built and trained (SGD, Nesterov momentum, one learning-rate cycle)."""

    module: str  # the class in networks.py
    train: str  # data file to learn from, a name for snncompiler.models.path
    test: str  # data file to measure on
    epochs: int
    batch: int
    peak_rate: float
    weight_decay: float
    shift: int  # images move by up to this many pixels each way


NETWORKS = {
    "digits-cnn": Recipe(
        "DigitsCNN", "digits-train", "digits-test",
        epochs=80, batch=64, peak_rate=0.1, weight_decay=5e-4, shift=1,
    ),
    "digits-resnet": Recipe(
        "DigitsResNet", "digits-train", "digits-test",
        epochs=60, batch=64, peak_rate=0.1, weight_decay=5e-4, shift=1,
    ),
}
