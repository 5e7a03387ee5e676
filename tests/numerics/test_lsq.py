"""Learned rounding: the forward pass is that of fake_quantize, the gradients are those that autograd finds for the formula."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.numerics.affine import Quantizer, fake_quantize, spread_out
from gossamer.numerics.formats import IntFormat, PerAxis, PerBlock, PerTensor
from gossamer.numerics.lsq import learned_quantize


def values(shape, seed, spread=4.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * spread


def written_out(x, scale, zero, fmt):
    """The formula with straight-through rounding, for autograd."""
    levels = torch.minimum(torch.maximum(x / scale, fmt.lo - zero), fmt.hi - zero)
    return (levels + (levels.round() - levels).detach()) * scale


@given(
    st.integers(2, 8),
    st.booleans(),
    st.sampled_from([PerTensor(), PerAxis(0), PerAxis(1), PerBlock(1, 4)]),
    st.integers(0, 1000),
)
def test_forward_is_fake_quantize_to_the_bit(bits, signed, granularity, seed):
    fmt = IntFormat(bits=bits, signed=signed)
    count = {"PerTensor": 1, "PerAxis": 6, "PerBlock": 12}[type(granularity).__name__]
    generator = torch.Generator().manual_seed(seed)
    scale = tuple((torch.rand(count, generator=generator) + 0.01).tolist())
    zero = tuple(torch.randint(fmt.lo, fmt.hi + 1, (count,), generator=generator).tolist())
    quantizer = Quantizer(fmt, granularity, scale, zero)
    x = values((6, 6), seed)
    scales, zeros = (spread_out(torch.tensor(part, dtype=torch.float32), granularity, x) for part in (scale, zero))
    assert torch.equal(learned_quantize(x, scales, zeros, fmt), fake_quantize(x, quantizer))


@pytest.mark.parametrize("zero", [0.0, 3.0, 12.0])
@pytest.mark.parametrize("shape", [(), (5, 1)])
def test_gradients_are_those_of_the_formula(zero, shape):
    fmt = IntFormat(bits=4, signed=False)
    x = values((5, 40), 1).requires_grad_()
    scale = (values(shape, 2, 0.05).abs() + 0.3).requires_grad_()
    offset = torch.full(shape, zero, requires_grad=True)
    weights = values((5, 40), 3)
    found = torch.autograd.grad((learned_quantize(x, scale, offset, fmt) * weights).sum(), (x, scale, offset))
    wanted = torch.autograd.grad((written_out(x, scale, offset, fmt) * weights).sum(), (x, scale, offset))
    torch.testing.assert_close(found[0], wanted[0])
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[2], wanted[2], rtol=1e-4, atol=1e-4)
    assert bool((found[0] == 0).any()) and bool((found[0] != 0).any())


def test_a_zero_point_between_codes_is_used_as_its_nearest_and_within_the_codes():
    fmt, x, one = IntFormat(bits=4, signed=False), values((30,), 4), torch.tensor(0.5)
    for between, code in ((6.4, 6.0), (-3.0, 0.0), (99.0, 15.0)):
        expected = learned_quantize(x, one, torch.tensor(code), fmt)
        assert torch.equal(learned_quantize(x, one, torch.tensor(between), fmt), expected)


def test_no_gradient_where_none_is_asked_for():
    x = values((8,), 5).requires_grad_()
    learned_quantize(x, torch.tensor(0.5), torch.tensor(0.0), IntFormat(bits=8)).sum().backward()
    assert x.grad is not None


def test_numbers_of_lower_precision_are_rounded_in_float32():
    x = values((64,), 6).bfloat16().requires_grad_()
    scale, fmt = torch.tensor(0.013), IntFormat(bits=8)
    found = learned_quantize(x, scale, torch.tensor(0.0), fmt)
    found.sum().backward()
    assert torch.equal(found, learned_quantize(x.detach().float(), scale, torch.tensor(0.0), fmt))
    assert x.grad.dtype == torch.bfloat16
