"""Penalties that press whole units towards zero while a network trains, so that removing them costs little.

A unit's parameters are all that carry it through the network: rows of the layers that make it, columns of those that read it,
scales and shifts of norms between them. A penalty adds its gradient after clipping, so that it keeps its strength.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gossamer.coupling import Analysis, analyse
from gossamer.errors import ConfigError
from gossamer.plan.edits import KeepChannels, KeepHeads
from gossamer.plan.members import parameter_members
from gossamer.plan.plan import Plan
from gossamer.program.program import Program


class Penalty(Protocol):
    """What `Recipe(penalty=...)` takes: frozen data that names what is pressed and how hard."""

    def on(self, program: Program) -> ActivePenalty:
        """Bind to the parameters of the program that is trained. Raises PlanError when they do not fit."""

    def to_json(self) -> dict[str, Any]:
        """Plain data that tells this penalty from every other."""


class ActivePenalty(Protocol):
    """A penalty bound to a program's parameters."""

    def value(self, step: int) -> Tensor:
        """What is added to the loss at update number `step`, ()."""

    def add_gradients(self, step: int) -> None:
        """Add the gradient of `value` to the parameters' gradients."""


@dataclass(frozen=True, slots=True)
class GroupLasso:
    """strength * sum over units of sqrt(elements) * norm of all parameters that carry the unit.

    Its pull does not grow weaker as a unit shrinks, so unimportant units go to (nearly) zero while others stay. Units that cannot
    be removed are left alone.
    strength  1e-4 to 1e-3 is usual

    Raises: ConfigError for a strength that is not a positive number.
    Source: Yuan and Lin 2006; for channels Wen et al. 2016, arXiv:1608.03665.
    """

    strength: float = 1e-4

    def __post_init__(self) -> None:
        _check_positive("GroupLasso.strength", self.strength)

    def on(self, program: Program) -> ActivePenalty:
        """Bind to a program's parameters."""
        analysis = analyse(program)
        return _Lasso(_units(program, analysis, {group.name: ~group.fixed for group in analysis.groups}), self.strength)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"penalty": "group lasso", "strength": self.strength}


