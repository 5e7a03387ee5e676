import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from gossamer.errors import ConfigError, DataError
from gossamer.numerics.affine import clips_like, dequantize, fake_quantize, from_range, quantize
from gossamer.numerics.formats import IntFormat, PerAxis, PerTensor
from gossamer.numerics.range_choice import percentile_range
from gossamer.numerics.ranges import (
    choose_quantizer,
    choose_weight_quantizer,
    fit_clamp,
    range_methods,
    two_ended_methods,
    weight_range_methods,
)
from gossamer.numerics.spread import Spread, histogram, merge

UINT8 = IntFormat(bits=8, signed=False)
INT8 = IntFormat(bits=8, narrow=True)
finite = st.floats(-1e3, 1e3, width=32)
tensors = arrays(np.float32, array_shapes(max_dims=3, max_side=8), elements=finite).map(torch.from_numpy)
matrices = arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=finite).map(torch.from_numpy)


def fed(method: str, *batches: torch.Tensor) -> Spread:
    state = Spread()
    for batch in batches:
        state = range_methods[method].update(state, batch)
    return state


def coding_error(x: torch.Tensor, quantizer, power: float = 2.4) -> float:
    return float((fake_quantize(x, quantizer) - x).double().abs().pow(power).sum())


@given(st.lists(tensors, min_size=1, max_size=4))
def test_min_max_fed_in_parts_equals_fed_at_once(batches):
    parts, whole = fed("min-max", *batches), fed("min-max", torch.cat([batch.reshape(-1) for batch in batches]))
    assert (parts.low, parts.high) == (whole.low, whole.high)


@given(tensors, st.integers(2, 8), st.booleans())
def test_rounding_error_is_at_most_half_a_step(x, bits, symmetric):
    fmt = IntFormat(bits=bits, signed=symmetric, narrow=symmetric)
    quantizer = choose_quantizer(fed("min-max", x), fmt, "min-max", symmetric=symmetric, what="x")
    error = (dequantize(quantize(x, quantizer), quantizer) - x).abs()
    # the ends of an asymmetric range move by up to half a step when zero is put on a code
    assert bool((error <= (0.5 if symmetric else 1.0) * quantizer.scale[0] * (1 + 1e-4) + 1e-6).all())


@pytest.mark.parametrize("method", range_methods.names())
@given(batches=st.lists(tensors, min_size=1, max_size=3))
def test_range_lies_inside_what_was_seen_and_order_does_not_matter(method, batches):
    state, reverse = fed(method, *batches), fed(method, *batches[::-1])
    low, high = range_methods[method].choose(state, UINT8, False)
    assert (low, high) == pytest.approx(
        range_methods[method].choose(reverse, UINT8, False), rel=1e-9, abs=1e-9
    ) or method == "moving average"
    if method == "integerization":  # reaches beyond what was seen
        assert low <= min(state.low, 0) <= max(state.high, 0) <= high
        return
    assert min(state.low, 0) <= low <= max(high, 0) <= max(state.high, 0) or (low, high) == (state.low, state.high)


@given(st.lists(tensors, min_size=2, max_size=3))
def test_merged_histograms_count_what_both_saw(batches):
    left, right = fed("mse", *batches[:-1]), fed("mse", batches[-1])
    both = merge(left, right)
    assert torch.equal(both.counts, merge(right, left).counts)
    assert both.counts.sum() == left.counts.sum() + right.counts.sum() == sum(batch.numel() for batch in batches)
    assert (both.low, both.high) == (min(left.low, right.low), max(left.high, right.high))


@given(arrays(np.float32, st.integers(1, 200), elements=finite).map(torch.from_numpy), st.integers(3, 8))
def test_mse_range_is_never_worse_than_min_max(x, bits):
    fmt = IntFormat(bits=bits, signed=False)
    state = fed("mse", x)
    chosen, full = (choose_quantizer(state, fmt, method, symmetric=False, what="x") for method in ("mse", "min-max"))
    # the search sees numbers rounded to bins
    blur = math.ldexp(1.0, state.exponent)
    assert coding_error(x, chosen) <= coding_error(x, full) * 1.05 + x.numel() * (2 * blur) ** 2.4 + 1e-6


