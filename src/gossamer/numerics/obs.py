"""Optimal brain surgeon for whole layers: which weights to take, and what the others become, so that outputs change least.

All minimise tr((W' - W) H (W' - W)ᵀ), the squared change of the layer's output, with H = E[x xᵀ] of its inputs (plus damping).
Weights are rows, one for each output. Losses are in these units.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.numerics.sparsity import NOfM, keep_largest

DAMPING = 0.01  # share of the mean diagonal that is added to it
COLUMNS = 128  # columns of a lazy update of SparseGPT
_CHUNK_NUMBERS = 2**22  # of the inverses that are worked on at once


def damped(second: Tensor, damping: float = DAMPING) -> Tensor:
    """H with `damping` times its mean diagonal added; inputs that are always zero count like small ones. Shape (..., K, K)."""
    diagonal = second.diagonal(dim1=-2, dim2=-1)
    level = diagonal.mean(-1, keepdim=True)
    level = torch.where(level > 0, damping * level, torch.ones_like(level))
    return second + torch.diag_embed(level.expand_as(diagonal))


def inverse_of(hessian: Tensor) -> Tensor:
    """The inverse of a positive definite matrix."""
    return torch.cholesky_inverse(torch.linalg.cholesky(hessian))


def obs_saliency(weight: Tensor, hessian: Tensor) -> Tensor:
    """Loss of taking each weight alone with the others adapted: w² / [H⁻¹]pp. Shapes: weight (R, K), hessian (K, K).

    Source: Hassibi and Stork 1993 (optimal brain surgeon).
    """
    return weight.to(hessian).square() / inverse_of(hessian).diagonal()


def obc_trace(weight: Tensor, hessian: Tensor, pattern: NOfM | None = None) -> tuple[Tensor, Tensor]:
    """Take one weight after another from each row, always the one that costs least, the others adapted each time (exactly).

    Shapes: weight (R, K), hessian (K, K) -> order (R, steps) of columns and the loss of each step, steps = K, or K * (M - N) / M
    with an N:M pattern, in which groups of M columns lose M - N each.
    Cost: about R * K³ / 3 multiply-adds; memory R' * K² for R' rows at a time.
    Source: Frantar and Alistarh 2022 (OBC, ExactOBS), arXiv:2208.11580, algorithm 1.
    """
    rows, columns = weight.shape
    inverse = inverse_of(hessian)
    chunk = max(1, _CHUNK_NUMBERS // columns**2)
    parts = [_trace_rows(weight[start : start + chunk].to(hessian), inverse, pattern) for start in range(0, rows, chunk)]
    return torch.cat([order for order, _ in parts]), torch.cat([loss for _, loss in parts])


def _trace_rows(weight: Tensor, inverse: Tensor, pattern: NOfM | None) -> tuple[Tensor, Tensor]:
    rows, columns = weight.shape
    every = torch.arange(rows, device=weight.device)
    steps = columns if pattern is None else columns // pattern.m * (pattern.m - pattern.n)
    weight, inverse = weight.clone(), inverse.expand(rows, columns, columns).clone()
    names = torch.arange(columns, device=weight.device).expand(rows, columns)  # column of each place that is left
    open_places = torch.ones_like(weight, dtype=torch.bool)
    taken = None if pattern is None else weight.new_zeros(rows, columns // pattern.m, dtype=torch.int64)
    order, losses = names.new_zeros(rows, steps), weight.new_zeros(rows, steps)
    for step in range(steps):
        scores = weight.square() / inverse.diagonal(dim1=1, dim2=2)
        free = open_places
        if pattern is not None and taken is not None:
            free = open_places & (taken < pattern.m - pattern.n).gather(1, names // pattern.m)
        loss, place = torch.where(free, scores, torch.inf).min(1)
        order[:, step], losses[:, step] = names[every, place], loss
        column = inverse[every, place].clone()
        pivot = column[every, place].unsqueeze(1)
        weight -= column * (weight[every, place].unsqueeze(1) / pivot)
        inverse.baddbmm_((column / pivot).unsqueeze(2), column.unsqueeze(1), alpha=-1)
        open_places[every, place] = False
        weight[every, place] = 0
        inverse[every, place, place] = 1
        if taken is not None and pattern is not None:
            taken[every, names[every, place] // pattern.m] += 1
        left = columns - step - 1
        if left and left <= 0.75 * weight.shape[1]:  # every row has lost as many: go on with those that are left
            places = open_places.nonzero()[:, 1].reshape(rows, left)
            weight, names, open_places = weight.gather(1, places), names.gather(1, places), open_places.gather(1, places)
            inverse = inverse.gather(1, places.unsqueeze(2).expand(-1, -1, inverse.shape[2]))
            inverse = inverse.gather(2, places.unsqueeze(1).expand(-1, left, -1))
    return order, losses


def obc_keep(weight: Tensor, hessian: Tensor, zeros: int) -> Tensor:
    """The mask of exact greedy removal of `zeros` weights, from all rows of all groups together.

    Shapes: weight (G, R, K), hessian (G, K, K) -> (G, R, K). A row's losses never fall in the ranking, so that it loses
    weights in its own order. Source: Frantar and Alistarh 2022, arXiv:2208.11580, algorithm 2.
    """
    traces = [obc_trace(rows, matrix) for rows, matrix in zip(weight, hessian, strict=True)]
    order = torch.stack([one for one, _ in traces])
    losses = torch.stack([loss for _, loss in traces]).cummax(2).values
    goes = ~keep_largest([losses.transpose(0, 2)], zeros)[0].transpose(0, 2)  # equal losses: earlier steps of all rows first
    return torch.ones_like(goes).scatter_(2, order, ~goes)


def obc_keep_n_of_m(weight: Tensor, hessian: Tensor, pattern: NOfM) -> Tensor:
    """The mask of exact greedy removal under an N:M pattern over columns. Shapes as for obc_keep."""
    keep = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
    for group, (rows, matrix) in enumerate(zip(weight, hessian, strict=True)):
        keep[group].scatter_(1, obc_trace(rows, matrix, pattern)[0], False)
    return keep


def sparsegpt(
    weight: Tensor,
    hessian: Tensor,
    zeros: int | None = None,
    *,
    pattern: NOfM | None = None,
    columns: int = COLUMNS,
    old: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One sweep over the columns: in each block the cheapest weights go, and later columns make good what they did.

    zeros    how many weights of the matrix go, the same share of each block of columns; or give an N:M `pattern`
    old      a mask (R, K); what it has at zero stays zero and counts
    Shapes:  weight (R, K), hessian (K, K) -> new weight (R, K) in the dtype of the hessian, and its mask.
    Cost:    K³ for the inverse and R * K² for the sweep.
    Source:  Frantar and Alistarh 2023 (SparseGPT), arXiv:2301.00774, algorithm 1.
    """
    upper = torch.linalg.cholesky(inverse_of(hessian), upper=True)
    new = weight.to(hessian, copy=True)
    keep = torch.ones(weight.shape, dtype=torch.bool, device=weight.device) if old is None else old.clone()
    total = weight.shape[1]
    if pattern is not None:
        columns = -(-columns // pattern.m) * pattern.m
    done = 0
    for start in range(0, total, columns):
        stop = min(start + columns, total)
        part, factor, open_places = new[:, start:stop].clone(), upper[start:stop, start:stop], keep[:, start:stop]
        pivots = factor.diagonal()
        mask = torch.ones_like(part, dtype=torch.bool)
        if pattern is None:  # a block that had more zeros than its share leaves fewer to the next
            due = max(round((zeros or 0) * stop / total) - done, int((~open_places).sum()))
            mask = keep_largest([torch.where(open_places, part.square() / pivots.square(), -1.0)], due)[0]
            done += int((~mask).sum())
        errors = torch.zeros_like(part)
        for column in range(stop - start):
            if pattern is not None and column % pattern.m == 0:
                group = slice(column, column + pattern.m)
                scores = torch.where(open_places[:, group], part[:, group].square() / pivots[group].square(), -1.0)
                best = scores.argsort(dim=1, descending=True, stable=True)
                mask[:, group] = torch.zeros_like(mask[:, group]).scatter_(1, best[:, : pattern.n], True)
                mask[:, group] &= open_places[:, group]
            value = part[:, column]
            errors[:, column] = torch.where(mask[:, column], 0.0, value) / pivots[column]
            part[:, column:] -= errors[:, column : column + 1] * factor[column, column:]
        new[:, start:stop] = torch.where(mask, part, 0.0)
        new[:, stop:] -= errors @ upper[start:stop, stop:]
        keep[:, start:stop] = mask
    return new, keep
