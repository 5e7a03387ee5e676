"""Two small networks of kinds that microcontrollers run, for the tests of several targets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Squeeze(nn.Module):
    """Channels scaled by what their means say."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.up(torch.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class Inverted(nn.Module):
    """A block of MobileNetV3: wider, depthwise, squeezed, narrower."""

    def __init__(self, inside: int, wide: int, outside: int, stride: int) -> None:
        super().__init__()
        self.widen, self.first = nn.Conv2d(inside, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.depthwise, self.second = nn.Conv2d(wide, wide, 5, stride, 2, groups=wide, bias=False), nn.BatchNorm2d(wide)
        self.squeeze = Squeeze(wide)
        self.narrow, self.third = nn.Conv2d(wide, outside, 1, bias=False), nn.BatchNorm2d(outside)
        self.residual = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.first(self.widen(x)))
        y = self.squeeze(F.hardswish(self.second(self.depthwise(y))))
        y = self.third(self.narrow(y))
        return x + y if self.residual else y


class SmallMobileNetV3(nn.Module):
    """MobileNetV3 (Howard et al. 2019, arXiv:1905.02244) of three blocks with a softmax; images (N, 3, 32, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(Inverted(8, 16, 8, 1), Inverted(8, 32, 16, 2), Inverted(16, 48, 16, 1))
        self.hidden, self.head = nn.Linear(16, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.hardswish(self.norm(self.stem(x))))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.head(F.hardswish(self.hidden(x))).softmax(1)


class SmallUNet(nn.Module):
    """U-Net (Ronneberger et al. 2015, arXiv:1505.04597) of two levels, one brought up by each kind of resizing; images (N, 3, 16, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
        self.four, self.five = nn.Conv2d(40, 16, 3, padding=1), nn.Conv2d(24, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = torch.relu(self.one(x))
        two = torch.relu(self.two(F.max_pool2d(one, 2)))
        three = torch.relu(self.three(F.avg_pool2d(two, 2)))
        two = torch.relu(self.four(torch.cat([F.interpolate(three, scale_factor=2), two], 1)))
        one = self.five(torch.cat([F.interpolate(two, scale_factor=2, mode="bilinear"), one], 1))
        return torch.sigmoid(self.head(F.leaky_relu(one, 0.1)))


NETWORKS = {"mobilenet v3": (SmallMobileNetV3, (3, 32, 32)), "u-net": (SmallUNet, (3, 16, 16))}
