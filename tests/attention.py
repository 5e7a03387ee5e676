"""Small attention layers in the ways in which networks write them, for tests of whole heads and whole blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

WIDTH, HEADS, TOKENS, CLASSES = 16, 4, 5, 3


def split(x: Tensor, heads: int = HEADS) -> Tensor:
    """(N, T, heads * d) -> (N, heads, T, d)."""
    return x.reshape(x.shape[0], x.shape[1], heads, x.shape[2] // heads).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    """(N, heads, T, d) -> (N, T, heads * d)."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


class Attention(nn.Module):
    """Fused queries, keys and values, softmax written out."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(joined(self.mix(q, k, v)))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.scores(q, k).softmax(-1) @ v

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5


class Sdpa(Attention):
    """The fused op."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=True)


class Einsum(Attention):
    """Products as sums over letters."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.einsum("nhid,nhjd->nhij", q, k).softmax(-1)
        return torch.einsum("nhij,nhjd->nhid", weights, v)


class TableBias(Attention):
    """A table (positions, heads) of biases, indexed by the distance of two tokens, added to the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(2 * TOKENS - 1, HEADS))
        places = torch.arange(TOKENS)
        self.register_buffer("index", places[:, None] - places[None, :] + TOKENS - 1)

    def bias(self) -> Tensor:
        return self.table[self.index.view(-1)].view(TOKENS, TOKENS, HEADS).permute(2, 0, 1)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return super().scores(q, k) + self.bias().unsqueeze(0)


class TransposedTable(TableBias):
    """The same with a table (heads, positions), indexed along its last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(HEADS, 2 * TOKENS - 1))

    def bias(self) -> Tensor:
        return self.table[:, self.index]


class MaskBias(TableBias):
    """The table as the mask of the fused op."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=self.bias().unsqueeze(0))


class Masked(Attention):
    """A mask that all heads share, and one computed from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((TOKENS, TOKENS), -1e4).triu(1))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        scores = super().scores(q, k) + self.mask
        return scores.masked_fill((self.mask < 0)[None, None], -1e4)


class NetworkBias(Attention):
    """Biases from a small network whose outputs are the heads."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 6), nn.ReLU(), nn.Linear(6, HEADS))
        self.scale = nn.Parameter(torch.rand(HEADS, 1, 1) + 0.5)
        places = torch.arange(TOKENS, dtype=torch.float32)
        self.register_buffer("distance", (places[:, None] - places[None, :])[..., None])

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        unit = nn.functional.normalize(q, dim=-1) @ nn.functional.normalize(k, dim=-1).transpose(-1, -2)
        return unit * self.scale + self.net(self.distance).permute(2, 0, 1)


class Rotary(Attention):
    """Rotary embeddings, and norms of queries and keys over the width of a head."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH // HEADS)
        angles = torch.arange(TOKENS)[:, None] * torch.tensor([1.0, 0.1]).repeat(2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def turned(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        first, second = x.chunk(2, -1)
        return self.cos * x + torch.cat([-second, first], -1) * self.sin

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return super().scores(self.turned(q), self.turned(k))


class TalkingHeads(Attention):
    """Linear layers over the heads before and after softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(HEADS, HEADS)
        self.after = nn.Linear(HEADS, HEADS)

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = self.before(self.scores(q, k).permute(0, 2, 3, 1)).softmax(-2)
        return self.after(scores).permute(0, 3, 1, 2) @ v


class ChannelAttention(Attention):
    """Cross-covariance: queries and keys are contracted over the tokens."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (nn.functional.normalize(q, dim=-2).transpose(-1, -2) @ nn.functional.normalize(k, dim=-2)).softmax(-1)
        return v @ weights.transpose(-1, -2)


class Aggregated(Attention):
    """A grouped convolution over the tokens of the queries, one group per head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=HEADS)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return super().scores(split(self.conv(joined(q).transpose(1, 2)).transpose(1, 2)), k)


class Separate(nn.Module):
    """A layer each for queries, keys and values."""

    groups = HEADS

    def __init__(self) -> None:
        super().__init__()
        size = WIDTH // HEADS * self.groups
        self.q = nn.Linear(WIDTH, WIDTH)
        self.k = nn.Linear(WIDTH, size, bias=False)
        self.v = nn.Linear(WIDTH, size)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = split(self.q(x)), self.shared(split(self.k(x), self.groups)), self.shared(split(self.v(x), self.groups))
        return self.proj(joined((q @ k.transpose(-1, -2) * 0.5).softmax(-1) @ v))

    def shared(self, x: Tensor) -> Tensor:
        return x


class GroupedExpand(Separate):
    """Two query heads share a key and a value, spread by expand."""

    groups = 2

    def shared(self, x: Tensor) -> Tensor:
        n, heads, t, d = x.shape
        return x[:, :, None].expand(n, heads, HEADS // heads, t, d).reshape(n, HEADS, t, d)


class GroupedRepeat(GroupedExpand):
    """The same, spread by repeat_interleave."""

    def shared(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(HEADS // self.groups, dim=1)


class GroupedSdpa(GroupedExpand):
    """The same, left to the fused op."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = split(self.q(x)), split(self.k(x), self.groups), split(self.v(x), self.groups)
        return self.proj(joined(scaled_dot_product_attention(q, k, v, enable_gqa=True)))


class OneKey(GroupedExpand):
    """All query heads share one key and one value, by broadcasting."""

    groups = 1

    def shared(self, x: Tensor) -> Tensor:
        return x


class OneKeySdpa(GroupedSdpa):
    """The same, left to the fused op."""

    groups = 1


class Block(nn.Module):
    """A transformer block: attention and two layers, each on a residual branch behind a norm."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attn = attention
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Linear(24, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    """(N, TOKENS, 6) -> (N, CLASSES): a stack of blocks and a classifier on the mean token."""

    def __init__(self, *attention: type[nn.Module], seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed = nn.Linear(6, WIDTH)
            self.blocks = nn.Sequential(*(Block(kind()) for kind in attention))
            self.norm = nn.LayerNorm(WIDTH)
            self.head = nn.Linear(WIDTH, CLASSES)
            for parameter in self.parameters():  # a trained network's, not a new one's
                parameter.data += 0.1 * torch.randn_like(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(x))).mean(1))


def inputs(batch: int = 2, seed: int = 0) -> Tensor:
    """Random inputs of an Encoder."""
    return torch.randn(batch, TOKENS, 6, generator=torch.Generator().manual_seed(seed))
