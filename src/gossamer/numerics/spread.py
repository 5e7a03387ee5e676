"""What calibration remembers of a value: pure functions on a small frozen state, so that memory does not grow with the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.errors import DataError

BINS = 2048  # of a histogram, half of them for negative values
SAMPLES = 16384  # elements of one batch that enter a histogram
_LOWEST_EXPONENT = -140
_LEAST_NORMAL = -126  # exponents above it and their inverses are float32 numbers


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """What is known of a value: extremes over everything seen, and counts of a sample of it.

    Bin b of `counts` (BINS,) holds [(b - BINS/2) * 2^exponent, (b + 1 - BINS/2) * 2^exponent): bins of different
    spreads nest, so merging loses nothing but resolution. Empty where an estimator needs no histogram.
    `samples`: how many the means of an estimator that averages were taken over.
    """

    low: float = math.inf
    high: float = -math.inf
    counts: Tensor | None = None
    exponent: int = _LOWEST_EXPONENT
    samples: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing was seen yet."""
        return self.low > self.high

    @property
    def is_finite(self) -> bool:
        """Whether neither NaN nor infinity was seen."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def merge(left: Spread, right: Spread) -> Spread:
    """The state after seeing what both saw."""
    exponent = max(left.exponent, right.exponent)
    one, other = _coarser(left, exponent), _coarser(right, exponent)
    counts = one if other is None else other if one is None else one + other
    return Spread(_least(left.low, right.low), _most(left.high, right.high), counts, exponent, left.samples + right.samples)


def extremes(state: Spread, batch: Tensor) -> Spread:
    """Lowest and highest value seen. NaN stays NaN."""
    if batch.numel() == 0:
        return state
    low, high = torch.aminmax(_in_memory_order(batch.detach()))
    return Spread(_least(state.low, float(low)), _most(state.high, float(high)), state.counts, state.exponent)


def moving_extremes(state: Spread, batch: Tensor, *, momentum: float = 0.9) -> Spread:
    """Exponential moving averages of each batch's extremes: momentum * known + (1 - momentum) * new. Later batches count more.

    Source: Jacob et al. 2018, arXiv:1712.05877, section 3.1; differs: one batch of a hundred samples moves it more than a step of training.
    """
    seen = extremes(Spread(), batch)
    if state.is_empty or seen.is_empty:
        return merge(state, seen)
    low = momentum * state.low + (1 - momentum) * seen.low
    high = momentum * state.high + (1 - momentum) * seen.high
    return Spread(low, high, state.counts, state.exponent)


def mean_extremes(state: Spread, batch: Tensor) -> Spread:
    """Means, over all samples seen, of each sample's lowest and highest value: one wild sample of many moves the range little.

    Shapes: batch (N, ...); a tensor without axes is one sample. Batches of other sizes give the same result.
    """
    if batch.numel() == 0:
        return state
    rows = batch.detach().reshape(batch.shape[0] if batch.dim() else 1, -1).to(torch.float64)
    low, high = torch.aminmax(rows, dim=1)
    total = state.samples + len(rows)
    before = (0.0, 0.0) if state.is_empty else (state.low * state.samples, state.high * state.samples)
    return Spread((before[0] + float(low.sum())) / total, (before[1] + float(high.sum())) / total, samples=total)


def histogram(state: Spread, batch: Tensor) -> Spread:
    """Extremes of everything, counts of at most SAMPLES evenly spaced elements."""
    seen = extremes(Spread(), batch)
    if seen.is_empty or not seen.is_finite:
        return merge(state, seen)
    exponent = max(_exponent_for(seen), state.exponent)
    flat = _spaced(_in_memory_order(batch.detach()))
    # exact in the value's own precision: a multiplication by a power of two, and whole numbers up to BINS
    wide = flat if flat.dtype == torch.float32 and exponent > _LEAST_NORMAL else flat.to(torch.float64)
    # floor before the offset is added: a number next to the edge of a bin must not be rounded across it
    bins = (wide * math.ldexp(1.0, -exponent)).floor_().add_(BINS // 2).clamp_(0, BINS - 1)
    counts = torch.bincount(bins.to(torch.int32), minlength=BINS)
    return merge(state, Spread(seen.low, seen.high, counts.to(torch.float64), exponent))


def check_spread(state: Spread, what: str) -> None:
    """Raise DataError for a state that saw nothing, NaN or infinity."""
    if state.is_empty:
        raise DataError(f"calibration saw no number of {what}; give data that reaches it.")
    if not state.is_finite:
        raise DataError(
            f"{what} is NaN or infinite on the calibration data; check the weights and the preprocessing of the data before quantizing."
        )


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
