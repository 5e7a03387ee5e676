"""Where XNNPACK's kernels on signed codes compute otherwise than those of float32_kernels: fixed-point sums and conversions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gossamer.numerics.affine import Quantizer
from gossamer.numerics.resample import float_bilinear
from gossamer.program.ops import op_of
from gossamer.targets import code_tables, gemmlowp_kernels, lite_kernels
from gossamer.targets.float32_kernels import CodeCall, clamped, joined, result_of
from gossamer.targets.kernel_sets import FLOAT32_HALF_EVEN, kernel_sets

xnnpack = kernel_sets.add("xnnpack", source="XNNPACK as LiteRT 2.3.0 ships it; found exact by comparing")(FLOAT32_HALF_EVEN.copy())


def add(call: CodeCall) -> Tensor:
    """Sum or difference: both factors as whole multiples of 2^-shift, the larger one with 20 bits behind its first; halves are rounded up."""
    (left, one), (right, two) = lite_kernels.operands(call)
    return added(left, right, (one, two, result_of(call)), sign=-1 if op_of(call.node).onnx in ("Sub", "Rsub") else 1)


def added(left: Tensor, right: Tensor, quantizers: tuple[Quantizer, Quantizer, Quantizer], sign: int = 1) -> Tensor:
    """Codes of left + sign * right; LiteRT's own kernel adds numbers of very different scales."""
    one, two, result = quantizers
    factors = [torch.tensor(part.scale[0]).div(torch.tensor(result.scale[0])) for part in (one, two)]
    if any(not 2.0**-10 <= float(factor) < 2.0**8 for factor in factors):
        return gemmlowp_kernels.added(left, right, quantizers, sign)
    shift = 20 - (math.frexp(max(float(factor) for factor in factors))[1] - 1)
    whole = [int(torch.tensor(math.ldexp(float(factor), shift)).round()) for factor in factors]
    sums = (left.long() - one.zero_point[0]) * whole[0] + sign * (right.long() - two.zero_point[0]) * whole[1] + (1 << (shift - 1))
    return clamped(sums >> shift, result)


def mul(call: CodeCall) -> Tensor:
    """Product of two values, position by position."""
    (left, one), (right, two) = lite_kernels.operands(call)
    return multiplied(left, right, (one, two, result_of(call)))


def multiplied(left: Tensor, right: Tensor, quantizers: tuple[Quantizer, Quantizer, Quantizer]) -> Tensor:
    """Codes of left * right, rounded half to even before the zero point; LiteRT's own kernel computes very small and very large factors."""
    one, two, result = quantizers
    factor = torch.tensor(one.scale[0]) * torch.tensor(two.scale[0]) / torch.tensor(result.scale[0])
    if not 2.0**-16 <= float(factor) < 2.0**8:
        return gemmlowp_kernels.multiplied(left, right, quantizers)
    products = ((left - one.zero_point[0]) * (right - two.zero_point[0])).to(torch.float32)
    return clamped((products * factor).round(), result)


def convert(codes: Tensor, source: Quantizer, result: Quantizer) -> Tensor:
    """Other codes of the same value: the ratio of scales as a whole multiple of 1/256, halves rounded up; others by LiteRT's own kernel."""
    if source == result:
        return codes
    ratio = torch.tensor(source.scale[0]).div(torch.tensor(result.scale[0]))
    if not 2.0**-8 <= float(ratio) <= 2.0**7:
        return gemmlowp_kernels.convert(codes, source, result)
    factor = int((ratio * 256).round())
    return clamped(((codes.long() - source.zero_point[0]) * factor + 128) >> 8, result)


def quantize(real: Tensor, quantizer: Quantizer) -> Tensor:
    """Codes of floats: times the reciprocal of the scale in float32, half to even."""
    codes = torch.round(real * torch.tensor(1.0).div(torch.tensor(quantizer.scale[0])))
    return (codes + quantizer.zero_point[0]).clamp(quantizer.format.lo, quantizer.format.hi)


def concat(call: CodeCall) -> Tensor:
    """Parts in the result's codes."""
    return joined(call, convert)


def clamp(call: CodeCall) -> Tensor:
    """A clamp of its own: other codes, which clip."""
    return convert(*call.first, result_of(call))


xnnpack |= {
    "Add": add,
    "Sub": add,
    "Rsub": add,
    "Mul": mul,
    "Div": mul,
    "Relu": clamp,
    "Clip": clamp,
    "Tanh": FLOAT32_HALF_EVEN["Sigmoid"],
    "LeakyRelu": lite_kernels.table(code_tables.short_leaky_relu, slope="negative_slope"),
    "PRelu": lite_kernels.prelu(code_tables.short_leaky_relu),
    "Elu": lite_kernels.table(code_tables.short_elu),
    "Resize": lite_kernels.resize(float_bilinear),
    "Concat": concat,
    "Quantize": quantize,
}
