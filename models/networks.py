"""The networks, as PyTorch modules."""

from torch import Tensor, nn


class DigitsCNN(nn.Module):
    """A plain network within the limits that the RMP-SNN paper sets for conversion.

    No biases, no batch normalisation, average pooling, and dropout while training
    (Han, Srinivasan, Roy: RMP-SNN, CVPR 2020).

    Input: float32 [N, 1, 8, 8], ink per pixel from 0 (none) to 1 (full).
    Output: float32 [N, 10], one logit per digit.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Dropout(0.1),
            nn.Conv2d(32, 32, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.AvgPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(32 * 2 * 2, 64, bias=False),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(64, 10, bias=False),
        )
        # With neither biases nor normalisation, only the first weights keep signals from fading.
        for weight in self.parameters():
            nn.init.kaiming_uniform_(weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, 1, 8, 8] to logits [N, 10]."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


def _conv_norm(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    # Batch normalisation makes the bias redundant in training, but many published networks have
    # both, so a compiler has to fold both: these networks are here to try just that.
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=True),
        nn.BatchNorm2d(outputs),
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: [N, C, H, W] to [N, C', H/stride, W/stride].

    The basic block of He et al., Deep Residual Learning, CVPR 2016. The shortcut is the identity
    where shapes agree and a 1x1 convolution (projection) where they do not.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv_norm(inputs, outputs, 3, stride),
            nn.ReLU(),
            _conv_norm(outputs, outputs, 3),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else _conv_norm(inputs, outputs, 1, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut to the body, then rectify."""
        y: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return y


class DigitsResNet(nn.Module):
    """A residual network beyond the paper's limits: biases and batch normalisation throughout.

    A stem, one block with an identity shortcut, one downsampling block with a projection, global
    average pooling and a linear layer (after He et al., Deep Residual Learning, CVPR 2016).

    Input: float32 [N, 1, 8, 8], ink per pixel from 0 (none) to 1 (full).
    Output: float32 [N, 10], one logit per digit.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv_norm(1, 16, 3), nn.ReLU())
        self.blocks = nn.Sequential(ResidualBlock(16, 16), ResidualBlock(16, 32, stride=2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, 1, 8, 8] to logits [N, 10]."""
        logits: Tensor = self.classifier(self.pool(self.blocks(self.stem(x))))
        return logits
