"""Atoms: numbered positions of parameter axes, merged by a union-find that works on whole arrays.

Atom 0 means "nothing that can be removed". Source of the structure: Tarjan 1975, union-find.
"""

from __future__ import annotations

import numpy as np


class Atoms:
    """A growing set of atoms. `reason` holds, for some atoms, why their whole class must stay."""

    def __init__(self, merged: np.ndarray | None = None) -> None:
        """`merged`: the representatives of an earlier walk over the same graph; fresh atoms are merged as they were there."""
        self._merged = np.zeros(1, dtype=np.int64) if merged is None else merged
        self._parent = np.zeros(1, dtype=np.int64)
        self.blocks: list[tuple[str, np.ndarray]] = []  # (what they are the output positions of, their atoms)
        self._reasons: list[tuple[np.ndarray, str]] = []

    @property
    def count(self) -> int:
        """How many atoms there are, 0 included."""
        return len(self._parent)

    @property
    def representatives(self) -> np.ndarray:
        """The representative of every atom's class."""
        return self.find(np.arange(self.count))

    def fresh(self, count: int, owner: str) -> np.ndarray:
        """Make `count` new atoms, the positions of one axis of `owner`."""
        start = len(self._parent)
        made = np.arange(start, start + count, dtype=np.int64)
        before = self._merged[start : start + count]
        roots = np.concatenate([before, made[len(before) :]])  # a representative is the lowest of its class: made already
        self._parent = np.concatenate([self._parent, roots])
        self.blocks.append((owner, made))
        return roots

    def find(self, atoms: np.ndarray) -> np.ndarray:
        """The representative of each atom's class, same shape."""
        roots: np.ndarray = self._parent[atoms]
        while True:
            above: np.ndarray = self._parent[roots]
            if np.array_equal(above, roots):
                return roots
            roots = above

    def merge(self, left: np.ndarray, right: np.ndarray) -> None:
        """Put left[i] and right[i] into one class, for all i (arrays of the same shape). Zeros are passed over."""
        pairs = np.stack([left.reshape(-1), right.reshape(-1)])
        pairs = pairs[:, (pairs != 0).all(axis=0)]
        while pairs.size:
            roots = self.find(pairs)
            roots = roots[:, roots[0] != roots[1]]
            if not roots.size:
                break
            low, high = roots.min(axis=0), roots.max(axis=0)
            np.minimum.at(self._parent, high, low)
            pairs = roots
        self._parent = self.find(self._parent)

    def merge_along(self, labels: np.ndarray, axis: int) -> None:
        """Merge everything along `axis` with the first non-zero label there."""
        moved = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
        if moved.shape[0] > 1:
            anchor = np.broadcast_to(moved.max(axis=0), moved.shape)  # any non-zero label of the column will do
            self.merge(moved, anchor)

    def freeze(self, atoms: np.ndarray, reason: str) -> None:
        """Note that the classes of these atoms must stay."""
        atoms = np.unique(atoms)
        atoms = atoms[atoms != 0]
        if atoms.size:
            self._reasons.append((atoms, reason))

    def frozen(self) -> dict[int, str]:
        """Representative -> first reason noted for its class."""
        reasons: dict[int, str] = {}
        for atoms, reason in self._reasons:
            for root in np.unique(self.find(atoms)).tolist():
                reasons.setdefault(root, reason)
        return reasons
