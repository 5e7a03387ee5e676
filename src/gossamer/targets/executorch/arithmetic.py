"""Where ExecuTorch's use of XNNPACK computes otherwise than LiteRT's: joins read codes of one kind, so that others become floats first."""

from __future__ import annotations

from torch import Tensor

from gossamer.numerics.affine import Quantizer, dequantize
from gossamer.targets.float32_kernels import CodeCall, joined
from gossamer.targets.kernel_sets import kernel_sets
from gossamer.targets.xnnpack_kernels import quantize, xnnpack

NAME = "xnnpack-executorch"


def convert(codes: Tensor, source: Quantizer, result: Quantizer) -> Tensor:
    """Other codes of the same value, through float32."""
    return codes if source == result else quantize(dequantize(codes, source), result)


def concat(call: CodeCall) -> Tensor:
    """Parts in the result's codes."""
    return joined(call, convert)


kernel_sets.add(NAME, source="XNNPACK as ExecuTorch 1.5.1 ships it; found exact by comparing")({**xnnpack, "Concat": concat})
