"""Least-squares weights: what a layer should multiply the inputs that are left with, to give the outputs that it gave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gossamer.numerics.kept import solve_kept

DAMPINGS = (1e-2, 1e-1, 1.0)
PLENTY = 40  # samples per input from which on the least damping is right


def refit_by_holdout(weight: Tensor, inputs: Tensor, outputs: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`refit` with the damping that does best on the last quarter of the samples, or the bias alone where all do worse.

    With few samples, least squares fits what is special about them. Shapes as for `refit`.
    """
    samples = inputs.shape[2]
    if samples >= PLENTY * inputs.shape[1]:
        return refit(weight, inputs, outputs, damping=DAMPINGS[0], keep=keep)
    if samples < 4:
        return bias_only(weight, inputs, outputs)
    cut = samples - samples // 4
    fitted, held = (inputs[..., :cut], outputs[..., :cut]), (inputs[..., cut:], outputs[..., cut:])
    refits = _refits(weight, *fitted, DAMPINGS, keep)
    errors = {_error(*refitted, *held): damping for damping, refitted in zip(DAMPINGS, refits, strict=True)}
    least = min(errors)
    if _error(*bias_only(weight, *fitted), *held) <= least:
        return bias_only(weight, inputs, outputs)
    return refit(weight, inputs, outputs, damping=errors[least], keep=keep)


def bias_only(weight: Tensor, inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """The weights given, and the bias that makes the means equal. Shapes as for `refit`."""
    old = weight.to(torch.float64)
    mean_x, mean_y = inputs.to(torch.float64).mean(2, keepdim=True), outputs.to(torch.float64).mean(2, keepdim=True)
    return old, (mean_y - old @ mean_x).squeeze(2)


def _error(weight: Tensor, bias: Tensor, inputs: Tensor, outputs: Tensor) -> float:
    return float((outputs - weight @ inputs.to(torch.float64) - bias.unsqueeze(2)).square().sum())


def refit(weight: Tensor, inputs: Tensor, outputs: Tensor, *, damping: float = 1e-2, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weights and bias with the least squared error, pulled towards the weights given.

    W' = W + (R X^T)(X X^T + lambda I)^-1 with the residual R = Y - W X, all centred, lambda = damping * mean diagonal of
    X X^T; b' = E[Y] - W' E[X]. Where there are fewer samples than inputs, the same from the smaller matrix X^T X.
    With a mask `keep` (G, O, K), off which the weights given are zero, each row is solved over the weights it keeps.

    Shapes: weight (G, O, K), inputs X (G, K, S), outputs Y (G, O, S) -> (G, O, K) and (G, O), float64. Products of the samples
    are taken in the dtype of the inputs.
    Source: He et al. 2017 (channel pruning), arXiv:1707.06168, section 3.1; differs: an intercept, and damping towards the
    present weights instead of zero, so that inputs the samples say little about keep theirs.
    """
    return next(_refits(weight, inputs, outputs, (damping,), keep))


def _refits(
    weight: Tensor, inputs: Tensor, outputs: Tensor, dampings: Sequence[float], keep: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """`refit` for each damping, with the products of the samples taken once."""
    old = weight.to(torch.float64)
    mean_x, mean_y = inputs.mean(2, keepdim=True), outputs.mean(2, keepdim=True)
    x, y = inputs - mean_x, outputs - mean_y
    residual = y - weight.to(x.dtype) @ x
    across = x.shape[1] <= x.shape[2] or keep is not None
    product = (x @ x.transpose(1, 2) if across else x.transpose(1, 2) @ x).to(torch.float64)
    cross = (residual @ x.transpose(1, 2)).to(torch.float64) if across else None
    size = product.diagonal(dim1=1, dim2=2).sum(1) / x.shape[1]
    mean_x, mean_y = mean_x.to(torch.float64), mean_y.to(torch.float64)
    for damping in dampings:
        ridge = (damping * size).clamp_min(torch.finfo(torch.float64).tiny ** 0.5)  # inputs that never vary
        damped = product.clone()
        damped.diagonal(dim1=1, dim2=2).add_(ridge.unsqueeze(1))
        if cross is None:
            solved = torch.cholesky_solve(residual.transpose(1, 2).to(torch.float64), torch.linalg.cholesky(damped))
            step = solved.transpose(1, 2) @ x.transpose(1, 2).to(torch.float64)
        elif keep is not None:
            step = solve_kept(damped, cross, keep)
        else:
            step = torch.cholesky_solve(cross.transpose(1, 2), torch.linalg.cholesky(damped)).transpose(1, 2)
        new = old + step
        yield new, (mean_y - new @ mean_x).squeeze(2)
