"""Data: every accepted form ends as the same container; calibration is taken from train where it is missing."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from gossamer.batches import as_batches
from gossamer.data.source import Data, as_data, spread
from gossamer.errors import DataError

X, Y = torch.arange(2000.0).view(1000, 2), torch.arange(1000) % 4
BATCHES = [(X[i : i + 100], Y[i : i + 100]) for i in range(0, 1000, 100)]


def inputs_of(part) -> torch.Tensor:
    return torch.cat([inputs[0] for inputs, _ in as_batches(part, what="test")])


@pytest.mark.parametrize(
    "value",
    [
        Data(train=(X, Y), validation=BATCHES),
        {"train": (X, Y), "validation": BATCHES},
        {"train": (X, Y), "calibration": None, "validation": BATCHES},
        SimpleNamespace(train=(X, Y), validation=BATCHES),
        ((X, Y), BATCHES),
        ((X, Y), None, BATCHES),
    ],
    ids=["Data", "mapping", "mapping with None", "attributes", "pair", "triple"],
)
def test_every_form_gives_the_same(value):
    data = as_data(value)
    assert torch.equal(inputs_of(data.train), X)
    assert torch.equal(inputs_of(data.validation), X)
    assert torch.equal(inputs_of(data.calibration), X[spread(1000)])
    assert data.notes == ("calibration uses 512 samples spread evenly over the training data (none was given)",)


def test_given_calibration_is_kept():
    data = as_data({"calibration": X, "validation": BATCHES, "name": "mine"})
    assert data.calibration is X
    assert data.train is None
    assert data.notes == ()
    assert data.name == "mine"


@pytest.mark.parametrize("kind", [TensorDataset, lambda x, y: (x.numpy(), y.numpy()), lambda x, y: (x, y)])
def test_calibration_of_indexable_data_is_spread(kind):
    data = as_data({"train": kind(X, Y), "validation": BATCHES})
    assert torch.equal(inputs_of(data.calibration), X[spread(1000)])


def test_calibration_of_one_array():
    assert torch.equal(inputs_of(as_data({"train": X, "validation": BATCHES}).calibration), X[spread(1000)])


def test_calibration_of_a_loader_is_its_first_batches_and_stays_the_same():
    loader = DataLoader(TensorDataset(X, Y), batch_size=100, shuffle=True)
    data = as_data({"train": loader, "validation": BATCHES})
    first = inputs_of(data.calibration)
    assert first.shape == (600, 2)
    assert torch.equal(inputs_of(data.calibration), first)
    assert "first 512 samples" in data.notes[0]


@pytest.mark.parametrize("wrap", [lambda x, y: x, lambda x, y: (x,), lambda x, y: {"pixels": x, "labels": y}, lambda x, y: ((x, x), y)])
def test_calibration_counts_samples_in_every_form_of_batch(wrap):
    data = as_data({"train": [wrap(x, y) for x, y in BATCHES], "validation": BATCHES})
    assert len(inputs_of(data.calibration)) == 600


def test_iterator_is_read_once_and_kept():
    data = as_data({"train": iter(BATCHES), "validation": BATCHES})
    assert len(inputs_of(data.calibration)) == 600
    assert len(inputs_of(data.train)) == 1000


def test_a_loader_that_fails_is_read_from_the_start_again():
    class Flaky:
        broken = True

        def __iter__(self):
            yield BATCHES[0]
            if self.broken:
                self.broken = False
                raise RuntimeError("disk")
            yield from BATCHES[1:]

    data = as_data({"train": Flaky(), "validation": BATCHES})
    with pytest.raises(RuntimeError, match="disk"):
        list(data.calibration)
    assert torch.equal(inputs_of(data.calibration), X[:600])


@given(count=st.integers(1, 5000), samples=st.integers(1, 1000))
def test_spread_covers_the_range(count, samples):
    chosen = spread(count, samples)
    assert len(chosen) == min(count, samples)
    assert chosen[0] == 0
    assert chosen[-1] < count
    gaps = chosen.diff()
    assert not len(gaps) or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"train": X}, "has no validation part"),
        ({"validation": X}, "neither a train nor a calibration part"),
        ({"train": X, "val": X}, "unknown part 'val' .*known: .*'validation'"),
        ((X, Y), "one pair of arrays"),
        ((np.zeros(3), np.zeros(3)), "one pair of arrays"),
        ((X,), "a tuple of 1"),
        (42, "the data is a int"),
        (None, "the data is a NoneType"),
        ({"train": 5, "validation": X}, "the train data is a int"),
        ({"train": (X[:0], Y[:0]), "validation": X}, "the train data is empty"),
        ({"train": TensorDataset(X[:0]), "validation": X}, "the train data is empty"),
    ],
)
def test_what_cannot_be_used(value, message):
    with pytest.raises(DataError, match=message):
        as_data(value)


@pytest.mark.parametrize("targets", [5, 20])
def test_arrays_of_different_length_are_told(targets):
    with pytest.raises(DataError, match=f"the train data has 12 inputs and {targets} targets; give one target per input"):
        as_data({"train": (torch.zeros(12, 3), torch.zeros(targets)), "validation": torch.zeros(4, 3)})
