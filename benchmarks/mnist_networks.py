"""The two networks of the MNIST benchmarks: the shapes of VGG-16 and ResNet-20, narrow enough to train on one core; and how they are judged."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.numerics.intervals import newcombe, wilson
from gossamer.program.bundle import load, save
from gossamer.program.program import Program
from gossamer.train.recipe import Recipe

CACHE = Path(tempfile.gettempdir()) / "gossamer-mnist-pruning"
SEED = 0
BASELINE = Recipe(learning_rate=0.05, batch_size=128)
BASELINE_EPOCHS = 3

VGG = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)  # 0: halve the image


def vgg16(divisor: int = 4) -> nn.Sequential:
    """VGG-16 (Simonyan and Zisserman 2015, arXiv:1409.1556) with batch norm, every width divided. (N, 1, 28, 28) -> (N, 10)."""
    layers: list[nn.Module] = []
    before = 1
    for width in VGG:
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        width //= divisor
        layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before, 10))


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        same = stride == 1 and before == width
        self.shortcut = nn.Identity() if same else nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.relu(self.norm1(self.conv1(x)))
        result: Tensor = self.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))
        return result


def resnet20(width: int = 8) -> nn.Sequential:
    """ResNet-20 (He et al. 2016, arXiv:1512.03385, section 4.2) with projection shortcuts; 16 is the paper's width."""
    layers: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    before = width
    for stage in range(3):
        for number in range(3):
            after = width * 2**stage
            layers.append(Block(before, after, 2 if stage and number == 0 else 1))
            before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"vgg16": vgg16, "resnet20": resnet20}


def trained(name: str, data: tuple[Tensor, Tensor], cache: Path) -> Program:
    """A network trained on `data`, (N, 1, 28, 28) and labels (N,); from the cache if it is there."""
    path = cache / f"{name}.gossamer"
    if not path.exists():
        torch.manual_seed(SEED)
        fresh = gs.capture(NETWORKS[name](), torch.zeros(2, 1, 28, 28))
        save(gs.fit(fresh, data, epochs=BASELINE_EPOCHS, recipe=BASELINE, checkpoint=cache / f"{name}.fit", seed=SEED), path)
    return load(path)


def accuracy(right: Tensor) -> dict[str, Any]:
    """Share of right answers with its Wilson interval."""
    count = int(right.sum())
    return {"accuracy": count / len(right), "interval": [round(end, 5) for end in wilson(count, len(right))]}


def difference(first: Tensor, second: Tensor) -> list[float]:
    """Newcombe's interval of accuracy(first) - accuracy(second), in points."""
    counts = [int((first & second).sum()), int((first & ~second).sum()), int((~first & second).sum()), int((~first & ~second).sum())]
    return [round(100 * end, 3) for end in newcombe(*counts)]
