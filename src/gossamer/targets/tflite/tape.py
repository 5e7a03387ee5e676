"""Formulas written as operators: each call adds one, and shapes, types and the batch axis follow from its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gossamer.targets.tflite.draft import Array, DraftTensor
from gossamer.targets.tflite.layout import identity
from gossamer.targets.tflite.lowering import Call

Value = int | float | bool  # of an operand that is a plain number; tensors are Parts
_BOOLEAN = {"EQUAL", "NOT_EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "LOGICAL_AND", "LOGICAL_OR"}
_OPTIONS = {
    "ADD": ("AddOptions", True),
    "SUB": ("SubOptions", True),
    "MUL": ("MulOptions", True),
    "DIV": ("DivOptions", True),
    "FLOOR_DIV": ("FloorDivOptions", False),
    "FLOOR_MOD": ("FloorModOptions", False),
    "POW": ("PowOptions", False),
    "MAXIMUM": ("MaximumMinimumOptions", False),
    "MINIMUM": ("MaximumMinimumOptions", False),
    "EQUAL": ("EqualOptions", False),
    "NOT_EQUAL": ("NotEqualOptions", False),
    "GREATER": ("GreaterOptions", False),
    "GREATER_EQUAL": ("GreaterEqualOptions", False),
    "LESS": ("LessOptions", False),
    "LESS_EQUAL": ("LessEqualOptions", False),
    "LOGICAL_AND": ("LogicalAndOptions", False),
    "LOGICAL_OR": ("LogicalOrOptions", False),
    "ATAN2": ("ATan2Options", False),
    "EXP": ("ExpOptions", False),
    "ABS": ("AbsOptions", False),
    "NEG": ("NegOptions", False),
    "COS": ("CosOptions", False),
    "LOGICAL_NOT": ("LogicalNotOptions", False),
}


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of the file by its number, with operators in place of Python's."""

    tape: Tape
    number: int

    @property
    def tensor(self) -> DraftTensor:
        """What it is."""
        return self.tape.call.values.draft.tensors[self.number]

    @property
    def shape(self) -> tuple[int, ...]:
        """Stored, at batch 1."""
        return self.tensor.shape

    def __add__(self, other: Part | Value) -> Part:
        return self.tape.pair("ADD", self, other)

    def __sub__(self, other: Part | Value) -> Part:
        return self.tape.pair("SUB", self, other)

    def __mul__(self, other: Part | Value) -> Part:
        return self.tape.pair("MUL", self, other)

    def __truediv__(self, other: Part | Value) -> Part:
        return self.tape.pair("DIV", self, other)

    def one(self, code: str) -> Part:
        """A function of each number."""
        options, _ = _OPTIONS.get(code, ("", False))
        dtype = "bool" if code in _BOOLEAN else self.tensor.dtype
        return self.tape.add(code, (self.number,), self.shape, dtype, self.tensor.batched, options)

    def to(self, dtype: str) -> Part:
        """In another type."""
        return Part(self.tape, self.tape.call.cast(self.number, dtype))


