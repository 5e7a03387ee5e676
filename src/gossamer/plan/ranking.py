"""From scores and a share to the positions that every group keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gossamer.coupling import Analysis, Group
from gossamer.coupling.kept import keep_table
from gossamer.plan.constraints import Rules

Kept = dict[str, np.ndarray]


class Ranking:
    """Chooses what stays of every group within the rules.

    classes  group name -> class; groups of one class are ranked together, each class loses the same share. A group without
             a class stays whole
    """

    def __init__(self, analysis: Analysis, values: Mapping[str, np.ndarray], rules: Rules, classes: Mapping[str, int]) -> None:
        self._analysis = analysis
        self._rules = rules
        self._values = {name: np.where(rules.must[name], np.inf, found) for name, found in values.items()}
        self._classes: dict[int, list[Group]] = {}
        for group in analysis.groups:
            if group.name in classes and group.prunable:
                self._classes.setdefault(classes[group.name], []).append(group)

    def keep(self, ratio: float) -> Kept:
        """Sorted positions per group when `ratio` of the removable channels of each class should go."""
        counts = {name: count for groups in self._classes.values() for name, count in self._counts(groups, ratio).items()}
        return self.keep_counts(counts)

    def keep_counts(self, counts: Mapping[str, int]) -> Kept:
        """The most important positions of each group named, as many as the rules make of the count."""
        groups = {group.name: group for groups in self._classes.values() for group in groups}
        kept = {name: self._best(groups[name], count) for name, count in counts.items()}
        return self._with_one_of_each_axis(kept, [groups[name] for name in kept])

    def _counts(self, groups: Sequence[Group], ratio: float) -> dict[str, int]:
        """Remove the least important units of all groups together, each group only down to its floor."""
        removable = [np.sort(self._values[group.name], kind="stable")[: group.size - self._rules.least(group)] for group in groups]
        owners = np.repeat(np.arange(len(groups)), [len(scores) for scores in removable])
        order = np.argsort(np.concatenate([np.zeros(0), *removable]), kind="stable")
        gone = np.bincount(owners[order[: round(ratio * sum(group.size for group in groups))]], minlength=len(groups))
        return {group.name: group.size - int(count) for group, count in zip(groups, gone, strict=True)}

    def _best(self, group: Group, count: int) -> np.ndarray:
        best = np.argsort(-self._values[group.name], kind="stable")
        return np.sort(best[: self._rules.rounded(group, count)])

    def _with_one_of_each_axis(self, kept: Kept, groups: Sequence[Group]) -> Kept:
        """Take back the best unit of every axis (such as one half of a split) that would be left empty."""
        table = keep_table(self._analysis, kept)
        for units in self._analysis.axes:
            if table[units].any():
                continue
            owners = [(group, np.flatnonzero(np.isin(group.units, units))) for group in groups]
            group, position = max(
                ((group, int(place)) for group, places in owners for place in places), key=lambda pair: self._values[pair[0].name][pair[1]]
            )
            kept[group.name] = np.sort(np.append(kept[group.name], position))
            table[group.units[position]] = True
        return kept
