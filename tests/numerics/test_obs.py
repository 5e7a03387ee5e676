"""Optimal brain surgeon against closed forms: exact where the method is exact, better than magnitude where it is not."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.numerics import kept as kept_module
from gossamer.numerics.kept import refit_kept, solve_kept
from gossamer.numerics.obs import damped, inverse_of, obc_keep, obc_keep_n_of_m, obc_trace, obs_saliency, sparsegpt
from gossamer.numerics.sparsity import NOfM, keep_largest, keep_n_of_m


def layer(rows=5, columns=12, seed=0, samples=200):
    """Weights and the moments of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    inputs = mix @ torch.randn(columns, samples, generator=generator, dtype=torch.float64)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64), damped(inputs @ inputs.T / samples), inputs


def loss(new, old, hessian):
    return float(((new - old) @ hessian * (new - old)).sum())


@given(st.integers(0, 50), st.integers(1, 11))
def test_updates_are_least_squares_on_the_kept_weights(seed, zeros):
    weight, _, inputs = layer(1, seed=seed)
    hessian = inputs @ inputs.T
    order, _ = obc_trace(weight, hessian)
    keep = torch.ones_like(weight, dtype=torch.bool)
    keep[0, order[0, :zeros]] = False
    columns = keep[0].nonzero().reshape(-1)
    oracle = torch.linalg.lstsq(inputs[columns].T, (weight @ inputs).T).solution.reshape(-1)
    new = refit_kept(weight[None], hessian[None], keep[None])[0]
    torch.testing.assert_close(new[0, columns], oracle, rtol=1e-6, atol=1e-8)
    assert not new[~keep].any()


@given(st.integers(0, 50))
def test_the_trace_sums_to_the_exact_loss(seed):
    weight, hessian, _ = layer(3, seed=seed)
    order, losses = obc_trace(weight, hessian)
    assert sorted(order[0].tolist()) == list(range(12))
    for zeros in (1, 5, 12):
        keep = torch.ones_like(weight, dtype=torch.bool).scatter_(1, order[:, :zeros], False)
        new = refit_kept(weight[None], hessian[None], keep[None])[0]
        assert loss(new, weight, hessian) == pytest.approx(float(losses[:, :zeros].sum()), rel=1e-6)


def test_each_step_takes_the_weight_that_costs_least():
    weight, hessian, _ = layer(1, 6)
    order, _ = obc_trace(weight, hessian)
    taken = []
    for step in range(4):
        costs = {}
        for column in set(range(6)) - set(taken):
            keep = torch.ones_like(weight, dtype=torch.bool)
            keep[0, [*taken, column]] = False
            costs[column] = loss(refit_kept(weight[None], hessian[None], keep[None])[0], weight, hessian)
        assert int(order[0, step]) == min(costs, key=costs.get)
        taken.append(int(order[0, step]))


def test_saliency_is_the_loss_of_one_removal():
    weight, hessian, _ = layer(2, 5)
    for row, column in itertools.product(range(2), range(5)):
        keep = torch.ones_like(weight, dtype=torch.bool)
        keep[row, column] = False
        new = refit_kept(weight[None], hessian[None], keep[None])[0]
        assert float(obs_saliency(weight, hessian)[row, column]) == pytest.approx(loss(new, weight, hessian), rel=1e-6)
    torch.testing.assert_close(inverse_of(hessian) @ hessian, torch.eye(5, dtype=torch.float64))


@given(st.integers(0, 30), st.sampled_from([0.25, 0.5, 0.75]))
def test_solvers_beat_magnitude_on_correlated_data(seed, share):
    weight, hessian, _ = layer(8, 32, seed)
    zeros = round(share * weight.numel())
    by_size = keep_largest([weight.abs()], zeros)[0]
    new, keep = sparsegpt(weight, hessian, zeros, columns=8)
    exact = obc_keep(weight[None], hessian[None], zeros)[0]
    assert int((~keep).sum()) == int((~exact).sum()) == zeros
    assert not new[~keep].any()
    assert loss(new, weight, hessian) <= loss(weight * by_size, weight, hessian)
    best = loss(refit_kept(weight[None], hessian[None], exact[None])[0], weight, hessian)
    assert best <= loss(refit_kept(weight[None], hessian[None], by_size[None])[0], weight, hessian)


