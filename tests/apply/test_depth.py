"""Blocks left out: the eager oracle, what is dropped, and plans that hold heads, channels and blocks together."""

import copy
import json

import pytest
import torch
from torch import nn

import attention as written
from attention import HEADS, Encoder, inputs
from gossamer.apply.depth import remove_blocks, silence
from gossamer.apply.engine import apply
from gossamer.apply.repair import repair
from gossamer.coupling.blocks import find_blocks
from gossamer.errors import PlanError
from gossamer.plan.constraints import Constraints
from gossamer.plan.depth import plan_depth
from gossamer.plan.edits import KeepChannels, KeepHeads, RemoveBlock
from gossamer.plan.plan import Plan
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.score import score
from gossamer.program.bundle import load, save
from gossamer.program.capture import capture, relative_error
from networks import RandomNetwork


@pytest.fixture
def network():
    return Encoder(written.Attention, written.TableBias, written.GroupedSdpa).eval()


@pytest.fixture
def program(network):
    return capture(network, inputs())


def edits(program, kind, *names):
    found = {block.name: block for block in find_blocks(program, kind)}
    return tuple(RemoveBlock(found[name].node, found[name].source) for name in names)


class Nothing(nn.Module):
    """A branch that adds nothing."""

    def forward(self, x):
        return torch.zeros_like(x)


def test_equals_the_eager_network_without_the_branches(network, program):
    small = apply(program, Plan(edits(program, "branches", "blocks.0.mlp", "blocks.2.attn"), program.digest))
    network = copy.deepcopy(network)
    network.blocks[0].mlp = network.blocks[2].attn = Nothing()
    x = inputs(3, seed=1)
    assert relative_error(small(x), network(x)) <= 1e-5
    gone = ("blocks.0.mlp.", "blocks.0.norm2.", "blocks.2.attn.", "blocks.2.norm1.")
    assert set(small.state) == {name for name in program.state if not name.startswith(gone)}


def test_equals_the_eager_network_with_identity_layers(network, program):
    small = apply(program, Plan(edits(program, "layers", "blocks.1", "blocks.2"), program.digest))
    network = copy.deepcopy(network)
    network.blocks[1] = network.blocks[2] = nn.Identity()
    x = inputs(3, seed=1)
    assert relative_error(small(x), network(x)) <= 1e-5
    assert small.cost().macs < program.cost().macs / 2


def test_convolutions(network):
    network = RandomNetwork(("residual", "bottleneck", "conv"), 8, True, 3).eval()
    program = capture(network, torch.zeros(2, 3, 8, 8))
    blocks = find_blocks(program)
    small = remove_blocks(program, [RemoveBlock(block.node, block.source) for block in blocks])
    with torch.no_grad():
        network.body[3].second.weight.zero_(), network.body[3].second.bias.zero_()
        network.body[4].project.weight.zero_(), network.body[4].project.bias.zero_()
    x = torch.randn(2, 3, 8, 8)
    assert relative_error(small(x), network(x)) <= 1e-5


def test_argument_is_untouched_and_nothing_is_shared(program):
    program.train()
    before = {name: tensor.clone() for name, tensor in program.state_dict().items()}
    small = apply(program, Plan(edits(program, "branches", "blocks.0.attn"), program.digest))
    assert small.training
    with torch.no_grad():
        for tensor in small.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in program.state_dict().items())


def test_silenced_network_is_of_full_depth(program):
    chosen = edits(program, "branches", "blocks.1.mlp") + edits(program, "layers", "blocks.0")
    silent = silence(program, chosen)
    assert set(silent.state) == set(program.state)
    x = inputs()
    assert relative_error(silent(x), remove_blocks(program, chosen)(x)) <= 1e-6
    assert relative_error(silent(x), program(x)) > 1e-3


