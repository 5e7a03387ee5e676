import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gossamer.apply.engine import apply
from gossamer.apply.repair import apply_repair, repair
from gossamer.batches import as_batches
from gossamer.data.mnist import mnist
from gossamer.errors import ConfigError, DataError, PlanError
from gossamer.plan.edits import KeepChannels
from gossamer.plan.plan import Plan
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.repair import METHODS, plan_repair
from gossamer.plan.score import score
from gossamer.program.capture import capture, relative_error
from gossamer.train.fit import fit
from gossamer.train.recipe import Recipe
from networks import RandomNetwork, networks


def images(count, seed=0):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def pruned(program, ratio=0.5, seed=0):
    plan = plan_pruning(program, score(program, "random", seed=seed), ratio, mode="layerwise")
    return plan, apply(program, plan)


def output_error(program, original, x):
    with torch.no_grad():
        return float((program(x) - original(x)).norm() / original(x).norm())


def classifier():
    channels = (1, 16, 24, 32)
    layers = []
    for k in range(3):
        layers += [nn.Conv2d(channels[k], channels[k + 1], 3, padding=1, bias=False), nn.BatchNorm2d(channels[k + 1])]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 9, 10))


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    program = capture(classifier(), torch.zeros(2, 1, 28, 28))
    x, y = mnist().train
    return fit(program, (x[:2000], y[:2000]), epochs=2, recipe=Recipe(optimizer="adamw", learning_rate=3e-3)).eval()


@pytest.mark.parametrize("criterion", ["l2", "random"])
def test_least_squares_wins_back_half_of_the_damage_of_a_trained_network(trained, criterion):
    """At 50 % of all channels removed, calibrated on 300 images without labels, measured on others."""
    x = mnist().train[0]
    plan = plan_pruning(trained, score(trained, criterion), 0.5, mode="layerwise")
    small = apply(trained, plan)
    fresh = mnist().validation[0][:500]
    before = output_error(small, trained, fresh)
    errors = {method: output_error(repair(small, trained, plan, x[2000:2300], method), trained, fresh) for method in METHODS}
    assert errors["least_squares"] < before / 2
    assert errors["mean"] < before
    assert errors["batch_norm"] < before


@settings(max_examples=10)
@given(networks(), st.integers(0, 99))
def test_least_squares_lowers_the_error_of_every_structure(network, seed):
    program = capture(network, torch.zeros(2, 3, 8, 8))
    plan, small = pruned(program, 0.5, seed)
    fixed = repair(small, program, plan, images(128))
    x = images(128)
    assert output_error(fixed, program, x) <= output_error(small, program, x) * (1 + 1e-6) + 1e-6
    assert fixed.cost().macs == small.cost().macs


def test_a_channel_that_is_a_copy_is_made_up_for():
    """Channels 1 and 3 are copies of 0 and 2: without them nothing has to be lost."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 4)
    )
    with torch.no_grad():
        network[0].weight[[1, 3]] = network[0].weight[[0, 2]]
        network[0].bias[[1, 3]] = network[0].bias[[0, 2]]
    program = capture(network.eval(), torch.zeros(2, 3, 8, 8))
    plan = Plan((KeepChannels("0", (0, 2), 4),), program.digest)
    small = apply(program, plan)
    fixed = repair(small, program, plan, images(64))
    x = images(8, seed=1)
    assert output_error(small, program, x) > 0.2
    assert output_error(fixed, program, x) < 0.05  # what damping leaves
    assert torch.equal(fixed.state["0.weight"], small.state["0.weight"])


def test_mean_is_the_formula():
    """b' = b + W_removed E[x_removed]."""
    network = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    program = capture(network, torch.zeros(2, 5))
    plan = Plan((KeepChannels("0", (0, 3), 4),), program.digest)
    x = torch.randn(40, 5)
    hidden = network[:2](x).mean(0)
    fixed = repair(apply(program, plan), program, plan, x, "mean")
    expected = network[2].bias + network[2].weight[:, [1, 2]] @ hidden[[1, 2]]
    assert torch.allclose(fixed.state["2.bias"], expected, atol=1e-5)
    assert torch.equal(fixed.state["2.weight"], network[2].weight[:, [0, 3]])


def statistics(program, x):
    """Mean and variance of what each batch norm reads."""
    seen = {}
    readers = {node.uses[0]: node for node in program.graph.nodes if "batch_norm" in node.op}
    program.run(x, observe=dict.fromkeys(readers, lambda name, value: seen.update({name: value.detach()})))
    return {readers[name].name: (value.mean((0, 2, 3)), value.transpose(0, 1).flatten(1).var(1, False)) for name, value in seen.items()}


def buffers(program, node):
    return [program.state[use] for use in program.graph.by_name[node].uses if "running" in use]


def test_batch_norm_moves_the_statistics_as_the_data_moved():
    program = capture(RandomNetwork(("conv", "residual"), 8, False, 0).eval(), torch.zeros(2, 3, 8, 8))
    plan, small = pruned(program)
    x = images(32)
    fixed = repair(small, program, plan, [x[:20], x[20:26], x[26:]], "batch_norm")
    before, after = statistics(program, x), statistics(fixed, x)
    kept = {edit.group: list(edit.keep) for edit in plan.edits}
    assert after
    for name, (mean, variance) in after.items():
        (old_mean, old_variance), (own_mean, own_variance) = buffers(small, name), buffers(fixed, name)
        keep = next(places for places in kept.values() if torch.equal(buffers(program, name)[0][places], old_mean))
        assert torch.allclose(own_mean, old_mean + mean - before[name][0][keep], atol=1e-4)
        assert torch.allclose(own_variance, old_variance * (variance + 1e-5) / (before[name][1][keep] + 1e-5), rtol=1e-3)


