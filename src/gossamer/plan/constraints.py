"""What a pruning plan must respect, whatever the scores say."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from gossamer.coupling import Analysis, Group
from gossamer.errors import ConfigError, PlanError, nearest

MIN_KEEP = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """Limits on what pruning may remove. Layers are named as in the network; a name with "*" stands for all that match it.

    A layer stands for its output channels, and with them for all that are coupled to them.

    min_keep  share of its channels that every group keeps at least; or shares by layer, 0.1 for those not named
    multiple  round what each group keeps to a multiple (8, 16, 32: what the target's kernels like)
    skip      layers that stay whole
    only      when given, all other layers stay whole
    keep      by layer, output channels that must stay

    Raises: ConfigError for a share outside [0, 1], a multiple below 1, or a channel that is no position.
    """

    min_keep: float | Mapping[str, float] = MIN_KEEP
    multiple: int = 1
    skip: Collection[str] = ()
    only: Collection[str] = ()
    keep: Mapping[str, Collection[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("skip", "only"):
            if isinstance(getattr(self, name), str):
                raise ConfigError(name, getattr(self, name), "a list of layer names")
        shares = self.min_keep.values() if isinstance(self.min_keep, Mapping) else [self.min_keep]
        for share in shares:
            if not 0 <= share <= 1:
                raise ConfigError("min_keep", share, "a share in [0, 1]")
        if self.multiple < 1:
            raise ConfigError("multiple", self.multiple, "at least 1")

    def to_json(self) -> dict[str, Any]:
        """Plain data, only what is not the default."""
        plain: dict[str, Any] = {name: list(getattr(self, name)) for name in ("skip", "only") if getattr(self, name)}
        if self.min_keep != MIN_KEEP:
            plain["min_keep"] = dict(self.min_keep) if isinstance(self.min_keep, Mapping) else self.min_keep
        if self.multiple != 1:
            plain["multiple"] = self.multiple
        if self.keep:
            plain["keep"] = {name: [int(channel) for channel in channels] for name, channels in self.keep.items()}
        return plain

    def resolve(self, analysis: Analysis) -> Rules:
        """What the constraints mean for each group. Raises PlanError for a name or channel that does not exist."""
        shares = self.min_keep if isinstance(self.min_keep, Mapping) else {"*": self.min_keep}
        least: dict[str, float] = {}
        for name, share in shares.items():
            for group in named_groups(analysis, name, "min_keep"):
                least[group.name] = max(share, least.get(group.name, 0.0))
        wanted = {group.name for name in self.only for group in named_groups(analysis, name, "only")}
        whole = {group.name: f"skipped as asked ({name})" for name in self.skip for group in named_groups(analysis, name, "skip")}
        if self.only:
            others = (group.name for group in analysis.groups if group.name not in wanted and group.name not in whole)
            whole |= dict.fromkeys(others, "not among the layers asked for")
        must = {group.name: group.fixed.copy() for group in analysis.groups}
        for name, channels in self.keep.items():
            for group in named_groups(analysis, name, "keep"):
                must[group.name] |= _units(group, name, channels)
        return Rules(whole, must, {group.name: least.get(group.name, MIN_KEEP) for group in analysis.groups}, self.multiple)


@dataclass(frozen=True, eq=False)
class Rules:
    """Constraints by group name: why it stays whole, which units must stay (size,), the least share that stays."""

    whole: Mapping[str, str]
    must: Mapping[str, np.ndarray]
    min_keep: Mapping[str, float]
    multiple: int

    def least(self, group: Group) -> int:
        """How many units stay at least."""
        return max(1, int(np.ceil(self.min_keep[group.name] * group.size)), int(self.must[group.name].sum()))

    def rounded(self, group: Group, count: int) -> int:
        """The count that is nearest to `count` within the rules: a multiple where there is one."""
        least = self.least(group)
        count = max(count, least)
        if self.multiple > 1 and group.unit == "channels":
            count = max(self.multiple, round(count / self.multiple) * self.multiple)
            count += self.multiple * -(-max(least - count, 0) // self.multiple)
        return min(count, group.size)


def named_groups(analysis: Analysis, name: str, what: str) -> list[Group]:
    """The groups that a layer's name or pattern stands for. Raises PlanError (suggests the nearest) when there is none."""
    matching = [
        group
        for group in analysis.groups
        if any(name == owner or ("*" in name and fnmatchcase(owner, name)) for owner in (group.name, *group.owners))
    ]
    if not matching and name != "*":
        known = {owner for group in analysis.groups for owner in (group.name, *group.owners) if not owner.startswith("state ")}
        raise PlanError(f"{what} names {name!r}, which is no layer that can be pruned; {nearest(name, known)}")
    return matching


def _units(group: Group, layer: str, channels: Collection[int]) -> np.ndarray:
    """True for the units that hold these output channels of a layer."""
    chosen = np.zeros(group.size, dtype=bool)
    for owner, places in group.places.items():
        if owner == layer or ("*" in layer and fnmatchcase(owner, layer)):
            for channel in channels:
                if not isinstance(channel, (int, np.integer)) or not 0 <= channel < len(places):
                    raise PlanError(f"keep names channel {channel!r} of {owner!r}, which has channels 0 to {len(places) - 1}.")
                chosen[places[channel]] = True
    return chosen
