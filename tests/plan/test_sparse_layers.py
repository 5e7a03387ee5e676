"""Moments and damages against direct computation."""

import pytest
import torch
from torch import nn

from gossamer.batches import as_batches
from gossamer.errors import PlanError
from gossamer.plan import sparse_layers as module
from gossamer.plan.sparse_layers import RATIOS, find_sites, input_moments, measure_damage
from gossamer.program.capture import capture
from gossamer.progress import silent


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.shared = nn.Linear(6, 6)

    def forward(self, x):
        y = torch.relu(self.conv(x)).mean((2, 3))
        return self.shared(torch.relu(self.shared(y)))


@pytest.fixture(scope="module")
def inputs():
    return torch.randn(24, 4, 5, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def program(inputs):
    torch.manual_seed(0)
    return capture(Net().eval(), inputs[:2])


def test_moments_are_those_of_what_layers_read(program, inputs):
    sites, frozen = find_sites(program)
    assert [(site.name, len(site.nodes)) for site in sites] == [("conv.weight", 1), ("shared.weight", 2)]
    assert frozen == []
    moments, left = input_moments(program, sites, as_batches(inputs, what="calibration", batch_size=7), silent)
    assert left == []
    columns = nn.functional.unfold(inputs, 3, padding=1).reshape(24, 2, 18, 25).permute(1, 2, 0, 3).flatten(2).double()
    torch.testing.assert_close(moments["conv.weight"], columns @ columns.transpose(1, 2) / columns.shape[2], rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        first = torch.relu(
            nn.functional.conv2d(inputs, *(program.state[f"conv.{part}"] for part in ("weight", "bias")), padding=1, groups=2)
        )
        first = first.mean((2, 3))
        second = torch.relu(nn.functional.linear(first, program.state["shared.weight"], program.state["shared.bias"]))
    both = torch.cat([first, second]).double()
    torch.testing.assert_close(moments["shared.weight"][0], both.T @ both / len(both), rtol=1e-5, atol=1e-6)


def test_damage_is_the_relative_error_of_the_outputs(program, inputs):
    sites, _ = find_sites(program)
    damages = measure_damage(program, sites, as_batches(inputs, what="calibration"), silent)
    for site in sites:
        changed = program.copy()
        weight = changed.state[site.name]
        with torch.no_grad():
            weight[weight.abs() <= weight.abs().flatten().sort().values[round(RATIOS[1] * site.size) - 1]] = 0
            wanted = program(inputs)
            error = float((changed(inputs) - wanted).square().sum() / wanted.square().sum())
        assert damages[site.name][1] == pytest.approx(error, rel=1e-4)
        assert damages[site.name][0] <= damages[site.name][-1]


def test_layers_that_are_too_wide(program, inputs, monkeypatch):
    monkeypatch.setattr(module, "WIDEST", 10)
    sites, _ = find_sites(program)
    with pytest.raises(PlanError, match="'conv.weight' has 18 inputs, more than the 10 that are solved for; skip it"):
        input_moments(program, sites, as_batches(inputs, what="calibration"), silent)
