"""Rounding to codes whose scale and zero point learn: the forward pass of affine.fake_quantize with gradients for all three.

With z the zero point and [lo, hi] the codes, y = s * (clamp(round(x / s) + z, lo, hi) - z) has

    dy/dx = 1 inside the range, 0 outside
    dy/ds = round(x / s) - x / s inside, lo - z below, hi - z above
    dy/dz = 0 inside, -s outside

where the gradient of round is taken to be 1 (straight-through). LSQ+ learns the offset -s * z in real numbers and folds it into
biases; targets here take whole zero points only, so z is rounded where it is used, and its gradient passes straight through, too.

Source: Esser et al. 2020 (LSQ), arXiv:1902.08153; Bhalgat et al. 2020 (LSQ+), arXiv:2004.09576.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.numerics.formats import IntFormat


def learned_quantize(x: Tensor, scale: Tensor, zero: Tensor, fmt: IntFormat) -> Tensor:
    """Round x to the values of codes; gradients flow to x, scale and zero.

    Shapes: scale and zero broadcast against x. The result is float32.
    zero      the zero point that is learned; its nearest code is used

    Left out is the paper's factor on the gradient of scales: it balances plain gradient steps, and cancels under Adam (train.qat).
    """
    result: Tensor = _LearnedRounding.apply(x, scale, zero, (fmt.lo, fmt.hi))  # type: ignore[no-untyped-call]
    return result


class _LearnedRounding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, limits: tuple[int, int]) -> Tensor:
        zero = zero.round().clamp(*limits)
        ctx.save_for_backward(x, scale, zero)
        ctx.limits = limits
        codes = torch.clamp(torch.round(x.float() / scale) + zero, *limits)
        return (codes - zero) * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, zero = ctx.saved_tensors
        (lo, hi), (grad,) = ctx.limits, grads
        levels = x.float() / scale
        below, above = levels < lo - zero, levels > hi - zero
        outside = below | above
        to_x = grad.masked_fill(outside, 0.0).to(x.dtype)
        to_scale = to_zero = None
        if ctx.needs_input_grad[1]:
            slope = torch.round(levels).sub_(levels)
            slope = torch.where(below, lo - zero, torch.where(above, hi - zero, slope))
            to_scale = (slope.mul_(grad)).sum_to_size(scale.shape)
        if ctx.needs_input_grad[2]:
            to_zero = grad.masked_fill(~outside, 0.0).mul_(-scale).sum_to_size(zero.shape)
        return to_x, to_scale, to_zero, None