@given(st.integers(0, 30), st.sampled_from([NOfM(2, 4), NOfM(1, 4), NOfM(4, 8)]))
def test_solvers_hold_the_pattern(seed, pattern):
    weight, hessian, _ = layer(4, 16, seed)
    new, keep = sparsegpt(weight, hessian, pattern=pattern, columns=4)
    exact = obc_keep_n_of_m(weight[None], hessian[None], pattern)[0]
    for mask in (keep, exact):
        assert (mask.reshape(-1, pattern.m).sum(1) == pattern.n).all()
    assert not new[~keep].any()


def test_solvers_beat_magnitude_under_a_pattern():
    """Over many layers; a single one of 16 inputs can go the other way, since groups are chosen before what comes later is known."""
    pattern = NOfM(2, 4)
    totals = dict.fromkeys(("magnitude", "sparsegpt", "obc"), 0.0)
    for seed in range(20):
        weight, hessian, _ = layer(4, 16, seed)
        by_size, exact = keep_n_of_m(weight.abs(), 2, 4), obc_keep_n_of_m(weight[None], hessian[None], pattern)
        totals["magnitude"] += loss(weight * by_size, weight, hessian)
        totals["sparsegpt"] += loss(sparsegpt(weight, hessian, pattern=pattern)[0], weight, hessian)
        totals["obc"] += loss(refit_kept(weight[None], hessian[None], exact)[0], weight, hessian)
    assert totals["obc"] < totals["sparsegpt"] < totals["magnitude"]


def test_sparsegpt_with_one_block_of_columns_equals_many_without_choice():
    """Lazy updates are only an order of computing: with a full mask to keep, nothing changes."""
    weight, hessian, _ = layer(4, 16)
    new, keep = sparsegpt(weight, hessian, 0, columns=4)
    assert torch.equal(new, weight)
    assert keep.all()


@given(st.integers(0, 30), st.sampled_from([None, NOfM(2, 4)]))
def test_sparsegpt_keeps_older_zeros(seed, pattern):
    weight, hessian, _ = layer(4, 16, seed)
    old = torch.rand(4, 16, generator=torch.Generator().manual_seed(seed)) > 0.4
    new, keep = sparsegpt(weight * old, hessian, 40 if pattern is None else None, pattern=pattern, columns=4, old=old)
    assert not (keep & ~old).any()
    assert not new[~keep].any()
    if pattern is None:
        assert int((~keep).sum()) == max(40, int((~old).sum()))
    else:
        assert (keep.reshape(-1, 4).sum(1) <= 2).all()


def test_weights_that_are_zero_go_first():
    weight, hessian, _ = layer(4, 12)
    weight[:, 3] = 0
    assert (obc_trace(weight, hessian)[0][:, 0] == 3).all()
    assert not obc_keep(weight[None], hessian[None], 4)[0][:, 3].any()


@given(st.integers(0, 30))
def test_gradients_find_what_cholesky_finds(seed):
    weight, hessian, _ = layer(6, 20, seed)
    keep = torch.rand(6, 20, generator=torch.Generator().manual_seed(seed)) > 0.5
    keep[0] = False  # a row without any weight
    direct, iterated = (solve(hessian, weight @ hessian, keep) for solve in (kept_module._by_cholesky, kept_module._by_gradients))
    torch.testing.assert_close(direct, iterated, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(((direct @ hessian) - weight @ hessian)[keep], torch.zeros(int(keep.sum()), dtype=torch.float64))


def test_dear_systems_are_iterated(monkeypatch):
    weight, hessian, _ = layer(6, 20)
    keep = weight.abs() > 0.5
    exact = solve_kept(hessian[None], weight[None], keep[None])
    monkeypatch.setattr(kept_module, "DIRECT_COST", 0)
    torch.testing.assert_close(solve_kept(hessian[None], weight[None], keep[None]), exact, rtol=1e-4, atol=1e-5)


def test_inputs_that_are_always_zero():
    second = torch.zeros(2, 3, 3)
    second[1] = torch.diag(torch.tensor([1.0, 0.0, 2.0]))
    torch.linalg.cholesky(damped(second))
    assert damped(second)[0].equal(torch.eye(3))
