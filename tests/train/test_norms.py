"""Frozen batch norms: an eager loop with those modules in eval mode is the oracle."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gossamer.program.capture import capture
from gossamer.train.fit import fit
from gossamer.train.norms import freeze_batch_norms
from gossamer.train.randomness import seeded
from gossamer.train.recipe import Recipe
from gossamer.train.schedule import learning_rate_at


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(64, 3))


def batches(count=6):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 1, 6, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator)) for _ in range(count)]


@pytest.fixture(scope="module")
def program():
    with torch.random.fork_rng():
        return capture(network(), torch.zeros(2, 1, 6, 6))


@pytest.mark.parametrize(("share", "first"), [(0.0, 0), (0.5, 6), (0.75, 9)])
def test_the_last_part_equals_an_eager_loop_with_norms_that_evaluate(program, share, first):
    recipe = Recipe(freeze_batch_norm_after=share, momentum=0, weight_decay=0)
    trained = fit(program, batches(), epochs=2, recipe=recipe)
    with torch.random.fork_rng():
        module = network().train()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    for epoch in range(2):
        with seeded(0, epoch, device=torch.device("cpu")):
            for number, (inputs, target) in enumerate(batches()):
                step = 6 * epoch + number
                module[1].train(step < first)
                optimizer.param_groups[0]["lr"] = learning_rate_at(step, 12, peak=recipe.learning_rate, warmup=recipe.warmup)
                optimizer.zero_grad()
                F.cross_entropy(module(inputs), target).backward()
                nn.utils.clip_grad_norm_(module.parameters(), recipe.max_gradient_norm)
                optimizer.step()
    wanted = module.state_dict()
    for name, tensor in trained.state_dict().items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-6)
    assert torch.equal(trained.state["1.running_mean"], program.state["1.running_mean"]) == (first == 0)


def test_the_result_is_not_frozen(program):
    trained = fit(program, batches(), epochs=1, recipe=Recipe(freeze_batch_norm_after=0.5)).train()
    before = trained.state["1.running_mean"].clone()
    trained(batches()[0][0])
    assert not torch.equal(trained.state["1.running_mean"], before)


def test_resumed_in_the_frozen_part_equals_uninterrupted(program, tmp_path):
    settings = {"epochs": 3, "recipe": Recipe(freeze_batch_norm_after=0.5), "seed": 2}
    whole = fit(program, batches(), **settings)

    def stop(progress):
        if progress.done == 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(program, batches(), checkpoint=tmp_path / "c", on_progress=stop, **settings)
    resumed = fit(program, batches(), checkpoint=tmp_path / "c", **settings)
    assert all(torch.equal(tensor, resumed.state[name]) for name, tensor in whole.state.items())


def test_only_this_object_is_frozen_and_other_ops_keep_their_mode(program):
    frozen = copy.deepcopy(program).train()
    freeze_batch_norms(frozen)
    x, before = batches()[0][0], frozen.state["1.running_var"].clone()
    assert not torch.equal(frozen(x), frozen(x))  # dropout drops
    assert torch.equal(frozen.state["1.running_var"], before)
    other = frozen.copy()
    other(x)
    assert not torch.equal(other.state["1.running_var"], before)
