"""Rounding weights to codes so that the layer's output changes least, instead of each weight.

Source: Frantar et al. 2022 (GPTQ), arXiv:2210.17323, in the form without inverse of Chee et al. 2023 (LDLQ),
arXiv:2307.13304, which computes the same; differs: grouped and depthwise convolutions in one batch, and the moments may
be centred, since a corrected bias takes care of the mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.numerics.formats import Format
from gossamer.numerics.nearest import nearest_codes

BLOCK = 64  # columns whose updates are gathered before they reach the rest of the weight
DAMPING = 0.3  # share of the mean diagonal added to it: moments come from few samples, other data differs


def second_order_codes(
    weight: Tensor,
    scale: Tensor,
    covariance: Tensor,
    fmt: Format,
    *,
    zero_point: Tensor | None = None,
    damping: float = DAMPING,
    keep: Tensor | None = None,
) -> Tensor:
    """Codes c that make E[((W - (c - zero_point) * scale) x)²] small: each rounding error is made good by those rounded after it.

    Shapes: weight (G, R, K), scale and zero_point (0 by default) (G, R, 1) or, for scales per block, (G, R, K), covariance
    E[x xᵀ] (G, K, K) -> (G, R, K) codes in float32.
    Inputs that are never different from 0 (after centring: from their mean) keep nearest rounding. Where the mask `keep`
    (G, R, K) is False, the weight is 0 and so is its code.
    Cost: about K² (K / 3 + R) multiply-adds for each of the G groups.
    """
    feedback = _feedback(covariance.to(torch.float32), damping)
    grid = _Grid(scale.to(torch.float32), zero_point, fmt)
    wanted = (weight.to(torch.float32) / grid.unit).transpose(1, 2).contiguous()  # (G, K, R)
    errors = torch.empty_like(wanted)
    columns = wanted.shape[1]
    dropped = None if keep is None else ~keep.transpose(1, 2)
    wanted_at, error_at = wanted.unbind(1), errors.unbind(1)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        base = wanted[:, start:stop].clone()
        if start:
            base.baddbmm_(feedback[:, :start, start:stop].transpose(1, 2), errors[:, :start])
        inner = feedback[:, start:stop, start:stop].transpose(1, 2).contiguous()
        for place, target in enumerate(base.unbind(1)):  # each target is final when its turn comes
            column = start + place
            rounded = grid.nearest(target, column)
            if dropped is not None:
                rounded.masked_fill_(dropped[:, column], 0.0)
            torch.sub(wanted_at[column], rounded, out=error_at[column])
            if column + 1 < stop:
                base[:, place + 1 :].addcmul_(inner[:, place + 1 :, place : place + 1], errors[:, column : column + 1])
    return grid.codes((wanted - errors).transpose(1, 2))


class _Grid:
    """The values that codes stand for. One scale per row: computed in code steps, which is faster; else in the weight's units."""

    def __init__(self, scale: Tensor, zero_point: Tensor | None, fmt: Format) -> None:
        by_column = scale.shape[2] > 1
        self.unit = torch.ones(()) if by_column else scale
        self._steps = scale.transpose(1, 2).contiguous() if by_column else None  # (G, K, R)
        self._zero = zero_point
        self._fmt = fmt
        self._ends: tuple[Tensor, Tensor] | None = None
        if zero_point is not None:
            zero = zero_point.expand_as(scale).transpose(1, 2)
            self._ends = (fmt.lo - zero, fmt.hi - zero)

    def nearest(self, target: Tensor, column: int) -> Tensor:
        """The nearest value in a column. Shapes: (G, R) -> (G, R)."""
        steps = None if self._steps is None else self._steps[:, column]
        codes = nearest_codes(target if steps is None else target / steps, self._fmt)
        if self._ends is None:
            codes.clamp_(self._fmt.lo, self._fmt.hi)
        else:
            place = column if self._ends[0].shape[1] > 1 else 0
            codes = codes.clamp(self._ends[0][:, place], self._ends[1][:, place])
        return codes if steps is None else codes.mul_(steps)

    def codes(self, values: Tensor) -> Tensor:
        """Codes of values (G, R, K) of the grid."""
        codes = nearest_codes(values if self._steps is None else values / self._steps.transpose(1, 2), self._fmt)
        return codes if self._zero is None else codes + self._zero


def _feedback(covariance: Tensor, damping: float) -> Tensor:
    """U with covariance = U D Uᵀ, D diagonal, U upper triangular with a diagonal of 1. Shape (G, K, K).

    Column k says what the errors of the columns before k ask of column k. Dead inputs feed nothing.
    """
    diagonal = covariance.diagonal(dim1=1, dim2=2)
    level = diagonal.mean(1, keepdim=True).clamp_min(torch.finfo(covariance.dtype).tiny)
    dead = diagonal <= 1e-9 * level
    flipped = covariance.flip(1, 2)
    while damping < 1e6:
        damped = flipped.clone()
        damped.diagonal(dim1=1, dim2=2).add_((damping * level + dead * level).flip(1))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed.any():
            upper: Tensor = lower.flip(1, 2)
            return upper / upper.diagonal(dim1=1, dim2=2).unsqueeze(1)
        damping *= 10  # rounding errors made it indefinite
    return torch.eye(covariance.shape[1], dtype=covariance.dtype, device=covariance.device).expand_as(covariance)
