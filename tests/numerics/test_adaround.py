import pytest
import torch

from gossamer.numerics.adaround import beta_at, code_window, indecision, indecision_slope, logits_of, share
from gossamer.numerics.formats import IntFormat


def test_logits_and_shares_are_inverse():
    wanted = torch.linspace(0, 1, 101)
    assert torch.allclose(share(logits_of(wanted)), wanted, atol=1e-6)
    assert share(torch.tensor([-50.0, 50.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_window_holds_the_start_and_its_neighbour_towards_the_weight(bits):
    fmt = IntFormat(bits=bits, narrow=True)
    position = torch.randn(1000, generator=torch.Generator().manual_seed(bits)) * fmt.hi
    start = (position + torch.randn(1000, generator=torch.Generator().manual_seed(9))).round().clamp(fmt.lo, fmt.hi)
    lower = code_window(position, start, fmt)
    assert bool(((start == lower) | (start == lower + 1)).all())
    assert float(lower.min()) >= fmt.lo
    assert float(lower.max()) + 1 <= fmt.hi
    nearest = position.round()
    inside = (start == nearest) & (position.abs() < fmt.hi)
    assert torch.equal(lower[inside], position.floor()[inside])


@pytest.mark.parametrize("beta", [2.0, 3.5, 20.0])
def test_the_slope_is_the_derivative(beta):
    logits = torch.linspace(-4, 4, 1001, dtype=torch.float64).add(1e-4).requires_grad_()
    (expected,) = torch.autograd.grad(indecision(logits, beta), logits)
    assert torch.allclose(indecision_slope(logits.detach(), beta), expected, atol=1e-9)


def test_decided_weights_cost_nothing_and_beta_falls():
    assert float(indecision(torch.tensor([-9.0, 9.0]), 2.0)) == 0
    assert float(indecision(torch.zeros(3), 2.0)) == 3
    assert [beta_at(progress) for progress in (0.0, 0.5, 1.0, 2.0)] == [20.0, 11.0, 2.0, 2.0]
