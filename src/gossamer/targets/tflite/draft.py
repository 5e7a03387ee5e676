"""A .tflite graph while it is being written: plain data, so that only `flat.py` needs a schema."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gossamer.numerics.affine import Quantizer
from gossamer.targets.tflite.note import Note

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class DraftTensor:
    """shape: stored axes at batch 1; batched: the axis that grows with the batch, or None; axis: of the scales, for a constant."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    quantizer: Quantizer | None = None
    data: Array | None = None
    batched: int | None = None
    axis: int = 0


@dataclass(frozen=True, slots=True)
class DraftOp:
    """One builtin operator on tensors by number (-1: absent); options: the name of its options table and the fields set in it.

    module  path of the user's module that it is written for; "" where that is the whole network
    """

    code: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: str
    fields: Mapping[str, Any]
    module: str = ""


class Draft:
    """Collects tensors and operators, those for `module` from now on. Equal constants are stored once."""

    def __init__(self) -> None:
        self.module = ""
        self.tensors: list[DraftTensor] = []
        self.ops: list[DraftOp] = []
        self._constants: dict[tuple[object, ...], int] = {}

    def add(self, tensor: DraftTensor) -> int:
        """Number of a new tensor."""
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def constant(self, data: Array, name: str = "constant", quantizer: Quantizer | None = None, axis: int = 0, dtype: str = "") -> int:
        """Number of a tensor with these contents, stored as `dtype` where that is not the array's own."""
        data = np.ascontiguousarray(data)
        dtype = dtype or data.dtype.name
        key = (dtype, data.shape, quantizer, axis, hashlib.sha256(data.reshape(-1).view(np.uint8).data).digest())
        if key not in self._constants:
            self._constants[key] = self.add(DraftTensor(name, data.shape, dtype, quantizer, data, None, axis))
        return self._constants[key]

    def op(self, code: str, inputs: Sequence[int], outputs: Sequence[int], options: str = "", **fields: Any) -> None:
        """Add an operator."""
        self.ops.append(DraftOp(code, tuple(inputs), tuple(outputs), options, fields, self.module))

    def live(self, outputs: Sequence[int], names: Mapping[int, str]) -> tuple[Draft, Mapping[int, int]]:
        """The same without what reaches no output, and the new number of each tensor that is left.

        `names` are names that tensors must have. All names differ then: many tools find tensors by them.
        """
        needed = set(outputs)
        kept: list[DraftOp] = []
        for op in reversed(self.ops):
            if needed.intersection(op.outputs):
                kept.append(op)
                needed.update((*op.inputs, *op.outputs))
        numbers = [number for number in range(len(self.tensors)) if number in needed]
        slim = Draft()
        free = _Names(names[number] for number in numbers if number in names)
        slim.tensors = [replace(self.tensors[n], name=names[n] if n in names else free.take(self.tensors[n].name)) for n in numbers]
        new = {number: position for position, number in enumerate(numbers)}
        for op in reversed(kept):
            inputs, outputs = (tuple(new.get(number, -1) for number in group) for group in (op.inputs, op.outputs))
            slim.ops.append(replace(op, inputs=inputs, outputs=outputs))
        return slim, new


@dataclass(frozen=True, slots=True)
class Written:
    """A whole network as operators: the tensors it takes and hands out, and how they and all values with codes are stored."""

    draft: Draft
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    note: Note


class _Names:
    """Hands out each name once; a number goes behind one that is taken."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)
        self._tried: dict[str, int] = {}

    def take(self, wish: str) -> str:
        name = wish
        while name in self._taken:
            self._tried[wish] = self._tried.get(wish, 0) + 1
            name = f"{wish}_{self._tried[wish]}"
        self._taken.add(name)
        return name
