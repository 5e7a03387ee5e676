import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gossamer.apply.engine import apply
from gossamer.coupling.kept import keep_table
from gossamer.coupling.predict import Predictor
from gossamer.errors import ConfigError, PlanError
from gossamer.plan.budget import Budget
from gossamer.plan.constraints import Constraints
from gossamer.plan.isomorphic import isomorphic_classes
from gossamer.plan.plan import Plan
from gossamer.plan.pruning import MODES, plan_pruning
from gossamer.plan.score import Scores, score
from gossamer.program.capture import capture
from networks import RandomNetwork, networks


@pytest.fixture(scope="module")
def program():
    return capture(RandomNetwork(("conv", "residual", "bottleneck"), 16, False, 3).eval(), torch.zeros(2, 3, 8, 8))


@pytest.fixture(scope="module")
def scores(program):
    return score(program, "l2")


@settings(max_examples=6)
@given(networks(), st.floats(0, 0.95), st.sampled_from(MODES), st.sampled_from([1, 4]))
def test_plan_survives_json_and_keeps_its_promises(network, ratio, mode, multiple):
    program = capture(network, torch.zeros(2, 3, 8, 8))
    scores = score(program, "l2")
    plan = plan_pruning(program, scores, ratio, mode=mode, constraints=Constraints(min_keep=0.2, multiple=multiple))
    assert Plan.from_json(plan.to_json()) == plan
    for edit in plan.edits:
        assert len(edit.keep) >= 0.2 * edit.size
        assert len(edit.keep) % multiple == 0 or len(edit.keep) == max(1, int(np.ceil(0.2 * edit.size)))


def test_the_least_important_go(program, scores):
    plan = plan_pruning(program, scores, 0.5, mode="layerwise")
    for edit in plan.edits:
        values = scores.values[edit.group]
        gone = np.setdiff1d(np.arange(edit.size), edit.keep)
        assert values[gone].max() <= values[list(edit.keep)].min()


def test_ratio_is_the_share_of_removed_channels(program, scores):
    plan = plan_pruning(program, scores, 0.4, constraints=Constraints(min_keep=0))
    prunable = sum(group.size for group in scores.analysis.groups if group.prunable)
    removed = sum(edit.size - len(edit.keep) for edit in plan.edits)
    assert removed == pytest.approx(0.4 * prunable, abs=1)


@pytest.mark.parametrize("key", ["size_bytes", "peak_memory_bytes"])
def test_budget_in_bytes_is_met_and_not_overshot(program, scores, key):
    from gossamer.apply.engine import apply

    limit = int(0.6 * getattr(program.cost(), key))
    small = apply(program, plan_pruning(program, scores, budget=Budget(**{f"max_{key}": limit})))
    assert 0.8 * limit <= getattr(small.cost(), key) <= limit


@settings(max_examples=10)
@given(networks(), st.floats(0, 0.9))
def test_predicted_cost_is_the_cost(network, ratio):
    from gossamer.apply.engine import apply

    program = capture(network, torch.zeros(2, 3, 8, 8))
    scores = score(program, "l1")
    plan = plan_pruning(program, scores, ratio)
    table = keep_table(scores.analysis, {edit.group: np.array(edit.keep) for edit in plan.edits})
    predictor, cost = Predictor(program, scores.analysis), apply(program, plan).cost()
    for key in ("params", "macs", "size_bytes", "peak_memory_bytes"):
        assert getattr(predictor, key)(table) == getattr(cost, key), key


@pytest.mark.parametrize("key", ["macs", "params"])
def test_budget_is_met_and_not_overshot(program, scores, key):
    from gossamer.apply.engine import apply

    plan = plan_pruning(program, scores, budget=Budget(**{key: 0.5}))
    share = getattr(apply(program, plan).cost(), key) / getattr(program.cost(), key)
    assert 0.4 <= share <= 0.5


def test_frozen_groups_are_listed_with_their_reason(program, scores):
    plan = plan_pruning(program, scores, 0.5, constraints=Constraints(skip=["body.3.0"]))
    reasons = {item.where: item.reason for item in plan.frozen}
    assert "output" in reasons["head"]
    assert any("skipped as asked (body.3.0)" in reason for reason in reasons.values())
    assert all(edit.group != "body.3.0" for edit in plan.edits)


