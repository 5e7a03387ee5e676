"""Convolutions of several groups as one for each group, between slices and a join: every core's kernels take those."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from gossamer.numerics.affine import Quantizer
from gossamer.numerics.formats import PerAxis
from gossamer.targets.tflite.draft import Draft, DraftOp, DraftTensor


def one_by_one(draft: Draft, ops: Sequence[DraftOp]) -> tuple[Draft, list[DraftOp]]:
    """The same operators, without any that computes several groups; the draft holds what they read and make."""
    made = Draft()
    made.tensors = list(draft.tensors)
    for op in ops:
        made.module = op.module
        if op.code == "CONV_2D" and draft.tensors[op.inputs[0]].shape[3] != draft.tensors[op.inputs[1]].shape[3]:
            _write(made, op)
        else:
            made.ops.append(op)
    return made, made.ops


def _write(draft: Draft, op: DraftOp) -> None:
    source, weight, bias = (draft.tensors[number] for number in op.inputs)
    result = draft.tensors[op.outputs[0]]
    inside = weight.shape[3]
    groups = source.shape[3] // inside
    outside, parts = result.shape[3] // groups, []
    for group, (kernel, added) in enumerate(zip(_cut(weight, groups), _cut(bias, groups), strict=True)):
        part = draft.add(replace(source, name=f"{result.name}/read{group}", shape=(*source.shape[:3], inside)))
        ends = [draft.constant(np.asarray(line, np.int32), "ints") for line in ([0, 0, 0, group * inside], [-1, -1, -1, inside])]
        draft.op("SLICE", (op.inputs[0], *ends), (part,), "SliceOptions")
        parts.append(draft.add(replace(result, name=f"{result.name}/group{group}", shape=(*result.shape[:3], outside))))
        draft.op("CONV_2D", (part, draft.add(kernel), draft.add(added)), (parts[-1],), op.options, **op.fields)
    draft.op("CONCATENATION", parts, op.outputs, "ConcatenationOptions", axis=3, fusedActivationFunction=0)


def _cut(tensor: DraftTensor, groups: int) -> Iterator[DraftTensor]:
    """A constant's parts along its first axis, with their own scales where there is one for each position."""
    assert tensor.data is not None
    for group, part in enumerate(np.split(tensor.data, groups)):
        quantizer = tensor.quantizer
        if quantizer is not None and isinstance(quantizer.granularity, PerAxis):
            places = slice(group * len(part), (group + 1) * len(part))
            quantizer = Quantizer(quantizer.format, quantizer.granularity, quantizer.scale[places], quantizer.zero_point[places])
        yield replace(tensor, name=f"{tensor.name}/group{group}", shape=part.shape, data=np.ascontiguousarray(part), quantizer=quantizer)
