"""First and second moments of what a layer multiplies its weights with, from a sample of output positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Sums over `count` samples of input vectors x of length K, for each of G groups of a grouped convolution.

    Shapes: total (G, K) = sum x; second (G, K, K) = sum x xᵀ, or None where it is not wanted; in B blocks (G * B, K / B, K / B), without
    what lies between two blocks.
    """

    total: Tensor
    second: Tensor | None
    count: int

    @property
    def mean(self) -> Tensor:
        """E[x], (G, K), float64."""
        return self.total.to(torch.float64) / self.count

    def covariance(self, *, centred: bool) -> Tensor:
        """E[(x - E[x]) (x - E[x])ᵀ], or E[x xᵀ] where not centred. Shape of `second`."""
        assert self.second is not None, "second moments were not collected"
        product = self.second / self.count
        if not centred:
            return product
        mean = self.mean.to(product.dtype).reshape(product.shape[:2])
        return product - mean.unsqueeze(-1) * mean.unsqueeze(-2)


def moments_of(columns: Tensor, *, second: bool, blocks: int = 1) -> Moments:
    """Moments of samples, the second ones in `blocks`, which divide K. Shape: columns (G, K, S), one input vector per column."""
    rows = columns.reshape(columns.shape[0] * blocks, -1, columns.shape[2])
    product = rows @ rows.transpose(1, 2) if second else None
    return Moments(columns.sum(2), product, columns.shape[2])


def add_moments(left: Moments, right: Moments) -> Moments:
    """Moments of both samples together."""
    both = None if left.second is None or right.second is None else left.second + right.second
    return Moments(left.total + right.total, both, left.count + right.count)


def blocks_within(columns: int, widest: int) -> int:
    """The fewest blocks of one size, at most `widest`, that `columns` can be cut into."""
    return next(blocks for blocks in range(-(-columns // widest), columns + 1) if columns % blocks == 0)


def linear_columns(x: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """Input vectors of a linear layer, at most `limit` random ones. Shapes: x (*, K) -> (1, K, S)."""
    rows = x.detach().reshape(-1, x.shape[-1])
    if rows.shape[0] > limit:
        rows = rows[torch.randint(rows.shape[0], (limit,), generator=generator)]
    return rows.t().unsqueeze(0)


def conv_columns(
    x: Tensor,
    kernel: Sequence[int],
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    limit: int,
    generator: torch.Generator,
) -> Tensor:
    """Input vectors of a convolution at random output positions, zeros of the padding included.

    The same positions serve all images of the batch: images times positions is about `limit`, or all of them.
    Shapes: x (N, C, *S), kernel (*K) -> (groups, C / groups * prod(K), samples), ordered like weight.flatten(1).
    """
    x = x.detach()
    batch, channels, *sizes = x.shape
    counts = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True)]
    total = torch.Size(counts).numel()
    wanted = max(1, limit // batch)
    positions = torch.arange(total) if total <= wanted else torch.randint(total, (wanted,), generator=generator)
    taps = torch.arange(torch.Size(kernel).numel())
    index = torch.zeros(len(taps), len(positions), dtype=torch.int64)
    inside = torch.ones_like(index, dtype=torch.bool)
    for axis in reversed(range(len(sizes))):
        tap, taps = taps % kernel[axis], taps // kernel[axis]
        start, positions = positions % counts[axis], positions // counts[axis]
        at = start * stride[axis] - padding[axis] + (tap * dilation[axis]).unsqueeze(1)
        inside &= (at >= 0) & (at < sizes[axis])
        index += at.clamp(0, sizes[axis] - 1) * torch.Size(sizes[axis + 1 :]).numel()
    pixels = x.movedim(1, -1).reshape(batch, -1, channels)  # no copy where the channels are last in memory
    picked = pixels.index_select(1, index.reshape(-1).to(x.device)).reshape(batch, *index.shape, groups, channels // groups)
    if not inside.all():
        picked = picked * inside.to(x.device, x.dtype)[:, :, None, None]
    return picked.permute(3, 4, 1, 0, 2).flatten(3).flatten(1, 2)
