"""Batches: every way a user may hold data comes out as the same tensors."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from gossamer.batches import Batches, as_batches, check_labels
from gossamer.errors import ConfigError, DataError

INPUTS = torch.arange(30.0).reshape(10, 3)
TARGET = torch.arange(10) % 4


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(INPUTS, TARGET, strict=True))


def joined(batches):
    """All inputs and targets in one tensor each."""
    listed = list(batches)
    return torch.cat([inputs[0] for inputs, _ in listed]), torch.cat([target for _, target in listed])


FORMS = {
    "arrays": (INPUTS.numpy(), TARGET.numpy()),
    "tensors": [INPUTS, TARGET],
    "dataset": TensorDataset(INPUTS, TARGET),
    "stream": Stream(),
    "loader": DataLoader(TensorDataset(INPUTS, TARGET), batch_size=4),
    "list": [(INPUTS[:6], TARGET[:6]), (INPUTS[6:], TARGET[6:])],
    "lists": [[INPUTS[:6], TARGET[:6]], [INPUTS[6:], TARGET[6:]]],
    "nested": [((INPUTS[:6],), TARGET[:6]), ([INPUTS[6:]], TARGET[6:])],
    "mappings": [{"x": INPUTS[:6], "labels": TARGET[:6]}, {"target": TARGET[6:], "x": INPUTS[6:]}],
    "numpy batches": [(INPUTS[:6].numpy(), TARGET[:6].numpy()), (INPUTS[6:].numpy(), TARGET[6:].numpy())],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_tensors_twice(form):
    batches = as_batches(FORMS[form], what="training", batch_size=4)
    for _ in range(2):
        inputs, target = joined(batches)
        assert torch.equal(inputs, INPUTS) and torch.equal(target, TARGET)
    assert torch.equal(batches.first()[0][0], next(iter(batches))[0][0])
    assert len(batches) == (0 if form == "stream" else len(list(batches)))  # 0: not known beforehand
    assert as_batches(batches, what="training") is batches


def test_a_generator_can_be_read_twice():
    batches = as_batches(((INPUTS[i : i + 5], TARGET[i : i + 5]) for i in (0, 5)), what="training")
    assert len(batches) == 2
    for _ in range(2):
        assert torch.equal(joined(batches)[0], INPUTS)


def test_inputs_without_targets():
    for source in (INPUTS, INPUTS.numpy(), [INPUTS[:4], INPUTS[4:6], INPUTS[6:]], [(INPUTS, None)], [(INPUTS,)], TensorDataset(INPUTS)):
        listed = list(as_batches(source, what="calibration"))
        assert all(target is None for _, target in listed)
        assert torch.equal(torch.cat([inputs[0] for inputs, _ in listed]), INPUTS)


def test_a_tuple_of_one_array_is_read_in_batches_and_a_list_of_one_is_a_batch():
    assert [len(inputs[0]) for inputs, _ in as_batches((INPUTS,), what="training", batch_size=4)] == [4] * (len(INPUTS) // 4) + [
        len(INPUTS) % 4
    ] * (len(INPUTS) % 4 > 0)
    assert [len(inputs[0]) for inputs, _ in as_batches([INPUTS], what="training", batch_size=4)] == [len(INPUTS)]


def test_several_inputs():
    for first in ((INPUTS, TARGET), [INPUTS, TARGET], {"a": INPUTS, "b": TARGET}):
        ((inputs, target),) = as_batches([(first, TARGET)], what="training")
        assert torch.equal(inputs[0], INPUTS) and torch.equal(inputs[1], TARGET) and torch.equal(target, TARGET)


@given(st.integers(1, 12), st.integers(0, 100))
def test_batch_size_and_shuffling(size, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        batches = as_batches((INPUTS, TARGET), what="training", batch_size=size, shuffle=True)
        listed = list(batches)
    assert len(batches) == len(listed) == -(-10 // size)
    assert all(len(target) == size for _, target in listed[:-1])
    inputs, target = joined(listed)
    order = (inputs[:, 0] / 3).long()
    assert sorted(order.tolist()) == list(range(10))
    assert torch.equal(target, TARGET[order])


def test_making_batches_draws_no_random_numbers():
    state = torch.get_rng_state()
    as_batches((INPUTS, TARGET), what="training", shuffle=True)
    as_batches(FORMS["loader"], what="training")
    assert torch.equal(torch.get_rng_state(), state)


def test_float64_becomes_float32_and_other_types_stay():
    listed = list(as_batches((np.ones((2, 3)), np.ones(2, dtype=np.int32)), what="training"))
    assert (listed[0][0][0].dtype, listed[0][1].dtype) == (torch.float32, torch.int32)
    assert as_batches(np.ones((2, 3), dtype=np.uint8), what="training").first()[0][0].dtype == torch.uint8


def test_arrays_that_torch_cannot_wrap_are_copied():
    read_only = np.frombuffer(bytes(range(12)), dtype=np.uint8).reshape(4, 3)
    assert as_batches(read_only, what="training").first()[0][0].tolist() == read_only.tolist()
    backwards = np.arange(6.0)[::-1].reshape(2, 3)
    assert as_batches(backwards, what="training").first()[0][0].tolist() == backwards.tolist()


@pytest.mark.parametrize(
    "source",
    [[], (INPUTS[:0], TARGET[:0]), INPUTS[:0], TensorDataset(INPUTS[:0]), iter([]), DataLoader(TensorDataset(INPUTS[:0]))],
    ids=["list", "arrays", "array", "dataset", "generator", "loader"],
)
def test_empty_data(source):
    with pytest.raises(DataError, match="the training data is empty; give at least one"):
        list(as_batches(source, what="training"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "the validation data is missing; pass an iterable of"),
        (3, "the validation data is a int; pass an iterable"),
        ("mnist", "the validation data is a str; pass an iterable"),
        ({"x": INPUTS}, "the validation data is a dict; pass an iterable"),
        ((INPUTS, TARGET[:3]), "the validation data has 10 inputs and 3 targets; give one target per input"),
        ((np.array(["a", "b"]), TARGET[:2]), "an array of <U1 cannot become a tensor"),
        ([3], "batch 0 of the validation data is a int; give .inputs, target."),
        ([(INPUTS, TARGET, TARGET)], "batch 0 of the validation data is a tuple; give .inputs, target."),
        ([(INPUTS, TARGET), ("file.png", TARGET)], "batch 1 of the validation data has inputs of type str; give a tensor"),
        ([([], TARGET)], "batch 0 of the validation data has inputs of type list"),
        ([(INPUTS, TARGET[:4])], "batch 0 of the validation data has 10 inputs and 4 targets"),
        ([(INPUTS, TARGET), (INPUTS / 0, TARGET)], r"batch 1 of the validation data holds NaN or infinite values \(first in sample 0\)"),
        ([(INPUTS, TARGET / 0)], "batch 0 of the validation data holds NaN or infinite targets"),
    ],
)
def test_data_of_no_use_is_named(source, message):
    with pytest.raises(DataError, match=message):
        list(as_batches(source, what="validation"))


def test_the_first_broken_sample_is_named():
    broken = INPUTS.clone()
    broken[7, 1] = float("inf")
    with pytest.raises(DataError, match=r"\(first in sample 7\); clean the data"):
        list(as_batches(broken, what="training"))


def test_finite_values_whose_sum_overflows_are_fine():
    huge = torch.full((4, 3), 3e38)
    assert torch.equal(as_batches(huge, what="training").first()[0][0], huge)
    half = torch.full((4, 300), 6e4, dtype=torch.float16)
    assert torch.equal(as_batches(half, what="training").first()[0][0], half)
    for bad in (torch.tensor([[float("inf")], [-float("inf")]]), torch.tensor([[3e38], [3e38], [float("nan")]])):
        with pytest.raises(DataError, match="NaN or infinite"):
            as_batches(bad, what="training").first()


def test_a_batch_size_below_one():
    with pytest.raises(ConfigError, match="batch_size must be at least 1; got 0"):
        as_batches(INPUTS, what="training", batch_size=0)


def test_a_source_that_stops_in_the_middle_passes_its_own_error_on():
    class Broken(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            raise OSError("no such image")

    with pytest.raises(OSError, match="no such image"):
        list(as_batches(Broken(), what="training"))


def test_labels_are_checked_against_the_outputs():
    assert check_labels(torch.tensor([0, 3], dtype=torch.uint8), 4, "training").dtype == torch.int64
    with pytest.raises(DataError, match="has the label 4, but the network has 4 outputs; labels must lie in .0, 3."):
        check_labels(torch.tensor([0, 4]), 4, "training")
    with pytest.raises(DataError, match="has the label -1"):
        check_labels(torch.tensor([0, -1]), 4, "training")
    with pytest.raises(DataError, match="validation data has no targets"):
        check_labels(None, 4, "validation")
    with pytest.raises(DataError, match=r"must be class numbers of shape \(batch,\); got torch.float32 of shape \(2,\)"):
        check_labels(torch.zeros(2), 4, "training")
    with pytest.raises(DataError, match=r"got torch.int64 of shape \(2, 4\)"):
        check_labels(torch.zeros(2, 4, dtype=torch.int64), 4, "training")


def test_batches_of_a_plain_iterable():
    assert len(Batches([(INPUTS, TARGET)], what="x")) == 1
