"""Plans of a pruning in rounds, told in positions of the network at the start, so that ratios and constraints mean what they say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from gossamer.coupling import Analysis, analyse
from gossamer.coupling.predict import Predictor
from gossamer.errors import PlanError
from gossamer.plan.budget import Budget
from gossamer.plan.constraints import Constraints
from gossamer.plan.edits import Edit, KeepChannels, StoreWeight
from gossamer.plan.plan import Plan
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.score import Scores
from gossamer.program.constants import computed_weights, fold_weights
from gossamer.program.program import Program

Goal = float | Mapping[str, float] | Budget


@dataclass(frozen=True, eq=False)
class Start:
    """The network at the start and its groups."""

    program: Program
    analysis: Analysis

    @staticmethod
    def of(program: Program) -> Start:
        """Analyse a program as scoring does."""
        return Start(program, analyse(fold_weights(program)))

    def goal_at(self, goal: Goal, progress: float) -> Goal:
        """What should have been reached when `progress` of the way, in [0, 1], is done; at 1 the goal itself."""
        if progress == 1:
            return goal
        if isinstance(goal, Mapping):
            return {layer: ratio * progress for layer, ratio in goal.items()}
        if not isinstance(goal, Budget):
            return goal * progress
        limits = goal.to_json()
        predictor = Predictor(self.program, self.analysis)
        whole = np.ones(self.analysis.atom_count, dtype=bool)
        for name, limit in limits.items():
            full = getattr(predictor, name.removeprefix("max_"))(whole) if name.startswith("max_") else 1
            limits[name] = max(full - (full - limit) * progress, limit)
        return Budget(**limits)  # type: ignore[arg-type]

    def plan(self, scores: Scores, before: Plan, goal: Goal, mode: str, constraints: Constraints) -> Plan:
        """What to keep of the network at the start: never more than `before`, and as the scores of what is left of it say.

        Raises: PlanError when the scores are not those of the network that `before` leads to, or the goal cannot be reached.
        """
        kept = _kept(before)
        values = {
            group.name: _spread(scores, group.name, kept.get(group.name, np.arange(group.size)), group.size)
            for group in self.analysis.groups
        }
        everything = Scores(scores.criterion, values, self.analysis)
        ratio, budget = (None, goal) if isinstance(goal, Budget) else (goal, None)
        plan = plan_pruning(self.program, everything, ratio, budget=budget, mode=mode, constraints=constraints)
        now = _kept(plan)
        both = {name: np.intersect1d(now.get(name, positions), positions) for name, positions in kept.items()}
        edits: list[Edit] = [edit for edit in plan.edits if not isinstance(edit, KeepChannels)]
        for group in self.analysis.groups:
            positions = both.get(group.name, now.get(group.name))
            if positions is not None:
                edits.append(KeepChannels(group.name, tuple(positions.tolist()), group.size))
        return replace(plan, edits=tuple(edits))

    def removed_ratio(self, plan: Plan) -> float:
        """Share of the removable channels that the plan removes."""
        kept = _kept(plan)
        groups = [group for group in self.analysis.groups if group.prunable]
        gone = sum(group.size - len(kept.get(group.name, range(group.size))) for group in groups)
        return gone / max(sum(group.size for group in groups), 1)


def local_plan(current: Program, before: Plan, after: Plan) -> Plan:
    """The step between two plans for the start, for the network that `before` leads to."""
    kept = _kept(before)
    edits: list[Edit] = []
    for edit in after.edits:
        if isinstance(edit, StoreWeight) and edit.node in computed_weights(current.graph):
            edits.append(edit)
        if isinstance(edit, KeepChannels):
            positions = kept.get(edit.group, np.arange(edit.size))
            if len(edit.keep) < len(positions):
                edits.append(KeepChannels(edit.group, tuple(np.searchsorted(positions, edit.keep).tolist()), len(positions)))
    return replace(after, edits=tuple(edits), model_digest=current.digest)


def _kept(plan: Plan) -> dict[str, np.ndarray]:
    return {edit.group: np.array(edit.keep) for edit in plan.edits if isinstance(edit, KeepChannels)}


def _spread(scores: Scores, name: str, kept: np.ndarray, size: int) -> np.ndarray:
    """Scores at the positions that are left, minus infinity at those that have gone."""
    found = scores.values.get(name)
    if found is None or len(found) != len(kept):
        raise PlanError(f"the scores have no value for each channel that is left of {name!r}; score the network of the last round.")
    values = np.full(size, -np.inf)
    values[kept] = found
    return values
