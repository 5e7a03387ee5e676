"""Floating-point formats against torch's own dtypes, number by number."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from gossamer.errors import ConfigError
from gossamer.numerics.affine import Quantizer, dequantize, fake_quantize, from_range, quantize
from gossamer.numerics.formats import FLOAT_FORMATS, IntFormat, PerAxis, PerBlock, PerTensor, parse_any_format
from gossamer.numerics.nearest import nearest_codes

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
names = pytest.mark.parametrize("name", DTYPES)


def plain(name: str) -> Quantizer:
    return Quantizer(FLOAT_FORMATS[name], PerTensor(), (1.0,), (0,))


@names
def test_sizes_and_limits_are_those_of_the_dtype(name):
    fmt, info = FLOAT_FORMATS[name], torch.finfo(DTYPES[name])
    assert (fmt.bits, fmt.hi, fmt.lo) == (info.bits, info.max, info.min)
    assert parse_any_format(name) is fmt
    assert parse_any_format("uint4") == IntFormat(bits=4, signed=False)


@names
@given(numbers=arrays(np.float32, array_shapes(max_dims=2, max_side=20), elements=st.floats(width=32, allow_nan=False)))
def test_codes_are_what_the_dtype_holds(name, numbers):
    fmt, x = FLOAT_FORMATS[name], torch.from_numpy(numbers)
    found = quantize(x, plain(name))
    expected = x.clamp(fmt.lo, fmt.hi).to(DTYPES[name]).to(torch.float32)  # torch overflows to inf or NaN, we saturate
    assert torch.equal(found, expected)


@names
def test_all_numbers_of_eight_and_sixteen_bits_stay_and_ties_go_to_even(name):
    dtype = DTYPES[name]
    codes = torch.arange(2 ** FLOAT_FORMATS[name].bits, dtype=torch.int32).to(torch.int16 if torch.finfo(dtype).bits == 16 else torch.uint8)
    held = codes.view(dtype).to(torch.float32)
    held = held[torch.isfinite(held)].unique()
    assert torch.equal(quantize(held, plain(name)), held)
    middles = ((held[1:].double() + held[:-1].double()) / 2).float()
    assert torch.equal(quantize(middles, plain(name)), middles.to(dtype).float())


def test_not_a_number_stays_one_and_infinity_saturates():
    x = torch.tensor([torch.nan, torch.inf, -torch.inf])
    found = quantize(x, plain("fp8_e5m2"))
    assert bool(found[0].isnan())
    assert found[1:].tolist() == [57344.0, -57344.0]


@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(0), PerBlock(1, 4)])
def test_scales_spread_the_largest_weight_onto_the_largest_number(granularity):
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, 6).unsqueeze(1)
    fmt = FLOAT_FORMATS["fp8_e4m3"]
    rows = {PerTensor: weight.reshape(1, -1), PerAxis: weight, PerBlock: torch.nn.functional.pad(weight, (0, 2)).reshape(-1, 4)}
    bound = rows[type(granularity)].abs().amax(1)
    quantizer = from_range(-bound, bound, fmt, granularity, symmetric=True)
    codes = quantize(weight, quantizer)
    assert torch.equal(codes, (weight / quantizer.tensors(weight)[0]).clamp(fmt.lo, fmt.hi).to(torch.float8_e4m3fn).float())
    error = (dequantize(codes, quantizer) - weight).abs()
    assert bool(
        (error <= weight.abs() / 16 + quantizer.tensors(weight)[0] * 2.0**-10).all()
    )  # half a step of 3 bits; of the least exponent
    assert Quantizer.from_json(json.loads(json.dumps(quantizer.to_json()))) == quantizer


def test_gradients_pass_straight_through():
    x = torch.tensor([0.3, 500.0, -3.0], requires_grad=True)
    fake_quantize(x, plain("fp8_e4m3")).sum().backward()
    assert x.grad.tolist() == [1.0, 0.0, 1.0]


def test_whole_numbers_are_the_codes_of_integers():
    x = torch.tensor([0.5, 1.5, -2.4])
    assert nearest_codes(x, IntFormat(bits=4)).tolist() == [0.0, 2.0, -2.0]


def test_what_floats_cannot_have():
    fmt = FLOAT_FORMATS["fp16"]
    with pytest.raises(ConfigError, match="zero_point must be 0 for a floating-point format"):
        Quantizer(fmt, PerTensor(), (1.0,), (1,))
    with pytest.raises(ConfigError, match="symmetric must be True for fp16"):
        from_range(torch.zeros(1), torch.ones(1), fmt, PerTensor(), symmetric=False)
    with pytest.raises(ConfigError, match="format must be one of fp16, bf16, fp8_e4m3, fp8_e5m2, or intN or uintN; got 'fp4'"):
        parse_any_format("fp4")
    with pytest.raises(ConfigError, match="Quantizer.format must be one of integers here; got 'fp16'"):
        _ = plain("fp16").integers
