"""VGG and ResNet as PyTorch modules, as the RMP-SNN paper constrains them and in their common form.

Constrained (Han, Srinivasan, Roy: RMP-SNN, CVPR 2020): no biases, no batch normalisation, average
pooling, dropout in the classifier. Common: batch normalisation after each convolution, biases and
maximum pooling where the original has them.

Input: float32 [N, 3, S, S], normalized images with S = 32 (CIFAR) or 224 (ImageNet).
Output: float32 [N, classes], one logit per class.
"""

from __future__ import annotations

from torch import Tensor, nn

from .registry import ARCHITECTURES, Architecture

CIFAR_SIZE = 32
#: Features in the hidden layers of VGG's classifier, at width 1: the original's 4096 for ImageNet;
#: 512 for CIFAR, where the last convolution leaves 512 features.
HIDDEN = {32: 512, 224: 4096}
DROPOUT = 0.5


class VGG(nn.Module):
    """Stages of 3x3 convolutions with pooling in between, then three linear layers.

    Simonyan, Zisserman: Very Deep Convolutional Networks, ICLR 2015. The common form has the layers
    of torchvision's `vgg16_bn`: its convolutions have both a bias and batch normalisation.
    """

    def __init__(
        self,
        architecture: Architecture,
        constrained: bool,
        classes: int,
        size: int,
        width: float,
        dropout: float,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for count, channels in architecture.stages:
            outputs = scaled(channels, width)
            for _ in range(count):
                layers += [*_convolution(inputs, outputs, 3, 1, constrained, True), nn.ReLU()]
                inputs = outputs
            layers.append(nn.AvgPool2d(2) if constrained else nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        bias = not constrained
        hidden = scaled(HIDDEN[size], width)
        left = size >> len(architecture.stages)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(inputs * left * left, hidden, bias),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden, bias),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes, bias),
        )
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, 3, S, S] to logits [N, classes]."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: [N, C, H, W] to [N, C', H/stride, W/stride].

    The shortcut is the identity where shapes agree and a 1x1 convolution where they do not
    (option B of He et al.).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, constrained: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(inputs, outputs, 3, stride, constrained),
            nn.ReLU(),
            *_convolution(outputs, outputs, 3, 1, constrained),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(*_convolution(inputs, outputs, 1, stride, constrained))
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut to the body, then rectify."""
        y: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return y


class ResNet(nn.Module):
    """A stem, stages of basic blocks, global average pooling and a linear layer.

    He et al.: Deep Residual Learning, CVPR 2016. The stem is a 3x3 convolution for images of 32x32,
    and a 7x7 convolution of stride 2 and a pooling layer of stride 2 for larger ones.
    """

    def __init__(
        self,
        architecture: Architecture,
        constrained: bool,
        classes: int,
        size: int,
        width: float,
        dropout: float,
    ) -> None:
        super().__init__()
        inputs = scaled(architecture.stages[0][1], width)
        small = size == CIFAR_SIZE
        stem = [*_convolution(3, inputs, *((3, 1) if small else (7, 2)), constrained), nn.ReLU()]
        if not small:
            stem.append(nn.AvgPool2d(2) if constrained else nn.MaxPool2d(3, 2, padding=1))
        self.stem = nn.Sequential(*stem)
        blocks: list[BasicBlock] = []
        for stage, (count, channels) in enumerate(architecture.stages):
            outputs = scaled(channels, width)
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(BasicBlock(inputs, outputs, stride, constrained))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        dropped = [nn.Dropout(dropout)] if constrained else []
        self.classifier = nn.Sequential(
            nn.Flatten(), *dropped, nn.Linear(inputs, classes, bias=not constrained)
        )
        _initialize(self)
        if constrained:
            _scale_residual_branches(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, 3, S, S] to logits [N, classes]."""
        logits: Tensor = self.classifier(self.pool(self.blocks(self.stem(x))))
        return logits


def build(
    name: str,
    *,
    constrained: bool = True,
    classes: int = 10,
    size: int = CIFAR_SIZE,
    width: float = 1.0,
    dropout: float = DROPOUT,
) -> nn.Module:
    """The network called `name` in the registry, with fresh weights of PyTorch's generator.

    `classes` is the number of logits, `size` the height and width of the images, and `width`
    multiplies the channels and the hidden features. `dropout` is the part of the classifier's
    features that training drops; common ResNets have none. Raises ValueError for what does not
    exist.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"no network {name!r}; there are: {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[name]
    if size not in architecture.sizes:
        sizes = " or ".join(f"{size}x{size}" for size in architecture.sizes)
        raise ValueError(f"{name} takes images of {sizes}, not {size}x{size}")
    if classes < 1 or not width > 0:
        raise ValueError(f"{classes} classes and width {width} do not make a network")
    if not 0 <= dropout < 1:
        raise ValueError(f"a dropout of {dropout} is not from 0 to below 1")
    kind = {"vgg": VGG, "resnet": ResNet}[architecture.kind]
    return kind(architecture, constrained, classes, size, width, dropout)


def scaled(count: int, width: float) -> int:
    """How many channels `count` of the original become."""
    return max(1, round(count * width))


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int, constrained: bool, bias: bool = False
) -> list[nn.Module]:
    """A convolution that keeps the size but for its stride; in the common form, normalized."""
    bias = bias and not constrained
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=bias)
    return [convolution] if constrained else [convolution, nn.BatchNorm2d(outputs)]


def _initialize(network: nn.Module) -> None:
    """Draw weights that keep the second moment of the signal from layer to layer.

    He et al.: Delving Deep into Rectifiers, ICCV 2015. The last layer has no rectifier behind it.
    """
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for layer in layers:
        nonlinearity = "linear" if layer is layers[-1] else "relu"
        nn.init.kaiming_normal_(layer.weight, nonlinearity=nonlinearity)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _scale_residual_branches(blocks: list[BasicBlock]) -> None:
    """Scale both convolutions of each of L residual branches by L^(-1/2).

    After Fixup (Zhang, Dauphin, Ma: Fixup Initialization, ICLR 2019): without batch normalisation,
    L branches of m layers learn if a step of training moves each by 1/L of what an unscaled layer
    would; Fixup scales all layers of a branch but the last by L^(-1/(2m - 2)), here L^(-1/2), and
    starts the last at zero. Here the last starts at that scale too: its branch is as good as absent
    (1/L² of the second moment), the first layer learns from the first step, and a network with
    fresh weights has no layer that is silent. Fixup's scalar biases are left out, as the paper
    allows none, and its scalar factors, as the weights hold them.
    """
    scale = len(blocks) ** -0.5
    for block in blocks:
        for layer in block.body:
            if isinstance(layer, nn.Conv2d):
                layer.weight.data.mul_(scale)
