"""What carries each group: the axes of weights, norm scales and activations that belong to its units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.coupling import Analysis
from gossamer.coupling import labels as lab
from gossamer.numerics.saliency import powers
from gossamer.program.graph import Ref
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import Attention, BatchNorm, Convolution, Linear, MatMul, StatisticsNorm
from gossamer.program.program import Program


@dataclass(frozen=True, eq=False)
class Member:
    """An axis of a parameter or value that carries a group: `positions` of it belong to the group, `units` says to which unit."""

    name: str
    axis: int
    positions: np.ndarray
    units: np.ndarray


def weight_members(program: Program, analysis: Analysis) -> Mapping[str, list[Member]]:
    """For each group the weights of two or more axes that carry it."""
    state = program.state
    chosen = [name for name in analysis.factors if isinstance(state[name], nn.Parameter) and state[name].dim() >= 2]
    return _members(analysis, {name: analysis.factors[name] for name in chosen})


def parameter_members(program: Program, analysis: Analysis) -> Mapping[str, list[Member]]:
    """For each group all floating parameters that carry it: weights, biases, scales of norms, tables."""
    state = program.state
    chosen = [name for name in analysis.factors if isinstance(state[name], nn.Parameter) and state[name].is_floating_point()]
    return _members(analysis, {name: analysis.factors[name] for name in chosen})


def scale_members(program: Program, analysis: Analysis) -> Mapping[str, list[Member]]:
    """For each group the scales of norms that carry it."""
    norms = [node for node in program.graph.nodes if isinstance(op_of(node).kind, (BatchNorm, StatisticsNorm))]
    scales = [bound["weight"] for bound in map(bind, norms) if isinstance(bound.get("weight"), Ref)]
    return _members(analysis, {scale.name: analysis.factors[scale.name] for scale in scales if scale.name in analysis.factors})


def activation_members(program: Program, analysis: Analysis) -> Mapping[str, list[Member]]:
    """For each group the values that carry it where a layer or a product reads them."""
    readers = [node for node in program.graph.nodes if isinstance(op_of(node).kind, (Convolution, Linear, MatMul, Attention))]
    read = {name: analysis.values.get(name) for node in readers for name in node.uses}
    return _members(analysis, {name: (labels,) for name, labels in read.items() if isinstance(labels, Tensor)})


def _members(analysis: Analysis, labelled: Mapping[str, Sequence[Tensor]]) -> Mapping[str, list[Member]]:
    group_of = np.full(analysis.atom_count, -1, dtype=np.int64)
    unit_of = np.zeros(analysis.atom_count, dtype=np.int64)
    for number, group in enumerate(analysis.groups):
        group_of[group.units] = number
        unit_of[group.units] = np.arange(group.size)
    found: dict[str, dict[tuple[str, int], Member]] = {group.name: {} for group in analysis.groups}
    for name, axis, vector in _axes(labelled):
        owners = group_of[vector]
        for number in lab.distinct(owners[owners >= 0]).tolist():
            positions = np.flatnonzero(owners == number)
            found[analysis.groups[number].name][name, axis] = Member(name, axis, positions, unit_of[vector[positions]])
    return {group: list(entries.values()) for group, entries in found.items()}


def _axes(labelled: Mapping[str, Sequence[Tensor]]) -> Iterator[tuple[str, int, np.ndarray]]:
    for name, tensors in labelled.items():
        for labels in tensors:
            for axis in lab.varying(labels):
                yield name, axis, lab.vector(labels, axis)


def unit_rows(tensor: Tensor, member: Member, count: int) -> Tensor:
    """All elements of each unit as one row, (count, elements); units with fewer elements are padded with zeros."""
    order = np.argsort(member.units, kind="stable")
    owned = member.units[order]
    positions = member.positions[order]
    whole = np.array_equal(positions, np.arange(tensor.shape[member.axis]))  # the usual case needs no copy
    picked = tensor if whole else tensor.index_select(member.axis, torch.from_numpy(positions).to(tensor.device))
    flat = picked.movedim(member.axis, 0).reshape(len(order), -1)
    flat = flat if flat.dtype == torch.float64 else flat.float()
    counts = np.bincount(owned, minlength=count)
    if (counts == counts[0]).all():
        return flat.reshape(count, -1)
    place = np.arange(len(order)) - np.concatenate([[0], np.cumsum(counts)[:-1]])[owned]
    rows = flat.new_zeros(count, int(counts.max()), flat.shape[1])
    rows[torch.from_numpy(owned), torch.from_numpy(place)] = flat
    return rows.flatten(1)


def unit_powers(tensor: Tensor, member: Member, count: int, order: int) -> Tensor:
    """Sum of |x|^order over all elements of each unit, (count,) float64."""
    sums = powers(tensor, member.axis, order).cpu().numpy()
    return torch.from_numpy(np.bincount(member.units, sums[member.positions], minlength=count))
