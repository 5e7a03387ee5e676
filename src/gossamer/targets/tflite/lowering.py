"""How one op becomes .tflite operators: the table of lowerings and what a lowering sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from gossamer.errors import UnsupportedOp
from gossamer.numerics.affine import Quantizer
from gossamer.program.forms import AnyForm, BatchSize, Form, Unknown
from gossamer.program.graph import Node, Ref
from gossamer.program.program import Program
from gossamer.program.shapes import Meta, TensorMeta
from gossamer.registry import Registry
from gossamer.targets.call import NodeCall
from gossamer.targets.lite_kernels import coded_number, coded_parameter
from gossamer.targets.tflite.constants import Constants
from gossamer.targets.tflite.draft import Array, Draft, DraftTensor
from gossamer.targets.tflite.layout import Laid, identity, same_memory, stored

DTYPES = ("float32", "int8", "uint8", "int16", "int32", "int64", "bool")
BATCH = 7919  # a batch size that no other size is a multiple of: an axis of one sample must not pass for one of size 1
WAY_OUT = "write that part of the model with other operations, or add a lowering with gossamer.targets.tflite.lowering.lowerings.add"


class Values(Protocol):
    """Where a lowering finds what was emitted before it."""

    program: Program
    draft: Draft
    metas: Mapping[str, Meta]  # at batch 1
    forms: Mapping[str, AnyForm]
    constants: Constants
    micro: bool  # whether the file is for the interpreter for microcontrollers

    def real(self, name: str) -> Laid:
        """The numbers of a value or parameter."""
        ...

    def one_row(self, name: str) -> Laid:
        """Like `real`; of a value that is the same for every sample, whatever the batch size, that one row."""
        ...

    def codes(self, name: str) -> Laid:
        """The codes of a value."""
        ...

    def batch_of_zeros(self, rank: int) -> int:
        """A float tensor (N, 1, ..., 1) of zeros, N being the free batch size."""
        ...

    def users(self, name: str) -> tuple[Node, ...]:
        """Nodes that read a value."""
        ...


@dataclass(frozen=True, slots=True)
class Call(NodeCall):
    """One node to lower, and what emits its operators. integer: it reads and writes codes."""

    values: Values
    integer: bool
    result: str  # the value that carries the result: the clamp behind the op, where codes replace that

    def resolve(self, name: str) -> Any:
        """A number, or a Ref. Raises UnsupportedOp for numbers that depend on the batch: files have constants only."""
        if isinstance(self.values.metas[name], (TensorMeta, tuple)):
            return Ref(name)
        if isinstance(self.values.forms[name], (BatchSize, Unknown)):
            raise self.unsupported(f"{self.node.op} with a number that depends on the batch")
        return self.values.metas[name]

    def shape(self, arg: Any) -> tuple[int, ...]:
        """Logical shape at batch 1 of an argument by its name, or of a Ref."""
        meta = self.values.metas[(self.args[arg] if isinstance(arg, str) else arg).name]
        assert isinstance(meta, TensorMeta)
        return meta.shape

    def grown(self, name: str) -> tuple[int, ...]:
        """Logical shape of a value at batch BATCH."""
        form = self.values.forms[name]
        assert isinstance(form, Form)
        if any(isinstance(size, Unknown) for size in form.sizes):
            raise self.unsupported(f"{self.node.op} with a size that is no multiple of the batch")
        return tuple(size if isinstance(size, int) else size.per_batch * BATCH + size.fixed for size in form.sizes)  # type: ignore[union-attr]

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Logical shape of the result at batch 1."""
        meta = self.values.metas[self.node.name]
        assert isinstance(meta, TensorMeta)
        return meta.shape

    @property
    def out_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Logical shapes of several results at batch 1."""
        metas = self.values.metas[self.node.name]
        assert isinstance(metas, tuple)
        return tuple(meta.shape for meta in metas if isinstance(meta, TensorMeta))

    def laid(self, arg: Any) -> Laid:
        """What an argument (by its name, or a Ref) is in the file: codes for an integer op."""
        name = (self.args[arg] if isinstance(arg, str) else arg).name
        if self.integer and name in self.values.program.quantizers and name not in self.values.program.state:
            return self.values.codes(name)
        return self.values.real(name)

    def one_row(self, arg: Any) -> Laid:
        """Like `laid`, for ops that broadcast: one row will do of a value that is the same for every sample."""
        name = (self.args[arg] if isinstance(arg, str) else arg).name
        return self.laid(arg) if self.integer else self.values.one_row(name)

    def array(self, arg: Any) -> Array | None:
        """The numbers of a float parameter, buffer or plain number; None for a computed value."""
        arg = self.args[arg] if isinstance(arg, str) else arg
        known = self.known(arg)
        if isinstance(known, (int, float)):
            return np.asarray(known)
        if isinstance(known, Ref) and known.name in self.values.constants and known.name not in self.values.program.quantizers:
            numbers: Array = self.values.constants.numbers(known.name).numpy()
            return numbers
        return None

    def in_order(self, laid: Laid, shape: Sequence[int], order: Sequence[int]) -> Laid:
        """The same value with its axes stored in another order; free where only axes of size 1 move."""
        if laid.columns:
            raise self.unsupported(f"{self.node.op} of flattened channels")
        if laid.order == tuple(order):
            return laid
        have = self.values.draft.tensors[laid.tensor]
        batch = None if have.batched is None else list(order).index(laid.order[have.batched])
        made = DraftTensor(f"{have.name}/moved", stored(shape, order), have.dtype, have.quantizer, None, batch)
        number = self.values.draft.add(made)
        sizes = [BATCH if have.batched is not None and axis == laid.order[have.batched] else size for axis, size in enumerate(shape)]
        if same_memory(sizes, laid.order, order):
            sizes = [-1 if axis == batch else size for axis, size in enumerate(made.shape)]
            self.values.draft.op("RESHAPE", (laid.tensor, self.ints(sizes)), (number,), "ReshapeOptions", newShape=sizes)
        else:
            moves = [laid.order.index(axis) for axis in order]
            self.values.draft.op("TRANSPOSE", (laid.tensor, self.ints(moves)), (number,), "TransposeOptions")
        return Laid(number, tuple(order))

    def ints(self, values: Sequence[int]) -> int:
        """A constant int32 vector."""
        return self.values.draft.constant(np.asarray(values, np.int32), "ints")

    def number(self, value: Any) -> int:
        """A constant float."""
        return self.values.draft.constant(np.asarray(value, np.float32), "number")

    def op(self, code: str, inputs: Sequence[int], order: Sequence[int], options: str = "", **fields: Any) -> Laid:
        """Emit the operator that computes the node's result, stored in this order."""
        number = self.result_tensor(order)
        self.values.draft.op(code, inputs, (number,), options, **fields)
        return Laid(number, tuple(order))

    def result_tensor(self, order: Sequence[int]) -> int:
        """A new tensor for the node's result."""
        form = self.values.forms[self.result]
        assert isinstance(form, Form)
        return self.tensor(self.result, self.out_shape, order, form, self.values.program.quantizers[self.result] if self.integer else None)

    def tensor(self, name: str, shape: Sequence[int], order: Sequence[int], form: Form, quantizer: Quantizer | None) -> int:
        """A new tensor for a value of a known form."""
        batched = next((k for k, axis in enumerate(order) if isinstance(form.sizes[axis], BatchSize)), None)
        dtype = str(form.dtype).removeprefix("torch.") if quantizer is None else codes_type(quantizer)
        if dtype not in DTYPES:
            raise self.unsupported(f"{self.node.op} with a result of type {dtype}")
        return self.values.draft.add(DraftTensor(name, stored(shape, order), dtype, quantizer, None, batched))

    def step(self, code: str, inputs: Sequence[int], shape: Sequence[int], options: str = "", **fields: Any) -> int:
        """Emit an operator on the way: a result of this stored shape, of the first input's type and codes, batched like it on axis 0."""
        like = self.values.draft.tensors[inputs[0]]
        batched = 0 if like.batched is not None else None
        number = self.values.draft.add(
            DraftTensor(f"{self.node.name}/{code.lower()}", tuple(shape), like.dtype, like.quantizer, None, batched)
        )
        self.values.draft.op(code, inputs, (number,), options, **fields)
        return number

    def float_step(self, code: str, inputs: Sequence[int], shape: Sequence[int], options: str = "", **fields: Any) -> int:
        """Like `step`, with floats as result whatever the first input is."""
        number = self.step(code, inputs, shape, options, **fields)
        self.values.draft.tensors[number] = replace(self.values.draft.tensors[number], dtype="float32", quantizer=None)
        return number

    def cast(self, number: int, dtype: str) -> int:
        """The same numbers in another type."""
        have = self.values.draft.tensors[number]
        if have.dtype == dtype or have.quantizer is not None:
            return number
        made = self.values.draft.add(DraftTensor(f"{have.name}/{dtype}", have.shape, dtype, None, None, have.batched))
        self.values.draft.op("CAST", (number,), (made,), "CastOptions")
        return made

    def shape_vector(self, shape: Sequence[int], batched: int | None) -> int:
        """A shape as RESHAPE takes it, -1 where the batch is."""
        return self.ints([-1 if axis == batched else size for axis, size in enumerate(shape)])

    def unsupported(self, what: str) -> UnsupportedOp:
        """The error for a case of this op that has no .tflite form."""
        return UnsupportedOp(what, self.node.where, needed="LiteRT", way_out=WAY_OUT)


