"""In which order the axes of a value are stored: convolutions want channels last, and nothing is moved that need not be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True, slots=True)
class Laid:
    """A value in the file. Stored axis k holds the logical axis order[k]; all sizes are those at batch 1.

    tensor   its number in the draft
    columns  where (C, H, W) was flattened as it was stored, (H, W, C): those three sizes; only layers that can reorder the
             columns of their weight read such a value
    """

    tensor: int
    order: tuple[int, ...]
    columns: tuple[int, ...] = ()


def identity(rank: int) -> tuple[int, ...]:
    """Stored as it is."""
    return tuple(range(rank))


def channels_last(rank: int) -> tuple[int, ...]:
    """(N, *S, C) for a logical (N, C, *S)."""
    return (0, *range(2, rank), 1)


def stored(shape: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """Sizes of the stored axes."""
    return tuple(shape[axis] for axis in order)


def permuted(order: Sequence[int], dims: Sequence[int]) -> tuple[int, ...]:
    """The order of the same stored numbers read as value.permute(dims)."""
    return tuple(list(dims).index(axis) for axis in order)


def without(order: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    """The order once these logical axes are gone."""
    kept = [axis for axis in order if axis not in axes]
    return tuple(axis - sum(gone < axis for gone in axes) for axis in kept)


def same_memory(shape: Sequence[int], have: Sequence[int], want: Sequence[int]) -> bool:
    """Whether going from one order to the other moves only axes of size 1."""
    return [axis for axis in have if shape[axis] != 1] == [axis for axis in want if shape[axis] != 1]


def reshaped(shape: Sequence[int], new: Sequence[int], order: Sequence[int]) -> tuple[int, ...] | None:
    """The order in which the stored numbers can be read as value.reshape(new); None where they would have to move first.

    Axes that are merged or split must lie next to each other, in their logical order.
    """
    found: list[tuple[int, tuple[int, ...]]] = []  # (place in memory, new axes) of each run of axes that become one another
    for old_axes, new_axes in _runs(shape, new):
        places = [order.index(axis) for axis in old_axes if shape[axis] != 1]
        between = [order[place] for place in range(min(places, default=0), max(places, default=-1) + 1)]
        if [axis for axis in between if shape[axis] != 1] != [axis for axis in old_axes if shape[axis] != 1]:
            return None
        place = min(places) if places else min((order.index(axis) for axis in old_axes), default=found[-1][0] if found else 0)
        found.append((place, new_axes))
    found.sort(key=lambda run: run[0])
    return tuple(axis for _, axes in found for axis in axes)


def _runs(shape: Sequence[int], new: Sequence[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The shortest runs of old axes and of new axes with equal products, in order."""
    runs = []
    i = j = 0
    while i < len(shape) or j < len(new):
        start_i, start_j = i, j
        if i < len(shape) and j < len(new) and shape[i] == new[j]:
            i, j = i + 1, j + 1
        elif i < len(shape) and shape[i] == 1:
            i += 1
        elif j < len(new) and new[j] == 1:
            j += 1
        else:
            i, j = i + 1, j + 1
            while prod(shape[start_i:i]) != prod(new[start_j:j]):
                if prod(shape[start_i:i]) < prod(new[start_j:j]):
                    i += 1
                else:
                    j += 1
        runs.append((tuple(range(start_i, i)), tuple(range(start_j, j))))
    return runs
