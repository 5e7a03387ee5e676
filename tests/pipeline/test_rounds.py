"""Rounds: ratios are of the network at the start, what has gone stays gone, and a run that was interrupted ends with the same bits."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gossamer.apply.engine import apply
from gossamer.errors import ConfigError, FileError, PlanError
from gossamer.pipeline import rounds
from gossamer.pipeline.cumulative import Start, local_plan
from gossamer.pipeline.round_settings import RoundSettings
from gossamer.pipeline.rounds import prune_rounds
from gossamer.plan.budget import Budget
from gossamer.plan.constraints import Constraints
from gossamer.plan.edits import KeepChannels
from gossamer.plan.plan import Plan
from gossamer.plan.score import score
from gossamer.program.capture import capture
from gossamer.train.penalty import GroupLasso, left_over
from gossamer.train.recipe import Recipe

SETTINGS = RoundSettings(rounds=3, schedule="linear", samples=32, epochs=2, recipe=Recipe(batch_size=16))


class Residual(nn.Module):
    """Two coupled layers beside a free one."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.inner = nn.Conv2d(12, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.outer = nn.Conv2d(16, 12, 3, padding=1)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.outer(torch.relu(self.norm(self.inner(x)))))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def program():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return capture(Residual(), torch.zeros(2, 1, 6, 6))


def data(count=64):
    inputs = torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    return inputs, torch.arange(count) % 3


def same(left, right):
    return left.digest == right.digest and all(torch.equal(tensor, right.state[name]) for name, tensor in left.state.items())


@pytest.fixture(scope="module")
def finished(program, tmp_path_factory):
    before = program.weights_digest()
    result = prune_rounds(program, data(), 0.6, settings=SETTINGS, validation=data(32), folder=tmp_path_factory.mktemp("rounds"))
    assert program.weights_digest() == before
    return result


def test_ratios_rise_and_are_of_the_network_at_the_start(program, finished):
    channels = [program.state["stem.weight"].shape[0] + program.state["inner.weight"].shape[0]]
    for entry, wanted in zip(finished.rounds, (0.2, 0.4, 0.6), strict=True):
        state = entry.program.state
        left = state["stem.weight"].shape[0] + state["inner.weight"].shape[0]
        assert entry.removed_ratio == pytest.approx(1 - left / channels[0]) == pytest.approx(wanted, abs=0.5 / 28)
        assert (entry.params, entry.macs) == (entry.program.cost().params, entry.program.cost().macs)
    assert "round 3: 61% of the channels removed" in str(finished)


def test_what_has_gone_stays_gone_and_every_plan_fits_the_start(program, finished):
    kept = {"stem": set(range(12)), "inner": set(range(16))}
    for entry in finished.rounds:
        for edit in entry.plan.edits:
            assert set(edit.keep) < kept[edit.group]
            kept[edit.group] = set(edit.keep)
        assert apply(program, entry.plan).digest == entry.program.digest


def test_the_metric_is_the_saved_networks(finished):
    inputs, target = data(32)
    for entry in finished.rounds:
        with torch.no_grad():
            share = float((entry.program(inputs).argmax(1) == target).float().mean())
        assert entry.accuracy == pytest.approx(share)
        assert entry.accuracy_interval[0] <= share <= entry.accuracy_interval[1]
        assert entry.drop_interval[0] <= entry.drop_points <= entry.drop_interval[1]


class Interrupted(Exception):
    """Stands for a killed process."""


