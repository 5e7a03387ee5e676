"""Convolutions of several groups as ones of fewer groups, between which more weights are 0: what kernels that work group by group want."""

from __future__ import annotations

from math import log


def merged_groups(channels: int, groups: int, wanted: int) -> int:
    """How many groups of so many channels become one, so that its channels are as near to `wanted` as can be, by their ratio; 1 for none."""
    divisors = (count for count in range(1, groups + 1) if groups % count == 0)
    return min(divisors, key=lambda count: abs(log(channels * count / wanted)))
