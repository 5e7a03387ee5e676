"""Parameters in place of a second value run on codes of their own: bit for bit the simulation on LiteRT, tflite-micro and emulated chips."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gossamer.plan.scheme import Scheme
from gossamer.targets.parity import check_parity
from gossamer.targets.target import targets
from targets.tflite.test_transposed import TARGETS, coded, needs

NEAREST = Scheme(rounding="nearest")


class Shifted(nn.Module):
    """A table, numbers by channel and by row, and one number, on each side of sums, differences and products, between convolutions."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1)
        self.table, self.rows = nn.Parameter(torch.randn(1, 6, 5, 7)), nn.Parameter(torch.randn(5, 1))
        self.channels, self.number = nn.Parameter(torch.rand(6, 1, 1) + 0.5), nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        x = F.relu(self.first(x) * self.channels + self.table)
        return self.second((self.rows - x) * self.number + (self.table * x - self.channels))


class Block(nn.Module):
    """The beginning of a vision transformer: patches, position embeddings, attention and what follows, with a scale for each channel."""

    def __init__(self):
        super().__init__()
        self.patches, self.places = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(1, 9, 16) * 0.3)
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.scale, self.wide, self.narrow = nn.Parameter(torch.rand(16)), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        scores = self.query(x) @ self.key(x).transpose(1, 2) * 0.25
        x = x + self.scale * self.out(scores.softmax(-1) @ self.value(x))
        return x + self.narrow(F.relu(self.wide(x)))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("network", "shape"), [(Shifted, (3, 7, 9)), (Block, (3, 12, 12))])
def test_sums_and_products_with_parameters_are_bit_exact(target, network, shape, tmp_path):
    needs(target)
    torch.manual_seed(0)
    samples = torch.randn(6, *shape)
    _, plan, artifact = coded(network(), samples, target, tmp_path, scheme=NEAREST)
    assert not [found for found in plan.frozen if "parameter" in found.reason]
    parity = check_parity(artifact, targets[target].open(artifact.path, threads=1, values=target == "cortex_m"), (samples[:2],))
    assert parity.max_steps == 0, [layer for layer in parity.layers if layer.max_steps]
    assert parity.output_error < 1e-6


def test_masks_of_huge_numbers_stay_float(tmp_path):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)
            self.register_buffer("mask", torch.tensor([0, 0, -1e9, 0, 0, 0]))

        def forward(self, x):
            return self.second((self.first(x) + self.mask).relu())

    torch.manual_seed(0)
    samples = torch.randn(6, 6)
    _, plan, _ = coded(Masked(), samples, "litert", tmp_path, scheme=NEAREST)
    assert [found.reason for found in plan.frozen if "(Add)" in found.where] == ["Add reads a parameter, which only layers can in integers"]
