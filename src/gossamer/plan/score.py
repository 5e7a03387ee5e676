"""Scoring the units of every group: which channels matter, by a named criterion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.batches import Batches, as_batches
from gossamer.coupling import Analysis, Group, analyse
from gossamer.errors import ConfigError, DataError, PlanError
from gossamer.numerics.saliency import Criterion, Selection, criteria
from gossamer.plan.evidence import Loss, activation_sizes, gather
from gossamer.plan.members import Member, activation_members, scale_members, unit_powers, unit_rows, weight_members
from gossamer.plan.readings import group_readings
from gossamer.program.constants import fold_weights
from gossamer.program.program import Program, check_program

Carriers = Mapping[str, list[Member]]


@dataclass(frozen=True, eq=False)
class Scores:
    """Importance of every unit, (size,) float64 per group, larger stays longer. Holds the analysis it was made on."""

    criterion: str
    values: Mapping[str, np.ndarray]
    analysis: Analysis


def score(
    program: Program, criterion: str = "l2", batches: Any = None, loss: Loss | None = None, *, seed: int = 0, attention: str = "width"
) -> Scores:
    """Score all units of all groups. Reads only.

    criterion  a name from numerics.saliency.criteria
    batches    data in any form that gossamer takes; needed by criteria that use gradients or activations
    loss       (outputs, target) -> scalar for those that use a loss; cross-entropy by default. For "fisher" it is called
               with one sample at a time, for others with parts of batches that are too large to work on at once

    attention  "width": units of attention are positions of the width that all its heads share; "heads": whole heads

    A group without any carrier of the criterion (such as "bn_scale" where no norm follows) is infinitely important: the
    criterion says nothing about it, so it stays whole, and the plan lists it.
    Raises: ConfigError for an unknown criterion (names the nearest); DataError when it needs data or targets and has none,
    or finds NaN; PlanError for a network that has nothing the criterion could look at.
    """
    check_program(program)
    chosen = criteria[criterion]
    if loss is not None and not callable(loss):
        raise ConfigError("loss", loss, "a function (outputs, target) -> scalar, or None for cross-entropy")
    _check_data(criterion, chosen, batches)
    program = fold_weights(program)
    analysis = analyse(program, attention)
    if isinstance(chosen, Selection):
        values = _select(program, analysis, chosen, as_batches(batches, what="scoring", batch_size=program.at_once()), seed)
    else:
        values = _measure(program, analysis, chosen, batches, loss, seed)
    if not values and any(group.prunable and group.size > 1 for group in analysis.groups):
        raise PlanError(f"the criterion {criterion!r} looks at {chosen.carriers} of channels, and this network has none; use another one.")
    for name, found in values.items():
        wrong = np.isnan(found) if isinstance(chosen, Selection) else ~np.isfinite(found)
        if wrong.any():
            what = f"NaN or infinity for {name!r}; check the weights, the data and the loss for NaN and very large numbers."
            raise DataError(f"the criterion {criterion!r} gives {what}")
    values = {group.name: values.get(group.name, np.full(group.size, np.inf)) for group in analysis.groups}
    return Scores(criterion, values, analysis)


def _select(program: Program, analysis: Analysis, chosen: Selection, batches: Batches, seed: int) -> dict[str, np.ndarray]:
    """Scores of the groups that layers read; what must stay is infinitely important."""
    found = {}
    for name, readings in group_readings(program, analysis, batches, seed):
        group = analysis.group(name)
        if readings:
            found[name] = np.full(group.size, np.inf)
            found[name][~group.fixed] = chosen.select(readings).cpu().numpy()
    return found


def _measure(program: Program, analysis: Analysis, chosen: Criterion, batches: Any, loss: Loss | None, seed: int) -> dict[str, np.ndarray]:
    """Scores of the groups that have a carrier."""
    carriers, sources = _carriers(program, analysis, chosen, batches)
    if not any(carriers.values()):
        return {}
    evidence = (
        gather(chosen.needs, program, as_batches(batches, what="scoring", batch_size=program.at_once()), loss, seed) if chosen.needs else {}
    )
    generator = torch.Generator().manual_seed(seed)
    groups = [group for group in analysis.groups if carriers[group.name]]
    return {group.name: _score_group(group, carriers[group.name], chosen, sources, evidence, generator) for group in groups}


def _check_data(name: str, criterion: Criterion | Selection, batches: Any) -> None:
    if batches is not None:
        return
    if criterion.carriers == "activations":
        raise DataError(f"the criterion {name!r} needs activations; pass batches= (labels are not needed).")
    if criterion.needs in ("response", "inputs"):
        raise DataError(f"the criterion {name!r} needs runs of the network; pass batches= (labels are not needed).")
    if criterion.needs:
        raise DataError(f"the criterion {name!r} needs gradients; pass batches= (and loss=, unless it is cross-entropy).")


def _carriers(program: Program, analysis: Analysis, criterion: Criterion, batches: Any) -> tuple[Carriers, Mapping[str, Tensor]]:
    """The members of each group, and the tensors that they are axes of."""
    match criterion.carriers:
        case "scales":
            return scale_members(program, analysis), program.state
        case "activations":
            members = activation_members(program, analysis)
            names = {member.name for entries in members.values() for member in entries}
            return members, activation_sizes(program, analysis, names, as_batches(batches, what="scoring", batch_size=program.at_once()))
    return weight_members(program, analysis), program.state


def _score_group(
    group: Group,
    carriers: list[Member],
    criterion: Criterion,
    sources: Mapping[str, Tensor],
    evidence: Mapping[str, Tensor],
    generator: torch.Generator,
) -> np.ndarray:
    total = torch.zeros(group.size, dtype=torch.float64)
    for member in carriers:
        if criterion.order:
            value = unit_powers(sources[member.name], member, group.size, criterion.order) ** (1 / criterion.order)
        else:
            rows = unit_rows(sources[member.name].detach(), member, group.size)
            found = unit_rows(evidence[member.name], member, group.size) if member.name in evidence else None
            value = criterion.measure(rows, found, generator).to(torch.float64).cpu()
        if criterion.combine == "relative":
            value = value / value.mean().clamp_min(torch.finfo(torch.float64).tiny)
        total += value
    if criterion.combine in ("relative", "mean"):
        total /= len(carriers)
    return (total.abs() if criterion.combine == "size of sum" else total).numpy()
