"""Transposed convolutions as convolutions whose channels become pixels: the same outputs for every geometry."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gossamer.program.capture import capture
from gossamer.program.masks import hold_zeros
from gossamer.program.transposed import conv_name, split_transposed, transposed_convolutions


@st.composite
def layers(draw):
    """A transposed convolution of any geometry, and the size of its input."""
    dims, size = draw(st.sampled_from([1, 2])), draw(st.integers(1, 6))
    kernel, dilation = (tuple(draw(st.integers(1, 5)) for _ in range(dims)) for _ in range(2))
    stride, padding = draw(st.integers(1, 3)), tuple(draw(st.integers(0, 3)) for _ in range(dims))
    more = tuple(draw(st.integers(0, max(stride, d) - 1)) for d in dilation)
    lengths = [(size - 1) * stride - 2 * p + d * (k - 1) + o + 1 for p, d, k, o in zip(padding, dilation, kernel, more)]
    if min(lengths) < 1:
        padding = (0,) * dims
    kind = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}[dims]
    return kind(3, 4, kernel, stride, padding, more, 1, draw(st.booleans()), dilation), torch.randn(2, 3, *[size] * dims)


@given(layers())
@settings(deadline=None, max_examples=40)
def test_split_ones_compute_the_same(case):
    layer, x = case
    program = capture(layer.eval(), x)
    (name,) = transposed_convolutions(program)
    split = split_transposed(program)
    assert transposed_convolutions(split) == ()
    assert [node.name for node in split.graph.nodes] == [conv_name(name), name]
    torch.testing.assert_close(split(x), program(x))
    assert transposed_convolutions(program) == (name,)  # the argument is as it was


def test_a_clamp_behind_it_goes_between_the_two():
    x = torch.randn(2, 3, 5, 5)
    program = capture(nn.Sequential(nn.ConvTranspose2d(3, 4, 4, 2, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval(), x)
    split = split_transposed(program)
    assert [node.op.split(".")[1] for node in split.graph.nodes] == ["conv2d", "relu", "pixels", "conv2d"]
    assert set(program.graph.by_name) - set(split.graph.by_name) == {"conv_transpose2d"}
    torch.testing.assert_close(split(x), program(x))


def test_zeros_of_a_mask_stay_zeros():
    x = torch.randn(2, 3, 5, 5)
    program = capture(nn.Sequential(nn.ConvTranspose2d(3, 4, 3, 2)).eval(), x)
    program = program.with_graph(program.graph, masks={"0.weight": torch.rand(3, 4, 3, 3) < 0.5})
    hold_zeros(program)
    split = split_transposed(program)
    assert split.masks["0.weight"].shape == split.state["0.weight"].shape == (16, 3, 2, 2)
    torch.testing.assert_close(split(x), program(x))
    hold_zeros(split)
    torch.testing.assert_close(split(x), program(x))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 3, 2, 2)

    def forward(self, x):
        return self.up(self.up(x))


class Computed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, 2, 2))

    def forward(self, x):
        return F.conv_transpose2d(x, self.weight.tanh())


@pytest.mark.parametrize(
    "layer", [nn.ConvTranspose2d(3, 3, 2, groups=3), nn.ConvTranspose2d(3, 2, 2, (1, 2)), nn.ConvTranspose3d(3, 2, 2), Shared(), Computed()]
)
def test_others_stay_whole(layer):
    x = torch.randn(2, 3, *[4] * (3 if isinstance(layer, nn.ConvTranspose3d) else 2))
    program = capture(layer.eval(), x)
    assert transposed_convolutions(program) == ()
    assert split_transposed(program) is program
