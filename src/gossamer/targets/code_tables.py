"""Functions of one 8-bit code as the kernels of LiteRT and LiteRT for Microcontrollers compute them: codes in, codes out.

Each is determined by its 256 results, so C code holds those. Codes are whole numbers in float32 or integer tensors; results are float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.numerics import fixed_functions
from gossamer.numerics.affine import Quantizer
from gossamer.numerics.fixed_point import multiply, quantize_multiplier
from gossamer.targets.float32_kernels import clamped


def distances(codes: Tensor, source: Quantizer) -> Tensor:
    """How far codes are from the zero point."""
    return codes.to(torch.int64) - source.zero_point[0]


def fixed_sigmoid(codes: Tensor, source: Quantizer, result: Quantizer) -> Tensor:
    """The logistic function in fixed point; results have the scale 1/256 and begin at the lowest code."""
    return clamped(fixed_functions.squashed(distances(codes, source), source.scale[0], of_tanh=False), result)


def fixed_tanh(codes: Tensor, source: Quantizer, result: Quantizer) -> Tensor:
    """tanh in fixed point; results have the scale 1/128 and their zero point at 0."""
    return clamped(fixed_functions.squashed(distances(codes, source), source.scale[0], of_tanh=True), result)


def hard_swish(codes: Tensor, source: Quantizer, result: Quantizer) -> Tensor:
    """Hard swish in 16 bits."""
    return clamped(fixed_functions.hard_swish(distances(codes, source), source.scale[0], result.scale[0]), result)


def fixed_leaky_relu(codes: Tensor, source: Quantizer, result: Quantizer, slope: float) -> Tensor:
    """One multiplier for each sign."""
    scale, step = source.scale[0], result.scale[0]
    return _bent(codes, source, result, (scale / step, scale * float(torch.tensor(slope)) / step))


def _bent(codes: Tensor, source: Quantizer, result: Quantizer, factors: tuple[float, float]) -> Tensor:
    away = distances(codes, source)
    above, below = map(quantize_multiplier, factors)
    return clamped(torch.where(away >= 0, multiply(away, *above), multiply(away, *below)), result)


def short_leaky_relu(codes: Tensor, source: Quantizer, result: Quantizer, slope: float) -> Tensor:
    """Factors as whole multiples of 1/256, halves rounded up: XNNPACK's, which leaves smaller and very large factors to LiteRT's own kernel."""
    away = distances(codes, source)
    ratio = torch.tensor(source.scale[0]) / torch.tensor(result.scale[0])
    factors = ratio, torch.tensor(slope) * ratio
    if any(not 2.0**-8 <= abs(float(factor)) <= 2.0**7 for factor in factors):
        return _bent(codes, source, result, (float(factors[0]), float(factors[1])))
    above, below = (int((factor * 256).round()) for factor in factors)
    return clamped((torch.where(away >= 0, away * above, away * below) + 128) >> 8, result)


def elu(codes: Tensor, source: Quantizer, result: Quantizer) -> Tensor:
    """x, or exp(x) - 1 below 0."""
    return _by_floats(lambda x: torch.where(x < 0, x.double().exp().float() - 1, x), codes, source, result)


def short_elu(codes: Tensor, source: Quantizer, result: Quantizer) -> Tensor:
    """Times the reciprocal of the scale, the zero point added before rounding half to even: XNNPACK's."""
    real = torch.tensor(source.scale[0]) * distances(codes, source).to(torch.float32)
    exact = torch.where(real < 0, torch.expm1(real), real) * torch.tensor(1.0).div(torch.tensor(result.scale[0])) + result.zero_point[0]
    return exact.round().clamp(result.format.lo, result.format.hi)


def gelu(codes: Tensor, source: Quantizer, result: Quantizer, approximate: str) -> Tensor:
    """Exact, or with tanh."""
    return _by_floats(lambda x: F.gelu(x, approximate=approximate), codes, source, result)


def _by_floats(function: Callable[[Tensor], Tensor], codes: Tensor, source: Quantizer, result: Quantizer) -> Tensor:
    """A table filled in float32, halves away from zero."""
    every = torch.arange(source.format.lo, source.format.hi + 1)
    ratio = function(torch.tensor(source.scale[0]) * distances(every, source).to(torch.float32)) * torch.tensor(1.0).div(
        torch.tensor(result.scale[0])
    )
    exact = ratio.to(torch.float64)
    table = clamped(exact.sign() * (exact.abs() + 0.5).floor(), result)
    return table[codes.to(torch.int64) - source.format.lo]
