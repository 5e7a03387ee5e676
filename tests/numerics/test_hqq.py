"""Half-quadratic grids: never worse than rounding to nearest in what they minimise, and exact as quantizers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.numerics.affine import dequantize, quantize
from gossamer.numerics.formats import parse_format
from gossamer.numerics.hqq import POWER, half_quadratic_bound, half_quadratic_ends, lp_error
from gossamer.numerics.ranges import choose_block_grid, choose_block_quantizer, choose_weight_quantizer, in_blocks

FORMATS = [f"{sign}int{bits}" for bits in (2, 3, 4, 5, 8) for sign in ("", "u")]


def weights(rows, columns, seed, tails=False):
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, columns, generator=generator)
    return normal**3 if tails else normal


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(FORMATS),
    st.integers(1, 6),
    st.integers(1, 70),
    st.sampled_from([1, 3, 16, 32, 64]),
    st.sampled_from([1e-30, 0.02, 1e20]),
    st.booleans(),
)
def test_never_worse_than_nearest_in_its_own_objective(name, rows, columns, block, size, tails):
    fmt, weight = parse_format(name), weights(rows, columns, columns, tails) * size
    found, nearest = (choose_block_quantizer(weight, fmt, method, size=block) for method in ("hqq", "min-max"))
    errors = []
    for quantizer in (found, nearest):
        error = (dequantize(quantize(weight, quantizer), quantizer) - weight).abs()
        errors.append(in_blocks((error.to(torch.float64) / size) ** POWER, block).sum(1))
    slack = columns * 1e-6**POWER  # float32 rounding where the error should be zero: |1e-6|^0.75
    assert bool((errors[0] <= errors[1] * (1 + 1e-4) + slack).all())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("tails", [False, True])
def test_clearly_better_than_nearest_on_many_blocks(name, tails):
    fmt, rows = parse_format(name), weights(500, 32, 0, tails)
    errors = {method: lp_error(rows, *grid(rows, fmt, method), fmt).sum() for method in ("hqq", "min-max")}
    assert errors["hqq"] < 0.995 * errors["min-max"]


def grid(rows, fmt, method):
    return (part.to(torch.float32).unsqueeze(1) for part in choose_block_grid(rows, fmt, method))


@given(st.integers(2, 8), st.integers(0, 50))
def test_weights_that_lie_on_a_grid_stay(bits, seed):
    """Codes from end to end with any zero point: every error is zero already, and nothing moves."""
    generator = torch.Generator().manual_seed(seed)
    zero = torch.randint(0, 2**bits, (4, 1), generator=generator)
    codes = torch.randint(0, 2**bits, (4, 40), generator=generator)
    codes[:, 0], codes[:, 1] = 0, 2**bits - 1
    rows = (codes - zero) * 0.25
    fmt = parse_format(f"uint{bits}")
    scale, found = choose_block_grid(rows, fmt, "hqq")
    assert scale.tolist() == [0.25] * 4
    assert found.tolist() == zero.reshape(-1).tolist()


def test_one_outlier_no_longer_ruins_the_rest():
    """The case the method is made for: with 2 bits, one large weight leaves the others without codes."""
    rows = weights(1, 64, 3) * 0.1
    rows[0, 5] = 1.5
    others = torch.arange(64) != 5
    fmt = parse_format("uint2")
    mean = {}
    for method in ("hqq", "min-max"):
        scale, zero = grid(rows, fmt, method)
        coded = ((rows / scale).round() + zero).clamp(fmt.lo, fmt.hi).sub(zero) * scale
        mean[method] = float((coded - rows)[0, others].abs().pow(POWER).mean())
    assert mean["hqq"] <= mean["min-max"]


def test_zero_rows_and_argument_stay():
    rows = torch.zeros(3, 8)
    for name in ("int4", "uint4"):
        assert [part.tolist() for part in choose_block_grid(rows, parse_format(name), "hqq")] == [[1.0] * 3, [0.0] * 3]
    weight = weights(3, 8, 1)
    before = weight.clone()
    half_quadratic_bound(weight, parse_format("int4"))
    half_quadratic_ends(weight, parse_format("uint4"))
    assert torch.equal(weight, before)


def test_scales_of_channels_too():
    weight = weights(6, 200, 4, tails=True)
    found, nearest = (choose_weight_quantizer(weight, parse_format("int4"), method) for method in ("hqq", "min-max"))
    errors = [(dequantize(quantize(weight, q), q) - weight).abs().pow(POWER).sum(1) for q in (found, nearest)]
    assert bool((errors[0] <= errors[1] * (1 + 1e-5)).all())
    assert float(errors[0].sum()) < 0.97 * float(errors[1].sum())