@pytest.mark.parametrize(("stage", "call"), [("train", 6), ("rounds", 2), ("train", 14), ("rounds", 3)])
def test_interrupt_and_resume_ends_with_the_same_bits(program, finished, tmp_path, stage, call):
    """Between two rounds, and in the second epoch of one."""
    seen = []

    def watch(progress):
        seen.append(progress.stage)
        if progress.stage == stage and seen.count(stage) == call:
            raise Interrupted

    with pytest.raises(Interrupted):
        prune_rounds(program, data(), 0.6, settings=SETTINGS, validation=data(32), folder=tmp_path, on_progress=watch)
    assert not (tmp_path / "round-3" / "round.json").exists()
    again = prune_rounds(program, data(), 0.6, settings=SETTINGS, validation=data(32), folder=tmp_path)
    for left, right in zip(again.rounds, finished.rounds, strict=True):
        assert same(left.program, right.program)
        assert left.plan == right.plan
        ours, theirs = left.to_json(), right.to_json()
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_a_finished_run_is_read_not_repeated(program, finished):
    stages = []
    again = prune_rounds(
        program, data(), 0.6, settings=SETTINGS, validation=data(32), folder=finished.folder, on_progress=lambda p: stages.append(p.stage)
    )
    assert again.rounds == finished.rounds
    assert set(stages) == {"rounds"}
    assert {path.name for path in finished.folder.rglob("*") if path.is_file()} == {
        "run.json",
        "round.json",
        "plan.json",
        "pruned.gossamer",
    }


def test_a_budget_is_reached_step_by_step(program, tmp_path):
    settings = RoundSettings(rounds=2, schedule="cubic", criterion="l2", samples=16, recipe=Recipe(batch_size=32), repair=False)
    result = prune_rounds(program, data(), Budget(params=0.4), settings=settings, folder=tmp_path)
    full = program.cost().params
    shares = [entry.params / full for entry in result.rounds]
    assert 0.3 < shares[1] <= 0.4 < shares[0] <= 1 - 0.6 * 0.875  # cubic: 7/8 of the removal in the first of two rounds
    assert result.rounds[0].accuracy is None


def test_shares_by_layer(program, tmp_path):
    settings = RoundSettings(rounds=2, schedule="linear", criterion="l2", samples=16, recipe=Recipe(batch_size=32))
    result = prune_rounds(program, data(), {"stem": 0.5, "inner": 0.75}, settings=settings, folder=tmp_path)
    widths = [[entry.program.state[name].shape[0] for name in ("stem.weight", "inner.weight")] for entry in result.rounds]
    assert widths == [[9, 10], [6, 4]]


