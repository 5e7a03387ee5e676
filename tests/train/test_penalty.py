"""Penalties: autograd on a formula written out by hand is the oracle for gradients; removal after fading changes nothing."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gossamer.apply.engine import apply
from gossamer.coupling import analyse
from gossamer.errors import ConfigError, FileError, PlanError
from gossamer.plan.edits import KeepHeads
from gossamer.plan.plan import Plan
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.score import score
from gossamer.program.capture import capture
from gossamer.train.fit import fit
from gossamer.train.penalty import GroupLasso, GrowingPenalty, left_over
from gossamer.train.recipe import Recipe


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3)
        )


@pytest.fixture(scope="module")
def program():
    return capture(network(), torch.zeros(2, 1, 6, 6))


@pytest.fixture(scope="module")
def plan(program):
    return plan_pruning(program, score(program, "l2"), 0.5)


def data(count=128):
    inputs = torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    return inputs, (inputs.mean((1, 2, 3)) > 0).long()


def units_of(program):
    """Per group, for each unit all that carries it, written out by hand."""
    w = dict(program.named_parameters())
    readers = w["6.weight"].reshape(3, 5, 4)
    first = [[w["0.weight"][u], w["1.weight"][u], w["1.bias"][u], w["3.weight"][:, u]] for u in range(6)]
    second = [[w["3.weight"][u], w["3.bias"][u], readers[:, u]] for u in range(5)]
    return first, second


def squared(unit):
    return sum(part.square().sum() for part in unit)


def lasso_by_hand(program, strength):
    units = [unit for group in units_of(program) for unit in group]
    return strength * sum(sum(part.numel() for part in unit) ** 0.5 * squared(unit).sqrt() for unit in units)


def growing_by_hand(program, plan, strength):
    first, second = units_of(program)
    kept = {edit.group: edit.keep for edit in plan.edits}
    leaving = [unit for group, units in (("0", first), ("3", second)) for u, unit in enumerate(units) if u not in kept.get(group, range(9))]
    return strength / 2 * sum(squared(unit) for unit in leaving)


@pytest.mark.parametrize("kind", ["lasso", "growing"])
def test_value_and_gradients_equal_autograd_on_the_formula(program, plan, kind):
    copy, oracle = program.copy(), program.copy()
    penalty = GroupLasso(0.3) if kind == "lasso" else GrowingPenalty(plan, delta=0.1, every=5, ceiling=1.0)
    expected = lasso_by_hand(oracle, 0.3) if kind == "lasso" else growing_by_hand(oracle, plan, 0.3)
    expected.backward()
    copy.get_parameter("0.weight").grad = torch.ones_like(copy.get_parameter("0.weight"))  # what the loss gave stays
    active = penalty.on(copy)
    active.add_gradients(12)
    torch.testing.assert_close(active.value(12), expected.detach())
    for name, parameter in oracle.named_parameters():
        found = copy.get_parameter(name).grad
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(torch.zeros_like(parameter) if found is None else found, wanted + (name == "0.weight"))


def test_a_unit_at_zero_is_not_pulled(program):
    copy = program.copy()
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    active = GroupLasso(1.0).on(copy)
    active.add_gradients(0)
    assert float(active.value(0)) == 0
    assert all(not parameter.grad.any() for parameter in copy.parameters() if parameter.grad is not None)


def test_what_reaches_the_output_and_what_is_not_trained_is_left_alone(program):
    copy = program.copy()
    copy.get_parameter("3.weight").requires_grad_(False)
    GroupLasso(1.0).on(copy).add_gradients(0)
    assert copy.get_parameter("6.bias").grad is None
    assert copy.get_parameter("3.weight").grad is None
    assert copy.get_parameter("0.weight").grad.all()


def test_strength_grows_to_its_ceiling(plan):
    penalty = GrowingPenalty(plan, delta=0.25, every=3, ceiling=0.6)
    assert [penalty.strength_at(step) for step in range(8)] == [0.25, 0.25, 0.25, 0.5, 0.5, 0.5, 0.6, 0.6]


def test_a_step_adds_the_penalty_after_clipping(program):
    """Plain SGD: the update with a penalty minus the one without is rate times the penalty's gradient, clipped or not."""
    inputs, target = data(8)
    recipe = {"learning_rate": 0.1, "momentum": 0.0, "warmup": 0.0, "max_gradient_norm": 1e-3, "weight_decay": 0.0}
    plain = fit(program, [(inputs, target)], epochs=1, recipe=Recipe(**recipe))
    pressed = fit(program, [(inputs, target)], epochs=1, recipe=Recipe(**recipe, penalty=GroupLasso(0.2)))
    oracle = program.copy()
    lasso_by_hand(oracle, 0.2).backward()
    for name, parameter in oracle.named_parameters():
        if parameter.grad is not None:
            moved = plain.get_parameter(name) - pressed.get_parameter(name)
            torch.testing.assert_close(moved, 0.1 * parameter.grad, rtol=1e-3, atol=1e-6)


