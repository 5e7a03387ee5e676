"""Folding: the unfolded program is the oracle."""

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from gossamer.errors import ConfigError
from gossamer.program.capture import capture, relative_error
from gossamer.program.fold import fold_batch_norms, foldable_batch_norms
from networks import networks


def trained(module, seed=0):
    """Random statistics and affine parameters, as after training."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_(generator=generator)
            part.running_var.uniform_(0.1, 3.0, generator=generator)
            if part.affine:
                nn.init.normal_(part.weight, generator=generator)
                nn.init.normal_(part.bias, generator=generator)
    return module.eval()


def assert_folds(module, *shape, left=0):
    program = capture(trained(module), torch.zeros(2, *shape))
    before = {name: tensor.clone() for name, tensor in program.state.items()}
    folded = fold_batch_norms(program)
    assert sum(node.op == "aten.batch_norm.default" for node in folded.graph.nodes) == left
    assert all(torch.equal(tensor, before[name]) for name, tensor in program.state.items())
    folded.graph.check_order()
    with torch.no_grad():
        inputs = program.example_inputs(3, seed=1)
        assert relative_error(folded(*inputs), program(*inputs)) < 2e-6
    return folded


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), (3, 6, 6)),
        (nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, affine=False)), (3, 6, 6)),
        (nn.Sequential(nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8, eps=0.1)), (8, 6, 6)),
        (nn.Sequential(nn.Conv2d(6, 8, 1, groups=2), nn.BatchNorm2d(8)), (6, 4, 4)),
        (nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8)), (3, 9)),
        (nn.Sequential(nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4)), (2, 4, 4, 4)),
        (nn.Sequential(nn.ConvTranspose2d(6, 8, 3, groups=2), nn.BatchNorm2d(8)), (6, 4, 4)),
        (nn.Sequential(nn.ConvTranspose2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)), (3, 4, 4)),
        (nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7)), (5,)),
        (nn.Sequential(nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3), nn.BatchNorm1d(3)), (5,)),
    ],
)
def test_equals_the_original(module, shape):
    assert_folds(module, *shape)


@settings(max_examples=8, deadline=None)
@given(networks())
def test_random_networks_equal_the_original(network):
    program = capture(network, torch.zeros(2, 3, 8, 8))
    folded = fold_batch_norms(program)
    with torch.no_grad():
        inputs = program.example_inputs(3)
        assert relative_error(folded(*inputs), program(*inputs)) < 1e-5
    assert not foldable_batch_norms(folded)


def test_a_norm_after_a_linear_layer_over_a_middle_axis_is_left():
    """Its channels are axis 1 of (batch, 4, 7), the layer's are the last axis."""
    assert_folds(nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(4)), 4, 5, left=1)
    assert_folds(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)), 4, 5, left=1)


class Branches(nn.Module):
    """The convolution's result is also read without the norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return y + self.norm(y)


class Shared(nn.Module):
    """One convolution used twice, with two norms."""

    def __init__(self):
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.second(self.conv(self.first(self.conv(x))))


class Tied(nn.Module):
    """Two convolutions share their bias only."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.two.bias = self.one.bias

    def forward(self, x):
        return self.two(self.norm(self.one(x)))


@pytest.mark.parametrize(("module", "left"), [(Branches(), 1), (Shared(), 2), (Tied(), 1)])
def test_norms_that_cannot_be_folded_stay(module, left):
    assert_folds(module, 3, 4, 4, left=left)


def test_a_norm_without_statistics_or_producer_stays():
    assert_folds(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)), 3, 4, 4, left=1)
    program = capture(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)).eval(), torch.zeros(2, 3, 4, 4))
    assert foldable_batch_norms(program) == ()


def test_only_named_norms_are_folded():
    program = capture(
        trained(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))), torch.zeros(2, 3, 4, 4)
    )
    first, second = foldable_batch_norms(program)
    folded = fold_batch_norms(program, (second,))
    assert foldable_batch_norms(folded) == (first,)
    assert "3.running_mean" not in folded.state
    assert "1.running_mean" in folded.state


def test_names_that_cannot_be_folded_are_refused():
    program = capture(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)).eval(), torch.zeros(2, 3, 4, 4))
    for name in ("batch_norm", "relu", "nothing"):
        with pytest.raises(ConfigError, match=f"must be one that can be folded into the layer before it; got '{name}'"):
            fold_batch_norms(program, (name,))


def test_a_new_bias_does_not_take_a_name_in_use():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(3, 3, 1, 1)), nn.Parameter(torch.randn(3, 1, 1))
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(nn.functional.conv2d(x, self.weight)) + self.bias

    folded = assert_folds(Net(), 3, 4, 4)
    assert "bias_folded" in folded.state


def test_tiny_variances_keep_precision():
    module = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    with torch.no_grad():
        module[1].running_var.fill_(1e-12)
    program = capture(module.eval(), torch.zeros(2, 3, 6, 6))
    with torch.no_grad():
        inputs = program.example_inputs(2)
        assert relative_error(fold_batch_norms(program)(*inputs), program(*inputs)) < 2e-6
