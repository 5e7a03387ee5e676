"""Confidence intervals for accuracies and for differences of accuracies measured on the same samples.

Closed forms where each sample is right or wrong (Wilson, Newcombe), the bootstrap for every other metric.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import torch
from torch import Tensor

from gossamer.errors import ConfigError, DataError

Interval = tuple[float, float]
LEVEL = 0.95
RESAMPLES = 1000


def wilson(right: int, samples: int, *, level: float = LEVEL) -> Interval:
    """Interval of a share, of which `right` of `samples` were seen. Stays inside [0, 1]; sensible at 0 and at all.

    Raises: ConfigError when right is not in [0, samples], samples < 1, or level is not in (0, 1).
    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22.
    """
    _check_counts(right, samples)
    z = _normal_quantile(level)
    share = right / samples
    shrink = 1 + z * z / samples
    center = (share + z * z / (2 * samples)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples))
    low = 0.0 if right == 0 else min(max(0.0, center - half), share)  # rounding must not push the share out of its interval
    high = 1.0 if right == samples else max(min(1.0, center + half), share)
    return low, high


def newcombe(both: int, only_first: int, only_second: int, neither: int, *, level: float = LEVEL) -> Interval:
    """Interval of (share of the first) - (share of the second), both seen on the same samples.

    The four counts say how many samples both got right, only the first, only the second, and neither.
    Stays inside [-1, 1]; agreement between the two makes it narrower.
    Raises: ConfigError for a negative count, no sample at all, or a level outside (0, 1).
    Source: Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based
    on paired data", Statistics in Medicine 17, method 10 (square-and-add with a corrected correlation).
    """
    counts = (both, only_first, only_second, neither)
    samples = sum(counts)
    if min(counts) < 0:
        raise ConfigError("counts", counts, "not negative")
    first, second = both + only_first, both + only_second
    low_1, high_1 = wilson(first, samples, level=level)
    low_2, high_2 = wilson(second, samples, level=level)
    share_1, share_2 = first / samples, second / samples
    phi = _corrected_phi(both, only_first, only_second, neither)
    difference = (only_first - only_second) / samples
    down = _joint(share_1 - low_1, high_2 - share_2, phi)
    up = _joint(high_1 - share_1, share_2 - low_2, phi)
    return max(-1.0, difference - down), min(1.0, difference + up)


def _joint(first: float, second: float, phi: float) -> float:
    """Length of the difference of two distances whose correlation is phi."""
    return math.sqrt(max(0.0, first * first - 2 * phi * first * second + second * second))


def _corrected_phi(both: int, only_first: int, only_second: int, neither: int) -> float:
    """Correlation of right and wrong between the two; a positive one is corrected for continuity."""
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    if margins == 0:
        return 0.0
    surplus: float = both * neither - only_first * only_second
    if surplus > 0:
        surplus = max(surplus - (both + only_first + only_second + neither) / 2, 0.0)
    return surplus / math.sqrt(margins)


def bootstrap(
    statistics: Callable[[Tensor], Sequence[float]], samples: int, *, seed: int, resamples: int = RESAMPLES, level: float = LEVEL
) -> tuple[Interval, ...]:
    """Percentile intervals of several statistics at once, from samples drawn with replacement.

    `statistics` takes the positions drawn, (samples,) int64, and returns one number per statistic; computing a
    difference inside it makes a paired interval. The same seed gives the same intervals. One sample alone gives
    intervals of no width: there is nothing to draw from.
    Raises: ConfigError for samples or resamples < 1; DataError when a statistic is not finite on some draw.
    Source: Efron 1979, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7.
    """
    if samples < 1:
        raise ConfigError("samples", samples, "at least 1")
    if resamples < 1:
        raise ConfigError("resamples", resamples, "at least 1")
    _check_level(level)
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(resamples):
        row = tuple(statistics(torch.randint(0, samples, (samples,), generator=generator)))
        if not all(map(math.isfinite, row)):
            raise DataError(f"the metric gives {row} on samples drawn with replacement; it must be finite for every selection of samples.")
        rows.append(row)
    tail = (1 - level) / 2
    drawn = torch.tensor(rows, dtype=torch.float64)
    low, high = torch.quantile(drawn, torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
    return tuple(zip(low.tolist(), high.tolist(), strict=True))


def bootstrap_interval(
    statistic: Callable[[Tensor], float], samples: int, *, seed: int, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval:
    """Percentile interval of one statistic of the positions drawn; see `bootstrap`."""
    return bootstrap(lambda drawn: (statistic(drawn),), samples, seed=seed, resamples=resamples, level=level)[0]


def paired_bootstrap_interval(
    first: Callable[[Tensor], float],
    second: Callable[[Tensor], float],
    samples: int,
    *,
    seed: int,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Percentile interval of first - second, both computed on the same draws; see `bootstrap`."""
    return bootstrap_interval(lambda drawn: first(drawn) - second(drawn), samples, seed=seed, resamples=resamples, level=level)


def _normal_quantile(level: float) -> float:
    _check_level(level)
    return NormalDist().inv_cdf((1 + level) / 2)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ConfigError("level", level, "a share in (0, 1)")


def _check_counts(right: int, samples: int) -> None:
    if samples < 1:
        raise ConfigError("samples", samples, "at least 1")
    if not 0 <= right <= samples:
        raise ConfigError("right", right, f"a count in [0, {samples}]")