@given(st.lists(tensors, min_size=1, max_size=4))
def test_moving_average_is_a_weighted_mean_of_batch_extremes(batches):
    count = len(batches)
    weights = np.array([0.9 ** (count - 1), *(0.1 * 0.9 ** (count - 1 - place) for place in range(1, count))])
    state = fed("moving average", *batches)
    assert state.low == pytest.approx(weights @ [float(batch.min()) for batch in batches], rel=1e-6, abs=1e-6)
    assert state.high == pytest.approx(weights @ [float(batch.max()) for batch in batches], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
def test_percentile_leaves_the_tail_out_and_no_more(symmetric):
    x = torch.randn(16384, generator=torch.Generator().manual_seed(0))
    state = fed("percentile", x)
    low, high = percentile_range(state, UINT8, symmetric, share=0.99)
    bin_width = math.ldexp(1.0, state.exponent)
    beyond = (x.abs() > high + bin_width).float().mean() if symmetric else ((x < low - bin_width) | (x > high + bin_width)).float().mean()
    within = (x.abs() < high - bin_width).float().mean() if symmetric else ((x > low + bin_width) & (x < high - bin_width)).float().mean()
    assert beyond <= 0.01
    assert within <= 0.99


def test_entropy_clips_a_long_tail_and_keeps_a_uniform_range():
    generator = torch.Generator().manual_seed(0)
    tailed = torch.cat([torch.randn(16000, generator=generator), 40 * torch.rand(20, generator=generator)])
    low, high = range_methods["entropy"].choose(fed("entropy", tailed), UINT8, False)
    assert high < 0.5 * float(tailed.max())
    assert low < -2
    uniform = torch.rand(16000, generator=generator)
    assert range_methods["entropy"].choose(fed("entropy", uniform), UINT8, False)[1] > 0.95


def test_mse_clips_an_outlier():
    x = torch.cat([torch.linspace(-1, 1, 15000), torch.tensor([5.0])])
    fmt = IntFormat(bits=3, signed=False)
    state = fed("mse", x)
    chosen, full = (choose_quantizer(state, fmt, method, symmetric=False, what="x") for method in ("mse", "min-max"))
    assert coding_error(x, chosen) < 0.5 * coding_error(x, full)


def test_histogram_of_a_large_batch_samples_all_channels():
    x = torch.arange(8.0).reshape(1, 8, 1, 1).expand(4, 8, 64, 64).contiguous()
    counts = histogram(Spread(), x).counts
    assert int((counts > 0).sum()) == 8
    assert counts.sum() <= 16384


@given(matrices, st.integers(2, 8))
def test_weight_mse_is_never_worse_than_largest(weight, bits):
    fmt = IntFormat(bits=bits, narrow=True)
    chosen, full = (choose_weight_quantizer(weight, fmt, method) for method in ("mse", "min-max"))
    for row in range(weight.shape[0]):
        keep = torch.arange(weight.shape[0]) == row
        errors = [(fake_quantize(weight, q) - weight)[keep].double().abs().pow(2.4).sum() for q in (chosen, full)]
        assert errors[0] <= errors[1] * (1 + 1e-4) + 1e-6


@pytest.mark.parametrize("method", weight_range_methods.names())
def test_weight_ranges_have_one_scale_a_channel(method):
    weight = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    quantizer = choose_weight_quantizer(weight, INT8, method)
    assert quantizer.granularity == PerAxis(0)
    assert quantizer.scale[2] == 1.0
    assert quantizer.zero_point == (0,) * 5
    assert all(
        scale <= float(row.abs().max()) / 127 * (2 if method == "integerization" else 1.01)
        for row, scale in zip(weight[[0, 1, 3, 4]], [quantizer.scale[i] for i in (0, 1, 3, 4)], strict=True)
    )


@pytest.mark.parametrize("method", range_methods.names())
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_are_refused_whenever_they_came(method, bad):
    state = fed(method, torch.ones(3), torch.tensor([1.0, bad]), torch.zeros(2))
    with pytest.raises(DataError, match="'conv' is NaN or infinite on the calibration data; check the weights"):
        choose_quantizer(state, UINT8, method, symmetric=False, what="'conv'")


def test_a_value_never_seen_is_refused():
    with pytest.raises(DataError, match="saw no number of 'conv'"):
        choose_quantizer(Spread(), UINT8, "min-max", symmetric=False, what="'conv'")


def test_unknown_method_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'mse'"):
        range_methods["msee"]


def test_every_method_names_its_source():
    registries = (range_methods, weight_range_methods, two_ended_methods)
    assert all("arXiv" in entry.source for registry in registries for entry in registry)
    assert two_ended_methods.names() == weight_range_methods.names()


@given(st.floats(-8, 0, width=32), st.floats(0, 8, width=32), st.integers(4, 8))
def test_codes_of_a_clamped_value_clip_like_the_clamp(low, high, bits):
    if high - low < 1e-3:
        return
    quantizer = from_range(torch.tensor(low), torch.tensor(high), IntFormat(bits=bits, signed=False), PerTensor(), symmetric=False)
    fitted = fit_clamp(quantizer, low, high)
    assert clips_like(fitted, low, high)
    assert fitted.scale[0] == pytest.approx(quantizer.scale[0], rel=1e-6)
    narrow = fit_clamp(quantizer, 2 * low - 1, 2 * high + 1)  # codes end before the limits: nothing to fit
    assert narrow == quantizer


@given(st.lists(tensors, min_size=1, max_size=4))
def test_mean_rounding_covers_the_mean_of_each_samples_extremes(batches):
    rows = [row for batch in batches for row in batch.double().reshape(len(batch), -1)]
    state = fed("mean rounding", *batches)
    expected = [sum(float(pick(row)) for row in rows) / len(rows) for pick in (torch.min, torch.max)]
    assert range_methods["mean rounding"].choose(state, UINT8, False) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_mean_rounding_is_moved_little_by_one_wild_sample():
    calm = torch.rand(99, 10)
    wild = torch.cat([calm, torch.full((1, 10), 1000.0)])
    highs = [range_methods[name].choose(fed(name, wild), UINT8, False)[1] for name in ("min-max", "mean rounding")]
    assert highs[0] == 1000
    assert highs[1] < 12


@given(tensors, st.integers(2, 8), st.booleans())
def test_integerization_multiplies_by_a_power_of_two_and_rounds(x, bits, symmetric):
    fmt = IntFormat(bits=bits, signed=symmetric, narrow=symmetric)
    quantizer = choose_quantizer(fed("integerization", x), fmt, "integerization", symmetric=symmetric, what="x")
    assert math.frexp(quantizer.scale[0])[0] == 0.5
    codes = quantize(x, quantizer)
    assert torch.equal(codes, torch.round(x.double() / quantizer.scale[0]).float() + quantizer.zero_point[0])  # nothing clips
    reach = max(float(x.abs().max()), 0.0) if symmetric else max(float(x.max()), 0.0) - min(float(x.min()), 0.0)
    steps = fmt.hi if symmetric else fmt.hi - fmt.lo
    assert reach < 1e-20 or quantizer.scale[0] < 4 * reach / steps  # the next power of two, or the one after where zero splits a step


@given(matrices, st.integers(2, 8))
def test_integerized_weights_have_powers_of_two_as_scales(weight, bits):
    for fmt in (IntFormat(bits=bits, narrow=True), IntFormat(bits=bits, signed=False)):
        if fmt.signed:
            bound = weight_range_methods["integerization"](weight, fmt)
            low, high = -bound, bound
        else:
            low, high = two_ended_methods["integerization"](weight, fmt)
        quantizer = from_range(low, high, fmt, PerAxis(0), symmetric=fmt.signed)
        assert all(math.frexp(scale)[0] == 0.5 for scale in quantizer.scale)
        error = (fake_quantize(weight, quantizer) - weight).abs()
        assert bool((error <= torch.tensor(quantizer.scale).unsqueeze(1) / 2 * (1 + 1e-6)).all())
