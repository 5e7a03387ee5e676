"""One choice for each unit, so that damage is least for every cost: exact dynamic programming over costs.

Source: the multiple-choice knapsack problem, Kellerer et al. 2004, chapter 11; used for bit widths in Dong et al. 2020 (HAWQ-V2),
arXiv:1911.03852, and Frantar & Alistarh 2022 (SPDY), arXiv:2201.13096.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gossamer.errors import ConfigError

MOST_STEPS = 20000  # into which the span of costs is cut; costs are rounded up to a step where their common divisor is smaller


@dataclass(frozen=True, slots=True)
class Allocation:
    """choice: position of what each unit gets; cost and damage: sums over the units."""

    choice: tuple[int, ...]
    cost: int
    damage: float


def allocation_front(costs: Sequence[Sequence[int]], damages: Sequence[Sequence[float]]) -> list[Allocation]:
    """The allocations of which none has both less cost and less damage than another, by rising cost.

    costs, damages  of each unit's choices, in the same order; damages are taken to add up

    Exact where the costs' common divisor is at least a 20000th of their span, else to within one such step for each unit.
    Raises: ConfigError for no unit, a unit without choices, or numbers that do not match.
    """
    if not costs or any(not row for row in costs) or [len(row) for row in costs] != [len(row) for row in damages]:
        raise ConfigError(
            "costs", [list(row) for row in costs][:3], "one or more numbers for each of one or more units, as many as damages"
        )
    extra = [[cost - min(row) for cost in row] for row in costs]
    span = sum(map(max, extra))
    divisor = math.gcd(*(cost for row in extra for cost in row))
    step = max(divisor, -(-span // MOST_STEPS), 1)
    steps = [[-(-cost // step) for cost in row] for row in extra]
    least, taken = _tables(steps, damages)
    front: list[Allocation] = []
    for total in np.flatnonzero(np.isfinite(least)).tolist():
        choice = _walk_back(steps, taken, total)
        cost = sum(row[place] for row, place in zip(costs, choice, strict=True))
        damage = sum(row[place] for row, place in zip(damages, choice, strict=True))
        if not front or damage < front[-1].damage:
            if front and cost <= front[-1].cost:
                front.pop()
            front.append(Allocation(choice, cost, damage))
    return front


def _tables(
    steps: Sequence[Sequence[int]], damages: Sequence[Sequence[float]]
) -> tuple[npt.NDArray[np.float64], list[npt.NDArray[np.int16]]]:
    """Least damage for each exact total of steps, and what each unit takes on the way there."""
    size = sum(map(max, steps)) + 1
    least = np.full(size, np.inf)
    least[0] = 0.0
    taken = []
    for unit_steps, unit_damages in zip(steps, damages, strict=True):
        best, choice = np.full(size, np.inf), np.zeros(size, np.int16)
        for place, (cost, damage) in enumerate(zip(unit_steps, unit_damages, strict=True)):
            found = np.full(size, np.inf)
            found[cost:] = least[: size - cost] + damage
            better = found < best
            best[better], choice[better] = found[better], place
        least = best
        taken.append(choice)
    return least, taken


def _walk_back(steps: Sequence[Sequence[int]], taken: Sequence[npt.NDArray[np.int16]], total: int) -> tuple[int, ...]:
    choice = []
    for unit_steps, unit_taken in zip(reversed(steps), reversed(taken), strict=True):
        place = int(unit_taken[total])
        choice.append(place)
        total -= unit_steps[place]
    return tuple(reversed(choice))
