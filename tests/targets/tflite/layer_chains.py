"""Chains of layers drawn by name, for random networks on the runtimes of .tflite files."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerChain(nn.Module):
    """A convolution, the layers of `kinds`, and a linear layer over the means, or over all if `flat`.

    conv, strided, depthwise, grouped  convolutions
    add, join, gate                    one whose result is added to what it reads, or gets that and its activation, or scales it
    sigmoid, clamped                   one with an activation behind it; clamped: to 6, which the large weights reach
    relu6, pool, halved                a clamp; pools whose windows overlap and do not
    """

    def __init__(self, kinds: Sequence[str], width: int, *, classes: int, flat: bool = False) -> None:
        super().__init__()
        self.kinds, self.flat = kinds, flat
        made = {
            "conv": lambda: nn.Conv2d(width, width, 3, padding=1),
            "strided": lambda: nn.Conv2d(width, width, 3, stride=2, padding=1),
            "depthwise": lambda: nn.Conv2d(width, width, 3, padding=1, groups=width),
            "grouped": lambda: nn.Conv2d(width, width, 1, groups=2),
            "add": lambda: nn.Conv2d(width, width, 1),
            "join": lambda: nn.Conv2d(2 * width, width, 1),
            "gate": lambda: nn.Conv2d(width, width, 1),
            "sigmoid": lambda: nn.Conv2d(width, width, 1),
            "clamped": lambda: nn.Conv2d(width, width, 1, bias=False),
        }
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.layers = nn.ModuleList(made[kind]() if kind in made else nn.Identity() for kind in kinds)
        self.head = nn.LazyLinear(classes) if flat else nn.Linear(width, classes)
        for kind, layer in zip(kinds, self.layers, strict=True):
            if kind == "clamped":
                layer.weight.data *= 30

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        for kind, layer in zip(self.kinds, self.layers, strict=True):
            x = _run(kind, layer, x)
        return self.head(x.flatten(1) if self.flat else x.mean((2, 3)))


def _run(kind: str, layer: nn.Module, x: Tensor) -> Tensor:
    match kind:
        case "add":
            return torch.relu(x + layer(x))
        case "join":
            return layer(torch.cat([x, torch.relu(x - 0.5)], 1))
        case "gate":
            return x * torch.sigmoid(layer(x.mean((2, 3), keepdim=True)))
        case "sigmoid":
            return torch.sigmoid(layer(x))
        case "clamped":
            return F.relu6(layer(x))
        case "relu6":
            return F.relu6(x)
        case "pool":
            return F.max_pool2d(x, 3, 2, 1)
        case "halved":
            return F.max_pool2d(x, 2)
        case _:
            return layer(x)
