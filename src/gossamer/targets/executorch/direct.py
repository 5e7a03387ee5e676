"""A program as one XNNPACK graph, with kernels before and behind it, written without ExecuTorch's passes: LiteRT's draft, operator by operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gossamer.errors import UnsupportedOp
from gossamer.program.program import Program
from gossamer.targets.executorch import write_kernels as write_kernels
from gossamer.targets.executorch import write_layers as write_layers
from gossamer.targets.executorch import write_values as write_values
from gossamer.targets.executorch.calling import Caller, Order, as_handed_over, end_of
from gossamer.targets.executorch.calls import Calls
from gossamer.targets.executorch.choices import with_limits
from gossamer.targets.executorch.container import to_bytes
from gossamer.targets.executorch.delegate import Delegate
from gossamer.targets.executorch.split import Split, split
from gossamer.targets.executorch.step import OutsideXnnpack
from gossamer.targets.executorch.writing import Writer
from gossamer.targets.tflite.draft import Draft, DraftOp, DraftTensor, Written
from gossamer.targets.tflite.emit import draft_of
from gossamer.targets.tflite.layout import identity
from gossamer.targets.tflite.note import value_name

_AT_ENDS = ("float32", "int8")  # types that XNNPACK's graph takes and hands out


@dataclass(frozen=True, slots=True)
class Whole:
    """A network that XNNPACK runs as one graph.

    inputs, outputs  values that callers hand in and take out
    handed_out       values of the program whose codes are the last outputs
    kernels          operators of the draft that portable kernels run
    """

    delegate: Delegate
    calls: Calls
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    handed_out: tuple[str, ...]
    kernels: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """The .pte file. Raises MissingRuntime without executorch."""
        return to_bytes(self.delegate, self.calls, self.inputs, self.outputs)


def whole_graph(program: Program, *, hand_out: bool = False) -> Whole:
    """The program as one graph, and kernels. Raises OutsideXnnpack, which says what keeps it from being that."""
    try:
        drafted = draft_of(program, fuse=True)
    except UnsupportedOp as error:
        raise OutsideXnnpack(f"{error.op} has no form that it runs") from error
    codes = {value_name(drafted.draft.tensors[number].name): (number, order) for number, order in drafted.note.values.items()}
    codes = codes if hand_out else {}
    given = [*zip(drafted.outputs, drafted.note.outputs, strict=True), *codes.values()]
    drafted = replace(drafted, draft=with_limits(drafted.draft))
    pieces = _Pieces(drafted, split(drafted.draft))
    outputs = pieces.write(given)
    kernels = tuple(sorted({op.code for op in (*pieces.parts.front, *pieces.parts.back)}))
    return Whole(
        pieces.delegate, pieces.calls, tuple(pieces.inputs[number][0] for number in drafted.inputs), outputs, tuple(codes), kernels
    )


class _Pieces:
    """The three parts of one file, and the values between them."""

    def __init__(self, drafted: Written, parts: Split) -> None:
        self.draft, self.parts = drafted.draft, parts
        self.calls, self.delegate = Calls(), Delegate()
        orders = {number: drafted.note.inputs[self.draft.tensors[number].name] for number in drafted.inputs}
        ends = {number: as_handed_over(self.draft.tensors[number], order) for number, order in orders.items()}
        self.inputs = {number: (self.calls.tensor(end_of(ends[number])), order) for number, order in orders.items()}
        self.caller = Caller(self.draft, self.calls, self.inputs)
        self._made = {number for op in (*parts.front, *parts.back) for number in op.outputs}

    def write(self, given: Sequence[tuple[int, Order]]) -> tuple[int, ...]:
        """All of them; values of these tensors, each with its axes as the network has them."""
        self.caller.write(self.parts.front)
        computed = [number for op in self.parts.back for number in op.inputs if number not in self._made and number not in self.inputs]
        behind = [
            (number, identity(len(self.draft.tensors[number].shape))) for number in computed if self.draft.tensors[number].data is None
        ]
        ends = [(number, order) for number, order in dict.fromkeys((*given, *behind)) if number not in self._made]
        numbers = dict(zip(ends, self._write_graph(ends), strict=True))
        self.caller.numbers |= {number: numbers[number, order] for number, order in behind}
        self.caller.write(self.parts.back)
        return tuple(numbers[end] if end in numbers else self.caller.handed_out(*end) for end in given)

    def _write_graph(self, given: Sequence[tuple[int, Order]]) -> list[int]:
        """XNNPACK's graph and its call; values of tensors that it hands out."""
        graph, inputs, read = self.parts.graph, {}, []
        made = {number for op in graph for number in op.outputs}
        for number in dict.fromkeys([*(number for op in graph for number in op.inputs), *(number for number, _ in given)]):
            if number < 0 or number in made or self.draft.tensors[number].data is not None:
                continue
            order = self.inputs[number][1] if number in self.inputs else identity(len(self.draft.tensors[number].shape))
            read.append(self.inputs[number][0] if number in self.inputs else self.caller.number(number))
            handed = _held(as_handed_over(self.draft.tensors[number], order), "an input")
            inputs[number] = self.delegate.input(handed.shape, handed.dtype), order
        writer = Writer(self._draft(graph), self.delegate, inputs)
        writer.write()
        results = []
        for number, order in given:
            _hand_out(writer, number, order)
            results.append(self.calls.tensor(end_of(as_handed_over(self.draft.tensors[number], order))))
        if results:
            self.calls.delegate(read, results)
        return results

    def _draft(self, ops: Sequence[DraftOp]) -> Draft:
        """These operators alone, on the same tensors."""
        part = Draft()
        part.tensors, part.ops = self.draft.tensors, list(ops)
        return part


def _hand_out(writer: Writer, number: int, order: Order) -> None:
    """Let XNNPACK's graph hand a tensor out, with its axes as the network has them."""
    tensor, value = writer.draft.tensors[number], writer.number(number)
    plain = _held(as_handed_over(tensor, order), "an output")
    if order != identity(len(order)):
        moved = writer.value(plain)
        writer.transpose(value, moved, [order.index(axis) for axis in range(len(order))])
        value = moved
    elif writer.delegate.is_end(value) or tensor.data is not None:
        copied = writer.value(plain)
        writer.delegate.node("Copy", input_id=value, output_id=copied)
        value = copied
    writer.delegate.give(value)


def _held(tensor: DraftTensor, what: str) -> DraftTensor:
    if tensor.dtype not in _AT_ENDS:
        raise OutsideXnnpack(f"{what} of {tensor.dtype} cannot be handed to or from it")
    if not tensor.shape:
        raise OutsideXnnpack(f"{what} without axes cannot be handed to or from it")
    return replace(tensor, data=None)
