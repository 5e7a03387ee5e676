"""Where ExecuTorch's use of XNNPACK computes otherwise than LiteRT's: joins read codes of one kind, and means add the zero point in float."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.numerics.affine import Quantizer, dequantize
from gossamer.targets.float32_kernels import CodeCall, adaptive_average, joined, result_of
from gossamer.targets.kernel_sets import kernel_sets
from gossamer.targets.xnnpack_kernels import quantize, xnnpack

NAME = "xnnpack-executorch"


def convert(codes: Tensor, source: Quantizer, result: Quantizer) -> Tensor:
    """Other codes of the same value, through float32."""
    return codes if source == result else quantize(dequantize(codes, source), result)


def concat(call: CodeCall) -> Tensor:
    """Parts in the result's codes."""
    return joined(call, convert)


def mean(call: CodeCall) -> Tensor:
    """Over height and width: sums times a float32 factor, with the zero point added before they are rounded."""
    codes, source = call.first
    result, plain = result_of(call), call.run({call.node.uses[0]: codes})
    count = codes.numel() // plain.numel()
    if codes.dim() != 4 or count != codes[0, 0].numel():
        otherwise: Tensor = adaptive_average(call)
        return otherwise
    sums = (codes.to(torch.float64) - source.zero_point[0]).sum((2, 3)).to(torch.float32)
    factor = torch.tensor(source.scale[0]).div(torch.tensor(result.scale[0])) * torch.tensor(1.0).div(float(count))
    rounded = torch.round(sums * factor + float(result.zero_point[0]))
    found: Tensor = rounded.clamp(result.format.lo, result.format.hi).reshape(plain.shape)
    return found


kernel_sets.add(NAME, source="XNNPACK as ExecuTorch 1.5.1 ships it; found exact by comparing")(
    {**xnnpack, "Concat": concat, "AdaptiveAveragePool": mean, "ReduceMean": mean}
)
