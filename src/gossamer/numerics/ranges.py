"""Which range of real values a quantizer should cover: estimators fed batch by batch, and searches on whole weights.

An estimator is two pure functions: one that updates a Spread with a batch, and one that chooses from it. Values that share a
quantizer merge theirs, and a new method is one more row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gossamer.numerics.affine import Quantizer, clips_like, from_range, grid_from_range
from gossamer.numerics.formats import IntFormat, PerAxis, PerBlock, PerTensor
from gossamer.numerics.hqq import half_quadratic_bound, half_quadratic_ends
from gossamer.numerics.magnitude import near_one
from gossamer.numerics.power_of_two import power_of_two_bound, power_of_two_ends, power_of_two_range
from gossamer.numerics.powers import power_in_eighths
from gossamer.numerics.range_choice import entropy_range, full_range, least_error_range, percentile_range
from gossamer.numerics.spread import Spread, check_spread, extremes, histogram, mean_extremes, moving_extremes
from gossamer.registry import Registry

Update = Callable[[Spread, Tensor], Spread]
Choose = Callable[[Spread, IntFormat, bool], tuple[float, float]]


@dataclass(frozen=True, slots=True)
class RangeMethod:
    """update(state, batch) -> state; choose(state, format, symmetric) -> (low, high), for a non-empty finite state."""

    update: Update
    choose: Choose


range_methods: Registry[RangeMethod] = Registry("range method")


range_methods.add("min-max", source="Jacob et al. 2018, arXiv:1712.05877")(RangeMethod(extremes, full_range))
range_methods.add("moving average", source="Jacob et al. 2018, arXiv:1712.05877, section 3.1")(RangeMethod(moving_extremes, full_range))
range_methods.add(
    "mean rounding", source="Krishnamoorthi 2018, arXiv:1806.08342 (ranges of a few batches); differs: plain means of extremes"
)(RangeMethod(mean_extremes, full_range))
POWER_OF_TWO_SOURCE = "fixed-point numbers, scales of 2^-k: Gupta et al. 2015, arXiv:1502.02551"
range_methods.add("integerization", source=POWER_OF_TWO_SOURCE)(RangeMethod(extremes, power_of_two_range))
range_methods.add("percentile", source="McKinstry et al. 2018, arXiv:1809.04191; 99.99 %")(RangeMethod(histogram, percentile_range))
range_methods.add("entropy", source="Migacz 2017 (8-bit inference with TensorRT); Wu et al. 2020, arXiv:2004.09602")(
    RangeMethod(histogram, entropy_range)
)
range_methods.add("mse", source="objective of Banner et al. 2019, arXiv:1810.05723; grid search over a histogram")(
    RangeMethod(histogram, least_error_range)
)

BY_TOKENS = "auto"
range_methods.add(
    BY_TOKENS,
    source="as mse; for what linear layers read by tokens the error of their outputs, as Nagel et al. 2020, arXiv:2004.10568 (plan.token_ranges)",
)(RangeMethod(histogram, least_error_range))

ChooseWeight = Callable[[Tensor, IntFormat], Tensor]
weight_range_methods: Registry[ChooseWeight] = Registry("weight range method")
_POWER = 19  # eighths, of the errors that "mse" sums


@weight_range_methods.add("min-max", source="Jacob et al. 2018, arXiv:1712.05877")
def largest(rows: Tensor, fmt: IntFormat) -> Tensor:
    """max |w| of each row. Shapes: rows (N, K) -> (N,)."""
    return rows.abs().amax(1)


@weight_range_methods.add(
    "mse", source="objective of Banner et al. 2019, arXiv:1810.05723; norm 2.4 of Li et al. 2021, arXiv:2102.05426, as 2 + 3/8"
)
@near_one
def least_error(rows: Tensor, fmt: IntFormat, *, steps: int = 80) -> Tensor:
    """The clipping bound of each row with the least sum of |error|^2.375, over `steps` bounds down to a fifth of max |w|.

    Shapes: rows (N, K) -> (N,). Cost: `steps` passes over rows.
    """
    top = largest(rows, fmt)
    best, bound = torch.full_like(top, math.inf), top
    for share in torch.linspace(1.0, 0.2, steps).tolist():
        scale = (top * share / fmt.hi).clamp_min(torch.finfo(rows.dtype).tiny).unsqueeze(1)
        error = power_in_eighths((rows / scale).round_().clamp_(fmt.lo, fmt.hi).mul_(scale).sub_(rows).abs_(), _POWER).sum(1)
        better = error < best
        best, bound = torch.where(better, error, best), torch.where(better, top * share, bound)
    return bound


def choose_quantizer(state: Spread, fmt: IntFormat, method: str, *, symmetric: bool, what: str) -> Quantizer:
    """The quantizer of a value from its state.

    Raises: DataError for a state that saw nothing, NaN or infinity; `what` names the value.
    """
    check_spread(state, what)
    low, high = range_methods[method].choose(state, fmt, symmetric)
    return from_range(torch.tensor(low), torch.tensor(high), fmt, PerTensor(), symmetric=symmetric)


def fit_clamp(quantizer: Quantizer, low: float | None, high: float | None) -> Quantizer:
    """The same quantizer, with its scale a few roundings smaller where only then its codes clip like clamp(low, high)."""
    fitted = quantizer
    for _ in range(4):
        if clips_like(fitted, low, high):
            return fitted
        scale = torch.nextafter(torch.tensor(fitted.scale), torch.zeros(len(fitted.scale)))
        fitted = replace(fitted, scale=tuple(scale.tolist()))
    return quantizer


def choose_weight_quantizer(weight: Tensor, fmt: IntFormat, method: str, *, axis: int = 0) -> Quantizer:
    """Symmetric scales for each position of `axis`. Shape: weight any with that axis."""
    rows = weight.detach().movedim(axis, 0).flatten(1)
    bound = weight_range_methods[method](rows, fmt)
    return from_range(-bound, bound, fmt, PerAxis(axis), symmetric=True)


def choose_block_quantizer(weight: Tensor, fmt: IntFormat, method: str, *, size: int, axis: int = 1) -> Quantizer:
    """Scales for each run of `size` weights along `axis`: symmetric for a signed format, with zero points for an unsigned one.

    Shape: weight any with that axis. A shorter last run is searched as if zeros filled it.
    """
    moved = weight.detach().movedim(axis, -1)
    blocks = PerBlock(axis, size)
    scale, zero = choose_block_grid(in_blocks(moved, size), fmt, method)
    order = (*moved.shape[:-1], -1)
    scale, zero = (part.reshape(order).movedim(-1, axis).reshape(-1) for part in (scale, zero))
    return Quantizer(fmt, blocks, tuple(scale.tolist()), tuple(int(code) for code in zero.tolist()))


def in_blocks(weight: Tensor, size: int) -> Tensor:
    """Runs of the last axis as rows, zeros filling the last one of each. Shapes: (*, K) -> (N, size)."""
    return torch.nn.functional.pad(weight, (0, -weight.shape[-1] % size)).reshape(-1, size)


def choose_block_grid(rows: Tensor, fmt: IntFormat, method: str) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each row: symmetric for a signed format. Shapes: rows (N, K) -> (N,), (N,).

    The rows do not matter to each other, so that a weight can be gone through part by part.
    """
    if fmt.signed:
        bound = weight_range_methods[method](rows, fmt)
        return grid_from_range(-bound, bound, fmt, symmetric=True)
    return grid_from_range(*two_ended_methods[method](rows, fmt), fmt, symmetric=False)


