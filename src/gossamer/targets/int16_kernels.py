"""Kernels on 16-bit codes of values and 8-bit codes of weights, as LiteRT and its interpreter for microcontrollers compute them.

Sums have 64 bits and multipliers 15: a product and one rounding, halves up. Zero points are 0. Between the two, linear layers and the coding of floats differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gossamer.numerics.affine import Quantizer
from gossamer.numerics.fixed_point import multiply, quantize_multiplier
from gossamer.targets import xnnpack_kernels
from gossamer.targets.float32_kernels import CodeCall, clamped, layer_sums, pair_of, result_of
from gossamer.targets.gemmlowp_kernels import quantize, scaled_layer
from gossamer.targets.kernel_sets import KernelSet, kernel_sets

int16: KernelSet = kernel_sets.add("gemmlowp-int16", source="reference kernels of tflite-micro; found exact by comparing")({})


def layer(call: CodeCall) -> Tensor:
    """Convolution or linear layer: a multiplier for each output channel."""
    return scaled_layer(call, multiply_wide)


def add(call: CodeCall) -> Tensor:
    """Both at 15 more bits and one scale, then to the result's."""
    (left, one), (right, two) = pair_of(call)
    result = result_of(call)
    twice = 2.0 * max(one.scale[0], two.scale[0])
    sums = _raised(left, one, twice) + _raised(right, two, twice)
    return clamped(multiply(sums, *quantize_multiplier(twice / (2**15 * result.scale[0]))), result)


def multiply_wide(values: Tensor, factors: Sequence[float], shape: Sequence[int]) -> Tensor:
    """values * factors with multipliers of 15 bits, one for each channel; halves are rounded up."""
    pairs = [quantize_multiplier(factor) for factor in factors]
    reduced = [(whole + (1 << 15)) >> 16 if whole < 0x7FFF0000 else 0x7FFF for whole, _ in pairs]
    multipliers = torch.tensor(reduced, dtype=torch.int64).reshape(tuple(shape))
    shifts = torch.tensor([15 - exponent for _, exponent in pairs], dtype=torch.int64).reshape(tuple(shape))
    return (values * multipliers + (torch.ones_like(shifts) << (shifts - 1))) >> shifts


def _raised(codes: Tensor, source: Quantizer, twice: float) -> Tensor:
    return multiply(codes.long() << 15, *quantize_multiplier(source.scale[0] / twice))


def linear(call: CodeCall) -> Tensor:
    """LiteRT's linear layer: the real factor in float64, halves rounded up."""
    sums, weight = layer_sums(call)
    source, result = call.first[1], result_of(call)
    factors = torch.tensor([source.scale[0] * scale / result.scale[0] for scale in weight.scale], dtype=torch.float64)
    return call.shaped(clamped(torch.floor(sums * factors + 0.5), result))


int16 |= {"Conv": layer, "Gemm": layer, "Add": add, "Quantize": quantize}
litert_int16: KernelSet = kernel_sets.add("litert-int16", source="LiteRT 2.3.0's own kernels; found exact by comparing")(int16.copy())
litert_int16 |= {"Gemm": linear, "Quantize": xnnpack_kernels.quantize}
