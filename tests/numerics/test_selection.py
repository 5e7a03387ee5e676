import numpy as np
import pytest
import torch

from gossamer.numerics.selection import (
    DAMPING,
    LAMBDAS,
    LEAST_LAMBDA,
    Reading,
    _descend,
    contributions,
    greedy_errors,
    lasso_errors,
    main_directions,
    refit_errors,
)

UNITS, TAPS, OUTPUTS, SAMPLES = 7, 3, 5, 60


def layer(seed=0, units=UNITS, taps=TAPS):
    """Inputs (U, T, S) without their means, that have something in common, and a weight (O, U, T)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(units * taps, units * taps, generator=generator, dtype=torch.float64)
    inputs = (mixing @ torch.randn(units * taps, SAMPLES, generator=generator, dtype=torch.float64)).reshape(units, taps, SAMPLES)
    return inputs - inputs.mean(2, keepdim=True), torch.randn(OUTPUTS, units, taps, generator=generator, dtype=torch.float64)


def outputs(inputs, weight):
    return torch.einsum("out,uts->os", weight, inputs)


def energy(values):
    return float(values.square().sum()) / values.shape[-1]


def reading(inputs, weight):
    flat = inputs.flatten(0, 1)
    second = (flat @ flat.t() / flat.shape[1]).reshape(*inputs.shape[:2], *inputs.shape[:2])
    return Reading(weight / energy(outputs(inputs, weight)) ** 0.5, second)


def test_contributions_predict_the_error_of_every_removal():
    inputs, weight = layer()
    gram = contributions([reading(inputs, weight)])
    for removed in ([0], [2, 5], [0, 1, 3, 6]):
        error = energy(outputs(inputs[removed], weight[:, removed])) / energy(outputs(inputs, weight))
        assert gram[np.ix_(removed, removed)].sum() == pytest.approx(error)


def test_greedy_removes_what_adds_least_to_the_error_of_both_layers():
    layers = [layer(0), layer(1, taps=2)]
    scores = greedy_errors([reading(*each) for each in layers]).numpy()
    gone: list[int] = []
    largest = 0.0
    for _ in range(UNITS):

        def error(removed):
            return sum(energy(outputs(x[removed], w[:, removed])) / energy(outputs(x, w)) for x, w in layers)

        best = min((unit for unit in range(UNITS) if unit not in gone), key=lambda unit: error([*gone, unit]))
        gone.append(best)
        largest = max(largest, error(gone))
        assert scores[best] == pytest.approx(largest, rel=1e-6)
    assert np.argsort(scores).tolist() == gone


def ridge(inputs, weight, stay):
    """Least damped error of the layer's outputs when only the units `stay` are left and are refitted."""
    flat = inputs.flatten(0, 1)
    scale = energy(outputs(inputs, weight))
    damping = DAMPING * float((flat @ flat.t() / SAMPLES).diagonal().mean())
    whole = weight.flatten(1)
    mask = torch.zeros(UNITS, TAPS, dtype=torch.bool)
    mask[stay] = True
    mask = mask.flatten()
    h = flat @ flat.t() / SAMPLES + damping * torch.eye(len(flat), dtype=torch.float64)
    new = torch.zeros_like(whole)
    new[:, mask] = torch.linalg.solve(h[mask][:, mask], h[mask] @ whole.t()).t()
    step = new - whole
    return float((step @ h * step).sum()) / scale


def test_refit_errors_are_those_of_least_squares_after_each_removal():
    inputs, weight = layer()
    scores = refit_errors([reading(inputs, weight)]).numpy()
    left = list(range(UNITS))
    for _ in range(UNITS):
        unit = min(left, key=lambda unit: ridge(inputs, weight, [other for other in left if other != unit]))
        left.remove(unit)
        assert scores[unit] == pytest.approx(ridge(inputs, weight, left), rel=1e-6)


def test_refit_removes_a_copy_first():
    """A unit that another one can stand for costs nothing, however large its weights; greedy removal does not see that."""
    inputs = torch.randn(UNITS, 1, SAMPLES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs[4] = inputs[2]
    weight = torch.ones(OUTPUTS, UNITS, 1, dtype=torch.float64)
    weight[:, [2, 4]] *= 2
    assert int(refit_errors([reading(inputs, weight)]).argmin()) in (2, 4)
    assert int(greedy_errors([reading(inputs, weight)]).argmin()) not in (2, 4)


def test_many_units_go_several_at_once():
    inputs, weight = layer(units=96, taps=1)
    scores = refit_errors([reading(inputs, weight)]).numpy()
    assert len(set(scores.tolist())) == 96
    assert scores.max() == pytest.approx(1, rel=0.2)  # all are gone; damping adds a little


def test_lasso_of_independent_units_goes_by_their_energy():
    """With a diagonal Gram matrix the factor of unit u is max(0, 1 - λ / G_uu)."""
    weight = torch.tensor([[3.0, 1.0, 2.0, 0.5]]).unsqueeze(2).double()
    diagonal = torch.diag(torch.ones(4, dtype=torch.float64))[:, None, :, None]
    scores = lasso_errors([Reading(weight, diagonal)]).numpy()
    gram = np.array([9.0, 1.0, 4.0, 0.25])
    lambdas = np.geomspace(LEAST_LAMBDA, 1, LAMBDAS) * 9
    for unit in range(4):
        reached = lambdas[lambdas >= gram[unit]][0]
        factors = np.maximum(0, 1 - reached / gram)
        assert scores[unit] == pytest.approx((gram * (1 - factors) ** 2).sum(), rel=1e-3)


def test_coordinate_descent_meets_the_conditions_of_the_optimum():
    gram = contributions([reading(*layer())])
    factors, penalty = np.ones(UNITS), 0.7 * float(np.abs(gram.sum(1)).max())
    for _ in range(20):
        _descend(gram, gram.sum(1), factors, penalty)
    slope = gram.sum(1) - gram @ factors
    assert (factors == 0).any()
    assert np.abs(slope[factors == 0]).max() <= penalty * (1 + 1e-6)
    assert slope[factors != 0] == pytest.approx(penalty * np.sign(factors[factors != 0]), rel=1e-3)


def test_main_directions_lose_nothing_where_inputs_lie_in_them():
    inputs, weight = layer(taps=2)
    basis = torch.linalg.qr(torch.randn(6, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    wide, wide_weight = basis @ inputs, torch.randn(OUTPUTS, UNITS, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    narrow, narrow_weight = main_directions(wide, wide_weight, 2)
    assert narrow.shape == (UNITS, 2, SAMPLES)
    for unit in range(UNITS):
        assert torch.allclose(outputs(narrow[[unit]], narrow_weight[:, [unit]]), outputs(wide[[unit]], wide_weight[:, [unit]]))
    assert main_directions(inputs, weight, 2)[1] is weight
