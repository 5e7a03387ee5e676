import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gossamer.apply.engine import apply
from gossamer.apply.mask import mask_channels
from gossamer.coupling import analyse
from gossamer.coupling.kept import keep_table
from gossamer.errors import PlanError
from gossamer.plan.edits import KeepChannels
from gossamer.plan.plan import Plan
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.score import score
from gossamer.program.capture import capture, relative_error
from networks import RandomNetwork, networks


def random_plan(program, ratio, seed):
    return plan_pruning(program, score(program, "random", seed=seed), ratio)


@settings(max_examples=12)
@given(networks(), st.floats(0.05, 0.9), st.integers(0, 99))
def test_removed_equals_masked(network, ratio, seed):
    program = capture(network, torch.zeros(2, 3, 8, 8))
    plan = random_plan(program, ratio, seed)
    small = apply(program, plan)
    analysis = analyse(program)
    table = keep_table(analysis, {edit.group: np.array(edit.keep) for edit in plan.edits})
    masked = mask_channels(program, analysis, table)
    x = torch.randn(4, 3, 8, 8)
    assert relative_error(small(x), masked(x)) <= 1e-5
    assert small.cost().params <= program.cost().params
    assert small.cost().macs <= program.cost().macs


@settings(max_examples=4)
@given(networks(), st.integers(0, 99))
def test_argument_is_untouched(network, seed):
    program = capture(network, torch.zeros(2, 3, 8, 8)).train()
    before = {name: tensor.clone() for name, tensor in program.state_dict().items()}
    small = apply(program, random_plan(program, 0.4, seed))
    assert program.training
    assert small.training
    assert all(torch.equal(before[name], tensor) for name, tensor in program.state_dict().items())
    with torch.no_grad():
        for tensor in small.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in program.state_dict().items())


@settings(max_examples=4)
@given(network=networks(), seed=st.integers(0, 99))
def test_pruned_network_trains_and_saves(network, seed, tmp_path_factory):
    from gossamer.program.bundle import load, save

    program = capture(network, torch.zeros(2, 3, 8, 8))
    small = apply(program, random_plan(program, 0.5, seed)).train()
    loss = nn.functional.cross_entropy(small(torch.randn(8, 3, 8, 8)), torch.randint(0, 5, (8,)))
    loss.backward()
    assert all(tensor.grad is not None and torch.isfinite(tensor.grad).all() for tensor in small.parameters())
    again = load(save(small.eval(), tmp_path_factory.mktemp("bundle") / "small.gossamer"))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again(x), small(x))


def test_hand_made_slices():
    """conv - relu - flatten - linear: the kept channels' weights, in order."""
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
    program = capture(network, torch.zeros(2, 1, 2, 2))
    small = apply(program, Plan((KeepChannels("0", (1, 3), 4),), program.digest))
    assert torch.equal(small.state["0.weight"], network[0].weight[[1, 3]])
    assert torch.equal(small.state["0.bias"], network[0].bias[[1, 3]])
    columns = [4, 5, 6, 7, 12, 13, 14, 15]
    assert torch.equal(small.state["3.weight"], network[3].weight[:, columns])
    assert torch.equal(small.state["3.bias"], network[3].bias)


def test_tied_weights_are_cut_once_and_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 8)
            self.a = nn.Linear(8, 8)
            self.b = nn.Linear(8, 8)
            self.b.weight = self.a.weight
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(torch.relu(self.b(torch.relu(self.a(torch.relu(self.first(x)))))))

    program = capture(Tied().eval(), torch.zeros(2, 3))
    small = apply(program, random_plan(program, 0.5, 0))
    assert small.cost().params < program.cost().params
    state = small.state
    assert "a.weight" not in state or "b.weight" not in state or state["a.weight"] is state["b.weight"]


def test_plan_of_another_network_is_refused():
    one = capture(RandomNetwork(("conv",), 8, True, 0).eval(), torch.zeros(2, 3, 8, 8))
    other = capture(RandomNetwork(("conv", "pool"), 8, True, 0).eval(), torch.zeros(2, 3, 8, 8))
    with pytest.raises(PlanError, match="made for another network"):
        apply(other, random_plan(one, 0.5, 0))


def test_unknown_group_is_refused():
    program = capture(RandomNetwork(("conv",), 8, True, 0).eval(), torch.zeros(2, 3, 8, 8))
    with pytest.raises(PlanError, match="which this network does not have"):
        apply(program, Plan((KeepChannels("nowhere", (0,), 8),), program.digest))


def test_removing_what_must_stay_is_refused():
    program = capture(RandomNetwork(("conv",), 8, True, 0).eval(), torch.zeros(2, 3, 8, 8))
    with pytest.raises(PlanError, match="must stay"):
        apply(program, Plan((KeepChannels("head", (0, 1), 5),), program.digest))


def test_plan_that_mixes_steps_is_refused():
    from gossamer.plan.edits import FoldBatchNorm

    program = capture(RandomNetwork(("conv",), 8, True, 0).eval(), torch.zeros(2, 3, 8, 8))
    with pytest.raises(PlanError, match="one plan for each"):
        apply(program, Plan((KeepChannels("head", (0,), 5), FoldBatchNorm("x")), program.digest))


def test_empty_plan_gives_an_independent_copy():
    program = capture(RandomNetwork(("conv",), 8, True, 0).eval(), torch.zeros(2, 3, 8, 8))
    twin = apply(program, Plan((), program.digest))
    assert twin is not program
    assert all(torch.equal(a, b) and a is not b for a, b in zip(program.state.values(), twin.state.values(), strict=True))
    assert copy.deepcopy(program).digest == twin.digest
