import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.apply.mask import Masked, mask_channels
from gossamer.apply.proof import PIXELS, PIXELS_COMPARED, check_removal, smaller_images
from gossamer.coupling import analyse
from gossamer.coupling.kept import keep_table
from gossamer.errors import ParityError, PlanError
from gossamer.plan.edits import KeepChannels
from gossamer.plan.plan import Plan
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.score import score
from gossamer.program.capture import capture, relative_error
from gossamer.program.program import Program


class Plain(nn.Module):
    """conv - norm - relu - conv - pool - flatten - linear: takes images of any size."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.norm.running_mean.normal_()
        self.second = nn.Conv2d(8, 6, 3, stride=2)
        self.head = nn.Linear(6 * 4, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = nn.functional.adaptive_avg_pool2d(self.second(x), 2)
        return self.head(self.features(x))

    def features(self, x):
        return torch.flatten(x, 1)


class Compares(Plain):
    """Weights positions by how much they hold of what."""

    def features(self, x):
        x = x.flatten(2)
        return torch.flatten(x * x.softmax(2), 1)


class Fixed(Plain):
    """A table over all positions: takes images of one size only."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 3, 80, 80))

    def forward(self, x):
        return super().forward(x + self.table)


def removal(network, size=80):
    torch.manual_seed(0)
    program = capture(network.eval(), torch.randn(2, 3, size, size))
    plan = plan_pruning(program, score(program, "random"), 0.5, mode="layerwise")
    analysis = analyse(program)
    table = keep_table(analysis, {edit.group: np.array(edit.keep) for edit in plan.edits})
    return program, apply(program, plan), analysis, table


def sizes_run(small, program, analysis, table):
    """The images that a proof runs the masked network on."""
    seen = []
    masked = mask_channels(program, analysis, table)

    class Spy(Masked):
        def __call__(self, *inputs, observe=None):
            seen.append(tuple(inputs[0].shape))
            return super().__call__(*inputs, observe=observe)

    check_removal(small, Spy(masked.graph, masked.state, masked.device), analysis, table)
    return seen


@pytest.mark.parametrize(("network", "pixels"), [(Plain, [PIXELS]), (Compares, [PIXELS_COMPARED]), (Fixed, [PIXELS, 80])])
def test_small_images_where_they_are_taken(network, pixels):
    program, small, analysis, table = removal(network())
    assert sizes_run(small, program, analysis, table) == [(1, 3, side, side) for side in pixels]


def test_images_are_not_made_larger():
    program, *_ = removal(Plain(), 24)
    assert smaller_images(program) == program.inputs


def damaged(small, name, change):
    state = {key: tensor.detach().clone() for key, tensor in small.state.items()}
    state[name] = change(state[name])
    return small.with_graph(small.graph, state)


@pytest.mark.parametrize("network", [Plain, Compares, Fixed])
@pytest.mark.parametrize("name", ["first.weight", "first.bias", "norm.running_mean", "second.weight", "second.bias", "head.weight"])
def test_wrong_positions_are_noticed(network, name):
    """Two of the kept positions changed places in one tensor."""
    program, small, analysis, table = removal(network())
    swapped = damaged(small, name, lambda tensor: tensor[[1, 0, *range(2, len(tensor))]])
    with pytest.raises(ParityError, match="channels removed"):
        check_removal(swapped, mask_channels(program, analysis, table), analysis, table)


def test_wrong_shapes_are_noticed():
    """A layer that kept one channel too many, all of whose uses agree."""
    program, small, analysis, table = removal(Plain())
    other = table.copy()
    group = analysis.group("first")
    other[group.units[np.flatnonzero(~table[group.units])[0]]] = True
    with pytest.raises(PlanError, match=r"has shape \(1, 4, 80, 80\), expected \(1, 5, 80, 80\)"):
        check_removal(small, mask_channels(program, analysis, other), analysis, other)


def test_a_network_that_does_not_run_is_noticed():
    program, small, analysis, table = removal(Plain())
    broken = damaged(small, "second.weight", lambda tensor: tensor[:, 1:])
    with pytest.raises(PlanError, match="does not run"):
        check_removal(broken, mask_channels(program, analysis, table), analysis, table)


def test_masking_inputs_or_weights_is_the_same():
    """On large images weights are smaller than what they read, on small ones the other way round."""
    outputs = []
    for size in (80, 6):
        torch.manual_seed(0)
        network = Plain().eval()
        program = capture(network, torch.zeros(2, 3, size, size))
        analysis = analyse(program)
        table = keep_table(analysis, {"first": np.array([0, 3, 5]), "second": np.array([1, 2])})
        masked = mask_channels(program, analysis, table)
        outputs.append((masked.graph, masked(torch.arange(2 * 3 * 36).reshape(2, 3, 6, 6) / 99)))
    masks = [{node.args[0].name for node in graph.nodes if node.name.endswith(".masked")} for graph, _ in outputs]
    assert "second.weight" in masks[0]
    assert "second.weight" not in masks[1]
    assert relative_error(*(output for _, output in outputs)) < 1e-6


class TokensFirst(nn.Module):
    """Attention over the first axis, which is the batch for all that capture knows: samples meet each other."""

    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0])


def test_samples_that_meet_each_other_are_compared_together():
    torch.manual_seed(0)
    program = capture(TokensFirst().eval(), torch.randn(5, 3, 8))
    plan = plan_pruning(program, score(program, "random"), 0.5, mode="layerwise")
    small = apply(program, plan)
    assert small.cost().params < program.cost().params
    analysis = analyse(program)
    table = keep_table(analysis, {edit.group: np.array(edit.keep) for edit in plan.edits})
    swapped = damaged(small, "attention.in_proj_weight", lambda tensor: tensor[[1, 0, *range(2, len(tensor))]])  # two of the queries
    with pytest.raises(ParityError, match="channels removed"):
        check_removal(swapped, mask_channels(program, analysis, table), analysis, table)


def test_statistics_of_the_batch_are_no_difference():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(), nn.Conv2d(8, 2, 3))
    program = capture(network.eval(), torch.randn(2, 3, 6, 6))
    assert apply(program, plan_pruning(program, score(program, "l2"), 0.5)).state["0.weight"].shape == (4, 3, 3, 3)


def test_quantized_networks_are_refused():
    program, *_ = removal(Plain(), 24)
    marked = dataclasses.replace(Plan((KeepChannels("first", (0,), 8),), program.digest))
    quantized = Program(program.graph, program.inputs, program.state, quantizers={"relu": object()}, target="somewhere")
    with pytest.raises(PlanError, match="quantized already"):
        apply(quantized, marked)