def test_units_that_fade_can_go_without_a_change(program, plan):
    inputs, target = data()
    recipe = Recipe(learning_rate=0.05, batch_size=16, penalty=GrowingPenalty(plan, delta=0.02, every=2))
    faded = fit(program, (inputs, target), epochs=40, recipe=recipe)
    assert left_over(program, plan) > 0.3
    assert left_over(faded, plan) < 1e-3
    with torch.no_grad():
        before, after, damaged = faded(inputs), apply(faded, plan)(inputs), apply(program, plan)(inputs)
        torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
        assert (damaged - program(inputs)).abs().max() > 0.05  # removing at once does change it
        assert F.cross_entropy(after, target) < F.cross_entropy(program(inputs), target)  # and it went on learning


def test_group_lasso_parts_the_units(program):
    """With the lasso, the smallest units end much smaller relative to the largest than without."""
    inputs, target = data()

    def spread(trained):
        norms = torch.tensor([float(squared(unit).detach().sqrt()) for group in units_of(trained) for unit in group])
        return float(norms.min() / norms.max())

    recipes = Recipe(batch_size=16), Recipe(batch_size=16, penalty=GroupLasso(0.02))
    plain, lasso = (spread(fit(program, (inputs, target), epochs=30, recipe=recipe)) for recipe in recipes)
    assert lasso < plain / 3


def test_the_checkpoint_knows_the_penalty(program, plan, tmp_path):
    inputs, target = data(16)
    recipe = Recipe(penalty=GrowingPenalty(plan))
    whole = fit(program, (inputs, target), epochs=1, recipe=recipe, checkpoint=tmp_path / "a")
    again = fit(program, (inputs, target), epochs=1, recipe=recipe, checkpoint=tmp_path / "a")
    assert all(torch.equal(whole.state[name], again.state[name]) for name in whole.state)
    for other in (None, GroupLasso(), GrowingPenalty(plan, delta=0.5)):
        with pytest.raises(FileError, match=r"another training run \(recipe.penalty"):
            fit(program, (inputs, target), epochs=1, recipe=Recipe(penalty=other), checkpoint=tmp_path / "a")


def test_settings_are_plain_json(plan):
    for penalty in (GroupLasso(0.1), GrowingPenalty(plan)):
        plain = Recipe(penalty=penalty).to_json()
        assert json.loads(json.dumps(plain)) == plain


def test_bad_arguments(program, plan):
    with pytest.raises(ConfigError, match=r"GroupLasso.strength must be a positive number; got 0"):
        GroupLasso(0)
    with pytest.raises(ConfigError, match=r"GrowingPenalty.delta must be a positive number; got nan"):
        GrowingPenalty(plan, delta=float("nan"))
    with pytest.raises(ConfigError, match=r"GrowingPenalty.every must be a whole number, at least 1; got 0"):
        GrowingPenalty(plan, every=0)
    with pytest.raises(ConfigError, match=r"GrowingPenalty.plan must be one that removes channels, or heads.*got 'nothing'"):
        GrowingPenalty(plan_pruning(program, score(program, "l2"), 0.0))
    with pytest.raises(ConfigError, match=r"Recipe.penalty must be a penalty such as GroupLasso"):
        Recipe(penalty="lasso")
    with pytest.raises(PlanError, match="another network"):
        fit(apply(program, plan), data(8), epochs=1, recipe=Recipe(penalty=GrowingPenalty(plan)))


class Heads(nn.Module):
    """Attention with three heads of width two on (batch, 5, 4)."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(4, 18), nn.Linear(6, 3)

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(x.shape[0], 5, 3, 3, 2).permute(2, 0, 3, 1, 4).unbind(0)
        inner = F.scaled_dot_product_attention(q, k, v)
        return self.proj(inner.transpose(1, 2).reshape(x.shape[0], 5, 6)).mean(1)


def test_heads_are_pressed_whole():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        program = capture(Heads(), torch.zeros(2, 5, 4))
    group = next(group for group in analyse(program, "heads").groups if group.unit == "heads")
    plan = Plan((KeepHeads(group.name, (0, 2), 3),), program.digest)
    GrowingPenalty(plan, delta=0.5, every=1, ceiling=0.5).on(program).add_gradients(0)
    gone = torch.arange(18) % 6 // 2 == 1  # rows of head 1 in q, k and v
    for name, positions, axis in (("qkv.weight", gone, 0), ("qkv.bias", gone, 0), ("proj.weight", gone[:6], 1)):
        parameter = program.get_parameter(name)
        shape = [-1 if number == axis else 1 for number in range(parameter.dim())]
        torch.testing.assert_close(parameter.grad, 0.5 * parameter.detach() * positions.reshape(shape))
    assert program.get_parameter("proj.bias").grad is None
