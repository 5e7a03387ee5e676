"""What is filled in beside channels: zeros joined to a value, padding of the channels, slices counted from the end."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gossamer.apply.engine import apply
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.score import score
from gossamer.program.capture import capture


class Between(nn.Module):
    """A layer in front, one behind, and what a subclass does between them."""

    width = 8

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(self.width, 2, 1)

    def forward(self, x):
        return self.head(self.between(self.stem(x))).mean((2, 3))


class JoinedZeros(Between):
    def between(self, x):
        return torch.cat([x, x.new_zeros(x.shape[0], 8, 1, 4)], 2)


class PaddedChannels(Between):
    """Ones in front and behind, which stay."""

    width = 12

    def between(self, x):
        return F.pad(x, (0, 0, 0, 0, 2, 2), value=1.0)


class LastSlice(Between):
    def between(self, x):
        return x / (x[:, -1:].exp() + 1)


class LinearAttention(nn.Module):
    """EfficientViT (Cai et al. 2023, arXiv:2205.14756): the sum of the weights is computed as one more value."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 24, 1), nn.Linear(8, 2)

    def forward(self, x):
        q, k, v = self.stem(x).flatten(2).chunk(3, 1)
        v = F.pad(v, (0, 0, 0, 1), value=1.0)
        out = (v @ k.relu().transpose(1, 2)) @ q.relu()
        return self.head((out[:, :-1] / (out[:, -1:] + 1e-5)).transpose(1, 2))


@pytest.mark.parametrize("network", [JoinedZeros, PaddedChannels, LastSlice, LinearAttention])
def test_removal_is_proven(network):
    torch.manual_seed(0)
    program = capture(network().eval(), torch.randn(2, 3, 4, 4))
    plan = plan_pruning(program, score(program, "l1"), 0.5, mode="layerwise")
    (edit,) = plan.edits
    assert edit.group == "stem"
    assert len(edit.keep) == edit.size // 2
    small = apply(program, plan)
    assert small.state["stem.weight"].shape[0] < program.state["stem.weight"].shape[0]


def test_single_outputs_are_not_listed_and_channels_that_go_together_are():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.gate, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 1, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.stem(x)
            shifted = torch.cat([x[:, 1:], x[:, :1]], 1)
            return self.head((x + shifted) * self.gate(x).sigmoid())

    program = capture(Net().eval(), torch.randn(2, 3, 4, 4))
    plan = plan_pruning(program, score(program, "l1"), 0.5)
    assert {item.where: item.reason for item in plan.frozen} == {
        "stem": "all 8 channels of it are coupled and could only go together",
        "head": "it reaches the network's output",
    }


def test_columns_become_an_image_again():
    """VOLO: patches are weighted and summed back where they came from."""

    class Outlook(Between):
        def between(self, x):
            columns = F.unfold(x, 3, padding=1)
            return F.fold(columns * columns.sigmoid(), (4, 4), 3, padding=1)

    torch.manual_seed(0)
    program = capture(Outlook().eval(), torch.randn(2, 3, 4, 4))
    plan = plan_pruning(program, score(program, "l1"), 0.5)
    assert apply(program, plan).state["stem.weight"].shape[0] == 4


@pytest.mark.parametrize("name", ["tile", "repeat"])
def test_a_window_of_an_embedding_is_repeated(name):
    """Hiera: channels of a table that is repeated along its other axes."""

    class Windows(Between):
        def __init__(self):
            super().__init__()
            self.window = nn.Parameter(torch.randn(1, 8, 2, 2))

        def between(self, x):
            return x + getattr(self.window, name)(1, 1, 2, 2)

    torch.manual_seed(0)
    program = capture(Windows().eval(), torch.randn(2, 3, 4, 4))
    small = apply(program, plan_pruning(program, score(program, "l1"), 0.5))
    assert small.state["window"].shape == (1, 4, 2, 2)
