import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from gossamer.apply.engine import apply
from gossamer.coupling import analyse
from gossamer.coupling import labels as lab
from gossamer.coupling.kept import keep_table
from gossamer.coupling.predict import Predictor
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.score import score
from gossamer.program.capture import capture
from networks import networks


def groups_of(network, shape):
    analysis = analyse(capture(network.eval(), torch.zeros(2, *shape)))
    return {group.name: group for group in analysis.groups}


def test_residual_add_couples_both_branches():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.branch = nn.Conv2d(8, 8, 1)
            self.head = nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.stem(x)
            return self.head(x + self.branch(x))

    groups = groups_of(Net(), (3, 4, 4))
    assert groups["stem"].owners == ("stem", "branch")
    assert groups["stem"].size == 8
    assert not groups["head"].prunable
    assert "output" in groups["head"].reason


def test_concat_keeps_groups_apart():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)
            self.head = nn.Conv2d(10, 2, 1)

        def forward(self, x):
            return self.head(torch.cat([self.a(x), self.b(x)], 1))

    groups = groups_of(Net(), (3, 4, 4))
    assert (groups["a"].size, groups["b"].size) == (4, 6)


def test_depthwise_belongs_to_its_input():
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 2, 1))
    groups = groups_of(net, (3, 4, 4))
    assert set(groups) == {"0", "2"}
    assert groups["0"].size == 6


def test_grouped_convolution_removes_equal_positions_of_every_block():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=2), nn.Conv2d(12, 2, 1))
    groups = groups_of(net, (3, 4, 4))
    assert groups["0"].size == 4
    assert groups["1"].size == 6


def reducing(reduce):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            y = self.conv(x)
            return self.head(y * reduce(y))

    return Net()


def test_the_place_of_the_maximum_freezes_channels():
    group = groups_of(reducing(lambda y: y.argmax(1, keepdim=True)), (3, 4, 4))["conv"]
    assert not group.prunable
    assert "argmax runs along the axis" in group.reason


@pytest.mark.parametrize("name", ["sum", "mean", "amax", "amin"])
def test_sum_and_mean_over_channels_are_proven(name):
    """To a sum, removed channels are zeros; a mean or an extreme is taken over those that stay."""
    program = capture(reducing(lambda y: getattr(y, name)(1, keepdim=True)).eval(), torch.zeros(2, 3, 4, 4))
    small = apply(program, plan_pruning(program, score(program, "random"), 0.5))
    assert small.state["conv.weight"].shape[0] == 4


def test_adding_the_network_input_freezes():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return self.head(x + self.conv(x))

    group = groups_of(Net(), (3, 4, 4))["conv"]
    assert not group.prunable
    assert "meets x, which cannot shrink" in group.reason


def test_unknown_op_freezes_and_says_so():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.head(torch.special.i0(self.conv(x)))

    group = groups_of(Net(), (3, 4, 4))["conv"]
    assert not group.prunable
    assert "no rule for aten.special_i0.default" in group.reason


def test_flatten_maps_channels_to_columns():
    program = capture(nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Linear(12, 2)).eval(), torch.zeros(2, 1, 2, 2))
    analysis = analyse(program)
    columns = lab.vector(analysis.readers["2.weight"], 1)
    assert np.array_equal(columns, np.repeat(analysis.group("0").units, 4))


@settings(max_examples=8)
@given(networks())
def test_prediction_equals_the_cost_of_the_pruned_network(network):
    program = capture(network, torch.zeros(2, 3, 8, 8))
    scores = score(program, "random", seed=1)
    plan = plan_pruning(program, scores, 0.5)
    table = keep_table(scores.analysis, {edit.group: np.array(edit.keep) for edit in plan.edits})
    predictor = Predictor(program, scores.analysis)
    cost = apply(program, plan).cost()
    assert predictor.params(table) == cost.params
    assert predictor.macs(table) == cost.macs


@settings(max_examples=4)
@given(networks())
def test_analysis_is_the_same_every_time(network):
    program = capture(network, torch.zeros(2, 3, 8, 8))
    one, two = analyse(program), analyse(program)
    assert [group.name for group in one.groups] == [group.name for group in two.groups]
    assert all(np.array_equal(a.units, b.units) for a, b in zip(one.groups, two.groups, strict=True))


def test_an_analysis_is_kept_until_the_program_changes():
    """Scoring and applying share one analysis; another shape, graph or index gives another."""

    class Picked(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 4)
            self.register_buffer("order", torch.tensor([3, 1, 0, 2]))
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.first(x)[:, self.order])

    program = capture(Picked().eval(), torch.zeros(2, 3))
    known = analyse(program)
    assert analyse(program) is known
    assert analyse(program.copy()) is not known
    columns = known.factors["head.weight"][1][0].tolist()
    program.state["order"].copy_(torch.tensor([0, 1, 2, 3]))
    again = analyse(program)
    assert again is not known
    assert again.factors["head.weight"][1][0].tolist() != columns


class TwoWeights(nn.Module):
    """One module that multiplies with two weights of its own."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(12, 6)), nn.Parameter(torch.randn(4, 12))

    def forward(self, x):
        return nn.functional.linear(torch.relu(nn.functional.linear(x, self.up)), self.down)


class Tied(nn.Module):
    """A table whose rows are the weight of the last layer, too: its columns are one group, that layer's outputs another."""

    def __init__(self):
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(10, 16), nn.Linear(16, 20), nn.Linear(20, 16)

    def forward(self, x):
        y = self.table((x > 0).long())
        return nn.functional.linear(y + self.down(self.up(y).relu()), self.table.weight)


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (
            nn.Sequential(
                nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), 2, enable_nested_tensor=False),
                nn.Linear(16, 3),
            ),
            (5, 16),
        ),
        (nn.Sequential(TwoWeights(), nn.Linear(4, 3)), (6,)),
        (Tied(), (5,)),
    ],
    ids=["attention of torch.nn", "two weights", "table and layer"],
)
def test_modules_with_several_weights_give_each_group_a_name_of_its_own(network, shape):
    torch.manual_seed(0)
    program = capture(network.eval(), torch.randn(2, *shape))
    names = [group.name for group in analyse(program).groups]
    assert len(set(names)) == len(names)
    small = apply(program, plan_pruning(program, score(program, "l2"), removed_ratio=0.4))
    assert small.cost().params < program.cost().params
