import numpy as np
import pytest
import torch
from torch import nn

from gossamer.errors import ConfigError, DataError, PlanError
from gossamer.numerics.saliency import criteria
from gossamer.plan import evidence
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.score import score
from gossamer.program.capture import capture
from networks import RandomNetwork


def two_layers():
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
    return network, capture(network, torch.zeros(2, 2, 4, 4))


def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(32, 2, 4, 4, generator=generator), torch.randint(0, 3, (32,), generator=generator)


def test_l2_equals_the_formula():
    network, program = two_layers()
    outgoing = network[0].weight.detach().flatten(1).norm(dim=1)
    incoming = network[3].weight.detach().reshape(3, 4, 4).movedim(1, 0).flatten(1).norm(dim=1)
    expected = (outgoing / outgoing.mean() + incoming / incoming.mean()) / 2
    assert np.allclose(score(program, "l2").values["0"], expected.numpy(), rtol=1e-6)


def test_taylor_predicts_the_loss_of_a_small_change():
    """|sum of w * dL/dw| over a channel is the first-order change of the loss when the channel shrinks."""
    _, program = two_layers()
    x, y = data()
    values = score(program, "taylor", (x, y)).values["0"]
    step = 1e-3
    for channel in range(4):
        changed = program.copy()
        with torch.no_grad():
            changed.state["0.weight"][channel] *= 1 - step
            changed.state["3.weight"].view(3, 4, 4)[:, channel] *= 1 - step
            before = nn.functional.cross_entropy(program(x).double(), y, reduction="sum")
            after = nn.functional.cross_entropy(changed(x).double(), y, reduction="sum")
        assert abs(float(before - after)) / step == pytest.approx(values[channel], rel=0.05, abs=1e-2)


def test_scoring_leaves_the_program_alone():
    _, program = two_layers()
    before = {name: tensor.clone() for name, tensor in program.state.items()}
    score(program.train(), "taylor", data())
    assert program.training
    assert all(torch.equal(before[name], tensor) and tensor.grad is None for name, tensor in program.state.items())


def test_random_is_reproducible():
    _, program = two_layers()
    assert np.array_equal(score(program, "random", seed=4).values["0"], score(program, "random", seed=4).values["0"])
    assert not np.array_equal(score(program, "random", seed=4).values["0"], score(program, "random", seed=5).values["0"])


def test_unequal_shares_of_a_concatenation_are_padded():
    program = capture(RandomNetwork(("concat", "split", "concat"), 8, True, 0).eval(), torch.zeros(2, 3, 8, 8))
    assert all(np.isfinite(values).all() and (values >= 0).all() for values in score(program, "fpgm").values.values())


def test_unknown_criterion_suggests_the_nearest():
    _, program = two_layers()
    with pytest.raises(ConfigError, match="did you mean 'taylor'"):
        score(program, "tailor")


def test_gradients_need_data():
    _, program = two_layers()
    with pytest.raises(DataError, match="'taylor' needs gradients"):
        score(program, "taylor")


def test_gradients_need_targets():
    _, program = two_layers()
    with pytest.raises(DataError, match="no targets"):
        score(program, "taylor", [data()[0]])
    with pytest.raises(DataError, match="no targets"):
        score(program, "taylor", [data()[0]], loss=lambda outputs, target: outputs.sum())


def test_loss_must_be_callable():
    _, program = two_layers()
    with pytest.raises(ConfigError, match="loss must be a function"):
        score(program, "taylor", data(), loss="cross")


def with_norm():
    """conv - batch norm - tanh - linear, smooth, so that second derivatives are not zero."""
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)).eval()
    nn.init.uniform_(network[1].weight, 0.5, 1.5)
    return network, capture(network, torch.zeros(2, 2, 4, 4))


@pytest.mark.parametrize("name", criteria.names())
def test_every_criterion_scores_every_structure(name):
    program = capture(RandomNetwork(("residual", "gate", "concat", "shuffle"), 8, False, 0).eval(), torch.zeros(2, 3, 8, 8))
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(8, 3, 8, 8, generator=generator), torch.randint(0, 5, (8,), generator=generator)
    scores = score(program, name, samples)
    again = score(program, name, samples)
    for group in scores.analysis.groups:
        values = scores.values[group.name]
        assert values.shape == (group.size,)
        assert not np.isnan(values).any()
        assert np.isfinite(values).all() or name == "bn_scale" or not group.prunable or group.size == 1
        assert np.array_equal(values, again.values[group.name])


