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
    view = [1] * len(shape)
    view[axis] = -1
    return squash(tensor(vector).reshape(view).expand(tuple(shape)))


def varying(labels: Tensor) -> tuple[int, ...]:
    """Axes along which labels differ (after `squash`)."""
    return tuple(axis for axis in range(labels.dim()) if labels.shape[axis] > 1 and labels.stride(axis) != 0)


def squash(labels: Tensor) -> Tensor:
    """The same labels with stride 0 on every axis along which they are constant."""
    shape = labels.shape
    if 0 in shape:
        return labels
    small = labels.numpy()
    for axis in range(small.ndim):
        if small.shape[axis] == 1:
            continue
        first = small[(slice(None),) * axis + (slice(0, 1),)]
        corner: np.ndarray = small.swapaxes(0, axis)  # along the axis, at position 0 of all others: its ends mostly tell
        while corner.ndim > 1:
            corner = corner[:, 0]
        if small.strides[axis] == 0 or (corner[0] == corner[-1] and bool((small == first).all())):
            small = first
    return torch.from_numpy(small).expand(shape)


def essence(labels: Tensor) -> np.ndarray:
    """The labels with every constant axis cut to length 1, as an array."""
    small = labels
    for axis in range(labels.dim()):
        if labels.shape[axis] > 1 and labels.stride(axis) == 0:
            small = small.narrow(axis, 0, 1)
    return small.numpy()


def vector(labels: Tensor, axis: int) -> np.ndarray:
    """The labels along one axis, at position 0 of all others, at full length."""
    index: list[int | slice] = [0] * labels.dim()
    index[axis] = slice(None)
    return labels[tuple(index)].numpy()
