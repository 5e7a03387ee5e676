"""Bilinear resizing of codes with whole numbers, in the two ways of the LiteRT family.

Shapes: images (N, C, H, W) of int64 codes. Results have the codes of their input.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Whole = npt.NDArray[np.int64]


def fixed_bilinear(codes: Tensor, size: tuple[int, int], *, align_corners: bool) -> Tensor:
    """Places and shares in steps of 1/1024, halves away from zero: the reference kernels' of LiteRT."""
    rows, columns = (_fixed_axis(have, want, align_corners) for have, want in zip(codes.shape[2:], size, strict=True))
    total = _mixed(codes, rows, columns, 1 << 10)
    return torch.div(total + torch.where(total > 0, 1 << 19, -(1 << 19)), 1 << 20, rounding_mode="trunc")


def float_bilinear(codes: Tensor, size: tuple[int, int], *, align_corners: bool) -> Tensor:
    """Places in float32, shares in steps of 1/2048, halves rounded up: XNNPACK's."""
    rows, columns = (_float_axis(have, want, align_corners) for have, want in zip(codes.shape[2:], size, strict=True))
    return (_mixed(codes, rows, columns, 1 << 11) + (1 << 21)) >> 22


def _mixed(codes: Tensor, rows: tuple[Tensor, ...], columns: tuple[Tensor, ...], one: int) -> Tensor:
    (top, bottom, down), (left, right, across) = rows, columns
    down = down[:, None]
    upper, lower = codes[:, :, top], codes[:, :, bottom]
    first = (upper[..., left] * (one - across) + upper[..., right] * across) * (one - down)
    return first + (lower[..., left] * (one - across) + lower[..., right] * across) * down


def fixed_places(have: int, want: int, align_corners: bool) -> tuple[Whole, Whole, Whole]:
    """Along one axis: the pixel before each place, the one behind it, and the share of the latter in steps of 1/1024."""
    if align_corners and want > 1:
        step = ((have - 1) * 1024 + (want - 1) // 2) // (want - 1)
    else:
        step = (have * 1024 + want // 2) // want
    places = np.arange(want, dtype=np.int64) * step
    if not align_corners:
        places = places + step // 2 - 512
    before = np.maximum(places, 0) // 1024
    return before, np.minimum((places + 1023) // 1024, have - 1), places - 1024 * before


def _fixed_axis(have: int, want: int, align_corners: bool) -> tuple[Tensor, ...]:
    return tuple(map(torch.from_numpy, fixed_places(have, want, align_corners)))


def _float_axis(have: int, want: int, align_corners: bool) -> tuple[Tensor, ...]:
    f = np.float32
    less = int(align_corners and want != 1)
    step = f(have - less) / f(want - less)
    places = np.arange(want, dtype=np.float32) * step
    places = places if align_corners else places + f(f(0.5) * step - f(0.5))
    places = np.clip(places, f(0), f(have - 1)).astype(np.float32)
    before = places.astype(np.int64)
    share = np.rint((places - before.astype(np.float32)) * f(2048)).astype(np.int64)
    return tuple(map(torch.from_numpy, (before, np.minimum(before + 1, have - 1), share)))
