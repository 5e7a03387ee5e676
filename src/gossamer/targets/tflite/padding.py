"""Torch pads both ends by a number, this format says SAME or VALID: which of them is the same thing."""

from __future__ import annotations

from collections.abc import Sequence


def pair(value: int | Sequence[int], dims: int = 2) -> tuple[int, ...]:
    """One number for each spatial axis."""
    return (value,) * dims if isinstance(value, int) else tuple(value) * (dims if len(value) == 1 else 1)


def is_same(size: int, out: int, kernel: int, stride: int, dilation: int, before: int) -> bool:
    """Whether SAME pads an axis like `before` numbers in front (and as many behind as the last window needs)."""
    if out != -(-size // stride):
        return False
    total = max((out - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2 == before


def behind(size: int, out: int, kernel: int, stride: int, dilation: int, before: int) -> int:
    """Numbers needed behind an axis so that VALID windows give `out` results; 0 where there are enough."""
    return max((out - 1) * stride + (kernel - 1) * dilation + 1 - size - before, 0)
