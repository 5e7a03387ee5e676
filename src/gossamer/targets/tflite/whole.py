"""Indexing that takes everything as it is, x[arange(n)[:, None], arange(m)]: how masks are written for a batch of any size."""

from __future__ import annotations

import torch

from gossamer.program.forms import BatchSize, Form
from gossamer.program.graph import Ref
from gossamer.targets.tflite.constants import PROBES
from gossamer.targets.tflite.layout import Laid, identity
from gossamer.targets.tflite.lowering import Call


def taken_whole(call: Call) -> Laid | None:
    """The value with axes of size 1 between its own, where indices are 0, 1, 2 ... along one axis of the result each; else None."""
    indices = call["indices"]
    shape = call.shape("self")
    if len(indices) != len(shape) or not all(isinstance(places, Ref) for places in indices):
        return None
    axes = {_axes(call, batch) for batch in PROBES}
    found = axes.pop()
    if axes or found is None or list(found) != sorted(set(found)):
        return None
    rank = len(call.out_shape)
    laid = call.in_order(call.laid("self"), shape, identity(len(shape)))
    number = call.result_tensor(identity(rank))
    made = call.values.draft.tensors[number]
    call.values.draft.op("RESHAPE", (laid.tensor, call.shape_vector(made.shape, made.batched)), (number,), "ReshapeOptions")
    return Laid(number, identity(rank))


def _axes(call: Call, batch: int) -> tuple[int, ...] | None:
    """For each axis the one of the result along which it runs at a batch size."""
    arg = call.args["self"]
    assert isinstance(arg, Ref)
    form, rank, found = call.values.forms[arg.name], len(call.out_shape), []
    assert isinstance(form, Form)
    for places, size in zip(call["indices"], form.sizes, strict=True):
        if places.name not in call.values.constants and not call.values.constants.follows_batch(places.name):
            return None
        numbers = call.values.constants.at(places.name, batch)
        length = size.per_batch * batch + size.fixed if isinstance(size, BatchSize) else size
        if numbers.numel() != length or not torch.equal(numbers.reshape(-1), torch.arange(numbers.numel())):
            return None
        along = [axis for axis, extent in enumerate(numbers.shape) if extent != 1]
        if len(along) != 1:
            return None
        found.append(along[0] + rank - numbers.dim())
    return tuple(found)
