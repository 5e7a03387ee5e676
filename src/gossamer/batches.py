"""Data in one form: whatever the user has (loader, Dataset, arrays) becomes batches that can be read again and again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from gossamer.errors import ConfigError, DataError

Batch = tuple[tuple[Tensor, ...], Tensor | None]


class Batches:
    """Batches of (inputs, target), checked as they are read. Iterating again starts again.

    `what` names the data in messages, `source` is what is read. Raises DataError while iterating for an empty source, a batch of no known
    form, inputs and targets of different length, or NaN and infinite inputs.
    """

    def __init__(self, source: Iterable[Any], *, what: str) -> None:
        self.what = what
        self.source = list(source) if isinstance(source, Iterator) else source  # a generator can be read only once

    def __iter__(self) -> Iterator[Batch]:
        empty = True
        for position, item in enumerate(self.source):
            empty = False
            yield self._check(_split(item, f"batch {position} of the {self.what} data"), position)
        if empty:
            raise DataError(f"the {self.what} data is empty; give at least one batch.")

    def __len__(self) -> int:
        """Number of batches, 0 when it cannot be known beforehand."""
        try:
            return len(self.source)  # type: ignore[arg-type]
        except TypeError:
            return 0

    def first(self) -> Batch:
        """The first batch."""
        return next(iter(self))

    def _check(self, batch: Batch, position: int) -> Batch:
        inputs, target = batch
        where = f"batch {position} of the {self.what} data"
        for tensor in inputs:
            if not _is_finite(tensor):
                sample = int((~torch.isfinite(tensor)).flatten(1).any(1).nonzero()[0]) if tensor.dim() > 1 else 0
                raise DataError(f"{where} holds NaN or infinite values (first in sample {sample}); clean the data.")
        if target is not None and not _is_finite(target):
            raise DataError(f"{where} holds NaN or infinite targets; clean the data.")
        for tensor in inputs:
            if target is not None and tensor.shape[:1] != target.shape[:1]:
                raise DataError(f"{where} has {tensor.shape[0]} inputs and {target.shape[0]} targets; give one target per input.")
        return batch


def as_batches(data: Any, *, what: str, batch_size: int = 64, shuffle: bool = False) -> Batches:
    """Accept an iterable of (inputs, target) batches, a Dataset, or arrays: a pair (inputs, target) or inputs alone, in a tuple or not.

    `shuffle` concerns Datasets and arrays; a loader has an order of its own.
    Raises: DataError for anything else; ConfigError for a batch size below 1.
    """
    if batch_size < 1:
        raise ConfigError("batch_size", batch_size, "at least 1")
    if isinstance(data, Batches):
        return data
    if data is None:
        raise DataError(f"the {what} data is missing; pass an iterable of (inputs, target) batches, a Dataset, or arrays.")
    if isinstance(data, tuple) and len(data) == 1 and _is_array(data[0]):
        (data,) = data  # as TensorDataset takes them; one batch alone is a list
    if _is_array(data):
        data = TensorDataset(_tensor(data))
    elif isinstance(data, (tuple, list)) and len(data) == 2 and all(map(_is_array, data)):
        inputs, target = map(_tensor, data)
        if len(inputs) != len(target):
            raise DataError(f"the {what} data has {len(inputs)} inputs and {len(target)} targets; give one target per input.")
        data = TensorDataset(inputs, target)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        if len(data) == 0:  # type: ignore[arg-type]
            raise DataError(f"the {what} data is empty; give at least one sample.")
        data = DataLoader(data, batch_size=batch_size, shuffle=shuffle)
    elif isinstance(data, IterableDataset):
        data = DataLoader(data, batch_size=batch_size)
    if not isinstance(data, Iterable) or isinstance(data, (str, bytes, Mapping)):
        raise DataError(f"the {what} data is a {type(data).__name__}; pass an iterable of (inputs, target) batches, a Dataset, or arrays.")
    return Batches(data, what=what)


def check_labels(target: Tensor | None, classes: int, what: str) -> Tensor:
    """Return integer class labels if they fit the network's outputs. Raises DataError naming the first bad one."""
    if target is None:
        raise DataError(f"the {what} data has no targets; give batches of (inputs, target).")
    if target.is_floating_point() or target.dim() != 1:
        raise DataError(f"the {what} targets must be class numbers of shape (batch,); got {target.dtype} of shape {tuple(target.shape)}.")
    if len(target) and not 0 <= int(target.min()) <= int(target.max()) < classes:
        label = int(target[(target < 0) | (target >= classes)][0])
        raise DataError(
            f"the {what} data has the label {label}, but the network has {classes} outputs; labels must lie in [0, {classes - 1}]."
        )
    return target.long()


def _is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite. The sum is the fast way, and right whenever it is finite itself."""
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum())):
        return True
    return bool(torch.isfinite(tensor).all())


def _is_array(value: object) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _tensor(value: Any) -> Tensor:
    """A tensor; float64 arrays become float32, the type networks are trained in."""
    if isinstance(value, np.ndarray) and (not value.flags.writeable or any(stride < 0 for stride in value.strides)):
        value = value.copy()  # torch has no tensors over such memory
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"an array of {value.dtype} cannot become a tensor; convert it to numbers in this machine's byte order.") from error
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _split(item: Any, where: str) -> Batch:
    """Normalize one batch: (inputs, target), a single tensor, or a mapping with a key "target" or "labels"."""
    if _is_array(item):
        return (_tensor(item),), None
    if isinstance(item, Mapping):
        target = next((item[key] for key in ("target", "labels", "label") if key in item), None)
        inputs = [value for key, value in item.items() if key not in ("target", "labels", "label")]
        return _tensors(inputs, where), None if target is None else _tensor(target)
    if isinstance(item, Sequence) and len(item) == 1:
        return _tensors(item[0], where), None
    if isinstance(item, Sequence) and len(item) == 2:
        return _tensors(item[0], where), None if item[1] is None else _tensor(item[1])
    raise DataError(f"{where} is a {type(item).__name__}; give (inputs, target).")


def _tensors(inputs: Any, where: str) -> tuple[Tensor, ...]:
    if _is_array(inputs):
        return (_tensor(inputs),)
    if isinstance(inputs, Mapping):
        inputs = list(inputs.values())
    if isinstance(inputs, Sequence) and inputs and all(map(_is_array, inputs)):
        return tuple(_tensor(value) for value in inputs)
    raise DataError(f"{where} has inputs of type {type(inputs).__name__}; give a tensor or a tuple of tensors.")
