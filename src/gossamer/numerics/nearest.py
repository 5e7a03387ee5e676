"""Rounding real numbers to the codes of a format."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.numerics.formats import Format, IntFormat


def nearest_codes(x: Tensor, fmt: Format) -> Tensor:
    """The nearest code of each number, half to even, not yet clamped: whole numbers, or floating-point numbers of the format's precision.

    Any shape; the dtype stays. Exact for every number of the dtype (computed in float64 for floating-point formats).
    """
    if isinstance(fmt, IntFormat):
        return torch.round(x)
    wide = x.to(torch.float64)
    _, exponent = torch.frexp(wide)
    lowest = fmt.least_exponent
    step = torch.ldexp(torch.ones_like(wide), (exponent - 1).clamp_min(lowest) - fmt.mantissa_bits)
    rounded = torch.where(torch.isfinite(wide), torch.round(wide / step) * step, wide)
    return rounded.to(x.dtype)
