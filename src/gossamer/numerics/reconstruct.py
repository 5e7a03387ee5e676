"""Least-squares weights: what a layer should multiply the inputs that are left with, to give the outputs that it gave."""

from __future__ import annotations

import torch
from torch import Tensor


def refit(weight: Tensor, inputs: Tensor, outputs: Tensor, *, damping: float = 1e-2) -> tuple[Tensor, Tensor]:
    """Weights and bias with the least squared error, pulled towards the weights given.

    W' = W + (R X^T)(X X^T + lambda I)^-1 with the residual R = Y - W X, all centred, lambda = damping * mean diagonal of
    X X^T; b' = E[Y] - W' E[X]. Where there are fewer samples than inputs, the same from the smaller matrix X^T X.

    Shapes: weight (G, O, K), inputs X (G, K, S), outputs Y (G, O, S) -> (G, O, K) and (G, O), float64.
    Source: He et al. 2017 (channel pruning), arXiv:1707.06168, section 3.1; differs: an intercept, and damping towards the
    present weights instead of zero, so that inputs the samples say little about keep theirs.
    """
    old, x, y = (tensor.to(torch.float64) for tensor in (weight, inputs, outputs))
    mean_x, mean_y = x.mean(2, keepdim=True), y.mean(2, keepdim=True)
    x, y = x - mean_x, y - mean_y
    residual = y - old @ x
    across = x.shape[1] <= x.shape[2]
    product = x @ x.transpose(1, 2) if across else x.transpose(1, 2) @ x
    ridge = damping * product.diagonal(dim1=1, dim2=2).sum(1) / x.shape[1]
    ridge = ridge.clamp_min(torch.finfo(torch.float64).tiny ** 0.5)  # inputs that never vary
    product.diagonal(dim1=1, dim2=2).add_(ridge.unsqueeze(1))
    factor = torch.linalg.cholesky(product)
    if across:
        step = torch.cholesky_solve(x @ residual.transpose(1, 2), factor).transpose(1, 2)
    else:
        step = torch.cholesky_solve(residual.transpose(1, 2), factor).transpose(1, 2) @ x.transpose(1, 2)
    new = old + step
    return new, (mean_y - new @ mean_x).squeeze(2)
