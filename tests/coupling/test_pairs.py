"""Values with atoms along two axes: attention between channels, layers across tokens. Oracle: `apply` proves it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gossamer.apply.engine import apply
from gossamer.coupling import analyse
from gossamer.coupling.kept import keep_table
from gossamer.coupling.predict import Predictor
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.score import score
from gossamer.program.capture import capture


class ChannelAttention(nn.Module):
    """XCiT and DaViT: softmax of a map from channels to channels, with a temperature per head."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.head = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(8, 2)
        self.temperature = nn.Parameter(torch.rand(2, 1, 1))

    def forward(self, x):
        q, k, v = (layer(x).reshape(-1, 5, 2, 4).permute(0, 2, 3, 1) for layer in (self.q, self.k, self.v))
        weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature).softmax(-1)
        y = F.dropout(weights, 0.1, self.training) @ v
        return self.head(y.permute(0, 3, 1, 2).reshape(-1, 5, 8))


class FactorAttention(nn.Module):
    """CoaT and EfficientViT: keys and values first, queries with the map of channels that they give."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.q(x).relu() @ (self.k(x).softmax(1).transpose(-2, -1) @ self.v(x)) * 0.5)


class TokenMixer(nn.Module):
    """Mixer: a hidden layer across tokens, between layers across channels."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.one, self.two, self.norm = nn.Linear(5, 6), nn.Linear(6, 5), nn.LayerNorm(8)

    def forward(self, x):
        x = self.stem(x)
        y = F.gelu(self.one(self.norm(x).transpose(1, 2)))
        return self.head(x + F.dropout(self.two(y), 0.1, self.training).transpose(1, 2))


class NormedTokenMixer(TokenMixer):
    """The same with a norm over the hidden layer: its statistics are those of what stays."""

    def __init__(self):
        super().__init__()
        self.inner = nn.LayerNorm(6)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.two(self.inner(self.one(x.transpose(1, 2))).relu()).transpose(1, 2))


class PooledTokenMixer(TokenMixer):
    """A batch norm cannot tell channels from what lies beside them: the hidden layer stays."""

    def __init__(self):
        super().__init__()
        self.inner = nn.BatchNorm1d(8)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.two(self.inner(self.one(x.transpose(1, 2)))).transpose(1, 2))


class ChannelMap(nn.Module):
    """A map of channels whose softmax runs along one axis and whose maximum runs along the other."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.head = nn.Linear(3, 6), nn.Linear(3, 8), nn.Linear(6, 2)

    def forward(self, x):
        weights = (self.q(x).transpose(1, 2) @ self.k(x)).softmax(1)
        return self.head((weights * weights).sum(2))


@pytest.mark.parametrize(
    ("network", "groups"),
    [
        (ChannelAttention, {"q": 4, "k": 4}),
        (FactorAttention, {"q": 4, "v": 6}),
        (TokenMixer, {"stem": 8, "one": 6}),
        (NormedTokenMixer, {"stem": 8, "one": 6}),
        (PooledTokenMixer, {"stem": 8}),
        (ChannelMap, {"q": 6, "k": 8}),
    ],
)
def test_both_axes_lose_half(network, groups):
    torch.manual_seed(0)
    program = capture(network().eval(), torch.randn(2, 5, 3))
    scores = score(program, "l1")
    assert {group.name: group.size for group in scores.analysis.groups if group.prunable} == groups
    plan = plan_pruning(program, scores, 0.5, mode="layerwise")
    cost = apply(program, plan).cost()
    assert len(plan.edits) == len(groups)
    table = keep_table(scores.analysis, {edit.group: np.array(edit.keep) for edit in plan.edits})
    predictor = Predictor(program, scores.analysis)
    assert (predictor.params(table), predictor.macs(table)) == (cost.params, cost.macs)
    assert predictor.peak_memory_bytes(table) == cost.peak_memory_bytes


def test_tokens_stay_and_the_reason_is_named():
    analysis = analyse(capture(TokenMixer().eval(), torch.randn(2, 5, 3)))
    assert analysis.group("two").reason == "it meets linear, which cannot shrink, in add"


def test_what_cannot_be_told_apart_stays():
    analysis = analyse(capture(PooledTokenMixer().eval(), torch.randn(2, 5, 3)))
    assert analysis.group("one").reason == "it meets another axis that is pruned, and an op that cannot tell them apart"
