import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.numerics.equalize import LARGEST, aware_factors, cross_layer_factors, even_channels, smoothing_factors

sizes = st.lists(st.floats(0.01, 100), min_size=1, max_size=8).map(lambda values: torch.tensor(values, dtype=torch.float64))


@settings(max_examples=50, deadline=None)
@given(sizes, st.integers(0, 100))
def test_cross_layer_makes_both_ranges_equal(made, seed):
    read = made[torch.randperm(len(made), generator=torch.Generator().manual_seed(seed))] * 0.3
    factors = cross_layer_factors(made, read)
    assert torch.allclose(made * factors, read / factors)
    assert torch.allclose(made * factors, (made * read).sqrt())


def test_cross_layer_leaves_unused_channels():
    factors = cross_layer_factors(torch.tensor([0.0, 2.0, 1e-30]), torch.tensor([1.0, 0.0, 1.0]))
    assert factors.tolist() == [1.0, 1.0, LARGEST]


@settings(max_examples=50, deadline=None)
@given(sizes, st.sampled_from([0.0, 0.5, 1.0]))
def test_smoothing_shares_the_spread(values, alpha):
    weights = values.flip(0) + 1
    factors = smoothing_factors(values, weights, alpha)
    wanted = {0.0: weights / factors, 0.5: values * factors / (weights / factors), 1.0: values * factors}[alpha]
    assert torch.allclose(wanted, torch.ones_like(wanted))  # even weights, both alike, even values


def test_smoothing_survives_channels_without_values():
    factors = smoothing_factors(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]), 0.5)
    assert torch.isfinite(factors).all()
    assert smoothing_factors(torch.zeros(3), torch.zeros(3), 0.5).tolist() == [1.0, 1.0, 1.0]


@settings(max_examples=50, deadline=None)
@given(sizes, st.floats(0, 1))
def test_aware_factors_are_centred_and_follow_the_values(values, alpha):
    factors = aware_factors(values, alpha)
    assert torch.allclose(factors.max() * factors.min(), torch.ones((), dtype=torch.float64))
    assert torch.allclose((1 / factors)[values.argmax()], (1 / factors).max())
    assert torch.allclose(aware_factors(values, 0.0), torch.ones_like(values))


@settings(max_examples=50, deadline=None)
@given(sizes, st.integers(0, 100))
def test_even_channels_have_one_range(width, seed):
    low = torch.randn(len(width), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    factor, shift = even_channels(low, low + width)
    lows, highs = factor * low + shift, factor * (low + width) + shift
    assert torch.allclose(lows, lows.mean().expand_as(lows))
    assert torch.allclose(highs - lows, width.mean().expand_as(highs))


def test_even_channels_of_constants():
    factor, shift = even_channels(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    assert torch.isfinite(factor).all()
    assert torch.isfinite(shift).all()
