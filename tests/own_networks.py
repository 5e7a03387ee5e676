"""Networks of kinds that model zoos for classification do not have: a U-Net, and classifiers of sequences."""

import torch
from torch import Tensor, nn


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """An image to an image of class scores, with skips from the way down to the way up.

    Source: Ronneberger, Fischer, Brox 2015, arXiv:1505.04597; differs: padded, batch norm.
    """

    def __init__(self, width: int = 16, classes: int = 4) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.down = nn.ModuleList(_twice(before, after) for before, after in zip([3, *widths], widths, strict=False))
        self.bottom = _twice(widths[-1], 2 * widths[-1])
        self.grow = nn.ModuleList(nn.ConvTranspose2d(2 * size, size, 2, stride=2) for size in reversed(widths))
        self.up = nn.ModuleList(_twice(2 * size, size) for size in reversed(widths))
        self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottom(x)
        for grow, block, skip in zip(self.grow, self.up, reversed(skips), strict=True):
            x = block(torch.cat([skip, grow(x)], dim=1))
        return self.head(x)


class LstmClassifier(nn.Module):
    """Two LSTM layers over a sequence of embedded samples; the last step decides."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed, self.recurrent = nn.Linear(12, width), nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.hidden, self.head = nn.Linear(width, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.recurrent(self.embed(x).relu())[0][:, -1]).relu())


class GruClassifier(nn.Module):
    """A GRU in both directions over a sequence; the mean over time decides."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed, self.recurrent = nn.Linear(12, width), nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.hidden, self.head = nn.Linear(2 * width, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.recurrent(self.embed(x).relu())[0].mean(1)).relu())
