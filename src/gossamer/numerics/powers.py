"""Powers whose every bit is the same wherever a number stands in a tensor.

torch's pow differs in the last bit between the numbers that it takes many at once and the few that are left over, so that a search
by it depends on how a weight is cut and on the number of threads. Products and square roots are exact (IEEE 754), and faster.
"""

from __future__ import annotations

import torch
from torch import Tensor


def power_in_eighths(sizes: Tensor, eighths: int) -> Tensor:
    """sizes^(eighths / 8) for sizes of 0 or more. Shape: that of sizes."""
    whole, rest = divmod(eighths, 8)
    result = sizes.clone() if whole else torch.ones_like(sizes)
    for _ in range(1, whole):
        result.mul_(sizes)
    root = sizes.sqrt() if rest else sizes
    for bit in (4, 2, 1):
        if rest & bit:
            result.mul_(root)
        if not rest & (bit - 1):
            break
        root.sqrt_()
    return result
