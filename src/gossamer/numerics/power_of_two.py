"""Integerization: ranges whose scale is a power of two, so that codes are values times 2^k, rounded.

Fixed-point numbers, whose scales a processor applies by shifting. Up to half of the codes stay unused, and the range of a clamp such
as ReLU6 is no such range, so that a layer in front of one stays float.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.numerics.formats import IntFormat
from gossamer.numerics.spread import Spread


def power_of_two_range(state: Spread, fmt: IntFormat, symmetric: bool) -> tuple[float, float]:
    """The narrowest such range around the extremes and zero."""
    ends = torch.tensor([[state.low, state.high]], dtype=torch.float64)
    if symmetric:
        bound = float(power_of_two_bound(ends, fmt))
        return -bound, bound
    low, high = power_of_two_ends(ends, fmt)
    return float(low), float(high)


def power_of_two_bound(rows: Tensor, fmt: IntFormat) -> Tensor:
    """The smallest bound that holds each row between -bound and bound. Shapes: rows (N, K) -> (N,)."""
    half = fmt.hi if fmt.signed else (fmt.hi - fmt.lo) / 2
    return half * _power_of_two(rows.abs().amax(1) / half)


def power_of_two_ends(rows: Tensor, fmt: IntFormat) -> tuple[Tensor, Tensor]:
    """Ends of the narrowest range that holds each row and zero. Shapes: rows (N, K) -> (N,), (N,)."""
    low, high, steps = rows.amin(1).clamp_max(0), rows.amax(1).clamp_min(0), fmt.hi - fmt.lo
    scale = _power_of_two((high - low) / steps)
    reaches = (torch.floor(low / scale) + steps) * scale >= high
    scale = torch.where(reaches, scale, 2 * scale)
    start = torch.floor(low / scale)
    return start * scale, (start + steps) * scale


def _power_of_two(numbers: Tensor) -> Tensor:
    """The smallest power of two that is not below each number; 1 for 0, so that codes of nothing but zeros have a scale."""
    mantissa, exponent = torch.frexp(numbers)
    return torch.ldexp(torch.ones_like(mantissa), exponent - (mantissa == 0.5).to(exponent.dtype))
