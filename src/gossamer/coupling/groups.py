"""Groups: the units that can be removed, sorted by the axis they come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count

import numpy as np

from gossamer.coupling.atoms import Atoms
from gossamer.coupling.labels import distinct


@dataclass(frozen=True, eq=False)
class Group:
    """Units that may be removed one by one. A unit is a class of atoms, named by its representative.

    name    the layer whose output positions it starts with, and a number where an earlier group has that name
    owners  all layers whose output positions are in it
    units   representatives, (size,), in order of position in the first owner
    fixed   (size,) True for units that must stay
    reason  why the fixed ones must stay, or ""
    places  per owner, the unit (its place in `units`) of each of its output positions
    unit    what a unit is: "channels", or "heads" of attention
    """

    name: str
    owners: tuple[str, ...]
    units: np.ndarray
    fixed: np.ndarray
    reason: str
    places: Mapping[str, np.ndarray]
    unit: str = "channels"

    @property
    def size(self) -> int:
        """Number of units."""
        return len(self.units)

    @property
    def prunable(self) -> bool:
        """Whether any unit may go."""
        return not bool(self.fixed.all())


def find_groups(atoms: Atoms, heads: Sequence[tuple[np.ndarray, np.ndarray]] | None = None) -> tuple[Group, ...]:
    """Units whose atoms are positions of one axis belong to one group; axes that share a unit share a group.

    heads  atoms that were merged so that whole heads are units
    Positions that no layer makes (of a scale or a table that stands alone) cannot be removed and are left out.
    """
    reasons = atoms.frozen()
    whole = distinct(np.concatenate([atoms.find(np.ravel(left)) for left, _ in heads])) if heads else np.zeros(0, np.int64)
    home = np.full(atoms.count, -1, dtype=np.int64)  # unit -> number of the block list that holds it
    members: dict[int, list[tuple[str, np.ndarray]]] = {}
    for number, (owner, block) in enumerate(atoms.blocks):
        roots = atoms.find(block)
        met = [other for other in distinct(home[roots]).tolist() if other >= 0]
        merged = [entry for other in met for entry in members.pop(other)]
        target = met[0] if met else number
        members[target] = [*merged, (owner, roots)]
        for _, others in members[target] if len(met) > 1 else [(owner, roots)]:
            home[others] = target
    found = (entries for _, entries in sorted(members.items()))
    groups = (_group(entries, reasons, whole) for entries in found if not all(owner.startswith("state ") for owner, _ in entries))
    return _named_apart(groups)


def _named_apart(groups: Iterable[Group]) -> tuple[Group, ...]:
    """A table that is the weight of a layer, too, gives its name to two groups: its columns and the outputs of that layer."""
    named: dict[str, Group] = {}
    for group in groups:
        names = chain([group.name], (f"{group.name} ({number})" for number in count(2)))
        name = next(name for name in names if name not in named)
        named[name] = replace(group, name=name)
    return tuple(named.values())


def _group(entries: list[tuple[str, np.ndarray]], reasons: dict[int, str], heads: np.ndarray) -> Group:
    everything = np.concatenate([roots for _, roots in entries])
    order = np.argsort(everything, kind="stable")
    ascending = everything[order]
    first = np.concatenate([[True], ascending[1:] != ascending[:-1]])
    units = everything[np.sort(order[first])]  # in order of appearance
    why = [reasons.get(unit, "") for unit in units.tolist()]
    owners = tuple(dict.fromkeys(owner for owner, _ in entries))
    fixed = np.array([bool(reason) for reason in why])
    name = next((owner for owner in owners if not owner.startswith("state ")), owners[0])
    order = np.argsort(units)
    unit = "heads" if heads.size and np.isin(units, heads[heads != 0]).any() else "channels"
    places = {owner: order[np.searchsorted(units, roots, sorter=order)] for owner, roots in reversed(entries)}
    return Group(name, owners, units, fixed, next((reason for reason in why if reason), ""), places, unit)
