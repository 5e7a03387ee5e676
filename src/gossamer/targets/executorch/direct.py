"""A program as one XNNPACK graph, written without ExecuTorch's passes: the draft that LiteRT's lowering makes, operator by operator."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gossamer.errors import UnsupportedOp
from gossamer.program.program import Program
from gossamer.targets.executorch import write_layers as write_layers
from gossamer.targets.executorch import write_values as write_values
from gossamer.targets.executorch.container import End, to_bytes
from gossamer.targets.executorch.delegate import Delegate
from gossamer.targets.executorch.writing import OutsideXnnpack, Writer
from gossamer.targets.tflite.draft import DraftTensor
from gossamer.targets.tflite.emit import draft_of
from gossamer.targets.tflite.layout import identity
from gossamer.targets.tflite.note import value_name

Order = tuple[int, ...]
_TYPES = {"float32": "FLOAT", "int8": "CHAR"}


@dataclass(frozen=True, slots=True)
class Whole:
    """A network that is one XNNPACK graph, its ends, and the values whose codes it hands out behind its outputs."""

    delegate: Delegate
    inputs: tuple[End, ...]
    outputs: tuple[End, ...]
    handed_out: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """The .pte file. Raises MissingRuntime without executorch."""
        return to_bytes(self.delegate, self.inputs, self.outputs)


def whole_graph(program: Program, *, hand_out: bool = False) -> Whole:
    """The program as one graph. Raises OutsideXnnpack, which says what keeps it from being one."""
    try:
        drafted = draft_of(program, fuse=True)
    except UnsupportedOp as error:
        raise OutsideXnnpack(f"{error.op} has no form that it runs") from error
    tensors, delegate = drafted.draft.tensors, Delegate()
    ends: list[End] = []
    inputs: dict[int, tuple[int, Order]] = {}
    for number in drafted.inputs:
        order, plain = drafted.note.inputs[tensors[number].name], _plain(tensors[number], drafted.note.inputs[tensors[number].name])
        if plain.dtype != "float32":
            raise OutsideXnnpack(f"an input of {plain.dtype} cannot be handed to it")
        ends.append(_end(plain))
        inputs[number] = delegate.input(ends[-1].shape, plain.dtype), order
    writer = Writer(drafted.draft, delegate, inputs)
    writer.write()
    codes = {value_name(tensors[number].name): (number, order) for number, order in drafted.note.values.items()} if hand_out else {}
    given = [*zip(drafted.outputs, drafted.note.outputs, strict=True), *codes.values()]
    outputs = tuple(_handed_out(writer, number, order) for number, order in given)
    return Whole(delegate, tuple(ends), outputs, tuple(codes))


def _handed_out(writer: Writer, number: int, order: Order) -> End:
    """Let the caller take a tensor out, with its axes as the network has them."""
    tensor, value = writer.draft.tensors[number], writer.number(number)
    plain = _plain(tensor, order)
    if order != identity(len(order)):
        moved = writer.value(plain)
        writer.transpose(value, moved, [order.index(axis) for axis in range(len(order))])
        value = moved
    elif writer.delegate.is_end(value) or tensor.data is not None:
        copied = writer.value(plain)
        writer.delegate.node("Copy", input_id=value, output_id=copied)
        value = copied
    writer.delegate.give(value)
    return _end(plain)


def _plain(tensor: DraftTensor, order: Order) -> DraftTensor:
    """The same tensor stored as the network has it."""
    shape = tuple(tensor.shape[order.index(axis)] for axis in range(len(order)))
    return replace(tensor, shape=shape, batched=None if tensor.batched is None else order[tensor.batched], data=None)


def _end(plain: DraftTensor) -> End:
    if plain.dtype not in _TYPES:
        raise OutsideXnnpack(f"an output of {plain.dtype} cannot be handed out by it")
    return End(plain.shape, _TYPES[plain.dtype], plain.batched)


def why_not_whole(program: Program) -> str:
    """What keeps a program from being one XNNPACK graph, as a phrase; "" where nothing does."""
    try:
        whole_graph(program)
    except OutsideXnnpack as error:
        return str(error)
    return ""