@dataclass(frozen=True, slots=True)
class GrowingPenalty:
    """strength(step) / 2 * squared norm of all parameters that carry the units which `plan` removes.

    The strength starts at `delta`, grows by `delta` every `every` updates, and stops at `ceiling`: the network has time to do
    without the units, and when they are near zero their removal costs nothing. For the "sgd" optimizer ("adamw" divides the pull
    by its own size, which cancels the strength).

    plan     which units go: what plan_pruning gives for the network that is trained
    delta    growth, per `every` updates
    ceiling  highest strength; learning_rate * ceiling / (1 - momentum) must stay below 2, or training becomes unstable

    Raises: ConfigError for a number outside its rule or a plan that does anything but remove units; `on` raises PlanError for a plan of another
    network.
    Source: Wang et al. 2021 (GReg-1), arXiv:2012.09243, section 3.2.
    """

    plan: Plan
    delta: float = 1e-2
    every: int = 5
    ceiling: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("GrowingPenalty.delta", self.delta)
        _check_positive("GrowingPenalty.ceiling", self.ceiling)
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ConfigError("GrowingPenalty.every", self.every, "a whole number, at least 1")
        kinds = {type(edit) for edit in self.plan.edits}
        if kinds not in ({KeepChannels}, {KeepHeads}):
            rule = "one that removes channels, or heads, and does nothing else, as plan_pruning gives"
            raise ConfigError("GrowingPenalty.plan", ", ".join(sorted(kind.__name__ for kind in kinds)) or "nothing", rule)

    def on(self, program: Program) -> ActivePenalty:
        """Bind to a program's parameters. Raises PlanError when the plan was made for another one."""
        return _Growing(_units(program, *_leaving(self.plan, program)), self)

    def to_json(self) -> dict[str, Any]:
        """Plain data; the plan goes by its hash."""
        text = json.dumps(self.plan.to_json(), sort_keys=True)
        settings = {"delta": self.delta, "every": self.every, "ceiling": self.ceiling}
        return {"penalty": "growing", "plan": hashlib.sha256(text.encode()).hexdigest(), **settings}

    def strength_at(self, step: int) -> float:
        """Strength at update number `step` (0 is the first)."""
        return min(self.delta * (step // self.every + 1), self.ceiling)


def left_over(program: Program, plan: Plan) -> float:
    """How much the units that `plan` removes still weigh: their norm over the norm of all units of their groups.

    Near 0, their removal costs nothing. Raises: PlanError when the plan was made for another network.
    """
    analysis, leaving = _leaving(plan, program)
    everything = {name: np.ones_like(chosen) for name, chosen in leaving.items()}
    parts = [_units(program, analysis, chosen).squared_norms().sum() for chosen in (leaving, everything)]
    return float((parts[0] / parts[1].clamp_min(torch.finfo(parts[1].dtype).tiny)).sqrt())


def _leaving(plan: Plan, program: Program) -> tuple[Analysis, dict[str, np.ndarray]]:
    """The analysis that the plan speaks of, and for each group which of its units go."""
    plan.check_fits(program)
    edits = [edit for edit in plan.edits if isinstance(edit, (KeepChannels, KeepHeads))]
    analysis = analyse(program, "heads" if any(isinstance(edit, KeepHeads) for edit in edits) else "width")
    leaving = {}
    for edit in edits:
        leaving[edit.group] = np.ones(edit.size, dtype=bool)
        leaving[edit.group][list(edit.keep)] = False
    return analysis, leaving


@dataclass(frozen=True, slots=True, eq=False)
class _Axis:
    """An axis of a parameter: the unit that owns each position, `count` where none does."""

    parameter: Tensor
    axis: int
    owners: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Units:
    """Chosen units, numbered through: everything that carries them, and how many elements each has, (count,)."""

    axes: Sequence[_Axis]
    sizes: Tensor

    @torch.no_grad()
    def squared_norms(self) -> Tensor:
        """Squared norm of each unit's parameters, (count,)."""
        total = self.sizes.new_zeros(len(self.sizes) + 1)
        for entry in self.axes:
            others = [axis for axis in range(entry.parameter.dim()) if axis != entry.axis]
            squares = entry.parameter.float().square()
            total.index_add_(0, entry.owners, squares.sum(others) if others else squares)
        return total[:-1]

    @torch.no_grad()
    def add_scaled(self, factors: Tensor) -> None:
        """Add factors[unit] * parameter to the gradient of everything that carries a unit."""
        padded = torch.cat([factors, factors.new_zeros(1)])
        for entry in self.axes:
            shape = [1] * entry.parameter.dim()
            shape[entry.axis] = -1
            pull = entry.parameter * padded[entry.owners].reshape(shape).to(entry.parameter.dtype)
            if entry.parameter.grad is None:
                entry.parameter.grad = pull
            else:
                entry.parameter.grad.add_(pull)


def _units(program: Program, analysis: Analysis, chosen: Mapping[str, np.ndarray]) -> _Units:
    """Number the chosen units of all groups and collect the trained parameters that carry them."""
    state, device = program.state, program.device
    count = sum(int(mask.sum()) for mask in chosen.values())
    sizes = torch.zeros(count + 1)
    axes, first = [], 0
    members = parameter_members(program, analysis)
    for name, mask in chosen.items():
        numbers = np.where(mask, first + np.cumsum(mask) - 1, count)
        first += int(mask.sum())
        for member in members[name] if mask.any() else ():
            parameter = state[member.name]
            if not parameter.requires_grad:
                continue
            owners = torch.full((parameter.shape[member.axis],), count)
            owners[torch.from_numpy(member.positions)] = torch.from_numpy(numbers[member.units])
            sizes.index_add_(0, owners, torch.full(owners.shape, parameter.numel() / len(owners)))
            axes.append(_Axis(parameter, member.axis, owners.to(device)))
    return _Units(axes, sizes[:-1].to(device))


@dataclass(frozen=True, slots=True, eq=False)
class _Lasso:
    units: _Units
    strength: float

    def value(self, step: int) -> Tensor:
        return self.strength * (self.units.sizes.sqrt() * self.units.squared_norms().sqrt()).sum()

    def add_gradients(self, step: int) -> None:
        norms = self.units.squared_norms().sqrt()
        self.units.add_scaled(torch.where(norms > 0, self.strength * self.units.sizes.sqrt() / norms, 0.0))


@dataclass(frozen=True, slots=True, eq=False)
class _Growing:
    units: _Units
    settings: GrowingPenalty

    def value(self, step: int) -> Tensor:
        return self.settings.strength_at(step) / 2 * self.units.squared_norms().sum()

    def add_gradients(self, step: int) -> None:
        self.units.add_scaled(torch.full_like(self.units.sizes, self.settings.strength_at(step)))


def _check_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ConfigError(name, value, "a positive number")