@pytest.mark.parametrize("name", [name for name in criteria.names() if name != "random"])
def test_scores_follow_the_channels(name):
    """The same network with its channels in another order has the same scores in that order."""
    _, program = with_norm()
    order = torch.tensor([2, 0, 3, 1])
    shuffled = program.copy()
    with torch.no_grad():
        for key in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
            shuffled.state[key].copy_(program.state[key][order])
        shuffled.state["4.weight"].view(3, 4, 4).copy_(program.state["4.weight"].view(3, 4, 4)[:, order])
    x, y = data()
    batches = [(x, y)] * (32 if criteria[name].needs in ("curvature", "response", "squared gradient") else 1)
    loose = 0.4 if criteria[name].needs in ("curvature", "response", "squared gradient") else 1e-4  # estimated with random signs
    expected, got = score(program, name, batches).values["0"][order.numpy()], score(shuffled, name, batches).values["0"]
    assert np.allclose(got, expected, rtol=loose, atol=loose * np.abs(expected).max())


def per_sample_gradients(network, x, y):
    for k in range(len(x)):
        loss = nn.functional.cross_entropy(network(x[k : k + 1]), y[k : k + 1])
        yield torch.autograd.grad(loss, [network[0].weight, network[4].weight])


def units(*tensors):
    """Rows of the units of with_norm(): of the convolution's weight, and of the linear layer's."""
    conv, linear = tensors
    return conv.flatten(1), linear.reshape(3, 4, 4).movedim(1, 0).flatten(1)


def test_fisher_equals_the_squared_gradients_of_single_samples():
    network, program = with_norm()
    x, y = data()
    squares = [
        sum(parts) / len(x) for parts in zip(*(([g.square() for g in grads]) for grads in per_sample_gradients(network, x, y)), strict=True)
    ]
    weights = units(network[0].weight.detach(), network[4].weight.detach())
    expected = sum((w.square() * s).sum(1) / 2 for w, s in zip(weights, units(*squares), strict=True))
    got = score(program, "fisher", [(x, y)] * 64).values["0"]
    assert got == pytest.approx(expected.numpy(), rel=0.25)
    own = score(program, "fisher", [(x, y)] * 64, nn.functional.cross_entropy).values["0"]
    assert own == pytest.approx(got, rel=1e-4)


def test_hessian_equals_the_exact_trace():
    network, program = with_norm()
    x, y = data()

    def loss_of(conv, linear):
        features = torch.tanh(
            nn.functional.batch_norm(
                nn.functional.conv2d(x, conv, network[0].bias),
                network[1].running_mean,
                network[1].running_var,
                network[1].weight,
                network[1].bias,
            )
        )
        return nn.functional.cross_entropy(features.flatten(1) @ linear.t() + network[4].bias, y)

    weights = network[0].weight.detach(), network[4].weight.detach()
    blocks = torch.autograd.functional.hessian(loss_of, weights)
    diagonals = [blocks[k][k].reshape(w.numel(), w.numel()).diagonal().reshape(w.shape) for k, w in enumerate(weights)]
    expected = sum(w.square().sum(1) * h.mean(1) / 2 for w, h in zip(units(*weights), units(*diagonals), strict=True))
    got = score(program, "hessian", [(x, y)] * 500).values["0"]
    assert got == pytest.approx(expected.detach().numpy(), abs=0.3 * float(expected.abs().max()))


def test_stability_predicts_the_change_of_the_outputs():
    """Random steps of a thousandth of a channel's weights change the outputs by as much as the score says."""
    _, program = with_norm()
    x, _ = data()
    values = score(program, "stability", [x] * 64).values["0"]
    generator = torch.Generator().manual_seed(5)
    step, draws = 1e-2, 60
    for channel in range(4):
        change = 0.0
        for _ in range(draws):
            for part in ("0.weight", "4.weight"):
                moved = program.copy()
                with torch.no_grad():
                    weight = moved.state[part]
                    rows = weight[channel] if part == "0.weight" else weight.view(3, 4, 4)[:, channel]
                    noise = torch.randn(rows.shape, generator=generator)
                    rows += step * rows.norm() * noise / rows.numel() ** 0.5
                    change += float((moved(x).double() - program(x).double()).square().sum(1).mean()) / draws
        assert change / step**2 == pytest.approx(values[channel], rel=0.3)


def test_bn_scale_is_the_size_of_the_scale():
    network, program = with_norm()
    with torch.no_grad():
        program.state["1.weight"][2] *= -1
    scores = score(program, "bn_scale")
    assert scores.values["0"] == pytest.approx(network[1].weight.detach().numpy())
    assert np.isinf(scores.values["4"]).all()


def test_activation_equals_the_mean_size_over_the_data():
    network, program = with_norm()
    x, _ = data()
    seen = network[:3](x).abs().mean((0, 2, 3)).detach()
    assert score(program, "activation", [x[:20], x[20:30], x[30:]]).values["0"] == pytest.approx((seen / seen.mean()).numpy(), rel=1e-4)


