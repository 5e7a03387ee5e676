import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gossamer.errors import PlanError
from gossamer.program.capture import capture
from gossamer.program.constants import computed_weights, fold_constants, fold_weights


class Standardized(nn.Conv2d):
    """A convolution with standardized weights (Qiao et al. 2019, arXiv:1903.10520)."""

    def forward(self, x):
        weight = self.weight.flatten(1)
        weight = (weight - weight.mean(1, keepdim=True)) / weight.std(1, keepdim=True)
        return F.conv2d(x, weight.reshape(self.weight.shape), self.bias)


def ops(program):
    return [node.op.split(".")[1] for node in program.graph.nodes]


def test_weights_that_are_computed_are_stored():
    network = nn.Sequential(Standardized(3, 4, 3), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 2, 1)))
    program = capture(network.eval(), torch.randn(2, 3, 8, 8))
    folded = fold_constants(program)
    (x,) = program.example_inputs(3)
    assert torch.equal(folded(x), program(x))
    assert ops(folded) == ["conv2d", "relu", "conv2d"]
    assert folded.cost().params == 4 * 27 + 4 + 8 + 2
    assert all(isinstance(tensor, nn.Parameter) for tensor in folded.state.values())


def test_what_grows_or_depends_on_the_batch_stays():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, 1, 4))
            self.grid = nn.Parameter(torch.randn(300))

        def forward(self, x):
            token = (self.token * 2).expand(x.shape[0], 1, 4)
            return torch.cat([token, x], 1).sum((1, 2)) + (self.grid[:, None] * self.grid).sum()

    program = capture(Net(), torch.randn(2, 3, 4))
    folded = fold_constants(program)
    (x,) = program.example_inputs(3)
    torch.testing.assert_close(folded(x), program(x))
    assert "expand" in ops(folded)
    assert sorted(tuple(tensor.shape) for tensor in folded.state.values()) == [(), (1, 1, 4)]


def test_large_results_stay_computed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.grid = nn.Parameter(torch.randn(300))

        def forward(self, x):
            return x @ (self.grid[:, None] * self.grid)

    program = capture(Net(), torch.randn(2, 300))
    folded = fold_constants(program)
    assert [tuple(tensor.shape) for tensor in folded.state.values()] == [(300,)]
    assert ops(folded) == ["unsqueeze", "mul", "matmul"]


def test_random_numbers_are_no_constants_but_dropped_weights_are():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4))

        def forward(self, x):
            weight = F.batch_norm(F.dropout(self.weight, training=self.training)[None, None], None, None, training=True)
            return x * weight.flatten() + torch.rand_like(self.weight) * 0

    folded = fold_constants(capture(Net(), torch.randn(2, 4)))
    assert ops(folded) == ["mul", "rand_like", "mul", "add"]


def test_a_program_without_constants_is_copied_as_it_is():
    program = capture(nn.Linear(3, 2), torch.randn(2, 3))
    folded = fold_constants(program)
    assert folded is not program and folded.digest == program.digest


def test_only_weights_of_layers_are_stored_for_pruning():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.mid = Standardized(3, 4, 1)
            self.shift = nn.Parameter(torch.randn(4))

        def forward(self, x):
            return self.mid(x) + self.shift.exp().reshape(4, 1, 1)

    program = capture(Net().eval(), torch.randn(2, 3, 4, 4))
    (name,) = computed_weights(program.graph)
    folded = fold_weights(program)
    assert ops(folded) == ["conv2d", "exp", "reshape", "add"]
    assert isinstance(folded.state[name], nn.Parameter)
    (x,) = program.example_inputs(3)
    assert torch.equal(folded(x), program(x))
    assert fold_weights(folded) is folded
    with pytest.raises(PlanError, match="'conv2d' is no value that this network computes from weights alone"):
        fold_constants(program, ["conv2d"])