ChooseEnds = Callable[[Tensor, IntFormat], tuple[Tensor, Tensor]]
two_ended_methods: Registry[ChooseEnds] = Registry("weight range method with zero points")


@two_ended_methods.add("min-max", source="Jacob et al. 2018, arXiv:1712.05877")
def lowest_and_highest(rows: Tensor, fmt: IntFormat) -> tuple[Tensor, Tensor]:
    """The extremes of each row, widened to hold 0. Shapes: rows (N, K) -> (N,), (N,)."""
    return rows.amin(1).clamp_max(0), rows.amax(1).clamp_min(0)


@two_ended_methods.add(
    "mse", source="objective of Banner et al. 2019, arXiv:1810.05723; norm 2.4 of Li et al. 2021, arXiv:2102.05426, as 2 + 3/8"
)
@near_one
def least_error_ends(rows: Tensor, fmt: IntFormat, *, steps: int = 40) -> tuple[Tensor, Tensor]:
    """The extremes of each row, both shrunk by the share with the least sum of |error|^2.375. Shapes: rows (N, K) -> (N,), (N,)."""
    low, high = lowest_and_highest(rows, fmt)
    best, found = torch.full_like(low, math.inf), torch.ones_like(low)
    for share in torch.linspace(1.0, 0.4, steps).tolist():
        scale = ((high - low) * share / (fmt.hi - fmt.lo)).clamp_min(torch.finfo(rows.dtype).tiny).unsqueeze(1)
        zero = (fmt.lo - low.unsqueeze(1) * share / scale).round_()
        sizes = (rows / scale).round_().add_(zero).clamp_(fmt.lo, fmt.hi).sub_(zero).mul_(scale).sub_(rows).abs_()
        error = power_in_eighths(sizes, _POWER).sum(1)
        better = error < best
        best, found = torch.where(better, error, best), torch.where(better, torch.full_like(found, share), found)
    return low * found, high * found


HQQ_SOURCE = "Badri & Shaji 2023, Half-Quadratic Quantization of Large Machine Learning Models (Mobius Labs; no arXiv number)"
weight_range_methods.add("hqq", source=HQQ_SOURCE)(half_quadratic_bound)
two_ended_methods.add("hqq", source=HQQ_SOURCE)(half_quadratic_ends)
weight_range_methods.add("integerization", source=POWER_OF_TWO_SOURCE)(power_of_two_bound)
two_ended_methods.add("integerization", source=POWER_OF_TWO_SOURCE)(power_of_two_ends)
