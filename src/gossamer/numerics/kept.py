"""Least squares over the weights that masks keep, each row with equations of its own."""

from __future__ import annotations

import torch
from torch import Tensor

DIRECT_COST = 2e11  # multiply-adds of exact solutions up to which they are computed; beyond it, by iteration
ITERATIONS = 200
TOLERANCE = 1e-7  # of the residual, relative
_CHUNK_NUMBERS = 2**23  # of the equations that are solved at once


def solve_kept(gram: Tensor, right: Tensor, keep: Tensor) -> Tensor:
    """d with d = 0 off the mask and, for each row with kept columns S, gram[S, S] d[S] = right[S].

    Shapes: gram (G, K, K) positive definite, right (G, R, K), keep (G, R, K) bool -> (G, R, K).
    Cost: sum over rows of |S|³ / 3 by Cholesky, or up to 200 products with `gram` by conjugate gradients where that is dearer.
    """
    counts = keep.sum(2).to(torch.float64)
    solve = _by_cholesky if float((counts**3).sum()) / 3 <= DIRECT_COST else _by_gradients
    return torch.stack([solve(*group) for group in zip(gram, right, keep, strict=True)])


def refit_kept(weight: Tensor, hessian: Tensor, keep: Tensor) -> Tensor:
    """The weights on the mask that minimise tr((W' - W) H (W' - W)ᵀ): what exact removal of the others (OBC) leads to.

    Shapes: weight (G, R, K), hessian (G, K, K), keep (G, R, K) bool -> (G, R, K) in the dtype of the hessian.
    Source: Frantar and Alistarh 2022, arXiv:2208.11580, section 4 (their updates compose to the optimum for the mask).
    """
    old = weight.to(hessian)
    off = torch.where(keep, 0.0, old)
    return old - off + solve_kept(hessian, off @ hessian, keep)


def _by_cholesky(gram: Tensor, right: Tensor, keep: Tensor) -> Tensor:
    counts = keep.sum(1)
    rows = counts.argsort()  # neighbours need about as much room
    found = torch.zeros_like(right)
    start = 0
    while start < len(rows):
        size = max(1, int(counts[rows[start]]))
        stop = min(len(rows), start + max(1, _CHUNK_NUMBERS // size**2))
        part = rows[start:stop]
        width = int(counts[part[-1]])
        if width:
            kept = keep[part]
            places = kept.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]  # the kept ones first
            real = kept.gather(1, places)
            matrix = gram[places.unsqueeze(2), places.unsqueeze(1)] * (real.unsqueeze(2) & real.unsqueeze(1))
            matrix.diagonal(dim1=1, dim2=2).add_((~real).to(gram))  # rows with fewer: equations d = 0
            wanted = (right[part].gather(1, places) * real).unsqueeze(2)
            solved = torch.cholesky_solve(wanted, torch.linalg.cholesky(matrix)).squeeze(2)
            found[part] = torch.zeros_like(right[part]).scatter_(1, places, solved * real)
        start = stop
    return found


def _by_gradients(gram: Tensor, right: Tensor, keep: Tensor) -> Tensor:
    """Conjugate gradients for all rows at once, preconditioned by the diagonal."""
    diagonal = gram.diagonal()
    found = torch.zeros_like(right)
    residual = torch.where(keep, right, 0.0)
    enough = TOLERANCE * residual.norm(dim=1)
    ahead = residual / diagonal
    direction, size = ahead, (residual * ahead).sum(1, keepdim=True)
    for _ in range(ITERATIONS):
        if bool((residual.norm(dim=1) <= enough).all()):
            break
        image = torch.where(keep, direction @ gram, 0.0)
        length = size / (direction * image).sum(1, keepdim=True).clamp_min(torch.finfo(gram.dtype).tiny)
        found, residual = found + length * direction, residual - length * image
        ahead = residual / diagonal
        grown = (residual * ahead).sum(1, keepdim=True)
        direction = ahead + grown / size.clamp_min(torch.finfo(gram.dtype).tiny) * direction
        size = grown
    return found
