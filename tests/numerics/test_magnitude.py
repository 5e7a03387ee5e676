"""Numbers of any size. Oracle: powers of two change nothing but the size of what is computed from them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.numerics.formats import parse_format
from gossamer.numerics.magnitude import for_squares
from gossamer.numerics.ranges import range_methods, two_ended_methods, weight_range_methods
from gossamer.numerics.saliency import Criterion, criteria, powers
from gossamer.numerics.spread import Spread

EXPONENTS = st.integers(-95, 100)  # 1e-30 to 1e30 for numbers of about 0.03 to 4
MEASURES = [name for name in criteria.names() if isinstance(criteria[name], Criterion)]


def drawn(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator)


def moved(tensor, exponent):
    return torch.ldexp(tensor, torch.tensor(exponent))


@pytest.mark.parametrize("name", MEASURES)
@settings(max_examples=25)
@given(exponent=EXPONENTS, seed=st.integers(0, 99))
def test_measures_rank_weights_of_any_size(name, exponent, seed):
    rows, evidence = drawn(seed, 6, 10), drawn(seed + 100, 6, 10).abs()
    measure, needs = criteria[name].measure, criteria[name].needs
    expected, got = (measure(part, evidence if needs else None, torch.Generator().manual_seed(1)) for part in (rows, moved(rows, exponent)))
    assert torch.isfinite(got).all()
    assert torch.equal(got.argsort(), expected.argsort())


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("shape", "axis"), [((8, 33), 0), ((33, 8), 1), ((600, 8, 2), 1)])
@settings(max_examples=10)
@given(exponent=EXPONENTS)
def test_powers_of_any_size(order, shape, axis, exponent):
    tensor = drawn(0, *shape)
    expected = powers(tensor, axis, order) * 2.0 ** (order * exponent)
    assert torch.allclose(powers(moved(tensor, exponent), axis, order), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("methods", [weight_range_methods, two_ended_methods], ids=["symmetric", "two ends"])
@pytest.mark.parametrize("bits", ["int4", "uint4", "int8"])
@settings(max_examples=15)
@given(exponent=st.integers(-70, 100))
def test_ranges_of_weights_of_any_size(methods, bits, exponent):
    rows, fmt = drawn(1, 5, 24), parse_format(bits)
    rows[2] *= 1e-3  # rows do not matter to each other
    for name in methods.names():
        expected, got = (methods[name](part, fmt) for part in (rows, moved(rows, exponent)))
        for one, other in zip(
            expected if isinstance(expected, tuple) else (expected,), got if isinstance(got, tuple) else (got,), strict=True
        ):
            assert torch.allclose(one.double() * 2.0**exponent, other.double(), rtol=1e-5, atol=0), name


@pytest.mark.parametrize("name", range_methods.names())
@settings(max_examples=10)
@given(exponent=EXPONENTS, symmetric=st.booleans())
def test_ranges_of_values_of_any_size(name, exponent, symmetric):
    method, fmt, values = range_methods[name], parse_format("int8"), drawn(2, 4, 500) ** 2
    expected, got = (method.choose(method.update(Spread(), part), fmt, symmetric) for part in (values, moved(values, exponent)))
    assert got == pytest.approx([end * 2.0**exponent for end in expected], rel=1e-5)


def test_usual_numbers_stay_float32():
    assert for_squares(drawn(0, 3)).dtype == torch.float32
    assert for_squares(torch.zeros(3)).dtype == torch.float32
    assert for_squares(drawn(0, 3).to(torch.bfloat16)).dtype == torch.float32
    assert for_squares(drawn(0, 3) * 1e20).dtype == for_squares(drawn(0, 3) * 1e-20).dtype == torch.float64
    assert for_squares(torch.zeros(0)).numel() == 0
