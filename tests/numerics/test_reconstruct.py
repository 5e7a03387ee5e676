import pytest
import torch

from gossamer.numerics.reconstruct import bias_only, refit, refit_by_holdout


def problem(samples, inputs=6, outputs=3, groups=2, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return draw(groups, outputs, inputs), draw(groups, inputs, samples) + 1, draw(groups, outputs, samples)


def test_equals_ordinary_least_squares_without_damping():
    weight, x, y = problem(40)
    new, bias = refit(weight, x, y, damping=1e-12)
    for group in range(2):
        augmented = torch.cat([x[group], torch.ones(1, 40, dtype=x.dtype)]).t()
        expected = torch.linalg.lstsq(augmented, y[group].t()).solution.t()
        assert torch.allclose(new[group], expected[:, :-1], atol=1e-8)
        assert torch.allclose(bias[group], expected[:, -1], atol=1e-8)


@pytest.mark.parametrize("samples", [4, 6, 7, 50])
def test_is_the_minimum_of_its_objective(samples):
    """The gradient of |Y - W' X - b'|^2 + lambda |W' - W|^2 vanishes, whichever matrix is inverted."""
    weight, x, y = problem(samples)
    centred = x - x.mean(2, keepdim=True)
    ridge = 0.3 * centred.square().sum((1, 2)) / x.shape[1]
    new, bias = (tensor.requires_grad_() for tensor in refit(weight, x, y, damping=0.3))
    loss = (y - new @ x - bias.unsqueeze(2)).square().sum() + (ridge * (new - weight).square().sum((1, 2))).sum()
    assert all(grad.abs().max() < 1e-9 for grad in torch.autograd.grad(loss, [new, bias]))


def test_right_weights_stay():
    weight, x, _ = problem(5)
    new, bias = refit(weight, x, weight @ x + 2)
    assert torch.allclose(new, weight)
    assert torch.allclose(bias, torch.full_like(bias, 2))


def test_inputs_that_never_vary_leave_the_weights_and_set_the_bias():
    weight, x, y = problem(9)
    new, bias = refit(weight, torch.ones_like(x), y)
    assert torch.allclose(new, weight)
    assert torch.allclose(new.sum(2) + bias, y.mean(2))


def test_arguments_stay():
    arguments = problem(9)
    before = [tensor.clone() for tensor in arguments]
    refit(*arguments)
    assert all(map(torch.equal, arguments, before))


def test_plenty_of_samples_are_fitted_with_little_damping():
    weight, x, y = problem(240)
    assert all(map(torch.equal, refit_by_holdout(weight, x, y), refit(weight, x, y)))


@pytest.mark.parametrize("samples", [1, 3, 9, 30])
def test_noise_is_not_fitted(samples):
    """Outputs that have nothing to do with the inputs, and weights that are right up to noise: the weights stay, about."""
    weight, x, noise = problem(samples)
    new, bias = refit_by_holdout(weight, x, weight @ x + 0.5 + 10 * noise)
    _, fresh, _ = problem(200, seed=1)
    wrong = (new - weight) @ fresh + bias.unsqueeze(2) - 0.5
    fitted, shift = refit(weight, x, weight @ x + 0.5 + 10 * noise)
    assert wrong.square().mean() <= ((fitted - weight) @ fresh + shift.unsqueeze(2) - 0.5).square().mean() * (1 + 1e-9)


def test_few_samples_that_agree_are_fitted():
    weight, x, _ = problem(30)
    truth = weight + 1
    new, bias = refit_by_holdout(weight, x, truth @ x)
    assert (new - truth).abs().max() < 0.1
    assert bias.abs().max() < 0.3


def test_bias_only_makes_the_means_equal():
    weight, x, y = problem(7)
    same, bias = bias_only(weight, x, y)
    assert torch.equal(same, weight)
    assert torch.allclose((same @ x + bias.unsqueeze(2)).mean(2), y.mean(2))
