import pytest
import torch

from gossamer.numerics.formats import IntFormat
from gossamer.numerics.rounding import second_order_codes

INT4 = IntFormat(bits=4, narrow=True)


def problem(groups: int, rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weight, scale, and a covariance with strong correlations."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(groups, rows, columns, generator=random)
    scale = weight.abs().amax(2, keepdim=True) / INT4.hi
    mix = torch.randn(groups, columns, columns, generator=random) / columns**0.5
    samples = (mix + 0.3 * torch.eye(columns)) @ torch.randn(groups, columns, 4 * columns, generator=random)
    return weight, scale, samples @ samples.transpose(1, 2) / samples.shape[2]


def output_error(weight, scale, codes, covariance) -> torch.Tensor:
    error = (weight - codes * scale).double()
    return torch.einsum("grk,gkl,grl->", error, covariance.double(), error)


def by_inverse(weight: torch.Tensor, scale: torch.Tensor, covariance: torch.Tensor, damping: float) -> torch.Tensor:
    """The published form: one column after the other, its error spread by the inverse covariance."""
    covariance = covariance.double() + damping * covariance.double().diagonal().mean() * torch.eye(len(covariance))
    upper = torch.linalg.cholesky(torch.linalg.inv(covariance), upper=True)
    rest, codes = weight.double().clone(), torch.empty_like(weight)
    for column in range(weight.shape[1]):
        codes[:, column] = (rest[:, column] / scale[:, 0]).round().clamp(INT4.lo, INT4.hi)
        error = (rest[:, column] - codes[:, column] * scale[:, 0]) / upper[column, column]
        rest[:, column:] -= error[:, None] * upper[column, column:]
    return codes


@pytest.mark.parametrize("columns", [1, 9, 130])
def test_equals_the_published_form(columns):
    weight, scale, covariance = problem(2, 3, columns)
    codes = second_order_codes(weight, scale, covariance, INT4, damping=0.05)
    for group in range(2):
        expected = by_inverse(weight[group], scale[group], covariance[group], 0.05)
        assert (codes[group] != expected).float().mean() < 0.01  # float32 can flip what lies between two codes


@pytest.mark.parametrize("seed", range(3))
def test_output_changes_less_than_with_nearest_codes(seed):
    weight, scale, covariance = problem(1, 8, 24, seed)
    nearest = (weight / scale).round()
    codes = second_order_codes(weight, scale, covariance, INT4)
    assert output_error(weight, scale, codes, covariance) < 0.8 * output_error(weight, scale, nearest, covariance)
    assert codes.min() >= INT4.lo
    assert codes.max() <= INT4.hi
    assert torch.equal(codes, codes.round())


def test_uncorrelated_inputs_keep_nearest_codes():
    weight, scale, _ = problem(3, 4, 6)
    covariance = torch.diag_embed(torch.rand(3, 6) + 0.1)
    assert torch.equal(second_order_codes(weight, scale, covariance, INT4), (weight / scale).round())


def test_dead_inputs_and_none_at_all():
    weight, scale, covariance = problem(1, 4, 6)
    covariance[:, 2] = covariance[:, :, 2] = 0
    codes = second_order_codes(weight, scale, covariance, INT4)
    assert torch.equal(codes[:, :, 2], (weight / scale).round()[:, :, 2])
    assert torch.equal(second_order_codes(weight, scale, torch.zeros_like(covariance), INT4), (weight / scale).round())


def test_a_covariance_that_is_no_covariance_gives_nearest_codes():
    weight, scale, covariance = problem(1, 4, 6)
    assert torch.equal(second_order_codes(weight, scale, covariance * torch.nan, INT4), (weight / scale).round())


def test_arguments_stay_as_they_are():
    before = problem(1, 4, 120)
    after = problem(1, 4, 120)
    second_order_codes(*after, INT4)
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


@pytest.mark.parametrize("columns", [20, 130])
def test_masked_weights_keep_code_zero(columns):
    weight, scale, covariance = problem(2, 4, columns)
    keep = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) > 0.6
    weight = weight * keep
    free = second_order_codes(weight, scale, covariance, INT4, damping=0.01)
    assert free[~keep].any()  # without the mask, zeros move
    codes = second_order_codes(weight, scale, covariance, INT4, damping=0.01, keep=keep)
    assert not codes[~keep].any()
    nearest = (weight / scale).round()
    assert output_error(weight, scale, codes, covariance) < output_error(weight, scale, nearest, covariance)