def test_limits_in_bytes_fall_from_what_the_start_has(program):
    start = Start.of(program)
    full = program.cost().size_bytes
    half = start.goal_at(Budget(max_size_bytes=full // 2), 0.5)
    assert half.max_size_bytes == pytest.approx(0.75 * full, rel=0.01)
    assert start.goal_at(0.8, 0.5) == pytest.approx(0.4)


def test_fading_leaves_nothing_to_lose(program, tmp_path, monkeypatch):
    weights = []
    monkeypatch.setattr(rounds, "apply", lambda faded, plan: weights.append(left_over(faded, plan)) or apply(faded, plan))
    recipe = Recipe(learning_rate=0.05, batch_size=16)
    for fade_epochs in (0, 60):
        settings = RoundSettings(rounds=1, criterion="l2", samples=16, recipe=recipe, repair=False, fade_epochs=fade_epochs)
        prune_rounds(program, data(), 0.5, settings=settings, folder=tmp_path / str(fade_epochs))
    assert weights[0] > 0.3
    assert weights[1] < 1e-3


def test_constraints_hold_against_the_start(program, tmp_path):
    constraints = Constraints(min_keep={"stem": 0.75}, multiple=4)
    settings = RoundSettings(rounds=3, criterion="l1", samples=16, constraints=constraints, recipe=Recipe(batch_size=32))
    result = prune_rounds(program, data(), 0.9, settings=settings, folder=tmp_path)
    for entry in result.rounds:
        widths = [entry.program.state[name].shape[0] for name in ("stem.weight", "inner.weight")]
        assert widths[0] >= 9 and all(width % 4 == 0 for width in widths)


def test_two_steps_equal_one(program):
    """apply(apply(p, first), step) == apply(p, second) to the bit: a step is the difference of two plans for the start."""
    start = Start.of(program)
    none = Plan((), program.digest)
    first = start.plan(score(program, "l2"), none, 0.3, "global", Constraints())
    middle = apply(program, first)
    second = start.plan(score(middle, "l1"), first, 0.7, "global", Constraints())
    assert start.removed_ratio(second) == pytest.approx(0.7, abs=0.5 / 28)
    assert same(apply(middle, local_plan(middle, first, second)), apply(program, second))
    assert local_plan(middle, first, first).edits == ()


def test_scores_of_another_round_are_refused(program):
    start = Start.of(program)
    plan = Plan((KeepChannels("inner", tuple(range(5)), 16),), program.digest)
    with pytest.raises(PlanError, match="score the network of the last round"):
        start.plan(score(program, "l2"), plan, 0.9, "global", Constraints())


def test_bad_arguments(program, finished, tmp_path):
    for name, value, rule in [
        ("rounds", 0, "a whole number, at least 1"), ("epochs", 1.5, "a whole number, at least 1"), ("schedule", "square", "one of cubic, linear"),
        ("mode", "all", "one of global"), ("fade_ceiling", 0, "a positive number"), ("samples", True, "a whole number, at least 1"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=rf"RoundSettings.{name} must be {rule}"):
            RoundSettings(**{name: value})
    with pytest.raises(ConfigError, match="did you mean 'taylor'"):
        RoundSettings(criterion="tailor")
    with pytest.raises(ConfigError, match="one without a penalty of its own"):
        RoundSettings(fade_epochs=1, recipe=Recipe(penalty=GroupLasso()))
    for goal in (1.0, -0.1, True, float("nan"), "half", {"stem": 1.5}):
        with pytest.raises(ConfigError, match=r"goal must be a share in \[0, 1\), shares by layer, or a Budget"):
            prune_rounds(program, data(), goal, folder=tmp_path)
    with pytest.raises(ConfigError, match=r"folder must be empty or of the same run \(it differs in goal, settings\."):
        prune_rounds(program, data(), 0.5, settings=RoundSettings(), folder=finished.folder)
    trained = []
    with pytest.raises(PlanError, match="cannot be reached"):
        prune_rounds(
            program, data(), Budget(params=0.001), settings=SETTINGS, folder=tmp_path, on_progress=lambda p: trained.append(p.stage)
        )
    assert "train" not in trained


def test_damaged_round(program, finished, tmp_path):
    (tmp_path / "run.json").write_bytes((finished.folder / "run.json").read_bytes())
    place = tmp_path / "round-1" / "round.json"
    place.parent.mkdir()
    place.write_text(json.dumps({"number": 1}))
    with pytest.raises(FileError, match=r"is no finished round .*delete its folder"):
        prune_rounds(program, data(), 0.6, settings=SETTINGS, folder=tmp_path)


def test_progress_of_the_schedules():
    cubic, linear = (RoundSettings(rounds=4, schedule=name) for name in ("cubic", "linear"))
    assert [cubic.progress(number) for number in range(1, 5)] == pytest.approx([1 - (1 - k / 4) ** 3 for k in range(1, 5)])
    assert np.allclose([linear.progress(number) for number in range(1, 5)], [0.25, 0.5, 0.75, 1])


def test_loaders_that_shuffle_and_iterators_give_the_same_whenever_they_are_read(program, tmp_path):
    """The result depends on the seed, not on the global random state; an iterator is read once and kept."""
    settings = RoundSettings(rounds=2, samples=16, recipe=Recipe(batch_size=16))
    found = []
    for number in range(2):
        torch.manual_seed(number)
        loader = DataLoader(TensorDataset(*data()), batch_size=16, shuffle=True)
        found.append(prune_rounds(program, loader, 0.5, settings=settings, folder=tmp_path / str(number)).program)
    assert same(*found)
    batches = list(zip(*(part.split(16) for part in data()), strict=True))
    once, often = (prune_rounds(program, source, 0.5, settings=settings).program for source in (iter(batches), batches))
    assert same(once, often)
