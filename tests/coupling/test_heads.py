"""Whole heads as units: every way of writing attention; what removal does to each tensor; the eager oracle."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import attention as written
from attention import HEADS, WIDTH, Encoder, inputs
from gossamer.apply.engine import apply
from gossamer.apply.mask import mask_channels
from gossamer.apply.shrink import shrink
from gossamer.coupling import analyse
from gossamer.coupling.kept import keep_table
from gossamer.errors import ConfigError
from gossamer.plan.edits import KeepHeads
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.score import score
from gossamer.program.capture import capture, relative_error

FOUR = ["Attention", "Sdpa", "Einsum", "TableBias", "TransposedTable", "MaskBias", "Masked", "NetworkBias", "Rotary", "ChannelAttention"]
FOUR += ["Aggregated", "Separate", "OneKey", "OneKeySdpa"]
TWO = ["GroupedExpand", "GroupedRepeat", "GroupedSdpa"]


def encoder(*names):
    return Encoder(*(getattr(written, name) for name in names)).eval()


def heads_of(program):
    return [group for group in analyse(program, "heads").groups if group.unit == "heads" and group.prunable]


def without_heads(network, layer, removed):
    """The eager network in which the projection reads nothing of some heads."""
    silent = copy.deepcopy(network)
    weight = silent.blocks[layer].attn.proj.weight
    with torch.no_grad():
        weight.view(WIDTH, HEADS, -1)[:, removed] = 0
    return silent


@pytest.mark.parametrize("name", FOUR)
def test_each_head_is_a_unit(name):
    """Removing heads equals the eager network whose projection does not read them."""
    network = encoder(name)
    program = capture(network, inputs())
    (group,) = heads_of(program)
    assert group.size == HEADS
    small = shrink(program, (KeepHeads(group.name, (1, 2), HEADS),), "heads")
    x = inputs(3, seed=1)
    assert relative_error(small(x), without_heads(network, 0, [0, 3])(x)) <= 1e-5
    assert small.state["blocks.0.attn.proj.weight"].shape == (WIDTH, WIDTH // 2)
    assert small.cost().macs < program.cost().macs


@pytest.mark.parametrize("name", TWO)
def test_queries_that_share_a_key_are_one_unit(name):
    network = encoder(name)
    program = capture(network, inputs())
    (group,) = heads_of(program)
    assert group.size == 2
    small = shrink(program, (KeepHeads(group.name, (1,), 2),), "heads")
    x = inputs(3, seed=1)
    assert relative_error(small(x), without_heads(network, 0, [0, 1])(x)) <= 1e-5
    assert small.state["blocks.0.attn.q.weight"].shape == (WIDTH // 2, WIDTH)
    assert small.state["blocks.0.attn.k.weight"].shape == (WIDTH // HEADS, WIDTH)


@pytest.mark.parametrize("name", ["OneKey", "OneKeySdpa"])
def test_a_key_that_all_heads_share_stays(name):
    program = capture(encoder(name), inputs())
    groups = {group.name: group for group in analyse(program, "heads").groups}
    assert "share it" in groups["blocks.0.attn.k"].reason
    assert "share it" in groups["blocks.0.attn.v"].reason
    assert groups["blocks.0.attn.q"].prunable


def test_tables_and_biases_shrink_with_the_heads():
    program = capture(encoder("TableBias", "TransposedTable", "MaskBias", "NetworkBias"), inputs())
    edits = tuple(KeepHeads(group.name, (0, 2, 3), HEADS) for group in heads_of(program))
    assert len(edits) == 4
    state = shrink(program, edits, "heads").state
    before = program.state
    kept = [0, 2, 3]
    assert torch.equal(state["blocks.0.attn.table"], before["blocks.0.attn.table"][:, kept])
    assert torch.equal(state["blocks.1.attn.table"], before["blocks.1.attn.table"][kept])
    assert torch.equal(state["blocks.2.attn.table"], before["blocks.2.attn.table"][:, kept])
    assert torch.equal(state["blocks.3.attn.net.2.weight"], before["blocks.3.attn.net.2.weight"][kept])
    assert torch.equal(state["blocks.3.attn.scale"], before["blocks.3.attn.scale"][kept])


def test_fused_projection_loses_rows_of_queries_keys_and_values():
    program = capture(encoder("Attention"), inputs())
    small = shrink(program, (KeepHeads("blocks.0.attn.qkv", (3,), HEADS),), "heads")
    rows = program.state["blocks.0.attn.qkv.weight"].view(3, HEADS, WIDTH // HEADS, WIDTH)[:, 3]
    assert torch.equal(small.state["blocks.0.attn.qkv.weight"], rows.reshape(-1, WIDTH))


def test_convolutions_lose_whole_groups():
    program = capture(encoder("Aggregated"), inputs())
    small = shrink(program, (KeepHeads("blocks.0.attn.qkv", (1, 3), HEADS),), "heads")
    weight = program.state["blocks.0.attn.conv.weight"].view(HEADS, WIDTH // HEADS, WIDTH // HEADS, 3)
    assert torch.equal(small.state["blocks.0.attn.conv.weight"], weight[[1, 3]].flatten(0, 1))


def test_width_stays_the_default():
    program = capture(encoder("Attention"), inputs())
    group = analyse(program).group("blocks.0.attn.qkv")
    assert group.unit == "channels"
    assert group.size == WIDTH // HEADS
    with pytest.raises(ConfigError, match="attention must be one of width, heads; got 'head'"):
        analyse(program, "head")


def test_talking_heads_are_proven_too():
    """A head goes from where its scores enter the first mixing and leave the second; those between stay. shrink proves it."""
    program = capture(encoder("TalkingHeads"), inputs())
    (group,) = heads_of(program)
    small = shrink(program, (KeepHeads(group.name, (0, 3), HEADS),), "heads")
    assert small.state["blocks.0.attn.before.weight"].shape == (HEADS, 2)
    assert small.state["blocks.0.attn.after.weight"].shape == (2, HEADS)


@pytest.mark.parametrize("seed", range(3))
def test_removed_equals_masked_on_other_data(seed):
    """Different heads in each layer, all ways in one network."""
    program = capture(encoder("Rotary", "TableBias", "GroupedExpand", "Sdpa"), inputs())
    analysis = analyse(program, "heads")
    generator = np.random.default_rng(seed)
    edits = []
    for group in (group for group in analysis.groups if group.unit == "heads" and group.prunable):
        keep = generator.choice(group.size, generator.integers(1, group.size), replace=False)
        edits.append(KeepHeads(group.name, tuple(sorted(keep.tolist())), group.size))
    assert len(edits) == 4
    small = shrink(program, tuple(edits), "heads")
    masked = mask_channels(program, analysis, keep_table(analysis, {edit.group: np.array(edit.keep) for edit in edits}))
    x = inputs(4, seed)
    assert relative_error(small(x), masked(x)) <= 1e-5


def test_a_bias_that_cannot_shrink_keeps_the_heads():
    """A bias per head that is computed from the input: nothing is known of its heads."""

    class FromInput(written.Attention):
        def scores(self, q, k):
            sizes = torch.arange(HEADS, dtype=q.dtype)[:, None, None]
            return super().scores(q, k) + sizes

    program = capture(Encoder(FromInput).eval(), inputs())
    assert not heads_of(program)
    assert any("cannot shrink" in group.reason for group in analyse(program, "heads").groups if group.unit == "heads")


def test_networks_without_attention_have_no_heads():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 2)).eval()
    program = capture(network, torch.zeros(2, 3, 6, 6))
    narrow, whole = analyse(program), analyse(program, "heads")
    assert [(a.name, a.size, a.reason) for a in narrow.groups] == [(b.name, b.size, b.reason) for b in whole.groups]
    assert all(group.unit == "channels" for group in whole.groups)


def test_without_heads_both_granularities_are_the_same():
    """A channel and its mirror image are added: removing both would do, but the width of the layer is what plans go by."""

    class Mirrored(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, x):
            y = self.first(x)
            return self.head(self.second(y + y.flip(1)).relu())

    program = capture(Mirrored().eval(), torch.zeros(2, 6))
    by_width, by_heads = (analyse(program, attention) for attention in ("width", "heads"))
    assert [(group.name, group.size, group.reason) for group in by_width.groups] == [
        (group.name, group.size, group.reason) for group in by_heads.groups
    ]
    apply(program, plan_pruning(program, score(program, "l2", attention="heads"), 0.5))
