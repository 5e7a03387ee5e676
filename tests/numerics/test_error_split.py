import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.numerics.affine import Quantizer, fake_quantize
from gossamer.numerics.error_split import ErrorSplit, code_limits, split_error
from gossamer.numerics.formats import IntFormat, PerAxis, PerTensor


@given(
    numbers=st.lists(st.floats(-40, 40, width=32), min_size=1, max_size=30),
    scale=st.sampled_from([0.01, 0.25, 1.0]),
    zero=st.integers(0, 255),
)
def test_both_parts_add_up_to_the_error_and_only_numbers_beyond_the_codes_are_clipped(numbers, scale, zero):
    quantizer = Quantizer(IntFormat(bits=8, signed=False), PerTensor(), (scale,), (zero,))
    x = torch.tensor(numbers)
    coded = fake_quantize(x, quantizer)
    split = split_error(x, coded, quantizer)
    error = ((coded - x).double() ** 2).sum()
    assert split.noise == pytest.approx(float(error))
    assert split.signal == pytest.approx(float((x.double() ** 2).sum()))
    low, high = (-zero - 0.5) * np.float32(scale), (255 - zero + 0.5) * np.float32(scale)
    outside = (x < low - 1e-5) | (x > high + 1e-5)
    inside = (x > low + 1e-5) & (x < high - 1e-5)
    assert int(outside.sum()) <= split.clipped <= len(x) - int(inside.sum())
    if bool((outside | inside).all()):
        assert split.clipping == pytest.approx(float(((coded - x).double() ** 2)[outside].sum()))


def test_codes_that_are_not_the_nearest_count_as_rounding():
    quantizer = Quantizer(IntFormat(bits=8), PerTensor(), (1.0,), (0,))
    split = split_error(torch.tensor([3.0, 200.0]), torch.tensor([5.0, 120.0]), quantizer)
    assert (split.rounding, split.clipping, split.clipped, split.count) == (4.0, 6400.0, 1, 2)
    assert split.clipping_share == pytest.approx(6400 / 6404)
    assert split.clipped_share == 0.5


def test_parts_of_a_tensor_add_up():
    quantizer = Quantizer(IntFormat(bits=4), PerTensor(), (0.3,), (1,))
    x = torch.randn(7, 5)
    coded = fake_quantize(x, quantizer)
    whole = split_error(x, coded, quantizer)
    parts = split_error(x[:3], coded[:3], quantizer) + split_error(x[3:], coded[3:], quantizer)
    assert parts.count == whole.count
    assert (parts.noise, parts.signal, parts.clipped) == (pytest.approx(whole.noise), pytest.approx(whole.signal), whole.clipped)
    assert ErrorSplit().clipping_share == ErrorSplit().clipped_share == 0.0


def test_limits_are_the_ends_of_the_codes():
    quantizer = Quantizer(IntFormat(bits=8, narrow=True), PerAxis(0), (0.5, 2.0), (0, 0))
    low, high = code_limits(quantizer, torch.zeros(2, 3))
    torch.testing.assert_close(low, torch.tensor([[-63.5], [-254.0]]).expand(2, 3))
    torch.testing.assert_close(high, -low)
