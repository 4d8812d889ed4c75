"""Which networks can be trained, and how. Free of PyTorch, so that names and help need none."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """A network and its training: SGD with Nesterov momentum over one learning-rate cycle."""

    module: str  # the class in networks.py
    train: str  # the data to learn from, a name that `snncompiler.models.path` knows
    test: str  # the data to measure on
    epochs: int
    batch: int
    peak_rate: float  # learning rate at the top of the cycle
    weight_decay: float
    shift: int  # training images move by up to this many pixels each way


NETWORKS = {
    "digits-cnn": Recipe(
        module="DigitsCNN",
        train="digits-train",
        test="digits-test",
        epochs=120,
        batch=32,
        peak_rate=0.1,
        weight_decay=1e-3,
        shift=1,
    ),
    "digits-resnet": Recipe(
        module="DigitsResNet",
        train="digits-train",
        test="digits-test",
        epochs=60,
        batch=32,
        peak_rate=0.05,
        weight_decay=1e-3,
        shift=1,
    ),
}