def aligned(call: Call, *args: Any) -> tuple[list[int], tuple[int, ...]]:
    """Tensors of arguments that broadcast, in one common order, and that order: of the first that has as many axes as the result."""
    rank = len(call.out_shape)
    known = [call.args[arg] if isinstance(arg, str) else arg for arg in args]
    values = [None if call.array(arg) is not None else call.one_row(arg) for arg in known]
    full = [
        laid.order
        for laid, arg in zip(values, known, strict=True)
        if laid is not None and not laid.columns and len(call.shape(arg)) == rank
    ]
    order = next((found for found in full if found != identity(rank)), identity(rank))
    dtype = next((call.values.draft.tensors[laid.tensor].dtype for laid in values if laid is not None and not call.integer), "")
    tensors = []
    for laid, arg in zip(values, known, strict=True):
        if laid is None:
            array = call.array(arg)
            assert array is not None
            if call.integer and isinstance(arg, Ref) and arg.name in call.values.program.state:
                array, quantizer = _coded_operand(array)
                array = array.reshape((1,) * (rank - array.ndim) + array.shape).transpose(order)
                tensors.append(call.values.draft.constant(array, arg.name, quantizer))
                continue
            if call.integer and not array.ndim:
                code, quantizer = coded_number(1 / float(array) if call.row.onnx == "Div" else float(array))
                tensors.append(call.values.draft.constant(np.asarray(code, np.int8), "number", quantizer))
                continue
            array = array.reshape((1,) * (rank - array.ndim) + array.shape).transpose(order) if array.ndim else array
            tensors.append(call.values.draft.constant(array.astype(dtype or ("bool" if array.dtype == bool else "float32")), "constant"))
            continue
        shape = call.shape(arg)
        if len(shape) < rank:
            plain = call.in_order(laid, shape, identity(len(shape)))
            shape = (1,) * (rank - len(shape)) + shape
            laid = Laid(
                call.step("RESHAPE", (plain.tensor, call.ints(shape)), shape, "ReshapeOptions", newShape=list(shape)), identity(rank)
            )
        tensors.append(call.in_order(laid, shape, order).tensor)
    return tensors, order


def _coded_operand(array: Array) -> tuple[Array, Quantizer]:
    codes, quantizer = coded_parameter(torch.from_numpy(np.array(array)))
    return codes.numpy().astype(np.int8), quantizer


def codes_type(quantizer: Quantizer) -> str:
    """How codes of a value are stored."""
    return "int16" if quantizer.format.bits > 8 else "int8"


Lowering = Callable[[Call], "Laid | tuple[Laid, ...]"]
lowerings: Registry[Lowering] = Registry("LiteRT lowering")
