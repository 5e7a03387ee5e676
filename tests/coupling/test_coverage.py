"""Small networks, each with one thing that some architecture does. Oracle: `apply` proves that masked == removed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gossamer.apply.engine import apply
from gossamer.coupling import analyse
from gossamer.plan.edits import KeepChannels
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.score import score
from gossamer.program.capture import capture


def pruned_groups(network, shape=(3, 8, 8)):
    """Names of the groups that lose half of their channels, after a removal that proves itself."""
    torch.manual_seed(0)
    program = capture(network.eval(), torch.randn(2, *shape))
    scores = score(program, "l1")
    plan = plan_pruning(program, scores, 0.5, mode="layerwise")
    small = apply(program, plan)
    assert small.cost().params < program.cost().params
    return {edit.group for edit in plan.edits if isinstance(edit, KeepChannels)}


class MaskedWindows(nn.Module):
    """Swin of torchvision: a mask that is filled through slices."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        mask = x.new_zeros((8, 8))
        for count, rows in enumerate((slice(0, -4), slice(-4, -2), slice(-2, None))):
            for columns in (slice(0, 4), slice(4, 8)):
                mask[rows, columns] = count + 0.5
        return self.head(x * mask)


class WrittenParts(nn.Module):
    """Data written into a part of a value that stays the same size."""

    def __init__(self):
        super().__init__()
        self.stem, self.other, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        y = self.stem(x).relu()
        y[:, :, 2:4] = self.other(x)[:, :, 2:4]
        y[:, :, :, 0] = self.other(x)[:, :, :, 1]
        return self.head(y)


class NoGradPart(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            x = self.stem(x)
        return self.head(x.relu())


class RepeatedFactors(nn.Module):
    """A scalar, a gate of one channel, and a temperature per head, all broadcast along the axis that is pruned."""

    def __init__(self):
        super().__init__()
        self.stem, self.gate, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 1, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.scale, self.temperature = nn.Parameter(torch.tensor([0.7])), nn.Parameter(torch.rand(2, 1, 1))

    def forward(self, x):
        x = self.stem(x) * self.scale
        x = x * self.gate(x).sigmoid()
        x = x.reshape(-1, 2, 4, 64) * self.temperature
        return self.head(x.reshape(-1, 8, 8, 8))


class Standardized(nn.Module):
    """nf_resnet: a weight that is computed from state, between plain layers. It is stored before channels go."""

    def __init__(self):
        super().__init__()
        self.stem, self.mid, self.tail, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        weight = self.mid.weight
        flat = F.batch_norm(weight.reshape(1, 8, -1), None, None, training=True)
        x = F.conv2d(self.stem(x), flat.reshape_as(weight), self.mid.bias)
        return self.head(self.tail(x))


class PooledWithPlaces(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.head(F.adaptive_max_pool2d(self.stem(x), 4))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.recurrent = nn.Conv1d(3, 8, 1), nn.LSTM(8, 6, batch_first=True)
        self.hidden, self.head = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.hidden(self.recurrent(self.stem(x).transpose(1, 2))[0]).relu())


class Rotary(nn.Module):
    """Attention with rotary embeddings, neighbours in pairs (EVA) or halves (Llama)."""

    def __init__(self, half):
        super().__init__()
        self.half = half
        self.qkv, self.proj = nn.Linear(8, 48), nn.Linear(16, 2)
        self.register_buffer("table", torch.rand(5, 16))

    def rotate(self, x):
        cos, sin = self.table.tensor_split(2, -1)
        if self.half:
            return x * cos + torch.cat([-x[..., 4:], x[..., :4]], -1) * sin
        return x * cos + torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape) * sin

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(-1, 5, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v)
        return self.proj(y.transpose(1, 2).reshape(-1, 5, 16)).mean(1)


class ProductsPerChannel(nn.Module):
    """bat_resnext: each channel is multiplied with a matrix of its own, which carries nothing."""

    def __init__(self):
        super().__init__()
        self.stem, self.mid, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 2, 1)
        self.register_buffer("table", torch.randint(3, (8, 1, 1)))

    def forward(self, x):
        return self.head(self.mid(self.stem(x)) @ self.table.float().expand(8, 8, 8))


class ZeroedBias(nn.Module):
    """Swin V2 of torchvision: the keys' part of a bias is set to zero."""

    def __init__(self):
        super().__init__()
        self.qkv, self.head = nn.Linear(3, 12), nn.Linear(4, 2)

    def forward(self, x):
        bias = self.qkv.bias.clone()
        bias[4:8].zero_()
        q, k, v = F.linear(x, self.qkv.weight, bias).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v).mean(1))


class EinsumAttention(nn.Module):
    """MaxViT of torchvision: attention written as sums of products."""

    def __init__(self):
        super().__init__()
        self.qkv, self.head = nn.Linear(3, 24), nn.Linear(8, 2)

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(-1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = torch.einsum("bhij, bhjd -> bhid", torch.einsum("bhid, bhjd -> bhij", q, k).softmax(-1), v)
        return self.head(y.transpose(1, 2).reshape(-1, 5, 8)).mean(1)


class Gated(nn.Module):
    """A gated linear unit behind PReLUs, with one slope and with one per channel."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 2, 1)
        self.one, self.each = nn.PReLU(), nn.PReLU(16)

    def forward(self, x):
        return self.head(F.glu(self.each(self.one(self.stem(x))), 1))


@pytest.mark.filterwarnings("ignore:The tensor attributes")
def test_recurrent_layers_are_counted():
    assert pruned_groups(Recurrent(), (3, 5)) == {"stem", "recurrent", "hidden"}
    program = capture(Recurrent().eval(), torch.randn(2, 3, 5))
    assert program.cost().macs == 5 * (3 * 8 + 24 * (8 + 6) + 6 * 8 + 8 * 2)


def test_attention_written_as_einsum():
    assert pruned_groups(EinsumAttention(), (5, 3)) == {"qkv"}
    assert capture(EinsumAttention().eval(), torch.randn(2, 5, 3)).cost().macs == 5 * 3 * 24 + 2 * 2 * 5 * 5 * 4 + 5 * 8 * 2


def test_a_zeroed_part_of_a_bias_is_removed_with_the_rest():
    assert pruned_groups(ZeroedBias(), (5, 3)) == {"qkv"}


@pytest.mark.parametrize("half", [False, True])
def test_rotated_pairs_stay_together(half):
    program = capture(Rotary(half).eval(), torch.randn(2, 5, 8))
    analysis = analyse(program)
    assert [group.size for group in analysis.groups if group.prunable] == [4]  # pairs of widths, of all heads at once
    assert pruned_groups(Rotary(half), (5, 8)) == {"qkv"}


@pytest.mark.parametrize(
    ("network", "groups"),
    [
        (MaskedWindows, {"stem"}),
        (WrittenParts, {"stem"}),
        (NoGradPart, {"stem"}),
        (RepeatedFactors, {"stem"}),
        (Standardized, {"stem", "reshape_as", "tail"}),
        (PooledWithPlaces, {"stem"}),
        (Gated, {"stem"}),
        (ProductsPerChannel, {"stem"}),
    ],
)
def test_removal_is_proven(network, groups):
    torch.manual_seed(1)
    assert pruned_groups(network()) == groups
