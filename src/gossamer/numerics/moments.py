"""First and second moments of what a layer multiplies its weights with (numerics.patches)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.numerics.patches import as_columns


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


def moments_of_patches(patches: Tensor, *, second: bool, blocks: int = 1) -> Moments:
    """As moments_of their columns, several times as fast where layers have many groups. Shape: patches (S, T, G, C)."""
    if blocks > 1:
        return moments_of(as_columns(patches), second=second, blocks=blocks)
    rows = patches.permute(2, 0, 3, 1).reshape(patches.shape[2], len(patches), -1)  # (G, S, K): small products are fast in this order alone
    product = rows.transpose(1, 2) @ rows if second else None
    return Moments(rows.sum(1), product, len(patches))


def add_moments(left: Moments, right: Moments) -> Moments:
    """Moments of both samples together."""
    both = None if left.second is None or right.second is None else left.second + right.second
    return Moments(left.total + right.total, both, left.count + right.count)


def blocks_within(columns: int, widest: int) -> int:
    """The fewest blocks of one size, at most `widest`, that `columns` can be cut into."""
    return next(blocks for blocks in range(-(-columns // widest), columns + 1) if columns % blocks == 0)
