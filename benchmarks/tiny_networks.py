"""The four networks of MLPerf Tiny by their published shapes (Banbury et al. 2021, arXiv:2106.07597), with random weights."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn


class Residual(nn.Module):
    """Two convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width))
        self.shortcut = nn.Conv2d(channels, width, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.second(self.first(x)) + self.shortcut(x))


def resnet8() -> nn.Module:
    """Image classification, (3, 32, 32) -> 10."""
    start = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(
        start, Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    )


def _separable(channels: int, width: int, stride: int = 1) -> nn.Module:
    deep = (nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
    wide = (nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    return nn.Sequential(*deep, *wide)


def ds_cnn() -> nn.Module:
    """Keyword spotting, (1, 49, 10) -> 12."""
    start = nn.Sequential(nn.Conv2d(1, 64, (10, 4), 2, (5, 1), bias=False), nn.BatchNorm2d(64), nn.ReLU())
    return nn.Sequential(start, *(_separable(64, 64) for _ in range(4)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 12))


def mobilenet_v1() -> nn.Module:
    """Visual wake words, width 0.25, (3, 96, 96) -> 2."""
    widths = [
        (8, 16, 1),
        (16, 32, 2),
        (32, 32, 1),
        (32, 64, 2),
        (64, 64, 1),
        (64, 128, 2),
        *[(128, 128, 1)] * 5,
        (128, 256, 2),
        (256, 256, 1),
    ]
    start = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(start, *(_separable(*width) for width in widths), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 2))


def autoencoder() -> nn.Module:
    """Anomaly detection, (640,) -> 640."""
    sizes = [640, 128, 128, 128, 128, 8, 128, 128, 128, 128]
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(128, 640))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet-8": (resnet8, (3, 32, 32)),
    "DS-CNN": (ds_cnn, (1, 49, 10)),
    "MobileNetV1 0.25": (mobilenet_v1, (3, 96, 96)),
    "autoencoder": (autoencoder, (640,)),
}
