"""What a layer multiplies its weights with, gathered at a sample of its output positions.

Patches keep the order in which memory holds them where channels are last, (samples, taps, groups, channels of a group), so that gathering
copies each once; columns have the order of the weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def linear_patches(x: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """Input vectors of a linear layer, at most `limit` random ones. Shapes: x (*, K) -> (S, 1, 1, K)."""
    rows = x.detach().reshape(-1, x.shape[-1])
    if rows.shape[0] > limit:
        rows = rows[torch.randint(rows.shape[0], (limit,), generator=generator)]
    return rows[:, None, None]


def conv_patches(
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
    Shapes: x (N, C, *S), kernel (*K) -> (S, prod(K), groups, C / groups), all positions of an image one after the other.
    """
    x = x.detach()
    batch, channels, *sizes = x.shape
    counts = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True)]
    total = torch.Size(counts).numel()
    wanted = max(1, limit // batch)
    positions = torch.arange(total) if total <= wanted else torch.randint(total, (wanted,), generator=generator)
    pixels = x.movedim(1, -1).reshape(batch, -1, channels)  # no copy where the channels are last in memory
    index, inside = _taps(positions, sizes, counts, kernel, stride, padding, dilation)
    picked = pixels.index_select(1, index.reshape(-1).to(x.device)).reshape(-1, index.shape[1], groups, channels // groups)
    if inside is not None:
        picked *= inside.to(x.device, x.dtype).repeat(batch, 1)[:, :, None, None]
    return picked


def _taps(
    positions: Tensor,
    sizes: Sequence[int],
    counts: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, Tensor | None]:
    """Which pixel each tap reads at each output position, and whether it lies inside (None: all do). Shapes: (P,) -> (P, prod(K)) twice."""
    if all(size == 1 for size in kernel) and not any(padding) and list(counts) == list(sizes):
        return positions.unsqueeze(1), None
    taps = torch.arange(torch.Size(kernel).numel())
    index = torch.zeros(len(positions), len(taps), dtype=torch.int64)
    inside: Tensor | None = None
    for axis in reversed(range(len(sizes))):
        tap, taps = taps % kernel[axis], taps // kernel[axis]
        start, positions = positions % counts[axis], positions // counts[axis]
        at = (start * stride[axis] - padding[axis]).unsqueeze(1) + tap * dilation[axis]
        if padding[axis]:
            within = (at >= 0) & (at < sizes[axis])
            inside = within if inside is None else inside & within
            at = at.clamp(0, sizes[axis] - 1)
        index += at * torch.Size(sizes[axis + 1 :]).numel()
    return index, inside


def as_columns(patches: Tensor) -> Tensor:
    """In the order of weight.flatten(1), one input vector per column. Shapes: (S, T, G, C) -> (G, C * T, S)."""
    return patches.permute(2, 3, 1, 0).flatten(1, 2)
