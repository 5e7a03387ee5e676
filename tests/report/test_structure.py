"""Layers and groups of a network: sums equal the totals, names are the user's."""

import json

import pytest
import torch
from torch import nn

from gossamer.program.capture import capture
from gossamer.report.structure import describe


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(x + self.norm(self.inner(x)))
        return self.head(x.mean((2, 3)))


NETWORKS = {
    "residual": (Residual(), (2, 3, 8, 8)),
    "tied": (Tied(), (2, 4)),
    "plain": (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 3)), (2, 1, 8, 8)),
}


@pytest.fixture(params=NETWORKS)
def program(request):
    model, shape = NETWORKS[request.param]
    return capture(model, torch.randn(shape))


def test_layers_add_up_to_the_totals(program):
    structure = describe(program)
    assert structure.cost == program.cost()
    assert sum(layer.params for layer in structure.layers) == structure.cost.params
    assert sum(layer.macs for layer in structure.layers) == structure.cost.macs


def test_it_is_the_same_every_time(program):
    assert describe(program) == describe(program)
    json.dumps(describe(program).to_dict())


def test_names_shapes_and_groups():
    model, shape = NETWORKS["residual"]
    structure = describe(capture(model, torch.randn(shape)))
    assert [layer.name for layer in structure.layers] == ["stem", "inner", "norm", "head"]
    assert structure.layers[0].output_shape == (1, 8, 8, 8)
    assert structure.layers[0].weight_format == "float32"
    coupled, output = structure.groups
    assert coupled.layers == ("stem", "inner")
    assert (coupled.channels, coupled.removable, coupled.reason) == (8, 8, "")
    assert (output.channels, output.removable) == (5, 0)
    assert "output" in output.reason
