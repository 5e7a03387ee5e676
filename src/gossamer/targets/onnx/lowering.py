"""How one op becomes ONNX nodes: the table of lowerings and what a lowering sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gossamer.errors import UnsupportedOp
from gossamer.numerics.affine import Quantizer
from gossamer.plan.spec import TargetSpec
from gossamer.program.forms import AnyForm, BatchSize, Form, Size, Unknown
from gossamer.program.graph import Arg, Node, Ref
from gossamer.program.program import Program
from gossamer.registry import Registry
from gossamer.targets.call import NodeCall
from gossamer.targets.onnx.coding import CODES
from gossamer.targets.onnx.draft import Array, Draft
from gossamer.targets.onnx.proto import numpy_dtype, onnx_dtype

WAY_OUT = "write that part of the model with other operations, or add a lowering with gossamer.targets.onnx.lowering.lowerings.add"


class Values(Protocol):
    """Where a lowering finds what was emitted before it."""

    program: Program
    spec: TargetSpec  # of the runtime that the file is for
    draft: Draft
    coded: dict[str, Quantizer]  # results of DequantizeLinear -> the quantizer of their codes
    codes: dict[str, str]  # results of DequantizeLinear -> the codes that it reads
    twins: dict[object, int]  # what a layer on codes reads -> how many others read the same
    rows: dict[str, str]  # tensors of codes -> the same as matrices, for linear layers

    @property
    def state(self) -> Mapping[str, Tensor]:
        """Parameters and buffers."""
        ...

    @property
    def forms(self) -> Mapping[str, AnyForm]:
        """The form of every value."""
        ...

    def tensor(self, name: str) -> str:
        """The ONNX tensor that readers of a value read."""
        ...

    def result_quantizer(self, node: Node) -> Quantizer | None:
        """The quantizer of a node's result, or of the clamp behind it that its codes replace."""
        ...

    def weight(self, numbers: Tensor, name: str, quantizer: Quantizer, spread: Callable[[str], str] | None = None) -> str:
        """What the layer that is being emitted reads for its float weight: codes of `numbers`, behind the operators that `spread` emits on them."""
        ...

    def for_reader(self, codes: str, rows: int, name: str) -> str:
        """Codes of a weight, which has so many rows, as the layer that is being emitted reads them."""
        ...

    def define_codes(self, name: str, codes: str, quantizer: Quantizer) -> str:
        """Note that `codes` are a value's codes; return the tensor that readers of the value read."""
        ...

    def state_array(self, name: str) -> Array | None:
        """The numbers of a float parameter or buffer; None for a computed value or a quantized parameter."""
        ...

    def batch(self) -> str:
        """An int64 tensor (1,) holding the batch size."""
        ...


