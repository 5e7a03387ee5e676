"""Affine quantization: real = scale * (code - zero_point).

Source: Jacob et al. 2018, arXiv:1712.05877.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import ConfigError
from gossamer.numerics.formats import FLOAT_FORMATS, FloatFormat, Format, Granularity, IntFormat, PerAxis, PerBlock, PerTensor
from gossamer.numerics.nearest import nearest_codes

SMALLEST_SCALE = 2.0**-100  # below it, 1/scale leaves float32


@dataclass(frozen=True, slots=True)
class Quantizer:
    """How one tensor is coded. `scale` (real per code step, exact in float32) and `zero_point` (a code) have
    one entry for PerTensor, one per position for PerAxis, and one per block, row by row, for PerBlock.
    Codes of a FloatFormat are floating-point numbers, and zero_point is 0."""

    format: Format
    granularity: Granularity
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.scale) != len(self.zero_point) or not self.scale:
            raise ConfigError("Quantizer.zero_point", self.zero_point, "as long as scale, and not empty")
        if isinstance(self.granularity, PerTensor) and len(self.scale) != 1:
            raise ConfigError("Quantizer.scale", self.scale, "one number for PerTensor")
        for scale, zero in zip(self.scale, self.zero_point, strict=True):
            if not SMALLEST_SCALE <= scale < float("inf"):
                raise ConfigError("Quantizer.scale", scale, f"finite and at least {SMALLEST_SCALE:.1e}")
            if isinstance(self.format, FloatFormat) and zero:
                raise ConfigError("Quantizer.zero_point", zero, "0 for a floating-point format")
            if not self.format.lo <= zero <= self.format.hi:
                raise ConfigError("Quantizer.zero_point", zero, f"a code in [{self.format.lo}, {self.format.hi}]")

    @property
    def integers(self) -> IntFormat:
        """The format, which must be one of integers. Raises ConfigError for a floating-point one."""
        if not isinstance(self.format, IntFormat):
            raise ConfigError("Quantizer.format", self.format.name, "one of integers here")
        return self.format

    def tensors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """scale and zero_point in float32, shaped to broadcast against `like`."""
        scale = torch.tensor(self.scale, dtype=torch.float32, device=like.device)
        zero = torch.tensor(self.zero_point, dtype=torch.float32, device=like.device)
        return spread_out(scale, self.granularity, like), spread_out(zero, self.granularity, like)

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON; floats keep every bit."""
        axis = None if isinstance(self.granularity, PerTensor) else self.granularity.axis
        block = {"block": self.granularity.size} if isinstance(self.granularity, PerBlock) else {}
        fmt: dict[str, Any] = {"float": self.format.name}
        if isinstance(self.format, IntFormat):
            fmt = {"bits": self.format.bits, "signed": self.format.signed, "narrow": self.format.narrow}
        return {"format": fmt, "axis": axis, **block, "scale": list(self.scale), "zero_point": list(self.zero_point)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Quantizer:
        """Inverse of to_json."""
        granularity: Granularity = PerTensor() if data["axis"] is None else PerAxis(data["axis"])
        if "block" in data:
            granularity = PerBlock(data["axis"], data["block"])
        fmt = FLOAT_FORMATS[data["format"]["float"]] if "float" in data["format"] else IntFormat(**data["format"])
        return Quantizer(fmt, granularity, tuple(data["scale"]), tuple(data["zero_point"]))


def spread_out(numbers: Tensor, granularity: Granularity, like: Tensor) -> Tensor:
    """One number per slice, shaped to broadcast against `like`. Differentiable. Shapes: numbers (1,), (N,) as for Quantizer.scale."""
    match granularity:
        case PerTensor():
            return numbers.reshape(())
        case PerAxis(axis=axis):
            shape = [1] * like.dim()
            shape[axis] = -1
            return numbers.reshape(shape)
        case PerBlock(axis=axis, size=size) as blocks:
            shape = list(like.shape)
            shape[axis] = blocks.count(like.shape[axis])
            return numbers.reshape(shape).repeat_interleave(size, axis).narrow(axis, 0, like.shape[axis])


def quantize(x: Tensor, q: Quantizer) -> Tensor:
    """Codes of x in float32: x / scale rounded half to even (to a whole number for an IntFormat), plus zero_point, clamped."""
    scale, zero = q.tensors(x)
    return torch.clamp(nearest_codes(x / scale, q.format) + zero, q.format.lo, q.format.hi)


def dequantize(codes: Tensor, q: Quantizer) -> Tensor:
    """Real values of codes, in float32."""
    scale, zero = q.tensors(codes)
    return (codes.to(torch.float32) - zero) * scale


def fake_quantize(x: Tensor, q: Quantizer) -> Tensor:
    """Round x to the values that codes can hold, in float; gradients pass straight through inside the range.

    Source of the gradient: straight-through estimator, Bengio et al. 2013, arXiv:1308.3432.
    """
    scale, zero = q.tensors(x)
    lo, hi = (q.format.lo - zero) * scale, (q.format.hi - zero) * scale
    inside = torch.minimum(torch.maximum(x, lo), hi)
    rounded = dequantize(quantize(x.detach(), q), q)
    return inside + (rounded - inside).detach()


def from_range(low: Tensor, high: Tensor, fmt: Format, granularity: Granularity, *, symmetric: bool) -> Quantizer:
    """Choose scale and zero_point so that [low, high], widened to hold 0, maps onto the codes.

    Shapes: low, high () for PerTensor, (N,) for PerAxis and PerBlock. Zero is always exactly representable.
    Units:  a slice that is all zero gets scale 1.
    Raises: ConfigError for a floating-point format that is not symmetric.
    """
    if isinstance(fmt, FloatFormat) and not symmetric:
        raise ConfigError("symmetric", False, f"True for {fmt.name}, whose codes have no zero point")
    scale, zero = grid_from_range(low, high, fmt, symmetric=symmetric)
    return Quantizer(fmt, granularity, tuple(scale.tolist()), tuple(int(z) for z in zero.tolist()))


def grid_from_range(low: Tensor, high: Tensor, fmt: Format, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """What from_range chooses, as tensors: scale (N,) in float32 and zero_point (N,), whole numbers in float64."""
    low = torch.clamp(low.to(torch.float64).reshape(-1), max=0.0)
    high = torch.clamp(high.to(torch.float64).reshape(-1), min=0.0)
    if symmetric:
        bound = torch.maximum(-low, high)
        half = (fmt.hi - fmt.lo) / 2 if not fmt.signed else fmt.hi
        scale = bound / half
        zero = torch.full_like(scale, 0 if fmt.signed else (fmt.hi + fmt.lo + 1) // 2)
    else:
        scale = (high - low) / (fmt.hi - fmt.lo)
    scale = torch.where(scale < SMALLEST_SCALE, torch.ones_like(scale), scale).to(torch.float32)
    if not symmetric:
        zero = torch.clamp(torch.round(fmt.lo - low / scale.to(torch.float64)), fmt.lo, fmt.hi)
    return scale, zero


def clips_like(quantizer: Quantizer, low: float | None, high: float | None) -> bool:
    """Whether coding a value clips it exactly like clamp(low, high), so that the clamp can be left out."""
    limits = torch.tensor([-torch.inf if low is None else low, torch.inf if high is None else high])
    return quantize(limits, quantizer).tolist() == [quantizer.format.lo, quantizer.format.hi]
