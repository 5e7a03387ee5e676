"""The two networks of the MNIST benchmark: the shapes of VGG-16 and ResNet-20, narrow enough to train on one core."""

from __future__ import annotations

from torch import Tensor, nn

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
