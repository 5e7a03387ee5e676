import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from gossamer.numerics import integer
from gossamer.numerics.affine import Quantizer, dequantize, quantize
from gossamer.numerics.formats import IntFormat, PerAxis, PerTensor

UINT8 = IntFormat(bits=8, signed=False)
INT8 = IntFormat(bits=8, narrow=True)
scales = st.floats(2.0**-10, 2.0**4, width=32)
values = st.builds(lambda scale, zero: Quantizer(UINT8, PerTensor(), (scale,), (zero,)), scales, st.integers(0, 255))


def codes(*shape: int, low: int = 0, high: int = 255, seed: int = 0) -> torch.Tensor:
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("columns", [50, 3000])  # sums below and above what float32 holds exactly
def test_sums_are_exact(columns):
    source = Quantizer(UINT8, PerTensor(), (0.1,), (3,))
    x, weight, bias = codes(6, columns), codes(4, columns, low=-127, high=127, seed=1), torch.tensor([2.0**30, -7, 0, 1])
    sums = integer.accumulate(F.linear, x, source, weight, bias=bias)
    exact = (x.long() - 3).numpy() @ weight.long().numpy().T + bias.long().numpy()
    assert np.array_equal(sums.numpy().astype(np.int64), exact)


def test_requantization_rounds_in_float32_half_to_even():
    source, result = Quantizer(UINT8, PerTensor(), (0.5,), (0,)), Quantizer(UINT8, PerTensor(), (1.0,), (10,))
    weight = Quantizer(INT8, PerAxis(0), (1.0, 2.0), (0, 0))
    sums = torch.tensor([[1.0, 1.0], [3.0, 3.0], [-5.0, 600.0]], dtype=torch.float64)
    got = integer.requantize(sums, integer.accumulator_scales(source, weight, sums), result)
    # 0.5 -> 0, 1.5 -> 2, -2.5 -> -2; clamped at 255
    assert got.tolist() == [[10, 11], [12, 13], [8, 255]]


@given(values, values, values)
def test_adding_is_within_a_step_of_the_real_sum(one, two, result):
    left, right = codes(4, 50), codes(4, 50, seed=1)
    got = integer.add_codes(left, right, (one, two, result))
    best = quantize(dequantize(left, one) + dequantize(right, two), result)
    size = max(one.scale[0], two.scale[0]) * 255 / result.scale[0]
    assert (got - best).abs().max() <= 1 + size * 2.0**-20  # float32 rounds relative to the largest term


@given(values, values, values)
def test_multiplying_is_within_a_step_of_the_real_product(one, two, result):
    left, right = codes(4, 50), codes(4, 50, seed=1)
    got = integer.multiply_codes(left, right, (one, two, result))
    assert (got - quantize(dequantize(left, one) * dequantize(right, two), result)).abs().max() <= 1


@given(values, values)
def test_averages_are_within_a_step(source, result):
    x = codes(2, 3, 4, 4)
    best = quantize(dequantize(x, source).double().mean((2, 3), keepdim=True).float(), result)
    assert (integer.average_all(x, source, result) - best).abs().max() <= 1
    pooled = integer.average_windows(lambda real: F.avg_pool2d(real, 2), x, source, result)
    assert (pooled - quantize(F.avg_pool2d(dequantize(x, source), 2), result)).abs().max() <= 1


@given(values, values)
def test_a_table_gives_what_the_function_gives(source, result):
    x = codes(3, 40)
    expected = quantize(torch.sigmoid(dequantize(x, source)), result)
    assert torch.equal(integer.look_up(torch.sigmoid, x, source, result), expected)
    assert torch.equal(integer.recode(x, source, source), x)
    assert torch.equal(integer.recode(x, source, result), quantize(dequantize(x, source), result))


def test_bias_codes():
    got = integer.bias_to_codes(torch.tensor([1.0, 0.25, -0.75]), torch.tensor([[0.5, 0.5, 0.5]]))
    assert got.tolist() == [2, 0, -2]  # half to even
