"""Which part of what was seen the codes should cover: choices of a range from a Spread.

Each is choose(state, format, symmetric) -> (low, high), for a non-empty finite state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from gossamer.numerics.formats import IntFormat
from gossamer.numerics.spread import BINS, Spread


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
    values, counts = _occupied(state)
    shrink = torch.linspace(1.0, 0.2, steps, dtype=torch.float64)
    one = torch.ones_like(shrink)
    best = (low, high)
    for down, up in ((shrink, shrink), (shrink, one), (one, shrink)):
        lows, highs = best[0] * down, best[1] * up
        error = _coding_error(values, counts, lows, highs, fmt, symmetric, power)
        choice = int(error.argmin())  # the first of equals: the widest
        best = (float(lows[choice]), float(highs[choice]))
    return best


def percentile_range(state: Spread, fmt: IntFormat, symmetric: bool, *, share: float = 0.9999) -> tuple[float, float]:
    """The range that leaves at most (1 - share) / 2 of the values beyond each end, or 1 - share of the sizes when symmetric.

    Source: McKinstry et al. 2018, arXiv:1809.04191 (percentiles of activations); Wu et al. 2020, arXiv:2004.09602.
    """
    if state.counts is None or state.low == state.high:
        return state.low, state.high
    values, counts = _occupied(state)
    half = math.ldexp(0.5, state.exponent)
    if symmetric:
        bound = _quantile(values.abs(), counts, share) + half
        return max(state.low, -bound), min(state.high, bound)
    tail = (1 - share) / 2
    low, high = _quantile(values, counts, tail) - half, _quantile(values, counts, 1 - tail) + half
    return max(state.low, low), min(state.high, high)


def entropy_range(state: Spread, fmt: IntFormat, symmetric: bool, *, steps: int = 40) -> tuple[float, float]:
    """The range whose coded values are distributed most like the values: least KL divergence over shrinking ranges.

    What lies beyond a range is counted in its outermost bins; a code's count is spread over the bins that it codes and that hold
    values. Searched along shrinking both ends together, then each end alone, over the bins of the histogram.
    Source: Migacz 2017 (8-bit inference with TensorRT), and Wu et al. 2020, arXiv:2004.09602; differs: asymmetric ranges.
    """
    low, high = min(state.low, 0.0), max(state.high, 0.0)
    if state.counts is None or low == high:
        return state.low, state.high
    values, counts = _occupied(state)
    best = (low, high)
    for candidates in _directions(torch.linspace(1.0, 0.1, steps, dtype=torch.float64), symmetric):
        ranges = [(best[0] * down, best[1] * up) for down, up in candidates]
        losses = [_divergence(values, counts, lowest, highest, fmt.hi - fmt.lo + 1) for lowest, highest in ranges]
        best = ranges[losses.index(min(losses))]
    return best


def _directions(shrink: Tensor, symmetric: bool) -> Iterator[list[tuple[float, float]]]:
    shares = shrink.tolist()
    yield [(share, share) for share in shares]
    if not symmetric:
        yield [(share, 1.0) for share in shares]
        yield [(1.0, share) for share in shares]


def _divergence(values: Tensor, counts: Tensor, low: float, high: float, codes: int) -> float:
    """KL divergence of the clipped distribution from the coded one. Shapes: (B,), (B,)."""
    inside = (values >= low) & (values <= high)
    if not bool(inside.any()):
        return math.inf
    kept = counts[inside].clone()
    kept[0] += counts[values < low].sum()
    kept[-1] += counts[values > high].sum()
    own = counts[inside]  # what is clipped does not go into the coded distribution: that is what makes clipping cost
    code = ((values[inside] - low) / (high - low) * codes).long().clamp(0, codes - 1)
    total = torch.zeros(codes, dtype=torch.float64).index_add_(0, code, own)
    bins = torch.zeros(codes, dtype=torch.float64).index_add_(0, code, torch.ones_like(own))
    coded = (total / bins.clamp_min(1))[code]
    reference, coded = kept / kept.sum(), coded / coded.sum()
    return float((reference * (reference / coded).log()).sum())


def _occupied(state: Spread) -> tuple[Tensor, Tensor]:
    """Middles (B,) of the bins that hold values, in order, within the extremes; and their counts (B,)."""
    assert state.counts is not None
    seen = state.counts.nonzero().reshape(-1)
    values = ((seen - BINS // 2).to(torch.float64) + 0.5) * math.ldexp(1.0, state.exponent)
    return values.clamp(state.low, state.high), state.counts[seen]  # a bin can reach beyond the extremes


def _quantile(values: Tensor, counts: Tensor, share: float) -> float:
    """The smallest value that at least `share` of the counts do not exceed."""
    values, order = values.sort()
    reached = counts[order].cumsum(0)
    place = int(torch.searchsorted(reached, share * float(reached[-1]) * (1 - 1e-12)))
    return float(values[min(place, len(values) - 1)])


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
