"""ReLU networks of the literature in PyTorch, narrow; `generate.py` exports them.

Every module's `forward` takes a batch first.  Widths are small, structures as published.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional


def conv_bn(
    inputs: int, outputs: int, size: int = 3, *, dims: int = 2, stride: int = 1
) -> nn.Module:
    """A convolution that keeps the size, batch-norm and ReLU, in 1, 2 or 3 dimensions."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    layer = conv(inputs, outputs, size, stride, size // 2, bias=False)
    return nn.Sequential(layer, norm(outputs), nn.ReLU())


class TNet(nn.Module):
    """PointNet's transform: a k×k matrix from k-dimensional points [N, k, P]."""

    def __init__(self, k: int, width: int) -> None:
        super().__init__()
        self.k = k
        self.points = nn.Sequential(
            conv_bn(k, width, 1, dims=1), conv_bn(width, 4 * width, 1, dims=1)
        )
        self.dense = nn.Sequential(nn.Linear(4 * width, width), nn.ReLU(), nn.Linear(width, k * k))

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.dense(self.points(x).amax(2)).reshape(-1, self.k, self.k)
        return matrix + torch.eye(self.k)


class PointNet(nn.Module):
    """Qi et al. 2017: shared layers for every point of [N, 3, P], the maximum over points, classes.

    `transforms` 0: none; 1: of the points, which do not change in time; 2: of the features as well,
    a product of two values that change.
    """

    def __init__(self, width: int = 8, classes: int = 10, transforms: int = 0) -> None:
        super().__init__()
        self.points = TNet(3, width) if transforms else None
        self.first = conv_bn(3, width, 1, dims=1)
        self.features = TNet(width, width) if transforms > 1 else None
        self.rest = nn.Sequential(
            conv_bn(width, 2 * width, 1, dims=1), conv_bn(2 * width, 8 * width, 1, dims=1)
        )
        self.head = nn.Sequential(
            nn.Linear(8 * width, 4 * width),
            nn.BatchNorm1d(4 * width),
            nn.ReLU(),
            nn.Linear(4 * width, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.points is not None:
            x = (x.transpose(1, 2) @ self.points(x)).transpose(1, 2)
        x = self.first(x)
        if self.features is not None:
            x = (x.transpose(1, 2) @ self.features(x)).transpose(1, 2)
        return self.head(self.rest(x).max(2)[0])


def adjacency(nodes: int) -> Tensor:
    """A ring with chords, normalised as by Kipf and Welling: D^-1/2 (A + I) D^-1/2, [V, V]."""
    matrix = torch.eye(nodes)
    for node in range(nodes):
        for step in (1, nodes // 3):
            matrix[node, (node + step) % nodes] = matrix[(node + step) % nodes, node] = 1
    scale = matrix.sum(1).rsqrt()
    return scale[:, None] * matrix * scale


class GCN(nn.Module):
    """Kipf and Welling 2017: three graph convolutions of [N, V, F], the mean over nodes, classes.

    With `given` the adjacency [N, V, V] is an input of its own.
    """

    def __init__(self, nodes: int = 12, features: int = 6, width: int = 16, given: bool = False):
        super().__init__()
        self.given = given
        self.register_buffer("adjacency", adjacency(nodes))
        sizes = [features, width, width, width]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor, a: Tensor | None = None) -> Tensor:
        matrix = a if self.given else self.adjacency
        for layer in self.layers:
            x = functional.relu(matrix @ layer(x))
        return self.head(x.mean(1))


class STGCN(nn.Module):
    """Yan et al. 2018: spatial graph convolutions by einsum and temporal ones of [N, 3, T, V]."""

    def __init__(self, nodes: int = 9, width: int = 8, classes: int = 6) -> None:
        super().__init__()
        near = adjacency(nodes)
        self.register_buffer("parts", torch.stack([torch.eye(nodes), near, near @ near]))
        self.norm = nn.BatchNorm1d(3 * nodes)
        sizes = [(3, width, 1), (width, width, 1), (width, 2 * width, 2)]
        self.spatial = nn.ModuleList(nn.Conv2d(a, 3 * b, 1) for a, b, _ in sizes)
        self.temporal = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(b),
                nn.ReLU(),
                nn.Conv2d(b, b, (9, 1), (stride, 1), (4, 0)),
                nn.BatchNorm2d(b),
            )
            for _, b, stride in sizes
        )
        self.residual = nn.ModuleList(
            nn.Identity()
            if a == b
            else nn.Sequential(nn.Conv2d(a, b, 1, (s, 1)), nn.BatchNorm2d(b))
            for a, b, s in sizes
        )
        self.head = nn.Conv2d(2 * width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, t, v = x.shape
        x = self.norm(x.permute(0, 3, 1, 2).reshape(n, v * c, t))
        x = x.reshape(n, v, c, t).permute(0, 2, 3, 1)
        for spatial, temporal, residual in zip(
            self.spatial, self.temporal, self.residual, strict=True
        ):
            y = spatial(x)
            y = y.reshape(n, 3, y.shape[1] // 3, y.shape[2], v)
            y = torch.einsum("nkctv,kvw->nctw", y, self.parts)
            x = functional.relu(temporal(y) + residual(x))
        return self.head(x.mean((2, 3), keepdim=True)).flatten(1)


class DCGAN(nn.Module):
    """Radford et al. 2016: transposed convolutions from [N, 16, 1, 1] to a picture [N, 3, 32, 32]."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        steps = [(16, 4 * width, 1, 0), (4 * width, 2 * width, 2, 1), (2 * width, width, 2, 1)]
        layers: list[nn.Module] = []
        for a, b, stride, pad in steps:
            layers += [
                nn.ConvTranspose2d(a, b, 4, stride, pad, bias=False),
                nn.BatchNorm2d(b),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class UNet3d(nn.Module):
    """Çiçek et al. 2016: two levels of 3-d convolutions with skips, on volumes [N, 1, 8, 16, 16]."""

    def __init__(self, width: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.down = conv_bn(1, width, dims=3)
        self.middle = conv_bn(width, 2 * width, dims=3)
        self.bottom = conv_bn(2 * width, 4 * width, dims=3)
        self.up = nn.ConvTranspose3d(4 * width, 2 * width, 2, 2)
        self.right = conv_bn(4 * width, 2 * width, dims=3)
        self.last_up = nn.ConvTranspose3d(2 * width, width, 2, 2)
        self.last = conv_bn(2 * width, width, dims=3)
        self.head = nn.Conv3d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down(x)
        second = self.middle(functional.max_pool3d(first, 2))
        x = self.up(self.bottom(functional.max_pool3d(second, 2)))
        x = self.last_up(self.right(torch.cat([x, second], 1)))
        return self.head(self.last(torch.cat([x, first], 1)))


class TinyYolo(nn.Module):
    """Redmon and Farhadi 2017, tiny YOLO v2: LeakyReLU and MaxPool, the last one padded, stride 1."""

    def __init__(self, width: int = 4, anchors: int = 5, classes: int = 4) -> None:
        super().__init__()
        sizes = [3, width, 2 * width, 4 * width, 4 * width]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            layers += [
                nn.Conv2d(a, b, 3, 1, 1, bias=False),
                nn.BatchNorm2d(b),
                nn.LeakyReLU(0.1),
                nn.MaxPool2d(2),
            ]
        layers[-1] = nn.Sequential(nn.ReplicationPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, 1))
        layers += [
            nn.Conv2d(4 * width, 8 * width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(8 * width),
            nn.LeakyReLU(0.1),
            nn.Conv2d(8 * width, anchors * (5 + classes), 1),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class MTCNN(nn.Module):
    """Zhang et al. 2016, R-Net on [N, 3, 24, 24]: PReLU, MaxPool with ceil, two heads."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3),
            nn.PReLU(width),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(width, 2 * width, 3),
            nn.PReLU(2 * width),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(2 * width, 2 * width, 2),
            nn.PReLU(2 * width),
        )
        self.dense = nn.Sequential(nn.Linear(18 * width, 4 * width), nn.PReLU(4 * width))
        self.face = nn.Linear(4 * width, 2)
        self.boxes = nn.Linear(4 * width, 4)
        for module in self.modules():
            if isinstance(module, nn.PReLU):
                nn.init.uniform_(module.weight, -0.2, 0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.features(x).permute(0, 3, 2, 1).flatten(1)
        x = self.dense(x)
        return functional.softmax(self.face(x), 1), self.boxes(x)


class DilatedNet(nn.Module):
    """WaveNet's skeleton with ReLU: causal convolutions of dilation 1 to 16 with skips."""

    def __init__(self, width: int = 12, classes: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, width, 1)
        self.dilated = nn.ModuleList(
            nn.Conv1d(width, width, 2, dilation=2**index) for index in range(5)
        )
        self.residual = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(5))
        self.skip = nn.ModuleList(nn.Conv1d(width, 2 * width, 1) for _ in range(5))
        self.head = nn.Sequential(
            nn.ReLU(),
            nn.Conv1d(2 * width, 2 * width, 1),
            nn.ReLU(),
            nn.Conv1d(2 * width, classes, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        total: Tensor | None = None
        for dilated, residual, skip in zip(self.dilated, self.residual, self.skip, strict=True):
            y = functional.relu(dilated(functional.pad(x, (dilated.dilation[0], 0))))
            found = skip(y)
            total = found if total is None else total + found
            x = x + residual(y)
        assert total is not None
        return self.head(total)
