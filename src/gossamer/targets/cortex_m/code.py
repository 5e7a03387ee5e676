"""From the operators of a network to one C function: every value at its place in one static arena."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from gossamer.errors import UnsupportedOp
from gossamer.targets.cortex_m.borders import without_borders
from gossamer.targets.cortex_m.groups import one_by_one
from gossamer.targets.cortex_m.memory import Lifetime, place
from gossamer.targets.tflite.draft import Draft, DraftOp, DraftTensor, Written

C_TYPES = {"int8": "int8_t", "float32": "float", "int32": "int32_t"}
_SCRATCH = "scratch of step "
_IN_PLACE = set(
    "ADD SUB MUL RELU RELU6 LOGISTIC TANH HARD_SWISH LEAKY_RELU PRELU ELU GELU SOFTMAX".split()
)  # they read a position before they write it


@dataclass(frozen=True, slots=True)
class Network:
    """Operators to write, and where each tensor lies.

    inputs, outputs  tensors that the caller holds; codes wherever the network only codes or decodes them
    place            tensor -> C expression of its address
    arena_bytes      bytes of the arena
    scratch          step -> C expression of the address of its working memory, and its bytes
    lives            what lies in the arena, and when
    """

    draft: Draft
    ops: tuple[DraftOp, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    place: Mapping[int, str]
    arena_bytes: int
    scratch: Mapping[int, tuple[str, int]]
    lives: tuple[Lifetime, ...]

    def tensor(self, number: int) -> DraftTensor:
        """A tensor by its number."""
        return self.draft.tensors[number]


Scratch = Callable[[Draft, DraftOp], int]


def lay_out(written: Written, scratch: Scratch) -> Network:
    """Leave the conversions at both ends to the caller, and give every value its place; `scratch` says what memory an operator works in."""
    ops, inputs, outputs = _without_ends(written)
    draft, ops = one_by_one(written.draft, without_borders(written.draft, ops, outputs))
    for number in (*inputs, *outputs):
        if draft.tensors[number].dtype not in C_TYPES:
            raise UnsupportedOp(
                f"{draft.tensors[number].dtype} numbers", draft.tensors[number].name, needed="Cortex-M", way_out="give it floats or codes"
            )
    roots = _shared_places(draft, ops, inputs, outputs)
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for step, op in enumerate(ops):
        for number in (*op.inputs, *op.outputs):
            root = roots.get(number)
            if root is not None:
                first.setdefault(root, step)
                last[root] = step
    held = {root: name for name, root in (*_held("input", inputs, roots), *_held("output", outputs, roots))}
    size = {root: max(_bytes(draft.tensors[number]) for number, other in roots.items() if other == root) for root in first}
    lives = [Lifetime(str(root), size[root], first[root], last[root]) for root in first if root not in held]
    working = {step: scratch(draft, op) for step, op in enumerate(ops)}
    lives += [Lifetime(f"{_SCRATCH}{step}", size, step, step) for step, size in working.items() if size]
    offsets, arena_bytes = place(lives)
    where = {}
    for number, root in roots.items():
        kind = C_TYPES[draft.tensors[number].dtype]
        where[number] = held[root] if root in held else f"({kind} *)(arena + {offsets[str(root)]})" if str(root) in offsets else ""
    work = {step: (f"arena + {offsets[f'{_SCRATCH}{step}']}" if size else "0", size) for step, size in working.items()}
    return Network(draft, tuple(ops), inputs, outputs, where, arena_bytes, work, tuple(lives))


def _held(name: str, numbers: Sequence[int], roots: Mapping[int, int]) -> list[tuple[str, int]]:
    return [(name if len(numbers) == 1 else f"{name}{position}", roots[number]) for position, number in enumerate(numbers)]


def _without_ends(written: Written) -> tuple[list[DraftOp], tuple[int, ...], tuple[int, ...]]:
    """The operators without those that code an input or decode an output."""
    ops = list(written.draft.ops)
    inputs, outputs = list(written.inputs), list(written.outputs)
    for position, number in enumerate(inputs):
        readers = [op for op in ops if number in op.inputs]
        if len(readers) == 1 and readers[0].code == "QUANTIZE":
            inputs[position] = readers[0].outputs[0]
            ops.remove(readers[0])
    for position, number in enumerate(outputs):
        maker = next((op for op in ops if number in op.outputs), None)
        if maker is not None and maker.code == "DEQUANTIZE" and not any(number in op.inputs for op in ops):
            outputs[position] = maker.inputs[0]
            ops.remove(maker)
    return ops, tuple(inputs), tuple(outputs)


def _shared_places(draft: Draft, ops: Sequence[DraftOp], inputs: Sequence[int], outputs: Sequence[int]) -> dict[int, int]:
    """Tensor -> the tensor whose place it has: reshaped values keep theirs, and results go where an input dies."""
    last_read = {number: step for step, op in enumerate(ops) for number in op.inputs}
    roots: dict[int, int] = {number: number for number in inputs}
    until = dict(last_read)  # root -> the last step that reads anything there

    def join(number: int, root: int) -> None:
        roots[number] = root
        until[root] = max(until.get(root, -1), last_read.get(number, -1))

    for step, op in enumerate(ops):
        source = roots.get(op.inputs[0]) if op.inputs else None
        result = op.outputs[0]
        same = source is not None and _bytes(draft.tensors[op.inputs[0]]) == _bytes(draft.tensors[result])
        free = source not in inputs and result not in outputs and source not in {roots.get(number) for number in outputs}
        dies = source is not None and until.get(source, -1) == step
        if same and free and (op.code == "RESHAPE" or (op.code in _IN_PLACE and dies)):
            assert source is not None
            join(result, source)
        else:
            for number in op.outputs:
                join(number, number)
    return roots


def _bytes(tensor: DraftTensor) -> int:
    return prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
