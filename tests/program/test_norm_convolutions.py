"""Batch norms as depthwise convolutions: the same outputs, on every shape of value."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gossamer.program.capture import capture
from gossamer.program.norm_convolutions import convolve_batch_norms, convolved_batch_norms, lone_batch_norms


def trained(norm):
    with torch.no_grad():
        for tensor in norm.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape) + 0.5)
        if norm.weight is not None:
            norm.weight[::2] *= -1
    return norm.eval()


@given(st.sampled_from([1, 2]), st.integers(1, 6), st.booleans(), st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_they_compute_the_same(dims, channels, affine, seed):
    torch.manual_seed(seed)
    x = torch.randn(3, channels, *[4] * dims)
    kind = (nn.BatchNorm1d, nn.BatchNorm2d)[dims - 1]
    program = capture(trained(kind(channels, affine=affine)), x)
    (name,) = lone_batch_norms(program)
    convolved = convolve_batch_norms(program)
    assert [node.op for node in convolved.graph.nodes] == [f"aten.conv{dims}d.default"]
    assert lone_batch_norms(convolved) == () and convolved_batch_norms(program, convolved) == (name,)
    torch.testing.assert_close(convolved(x), program(x))
    assert lone_batch_norms(program) == (name,)  # the argument is as it was


def test_one_that_is_read_twice_keeps_its_parameters_for_the_other():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = trained(nn.BatchNorm2d(3))

        def forward(self, x):
            return self.norm(torch.relu(self.norm(x)))

    x = torch.randn(2, 3, 4, 4)
    program = capture(Twice().eval(), x)
    first, _ = lone_batch_norms(program)
    convolved = convolve_batch_norms(program, (first,))
    torch.testing.assert_close(convolved(x), program(x))
    torch.testing.assert_close(convolve_batch_norms(program)(x), program(x))


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), id="behind a layer, which takes it"),
        pytest.param(nn.BatchNorm2d(3, track_running_stats=False), id="statistics of the batch"),
        pytest.param(nn.Sequential(nn.Flatten(), nn.ReLU(), nn.BatchNorm1d(48)), id="vectors"),
        pytest.param(nn.BatchNorm2d(3).double(), id="float64"),
    ],
)
def test_others_are_left_alone(model):
    x = torch.randn(2, 3, 4, 4, dtype=next(model.parameters()).dtype)
    assert lone_batch_norms(capture(model.eval(), x)) == ()
