import numpy as np
import pytest
import torch

from gossamer.errors import ConfigError, PlanError
from gossamer.plan.constraints import Constraints
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.score import score
from gossamer.program.capture import capture
from networks import RandomNetwork


@pytest.fixture(scope="module")
def program():
    return capture(RandomNetwork(("conv", "residual", "bottleneck"), 16, False, 3).eval(), torch.zeros(2, 3, 8, 8))


@pytest.fixture(scope="module")
def scores(program):
    return score(program, "l2")


def edits(program, scores, **constraints):
    return {edit.group: edit for edit in plan_pruning(program, scores, 0.5, mode="layerwise", constraints=Constraints(**constraints)).edits}


def test_channels_that_must_stay_do(program, scores):
    group = next(group for group in scores.analysis.groups if group.prunable)
    worst = np.argsort(scores.values[group.name])[:3].tolist()
    assert not set(worst) & set(edits(program, scores)[group.name].keep)
    assert set(worst) <= set(edits(program, scores, keep={group.name: worst})[group.name].keep)


def test_channels_of_any_owner_are_found(program, scores):
    group = next(group for group in scores.analysis.groups if group.prunable and len(group.owners) > 1)
    for owner in group.owners:
        assert np.array_equal(np.sort(np.unique(group.places[owner])), np.arange(group.size))
        assert 0 in edits(program, scores, keep={owner: [int(np.flatnonzero(group.places[owner] == 0)[0])]})[group.name].keep


def test_only_some_layers(program, scores):
    assert set(edits(program, scores, only=["body.0"])) == {"body.0"}
    assert set(edits(program, scores, only=["body.0", "body.3*"], skip=["body.3.0"])) == {
        "body.0",
        *(name for name in edits(program, scores) if name.startswith("body.3") and name != "body.3.0"),
    }
    plan = plan_pruning(program, scores, 0.5, constraints=Constraints(only=["body.0"]))
    assert any(item.reason == "not among the layers asked for" for item in plan.frozen)


def test_least_share_by_layer(program, scores):
    found = edits(program, scores, min_keep={"body.0": 0.75})
    assert len(found["body.0"].keep) == 0.75 * found["body.0"].size
    assert any(len(edit.keep) == 0.5 * edit.size for edit in found.values())


def test_multiple_is_not_rounded_below_the_floor(program, scores):
    found = edits(program, scores, min_keep=0.6, multiple=4)
    for edit in found.values():
        assert len(edit.keep) >= 0.6 * edit.size
        assert len(edit.keep) % 4 == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"min_keep": 2}, r"min_keep must be a share in \[0, 1\]; got 2"),
        ({"min_keep": {"a": -1}}, r"min_keep must be a share in \[0, 1\]; got -1"),
        ({"multiple": 0}, "multiple must be at least 1; got 0"),
        ({"skip": "body.0"}, "skip must be a list of layer names; got 'body.0'"),
    ],
)
def test_values_outside_their_rules(given, message):
    with pytest.raises(ConfigError, match=message):
        Constraints(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"skip": ["body.3.9"]}, r"skip names 'body\.3\.9'.*did you mean 'body\.3\.0'"),
        ({"only": ["boddy.0"]}, r"only names 'boddy\.0'.*did you mean 'body\.0'"),
        ({"min_keep": {"x*": 0.5}}, r"min_keep names 'x\*', which is no layer that can be pruned"),
        ({"keep": {"body.0": [99]}}, r"keep names channel 99 of 'body\.0', which has channels 0 to \d+"),
    ],
)
def test_names_that_do_not_exist(program, scores, given, message):
    with pytest.raises(PlanError, match=message):
        plan_pruning(program, scores, 0.5, constraints=Constraints(**given))
