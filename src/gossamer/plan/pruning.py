"""Choosing which channels stay: from scores and a ratio or budget to a plan. Changes nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from gossamer.coupling import Analysis, Group
from gossamer.coupling.kept import keep_table
from gossamer.coupling.predict import Predictor
from gossamer.errors import ConfigError, PlanError, nearest
from gossamer.plan.budget import Budget
from gossamer.plan.edits import KeepChannels
from gossamer.plan.plan import Frozen, Plan
from gossamer.plan.score import Scores
from gossamer.program.program import Program

MODES = ("global", "layerwise")


def plan_pruning(
    program: Program,
    scores: Scores,
    removed_ratio: float | None = None,
    *,
    budget: Budget | None = None,
    mode: str = "global",
    min_keep: float = 0.1,
    multiple: int = 1,
    skip: Collection[str] = (),
) -> Plan:
    """Decide which channels stay. Give either a ratio or a budget.

    removed_ratio  share of the removable channels that goes, in [0, 1)
    budget         Budget(macs=0.5) or Budget(params=0.5): remove the least important until that share is left
    mode           "global" ranks all groups together, "layerwise" takes the same share of each
    min_keep       share of its channels that every group keeps at least
    multiple       round what each group keeps to a multiple (8, 16, 32: what the target's kernels like)
    skip           names of groups or layers that stay whole

    Raises: ConfigError for a ratio outside [0, 1) or an unknown mode; PlanError for a name in `skip` that does not
    exist (suggests the nearest), for scores of another network, and for a budget that cannot be reached (says the
    best that can).
    """
    _check_arguments(removed_ratio, budget, mode, min_keep, multiple)
    analysis = scores.analysis
    groups = {group.name: group for group in analysis.groups}
    if set(groups) != set(scores.values) or any(name not in program.state for name in analysis.factors):
        raise PlanError("the scores were made for another network; score this one.")
    skipped = _skipped(analysis, skip)
    chooser = _Chooser(analysis, scores.values, skipped, mode, min_keep=min_keep, multiple=multiple)
    if removed_ratio is not None:
        kept = chooser.choose(removed_ratio)
    else:
        assert budget is not None
        kept = _choose_for_budget(program, analysis, chooser, budget)
    edits = tuple(
        KeepChannels(name, tuple(int(position) for position in positions), groups[name].size)
        for name, positions in kept.items()
        if len(positions) < groups[name].size
    )
    return Plan(edits, program.digest, frozen=_frozen(analysis, skipped))


def _check_arguments(removed_ratio: float | None, budget: Budget | None, mode: str, min_keep: float, multiple: int) -> None:
    if (removed_ratio is None) == (budget is None):
        raise ConfigError("plan_pruning", (removed_ratio, budget), "given either removed_ratio or budget")
    if removed_ratio is not None and not 0 <= removed_ratio < 1:
        raise ConfigError("removed_ratio", removed_ratio, "a share in [0, 1)")
    if budget is not None and budget.macs is None and budget.params is None:
        raise ConfigError("budget", budget, "one with macs or params, the shares that planning can predict")
    if mode not in MODES:
        raise ConfigError("mode", mode, f"one of {', '.join(MODES)}")
    if not 0 <= min_keep <= 1:
        raise ConfigError("min_keep", min_keep, "a share in [0, 1]")
    if multiple < 1:
        raise ConfigError("multiple", multiple, "at least 1")


def _skipped(analysis: Analysis, skip: Collection[str]) -> Mapping[str, str]:
    """Group name -> the name by which the user asked for it to stay."""
    by_layer = {owner: group.name for group in analysis.groups for owner in (group.name, *group.owners)}
    skipped = {}
    for name in skip:
        if name not in by_layer:
            raise PlanError(f"skip names {name!r}, which is no layer that can be pruned; {nearest(name, by_layer)}")
        skipped[by_layer[name]] = name
    return skipped


def _frozen(analysis: Analysis, skipped: Mapping[str, str]) -> tuple[Frozen, ...]:
    notes = [Frozen(name, f"skipped as asked ({asked})") for name, asked in skipped.items()]
    for group in analysis.groups:
        if group.reason and group.name not in skipped:
            part = "" if not group.prunable else f"{int(group.fixed.sum())} of {group.size} channels: "
            notes.append(Frozen(group.name, part + group.reason))
    return tuple(notes)


class _Chooser:
    """Turns a share to remove into kept positions per group, keeping what must stay."""

    def __init__(
        self, analysis: Analysis, values: Mapping[str, np.ndarray], skip: Collection[str], mode: str, *, min_keep: float, multiple: int
    ) -> None:
        groups = [group for group in analysis.groups if group.prunable and group.name not in skip]
        self._analysis = analysis
        self._groups = groups
        self._values = values
        self._mode = mode
        self._multiple = multiple
        self._least = {group.name: self._floor(group, min_keep) for group in groups}

    def choose(self, ratio: float) -> dict[str, np.ndarray]:
        """Positions to keep per group, sorted, when `ratio` of the removable channels should go."""
        counts = self._global_counts(ratio) if self._mode == "global" else {g.name: g.size - round(ratio * g.size) for g in self._groups}
        return self._with_one_of_each_axis({group.name: self._best(group, counts[group.name]) for group in self._groups})

    def _with_one_of_each_axis(self, kept: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Take back the best unit of every axis (such as one half of a split) that would be left empty."""
        table = keep_table(self._analysis, kept)
        for units in self._analysis.axes:
            if table[units].any():
                continue
            owners = [(group, np.flatnonzero(np.isin(group.units, units))) for group in self._groups]
            group, position = max(
                ((group, int(place)) for group, places in owners for place in places), key=lambda pair: self._values[pair[0].name][pair[1]]
            )
            kept[group.name] = np.sort(np.append(kept[group.name], position))
            table[group.units[position]] = True
        return kept

    def _floor(self, group: Group, min_keep: float) -> int:
        return max(1, int(np.ceil(min_keep * group.size)), int(group.fixed.sum()))

    def _global_counts(self, ratio: float) -> dict[str, int]:
        """Remove the least important units of all groups together, each group only down to its floor."""
        entries = []
        for index, group in enumerate(self._groups):
            value = np.where(group.fixed, np.inf, self._values[group.name])
            removable = np.sort(value, kind="stable")[: group.size - self._least[group.name]]
            entries += [(float(score), index) for score in removable]
        entries.sort()
        wanted = round(ratio * sum(group.size for group in self._groups))
        counts = {group.name: group.size for group in self._groups}
        for _, index in entries[:wanted]:
            counts[self._groups[index].name] -= 1
        return counts

    def _best(self, group: Group, count: int) -> np.ndarray:
        """The `count` most important positions, rounded to the multiple and never below the floor."""
        count = max(count, self._least[group.name])
        if self._multiple > 1:
            count = max(self._multiple, round(count / self._multiple) * self._multiple)
        count = min(max(count, self._least[group.name]), group.size)
        value = np.where(group.fixed, np.inf, self._values[group.name])
        return np.sort(np.argsort(-value, kind="stable")[:count])


def _choose_for_budget(program: Program, analysis: Analysis, chooser: _Chooser, budget: Budget) -> dict[str, np.ndarray]:
    """The smallest ratio that meets every predicted share, by bisection."""
    predictor = Predictor(program, analysis)
    whole = np.ones(analysis.atom_count, dtype=bool)
    limits = {"macs": budget.macs, "params": budget.params}
    measures = {"macs": predictor.macs, "params": predictor.params}
    full = {key: max(measures[key](whole), 1) for key, limit in limits.items() if limit is not None}

    def excess(ratio: float) -> dict[str, float]:
        table = keep_table(analysis, chooser.choose(ratio))
        return {key: measures[key](table) / total for key, total in full.items() if measures[key](table) / total > (limits[key] or 0)}

    lowest, highest = 0.0, 1.0 - 1e-9
    missed = excess(highest)
    if missed:
        best = ", ".join(f"{key}={share:.3f}" for key, share in missed.items())
        raise PlanError(
            f"the budget {budget.to_json()} cannot be reached; the least that can stay is {best} (see min_keep, skip and plan.frozen)."
        )
    for _ in range(30):
        middle = (lowest + highest) / 2
        if excess(middle):
            lowest = middle
        else:
            highest = middle
    return chooser.choose(highest)
