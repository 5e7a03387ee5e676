"""One operator of the draft while it is being written, as the rows of both tables see it: XNNPACK's nodes and portable kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from gossamer.targets.tflite.draft import Array, Draft, DraftOp, DraftTensor


class OutsideXnnpack(Exception):
    """What keeps a network from being one XNNPACK graph, as a phrase."""


class Walk(Protocol):
    """A walk over a draft's operators that numbers the values of the file."""

    draft: Draft

    def number(self, tensor: int) -> int:
        """The value of a tensor."""
        ...


WalkT = TypeVar("WalkT", bound=Walk)


@dataclass(frozen=True, slots=True)
class Step(Generic[WalkT]):
    """One operator; tensors are told by their place among its inputs."""

    walk: WalkT
    op: DraftOp

    def tensor(self, place: int) -> DraftTensor:
        """What an input is."""
        return self.walk.draft.tensors[self.op.inputs[place]]

    @property
    def out(self) -> DraftTensor:
        """What the result is."""
        return self.walk.draft.tensors[self.op.outputs[0]]

    def source(self, place: int = 0) -> int:
        """Value of an input."""
        return self.walk.number(self.op.inputs[place])

    @property
    def sources(self) -> list[int]:
        """Values of all inputs."""
        return [self.walk.number(number) for number in self.op.inputs]

    def array(self, place: int) -> Array:
        """Contents of an input that must be known. Raises OutsideXnnpack for a computed one."""
        found = self.tensor(place).data
        if found is None:
            raise self.outside("with computed arguments")
        return found

    def ints(self, place: int) -> list[int]:
        """The same as a list of whole numbers."""
        return [int(number) for number in self.array(place).reshape(-1)]

    def outside(self, what: str) -> OutsideXnnpack:
        """The error for a case of this operator that has neither node nor kernel."""
        return OutsideXnnpack(f"{self.op.code} {what} has no node there")
