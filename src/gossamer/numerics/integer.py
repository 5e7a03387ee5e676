"""Arithmetic on codes exactly as kernels with "float32-half-even" requantization do it: int32 accumulators, one float32
multiplier, rounding half to even, then the zero point.

ONNX Runtime, OpenVINO and XNNPACK compute layers this way; additions, products and pools follow ONNX Runtime's
kernels for x86-64 (MLAS), rounding by rounding. Codes are whole numbers in float32 or float64 tensors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gossamer.numerics.affine import Quantizer, dequantize, quantize
from gossamer.numerics.formats import PerAxis

_EXACT_IN_FLOAT32 = 2.0**24  # whole numbers up to here, and sums that stay below, are exact


def accumulate(
    product: Callable[[Tensor, Tensor], Tensor], codes: Tensor, source: Quantizer, weight_codes: Tensor, *, bias: Tensor | None
) -> Tensor:
    """Sums of (code - zero point) * weight code, plus int32 bias codes, exact, in float64.

    `product(x, w)` is a convolution or linear map of whole numbers with its output channels on axis 1 (or last where the
    result has two axes) and those of w on axis 0. It runs in float32 where no sum can reach 2^24, else in float64.
    """
    zero = source.zero_point[0]
    reach = max(source.format.hi - zero, zero - source.format.lo)
    bound = float(weight_codes.abs().flatten(1).to(torch.float64).sum(1).max()) * reach
    dtype = torch.float32 if bound < _EXACT_IN_FLOAT32 else torch.float64
    with torch.backends.nnpack.flags(enabled=False):  # its transforms are not exact
        sums = product((codes - zero).to(dtype), weight_codes.to(dtype)).to(torch.float64)
    if bias is None:
        return sums
    shape = [1] * sums.dim()
    shape[_channel_axis(sums)] = -1
    return sums + bias.to(torch.float64).reshape(shape)


def accumulator_scales(source: Quantizer, weight: Quantizer, like: Tensor) -> Tensor:
    """float32(scale(source) * scale(weight)), shaped to broadcast against the accumulators `like`."""
    scales = torch.tensor(source.scale, dtype=torch.float32) * torch.tensor(weight.scale, dtype=torch.float32)
    shape = [1] * like.dim()
    if isinstance(weight.granularity, PerAxis):
        shape[_channel_axis(like)] = -1
    return scales.reshape(shape)


def requantize(sums: Tensor, scales: Tensor, result: Quantizer) -> Tensor:
    """Codes of accumulators: round(float32(sum) * float32(scales / scale(result))) + zero point, clamped."""
    multiplier = scales / torch.tensor(result.scale[0], dtype=torch.float32)
    rounded = torch.round(sums.to(torch.float32) * multiplier)
    return (rounded + result.zero_point[0]).clamp_(result.format.lo, result.format.hi)


def scale_sums(sums: Tensor, scales: Tensor) -> Tensor:
    """Real values of accumulators in float32, where a layer hands out floats."""
    return sums.to(torch.float32) * scales


def add_codes(left: Tensor, right: Tensor, quantizers: tuple[Quantizer, Quantizer, Quantizer]) -> Tensor:
    """Codes of a sum: fma(l, L, fma(r, R, fixed)) with L, R the ratios of scales, everything constant in `fixed`."""
    (one, two, result) = quantizers
    step = np.float32(result.scale[0])
    ratios = [np.float32(q.scale[0]) / step for q in (one, two)]
    zeros = [np.float32(q.zero_point[0]) for q in (one, two)]
    # the compiler of ONNX Runtime fuses one of these products, too: found on 20 million sums
    offset = np.float32(np.float64(ratios[0]) * np.float64(zeros[0]) + np.float64(ratios[1] * zeros[1]))
    inner = _fused(right, ratios[1], torch.tensor(np.float32(result.zero_point[0]) - offset))
    return _saturate(_fused(left, ratios[0], inner), result)


def multiply_codes(left: Tensor, right: Tensor, quantizers: tuple[Quantizer, Quantizer, Quantizer]) -> Tensor:
    """Codes of a product: float32 (l - zl) * (r - zr) * ratio + zero point, rounded."""
    (one, two, result) = quantizers
    ratio = np.float32(one.scale[0]) * np.float32(two.scale[0]) / np.float32(result.scale[0])
    products = ((left - one.zero_point[0]) * (right - two.zero_point[0])).to(torch.float32)
    return _saturate(products * float(ratio) + float(result.zero_point[0]), result)


def average_all(codes: Tensor, source: Quantizer, result: Quantizer) -> Tensor:
    """Codes of the mean over all spatial axes. Shape: (N, C, *S) -> (N, C, 1, ...)."""
    axes = tuple(range(2, codes.dim()))
    count = codes[0, 0].numel()
    sums = (codes.to(torch.float64) - source.zero_point[0]).sum(axes, keepdim=True)
    scale = np.float32(source.scale[0]) / (np.float32(result.scale[0]) * np.float32(count))
    rounded = torch.round(sums.to(torch.float32) * float(scale))
    return (rounded + result.zero_point[0]).clamp_(result.format.lo, result.format.hi)


def average_windows(pool: Callable[[Tensor], Tensor], codes: Tensor, source: Quantizer, result: Quantizer) -> Tensor:
    """Codes of an average pool: means of real values in float32, the zero point added before rounding."""
    means = pool(dequantize(codes, source))
    return _saturate(means / torch.tensor(result.scale[0], dtype=torch.float32) + float(result.zero_point[0]), result)


def look_up(function: Callable[[Tensor], Tensor], codes: Tensor, source: Quantizer, result: Quantizer) -> Tensor:
    """Codes of a function of one value, through a table of all codes, in float32."""
    fmt = source.format
    table = quantize(function(dequantize(torch.arange(fmt.lo, fmt.hi + 1, dtype=torch.float32), source)), result)
    return table[(codes - fmt.lo).to(torch.int64)]


def recode(codes: Tensor, source: Quantizer, result: Quantizer) -> Tensor:
    """The same values in other codes."""
    return codes if source == result else look_up(lambda real: real, codes, source, result)


def bias_to_codes(bias: Tensor, scales: Tensor) -> Tensor:
    """int32 codes of a bias at the accumulator's scales: round(bias / scale), half to even, computed in float64."""
    return torch.round(bias.detach().cpu().to(torch.float64) / scales.reshape(-1).to(torch.float64))


def _fused(codes: Tensor, ratio: np.float32, addend: Tensor) -> Tensor:
    """Fused multiply-add: codes * ratio + addend rounded once to float32."""
    return (codes.to(torch.float64) * float(ratio) + addend.to(torch.float64)).to(torch.float32)


def _saturate(real: Tensor, result: Quantizer) -> Tensor:
    return torch.round(real).clamp_(result.format.lo, result.format.hi)


def _channel_axis(sums: Tensor) -> int:
    return 1 if sums.dim() > 2 else sums.dim() - 1
