"""The demo's network: its size, and training that is a function of the seed."""

import torch

from gossamer.data.digits_cnn import DigitsCNN, train_digits
from gossamer.data.mnist import mnist
from gossamer.data.source import Data


def few() -> Data:
    data = mnist()
    return Data(train=tuple(part[:320] for part in data.train), validation=tuple(part[:200] for part in data.validation))


def test_shape_and_size():
    model = DigitsCNN()
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == 34_826
    assert model.fc.in_features == 64 * 5 * 5


def test_training_learns_and_repeats():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    records = []
    first, again = train_digits(few(), epochs=4, on_progress=records.append), train_digits(few(), epochs=4)
    assert torch.equal(torch.rand(1), expected)  # the caller's random state is untouched
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not first.training
    assert records[-1].done == records[-1].total
    inputs, labels = few().validation
    assert (first(inputs).argmax(1) == labels).float().mean() > 0.6
    other = train_digits(few(), epochs=1, seed=1)
    assert not torch.equal(other.fc.weight, train_digits(few(), epochs=1, seed=2).fc.weight)