def test_norms_are_needed_for_their_scales():
    with pytest.raises(PlanError, match="'bn_scale' looks at scales of channels, and this network has none"):
        score(two_layers()[1], "bn_scale")


@pytest.mark.parametrize(
    ("name", "what"),
    [("activation", "activations"), ("stability", "runs of the network"), ("thinet", "runs of the network"), ("hessian", "gradients")],
)
def test_data_are_asked_for(name, what):
    with pytest.raises(DataError, match=f"'{name}' needs {what}"):
        score(two_layers()[1], name)


@pytest.mark.parametrize("name", ["fisher", "hessian"])
def test_labels_are_asked_for(name):
    with pytest.raises(DataError, match="no targets"):
        score(two_layers()[1], name, data()[0])


@pytest.mark.parametrize("name", ["activation", "stability", "obs", "lasso", "thinet"])
def test_labels_are_not_needed(name):
    assert np.isfinite(score(two_layers()[1], name, data()[0]).values["0"]).all()


def test_other_outputs_need_a_loss():
    program = capture(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 2, 1)).eval(), torch.zeros(2, 2, 4, 4))
    x = data()[0]
    with pytest.raises(DataError, match="cross-entropy needs outputs of shape"):
        score(program, "taylor", data())
    score(program, "fisher", (x, x[:, :, :2, :2]), nn.functional.mse_loss)


def test_nan_weights_are_told():
    _, program = two_layers()
    with torch.no_grad():
        program.state["0.weight"][0] = torch.nan
    with pytest.raises(DataError, match="'l2' gives NaN or infinity for '0'; check"):
        score(program, "l2")


@pytest.mark.parametrize("name", ["taylor", "activation"])
def test_large_batches_are_worked_on_in_parts(name, monkeypatch):
    _, program = with_norm()
    whole = score(program, name, data()).values["0"]
    monkeypatch.setattr(evidence, "MEMORY_BYTES", 5000)
    assert score(program, name, data()).values["0"] == pytest.approx(whole, rel=1e-4)


def test_groups_without_a_norm_go_last():
    network = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    program = capture(network.eval(), torch.zeros(2, 2, 4, 4))
    plan = plan_pruning(program, score(program, "bn_scale"), 0.4)
    assert [edit.group for edit in plan.edits] == ["0"]


def test_groups_that_no_known_layer_reads_stay_whole():
    network = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2), nn.ReLU(), nn.Conv2d(6, 3, 1)).eval()
    program = capture(network, torch.zeros(2, 2, 4, 4))
    scores = score(program, "thinet", data()[0])
    assert np.isinf(scores.values["0"]).all()  # a transposed convolution
    assert np.isfinite(scores.values["2"]).all()
    plan = plan_pruning(program, scores, 0.5, mode="layerwise")
    assert [edit.group for edit in plan.edits] == ["2"]
    assert "thinet says nothing about it" in {note.reason for note in plan.frozen if note.where == "0"}


@pytest.mark.parametrize("name", ["obs", "lasso", "thinet"])
def test_layers_behind_tell_better_than_weights(name):
    """Large weights on a channel that is always zero: l2 keeps it, the layers behind know."""
    _, program = two_layers()
    with torch.no_grad():
        program.state["0.weight"][1] *= 3
        program.state["0.bias"][1] = -100.0
        program.state["3.weight"].view(3, 4, 4)[:, 1] *= 3
    x, _ = data()
    assert int(score(program, name, x).values["0"].argmin()) == 1
    assert int(score(program, "l2").values["0"].argmax()) == 1


@pytest.mark.parametrize("size", [1e-30, 1e-22, 1e22, 1e30])
def test_weights_of_any_size_are_ranked(size):
    """Scores of criteria that look at weights alone are relative to a layer's size, and no square of them is lost."""
    network, program = two_layers()
    with torch.no_grad():
        network[0].weight.mul_(size)
        network[0].bias.mul_(size)
    sized = capture(network, torch.zeros(2, 2, 4, 4))
    for name in ("l1", "l2", "fpgm", "lamp"):
        assert np.allclose(score(sized, name).values["0"], score(program, name).values["0"], rtol=1e-4)


@pytest.mark.parametrize("criterion", [name for name in criteria.names() if name not in ("hessian", "stability")])
def test_a_network_with_nothing_left_to_remove(criterion):
    """Rounds of pruning end with layers of one channel: there is nothing to rank, which is no error."""
    program = capture(nn.Sequential(nn.Linear(4, 1), nn.BatchNorm1d(1), nn.ReLU(), nn.Linear(1, 3)).eval(), torch.zeros(2, 4))
    scores = score(program, criterion, (torch.randn(8, 4), torch.arange(8) % 3))
    assert not plan_pruning(program, scores, 0.5).edits
