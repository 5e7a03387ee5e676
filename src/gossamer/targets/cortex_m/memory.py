"""Where each value lies in the arena: values that are needed at the same time never overlap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

ALIGNMENT = 8  # bytes


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A value of `size` bytes, written by step `first` and last read by step `last`."""

    name: str
    size: int
    first: int
    last: int


def place(values: Iterable[Lifetime]) -> tuple[Mapping[str, int], int]:
    """The offset of each value, and the size of the arena, in bytes.

    Largest first, each into the lowest gap that is free during its life; of several orders the best one is taken.
    Source: greedy by size, Pisarchyk and Lee 2020, arXiv:2001.03288.
    """
    values = list(values)
    orders = (
        sorted(values, key=lambda value: (-value.size, value.first, value.name)),
        sorted(values, key=lambda value: (value.first - value.last, -value.size, value.name)),
        sorted(values, key=lambda value: (value.first, -value.size, value.name)),
    )
    return min((_place(order) for order in orders), key=lambda found: found[1])


def _place(order: Sequence[Lifetime]) -> tuple[dict[str, int], int]:
    placed: list[tuple[Lifetime, int]] = []
    for value in order:
        busy = sorted((offset, offset + other.size) for other, offset in placed if other.first <= value.last and value.first <= other.last)
        start = 0
        for low, high in busy:
            if start + value.size <= low:
                break
            start = max(start, -(-high // ALIGNMENT) * ALIGNMENT)
        placed.append((value, start))
    return {value.name: offset for value, offset in placed}, max((offset + value.size for value, offset in placed), default=0)
