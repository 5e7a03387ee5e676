"""Losses: the formulas, written out with probabilities in float64, are the oracle."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import DataError
from gossamer.train.losses import cross_entropy, distillation


def draws(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def by_hand(outputs, taught, temperature):
    """T^2 * mean over samples of sum p log(p / q), one number at a time."""
    total = 0.0
    for row, other in zip(outputs.tolist(), taught.tolist(), strict=True):
        q = [math.exp(value / temperature) for value in row]
        p = [math.exp(value / temperature) for value in other]
        total += sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(outputs)


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(2, 7), st.floats(0.5, 8.0))
def test_distillation_equals_its_formula(seed, batch, classes, temperature):
    outputs, taught = draws(seed, batch, classes), draws(seed + 1, batch, classes)
    assert float(distillation(outputs, taught, temperature)) == pytest.approx(by_hand(outputs, taught, temperature), abs=1e-9)


@given(st.integers(0, 1000), st.floats(0.5, 8.0))
def test_distillation_is_zero_only_for_equal_distributions(seed, temperature):
    outputs = draws(seed, 4, 5)
    assert float(distillation(outputs, outputs + 2.5, temperature)) == pytest.approx(0.0, abs=1e-12)  # softmax ignores shifts
    assert float(distillation(outputs, draws(seed + 1, 4, 5), temperature)) > 1e-6


def test_distillation_gradient_keeps_its_size_at_high_temperature():
    """Hinton et al. 2015, section 2.1: for T large, the gradient tends to (z - v) / C, whatever T is."""
    taught = draws(1, 3, 4)
    taught = taught - taught.mean(1, keepdim=True)
    for temperature in (1e3, 1e4):
        outputs = draws(0, 3, 4).sub_(draws(0, 3, 4).mean(1, keepdim=True)).requires_grad_()
        distillation(outputs, taught, temperature).backward()
        torch.testing.assert_close(outputs.grad, (outputs.detach() - taught) / 4 / 3, rtol=1e-2, atol=1e-2)


def test_distillation_averages_over_positions():
    outputs, taught = draws(0, 2, 3, 4, 5), draws(1, 2, 3, 4, 5)
    flat = distillation(outputs.permute(0, 2, 3, 1).reshape(-1, 3), taught.permute(0, 2, 3, 1).reshape(-1, 3), 4.0)
    torch.testing.assert_close(distillation(outputs, taught, 4.0), flat)


def test_distillation_refuses_other_shapes():
    with pytest.raises(DataError, match=r"gives \(2, 3\) and its teacher \(2, 4\); distillation needs a teacher"):
        distillation(torch.zeros(2, 3), torch.zeros(2, 4), 4.0)
    with pytest.raises(DataError, match=r"needs outputs of shape \(batch, classes, ...\) .*; the network gives \(2,\)"):
        distillation(torch.zeros(2), torch.zeros(2), 4.0)
    with pytest.raises(DataError, match=r"at least 2 classes; the network gives \(2, 1\): train by a loss alone"):
        distillation(torch.zeros(2, 1), torch.zeros(2, 1), 4.0)  # its softmax is 1 whatever the network gives


def test_cross_entropy_equals_its_formula():
    outputs, target = draws(0, 5, 4), torch.tensor([0, 3, 2, 2, 1], dtype=torch.int32)
    expected = -sum(math.log(math.exp(row[label]) / sum(map(math.exp, row))) for row, label in zip(outputs.tolist(), target.tolist())) / 5
    assert float(cross_entropy(outputs, target)) == pytest.approx(expected)


def test_cross_entropy_refuses_what_is_no_classification():
    with pytest.raises(DataError, match=r"the network gives \(2, 3, 4\): pass Recipe\(loss=...\)"):
        cross_entropy(torch.zeros(2, 3, 4), torch.zeros(2, 4))
    with pytest.raises(DataError, match="has the label 3, but the network has 3 outputs"):
        cross_entropy(torch.zeros(2, 3), torch.tensor([0, 3]))
    with pytest.raises(DataError, match="training data has no targets"):
        cross_entropy(torch.zeros(2, 3), None)
