"""The next share of channels to remove, found between what was too slow and what was too inaccurate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

MOST = 0.9  # never remove more than this share at once
STEP = 0.04  # two ratios closer than this are the same


@dataclass(frozen=True, slots=True)
class Tried:
    """A ratio and how its verified artifact stands: small and fast enough, accurate enough."""

    removed_ratio: float
    fast_enough: bool
    accurate_enough: bool


def next_ratio(tried: Sequence[Tried], predicted: Callable[[float], bool], *, push: bool) -> float | None:
    """The ratio to try next, or None when nothing more can be gained.

    predicted  whether a ratio should be small and fast enough, from the costs measured so far
    push       go on when everything is met, since the user set no limit on size or speed

    Accuracy is taken to fall, and speed to rise, with the ratio.
    """
    if not tried:
        return 0.0
    met = [entry for entry in tried if entry.fast_enough and entry.accurate_enough]
    if met and not push:
        return None
    enough = [entry.removed_ratio for entry in tried if not entry.fast_enough or (push and entry.accurate_enough)]
    too_much = [entry.removed_ratio for entry in tried if not entry.accurate_enough]
    low, high = max(enough, default=0.0), min(too_much, default=MOST)
    if 0.0 in too_much or high - low < STEP:
        return None
    untested = [step / 100 for step in range(int(low * 100) + 1, int(high * 100) + (not too_much)) if step / 100 - low >= STEP / 2]
    wanted = next((ratio for ratio in untested if predicted(ratio)), None)
    if push or wanted is None:
        wanted = (low + high) / 2 if too_much or push else MOST
    if too_much and wanted > high - STEP / 2:
        wanted = (low + high) / 2
    known = {entry.removed_ratio for entry in tried}
    wanted = round(wanted, 3)
    return None if wanted in known else wanted
