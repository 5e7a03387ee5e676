"""Which blocks are found in which networks, and what bypassing does to a graph."""

import pytest
import torch
from torch import nn

from attention import Encoder, Rotary, Separate, inputs
from gossamer.coupling.blocks import bypass, find_blocks
from gossamer.errors import ConfigError
from gossamer.program.capture import capture
from networks import RandomNetwork


def names(program, kind="branches"):
    return [block.name for block in find_blocks(program, kind)]


def test_branches_and_layers_of_a_transformer():
    program = capture(Encoder(Rotary, Separate).eval(), inputs())
    assert names(program) == ["blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp"]
    assert names(program, "layers") == ["blocks.0", "blocks.1"]
    branches, layers = find_blocks(program), find_blocks(program, "layers")
    assert layers[1].source == branches[1].node == branches[2].source
    assert layers[1].nodes == branches[2].nodes | branches[3].nodes


def test_norms_behind_the_addition():
    """As in the first transformers: the norm is behind the branch and stays; the layer goes with its norms."""

    def layer():
        return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([layer(), layer(), layer()])

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    program = capture(Encoder().eval(), torch.randn(2, 5, 8))
    assert names(program, "layers") == ["layers.0", "layers.1", "layers.2"]
    assert len(names(program)) == 6
    assert len(set(names(program))) == 6


def test_only_blocks_with_a_skip_are_branches():
    network = RandomNetwork(("conv", "residual", "conv", "bottleneck", "gate", "concat"), 12, False, 0).eval()
    program = capture(network, torch.zeros(2, 3, 8, 8))
    assert names(program) == ["body.4", "body.6"]


def test_a_shortcut_with_a_layer_is_no_skip():
    class Down(nn.Module):
        def __init__(self):
            super().__init__()
            self.shortcut = nn.Conv2d(4, 4, 1)
            self.main = nn.Conv2d(4, 4, 3, padding=1)
            self.again = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            x = torch.relu(self.shortcut(x) + self.main(x))
            return x - self.again(x)

    program = capture(Down().eval(), torch.zeros(2, 4, 5, 5))
    assert names(program) == []


def test_sums_without_a_layer_are_no_branches():
    """x + 0.04 * x ** 3, as GELU is written out."""

    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            x = self.layer(x)
            return x + 0.04 * x**3

    assert names(capture(Written().eval(), torch.zeros(2, 4))) == []


def test_nested_branches_are_both_found():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            inner = self.first(x)
            inner = inner + torch.relu(self.second(inner))
            return x + self.last(inner)

    found = {block.name: block.nodes for block in find_blocks(capture(Nested().eval(), torch.zeros(2, 4)))}
    assert list(found) == ["second", "first"]
    inner, outer = found.values()
    assert inner < outer


def test_repeated_layers_without_a_skip():
    network = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(3)), nn.Linear(6, 2)).eval()
    assert names(capture(network, torch.zeros(2, 6)), "layers") == ["0", "1", "2"]


def test_bypass_goes_through_chains_and_drops_what_is_not_needed():
    program = capture(Encoder(Separate, Separate).eval(), inputs())
    blocks = find_blocks(program)
    small = bypass(program.graph, {block.node: block.source for block in blocks})
    assert not {name for block in blocks for name in block.nodes} & set(small.by_name)
    assert set(small.state_names) == {"embed.weight", "embed.bias", "norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert bypass(program.graph, {}) == program.graph.without_dead_code()


def test_kinds():
    program = capture(nn.Linear(4, 4).eval(), torch.zeros(2, 4))
    with pytest.raises(ConfigError, match="kind must be one of branches, layers; got 'heads'"):
        find_blocks(program, "heads")
