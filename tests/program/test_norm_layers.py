import pytest
import torch
from torch import nn

from gossamer.program.capture import capture
from gossamer.program.norm_layers import layer_like_batch_norms, norms_as_layers


@pytest.mark.parametrize(
    ("norm", "conv", "shape"),
    [(nn.BatchNorm1d, nn.Conv1d, (3, 9)), (nn.BatchNorm2d, nn.Conv2d, (3, 9, 9)), (nn.BatchNorm3d, nn.Conv3d, (3, 5, 5, 5))],
)
def test_norms_become_layers_that_compute_the_same(norm, conv, shape):
    network = nn.Sequential(norm(3), conv(3, 4, 3), norm(4, affine=False), nn.ReLU(), norm(4))
    network(torch.randn(8, *shape) * 3 + 1)
    program = capture(network.eval(), torch.randn(2, *shape))
    names = layer_like_batch_norms(program)
    assert names == ("batch_norm", "batch_norm_2")  # the one behind the convolution can be folded
    changed = norms_as_layers(program)
    assert layer_like_batch_norms(changed) == ()
    (x,) = program.example_inputs(3)
    torch.testing.assert_close(changed(x), program(x))
    assert {"batch_norm_weight", "batch_norm_2_bias"} <= set(changed.state)


def test_norms_without_running_statistics_and_of_vectors_stay():
    network = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3), nn.Unflatten(1, (3, 1)), nn.ReLU(), nn.BatchNorm1d(3, track_running_stats=False))
    program = capture(network.eval(), torch.randn(2, 3))
    assert layer_like_batch_norms(program) == ()