def test_batch_norm_finds_the_statistics_of_data_like_that_of_training():
    program = capture(RandomNetwork(("conv", "residual"), 8, False, 0).eval(), torch.zeros(2, 3, 8, 8))
    plan, _ = pruned(program)
    x = images(32)
    for _ in range(2):  # the second norm reads what the first one gives
        for name, (mean, variance) in statistics(program, x).items():
            for buffer, value in zip(buffers(program, name), (mean, variance), strict=True):
                buffer.copy_(value)
    fixed = repair(apply(program, plan), program, plan, x, "batch_norm")
    for name, (mean, variance) in statistics(fixed, x).items():
        own_mean, own_variance = buffers(fixed, name)
        assert torch.allclose(own_mean, mean, atol=1e-4)
        assert torch.allclose(own_variance, variance, rtol=1e-3)


def test_batch_norm_leaves_statistics_that_serve_several_places():
    norm = nn.BatchNorm2d(6)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), norm, nn.ReLU(), norm, nn.Flatten(), nn.Linear(216, 2)).eval()
    program = capture(network, torch.zeros(2, 3, 8, 8))
    plan, small = pruned(program)
    found = plan_repair(small, program, plan, as_batches(images(32), what="calibration"), "batch_norm")
    assert {note.reason for note in found.left} == {"its statistics serve several places"}
    assert not found.state


@pytest.mark.parametrize("method", METHODS)
def test_arguments_stay_and_the_result_trains(method):
    program = capture(RandomNetwork(("residual", "shuffle"), 8, True, 0).eval(), torch.zeros(2, 3, 8, 8))
    plan, small = pruned(program)
    before = [{name: tensor.clone() for name, tensor in each.state.items()} for each in (program, small)]
    fixed = repair(small.train(), program, plan, images(32), method)
    assert small.training
    assert fixed.training
    for each, kept in zip((program, small), before, strict=True):
        assert all(torch.equal(kept[name], tensor) for name, tensor in each.state.items())
    nn.functional.cross_entropy(fixed(images(8)), torch.arange(8) % 5).backward()
    assert all(tensor.grad is not None for tensor in fixed.parameters())


def test_no_removal_needs_no_repair():
    program = capture(RandomNetwork(("conv",), 8, True, 0).eval(), torch.zeros(2, 3, 8, 8))
    plan = Plan((), program.digest)
    found = plan_repair(program, program, plan, as_batches(images(8), what="calibration"))
    assert not found.state
    assert relative_error(apply_repair(program, found)(images(2)), program(images(2))) == 0


def test_shared_weights_are_left_and_told():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.shared, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(torch.relu(self.shared(torch.relu(self.shared(torch.relu(self.first(x)))))))

    program = capture(Twice().eval(), torch.zeros(2, 4))
    plan, small = pruned(program)
    found = plan_repair(small, program, plan, as_batches(torch.randn(32, 4), what="calibration"))
    assert "serves several layers" in found.left[0].reason
    assert set(found.state) == {"head.weight"}


def test_transposed_convolutions_are_left_and_told():
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    program = capture(network, torch.zeros(2, 3, 8, 8))
    plan, small = pruned(program)
    found = plan_repair(small, program, plan, as_batches(images(32), what="calibration"))
    assert [note.reason for note in found.left] == ["transposed convolutions are not repaired"]
    fixed = apply_repair(small, found)
    assert output_error(fixed, program, images(32)) <= output_error(small, program, images(32))


def test_unknown_method():
    program = capture(RandomNetwork(("conv",), 8, True, 0).eval(), torch.zeros(2, 3, 8, 8))
    with pytest.raises(ConfigError, match="method must be one of least_squares, mean, batch_norm"):
        repair(program, program, Plan((), program.digest), images(8), "magic")


def test_another_network_is_refused():
    program = capture(RandomNetwork(("conv",), 8, True, 0).eval(), torch.zeros(2, 3, 8, 8))
    plan, small = pruned(program)
    with pytest.raises(PlanError, match="not the original with this plan applied"):
        repair(program, program, plan, images(8))
    with pytest.raises(PlanError, match="made for another network"):
        repair(small, small, plan, images(8))
    found = plan_repair(small, program, plan, as_batches(images(8), what="calibration"))
    with pytest.raises(PlanError, match="make the repair for this network"):
        apply_repair(program, found)


def test_weights_with_nan_are_told():
    program = capture(RandomNetwork(("conv",), 8, True, 0).eval(), torch.zeros(2, 3, 8, 8))
    plan, small = pruned(program)
    with torch.no_grad():
        program.state["body.0.weight"].fill_(torch.nan)
    with pytest.raises(DataError, match="NaN or infinite values at"):
        repair(small, program, plan, images(8))
    with pytest.raises(DataError, match="calibration data is empty"):
        repair(small, program, plan, [])
