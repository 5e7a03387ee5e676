"""Atoms: numbered positions of parameter axes, merged by a union-find that works on whole arrays.

Atom 0 means "nothing that can be removed". Source of the structure: Tarjan 1975, union-find.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gossamer.coupling.labels import distinct

_DEEP = 3  # steps to a representative before all paths are made short


class Atoms:
    """A growing set of atoms. `reason` holds, for some atoms, why their whole class must stay."""

    def __init__(self, earlier: Sequence[tuple[str, np.ndarray]] = ()) -> None:
        """`earlier`: the `classes` of a walk over the same graph; fresh atoms are merged from the start as they were there."""
        self._earlier: dict[str, list[np.ndarray]] = {}
        for owner, classes in reversed(earlier):
            self._earlier.setdefault(owner, []).append(classes)
        highest = max((int(classes.max(initial=0)) for _, classes in earlier), default=0)
        self._first = np.full(highest + 1, np.iinfo(np.int64).max)  # of each earlier class the first atom made here
        self._made = [np.zeros(1, dtype=np.int64)]  # the class of each atom when it was made
        self._parent = np.zeros(1, dtype=np.int64)
        self.blocks: list[tuple[str, np.ndarray]] = []  # (what they are the output positions of, their atoms)
        self._reasons: list[tuple[np.ndarray, str]] = []

    @property
    def count(self) -> int:
        """How many atoms there are, 0 included."""
        return len(self._parent)

    def classes(self) -> list[tuple[str, np.ndarray]]:
        """What each axis is of, and the representatives of its atoms."""
        return [(owner, self.find(block)) for owner, block in self.blocks]

    def as_made(self) -> Atoms:
        """The same atoms with only those merged that were from the start."""
        other = Atoms()
        other._parent = np.concatenate(self._made)
        other.blocks = self.blocks
        return other

    def fresh(self, count: int, owner: str) -> np.ndarray:
        """Make `count` new atoms, the positions of one axis of `owner`."""
        start = len(self._parent)
        made = np.arange(start, start + count, dtype=np.int64)
        roots = made
        waiting = self._earlier.get(owner)
        if waiting and len(waiting[-1]) == count:
            classes = waiting.pop()
            np.minimum.at(self._first, classes, made)
            roots = self._first[classes]
        self._made.append(roots)
        self._parent = np.concatenate([self._parent, roots])
        self.blocks.append((owner, made))
        return roots

    def find(self, atoms: np.ndarray) -> np.ndarray:
        """The representative of each atom's class, same shape."""
        roots: np.ndarray = self._parent[atoms]
        steps = 0
        while True:
            above: np.ndarray = self._parent[roots]
            if np.array_equal(above, roots):
                return roots
            roots = above
            steps += 1
            if steps == _DEEP:
                self._flatten()

    def roots(self) -> np.ndarray:
        """The representative of every atom."""
        self._flatten()
        return self._parent

    def _flatten(self) -> None:
        """Point every atom at its representative; done when paths get long, since it walks over all atoms."""
        while True:
            above = self._parent[self._parent]
            if np.array_equal(above, self._parent):
                return
            self._parent = above

    def merge(self, left: np.ndarray, right: np.ndarray) -> None:
        """Put left[i] and right[i] into one class, for all i (arrays of the same shape). Zeros are passed over."""
        ours, theirs = self.find(left.reshape(-1)), self.find(right.reshape(-1))  # 0 stays 0
        while True:
            apart = np.flatnonzero((ours != theirs) & (ours != 0) & (theirs != 0))
            if not apart.size:
                return
            ours, theirs = ours[apart], theirs[apart]
            np.minimum.at(self._parent, np.maximum(ours, theirs), np.minimum(ours, theirs))
            ours, theirs = self.find(ours), self.find(theirs)

    def couple(self, left: np.ndarray, right: np.ndarray, reason: str) -> None:
        """Merge what lives and dies together. What meets a zero, which cannot go, must stay, for that reason."""
        self.merge(left, right)
        self.freeze(left[right == 0], reason)
        self.freeze(right[left == 0], reason)

    def merge_along(self, labels: np.ndarray, axis: int, reason: str) -> None:
        """Couple everything along `axis` with the first non-zero label there."""
        moved = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
        if moved.shape[0] > 1:
            anchor = np.broadcast_to(moved.max(axis=0), moved.shape)  # any non-zero label of the column will do
            self.couple(moved, anchor, reason)

    def freeze(self, atoms: np.ndarray, reason: str) -> None:
        """Note that the classes of these atoms must stay."""
        atoms = atoms[atoms != 0]
        if atoms.size:
            self._reasons.append((distinct(atoms), reason))

    def all_frozen(self, atoms: np.ndarray) -> bool:
        """Whether the classes of all these atoms are known to stay so far."""
        roots = distinct(self.find(atoms))
        reasons = [self.find(frozen) for frozen, _ in self._reasons]
        return bool(reasons) and bool(np.isin(roots[roots != 0], np.concatenate(reasons)).all())

    def frozen(self) -> dict[int, str]:
        """Representative -> first reason noted for its class."""
        reasons: dict[int, str] = {}
        for atoms, reason in self._reasons:
            for root in distinct(self.find(atoms)).tolist():
                reasons.setdefault(root, reason)
        return reasons
