"""The networks: which can be trained and how, which can be built. Needs no PyTorch, nor does help."""

from dataclasses import dataclass
from typing import Literal


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


@dataclass(frozen=True)
class Architecture:
    """A network of the literature, built by `vgg_resnet.build`."""

    kind: Literal["vgg", "resnet"]
    stages: tuple[tuple[int, int], ...]  # per stage: convolutions (vgg) or blocks, channels
    sizes: tuple[int, ...]  # the heights, equal to the widths, of the images it takes


#: VGG-16: Simonyan, Zisserman, ICLR 2015, configuration D. ResNets: He et al., CVPR 2016.
ARCHITECTURES = {
    "vgg16": Architecture("vgg", ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), (32, 224)),
    "resnet18": Architecture("resnet", ((2, 64), (2, 128), (2, 256), (2, 512)), (32, 224)),
    "resnet20": Architecture("resnet", ((3, 16), (3, 32), (3, 64)), (32,)),
    "resnet34": Architecture("resnet", ((3, 64), (4, 128), (6, 256), (3, 512)), (32, 224)),
}
