"""Scoring the units of every group: which channels matter, by a named criterion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.batches import as_batches, check_labels
from gossamer.coupling import Analysis, Group, analyse
from gossamer.coupling import labels as lab
from gossamer.errors import ConfigError, DataError
from gossamer.numerics.saliency import Criterion, criteria
from gossamer.program.program import Program

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Scores:
    """Importance of every unit, (size,) float64 per group, larger stays longer. Holds the analysis it was made on."""

    criterion: str
    values: Mapping[str, np.ndarray]
    analysis: Analysis


@dataclass(frozen=True, eq=False)
class Member:
    """A parameter axis that carries a group: `positions` of the axis belong to it, `units` says to which unit."""

    parameter: str
    axis: int
    positions: np.ndarray
    units: np.ndarray


def score(program: Program, criterion: str = "l2", batches: Any = None, loss: Loss | None = None, *, seed: int = 0) -> Scores:
    """Score all units of all groups. Reads only.

    criterion  a name from numerics.saliency.criteria
    batches    data in any form that gossamer takes; needed by criteria that use gradients
    loss       (outputs, target) -> scalar for those; cross-entropy by default

    Raises: ConfigError for an unknown criterion (names the nearest); DataError when it needs data and has none.
    """
    chosen = criteria[criterion]
    analysis = analyse(program)
    grads = _gradients(program, criterion, batches, loss) if chosen.needs_gradient else {}
    generator = torch.Generator().manual_seed(seed)
    carriers = members(program, analysis)
    values = {group.name: _score_group(program, group, carriers[group.name], chosen, grads, generator) for group in analysis.groups}
    return Scores(criterion, values, analysis)


def _score_group(
    program: Program, group: Group, carriers: list[Member], criterion: Criterion, grads: Mapping[str, Tensor], generator: torch.Generator
) -> np.ndarray:
    """Mean over the weights that carry the group, each divided by its own mean where the criterion is relative."""
    total = torch.zeros(group.size, dtype=torch.float64)
    for member in carriers:
        rows = unit_rows(program.state[member.parameter].detach(), member, group.size)
        grad = unit_rows(grads[member.parameter], member, group.size) if member.parameter in grads else None
        value = criterion.measure(rows, grad, generator).to(torch.float64).cpu()
        if criterion.relative:
            value = value / value.mean().clamp_min(torch.finfo(torch.float64).tiny)
        total += value
    if criterion.signed:
        return total.abs().numpy()
    return (total / max(len(carriers), 1)).numpy()


def members(program: Program, analysis: Analysis) -> Mapping[str, list[Member]]:
    """For each group the weights of two or more axes that carry it: (parameter, axis, positions, unit of each)."""
    group_of = np.full(analysis.atom_count, -1, dtype=np.int64)
    unit_of = np.zeros(analysis.atom_count, dtype=np.int64)
    for number, group in enumerate(analysis.groups):
        group_of[group.units] = number
        unit_of[group.units] = np.arange(group.size)
    found: dict[str, dict[tuple[str, int], Member]] = {group.name: {} for group in analysis.groups}
    for name, factors in analysis.factors.items():
        tensor = program.state[name]
        if not isinstance(tensor, nn.Parameter) or tensor.dim() < 2:
            continue
        for factor in factors:
            for axis in lab.varying(factor):
                vector = lab.vector(factor, axis)
                owners = group_of[vector]
                for number in np.unique(owners[owners >= 0]).tolist():
                    positions = np.flatnonzero(owners == number)
                    found[analysis.groups[number].name][name, axis] = Member(name, axis, positions, unit_of[vector[positions]])
    return {group: list(entries.values()) for group, entries in found.items()}


def unit_rows(tensor: Tensor, member: Member, count: int) -> Tensor:
    """All elements of each unit as one row, (count, elements); units with fewer elements are padded with zeros."""
    order = np.argsort(member.units, kind="stable")
    owned = member.units[order]
    picked = tensor.index_select(member.axis, torch.from_numpy(member.positions[order]).to(tensor.device))
    flat = picked.movedim(member.axis, 0).flatten(1).float()
    counts = np.bincount(owned, minlength=count)
    if (counts == counts[0]).all():
        return flat.reshape(count, -1)
    place = np.arange(len(order)) - np.concatenate([[0], np.cumsum(counts)[:-1]])[owned]
    rows = flat.new_zeros(count, int(counts.max()), flat.shape[1])
    rows[torch.from_numpy(owned), torch.from_numpy(place)] = flat
    return rows.flatten(1)


def _gradients(program: Program, criterion: str, batches: Any, loss: Loss | None) -> Mapping[str, Tensor]:
    """Gradient of the summed loss over all batches, in evaluation mode, on a copy."""
    if batches is None:
        raise DataError(f"the criterion {criterion!r} needs gradients; pass batches= (and loss=, unless it is cross-entropy).")
    if loss is not None and not callable(loss):
        raise ConfigError("loss", loss, "a function (outputs, target) -> scalar, or None for cross-entropy")
    copy = program.copy().eval()
    with torch.enable_grad():
        for inputs, target in as_batches(batches, what="scoring"):
            outputs = copy(*inputs)
            if loss is None:
                labels = check_labels(target, outputs.shape[-1], "scoring")
                value = nn.functional.cross_entropy(outputs, labels, reduction="sum")
            else:
                if target is None:
                    raise DataError("the scoring data has no targets; give batches of (inputs, target).")
                value = loss(outputs, target)
            torch.autograd.backward(value)
    return {
        name: tensor.grad if tensor.grad is not None else torch.zeros_like(tensor)
        for name, tensor in copy.state.items()
        if isinstance(tensor, nn.Parameter)
    }
