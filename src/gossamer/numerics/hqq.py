"""Scales and zero points that make most rounding errors small and let a few weights miss: half-quadratic quantization, without data.

Source: Badri & Shaji 2023 (Half-Quadratic Quantization of Large Machine Learning Models, Mobius Labs). Differs: zero points are
whole codes, as integer kernels and a code for 0 ask for; the scale is fitted along with them; errors are counted in code steps,
so that weights of any size are treated alike; the power is 0.75 (theirs: 0.7), which square roots give exactly; it starts where the squared
error is least, and each row keeps the best grid that it passed, so none ends worse than rounding to nearest over its whole range.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.numerics.affine import SMALLEST_SCALE
from gossamer.numerics.formats import IntFormat
from gossamer.numerics.magnitude import near_one
from gossamer.numerics.powers import power_in_eighths

POWER = 0.75  # of the errors that are summed: below 1, many small errors and a few large ones are preferred to all middling
STEPS = 20
SHARES = (1.0, 0.92, 0.84, 0.76, 0.68, 0.6)  # of the whole range's scale, tried as starts
FIRST_WEIGHT, LAST_WEIGHT = 2.0, 50.0  # of the quadratic term; the less it weighs, the more errors count as outliers


@near_one
def half_quadratic_bound(rows: Tensor, fmt: IntFormat) -> Tensor:
    """The bound of each row's symmetric range for a signed format. Shapes: rows (N, K) -> (N,) in float64.

    Cost: about 30 passes over rows, and no data.
    """
    scale = rows.abs().amax(1, keepdim=True) / fmt.hi
    found, _ = _search(rows, scale, torch.zeros_like(scale), fmt, fit_zero=False)
    return found.to(torch.float64) * fmt.hi


@near_one
def half_quadratic_ends(rows: Tensor, fmt: IntFormat) -> tuple[Tensor, Tensor]:
    """The lowest and highest value of each row's range. Shapes: rows (N, K) -> (N,), (N,) in float64; 0 lies between them."""
    low, high = rows.amin(1, keepdim=True).clamp_max(0), rows.amax(1, keepdim=True).clamp_min(0)
    scale = (high - low) / (fmt.hi - fmt.lo)
    zero = (fmt.lo - low / _above_zero(scale)).round_().clamp_(fmt.lo, fmt.hi)
    found, zero = (part.to(torch.float64) for part in _search(rows, scale, zero, fmt, fit_zero=True))
    return (fmt.lo - zero) * found, (fmt.hi - zero) * found


def lp_error(rows: Tensor, scale: Tensor, zero: Tensor, fmt: IntFormat) -> Tensor:
    """Sum of |rounding error|^0.75 of each row. Shapes: rows (N, K), scale and zero (N, 1) -> (N,)."""
    return _power(_rounded(rows, scale, zero, fmt).mul_(scale).sub_(rows).abs_()).sum(1)


def _search(rows: Tensor, scale: Tensor, zero: Tensor, fmt: IntFormat, *, fit_zero: bool) -> tuple[Tensor, Tensor]:
    """The grid of each row with the least lp_error among those that the alternation passes. Shapes: (N, K), (N, 1) -> (N,), (N,)."""
    best_scale, best_zero = _above_zero(scale), zero
    best = lp_error(rows, best_scale, zero, fmt).unsqueeze(1)
    scale = _least_squares(rows, best_scale, zero, fmt)
    for step in range(STEPS + 1):
        steps = _rounded(rows, scale, zero, fmt)
        errors = (rows / scale).sub_(steps)  # in steps
        size = errors.abs()
        powers = _power(size)
        total = powers.sum(1, keepdim=True) * _power(scale)
        better = total < best
        best = torch.where(better, total, best)
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
        if step == STEPS:
            break
        weight = FIRST_WEIGHT * (LAST_WEIGHT / FIRST_WEIGHT) ** (step / STEPS)
        # the generalised soft threshold of the lp norm: this part of an error is taken for an outlier's
        outlying = powers.div_(size.clamp_min(1e-6)).div_(-weight).add_(size).relu_().copysign_(errors)
        target = rows - outlying.mul_(scale)
        if fit_zero:
            steps = steps.add_(zero)
            zero = (steps - target / scale).mean(1, keepdim=True).round_().clamp_(fmt.lo, fmt.hi)
            steps.sub_(zero)
        scale = _fitted(target, steps, scale)
    return best_scale.squeeze(1), best_zero.squeeze(1)


def _least_squares(rows: Tensor, scale: Tensor, zero: Tensor, fmt: IntFormat) -> Tensor:
    """The scale among some shares of the given one with the least squared error: a start in a better valley than the whole range."""
    best, found = torch.full_like(scale, torch.inf), scale
    for share in SHARES:
        tried = scale * share
        error = _rounded(rows, tried, zero, fmt).mul_(tried).sub_(rows).square_().sum(1, keepdim=True)
        found = torch.where(error < best, tried, found)
        best = torch.minimum(error, best)
    return torch.where(found >= SMALLEST_SCALE, found, scale)


def _rounded(rows: Tensor, scale: Tensor, zero: Tensor, fmt: IntFormat) -> Tensor:
    """Codes less zero points: whole numbers of scale steps. Computed as `numerics.affine.quantize` does."""
    return (rows / scale).round_().add_(zero).clamp_(fmt.lo, fmt.hi).sub_(zero)


def _power(sizes: Tensor) -> Tensor:
    return power_in_eighths(sizes, round(8 * POWER))


def _fitted(target: Tensor, steps: Tensor, scale: Tensor) -> Tensor:
    """The scale of each row with the least squared error; the old one where no step is taken or no quantizer could hold it."""
    fitted = (steps * target).sum(1, keepdim=True) / steps.square().sum(1, keepdim=True)
    return torch.where(torch.isfinite(fitted) & (fitted >= SMALLEST_SCALE), fitted, scale)


def _above_zero(scale: Tensor) -> Tensor:
    return scale.clamp_min(torch.finfo(scale.dtype).tiny)