def test_unreachable_budget_names_the_best(program, scores):
    with pytest.raises(PlanError, match=r"cannot be reached; the least that can stay is macs=0\.\d+"):
        plan_pruning(program, scores, budget=Budget(macs=0.001))


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 2])
def test_ratio_outside_its_range(program, scores, ratio):
    with pytest.raises(ConfigError, match=r"removed_ratio must be a share in \[0, 1\)"):
        plan_pruning(program, scores, ratio)


def test_neither_or_both_of_ratio_and_budget(program, scores):
    for arguments in ({}, {"removed_ratio": 0.5, "budget": Budget(macs=0.5)}):
        with pytest.raises(ConfigError, match="either removed_ratio or budget"):
            plan_pruning(program, scores, **arguments)


def test_a_budget_that_is_met_already_changes_nothing(program, scores):
    assert not plan_pruning(program, scores, budget=Budget(max_size_bytes=10**9)).edits


def test_budget_that_planning_cannot_predict(program, scores):
    with pytest.raises(ConfigError, match="macs, params, max_size_bytes, max_peak_memory_bytes"):
        plan_pruning(program, scores, budget=Budget(min_speedup=2))


def test_unknown_mode(program, scores):
    with pytest.raises(ConfigError, match="mode must be one of global, layerwise, isomorphic; got 'x'"):
        plan_pruning(program, scores, 0.5, mode="x")


def test_ratios_by_layer(program, scores):
    names = [group.name for group in scores.analysis.groups if group.prunable]
    plan = plan_pruning(program, scores, {names[0]: 0.5, "body.3.*": 0.25}, mode="layerwise")
    shares = {edit.group: 1 - len(edit.keep) / edit.size for edit in plan.edits}
    assert shares[names[0]] == 0.5
    assert set(shares) == {names[0], *(name for name in names if name.startswith("body.3."))}
    assert all(share == pytest.approx(0.25, abs=0.1) for name, share in shares.items() if name != names[0])
    with pytest.raises(ConfigError, match=r"removed_ratio of 'stem' must be a share in \[0, 1\); got 1\.5"):
        plan_pruning(program, scores, {"stem": 1.5})
    with pytest.raises(PlanError, match="removed_ratio names 'nothing', which is no layer"):
        plan_pruning(program, scores, {"nothing": 0.5})


def test_isomorphic_classes_lose_the_same_share(program, scores):
    classes = isomorphic_classes(program, scores.analysis)
    assert 1 < len(set(classes.values())) < len(classes)
    plan = plan_pruning(program, scores, 0.5, mode="isomorphic", constraints=Constraints(min_keep=0))
    removed = {edit.group: edit.size - len(edit.keep) for edit in plan.edits}
    for number in set(classes.values()):
        groups = [group for group in scores.analysis.groups if classes[group.name] == number and group.prunable]
        if groups:
            gone = sum(removed.get(group.name, 0) for group in groups)
            assert gone == pytest.approx(0.5 * sum(group.size for group in groups), abs=1)


def test_group_without_scores_stays_and_is_listed(program, scores):
    name = next(group.name for group in scores.analysis.groups if group.prunable)
    blind = Scores("half blind", {**scores.values, name: np.full_like(scores.values[name], np.inf)}, scores.analysis)
    for mode in MODES:
        plan = plan_pruning(program, blind, 0.5, mode=mode)
        assert all(edit.group != name for edit in plan.edits)
        assert any(item.where == name and item.reason == "half blind says nothing about it" for item in plan.frozen)


def test_scores_of_another_network(program, scores):
    other = capture(RandomNetwork(("conv",), 8, True, 0).eval(), torch.zeros(2, 3, 8, 8))
    with pytest.raises(PlanError, match="scores were made for another network"):
        plan_pruning(other, scores, 0.5)


def test_isomorphic_classes_of_a_network_with_parts_of_tuples():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.left, self.right, self.head = nn.Linear(4, 12), nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            left, right = self.first(x).chunk(2, 1)
            return self.head(self.left(left).relu() * self.right(right))

    program = capture(Halves().eval(), torch.zeros(2, 4))
    plan = plan_pruning(program, score(program, "l2"), 0.5, mode="isomorphic")
    assert apply(program, plan).cost().params < program.cost().params
