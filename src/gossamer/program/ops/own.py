"""Ops of our own, for what runtimes compute and torch has no op for. They are part of a graph like any other."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.program.ops.kinds import Mixing, Movement
from gossamer.program.ops.table import add

DYNAMIC = "gossamer.dynamic_quantize.default"
DYNAMIC_RANGE = "gossamer.dynamic_range.default"
DYNAMIC_ROWS = "gossamer.dynamic_rows.default"
COPY = "gossamer.copy.default"  # the same numbers under a name of their own, which can have codes
PIXELS = "gossamer.pixels.default"  # channels become pixels
ROUNDED = frozenset({DYNAMIC, DYNAMIC_RANGE, DYNAMIC_ROWS})  # they round what they read while the network runs

_LIBRARY = torch.library.Library("gossamer", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("copy(Tensor self) -> Tensor")  # type: ignore[no-untyped-call]
_LIBRARY.define("pixels(Tensor self, int[] strides, int[] start, int[] size) -> Tensor")  # type: ignore[no-untyped-call]
_LIBRARY.define("dynamic_range(Tensor self, int bits) -> Tensor")  # type: ignore[no-untyped-call]
_LIBRARY.define("dynamic_rows(Tensor self, int bits) -> Tensor")  # type: ignore[no-untyped-call]
_LIBRARY.define("dynamic_quantize(Tensor self, int bits, int block) -> Tensor")  # type: ignore[no-untyped-call]


def copy(values: Tensor) -> Tensor:
    """A view of the same numbers."""
    return values.view_as(values)


def pixels(values: Tensor, strides: list[int], start: list[int], size: list[int]) -> Tensor:
    """Channels (*strides, O) of each place as that many pixels, of which `size` from `start` on are kept.

    Shapes: (N, prod(strides) * O, *S) -> (N, O, *size).
    """
    dims = len(strides)
    split = values.reshape(values.shape[0], *strides, -1, *values.shape[2:])
    moved = split.permute(0, dims + 1, *(axis for k in range(dims) for axis in (dims + 2 + k, 1 + k)))
    whole = moved.reshape(values.shape[0], moved.shape[1], *(n * stride for n, stride in zip(values.shape[2:], strides, strict=True)))
    for axis, (first, length) in enumerate(zip(start, size, strict=True), 2):
        whole = whole.narrow(axis, first, length)
    return whole


def dynamic_range(values: Tensor, bits: int) -> Tensor:
    """All values rounded to unsigned codes with one scale and zero point, from the lowest to the highest of them (and 0).

    What kernels that quantize their input while they run do, as ONNX defines DynamicQuantizeLinear. All samples of a batch share
    the range. Gradients pass straight through. Shapes: any -> the same.
    """
    given = values.detach()
    low, high = given.amin().clamp_max(0), given.amax().clamp_min(0)
    top = 2**bits - 1
    scale = (high - low) / top
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero = torch.clamp(torch.round(-low / scale), 0, top)
    codes = torch.clamp(torch.round(given / scale) + zero, 0, top)
    return values + ((codes - zero) * scale - values).detach()


def dynamic_rows(values: Tensor, bits: int) -> Tensor:
    """Each run along the last axis rounded to signed codes with a scale and zero point of its own, from its lowest to its highest number.

    As XNNPACK does it, in float32: 0 is in the range, the zero point is taken from the end that it errs less at, before it is rounded.
    Gradients pass straight through. Shapes: (*, K) -> (*, K).
    """
    given = values.detach()
    lowest, highest = -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    low, high = given.amin(-1, keepdim=True).clamp_max(0), given.amax(-1, keepdim=True).clamp_min(0)
    span = torch.full_like(low, highest - lowest)  # torch divides a plain number by multiplying with a reciprocal: a last bit off
    factor = torch.where(low == high, torch.ones_like(low), span / (high - low))
    below, above = low * factor, high * factor
    zero = torch.where((lowest + below) + (highest + above) > 0, lowest - below, highest - above)
    zero = torch.round(zero.clamp(lowest, highest))
    codes = (torch.round(given * factor) + zero).clamp(lowest, highest)
    return values + ((codes - zero) * factor.reciprocal() - values).detach()


def dynamic_quantize(values: Tensor, bits: int, block: int) -> Tensor:
    """Each run of `block` values along the last axis rounded to symmetric codes of its own scale, max |x| / (2^(bits-1) - 1).

    What kernels with weights per block do to their input while they run. Gradients pass straight through.
    Shapes: (*, K) -> (*, K); the last run may be shorter.
    """
    length = values.shape[-1]
    padded = torch.nn.functional.pad(values.detach(), (0, -length % block))
    runs = padded.reshape(*padded.shape[:-1], -1, block)
    scale = runs.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    codes = torch.round(runs / torch.where(scale > 0, scale, torch.ones_like(scale)))
    rounded: Tensor = (codes * scale).reshape(padded.shape)[..., :length]
    return values + (rounded - values).detach()


_LIBRARY.impl("copy", copy, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
_LIBRARY.impl("dynamic_quantize", dynamic_quantize, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
_LIBRARY.impl("dynamic_range", dynamic_range, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
_LIBRARY.impl("pixels", pixels, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
add(COPY, Movement(), onnx="CodedCopy")
add(PIXELS, Movement(), onnx="Pixels")
add(DYNAMIC_RANGE, Mixing(), onnx="DynamicRange")
_LIBRARY.impl("dynamic_rows", dynamic_rows, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
add(DYNAMIC_ROWS, Mixing(), onnx="DynamicRows")
add(DYNAMIC, Mixing(), onnx="DynamicQuantize")
