import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.errors import ConfigError, PlanError
from gossamer.plan.budget import Budget
from gossamer.plan.plan import Plan
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.score import score
from gossamer.program.capture import capture
from networks import RandomNetwork, networks


@pytest.fixture(scope="module")
def program():
    return capture(RandomNetwork(("conv", "residual", "bottleneck"), 16, False, 3).eval(), torch.zeros(2, 3, 8, 8))


@pytest.fixture(scope="module")
def scores(program):
    return score(program, "l2")


@settings(max_examples=6)
@given(networks(), st.floats(0, 0.95), st.sampled_from(["global", "layerwise"]), st.sampled_from([1, 4]))
def test_plan_survives_json_and_keeps_its_promises(network, ratio, mode, multiple):
    program = capture(network, torch.zeros(2, 3, 8, 8))
    scores = score(program, "l2")
    plan = plan_pruning(program, scores, ratio, mode=mode, min_keep=0.2, multiple=multiple)
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
    plan = plan_pruning(program, scores, 0.4, min_keep=0)
    prunable = sum(group.size for group in scores.analysis.groups if group.prunable)
    removed = sum(edit.size - len(edit.keep) for edit in plan.edits)
    assert removed == pytest.approx(0.4 * prunable, abs=1)


@pytest.mark.parametrize("key", ["macs", "params"])
def test_budget_is_met_and_not_overshot(program, scores, key):
    from gossamer.apply.engine import apply

    plan = plan_pruning(program, scores, budget=Budget(**{key: 0.5}))
    share = getattr(apply(program, plan).cost(), key) / getattr(program.cost(), key)
    assert 0.4 <= share <= 0.5


def test_frozen_groups_are_listed_with_their_reason(program, scores):
    plan = plan_pruning(program, scores, 0.5, skip=["body.3.0"])
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


def test_budget_that_planning_cannot_predict(program, scores):
    with pytest.raises(ConfigError, match="macs or params"):
        plan_pruning(program, scores, budget=Budget(min_speedup=2))


@pytest.mark.parametrize(("name", "value", "rule"), [("mode", "x", "one of"), ("min_keep", 2, "share"), ("multiple", 0, "at least 1")])
def test_other_arguments(program, scores, name, value, rule):
    with pytest.raises(ConfigError, match=f"{name} must be.*{rule}"):
        plan_pruning(program, scores, 0.5, **{name: value})


def test_skip_suggests_the_nearest_name(program, scores):
    with pytest.raises(PlanError, match=r"skip names 'body\.3\.9'.*did you mean 'body\.3\.0'"):
        plan_pruning(program, scores, 0.5, skip=["body.3.9"])


def test_scores_of_another_network(program, scores):
    other = capture(RandomNetwork(("conv",), 8, True, 0).eval(), torch.zeros(2, 3, 8, 8))
    with pytest.raises(PlanError, match="scores were made for another network"):
        plan_pruning(other, scores, 0.5)
