"""Distilled features: an eager loop with hooks is the oracle."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gossamer.apply.engine import apply
from gossamer.errors import ConfigError, DataError
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.score import score
from gossamer.program.capture import capture
from gossamer.train.features import Watcher, feature_error, value_named
from gossamer.train.fit import fit
from gossamer.train.recipe import Recipe


def network(seed):
    torch.manual_seed(seed)
    first = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    second = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())
    return nn.Sequential(first, second, nn.Flatten(), nn.Linear(32, 3)).eval()


def inputs(count=8):
    return torch.randn(count, 4, 6, 6, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def program():
    with torch.random.fork_rng():
        return capture(network(0), inputs(2))


@pytest.fixture(scope="module")
def guide():
    with torch.random.fork_rng():
        return network(1)


def one_step(names, **settings):
    return Recipe(features=names, learning_rate=0.1, momentum=0, warmup=0, weight_decay=0, max_gradient_norm=1e9, **settings)


def test_one_update_equals_eager_modules_with_hooks(program, guide):
    x = inputs()
    recipe = one_step(("0", "1.1"), feature_weight=3.0, loss=lambda outputs, target: outputs.sum() * 0.0, alpha=0)
    with torch.random.fork_rng():
        student = network(0).train()
    found, wanted = {}, {}
    for name, places in (("0", (student[0], guide[0])), ("1.1", (student[1][1], guide[1][1]))):
        for module, kept in zip(places, (found, wanted), strict=True):
            module.register_forward_hook(lambda _, __, result, kept=kept, name=name: kept.__setitem__(name, result))
    with torch.no_grad():
        guide(x)
    student(x)
    error = sum(F.mse_loss(found[name], wanted[name]) / wanted[name].square().mean() for name in found) / 2
    (3.0 * error).backward()
    for teacher in (guide, capture(guide, x[:2])):
        trained = fit(program, [(x, torch.zeros(8, dtype=torch.long))], teacher=teacher, epochs=1, recipe=recipe)
        for name, parameter in student.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(trained.state[name], parameter - 0.1 * parameter.grad, rtol=1e-4, atol=1e-6)
    assert not torch.equal(trained.state["0.0.weight"], program.state["0.0.weight"])


def test_quantized_students_find_the_same_features(program):
    x = inputs(64)
    quantized = apply(program, plan_quantization(program, x))
    with torch.no_grad():
        _, found = Watcher(quantized, ("0", "1"), "network")(x)
        _, wanted = Watcher(program, ("0", "1"), "teacher")(x)
    assert 0 < feature_error(found, wanted).item() < 0.01  # only rounding lies between them
    recipe = Recipe(features=("0", "1"), feature_weight=1.0, quantizer_learning_rate=0.01)
    tuned = fit(quantized, x, teacher=program, epochs=2, recipe=recipe)
    assert tuned.quantizers != quantized.quantizers


def test_two_names_of_one_place_and_values_by_name(program):
    place = value_named(program, "0", "network")
    _, found = Watcher(program, ("0", "0.2", place), "network")(inputs())
    assert list(found) == ["0", "0.2", place]
    assert all(torch.equal(value, found[place]) for value in found.values())
    assert bool((found[place] >= 0).all())


def test_equal_features_have_no_error():
    features = {"a": torch.randn(3, 4), "b": torch.zeros(2)}
    assert float(feature_error(features, features)) == 0
    assert float(feature_error({"a": features["a"] * 0}, features)) == pytest.approx(1)


def test_what_does_not_fit_is_named(program, guide):
    x = inputs()

    def train(student, teacher, **settings):
        fit(student, x, teacher=teacher, epochs=1, recipe=Recipe(feature_weight=1.0, **settings))

    with pytest.raises(ConfigError, match=r"Recipe.features must be a module or value of the network .*; got '2.weight'"):
        train(program, guide, features=("2.weight",))
    place = value_named(program, "0", "network")
    with pytest.raises(ConfigError, match=rf"Recipe.features must be a module of the teacher .*; got '{place}'"):
        train(program, guide, features=(place,))
    with pytest.raises(ConfigError, match=r"Recipe.features must be empty without a teacher"):
        train(program, None, features=("0",))
    small = apply(program, plan_pruning(program, score(program, "l2"), 0.5))
    with pytest.raises(DataError, match=r"the feature '0' is \(8, 4, 4, 4\) in the network and \(8, 8, 4, 4\) in its teacher"):
        train(small, program, features=("0",))

    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair, self.head = Pair(), guide

        def forward(self, x):
            return self.head(self.pair(x)[0])

    with pytest.raises(DataError, match="the feature 'pair' of the teacher is no tensor of floats"):
        Watcher(Other(), ("pair",), "teacher")(x)
