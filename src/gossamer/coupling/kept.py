"""What stays of each labelled tensor: one keep vector per axis, since groups are coupled into rectangles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from gossamer.coupling import labels as lab
from gossamer.coupling.analysis import Analysis
from gossamer.errors import PlanError


def keep_table(analysis: Analysis, kept: Mapping[str, np.ndarray]) -> np.ndarray:
    """For each atom whether it stays. `kept` maps group names to the positions (of its units) that stay."""
    table = np.ones(analysis.atom_count, dtype=bool)
    for name, positions in kept.items():
        group = analysis.group(name)
        table[group.units] = False
        table[group.units[positions]] = True
        if not table[group.units[group.fixed]].all():
            raise PlanError(f"group {name!r} has channels that must stay ({group.reason}); plan again without removing them.")
    return table


def axis_keeps(labels: lab.Labels, table: np.ndarray) -> dict[int, np.ndarray]:
    """Axis -> which of its positions stay, for the axes that lose some. Raises PlanError unless it is a rectangle."""
    if isinstance(labels, lab.Pair):
        return state_keeps(lab.sides(labels), table)
    axes = lab.varying(labels)
    if not axes:
        return {}
    if len(axes) == 1:
        only = table[lab.vector(labels, axes[0])]
        return {} if only.all() else {axes[0]: only}
    mask = table[lab.essence(labels)]
    if mask.all():
        return {}
    keeps = {}
    product = np.ones((), dtype=bool)
    for axis in axes:
        others = tuple(other for other in range(mask.ndim) if other != axis)
        vector = mask.any(axis=others)
        shape = [1] * mask.ndim
        shape[axis] = -1
        product = product & vector.reshape(shape)
        if not vector.all():
            keeps[axis] = vector
    if not np.array_equal(np.broadcast_to(product, mask.shape), mask):
        raise PlanError("the channels to keep do not form a rectangle; keep equal positions in every block.")
    return keeps


def state_keeps(factors: Sequence[Tensor], table: np.ndarray) -> dict[int, np.ndarray]:
    """axis_keeps of a state tensor: what stays under all its labels."""
    keeps: dict[int, np.ndarray] = {}
    for factor in factors:
        for axis, keep in axis_keeps(factor, table).items():
            keeps[axis] = keeps[axis] & keep if axis in keeps else keep
    return keeps


def stays(labels: lab.Labels, table: np.ndarray) -> np.ndarray:
    """Which positions of a value stay, with length 1 along axes on which that is constant."""
    stay = np.ones((), dtype=bool)
    for side in lab.sides(labels):
        stay = stay & table[lab.essence(side)]
    return stay


def kept_shape(labels: lab.Labels, table: np.ndarray) -> tuple[int, ...]:
    """Shape of what stays."""
    keeps = axis_keeps(labels, table)
    return tuple(int(keeps[axis].sum()) if axis in keeps else size for axis, size in enumerate(labels.shape))
