"""Intervals: published examples, coverage by simulation, bounds, and the ends of the range."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import ConfigError, DataError
from gossamer.numerics.intervals import bootstrap, bootstrap_interval, newcombe, paired_bootstrap_interval, wilson

counts = st.integers(0, 400)


def test_wilson_equals_the_published_example():
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)  # Newcombe 1998, Stat. Med. 17:857, table I


def test_newcombe_equals_the_published_example():
    # Fagerlund, Lydersen and Laake 2014, Stat. Med. 33, airway hyper-responsiveness: -0.507 to -0.026
    assert newcombe(1, 1, 7, 12) == pytest.approx((-0.507, -0.026), abs=5e-4)


def test_wilson_solves_its_defining_equation():
    for right, samples in ((3, 17), (990, 1000), (1, 2)):
        z = 1.959963984540054
        for bound in wilson(right, samples):
            assert abs(right / samples - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / samples), rel=1e-9)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_holds_the_share_and_stays_in_bounds(case, level):
    right, samples = case
    low, high = wilson(right, samples, level=level)
    assert 0 <= low <= right / samples <= high <= 1
    assert low < high
    mirrored = wilson(samples - right, samples, level=level)
    assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-12)


def test_wilson_at_the_ends():
    assert wilson(0, 1) == pytest.approx((0.0, 0.79345), abs=1e-5)
    assert wilson(1, 1) == pytest.approx((0.20655, 1.0), abs=1e-5)
    assert wilson(0, 100)[0] == 0.0
    assert wilson(100, 100)[1] == 1.0


@given(counts, counts, counts, counts)
def test_newcombe_holds_the_difference_and_turns_around(both, first, second, neither):
    if both + first + second + neither == 0:
        return
    samples = both + first + second + neither
    low, high = newcombe(both, first, second, neither)
    assert -1 <= low <= (first - second) / samples <= high <= 1
    assert low < high
    assert newcombe(both, second, first, neither) == pytest.approx((-high, -low), abs=1e-12)


def test_newcombe_at_the_ends():
    low, high = newcombe(1, 0, 0, 0)
    assert low < 0 < high
    assert newcombe(50, 0, 0, 0) == pytest.approx((-(1 - wilson(50, 50)[0]), 1 - wilson(50, 50)[0]))
    assert newcombe(0, 20, 0, 0)[1] == 1.0


def test_newcombe_is_narrower_when_both_agree():
    agreeing, independent = newcombe(90, 1, 1, 8), newcombe(83, 8, 8, 1)
    assert agreeing[1] - agreeing[0] < independent[1] - independent[0]


def covered(interval, value):
    return interval[0] <= value <= interval[1]


@pytest.mark.parametrize(("share", "samples"), [(0.5, 40), (0.95, 200), (0.99, 1000)])
def test_wilson_covers_as_often_as_it_says(share, samples):
    draws = torch.binomial(torch.full((4000,), float(samples)), torch.tensor(share), generator=torch.Generator().manual_seed(0))
    cover = {right: covered(wilson(right, samples), share) for right in range(samples + 1)}
    rate = sum(cover[int(right)] for right in draws) / len(draws)
    assert 0.93 <= rate <= 0.975


@pytest.mark.parametrize("shares", [(0.90, 0.04, 0.02, 0.04), (0.6, 0.1, 0.1, 0.2)])
def test_newcombe_covers_as_often_as_it_says(shares):
    generator = torch.Generator().manual_seed(1)
    picks = torch.multinomial(torch.tensor(shares), 2000 * 300, replacement=True, generator=generator).view(2000, 300)
    rate = sum(covered(newcombe(*torch.bincount(row, minlength=4).tolist()), shares[1] - shares[2]) for row in picks) / len(picks)
    assert 0.935 <= rate <= 0.985


def test_bootstrap_covers_a_mean():
    generator = torch.Generator().manual_seed(2)
    hits = 0
    for trial in range(300):
        data = torch.randn(60, generator=generator) + 3
        hits += covered(bootstrap_interval(lambda drawn, data=data: float(data[drawn].mean()), 60, seed=trial, resamples=200), 3.0)
    assert 0.89 <= hits / 300 <= 0.985


def test_bootstrap_of_a_share_is_near_wilson():
    right = torch.arange(1000) < 900
    low, high = bootstrap_interval(lambda drawn: float(right[drawn].float().mean()), 1000, seed=0)
    assert (low, high) == pytest.approx(wilson(900, 1000), abs=0.004)


def test_paired_bootstrap_sees_that_both_saw_the_same_samples():
    data = torch.randn(100, generator=torch.Generator().manual_seed(3))
    interval = paired_bootstrap_interval(
        lambda drawn: float(data[drawn].double().mean()) + 1, lambda drawn: float(data[drawn].double().mean()), 100, seed=0
    )
    assert interval == pytest.approx((1, 1), abs=1e-12)


def test_the_same_seed_gives_the_same_interval():
    data = torch.arange(50.0)

    def mean(drawn):
        return float(data[drawn].mean())

    assert bootstrap_interval(mean, 50, seed=5) == bootstrap_interval(mean, 50, seed=5)
    assert bootstrap_interval(mean, 50, seed=5) != bootstrap_interval(mean, 50, seed=6)


def test_bootstrap_of_one_sample_has_no_width():
    assert bootstrap_interval(lambda drawn: 7.0, 1, seed=0) == (7.0, 7.0)


def test_wider_level_is_a_wider_interval():
    assert wilson(7, 9, level=0.99)[0] < wilson(7, 9, level=0.9)[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson(0, 0), r"samples must be at least 1; got 0\."),
        (lambda: wilson(6, 5), r"right must be a count in \[0, 5\]; got 6\."),
        (lambda: wilson(-1, 5), r"right must be a count in \[0, 5\]; got -1\."),
        (lambda: wilson(1, 5, level=1.0), r"level must be a share in \(0, 1\); got 1\.0\."),
        (lambda: newcombe(0, 0, 0, 0), r"samples must be at least 1; got 0\."),
        (lambda: newcombe(5, -1, 0, 0), r"counts must be not negative; got \(5, -1, 0, 0\)\."),
        (lambda: bootstrap(lambda drawn: (0.0,), 0, seed=0), r"samples must be at least 1; got 0\."),
        (lambda: bootstrap(lambda drawn: (0.0,), 3, seed=0, resamples=0), r"resamples must be at least 1; got 0\."),
        (lambda: bootstrap(lambda drawn: (0.0,), 3, seed=0, level=0), r"level must be a share in \(0, 1\); got 0\."),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_bootstrap_refuses_what_is_not_finite():
    with pytest.raises(DataError, match="must be finite for every selection"):
        bootstrap(lambda drawn: (float("nan"),), 3, seed=0)
