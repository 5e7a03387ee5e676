"""What a run works on: data for training, calibration and validation in one frozen container."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

from gossamer.errors import DataError, nearest

CALIBRATION_SAMPLES = 512
PARTS = ("train", "calibration", "validation")
_EMPTY = "the train data is empty; give at least one sample."
_FORMS = "give gossamer.Data(train=..., calibration=..., validation=...), a mapping with these keys, or an object with these attributes"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Data:
    """Each part is whatever `as_batches` takes: an iterable of (inputs, target) batches, a Dataset, or arrays.

    train        for fine-tuning; None when there is none
    calibration  a few hundred samples that ranges and repairs are computed on; targets are not needed
    validation   labelled samples that accuracy is measured on
    name         where it came from, such as "mnist"; "" when not known
    notes        what was decided for the user, in plain words; reports show it
    """

    train: Any = None
    calibration: Any = None
    validation: Any = None
    name: str = ""
    notes: tuple[str, ...] = ()


def as_data(value: Any) -> Data:
    """Return Data with calibration and validation present.

    Accepts Data, a mapping with the keys train, calibration, validation (train and calibration may be missing, not
    both), an object with these attributes, or a tuple (train, validation) or (train, calibration, validation).
    Missing calibration is taken from train, which `notes` records: 512 samples spread evenly over a Dataset or arrays,
    the first 512 of a loader.

    Raises: DataError for anything else, an unknown key, or no validation.
    """
    data = value if isinstance(value, Data) else _collect(value)
    if data.validation is None:
        raise DataError(f"the data has no validation part, so nothing could be proven; {_FORMS}.")
    if data.calibration is None and data.train is None:
        raise DataError("the data has neither a train nor a calibration part; give one of them (calibration needs no targets).")
    data = replace(data, train=_kept(data.train), calibration=_kept(data.calibration), validation=_kept(data.validation))
    if data.calibration is not None:
        return data
    calibration, note = calibration_from(data.train)
    return replace(data, calibration=calibration, notes=(*data.notes, note))


def _kept(part: Any) -> Any:
    """An iterator could not be read twice."""
    return list(part) if isinstance(part, Iterator) else part


def calibration_from(train: Any, samples: int = CALIBRATION_SAMPLES) -> tuple[Any, str]:
    """Choose calibration samples out of training data; returns them and a sentence that says how.

    Raises: DataError when the training data is empty, or has another number of targets than of inputs.
    """
    if _is_pair(train) or _is_array(train):
        arrays = train if _is_pair(train) else (train,)
        if len(arrays[0]) != len(arrays[-1]):
            raise DataError(f"the train data has {len(arrays[0])} inputs and {len(arrays[-1])} targets; give one target per input.")
        chosen = spread(_count(arrays[0]), samples)
        picked = tuple(array[chosen.numpy() if isinstance(array, np.ndarray) else chosen] for array in arrays)
        return picked if len(picked) > 1 else picked[0], _note(len(chosen), "spread evenly over the training data")
    if isinstance(train, Dataset) and not isinstance(train, IterableDataset):
        chosen = spread(_count(train), samples)
        return Subset(train, chosen.tolist()), _note(len(chosen), "spread evenly over the training data")
    if isinstance(train, Iterable) and not isinstance(train, (str, bytes, Mapping)):
        return FirstBatches(train, samples), f"calibration uses the first {samples} samples of the training data (none was given)"
    raise DataError(f"the train data is a {type(train).__name__}; give an iterable of (inputs, target) batches, a Dataset, or arrays.")


class FirstBatches:
    """The first batches of a loader, up to `samples` samples: read once, kept, so that a shuffling loader gives the same again."""

    def __init__(self, source: Iterable[Any], samples: int) -> None:
        self._source: Iterable[Any] | None = source
        self._samples = samples
        self._kept: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        if self._source is not None:
            kept: list[Any] = []
            seen = 0
            for batch in self._source:
                kept.append(batch)
                seen += _batch_size(batch)
                if seen >= self._samples:
                    break
            if not kept:
                raise DataError(_EMPTY)
            self._kept, self._source = kept, None
        return iter(self._kept)


def spread(count: int, samples: int = CALIBRATION_SAMPLES) -> Tensor:
    """At most `samples` positions spread evenly over range(count), so that data sorted by class gives every class.

    Shapes: (min(count, samples),) int64, rising. Raises DataError for an empty range.
    """
    if count < 1:
        raise DataError(_EMPTY)
    return torch.arange(min(count, samples)) * count // min(count, samples)


def _collect(value: Any) -> Data:
    if isinstance(value, Mapping):
        unknown = [key for key in value if key not in (*PARTS, "name")]
        if unknown:
            raise DataError(f"the data has an unknown part {unknown[0]!r} ({nearest(str(unknown[0]), PARTS)}); {_FORMS}.")
        return Data(**{key: value[key] for key in value})
    if isinstance(value, tuple):
        return _from_tuple(value)
    if hasattr(value, "validation"):
        parts: dict[str, Any] = {part: getattr(value, part, None) for part in PARTS}
        return Data(**parts)
    raise DataError(f"the data is a {type(value).__name__}; {_FORMS}.")


def _from_tuple(value: tuple[Any, ...]) -> Data:
    if len(value) == 2 and not _is_pair(value):
        return Data(train=value[0], validation=value[1])
    if len(value) == 3:
        return Data(train=value[0], calibration=value[1], validation=value[2])
    what = "one pair of arrays" if _is_pair(value) else f"a tuple of {len(value)}"
    raise DataError(f"the data is {what}, which does not say what is for training and what for validation; {_FORMS}.")


def _note(count: int, how: str) -> str:
    return f"calibration uses {count} samples {how} (none was given)"


def _is_array(value: object) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _is_pair(value: object) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_array, value))


def _count(value: Any) -> int:
    return len(value)


def _batch_size(batch: Any) -> int:
    """Samples in one batch of any form that `as_batches` takes."""
    if _is_array(batch):
        return len(batch)
    if isinstance(batch, Mapping):
        return _batch_size(next(iter(batch.values()))) if batch else 0
    return _batch_size(batch[0]) if isinstance(batch, (tuple, list)) and batch else 1
