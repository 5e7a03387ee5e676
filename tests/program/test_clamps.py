import pytest
import torch
from torch import nn

from gossamer.program.capture import capture
from gossamer.program.clamps import clip_limits


@pytest.mark.parametrize(
    ("function", "limits"),
    [
        (torch.relu, (0.0, None)),
        (nn.functional.relu6, (0.0, 6.0)),
        (nn.functional.hardtanh, (-1.0, 1.0)),
        (lambda x: x.clamp(max=3), (None, 3)),
        (lambda x: x.clamp_min(-2), (-2, None)),
        (torch.sigmoid, None),
    ],
)
def test_limits_are_what_the_op_clamps_to(function, limits):
    class Net(nn.Module):
        def forward(self, x):
            return function(x)

    program = capture(Net(), torch.randn(2, 3))
    found = clip_limits(program.graph.nodes[-1])
    assert found == limits
    if limits is not None:
        x = torch.linspace(-9, 9, 6).reshape(2, 3)
        assert torch.equal(program(x), x.clamp(*limits))