def test_smaller_network_trains_saves_and_counts(program, tmp_path):
    small = apply(program, Plan(edits(program, "branches", "blocks.0.attn", "blocks.1.mlp"), program.digest))
    again = load(save(small, tmp_path / "small.gossamer"))
    x = inputs()
    assert torch.equal(again(x), small(x))
    small.train()(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_heads_channels_and_blocks_in_one_plan(program):
    """The same network as with one plan for each, one after the other."""
    removals = (
        *edits(program, "branches", "blocks.0.mlp"),
        KeepChannels("blocks.0.attn.qkv", (0, 3), 4),
        KeepHeads("blocks.0.attn.qkv", (1,), HEADS),
        KeepHeads("blocks.2.attn.q", (0,), 2),
        KeepChannels("blocks.1.mlp.0", tuple(range(5)), 24),
    )
    plan = Plan.from_json(json.loads(json.dumps(Plan(removals, program.digest).to_json())))
    assert plan.edits == removals
    at_once = apply(program, plan)
    step = program
    for kind in (RemoveBlock, KeepChannels, KeepHeads):
        step = apply(step, Plan(tuple(edit for edit in removals if isinstance(edit, kind)), step.digest))
    x = inputs(3, seed=2)
    assert relative_error(at_once(x), step(x)) <= 1e-5
    assert at_once.state["blocks.0.attn.proj.weight"].shape[1] == 2
    assert at_once.state["blocks.2.attn.q.weight"].shape[0] == 8
    assert {name: tensor.shape for name, tensor in at_once.state.items()} == {name: tensor.shape for name, tensor in step.state.items()}


def test_plans_of_whole_heads(program):
    scores = score(program, "l2", attention="heads")
    heads = [group.name for group in scores.analysis.groups if group.unit == "heads"]
    plan = plan_pruning(program, scores, 0.5, mode="layerwise", constraints=Constraints(only=heads, multiple=8))
    assert [type(edit) for edit in plan.edits] == [KeepHeads] * 3
    assert [len(edit.keep) for edit in plan.edits] == [2, 2, 1]
    first = plan.edits[0]
    assert set(first.keep) == set(scores.values[first.group].argsort()[2:].tolist())
    small = apply(program, plan)
    both = apply(small, plan_pruning(small, score(small, "l2"), 0.3))
    everything = apply(program, plan_pruning(program, scores, 0.4))
    assert both.cost().params < small.cost().params < program.cost().params
    assert everything.cost().params < program.cost().params
    narrow = apply(small, plan_depth(small, [inputs()], 2))
    assert len(find_blocks(narrow)) == 4


@pytest.mark.parametrize(
    ("node", "source", "message"),
    [
        ("nowhere", "x", "this network has no value 'nowhere'"),
        ("x", "linear", "ends with 'x' before it starts with 'linear'"),
        ("linear", "x", "changes the shape of what it takes"),
    ],
)
def test_blocks_that_are_none(program, node, source, message):
    with pytest.raises(PlanError, match=message):
        apply(program, Plan((RemoveBlock(node, source),), program.digest))


def test_channels_removed_before_may_end_a_layer():
    network = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 6), nn.ReLU()), nn.Linear(6, 2)).eval()
    program = capture(network, torch.zeros(2, 4))
    with pytest.raises(PlanError, match="leave blocks out first, in a plan of their own"):
        apply(program, Plan((*edits(program, "layers", "1"), KeepChannels("0", (1, 2), 6)), program.digest))


def test_repair_after_heads_are_gone(program):
    scores = score(program, "l2", attention="heads")
    heads = [group.name for group in scores.analysis.groups if group.unit == "heads"]
    plan = plan_pruning(program, scores, 0.5, mode="layerwise", constraints=Constraints(only=heads))
    small = apply(program, plan)
    data = inputs(400, seed=3)
    x = inputs(200, seed=4)
    assert relative_error(repair(small, program, plan, data)(x), program(x)) < 0.7 * relative_error(small(x), program(x))


def test_repair_of_heads_and_their_width_at_once_is_refused(program):
    plan = Plan((KeepHeads("blocks.0.attn.qkv", (0,), HEADS), KeepChannels("blocks.2.attn.q", (0, 1), 4)), program.digest)
    with pytest.raises(PlanError, match="make one plan for each, and repair after each"):
        repair(apply(program, plan), program, plan, inputs(50))
