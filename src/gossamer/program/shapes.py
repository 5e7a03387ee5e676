"""Shapes, dtypes and storages of all values of a program, found without computing anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from gossamer.errors import UnsupportedOp
from gossamer.program.execute import DEVICE, TRAINING, run_steps

if TYPE_CHECKING:
    from gossamer.program.program import Program


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """What is known of a value without its numbers; values of the same `storage` share memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    storage: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return int(torch.Size(self.shape).numel())

    @property
    def size_bytes(self) -> int:
        """Bytes of the elements."""
        return self.numel * self.dtype.itemsize


Meta = TensorMeta | tuple[Any, ...] | int | float | bool | None


def infer_shapes(program: Program, batch: int = 1) -> Mapping[str, Meta]:
    """Meta of every input, state tensor and node result at a batch size. Results that are numbers stay numbers.

    Raises: UnsupportedOp for an op whose result's size, or number, depends on values.
    """
    metas: dict[str, Meta] = {}
    with FakeTensorMode() as mode, torch.no_grad():
        values: dict[str, Any] = {name: mode.from_tensor(tensor) for name, tensor in program.state.items()}
        for spec in program.inputs:
            sizes = [batch if size is None else size for size in spec.shape]
            values[spec.name] = torch.empty(sizes, dtype=spec.dtype, device=program.device)
        metas |= {name: _meta(value) for name, value in values.items()}
        values |= {TRAINING: False, DEVICE: program.device}
        keep: list[Any] = list(values.values())  # storages are told apart by address, so none may be freed meanwhile

        def note(name: str, value: Any) -> None:
            keep.append(value)
            metas[name] = _meta(value)

        try:
            run_steps(program.steps, values, note)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            node = next(node for node in program.graph.nodes if node.name not in metas)
            raise UnsupportedOp(
                node.op, node.source or node.name, needed="shape", way_out="its result depends on values; use operations with known shapes"
            ) from error
    return metas


def _meta(value: Any) -> Meta:
    if isinstance(value, Tensor):
        return TensorMeta(tuple(int(size) for size in value.shape), value.dtype, value.untyped_storage()._cdata)
    if isinstance(value, (tuple, list)):
        return tuple(_meta(item) for item in value)
    return value  # type: ignore[no-any-return]


def tensor_meta(metas: Mapping[str, Meta], name: str) -> TensorMeta:
    """Meta of a value that must be one tensor."""
    meta = metas[name]
    assert isinstance(meta, TensorMeta), f"{name} is not a tensor"
    return meta
