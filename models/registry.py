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


@dataclass(frozen=True)
class Dataset:
    """Pictures that a network of the literature learns from, and how it takes them."""

    size: int  # height and width that the network gets
    classes: int | None  # None: as many as there are folders
    mean: tuple[float, float, float]  # of red, green and blue, as parts of full intensity
    std: tuple[float, float, float]


#: Means and deviations over the training pictures, as usual with each data set.
DATASETS = {
    "cifar10": Dataset(32, 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Dataset(32, 100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": Dataset(224, None, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclass(frozen=True)
class PictureRecipe:
    """SGD with Nesterov momentum: the rate rises in a line, stays, and falls to 0 in a line."""

    epochs: int
    batch: int
    peak_rate: float
    weight_decay: float
    dropout: float  # in the classifier
    clip: float | None  # largest norm of all gradients together


#: By kind of network and whether it is constrained. Without batch normalisation a single batch can
#: throw the weights far off, so the norm of the gradients is bounded.
PICTURE_RECIPES = {
    ("resnet", True): PictureRecipe(40, 128, 0.2, 2e-4, 0.1, clip=1.0),
    ("vgg", True): PictureRecipe(40, 128, 0.1, 2e-4, 0.1, clip=1.0),
    ("resnet", False): PictureRecipe(80, 128, 0.2, 5e-4, 0.0, clip=None),
    ("vgg", False): PictureRecipe(80, 128, 0.1, 5e-4, 0.5, clip=None),
}
