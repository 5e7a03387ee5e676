"""Which channels of a float network can be scaled without a change of what it computes: labels that name factors.

A walk like that of `analysis`, where equal labels mean "the same factor" instead of "removed together", and 0 means a factor of 1.
What makes a channel (rows of weights, affine parameters of norms, columns of embeddings) multiplies by its factor, what reads it
(columns of weights) divides. Only what is homogeneous lets a factor through; all else makes it 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from gossamer.coupling import labels as lab
from gossamer.coupling.atoms import Atoms
from gossamer.coupling.context import Context, aligned, feature
from gossamer.program.graph import Arg, Ref
from gossamer.program.program import Program
from gossamer.program.shapes import Meta


@dataclass(frozen=True, eq=False)
class Part:
    """How a state tensor follows factors: an element is multiplied by factor ** power of the label at its position.

    Where it is `additive`, it is a summand of the channel and moves along when the channel is shifted.
    """

    labels: Tensor
    power: int
    additive: bool = False


@dataclass(frozen=True, eq=False)
class Scaling:
    """What can be scaled. Classes are numbers; 0 is the class whose factor is 1.

    made      what makes channels (layers, norms, embeddings) -> the class of each channel of its result
    read      layers with weights -> the class of each channel of their input
    parts     state tensors -> how they follow; those that several names hold are listed under the first
    movable   (classes,) whether the channels can also be shifted: from what makes them straight to layers that read them
    reasons   class before it was fixed -> why; for `made_fixed`
    made_fixed  what makes channels -> why some of them keep their factor, where they do
    """

    made: Mapping[str, np.ndarray]
    read: Mapping[str, np.ndarray]
    parts: Mapping[str, tuple[Part, ...]]
    movable: np.ndarray
    made_fixed: Mapping[str, str]

    @property
    def classes(self) -> int:
        """How many numbers of classes there are, 0 included."""
        return len(self.movable)


@dataclass
class ScaleContext(Context):
    """What the walk knows so far. `parts`, `made` and `read` as in Scaling, not yet merged; `odd` is state that is used in a way
    that no factor can follow; `still` are labels whose channels must not be shifted; `alias` names tensors by their first name."""

    parts: dict[str, tuple[Part, ...]] = field(default_factory=dict)
    made: dict[str, np.ndarray] = field(default_factory=dict)
    read: dict[str, np.ndarray] = field(default_factory=dict)
    odd: set[str] = field(default_factory=set)
    still: list[np.ndarray] = field(default_factory=list)
    alias: dict[str, str] = field(default_factory=dict)

    def labels(self, name: str) -> Tensor:
        """Labels of a value; state has none, and what reads it as a value keeps it as it is."""
        found = self.values.get(name)
        if found is None:
            self.odd.add(self.alias.get(name, name))
            return lab.empty(self.meta(name).shape)
        assert isinstance(found, Tensor), f"{name} is not one tensor"
        return found

    def is_state(self, arg: Arg) -> bool:
        """Whether an argument is a parameter or buffer."""
        return isinstance(arg, Ref) and arg.name in self.alias

    def fix(self, labels: Tensor | np.ndarray, reason: str) -> None:
        """The factor of these is 1."""
        self.freeze(labels, reason)

    def keep_still(self, labels: Tensor | np.ndarray) -> None:
        """Their channels must not be shifted."""
        self.still.append(np.unique(labels if isinstance(labels, np.ndarray) else lab.essence(labels)))

    def equate(self, left: Tensor, right: Tensor, reason: str) -> Tensor:
        """One factor at equal positions of both, which is 1 where one of them has no label; the labels of either."""
        a, b = aligned(left, right)
        self.atoms.merge(a, b)
        self.fix(a[b == 0], reason)
        self.fix(b[a == 0], reason)
        return lab.squash(lab.tensor(np.where(a != 0, a, b)).expand(left.shape))

    def along(self, labels: Tensor, axis: int, reason: str) -> np.ndarray:
        """One label for each position of `axis`: all that meet there have one factor."""
        essence = lab.essence(labels)
        axis %= labels.dim()
        rows = np.moveaxis(essence, axis, -1).reshape(-1, essence.shape[axis])
        mixed = (rows != 0).any(0) & (rows == 0).any(0)
        self.fix(rows[:, mixed], reason)
        return feature(self, labels, axis)

    def use(self, name: str, *parts: Part) -> None:
        """Let a state tensor follow; where it follows others already, both must ask for the same."""
        name = self.alias[name]
        present = self.parts.setdefault(name, parts)
        if present is parts:
            return
        for part in (*present, *parts):
            self.keep_still(part.labels)
        if [(part.power, part.additive) for part in present] == [(part.power, part.additive) for part in parts]:
            for old, new in zip(present, parts, strict=True):
                self.equate(old.labels, new.labels, f"{name} is shared with a layer that keeps its channels")
        else:
            for part in (*present, *parts):
                self.fix(part.labels, f"{name} is shared between layers of different kinds")

    def finish(self) -> Scaling:
        """Representatives as classes, fixed ones as 0."""
        for name in self.odd & self.parts.keys():
            for part in self.parts[name]:
                self.fix(part.labels, f"{name} is used in another way, too")
        everything = self.atoms.find(np.arange(self.atoms.count))
        reasons = self.atoms.frozen()
        fixed = np.zeros(self.atoms.count, bool)
        fixed[list(reasons)] = True
        fixed[0] = True
        final = np.where(fixed[everything], 0, everything)
        movable = np.ones(self.atoms.count, bool)
        movable[0] = False
        for labels in self.still:
            movable[final[labels]] = False
        why = {
            name: next((reasons[atom] for atom in everything[atoms].tolist() if atom in reasons), "") for name, atoms in self.made.items()
        }
        return Scaling(
            made={name: final[atoms] for name, atoms in self.made.items()},
            read={name: final[atoms] for name, atoms in self.read.items()},
            parts={
                name: tuple(Part(lab.tensor(final[lab.essence(part.labels)]), part.power, part.additive) for part in parts)
                for name, parts in self.parts.items()
            },
            movable=movable,
            made_fixed={name: reason for name, reason in why.items() if reason},
        )


def first_names(program: Program) -> dict[str, str]:
    """State name -> the first name under which the same tensor is known."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in program.state.items()}


def fresh_context(program: Program, metas: Mapping[str, Meta]) -> ScaleContext:
    """A walk at its start: inputs keep their factor, integer state is known."""
    integers = {name: tensor for name, tensor in program.state.items() if not tensor.is_floating_point()}
    context = ScaleContext(Atoms(), program.graph, metas, {}, {}, {}, dict(integers), alias=first_names(program))
    for spec in program.inputs:
        context.values[spec.name] = lab.empty(context.meta(spec.name).shape)
    return context
