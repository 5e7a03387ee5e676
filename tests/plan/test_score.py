import numpy as np
import pytest
import torch
from torch import nn

from gossamer.errors import ConfigError, DataError
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
