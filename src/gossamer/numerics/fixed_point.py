"""Arithmetic of kernels without floats: a real factor as a whole number of 31 bits and a shift, rounded twice.

The reference kernels of LiteRT, LiteRT for Microcontrollers and CMSIS-NN compute this way.
Source: Jacob et al. 2018, arXiv:1712.05877, section 2.2; the roundings are those of the gemmlowp library.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def quantize_multiplier(factor: float) -> tuple[int, int]:
    """(m, e) with factor about m * 2^(e - 31) and 2^30 <= m < 2^31; (0, 0) for 0 and for what no 31 bits can hold."""
    fraction, exponent = math.frexp(factor)
    if factor == 0 or exponent < -31:
        return 0, 0
    whole = math.floor(fraction * 2.0**31 + 0.5)
    return (whole // 2, exponent + 1) if whole == 2**31 else (whole, exponent)


def multiply(values: Tensor, multiplier: Tensor | int, exponent: Tensor | int) -> Tensor:
    """values * multiplier * 2^(exponent - 31), rounded to the 31 bits first and after the shift again, halves away from zero.

    Shapes: int64 tensors that broadcast.
    """
    multiplier = torch.as_tensor(multiplier, dtype=torch.int64)
    exponent = torch.as_tensor(exponent, dtype=torch.int64)
    left, right = exponent.clamp_min(0), (-exponent).clamp_min(0)
    return divide_by_power(doubling_high(values << left, multiplier), right)


def doubling_high(values: Tensor, multiplier: Tensor) -> Tensor:
    """(values * multiplier + half) / 2^31, towards zero."""
    product = values * multiplier
    nudged = product + torch.where(product >= 0, 2**30, 1 - 2**30)
    return torch.div(nudged, 2**31, rounding_mode="trunc")


def divide_by_power(values: Tensor, exponent: Tensor) -> Tensor:
    """values / 2^exponent, halves away from zero. Shapes: int64 tensors that broadcast."""
    mask = (torch.ones_like(exponent) << exponent) - 1
    threshold = (mask >> 1) + (values < 0).to(torch.int64)
    return (values >> exponent) + ((values & mask) > threshold).to(torch.int64)


def mean_multiplier(factor: float, count: int) -> tuple[int, int]:
    """The multiplier of a mean over `count` numbers: 1 / count goes into it as far as its bits allow."""
    multiplier, exponent = quantize_multiplier(factor)
    shift = min(count.bit_length() - 1, 32, 31 + exponent)
    return (multiplier << shift) // count, exponent - shift
