import numpy as np
import pytest
import torch
from torch import nn

from gossamer.batches import as_batches
from gossamer.coupling import analyse
from gossamer.errors import DataError
from gossamer.numerics.selection import contributions
from gossamer.plan import readings
from gossamer.plan.readings import group_readings
from gossamer.program.capture import capture
from networks import RandomNetwork


def found(network, x, batches=None):
    program = capture(network.eval(), x[:2])
    return program, dict(group_readings(program, analyse(program), as_batches(x if batches is None else batches, what="scoring"), 0))


def samples(count, *shape, seed=0):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def centred_energy(values):
    """Mean square over all positions without the mean of each channel. Shape: (N, O, *)."""
    rows = values.double().movedim(1, 0).flatten(1)
    return float((rows - rows.mean(1, keepdim=True)).square().sum()) / rows.shape[1]


class _Branches(nn.Module):
    """Two layers read the first convolution: a grouped one and, through pooling, a linear one with four columns a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 6, 3, padding=1, groups=2)
        self.linear = nn.Linear(8 * 4, 5)

    def forward(self, x):
        y = torch.relu(self.first(x))
        return self.grouped(y).flatten(1).sum(1, keepdim=True) + self.linear(nn.functional.max_pool2d(y, 3).flatten(1))


def test_contributions_are_the_errors_of_the_layers_outputs(monkeypatch):
    monkeypatch.setattr(readings, "POSITIONS", 36)  # all that an image has
    network, x = _Branches(), samples(12, 3, 6, 6)
    _, made = found(network, x)
    units = 4  # channels k and k + 4 of the two blocks go together
    grams = {len(entry.weight): contributions([entry]) for entry in made["first"]}
    assert set(made) == {"first"}
    assert all(gram.shape == (units, units) for gram in grams.values())
    gram = contributions(made["first"])
    with torch.no_grad():
        y = torch.relu(network.first(x))
        for removed in ([1], [0, 3]):
            gone = torch.zeros(8)
            gone[[*removed, *(unit + 4 for unit in removed)]] = 1
            lost = y * gone[:, None, None]
            parts = [
                (network.grouped(y), network.grouped(lost)),
                (network.linear(nn.functional.max_pool2d(y, 3).flatten(1)), network.linear(nn.functional.max_pool2d(lost, 3).flatten(1))),
            ]
            expected = sum(centred_energy(part) / centred_energy(whole) for whole, part in parts)
            assert gram[np.ix_(removed, removed)].sum() == pytest.approx(expected, rel=1e-3)


def test_a_depthwise_convolution_is_no_reader():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 5, 1), nn.Flatten(), nn.Linear(80, 2))
    _, made = found(network, samples(6, 3, 6, 6))
    assert {name: len(entries) for name, entries in made.items()} == {"0": 1, "2": 1}
    assert made["0"][0].weight.shape == (5, 4, 1)
    assert made["2"][0].weight.shape == (2, 5, 16)


def test_layers_whose_outputs_never_change_say_nothing():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.Flatten(), nn.Linear(5 * 36, 2))
    with torch.no_grad():
        network[2].weight.zero_()
    _, made = found(network, samples(6, 3, 6, 6))
    assert made["0"] == []


def test_units_with_many_columns_are_cut_to_their_main_directions(monkeypatch):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 36, 2))
    monkeypatch.setattr(readings, "MOST_COLUMNS", 20)
    _, made = found(network, samples(6, 3, 6, 6))
    assert made["0"][0].weight.shape == (2, 4, 5)


def test_groups_wait_for_another_run_where_memory_is_short(monkeypatch):
    network, x = RandomNetwork(("residual", "concat", "grouped", "gate"), 8, False, 0), samples(8, 3, 8, 8)
    _, whole = found(network, x)
    monkeypatch.setattr(readings, "MEMORY_BYTES", 1)
    _, parts = found(network, x)
    assert list(whole) == list(parts)
    for name, entries in whole.items():
        for one, other in zip(entries, parts[name], strict=True):
            assert torch.equal(one.weight, other.weight)
            assert torch.equal(one.second, other.second)


def test_inputs_beyond_the_limit_are_not_run(monkeypatch):
    monkeypatch.setattr(readings, "MOST_INPUTS", 8)
    network, x = _Branches(), samples(12, 3, 6, 6)
    _, cut = found(network, x, [x[:3], x[3:6], x[6:8], x[8:] * 100])
    _, short = found(network, x[:8], [x[:3], x[3:6], x[6:8]])
    assert all(torch.equal(one.second, other.second) for one, other in zip(cut["first"], short["first"], strict=True))


@pytest.mark.parametrize(("layer", "factor"), [("0.weight", 3e38), ("1.weight", torch.nan)])
def test_values_that_are_not_finite_are_told(layer, factor):
    x = samples(6, 3, 6, 6)
    program = capture(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)).eval(), x[:2])
    with torch.no_grad():
        program.state[layer].mul_(factor)
    with pytest.raises(DataError, match="makes NaN or infinite values at 'conv2d_1'"):
        list(group_readings(program, analyse(program), as_batches(x, what="scoring"), 0))
