"""The schedule: its definition in words is the oracle."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.train.schedule import learning_rate_at


@given(st.integers(1, 400), st.floats(1e-4, 1.0), st.floats(0.0, 0.99))
def test_rises_to_the_peak_once_then_falls_towards_zero(total, peak, warmup):
    rates = [learning_rate_at(step, total, peak=peak, warmup=warmup) for step in range(total)]
    top = rates.index(max(rates))
    assert all(0 < rate <= peak for rate in rates)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) == pytest.approx(peak)
    assert learning_rate_at(total, total, peak=peak, warmup=warmup) == pytest.approx(0.0, abs=1e-12)


def test_without_warmup_it_is_half_a_cosine():
    for step in range(10):
        expected = 0.1 * (1 + math.cos(math.pi * step / 10)) / 2
        assert learning_rate_at(step, 10, peak=0.1, warmup=0.0) == pytest.approx(expected)


def test_warmup_is_linear_and_takes_its_share():
    rates = [learning_rate_at(step, 100, peak=1.0, warmup=0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rates[10] == 1.0


def test_beyond_the_end_the_rate_stays_zero():
    assert learning_rate_at(25, 20, peak=1.0, warmup=0.1) == 0.0
