"""Label tensors: for each position of a value the atom it carries. Constant axes have stride 0 and cost nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Pair:
    """Labels of a value that carries atoms along two axes, each with label tensors of its own; `first` is the one that
    stays removable where only one can."""

    first: Tensor
    second: Tensor

    @property
    def shape(self) -> torch.Size:
        """Shape of the value."""
        return self.first.shape

    def dim(self) -> int:
        """Number of axes of the value."""
        return self.first.dim()


Labels = Tensor | Pair


def sides(labels: Labels) -> tuple[Tensor, ...]:
    """The label tensors of a value."""
    return (labels.first, labels.second) if isinstance(labels, Pair) else (labels,)


def each(labels: Labels, change: Callable[[Tensor], Tensor]) -> Labels:
    """The same change made to all label tensors of a value."""
    return Pair(change(labels.first), change(labels.second)) if isinstance(labels, Pair) else change(labels)


def empty(shape: Sequence[int]) -> Tensor:
    """Labels of a value that carries nothing."""
    return torch.zeros((), dtype=torch.int64).expand(tuple(shape))


def tensor(array: np.ndarray) -> Tensor:
    """A label tensor from an array, copied."""
    return torch.from_numpy(np.array(array, dtype=np.int64))


def along(vector: np.ndarray, shape: Sequence[int], axis: int) -> Tensor:
    """Labels that vary along one axis only."""
    assert shape[axis] == len(vector), (shape, axis, len(vector))
    strides = [0] * len(shape)
    strides[axis] = int(len(vector) > 1 and not bool((vector == vector[0]).all()))
    return tensor(vector).as_strided(tuple(shape), strides) if len(vector) else empty(shape)


def varying(labels: Tensor) -> tuple[int, ...]:
    """Axes along which labels differ (after `squash`)."""
    return tuple(axis for axis, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True)) if stride != 0 and size > 1)


def squash(labels: Tensor) -> Tensor:
    """The same labels with stride 0 on every axis along which they are constant."""
    if 0 in labels.shape:
        return labels
    small = essence(labels)
    before = small.shape
    for axis in range(small.ndim):
        if small.shape[axis] == 1:
            continue
        first = small[(slice(None),) * axis + (slice(0, 1),)]
        corner: np.ndarray = small.swapaxes(0, axis)  # along the axis, at position 0 of all others: its ends mostly tell
        while corner.ndim > 1:
            corner = corner[:, 0]
        if corner[0] == corner[-1] and bool((small == first).all()):
            small = first
    return labels if small.shape == before else torch.from_numpy(small).expand(labels.shape)


def essence(labels: Tensor) -> np.ndarray:
    """The labels with every constant axis cut to length 1, as an array."""
    cut = tuple(
        slice(0, 1) if stride == 0 and size > 1 else slice(None) for size, stride in zip(labels.shape, labels.stride(), strict=True)
    )
    small: np.ndarray = labels.numpy()[cut]
    return small


def vector(labels: Tensor, axis: int) -> np.ndarray:
    """The labels along one axis, at position 0 of all others, at full length."""
    index: list[int | slice] = [0] * labels.dim()
    index[axis] = slice(None)
    found: np.ndarray = labels.numpy()[tuple(index)]
    return found


def distinct(array: np.ndarray) -> np.ndarray:
    """The different numbers in an array, in ascending order. What np.unique does, which imports more than this pass takes."""
    ordered = np.sort(array, axis=None)
    if not ordered.size:
        return ordered
    first = np.empty(len(ordered), dtype=bool)
    first[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]
