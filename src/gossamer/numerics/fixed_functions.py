"""Exponential, logistic function, tanh, hard swish and softmax with whole numbers alone, bit for bit as LiteRT for Microcontrollers.

A fixed-point number with `digits` digits before its point stands for raw * 2^(digits - 31). All tensors are int64, their contents
those of 32-bit numbers.
Source: the reference kernels of LiteRT and the gemmlowp library (Jacob and Warden 2015-2017); found exact by comparing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gossamer.numerics.fixed_point import divide_by_power, doubling_high, multiply, quantize_multiplier

_MOST, _LEAST = 2**31 - 1, -(2**31)
_ONE = _MOST  # 1.0 with no digit before the point, as near as 31 bits come
_STEPS = ((-2, 1672461947), (-1, 1302514674), (0, 790015084), (1, 290630308), (2, 39332535), (3, 720401), (4, 242))  # exp(-2^k)


def exp_of_negative(raw: Tensor, digits: int) -> Tensor:
    """exp of numbers <= 0 with `digits` digits before the point, without any: a short series, then one factor for each higher bit."""
    quarter = 1 << (29 - digits)
    rest = (raw & (quarter - 1)) - quarter
    result = _series(_shifted(rest, digits))
    above = rest - raw
    for power, factor in _STEPS:
        if digits > power:
            bit = above & (1 << (31 - digits + power))
            result = torch.where(bit != 0, doubling_high(result, torch.tensor(factor)), result)
    return torch.where(raw == 0, torch.full_like(result, _ONE), result)


def _series(raw: Tensor) -> Tensor:
    """exp on [-1/4, 0), expanded around -1/8."""
    start, third = torch.tensor(1895147668), torch.tensor(715827883)
    x = raw + (1 << 28)
    square = doubling_high(x, x)
    cube, fourth = doubling_high(square, x), doubling_high(square, square)
    higher = doubling_high(_halved(fourth, 2) + cube, third) + square
    return start + doubling_high(start, x + _halved(higher, 1))


def _halved(raw: Tensor, times: int) -> Tensor:
    return divide_by_power(raw, torch.tensor(times))


def _shifted(raw: Tensor, bits: int) -> Tensor:
    return (raw << bits).clamp(_LEAST, _MOST)


def _reciprocal(raw: Tensor) -> Tensor:
    """2 / (1 + x) for x in [0, 1], with two digits before the point: three steps of Newton's method."""
    total = raw + _ONE
    half = torch.div(total + 1, 2, rounding_mode="trunc")
    x = 1515870810 + doubling_high(half, torch.tensor(-1010580540))
    for _ in range(3):
        x = x + _shifted(doubling_high(x, (1 << 29) - doubling_high(half, x)), 2)
    return x


def one_over_one_plus(raw: Tensor) -> Tensor:
    """1 / (1 + x) for x in [0, 1], without digits before the point."""
    return _shifted(_reciprocal(raw), 1)


def logistic(raw: Tensor, digits: int = 4) -> Tensor:
    """1 / (1 + exp(-x)), without digits before the point."""
    positive = one_over_one_plus(exp_of_negative(-raw.abs(), digits))
    result = torch.where(raw > 0, positive, _ONE - positive)
    return torch.where(raw == 0, torch.full_like(result, 1 << 30), result)


def tanh(raw: Tensor, digits: int = 4) -> Tensor:
    """tanh, without digits before the point."""
    size = _shifted(_reciprocal(exp_of_negative(-raw.abs(), digits + 1)) - (1 << 29), 2)
    return torch.where(raw < 0, -size, torch.where(raw == 0, torch.zeros_like(size), size))


def input_radius(digits: int, left_shift: int) -> int:
    """The largest number that keeps its `digits` digits when it is shifted left."""
    return math.floor(math.ldexp(2.0**digits - 1, 31 - digits - left_shift))


def squashed(distances: Tensor, scale: float, *, of_tanh: bool) -> Tensor:
    """logistic (distance from code -128, of steps of 1/256) or tanh (from 0, of steps of 1/128) of scale * distance."""
    multiplier, exponent = quantize_multiplier(scale * 2.0**27)
    radius = input_radius(4, exponent)
    inner = multiply(distances.clamp(-radius, radius), multiplier, exponent)
    bits = 7 if of_tanh else 8
    found = _halved((tanh if of_tanh else logistic)(inner), 31 - bits)
    end = torch.full_like(found, 1 << bits)
    found = torch.where(distances >= radius, end, found)
    return torch.where(distances <= -radius, -end if of_tanh else 0 * end, found)


def hard_swish(distances: Tensor, source_scale: float, result_scale: float) -> Tensor:
    """x * clamp(x + 3, 0, 6) / 6 in 16 bits: the distances from the result's zero point. Scales are float32."""
    fine = torch.tensor(source_scale) * (1.0 / 128)
    out_factor, out_exponent = quantize_multiplier(float(fine / torch.tensor(result_scale)))
    gate_factor, gate_exponent = quantize_multiplier(float(fine / torch.tensor(3.0 / 32768.0)))
    wide = distances << 7
    product = _high16(wide, _narrow(out_factor))
    gate = wide
    if gate_exponent > 0:
        gate = (gate << (gate_exponent - 1)).clamp(-(2**15), 2**15 - 1)
    gate = _high16(gate, _narrow(gate_factor))
    if gate_exponent > 0:
        gate = (gate << 1).clamp(-(2**15), 2**15 - 1)
    elif gate_exponent < 0:
        gate = _halved(gate, -gate_exponent)
    gate = (gate + 2**15) >> 1
    return _halved(torch.div(gate * product, 2**15, rounding_mode="trunc"), -out_exponent)


def _narrow(multiplier: int) -> int:
    """31 bits of a factor as 15."""
    return min((multiplier + 2**15) >> 16, 2**15 - 1)


def _high16(values: Tensor, factor: int) -> Tensor:
    """(values * factor + half) / 2^15, towards zero."""
    product = values * factor
    nudged = product + torch.where(product >= 0, 2**14, 1 - 2**14)
    return torch.div(nudged, 2**15, rounding_mode="trunc").clamp(-(2**15), 2**15 - 1)


def softmax_factor(scale: float) -> tuple[int, int, int]:
    """Multiplier and exponent that take distances of codes to five digits before the point, and the lowest distance that counts."""
    multiplier, exponent = quantize_multiplier(min(scale * 2.0**26, 2.0**31 - 1))
    return multiplier, exponent, -input_radius(5, exponent)


def softmax(codes: Tensor, scale: float) -> Tensor:
    """Softmax along the last axis: the distances from the lowest code, in steps of 1/256."""
    multiplier, exponent, least = softmax_factor(scale)
    away = codes - codes.amax(-1, keepdim=True)
    counted = away >= least
    shares = exp_of_negative(multiply(away.clamp_min(least), multiplier, exponent), 5) * counted
    sums = (_halved(shares, 12) * counted).sum(-1, keepdim=True)
    bits = torch.floor(torch.log2(sums.to(torch.float64))).to(torch.int64) + 1  # exact: sums have fewer than 53 bits
    fraction = (sums << (32 - bits)) - (1 << 31)
    inverse = one_over_one_plus(fraction)
    found = divide_by_power(doubling_high(inverse, shares), 12 - (32 - bits) + 31 - 8)
    return torch.where(counted, found, torch.zeros_like(found))
