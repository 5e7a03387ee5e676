"""How one operator of the draft becomes calls of portable kernels: the table, and what its rows see."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gossamer.registry import Registry
from gossamer.targets.executorch.calls import TYPES, Calls, End
from gossamer.targets.executorch.step import OutsideXnnpack, Step
from gossamer.targets.tflite.draft import Draft, DraftOp, DraftTensor
from gossamer.targets.tflite.layout import identity

Order = tuple[int, ...]


def as_handed_over(tensor: DraftTensor, order: Order) -> DraftTensor:
    """The same tensor stored as the network has it."""
    shape = tuple(tensor.shape[order.index(axis)] for axis in range(len(order)))
    return replace(tensor, shape=shape, batched=None if tensor.batched is None else order[tensor.batched], data=None)


def end_of(tensor: DraftTensor) -> End:
    """A tensor as calls see it. Raises OutsideXnnpack for a type that they do not hand over."""
    if tensor.dtype not in TYPES:
        raise OutsideXnnpack(f"a value of {tensor.dtype} cannot be handed to or from it")
    return End(tensor.shape, TYPES[tensor.dtype], tensor.batched)


@dataclass(slots=True)
class Caller:
    """One walk over operators in kernels. `given`: value and stored order of each tensor that lies elsewhere than in the draft's order."""

    draft: Draft
    calls: Calls
    given: Mapping[int, tuple[int, Order]]
    numbers: dict[int, int] = field(default_factory=dict)  # value of each tensor, stored as the draft has it
    done: dict[object, tuple[int, ...]] = field(default_factory=dict)  # results of operators that may come again

    def write(self, ops: Iterable[DraftOp]) -> None:
        """These operators; those that are the same on the same tensors once. Raises OutsideXnnpack."""
        for op in ops:
            key = (op.code, tuple(self.number(tensor) for tensor in op.inputs), repr(sorted(op.fields.items())))
            if key in self.done:
                self.numbers |= dict(zip(op.outputs, self.done[key], strict=True))
                continue
            kernel_rows[op.code](KernelStep(self, op))
            self.done[key] = tuple(self.numbers[number] for number in op.outputs)

    def number(self, tensor: int) -> int:
        """The value of a tensor."""
        if tensor not in self.numbers:
            made = self.draft.tensors[tensor]
            if made.data is not None:
                self.numbers[tensor] = self.calls.constant(made.data)
            else:
                given, order = self.given[tensor]
                self.numbers[tensor] = given if order == identity(len(order)) else self.transposed(given, end_of(made), order)
        return self.numbers[tensor]

    def transposed(self, source: int, made: End, axes: Sequence[int]) -> int:
        """A new value: axis k of it is axes[k] of the source."""
        result = self.calls.tensor(made)
        self.calls.call("aten::permute_copy.out", [source, self.calls.ints(axes)], result)
        return result

    def handed_out(self, tensor: int, order: Order) -> int:
        """The value of a tensor with its axes as the network has them."""
        found = self.number(tensor)
        if order == identity(len(order)):
            return found
        axes = [order.index(axis) for axis in range(len(order))]
        return self.transposed(found, end_of(as_handed_over(self.draft.tensors[tensor], order)), axes)


class KernelStep(Step[Caller]):
    """One operator to write as calls."""

    __slots__ = ()

    def plain(self, value: bool | int | None) -> int:
        """Value of an argument that is no tensor."""
        return self.walk.calls.plain(value)

    def sizes(self, values: Iterable[int]) -> int:
        """Value of an argument that is a list of whole numbers."""
        return self.walk.calls.ints(values)

    def call(self, operator: str, *arguments: int) -> None:
        """Compute the result with a kernel."""
        number = self.walk.numbers[self.op.outputs[0]] = self.walk.calls.tensor(end_of(self.out))
        self.walk.calls.call(operator, arguments, number)


KernelRow = Callable[[KernelStep], None]
kernel_rows: Registry[KernelRow] = Registry("portable kernel")
