"""How much a channel matters: pure functions of the weights (and gradients) that belong to each channel.

Each takes `rows` (units, elements): row k holds all elements of one weight that go when unit k goes; `grads` of the
same shape, or None; and a Generator for those that draw. Each returns (units,), larger is more important.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.registry import Registry

Measure = Callable[[Tensor, Tensor | None, torch.Generator], Tensor]


@dataclass(frozen=True, slots=True)
class Criterion:
    """A measure and what it needs. `relative`: values of different layers are comparable only after division by
    the mean of their group. `signed`: contributions of a unit's weights are summed first, their size taken last."""

    measure: Measure
    needs_gradient: bool = False
    relative: bool = True
    signed: bool = False


criteria: Registry[Criterion] = Registry("criterion")


def _l1(rows: Tensor, grads: Tensor | None, generator: torch.Generator) -> Tensor:
    return rows.abs().sum(1)


def _l2(rows: Tensor, grads: Tensor | None, generator: torch.Generator) -> Tensor:
    return rows.square().sum(1).sqrt()


def _random(rows: Tensor, grads: Tensor | None, generator: torch.Generator) -> Tensor:
    return torch.rand(rows.shape[0], generator=generator).to(rows)


def _geometric_median(rows: Tensor, grads: Tensor | None, generator: torch.Generator) -> Tensor:
    return torch.cdist(rows, rows).sum(1)


def _taylor(rows: Tensor, grads: Tensor | None, generator: torch.Generator) -> Tensor:
    assert grads is not None
    return (rows * grads).sum(1)


criteria.add("l1", source="Li et al. 2017, arXiv:1608.08710")(Criterion(_l1))
criteria.add("l2", source="group norm as in Fang et al. 2023 (DepGraph), arXiv:2301.12900, section 3.3")(Criterion(_l2))
criteria.add("fpgm", source="He et al. 2019 (geometric median), arXiv:1811.00250")(Criterion(_geometric_median))
criteria.add("taylor", source="Molchanov et al. 2019, arXiv:1906.10771")(
    Criterion(_taylor, needs_gradient=True, relative=False, signed=True)
)
criteria.add("random", source="the control")(Criterion(_random))
