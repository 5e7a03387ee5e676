"""Blocks judged by their absence: measures against the eager network, the greedy choice, arguments."""

import copy
import json

import pytest
import torch
from torch import nn

import attention as written
from attention import Encoder, inputs
from gossamer.apply.engine import apply
from gossamer.coupling.blocks import find_blocks
from gossamer.errors import ConfigError, DataError, PlanError
from gossamer.plan.depth import measure_blocks, plan_depth
from gossamer.plan.edits import RemoveBlock
from gossamer.plan.plan import Plan
from gossamer.program.capture import capture
from networks import RandomNetwork


class Nothing(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


@pytest.fixture
def network():
    network = Encoder(written.Attention, written.Separate, written.Sdpa).eval()
    with torch.no_grad():  # of very different weight, in an order of no system
        for place, scale in enumerate([1.0, 0.01, 0.3, 3.0, 0.1, 0.03]):
            block = network.blocks[place // 2]
            last = block.mlp[2] if place % 2 else block.attn.proj
            last.weight *= scale
            last.bias *= scale
    return network


@pytest.fixture
def program(network):
    return capture(network, inputs())


DATA = [inputs(4, seed) for seed in range(3)]


def without(network, *names):
    other = copy.deepcopy(network)
    for name in names:
        setattr(other.blocks[int(name.split(".")[1])], name.split(".")[2], Nothing())
    return other


def test_output_change_is_that_of_the_eager_network(network, program):
    found = measure_blocks(program, DATA)
    x = torch.cat(DATA)
    with torch.no_grad():
        whole = network(x).double()
        for name, change in found.items():
            expected = (without(network, name)(x).double() - whole).norm() / whole.norm()
            assert change == pytest.approx(float(expected), rel=1e-4)
    assert list(found) == [block.name for block in find_blocks(program)]


def test_divergence_is_that_of_the_eager_network(network, program):
    found = measure_blocks(program, DATA, measure="divergence")
    x = torch.cat(DATA)
    with torch.no_grad():
        for name, change in found.items():
            p, q = (torch.log_softmax(net(x).double(), -1) for net in (network, without(network, name)))
            assert change == pytest.approx(float(nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")), rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("kind", ["branches", "layers"])
def test_influence_is_one_minus_the_cosine(network, program, kind):
    found = measure_blocks(program, DATA, measure="influence", kind=kind)
    with torch.no_grad():
        x = network.embed(torch.cat(DATA))
        for number, block in enumerate(network.blocks):
            middle = x + block.attn(block.norm1(x))
            end = middle + block.mlp(block.norm2(middle))
            pairs = {f"blocks.{number}.attn": (x, middle), f"blocks.{number}.mlp": (middle, end), f"blocks.{number}": (x, end)}
            for name, (start, stop) in pairs.items():
                if name in found:
                    assert found[name] == pytest.approx(float((1 - torch.cosine_similarity(start, stop, dim=-1)).mean()), rel=1e-3)
            x = end
    assert len(found) == (6 if kind == "branches" else 3)


def test_influence_of_images_is_over_channels():
    network = RandomNetwork(("residual",), 8, False, 0).eval()
    program = capture(network, torch.zeros(2, 3, 8, 8))
    x = torch.randn(3, 3, 8, 8)
    (found,) = measure_blocks(program, x, measure="influence").values()
    with torch.no_grad():
        start = network.body[2](network.body[1](network.body[0](x)))
        residual = network.body[3]
        end = start + residual.second(torch.relu(residual.norm(residual.first(start))))
    assert found == pytest.approx(float((1 - torch.cosine_similarity(start, end, dim=1)).mean()), rel=1e-3)


@pytest.mark.parametrize("measure", ["output_change", "divergence", "influence"])
def test_the_weakest_go_first(program, measure):
    plan = plan_depth(program, DATA, 3, measure=measure)
    names = {block.node: block.name for block in find_blocks(program)}
    assert [names[edit.node] for edit in plan.edits] == ["blocks.0.mlp", "blocks.2.mlp", "blocks.2.attn"]
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert len(find_blocks(apply(program, plan))) == 3


def test_each_step_is_measured_without_the_blocks_before():
    """Two blocks that undo each other: each alone matters, after one is gone the other must go."""

    class Undo(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = (nn.Linear(4, 4, bias=False) for _ in range(3))
            eye = torch.eye(4)
            with torch.no_grad():
                for layer, weight in ((self.first, eye), (self.second, -0.5 * eye), (self.third, 0.9 * eye)):
                    layer.weight.copy_(weight)

        def forward(self, x):
            x = x + self.first(x)  # 2 x
            x = x + self.second(x)  # x
            return x + self.third(x)  # 1.9 x

    program = capture(Undo().eval(), torch.zeros(2, 4))
    data = torch.randn(8, 4)
    alone = measure_blocks(program, data)
    assert alone["third"] < alone["first"]
    assert [edit.node for edit in plan_depth(program, data, 2, skip=["third"]).edits] == ["add", "add_1"]
    both = apply(program, plan_depth(program, data, 2, skip=["third"]))
    assert torch.allclose(both(data), program(data), atol=1e-6)


def test_shares_and_names(program):
    assert len(plan_depth(program, DATA, 0.5).edits) == 3
    assert len(plan_depth(program, DATA, 0.34, kind="layers").edits) == 1
    plan = plan_depth(program, DATA, 0.5, only=["*.attn"], skip=["blocks.2*"])
    names = {block.node: block.name for block in find_blocks(program)}
    assert [names[edit.node] for edit in plan.edits] == ["blocks.1.attn"]
    assert {item.where: item.reason for item in plan.frozen} == {
        "blocks.0.mlp": "not among the blocks asked for",
        "blocks.1.mlp": "not among the blocks asked for",
        "blocks.2.attn": "skipped as asked",
        "blocks.2.mlp": "skipped as asked",
    }


def test_blocks_inside_a_block_that_is_gone():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            inner = self.first(x)
            inner = inner + torch.relu(self.second(inner))
            return x + self.last(inner)

    program = capture(Nested().eval(), torch.zeros(2, 4))
    data = torch.randn(4, 4)
    with torch.no_grad():  # the inner branch undoes what the outer one starts with
        for name, bias in (("first", -5.0), ("second", 5.0), ("last", 0.0)):
            program.state[f"{name}.weight"].copy_(torch.eye(4) * (name == "last"))
            program.state[f"{name}.bias"].fill_(bias)
    assert plan_depth(program, data, 1).edits == (RemoveBlock("add_1", "x"),)
    with pytest.raises(PlanError, match="only 1 of the 2 blocks can go"):
        plan_depth(program, data, 2)


def test_nothing_of_the_argument_changes(program):
    program.train()
    before = {name: tensor.clone() for name, tensor in program.state_dict().items()}
    digest = program.digest
    plan_depth(program, DATA, 2)
    assert program.training
    assert program.digest == digest
    assert all(torch.equal(before[name], tensor) for name, tensor in program.state_dict().items())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"remove": 0}, ConfigError, "remove must be a count of blocks, at least 1, or a share"),
        ({"remove": 1.0}, ConfigError, "remove must be a count"),
        ({"remove": True}, ConfigError, "remove must be a count"),
        ({"remove": 7}, PlanError, "has 6 branches that may go, fewer than 7"),
        ({"remove": 2, "only": ["blocks.0.mlp"]}, PlanError, "has 1 branches that may go, fewer than 2"),
        ({"remove": 1, "measure": "output_chance"}, ConfigError, "did you mean 'output_change'"),
        ({"remove": 1, "kind": "heads"}, ConfigError, "kind must be one of branches, layers"),
        ({"remove": 1, "skip": ["blocks.0.mpl"]}, PlanError, "skip names 'blocks.0.mpl', which is no block; did you mean 'blocks.0.mlp'"),
        ({"remove": 1, "only": "blocks.0.mlp"}, ConfigError, "only must be a list of block names"),
    ],
)
def test_arguments(program, options, error, message):
    with pytest.raises(error, match=message):
        plan_depth(program, DATA, **options)


def test_data_is_needed(program):
    with pytest.raises(DataError, match="the calibration data is empty"):
        plan_depth(program, [], 1)


def test_progress_tells_what_went(program):
    told = []
    plan_depth(program, DATA, 2, on_progress=told.append)
    assert [(item.stage, item.done, item.total, item.note) for item in told] == [
        ("depth", 1, 2, "blocks.0.mlp"),
        ("depth", 2, 2, "blocks.2.mlp"),
    ]
