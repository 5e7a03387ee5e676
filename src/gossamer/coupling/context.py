"""What label propagation knows while it walks a graph, and the ways in which rules couple things."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from gossamer.coupling import labels as lab
from gossamer.coupling.atoms import Atoms
from gossamer.program.graph import Arg, Graph, Node, Ref, map_refs
from gossamer.program.ops import function, op_of
from gossamer.program.ops.kinds import Factory
from gossamer.program.shapes import Meta, TensorMeta

# factories whose result is the same everywhere, so that it shrinks by its sizes alone
FILLED = frozenset(f"aten.{name}.default" for name in "zeros ones full new_zeros new_ones new_full".split())
_MOST_REALS = 2**20  # elements of a table of real numbers that is worth computing


@dataclass
class Context:
    """What the pass knows so far. `blocks` are labels of axes that a grouped op splits, for the rectangle rule;
    `renormalised` lists norms with the axis of their input that carries labels and goes into their statistics; `contracted` names, for products of two values, the
    operand in which zeros equal a removal; `computing` names state that goes only into weights which other nodes compute: never removed;
    `heads` is None, or collects what was merged so that whole heads are units."""

    atoms: Atoms
    graph: Graph
    metas: Mapping[str, Meta]
    values: dict[str, Any]
    factors: dict[str, tuple[Tensor, ...]]
    readers: dict[str, Tensor]
    concrete: dict[str, Any]
    blocks: list[Tensor] = field(default_factory=list)
    renormalised: list[tuple[str, int]] = field(default_factory=list)
    contracted: dict[str, str] = field(default_factory=dict)
    computing: frozenset[str] = frozenset()
    heads: list[tuple[np.ndarray, np.ndarray]] | None = None
    reals: dict[str, Any] = field(default_factory=dict)  # like `concrete`, not integers
    first_weights: dict[str, str] = field(default_factory=dict)  # module -> the first weight that it multiplies with

    def meta(self, name: str) -> TensorMeta:
        """Shape and dtype of a tensor value."""
        meta = self.metas[name]
        assert isinstance(meta, TensorMeta), name
        return meta

    def labels(self, name: str) -> Tensor:
        """Labels of a value; state that is used position by position gets atoms of its own on first use."""
        if name in self.values:
            found = self.values[name]
            if isinstance(found, lab.Pair):
                self.freeze(found.second, "it meets another axis that is pruned, and an op that cannot tell them apart")
                found = self.values[name] = found.first
            assert isinstance(found, Tensor), f"{name} is not one tensor"
            return found
        meta = self.meta(name)
        if name in self.computing:
            return lab.empty(meta.shape)
        if name in self.factors and len(self.factors[name]) > 1:  # also the weight of a contraction
            for factor in self.factors[name]:
                self.freeze(factor, "its weight is also used in another way")
            return lab.empty(meta.shape)
        if name not in self.factors:
            made = self.atoms.fresh(meta.numel, f"state {name}") if meta.dtype.is_floating_point else np.zeros(meta.numel, np.int64)
            self.factors[name] = (lab.squash(lab.tensor(made).reshape(meta.shape)),)
        return self.factors[name][0]

    def freeze(self, labels: lab.Labels | np.ndarray, reason: str) -> None:
        """All atoms in these labels must stay."""
        for item in (labels,) if isinstance(labels, np.ndarray) else map(lab.essence, lab.sides(labels)):
            self.atoms.freeze(item, reason)

    def stays(self, labels: Tensor) -> bool:
        """Whether labels name nothing, or nothing but atoms that are known to stay."""
        essence = lab.essence(labels)
        return not essence.any() or self.atoms.all_frozen(essence)

    def is_filled_for(self, name: str, readers: tuple[type, ...]) -> bool:
        """Whether a factory fills the value, and only ops of these kinds read it: it may then carry what they need."""
        maker = self.graph.by_name.get(name)
        if maker is None or not isinstance(op_of(maker).kind, Factory) or lab.varying(self.labels(name)):
            return False
        return maker.op in FILLED and all(isinstance(op_of(user).kind, readers) for user in self.graph.users[name])

    def note_concrete(self, node: Node) -> None:
        """Compute results that depend on sizes and integer constants only: they index and shape other values.

        Positions may be computed through real numbers (scaled coordinates), which are known but index nothing themselves."""
        meta = self.metas[node.name]
        if not isinstance(meta, (TensorMeta, tuple)):
            self.concrete[node.name] = meta
        elif isinstance(meta, TensorMeta) and all(name in self.concrete or name in self.reals for name in node.uses):
            kind = self.reals if meta.dtype.is_floating_point else self.concrete
            if kind is self.concrete or meta.numel <= _MOST_REALS:
                kind[node.name] = self.call(node)

    def call(self, node: Node) -> Any:
        """Run a node on concrete values."""
        get = ChainMap(self.concrete, self.reals).__getitem__
        kwargs = {key: map_refs(value, get) for key, value in node.kwargs}
        return function(node.op)(*map_refs(node.args, get), **kwargs)

    def tie_axes(self, weight: str, *factors: Tensor) -> None:
        """Give a contraction's weight its labels per axis, or merge them with those it has (a tied weight)."""
        present = self.factors.setdefault(weight, factors)
        if present is factors:
            return
        if len(present) != len(factors):
            for labels in (*present, *factors):
                self.freeze(labels, f"{weight} is shared between layers of different kinds")
            return
        for old, new in zip(present, factors, strict=True):
            self.atoms.couple(*aligned(old, new), f"{weight} is shared with a layer that cannot shrink")

    def tie_vector(self, name: Arg, vector: np.ndarray) -> None:
        """Couple a state vector (bias, norm weight, statistic) with the channels it belongs to."""
        if not isinstance(name, Ref):
            return
        if name.name in self.values:  # computed, such as a concatenation of smaller biases
            self.atoms.couple(lab.vector(self.labels(name.name), 0), vector, f"{name.name} cannot shrink with it")
            return
        self.tie_elements(name.name, lab.along(vector, vector.shape, 0))

    def tie_vectors(self, names: Iterable[Arg], vector: np.ndarray) -> None:
        """tie_vector for several that belong to the same channels; they share their labels."""
        labels = lab.along(vector, vector.shape, 0)
        for name in names:
            if isinstance(name, Ref) and name.name in self.values:
                self.tie_vector(name, vector)
            elif isinstance(name, Ref):
                self.tie_elements(name.name, labels)

    def tie_elements(self, name: str, labels: Tensor) -> None:
        """Couple every element of a state tensor, or of a computed one, with the label at its position."""
        if name in self.values:
            self.atoms.couple(*aligned(self.labels(name), labels), f"{name} cannot shrink with it")
            return
        present = self.factors.setdefault(name, (labels,))
        if present[0] is labels:
            return
        if len(present) > 1:  # also the weight of a contraction
            for other in (*present, labels):
                self.freeze(other, f"{name} is used in different ways")
            return
        self.atoms.couple(*aligned(present[0], labels), f"{name} is shared with a layer that cannot shrink")


def aligned(left: Tensor, right: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Both label tensors (of one shape) as arrays of one shape, without axes on which both are constant."""
    small_left, small_right = lab.essence(left), lab.essence(right)
    return tuple(np.broadcast_arrays(small_left, small_right))  # type: ignore[return-value]


def feature(context: Context, labels: Tensor, axis: int) -> np.ndarray:
    """Couple all labels that meet at one position of `axis`; return one label per position."""
    axis %= labels.dim()
    if all(other == axis for other in lab.varying(labels)) and labels.numel():
        return np.ascontiguousarray(lab.vector(labels, axis))
    essence = lab.essence(labels)
    merged = np.moveaxis(essence, axis, -1).reshape(-1, essence.shape[axis])
    context.atoms.merge_along(merged, 0, "it meets values that cannot shrink where a layer reads both")
    vector = merged.max(axis=0)
    return np.ascontiguousarray(np.broadcast_to(vector, (labels.shape[axis],)))
