"""State and axes of which one reader can shrink and another cannot. Oracle: the proof of the removal, with every group halved."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.apply.engine import apply
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.score import score
from gossamer.program.capture import capture

WIDTH = 8


class Parts(nn.Module):
    """Layers of one width that the networks below share in odd ways; they read (batch, 5, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.other, self.head, self.wide = (nn.Linear(WIDTH, out) for out in (WIDTH, WIDTH, 3, 2 * WIDTH))
        self.table, self.norm, self.batch_norm = nn.Embedding(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.BatchNorm1d(WIDTH)
        self.group_norm, self.slopes = nn.GroupNorm(2, WIDTH), nn.PReLU(WIDTH)
        self.conv, self.depthwise = nn.Conv1d(WIDTH, WIDTH, 1), nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.recurrent = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.bias = nn.Parameter(torch.randn(WIDTH))


class SameWeight(Parts):
    """relu(a(x)) and b of that, with one weight: its columns read the input of the network, too."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.linear(torch.relu(self.stem(x)), self.stem.weight, self.bias))


class SameWeightBesides(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.linear(torch.relu(self.stem(x)), self.stem.weight) + F.linear(x, self.stem.weight, self.bias))


class SameNorm(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(self.norm(x))))


class SameNormLater(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(x)) + self.other(self.norm(x)))


class Channels(Parts):
    """One layer of channels in front of a convolution and behind it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        layer = getattr(self, self.name)
        return self.head(layer(self.conv(layer(x.transpose(1, 2)))).transpose(1, 2))


class SameRecurrent(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(self.recurrent(x)[0])[0])


class TableAsWeight(Parts):
    """The rows of a table are found by number, so the features that it makes as a weight stay."""

    def forward(self, x: Tensor) -> Tensor:
        found = self.table(torch.ones_like(x[..., 0], dtype=torch.int64))
        return self.head(torch.relu(F.linear(self.other(found), self.table.weight)))


class JoinedTokens(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([x, self.stem(x)], 1))


class StackedTokens(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.stack([x, self.stem(x), self.other(x)], 1).mean(1))


class CrossedProduct(Parts):
    """Queries and keys of which each half can be pruned on one side only."""

    def forward(self, x: Tensor) -> Tensor:
        queries, keys = torch.cat([x, self.stem(x)], -1), torch.cat([self.other(x), x], -1)
        return self.head(queries @ keys.transpose(1, 2) @ x)


class HalfGate(Parts):
    """A gated linear unit whose gate is the network's input."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.glu(torch.cat([self.stem(x), x], -1), -1))


STAYS = [
    SameWeight(),
    SameWeightBesides(),
    SameNorm(),
    SameNormLater(),
    *map(Channels, ("batch_norm", "group_norm", "slopes", "depthwise")),
    SameRecurrent(),
    TableAsWeight(),
    JoinedTokens(),
    StackedTokens(),
    CrossedProduct(),
    HalfGate(),
]


@pytest.mark.parametrize("network", STAYS, ids=lambda network: getattr(network, "name", type(network).__name__))
def test_what_meets_something_that_stays_stays(network):
    program = capture(network.eval(), torch.randn(2, 5, WIDTH))
    plan = plan_pruning(program, score(program, "l2"), 0.5, mode="layerwise")
    apply(program, plan)  # proves itself
    frozen = {entry.where: entry.reason for entry in plan.frozen if entry.where != "head"}
    assert frozen and all("shrink" in reason for reason in frozen.values())


class OnePair(nn.Module):
    """relu(a(y)) + b(y) with one weight and two biases: all of it shrinks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(8, 10), nn.Linear(10, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.head(torch.relu(self.a(y)) + self.b(y))


def test_one_weight_with_two_biases_shrinks():
    program = capture(OnePair().eval(), torch.randn(2, 6))
    small = apply(program, plan_pruning(program, score(program, "l2"), 0.5, mode="layerwise"))
    assert small.state["stem.weight"].shape == (4, 6)
    assert small.state["head.weight"].shape == (3, 5)


def test_half_of_a_gate_that_shrinks_with_the_other_half():
    network = nn.Sequential(nn.Linear(5, 16), nn.GLU(), nn.Linear(8, 3))
    program = capture(network.eval(), torch.randn(2, 5))
    assert apply(program, plan_pruning(program, score(program, "l2"), 0.5)).state["0.weight"].shape == (8, 5)
