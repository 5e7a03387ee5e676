"""Rounding weights to codes so that the layer's output changes least, instead of each weight.

Source: Frantar et al. 2022 (GPTQ), arXiv:2210.17323, after Hassibi & Stork 1993 (OBS); differs: grouped and depthwise
convolutions in one batch, and the moments may be centred, since a corrected bias takes care of the mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.numerics.formats import IntFormat

BLOCK = 96  # columns whose updates are gathered before they reach the rest of the weight
DAMPING = 0.1  # share of the mean diagonal added to it: measured best of 0.01, 0.03, 0.1 on networks with few samples


def second_order_codes(weight: Tensor, scale: Tensor, covariance: Tensor, fmt: IntFormat, *, damping: float = DAMPING) -> Tensor:
    """Codes c that make E[((W - c * scale) x)²] small: each rounding error is made good by the weights not yet rounded.

    Shapes: weight (G, R, K), scale (G, R, 1), covariance E[x xᵀ] (G, K, K) -> (G, R, K) whole numbers in float32.
    Inputs that are never different from 0 (after centring: from their mean) keep nearest rounding.
    Cost: about K² (K / 3 + R) multiply-adds for each of the G groups.
    """
    steps = _inverse_factor(covariance.to(torch.float32), damping)
    rest = weight.to(torch.float32) / scale.to(torch.float32)  # what the columns not yet rounded should be, in code steps
    codes = torch.empty_like(rest)
    columns = rest.shape[2]
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        block = rest[:, :, start:stop].transpose(1, 2).contiguous()  # (G, B, R): a column is contiguous
        errors = torch.empty_like(block)
        inner = steps[:, start:stop, start:stop]
        for column in range(stop - start):
            wanted = block[:, column]
            rounded = wanted.round().clamp_(fmt.lo, fmt.hi)
            errors[:, column] = error = wanted - rounded
            codes[:, :, start + column] = rounded
            if column + 1 < stop - start:
                block[:, column + 1 :].addcmul_(inner[:, column, column + 1 :].unsqueeze(2), error.unsqueeze(1), value=-1.0)
        if stop < columns:
            rest[:, :, stop:] -= errors.transpose(1, 2) @ steps[:, start:stop, stop:]
    return codes


def _inverse_factor(covariance: Tensor, damping: float) -> Tensor:
    """Rows of the upper Cholesky factor of covariance^-1, each divided by its diagonal. Shape (G, K, K).

    Row k says how the columns after k make good an error of 1 in column k.
    """
    diagonal = covariance.diagonal(dim1=1, dim2=2)
    level = diagonal.mean(1, keepdim=True).clamp_min(torch.finfo(covariance.dtype).tiny)
    dead = diagonal <= 1e-9 * level
    eye = torch.eye(covariance.shape[1], dtype=covariance.dtype, device=covariance.device)
    while True:
        damped = covariance + (damping * level + dead * level).unsqueeze(2) * eye
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed.any():
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed.any():
                return upper / upper.diagonal(dim1=1, dim2=2).unsqueeze(2)
        damping *= 10  # rounding errors made it indefinite
        if not damping < 1e6:
            return eye.expand_as(covariance)  # not finite: nearest rounding