@dataclass(frozen=True, slots=True)
class Call(NodeCall):
    """One node to lower, and what emits its operators."""

    values: Values

    def resolve(self, name: str) -> Any:
        """A number, or a size that depends on the batch; a Ref to anything else."""
        form = self.values.forms[name]
        return Ref(name) if isinstance(form, (Form, tuple)) else form

    def dtype_of(self, name: str) -> torch.dtype | int | float | bool:
        """The dtype of a tensor argument; a number as it is."""
        value = self[name]
        if isinstance(value, Ref):
            return self.form_of(value).dtype
        return 0 if isinstance(value, (BatchSize, Unknown)) else value  # type: ignore[no-any-return]

    def number(self, name: str) -> int:
        """An argument that must be a number that does not depend on the batch size."""
        value = self[name]
        if not isinstance(value, (int, float)):
            raise self.unsupported(f"{self.node.op} whose {name} depends on the batch or on values")
        return value  # type: ignore[return-value]

    def unsupported(self, what: str) -> UnsupportedOp:
        """The error for a case of this op that has no ONNX form."""
        return UnsupportedOp(what, self.node.where, needed="ONNX", way_out=WAY_OUT)

    @property
    def result(self) -> Form:
        """Form of the op's result, of the first one where there are several."""
        form = self.values.forms[self.node.name]
        form = form[0] if isinstance(form, tuple) else form
        assert isinstance(form, Form)
        return form

    @property
    def results(self) -> tuple[Form, ...]:
        """Forms of all results of an op that has several."""
        forms = self.values.forms[self.node.name]
        assert isinstance(forms, tuple)
        return forms

    def form(self, name: str) -> Form:
        """Form of a tensor argument."""
        return self.form_of(self.args[name])

    def form_of(self, arg: Arg) -> Form:
        """Form of a tensor."""
        assert isinstance(arg, Ref)
        form = self.values.forms[arg.name]
        assert isinstance(form, Form)
        return form

    def axis(self, name: str = "dim", rank: int | None = None) -> int:
        """An axis argument as a number from 0."""
        rank = self.form(next(iter(self.args))).rank if rank is None else rank
        return self.number(name) % max(rank, 1)

    def array(self, name: str) -> Array | None:
        """The numbers of an argument that is a float parameter or buffer, None for anything else."""
        arg = self.args[name]
        return self.values.state_array(arg.name) if isinstance(arg, Ref) else None

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> str:
        """The ONNX tensor of an argument, cast to `dtype` where it is given; numbers become constants."""
        return self.tensor_of(self.args[name], dtype)

    def tensor_of(self, arg: Arg, dtype: torch.dtype | None = None) -> str:
        """Like `tensor`, for an argument inside a list."""
        known = self.known(arg)
        if isinstance(known, Ref):
            name = self.values.tensor(known.name)
            have = self.form_of(known).dtype
            return name if dtype in (None, have) else self.cast(name, dtype)  # type: ignore[arg-type]
        if isinstance(known, (BatchSize, Unknown)):
            scalar = self.op("Squeeze", self.sizes([known]))
            return scalar if dtype in (None, torch.int64) else self.cast(scalar, dtype)  # type: ignore[arg-type]
        return self.constant(known, dtype or torch.get_default_dtype())

    def constant(self, value: Any, dtype: torch.dtype = torch.float32) -> str:
        """The name of a constant tensor."""
        return self.values.draft.constant(np.asarray(value, dtype=numpy_dtype(dtype)))

    def ints(self, *values: int) -> str:
        """The name of a constant int64 vector, as shapes and axes are given."""
        return self.values.draft.constant(np.asarray(values, dtype=np.int64))

    def op(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Emit an operator with one result; return its name."""
        return self.values.draft.emit(op, inputs, name="t", **attributes)[0]

    def ops(self, op: str, *inputs: str, outputs: int, **attributes: Any) -> tuple[str, ...]:
        """Emit an operator with several results."""
        return self.values.draft.emit(op, inputs, name="t", outputs=outputs, **attributes)

    def cast(self, tensor: str, dtype: torch.dtype) -> str:
        """Emit a Cast."""
        return self.op("Cast", tensor, to=onnx_dtype(dtype))

    def define_codes(self, codes: str, quantizer: Quantizer) -> str:
        """For a lowering that computed its result's codes itself: name them, return what readers read."""
        name = self.values.draft.fresh(self.node.name + CODES)
        self.values.draft.rename(codes, name)
        return self.values.define_codes(self.node.name, name, quantizer)

    def sizes(self, sizes: Sequence[Size]) -> str:
        """An int64 vector of sizes: a constant unless one of them depends on the batch."""
        if all(isinstance(size, int) for size in sizes):
            return self.ints(*sizes)  # type: ignore[arg-type]
        parts = [self._size(size) for size in sizes]
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    def _size(self, size: Size) -> str:
        match size:
            case int():
                return self.ints(size)
            case BatchSize(per_batch=slope, fixed=fixed):
                name = self.values.batch()
                name = name if slope == 1 else self.op("Mul", name, self.ints(slope))
                return name if fixed == 0 else self.op("Add", name, self.ints(fixed))
            case Unknown():
                raise self.unsupported(f"{self.node.op} with a size that is no multiple of the batch")

    def reshape(self, tensor: str, have: Sequence[Size], want: Sequence[Size]) -> str:
        """Emit a Reshape, with a constant shape wherever 0 (keep) and -1 (rest) can say it."""
        if tuple(have) == tuple(want):
            return tensor
        free = [position for position, size in enumerate(want) if not isinstance(size, int)]
        kept = [p for p in free if p < len(have) and have[p] == want[p] and have[p] != Unknown()]
        rest = [p for p in free if p not in kept]
        if (len(rest) > 1) or (0 in want and free):
            return self.op("Reshape", tensor, self.sizes(want))
        plain = [0 if p in kept else -1 if p in rest else size for p, size in enumerate(want)]
        zero_means_zero = 1 if 0 in want else None
        return self.op("Reshape", tensor, self.ints(*plain), allowzero=zero_means_zero)  # type: ignore[arg-type]


Lowering = Callable[[Call], "str | tuple[str, ...]"]
lowerings: Registry[Lowering] = Registry("ONNX lowering")
