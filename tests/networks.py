"""Random convolutional networks for property tests: every structure that coupling has to understand, small."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

BLOCKS = ("conv", "depthwise", "grouped", "residual", "bottleneck", "concat", "split", "gate", "shuffle", "pool")


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(torch.relu(self.norm(self.first(x)))))


class _Bottleneck(nn.Module):
    """Inverted residual with a depthwise convolution in the middle."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.expand = nn.Conv2d(channels, wide, 1)
        self.depthwise = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.norm = nn.BatchNorm2d(wide)
        self.project = nn.Conv2d(wide, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(nn.functional.relu6(self.norm(self.depthwise(nn.functional.relu6(self.expand(x))))))


class _Concat(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.left = nn.Conv2d(channels, 4, 1)
        self.right = nn.Conv2d(channels, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.left(x), torch.relu_(self.right(x))], dim=1)


class _Split(nn.Module):
    """Halves that go different ways."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(channels - channels // 2, channels - channels // 2, 1)
        self.half = channels // 2

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, : self.half], torch.relu(self.inner(x[:, self.half :]))], dim=1)


class _Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, 4, 1)
        self.expand = nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(torch.relu(self.reduce(pooled))))


class _Shuffle(nn.Module):
    """Channel shuffle by a reshape with literal sizes between two grouped convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 1, groups=2)
        self.second = nn.Conv2d(channels, channels, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        batch, channels, height, width = y.shape
        y = y.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        return self.second(y)


class RandomNetwork(nn.Module):
    """A chain of blocks on (batch, 3, 8, 8) with a classifier behind; `flatten` or global pooling before it."""

    def __init__(self, blocks: tuple[str, ...], channels: int, flatten: bool, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
            size = 8
            for block in blocks:
                if block == "pool" and size == 2:
                    continue
                layer, channels = _make(block, channels)
                size = size // 2 if block == "pool" else size
                layers.append(layer)
            self.body = nn.Sequential(*layers)
            self.flatten = flatten
            self.drop = nn.Dropout(0.1)
            self.head = nn.Linear(channels * size * size if flatten else channels, 5)
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):  # statistics and affine of a trained network, not of a new one
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias, std=0.2)
                    nn.init.normal_(module.running_mean, std=0.2)
                    nn.init.uniform_(module.running_var, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y = torch.flatten(y, 1) if self.flatten else nn.functional.adaptive_avg_pool2d(y, 1).flatten(1)
        return self.head(self.drop(y))


def _make(block: str, channels: int) -> tuple[nn.Module, int]:
    match block:
        case "conv":
            return nn.Sequential(nn.Conv2d(channels, 12, 3, padding=1), nn.ReLU()), 12
        case "depthwise":
            return nn.Sequential(nn.Conv2d(channels, 2 * channels, 3, padding=1, groups=channels), nn.Hardswish()), 2 * channels
        case "grouped":
            return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, groups=2), nn.BatchNorm2d(channels)), channels
        case "residual":
            return _Residual(channels), channels
        case "bottleneck":
            return _Bottleneck(channels), channels
        case "concat":
            return _Concat(channels), channels + 10
        case "split":
            return _Split(channels), channels
        case "gate":
            return _Gate(channels), channels
        case "shuffle":
            return _Shuffle(channels), channels
        case "pool":
            return nn.MaxPool2d(2), channels
    raise ValueError(block)


def networks(blocks: tuple[str, ...] = BLOCKS) -> st.SearchStrategy[RandomNetwork]:
    """Random networks in evaluation mode."""
    return st.builds(
        RandomNetwork,
        st.lists(st.sampled_from(blocks), min_size=1, max_size=4).map(tuple),
        st.sampled_from([8, 12, 16]),
        st.booleans(),
        st.integers(0, 1000),
    ).map(lambda network: network.eval())