class Tape:
    """Adds operators for one node."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def part(self, arg: Any) -> Part:
        """An argument with its axes as the network has them."""
        shape = self.call.shape(arg)
        return Part(self, self.call.in_order(self.call.laid(arg), shape, identity(len(shape))).tensor)

    def constant(self, array: Array, name: str = "constant") -> Part:
        """Numbers of the file."""
        return Part(self, self.call.values.draft.constant(array, name))

    def add(
        self, code: str, inputs: Sequence[int], shape: Sequence[int], dtype: str, batched: int | None, options: str = "", **fields: Any
    ) -> Part:
        """Any operator with one result."""
        draft = self.call.values.draft
        quantizer = draft.tensors[inputs[0]].quantizer if dtype == "int8" else None
        number = draft.add(DraftTensor(f"{self.call.node.name}/{code.lower()}", tuple(shape), dtype, quantizer, None, batched))
        draft.op(code, inputs, (number,), options, **fields)
        return Part(self, number)

    def pair(self, code: str, left: Part | Value, right: Part | Value) -> Part:
        """An operator on two tensors that broadcast, or on a tensor and a number."""
        like = left if isinstance(left, Part) else right
        assert isinstance(like, Part)
        one, two = (self._operand(side, like.tensor.dtype) for side in (left, right))
        shape = np.broadcast_shapes(one.shape, two.shape)
        ends = [part.tensor.batched + len(shape) - len(part.shape) for part in (one, two) if part.tensor.batched is not None]
        dtype = "bool" if code in _BOOLEAN else one.tensor.dtype
        options, fused = _OPTIONS[code]
        fields = {"fusedActivationFunction": 0} if fused else {}
        return self.add(code, (one.number, two.number), shape, dtype, ends[0] if ends else None, options, **fields)

    def _operand(self, side: Part | Value, dtype: str) -> Part:
        return side if isinstance(side, Part) else self.constant(np.asarray(side, dtype), "number")

    def choose(self, condition: Part, one: Part | Value, other: Part | Value) -> Part:
        """one where condition, else other."""
        like = one if isinstance(one, Part) else other
        dtype = like.tensor.dtype if isinstance(like, Part) else "float32"
        parts = [condition, self._operand(one, dtype), self._operand(other, dtype)]
        shape = np.broadcast_shapes(*(part.shape for part in parts))
        ends = [part.tensor.batched + len(shape) - len(part.shape) for part in parts if part.tensor.batched is not None]
        return self.add("SELECT_V2", [part.number for part in parts], shape, dtype, ends[0] if ends else None, "SelectV2Options")

    def reduce(self, code: str, part: Part, axes: Sequence[int], *, keep: bool = True) -> Part:
        """Over these axes."""
        axes = sorted(axis % len(part.shape) for axis in axes)
        shape = [1 if axis in axes else size for axis, size in enumerate(part.shape) if keep or axis not in axes]
        batched = part.tensor.batched
        if batched is not None:
            batched = None if batched in axes else batched if keep else batched - sum(axis < batched for axis in axes)
        places = self.call.ints(axes)
        return self.add(code, (part.number, places), shape, part.tensor.dtype, batched, "ReducerOptions", keepDims=keep)

    def reshape(self, part: Part, shape: Sequence[int], batched: int | None = 0) -> Part:
        """The same numbers; `batched`: the axis that grows with the batch, where the part has one."""
        batched = None if part.tensor.batched is None else batched
        sizes = [-1 if axis == batched else size for axis, size in enumerate(shape)]
        return self.add(
            "RESHAPE", (part.number, self.call.ints(sizes)), shape, part.tensor.dtype, batched, "ReshapeOptions", newShape=sizes
        )

    def transpose(self, part: Part, axes: Sequence[int]) -> Part:
        """With its axes in another order."""
        batched = None if part.tensor.batched is None else list(axes).index(part.tensor.batched)
        shape = [part.shape[axis] for axis in axes]
        return self.add("TRANSPOSE", (part.number, self.call.ints(axes)), shape, part.tensor.dtype, batched, "TransposeOptions")

    def pick(self, part: Part, places: Sequence[int], axis: int) -> Part:
        """These positions of an axis, which must not be the batch's."""
        self._check_axis(part, axis)
        shape = [len(places) if k == axis else size for k, size in enumerate(part.shape)]
        inputs = (part.number, self.call.ints(places))
        return self.add("GATHER", inputs, shape, part.tensor.dtype, part.tensor.batched, "GatherOptions", axis=axis)

    def cut(self, part: Part, axis: int, start: int, stop: int, step: int = 1) -> Part:
        """start:stop:step of an axis, which must not be the batch's."""
        self._check_axis(part, axis)
        rank = len(part.shape)
        ends = [[value if k == axis else other for k in range(rank)] for value, other in ((start, 0), (stop, 0), (step, 1))]
        shape = [len(range(start, stop, step)) if k == axis else size for k, size in enumerate(part.shape)]
        mask = sum(1 << k for k in range(rank) if k != axis)
        inputs = (part.number, *map(self.call.ints, ends))
        return self.add(
            "STRIDED_SLICE", inputs, shape, part.tensor.dtype, part.tensor.batched, "StridedSliceOptions", beginMask=mask, endMask=mask
        )

    def _check_axis(self, part: Part, axis: int) -> None:
        if part.tensor.batched == axis:  # shapes here are those at batch 1, so that all samples but the first would be lost
            raise self.call.unsupported(f"{self.call.node.op} along the batch")

    def join(self, parts: Sequence[Part], axis: int) -> Part:
        """One after another along an axis, which must not be the batch's."""
        for part in parts:
            self._check_axis(part, axis)
        shape = [sum(part.shape[k] for part in parts) if k == axis else size for k, size in enumerate(parts[0].shape)]
        numbers = [part.number for part in parts]
        first = parts[0].tensor
        return self.add(
            "CONCATENATION", numbers, shape, first.dtype, first.batched, "ConcatenationOptions", axis=axis, fusedActivationFunction=0
        )

    def product(self, left: Part, right: Part, *, transposed: bool = False) -> Part:
        """Matrix product; `transposed`: the second factor has its last two axes the other way round."""
        columns = right.shape[-2] if transposed else right.shape[-1]
        shape = (*np.broadcast_shapes(left.shape[:-2], right.shape[:-2]), left.shape[-2], columns)
        inputs = (left.number, right.number)
        batched = left.tensor.batched if left.tensor.batched is not None else right.tensor.batched
        return self.add("BATCH_MATMUL", inputs, shape, "float32", batched, "BatchMatMulOptions", adjX=False, adjY=transposed)
