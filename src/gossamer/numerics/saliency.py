"""How much a channel matters: pure functions of what belongs to each channel, and the table of named criteria.

A criterion is a measure of each unit by itself, or a selection among all units of a group (see numerics.selection).
A measure takes `rows` (units, elements): row k holds all elements of one carrier of unit k (a weight's, by default); `evidence`
of the same shape, or None; and a Generator for those that draw. It returns (units,), larger is more important.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gossamer.numerics.magnitude import for_squares
from gossamer.numerics.selection import Reading, greedy_errors, lasso_errors, refit_errors
from gossamer.registry import Registry

Measure = Callable[[Tensor, Tensor | None, torch.Generator], Tensor]


@dataclass(frozen=True, slots=True)
class Criterion:
    """A measure, what it is taken over, and what it needs.

    carriers  what carries a unit: the "weights" of two or more axes that it is an axis of, the "scales" of norms over it, or
              the "activations" that layers read (then rows hold each position's mean size, and data is needed)
    needs     evidence per weight: the "gradient" of the summed loss; its "squared gradient", mean over samples; the
              "curvature", diagonal of the mean loss's Hessian; the "response", mean over samples of the squared change of
              the outputs per unit change of the weight (needs no labels); or "" for none
    order     the p of a measure that is the p-norm of a row, else 0: it is then taken where the weights lie, without rows (`powers`)
    combine   how the carriers of a unit make one number. "relative": the mean, after division of each carrier by its own
              mean, for values that are not comparable between layers; "mean"; "sum"; "size of sum", its absolute value
    """

    measure: Measure
    carriers: Literal["weights", "scales", "activations"] = "weights"
    needs: Literal["", "gradient", "squared gradient", "curvature", "response"] = ""
    combine: Literal["relative", "mean", "sum", "size of sum"] = "relative"
    order: int = 0


@dataclass(frozen=True, slots=True)
class Selection:
    """A ranking of the units of a group by what the layers that read them lose; needs inputs, no labels.

    select  the readings of those layers -> for each unit the relative squared error of their outputs when it and all that
            matter less are gone, summed over the layers
    """

    select: Callable[[Sequence[Reading]], Tensor]
    carriers: Literal["layers"] = "layers"
    needs: Literal["inputs"] = "inputs"


_ROWS = 512  # of blocks summed in float32; the sums of those are added in float64

criteria: Registry[Criterion | Selection] = Registry("criterion")


def powers(tensor: Tensor, axis: int, order: int) -> Tensor:
    """Sum of |x|^order (1 or 2) over all elements at each position of an axis, float64; a float32 tensor is not copied for order 2."""
    first, size = math.prod(tensor.shape[:axis]), tensor.shape[axis]
    blocks = for_squares(tensor.detach()).reshape(first, size, -1)
    if first == 1:
        whole: Tensor = torch.linalg.vector_norm(blocks[0], order, 1).double().pow(order)
        return whole
    if order == 2 and blocks.device.type == "cpu":
        array = blocks.numpy()
        parts = [np.einsum("ijk,ijk->j", part, part) for part in np.array_split(array, range(_ROWS, first, _ROWS))]
        return torch.from_numpy(np.sum(parts, axis=0, dtype=np.float64))
    sums = [
        torch.linalg.vector_norm(blocks[start : start + _ROWS].movedim(1, 0).flatten(1), order, 1).double().pow(order)
        for start in range(0, first, _ROWS)
    ]
    return torch.stack(sums).sum(0).cpu()


def _l1(rows: Tensor, evidence: Tensor | None, generator: torch.Generator) -> Tensor:
    return rows.abs().sum(1)


def _l2(rows: Tensor, evidence: Tensor | None, generator: torch.Generator) -> Tensor:
    return for_squares(rows).square().sum(1).sqrt()


def _mean_size(rows: Tensor, evidence: Tensor | None, generator: torch.Generator) -> Tensor:
    return rows.abs().mean(1)


def _random(rows: Tensor, evidence: Tensor | None, generator: torch.Generator) -> Tensor:
    return torch.rand(rows.shape[0], generator=generator).to(rows)


def _geometric_median(rows: Tensor, evidence: Tensor | None, generator: torch.Generator) -> Tensor:
    rows = for_squares(rows)
    return torch.cdist(rows, rows).sum(1)


def _layer_adaptive(rows: Tensor, evidence: Tensor | None, generator: torch.Generator) -> Tensor:
    """Squared norm over the sum of all squared norms that are not smaller. Equal norms get equal scores."""
    squared = rows.to(torch.float64).square().sum(1)
    ordered, order = squared.sort()
    remaining = ordered.flip(0).cumsum(0).flip(0)
    first = torch.searchsorted(ordered, ordered)  # of those that are equal
    scores = torch.zeros_like(squared)
    scores[order] = ordered / remaining[first].clamp_min(torch.finfo(torch.float64).tiny)
    return scores


def _first_order(rows: Tensor, evidence: Tensor | None, generator: torch.Generator) -> Tensor:
    return (rows * _given(evidence)).sum(1)


def _second_order(rows: Tensor, evidence: Tensor | None, generator: torch.Generator) -> Tensor:
    return (for_squares(rows).square() * _given(evidence)).sum(1) / 2


def _random_step(rows: Tensor, evidence: Tensor | None, generator: torch.Generator) -> Tensor:
    """E[sum of evidence * step^2] over random steps as long as the unit's weights, in all directions alike."""
    return for_squares(rows).square().sum(1) * _given(evidence).mean(1)


def _half_random_step(rows: Tensor, evidence: Tensor | None, generator: torch.Generator) -> Tensor:
    return _random_step(rows, evidence, generator) / 2


def _given(evidence: Tensor | None) -> Tensor:
    assert evidence is not None, "the criterion was called without the evidence that it needs"
    return evidence


criteria.add("l1", source="Li et al. 2017, arXiv:1608.08710")(Criterion(_l1, order=1))
criteria.add("l2", source="group norm as in Fang et al. 2023 (DepGraph), arXiv:2301.12900, section 3.3")(Criterion(_l2, order=2))
criteria.add("fpgm", source="He et al. 2019 (geometric median), arXiv:1811.00250")(Criterion(_geometric_median))
criteria.add("lamp", source="Lee et al. 2021, arXiv:2010.07611; per channel instead of per weight")(
    Criterion(_layer_adaptive, combine="mean")
)
criteria.add("bn_scale", source="Liu et al. 2017 (network slimming), arXiv:1708.06519")(
    Criterion(_mean_size, carriers="scales", combine="mean")
)
criteria.add("activation", source="mean size of activations, as in Molchanov et al. 2017, arXiv:1611.06440, section 2.2")(
    Criterion(_mean_size, carriers="activations")
)
criteria.add("taylor", source="Molchanov et al. 2019, arXiv:1906.10771")(Criterion(_first_order, needs="gradient", combine="size of sum"))
criteria.add("fisher", source="LeCun et al. 1990 (optimal brain damage) with the Fisher diagonal of Theis et al. 2018, arXiv:1801.05787")(
    Criterion(_second_order, needs="squared gradient", combine="sum")
)
criteria.add("hessian", source="Yu et al. 2022 (Hessian-aware pruning), arXiv:2101.08940; Hutchinson's estimate of the diagonal")(
    Criterion(_half_random_step, needs="curvature", combine="sum")
)
criteria.add("stability", source="our own: expected squared change of the outputs under random steps of relative size")(
    Criterion(_random_step, needs="response", combine="sum")
)
criteria.add("obs", source="Hassibi and Stork 1993; Frantar and Alistarh 2022 (OBC), arXiv:2208.11580; whole channels, damped")(
    Selection(refit_errors)
)
criteria.add("lasso", source="He et al. 2017 (channel pruning), arXiv:1707.06168, section 3.1")(Selection(lasso_errors))
criteria.add("thinet", source="Luo et al. 2017, arXiv:1707.06342, section 3.2")(Selection(greedy_errors))
criteria.add("random", source="the control")(Criterion(_random))
