"""Which range of real values a quantizer should cover: estimators fed batch by batch, and searches on whole weights.

An estimator is pure functions on a small frozen state, so that calibration is flat in memory, values that share a
quantizer merge theirs, and a new method (percentile, entropy, moving average) is one more row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gossamer.errors import DataError
from gossamer.numerics.affine import Quantizer, clips_like, from_range
from gossamer.numerics.formats import IntFormat, PerAxis, PerTensor
from gossamer.registry import Registry

BINS = 2048  # of a histogram, half of them for negative values
SAMPLES = 16384  # elements of one batch that enter a histogram
_LOWEST_EXPONENT = -140


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """What is known of a value: extremes over everything seen, and counts of a sample of it.

    Bin b of `counts` (BINS,) holds [(b - BINS/2) * 2^exponent, (b + 1 - BINS/2) * 2^exponent): bins of different
    spreads nest, so merging loses nothing but resolution. Empty where an estimator needs no histogram.
    """

    low: float = math.inf
    high: float = -math.inf
    counts: Tensor | None = None
    exponent: int = _LOWEST_EXPONENT

    @property
    def is_empty(self) -> bool:
        """Whether nothing was seen yet."""
        return self.low > self.high

    @property
    def is_finite(self) -> bool:
        """Whether neither NaN nor infinity was seen."""
        return math.isfinite(self.low) and math.isfinite(self.high)


Update = Callable[[Spread, Tensor], Spread]
Choose = Callable[[Spread, IntFormat, bool], tuple[float, float]]


@dataclass(frozen=True, slots=True)
class RangeMethod:
    """update(state, batch) -> state; choose(state, format, symmetric) -> (low, high), for a non-empty finite state."""

    update: Update
    choose: Choose


range_methods: Registry[RangeMethod] = Registry("range method")


def merge(left: Spread, right: Spread) -> Spread:
    """The state after seeing what both saw."""
    exponent = max(left.exponent, right.exponent)
    parts = [_coarser(side, exponent) for side in (left, right)]
    counts = None if all(part is None for part in parts) else sum(part for part in parts if part is not None)
    assert not isinstance(counts, int)
    return Spread(_least(left.low, right.low), _most(left.high, right.high), counts, exponent)


def extremes(state: Spread, batch: Tensor) -> Spread:
    """Lowest and highest value seen. NaN stays NaN."""
    if batch.numel() == 0:
        return state
    low, high = torch.aminmax(_in_memory_order(batch.detach()))
    return Spread(_least(state.low, float(low)), _most(state.high, float(high)), state.counts, state.exponent)


def histogram(state: Spread, batch: Tensor) -> Spread:
    """Extremes of everything, counts of at most SAMPLES evenly spaced elements."""
    seen = extremes(Spread(), batch)
    if seen.is_empty or not seen.is_finite:
        return merge(state, seen)
    exponent = max(_exponent_for(seen), state.exponent)
    flat = _spaced(_in_memory_order(batch.detach()))
    limit = math.ldexp(BINS // 2, exponent)
    counts = torch.histc(flat.to(torch.float32), BINS, -limit, limit)
    return merge(state, Spread(seen.low, seen.high, counts.to(torch.float64), exponent))


def full_range(state: Spread, fmt: IntFormat, symmetric: bool) -> tuple[float, float]:
    """The extremes themselves."""
    return state.low, state.high


def least_error_range(state: Spread, fmt: IntFormat, symmetric: bool, *, power: float = 2.4, steps: int = 40) -> tuple[float, float]:
    """The range with the least sum of |rounding and clipping error|^power over the histogram.

    Searched along shrinking both ends together, then each end alone; never worse than the full range on the histogram.
    Cost: about 3 * steps passes over the histogram.
    Source: objective of Banner et al. 2019 (ACIQ), arXiv:1810.05723; differs: grid search, no fitted distribution.
    """
    low, high = min(state.low, 0.0), max(state.high, 0.0)
    if state.counts is None or low == high:
        return state.low, state.high
    seen = state.counts.nonzero().reshape(-1)
    values = ((seen - BINS // 2).to(torch.float64) + 0.5) * math.ldexp(1.0, state.exponent)
    values = values.clamp(low, high)  # a bin can reach beyond the extremes
    shrink = torch.linspace(1.0, 0.2, steps, dtype=torch.float64)
    one = torch.ones_like(shrink)
    best = (low, high)
    for down, up in ((shrink, shrink), (shrink, one), (one, shrink)):
        lows, highs = best[0] * down, best[1] * up
        error = _coding_error(values, state.counts[seen], lows, highs, fmt, symmetric, power)
        choice = int(error.argmin())  # the first of equals: the widest
        best = (float(lows[choice]), float(highs[choice]))
    return best


range_methods.add("min-max", source="Jacob et al. 2018, arXiv:1712.05877")(RangeMethod(extremes, full_range))
range_methods.add("mse", source="objective of Banner et al. 2019, arXiv:1810.05723; grid search over a histogram")(
    RangeMethod(histogram, least_error_range)
)

ChooseWeight = Callable[[Tensor, IntFormat], Tensor]
weight_range_methods: Registry[ChooseWeight] = Registry("weight range method")


@weight_range_methods.add("min-max", source="Jacob et al. 2018, arXiv:1712.05877")
def largest(rows: Tensor, fmt: IntFormat) -> Tensor:
    """max |w| of each row. Shapes: rows (N, K) -> (N,)."""
    return rows.abs().amax(1)


@weight_range_methods.add("mse", source="objective of Banner et al. 2019, arXiv:1810.05723; norm 2.4 of Li et al. 2021, arXiv:2102.05426")
def least_error(rows: Tensor, fmt: IntFormat, *, power: float = 2.4, steps: int = 80) -> Tensor:
    """The clipping bound of each row with the least sum of |error|^power, over `steps` bounds down to a fifth of max |w|.

    Shapes: rows (N, K) -> (N,). Cost: `steps` passes over rows.
    """
    top = largest(rows, fmt)
    best, bound = torch.full_like(top, math.inf), top
    for share in torch.linspace(1.0, 0.2, steps).tolist():
        scale = (top * share / fmt.hi).clamp_min(torch.finfo(rows.dtype).tiny).unsqueeze(1)
        error = (rows / scale).round_().clamp_(fmt.lo, fmt.hi).mul_(scale).sub_(rows).abs_().pow_(power).sum(1)
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


def check_spread(state: Spread, what: str) -> None:
    """Raise DataError for a state that saw nothing, NaN or infinity."""
    if state.is_empty:
        raise DataError(f"calibration saw no number of {what}; give data that reaches it.")
    if not state.is_finite:
        raise DataError(
            f"{what} is NaN or infinite on the calibration data; check the weights and the preprocessing of the data before quantizing."
        )


def _coding_error(values: Tensor, counts: Tensor, lows: Tensor, highs: Tensor, fmt: IntFormat, symmetric: bool, power: float) -> Tensor:
    """Sum of counts * |values - coded values|^power for each candidate range. Shapes: (B,), (B,), (S,), (S,) -> (S,)."""
    if symmetric:
        half = fmt.hi if fmt.signed else (fmt.hi - fmt.lo) / 2
        scale = torch.maximum(-lows, highs) / half
        zero = torch.zeros_like(scale) if fmt.signed else torch.full_like(scale, (fmt.hi + fmt.lo + 1) // 2)
    else:
        scale = (highs - lows) / (fmt.hi - fmt.lo)
        zero = torch.clamp(torch.round(fmt.lo - lows / scale), fmt.lo, fmt.hi)
    scale, zero = scale.unsqueeze(1), zero.unsqueeze(1)
    codes = torch.clamp(torch.round(values / scale) + zero, fmt.lo, fmt.hi)
    error = ((codes - zero) * scale - values).abs_()
    return (error.square_() if power == 2 else error.pow_(power)) @ counts


def _exponent_for(state: Spread) -> int:
    """The smallest exponent whose bins cover the extremes."""
    bound = max(-state.low, state.high)
    if bound <= 0:
        return _LOWEST_EXPONENT
    return max(math.frexp(bound / (BINS // 2))[1], _LOWEST_EXPONENT)


def _coarser(state: Spread, exponent: int) -> Tensor | None:
    """Counts with bins of 2^exponent, at least as wide as they are."""
    counts = state.counts
    for _ in range(min(exponent - state.exponent, BINS.bit_length())):
        if counts is None:
            break
        quarter = BINS // 4
        counts = torch.nn.functional.pad(counts.reshape(-1, 2).sum(1), (quarter, quarter))
    return counts


def _in_memory_order(batch: Tensor) -> Tensor:
    """All elements as one axis, without a copy where channels are first or last in memory."""
    if batch.dim() == 4 and batch.is_contiguous(memory_format=torch.channels_last):
        batch = batch.permute(0, 2, 3, 1)
    return batch.reshape(-1)


def _spaced(flat: Tensor) -> Tensor:
    """At most SAMPLES elements at even distance, a distance that shares no factor with the length and so meets all rows and channels."""
    step = -(-flat.numel() // SAMPLES)
    while step > 1 and math.gcd(step, flat.numel()) != 1:
        step += 1
    return flat[::step]


def _least(left: float, right: float) -> float:
    """min that keeps NaN."""
    return left if math.isnan(left) else right if math.isnan(right) else min(left, right)


def _most(left: float, right: float) -> float:
    """max that keeps NaN."""
    return left if math.isnan(left) else right if math.isnan(right) else max(left, right)
