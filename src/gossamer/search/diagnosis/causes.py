"""Why coding a tensor hurts: rules on what was seen of it, in order; the first that holds names the cause.

Thresholds are about what costs bits: a factor of 8 in range is 3 of 8 bits. Sources of the effects: Nagel et al. 2019,
arXiv:1906.04721 (spread of channels, depthwise layers); Dettmers et al. 2022, arXiv:2208.07339 (outlier channels).
"""

from __future__ import annotations

from collections.abc import Callable

from gossamer.registry import Registry
from gossamer.search.diagnosis.evidence import BIAS_STEPS, Evidence
from gossamer.search.diagnosis.findings import Cause

OVERFLOWING = 0.5  # share of a weight's error that channels with such biases make
SATURATED = 0.005  # share of the numbers beyond the codes
CLIPPING = 0.5  # share of the error that clipping makes
SPREAD = 8.0  # largest channel over the middle one: the middle one loses 3 bits
FEW = 0.1  # share of channels that can be called outliers
WIDE = 4.0  # range of the codes over the range of 99.9 % of the numbers: 2 bits lost
ROUNDING = "rounding"

Rule = Callable[[Evidence], Cause | None]
rules: Registry[Rule] = Registry("cause")


def find_cause(seen: Evidence) -> Cause:
    """The first rule that holds; plain rounding where none does."""
    for entry in rules:
        cause = entry.value(seen)
        if cause is not None:
            return cause
    ratio = seen.split.signal / seen.split.noise if seen.split.noise else 0.0
    return Cause(ROUNDING, "its numbers fill the codes evenly; what is lost is lost by rounding", {"signal_to_noise": ratio})


@rules.add("bias overflow", source="int32 accumulators, Jacob et al. 2018, arXiv:1712.05877")
def bias_overflow(seen: Evidence) -> Cause | None:
    """Biases that take all of int32, so that the scale of their weights had to grow, where that makes most of the error."""
    bias = seen.bias
    if bias.code < BIAS_STEPS or bias.share < OVERFLOWING:
        return None
    return Cause(
        "bias overflow",
        f"biases take {bias.code:.3g} steps of int32, so scales of weights had to grow (channel {bias.channel}: {bias.growth:.3g} times what "
        f"its weights need), which makes {bias.share:.0%} of the error",
        {"bias_code": bias.code, "growth": bias.growth, "channel": float(bias.channel), "share": bias.share},
    )


@rules.add("saturation", source="clipping against rounding, Banner et al. 2019, arXiv:1810.05723")
def saturation(seen: Evidence) -> Cause | None:
    """Numbers beyond the codes, which make most of the error."""
    split = seen.split
    if split.clipped_share < SATURATED or split.clipping_share < CLIPPING:
        return None
    return Cause(
        "saturation",
        f"{split.clipped_share:.2%} of the numbers lie beyond the codes and make {split.clipping_share:.0%} of the error",
        {"clipped_share": split.clipped_share, "clipping_share": split.clipping_share},
    )


@rules.add("outlier channel", source="Dettmers et al. 2022, arXiv:2208.07339")
def outlier_channel(seen: Evidence) -> Cause | None:
    """A few channels much larger than the others, all with one scale."""
    spread = _spread(seen)
    if spread is None or spread[2] > FEW:
        return None
    ratio, channel, share = spread
    return Cause(
        "outlier channel",
        f"channel {channel} is {ratio:.3g} times as large as the middle one, and all share one scale",
        {"ratio": ratio, "channel": float(channel), "large_share": share},
    )


@rules.add("depthwise spread", source="Nagel et al. 2019, arXiv:1906.04721, section 3")
def depthwise_spread(seen: Evidence) -> Cause | None:
    """Channels of a depthwise layer of very different sizes, all with one scale."""
    return _spread_cause("depthwise spread", seen) if seen.depthwise else None


@rules.add("channel spread", source="Nagel et al. 2019, arXiv:1906.04721, section 3")
def channel_spread(seen: Evidence) -> Cause | None:
    """The same of any other layer."""
    return _spread_cause("channel spread", seen)


@rules.add("range", source="Nagel et al. 2021, arXiv:2106.08295, section 3")
def wide_range(seen: Evidence) -> Cause | None:
    """Codes that reach much farther than nearly all numbers."""
    width, inner = seen.codes[1] - seen.codes[0], seen.inner[1] - seen.inner[0]
    if not seen.per_tensor or inner <= 0 or width / inner < WIDE:
        return None
    return Cause(
        "range",
        f"codes reach {width / inner:.3g} times as far as 99.9 % of the numbers, [{seen.inner[0]:.3g}, {seen.inner[1]:.3g}] of "
        f"[{seen.codes[0]:.3g}, {seen.codes[1]:.3g}]",
        {"ratio": width / inner, "code_low": seen.codes[0], "code_high": seen.codes[1], "low": seen.inner[0], "high": seen.inner[1]},
    )


def _spread(seen: Evidence) -> tuple[float, int, float] | None:
    """Largest channel over the middle one, which that is, and the share of channels near it; None within SPREAD."""
    sizes = seen.channel_sizes[seen.channel_sizes > 0]
    if not seen.per_tensor or len(sizes) < 2:
        return None
    middle, largest = float(sizes.median()), float(sizes.max())
    if largest < SPREAD * middle:
        return None
    large = int((sizes > SPREAD / 2 * middle).sum())
    few = 0.0 if large == 1 else large / len(sizes)
    return largest / middle, int(seen.channel_sizes.argmax()), few


def _spread_cause(label: str, seen: Evidence) -> Cause | None:
    spread = _spread(seen)
    if spread is None:
        return None
    ratio, channel, share = spread
    return Cause(
        label,
        f"the largest channel ({channel}) is {ratio:.3g} times the middle one, {share:.0%} are large, and all share one scale",
        {"ratio": ratio, "channel": float(channel), "large_share": share},
    )
