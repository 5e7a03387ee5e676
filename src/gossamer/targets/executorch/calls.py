"""What a .pte file does, step by step, while it is being written: its values, where they lie in memory, and calls of kernels and of XNNPACK."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

MOST_SAMPLES = 64  # in a call, where the batch size is free: memory is planned for this many
ALIGNMENT = 16  # of values in memory and of constants, in bytes
TYPES = {"float32": "FLOAT", "int8": "CHAR", "int32": "INT", "int64": "LONG", "bool": "BOOL"}
_ITEM_BYTES = {"FLOAT": 4, "CHAR": 1, "INT": 4, "LONG": 8, "BOOL": 1}
Plain = bool | int | None


@dataclass(frozen=True, slots=True)
class End:
    """A tensor that a call reads or writes: its shape at batch 1, ExecuTorch's name of its type, and the axis that grows with a free batch size."""

    shape: tuple[int, ...]
    dtype: str
    batched: int | None

    @property
    def largest(self) -> tuple[int, ...]:
        """The shape of as many samples as a call takes."""
        return tuple(size * MOST_SAMPLES if axis == self.batched else size for axis, size in enumerate(self.shape))

    @property
    def size_bytes(self) -> int:
        """Memory for that, with what aligns the next one."""
        size = prod(self.largest) * _ITEM_BYTES[self.dtype]
        return size + -size % ALIGNMENT


class Calls:
    """Collects values and instructions. Equal constants, numbers and lists are stored once."""

    def __init__(self) -> None:
        self.instructions: list[dict[str, Any]] = []
        self.delegates = 0
        self._values: list[End | dict[str, Any]] = []
        self._data: list[bytes] = []
        self._operators: list[str] = []
        self._known: dict[object, int] = {}

    def tensor(self, end: End) -> int:
        """Number of a new tensor."""
        return self._add(end)

    def constant(self, data: npt.NDArray[Any]) -> int:
        """Number of a tensor with these contents."""
        data = np.ascontiguousarray(data)
        key = (data.dtype.name, data.shape, data.tobytes())
        if key not in self._known:
            self._data.append(data.tobytes())
            made = _tensor(End(data.shape, TYPES[data.dtype.name], None)) | {"data_buffer_idx": len(self._data)}
            self._known[key] = self._add({"val_type": "Tensor", "val": made})
        return self._known[key]

    def plain(self, value: Plain) -> int:
        """Number of a value that is no tensor."""
        if value is None:
            return self._once("Null", None, {})
        kind = type(value).__name__
        return self._once(kind.title(), value, {f"{kind}_val": value})

    def ints(self, values: Iterable[int]) -> int:
        """Number of a list of whole numbers."""
        items = [self.plain(int(value)) for value in values]
        return self._once("IntList", tuple(items), {"items": items})

    def tensors(self, numbers: Sequence[int], *, some_absent: bool = False) -> int:
        """Number of a list of tensors, told by theirs; `some_absent`: of the type that may have gaps, which are numbers of None."""
        kind = "OptionalTensorList" if some_absent else "TensorList"
        return self._once(kind, tuple(numbers), {"items": list(numbers)})

    def call(self, operator: str, inputs: Sequence[int], result: int) -> None:
        """Call a kernel, such as aten::add.out; its result is named twice, as where it writes and as what it returns."""
        if operator not in self._operators:
            self._operators.append(operator)
        arguments = {"op_index": self._operators.index(operator), "args": [*inputs, result, result]}
        self.instructions.append({"instr_args_type": "KernelCall", "instr_args": arguments})

    def delegate(self, inputs: Sequence[int], results: Sequence[int]) -> None:
        """Call XNNPACK's graph."""
        arguments = {"delegate_index": self.delegates, "args": [*inputs, *results]}
        self.instructions.append({"instr_args_type": "DelegateCall", "instr_args": arguments})
        self.delegates += 1

    def operators(self) -> list[dict[str, str]]:
        """Kernels that are called."""
        return [dict(zip(("name", "overload"), operator.split("."), strict=True)) for operator in self._operators]

    def constants(self) -> tuple[bytes, list[int]]:
        """The bytes of all constants, and where each begins; number 0 stands for "no constant"."""
        blob, offsets = bytearray(), [0]
        for data in self._data:
            blob += bytes(-len(blob) % ALIGNMENT)
            offsets.append(len(blob))
            blob += data
        return bytes(blob), offsets

    def values_in_memory(self, inputs: Sequence[int], outputs: Sequence[int]) -> tuple[list[dict[str, Any]], int]:
        """All values as the schema has them, and bytes of memory that they need; what callers hand in and take out lies there all the time."""
        places, memory_bytes = self._places({*inputs, *outputs})
        made = []
        for number, value in enumerate(self._values):
            if isinstance(value, End):
                low, high = places[number] % 2**32, places[number] >> 32
                where = {"memory_id": 1, "memory_offset_low": low, "memory_offset_high": high}
                value = {"val_type": "Tensor", "val": _tensor(value) | {"allocation_info": where}}
            made.append(value)
        return made, memory_bytes

    def _places(self, lasting: set[int]) -> tuple[dict[int, int], int]:
        """Offset of each tensor in memory, largest first, each as low as those allow that are needed at the same time."""
        spans: dict[int, tuple[int, int]] = {}
        for step, instruction in enumerate(self.instructions):
            for number in self._reached(instruction["instr_args"]["args"]):
                spans[number] = (spans.get(number, (step, step))[0], step)
        spans |= dict.fromkeys(lasting, (0, len(self.instructions)))
        ends = {number: value for number, value in enumerate(self._values) if isinstance(value, End)}
        places: dict[int, int] = {}
        for number in sorted(ends, key=lambda number: -ends[number].size_bytes):
            first, last = spans.get(number, (0, len(self.instructions)))
            taken = sorted((places[other], ends[other].size_bytes) for other in places if _meet(spans.get(other), (first, last)))
            offset = 0
            for start, size in taken:
                if start - offset >= ends[number].size_bytes:
                    break
                offset = max(offset, start + size)
            places[number] = offset
        return places, max((offset + ends[number].size_bytes for number, offset in places.items()), default=0)

    def _reached(self, numbers: Iterable[int]) -> Iterable[int]:
        """Values, and those in lists of tensors."""
        for number in numbers:
            value = self._values[number]
            yield number
            if not isinstance(value, End) and value["val_type"].endswith("TensorList"):
                yield from value["val"]["items"]

    def _once(self, kind: str, key: object, value: dict[str, Any]) -> int:
        if (kind, key) not in self._known:
            self._known[kind, key] = self._add({"val_type": kind, "val": value})
        return self._known[kind, key]

    def _add(self, value: End | dict[str, Any]) -> int:
        self._values.append(value)
        return len(self._values) - 1


def _meet(one: tuple[int, int] | None, two: tuple[int, int]) -> bool:
    """Whether two spans of steps have a step in common; None: all of them."""
    return one is None or (one[0] <= two[1] and two[0] <= one[1])


def _tensor(end: End) -> dict[str, Any]:
    return {
        "scalar_type": end.dtype,
        "sizes": list(end.largest),
        "dim_order": list(range(len(end.shape))),
        "shape_dynamism": "STATIC" if end.batched is None else "DYNAMIC_BOUND",
    }
