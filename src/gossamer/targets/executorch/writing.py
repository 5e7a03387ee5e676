"""How one operator of the draft that LiteRT's lowering makes becomes nodes of XNNPACK's graph: the table, and what its rows see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from types import MappingProxyType
from typing import Any

import numpy as np

from gossamer.registry import Registry
from gossamer.targets.executorch.delegate import Array, Delegate
from gossamer.targets.executorch.step import OutsideXnnpack, Step
from gossamer.targets.tflite.draft import Draft, DraftOp, DraftTensor
from gossamer.targets.tflite.layout import identity

MOST_AXES = 6  # of XNNPACK's values
Limits = tuple[float, float] | None
_LIMITS: Mapping[int, Limits] = {0: None, 1: (0.0, inf), 2: (-1.0, 1.0), 3: (0.0, 6.0)}  # by number in LiteRT's ActivationFunctionType


@dataclass(slots=True)
class Writer:
    """One walk over a draft's operators. `inputs`: value and stored order of each input's tensor."""

    draft: Draft
    delegate: Delegate
    inputs: Mapping[int, tuple[int, tuple[int, ...]]]
    numbers: dict[int, int] = field(default_factory=dict)  # value of each tensor
    borders: dict[int, DraftOp] = field(default_factory=dict)  # pads that their readers may take over, not written yet
    makers: dict[int, DraftOp] = field(default_factory=dict)

    def write(self) -> None:
        """All operators. Raises OutsideXnnpack."""
        for op in self.draft.ops:
            self.makers |= dict.fromkeys(op.outputs, op)
            if op.code in ("PAD", "PADV2") and _around_images(self.draft, op):
                self.borders[op.outputs[0]] = op
            else:
                self.write_op(op)

    def write_op(self, op: DraftOp) -> None:
        """One operator."""
        if op.code not in rows:
            raise OutsideXnnpack(f"{op.code} has no node there")
        rows[op.code](NodeStep(self, op))

    def number(self, tensor: int) -> int:
        """The value of a tensor."""
        if tensor in self.numbers:
            return self.numbers[tensor]
        made = self.draft.tensors[tensor]
        if made.data is not None:
            self.numbers[tensor] = self.constant(made)
        elif tensor in self.borders:
            self.write_op(self.borders.pop(tensor))
        elif tensor in self.inputs:
            given, order = self.inputs[tensor]
            self.numbers[tensor] = given if order == identity(len(order)) else self.value(made)
            if order != identity(len(order)):
                self.transpose(given, self.numbers[tensor], order)
        return self.numbers[tensor]

    def value(self, tensor: DraftTensor) -> int:
        """A new value like a tensor, at batch 1. Raises OutsideXnnpack for one that XNNPACK cannot hold.

        XNNPACK plans its memory anew for more samples. Where sizes are those of a larger batch than the first that runs, it keeps a plan
        that is too small for the next one, and writes beyond its memory.
        """
        if tensor.dtype not in ("float32", "int8"):
            raise OutsideXnnpack(f"a value of {tensor.dtype} cannot be held there")
        if len(tensor.shape) > MOST_AXES:
            raise OutsideXnnpack(f"a value of {len(tensor.shape)} axes cannot be held there")
        return self.delegate.value(tensor.shape, tensor.dtype, tensor.quantizer)

    def constant(self, tensor: DraftTensor) -> int:
        """A value with a tensor's contents."""
        assert tensor.data is not None
        if tensor.data.dtype.name not in ("float32", "int8", "int32"):
            raise OutsideXnnpack(f"a constant of {tensor.dtype} cannot be held there")
        return self.delegate.constant(tensor.data, tensor.quantizer, tensor.axis)

    def transpose(self, source: int, result: int, axes: Sequence[int]) -> None:
        """Add a node that moves axes: axis k of the result is axes[k] of the source."""
        self.delegate.node("StaticTranspose", num_dims=len(axes), perm=list(axes), input_id=source, output_id=result)


class NodeStep(Step[Writer]):
    """One operator to write as nodes."""

    __slots__ = ()

    def result(self) -> int:
        """A new value for the result."""
        number = self.walk.numbers[self.op.outputs[0]] = self.walk.value(self.out)
        return number

    def between(self, shape: Sequence[int], batched: int | None, *, like: DraftTensor | None = None) -> int:
        """A new value on the way to the result, of its type and codes unless `like` has others."""
        like = self.out if like is None else like
        return self.walk.value(DraftTensor("", tuple(shape), like.dtype, like.quantizer, None, batched))

    def node(self, kind: str, fields: Mapping[str, Any] = MappingProxyType({}), *, limits: Limits = None, **more: Any) -> None:
        """Add a node."""
        self.walk.delegate.node(kind, limits, **fields, **more)

    @property
    def limits(self) -> Limits:
        """Of the activation that the operator has in it; codes clip by themselves."""
        return _LIMITS[self.op.fields.get("fusedActivationFunction", 0)] if self.out.quantizer is None else None

    def clamped(self) -> int:
        """The value to write for kinds of node that do not clamp: the result, or one in front of a clamp that is added behind it."""
        if self.limits is None:
            return self.result()
        return self.between(self.out.shape, self.out.batched)

    def clamp(self, free: int) -> None:
        """The clamp behind a value from `clamped`, where one is needed; called once its node is there."""
        if self.limits is not None:
            self.node("Clamp", limits=self.limits, input_id=free, output_id=self.result())

    def reshape(self, source: int, result: int, shape: Sequence[int], batched: int | None) -> None:
        """Add a node that reads the same numbers in another shape; one size, that of the batch, is found when it runs."""
        sizes = [0 if axis == batched else int(size) for axis, size in enumerate(shape)]
        self.node("StaticReshape", num_dims=len(sizes), new_shape=sizes, input_id=source, output_id=result)

    def scalar(self, number: float) -> int:
        """A constant float."""
        return self.walk.delegate.constant(np.asarray([number], np.float32))

    def known(self, place: int) -> Array:
        """What a constant input stands for, in float32. Raises OutsideXnnpack for a computed one."""
        numbers, tensor = self.array(place).astype(np.float32), self.tensor(place)
        if tensor.quantizer is None:
            return numbers
        sizes = [1] * numbers.ndim
        if len(tensor.quantizer.scale) > 1:
            sizes[tensor.axis] = -1
        zero, scale = (np.asarray(part, np.float32) for part in (tensor.quantizer.zero_point, tensor.quantizer.scale))
        return (numbers - zero.reshape(sizes)) * scale.reshape(sizes)


def _around_images(draft: Draft, op: DraftOp) -> bool:
    """Whether a pad adds to height and width of images (N, H, W, C) alone."""
    table = draft.tensors[op.inputs[1]].data
    return table is not None and table.shape == (4, 2) and not table[[0, 3]].any()


Row = Callable[[NodeStep], None]
rows: Registry[Row] = Registry("XNNPACK node")
