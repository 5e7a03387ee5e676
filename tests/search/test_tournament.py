import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.apply.repair import repair
from gossamer.errors import ConfigError, DataError, PlanError
from gossamer.plan.budget import Budget
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.score import score
from gossamer.program.capture import capture
from gossamer.search.tournament import tournament

NAMES = ("l2", "taylor", "thinet", "random")


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    return capture(network.eval(), torch.zeros(2, 2, 6, 6))


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(96, 2, 6, 6, generator=generator), torch.randint(0, 3, (96,), generator=generator)


def kl(truth, outputs):
    """Mean KL divergence of class probabilities, written out."""
    p, q = (values.double().softmax(1) for values in (truth, outputs))
    return float((p * (p.log() - q.log())).sum(1).mean())


def test_damage_is_measured_on_what_was_held_out(program, data):
    """Each damage equals the one found step by step, and the order is that of the damages."""
    x, y = data
    fitted, held = [(x[:48], y[:48]), (x[64:88], y[64:88])], torch.cat([x[48:64], x[88:]])
    found = tournament(program, data, 0.5, criteria=NAMES)
    assert found.held_out
    assert found.measure == "kl"
    assert sorted(entrant.criterion for entrant in found.ranking) == sorted(NAMES)
    for entrant in found.ranking:
        plan = plan_pruning(program, score(program, entrant.criterion, fitted), 0.5)
        assert plan == entrant.plan
        small = repair(apply(program, plan), program, plan, fitted)
        with torch.no_grad():
            assert entrant.damage == pytest.approx(kl(program(held), small(held)), rel=1e-3)
        assert entrant.seconds > 0
    damages = [entrant.damage for entrant in found.ranking]
    assert damages == sorted(damages)
    assert found.plan == found.winner.plan
    assert found.scores.criterion == found.winner.criterion


def test_the_winner_is_repaired_on_all_inputs(program, data):
    found = tournament(program, data, 0.5, criteria=("l2",))
    expected = repair(apply(program, found.plan), program, found.plan, data)
    with torch.no_grad():
        assert torch.allclose(found.program(data[0]), expected(data[0]), atol=1e-5)


def test_without_repair(program, data):
    found = tournament(program, data[0], 0.5, criteria=("l2",), repair=False)
    with torch.no_grad():
        assert torch.equal(found.program(data[0]), apply(program, found.plan)(data[0]))
        held = torch.cat([data[0][48:64], data[0][88:]])
        assert found.winner.damage == pytest.approx(kl(program(held), found.program(held)), rel=1e-4)


def test_criteria_that_need_labels_are_left_out_without_them(program, data):
    found = tournament(program, data[0], 0.3, criteria=NAMES)
    assert [(note.where, note.reason) for note in found.left_out] == [("taylor", "it needs targets, and the data has none.")]
    assert len(found.ranking) == 3
    assert "taylor       left out" in str(found)


def test_criteria_that_have_nothing_to_look_at_are_left_out(data):
    network = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    found = tournament(capture(network, torch.zeros(2, 2, 6, 6)), data[0], 0.3, criteria=("bn_scale", "l2"))
    assert found.left_out[0].where == "bn_scale"
    assert "looks at scales" in found.left_out[0].reason
    assert found.measure == "relative error"


def test_relative_error_of_other_outputs(data):
    network = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    program, x = capture(network, torch.zeros(2, 2, 6, 6)), data[0]
    found = tournament(program, x, 0.3, criteria=("l2",), repair=False)
    held = torch.cat([x[48:64], x[88:]])
    with torch.no_grad():
        expected = float((found.program(held) - program(held)).norm() / program(held).norm())
    assert found.winner.damage == pytest.approx(expected, rel=1e-4)


def test_few_inputs_are_used_for_both(program, data):
    assert not tournament(program, [data[0][:8], data[0][8:16], data[0][16:19]], 0.3, criteria=("l2",)).held_out


def test_planning_is_handed_on(program, data):
    found = tournament(program, data[0], criteria=("l2",), budget=Budget(macs=0.5), mode="layerwise")
    expected = plan_pruning(program, score(program, "l2"), budget=Budget(macs=0.5), mode="layerwise")
    assert found.plan == expected


def test_the_program_is_left_alone(program, data):
    before = {name: tensor.clone() for name, tensor in program.state.items()}
    tournament(program, data, 0.5, criteria=("thinet",))
    assert all(torch.equal(before[name], tensor) for name, tensor in program.state.items())


def test_errors(program, data):
    with pytest.raises(ConfigError, match="did you mean 'thinet'"):
        tournament(program, data[0], 0.3, criteria=("l2", "thinnet"))
    with pytest.raises(ConfigError, match="at least one name"):
        tournament(program, data[0], 0.3, criteria=())
    with pytest.raises(DataError, match="needs targets"):
        tournament(program, data[0], 0.3, criteria=("taylor", "fisher"))
    with pytest.raises(PlanError, match="cannot be reached"):
        tournament(program, data[0], budget=Budget(macs=1e-6), criteria=("l2", "l1"))
