"""Running a node's own op on numbers that tell what it does: where its results come from, or which matrix it is."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.program.graph import Ref
from gossamer.program.ops import function
from gossamer.targets.tflite.draft import Array
from gossamer.targets.tflite.layout import Laid, identity
from gossamer.targets.tflite.lowering import Call
from gossamer.targets.tflite.tape import Part, Tape

MOST_NUMBERS = 2**22  # of a matrix that is written where no smaller form is known


def run(call: Call, source: str, value: Tensor) -> Any:
    """The op on another value of its argument `source`; all others must be known now."""

    def known(arg: Any) -> Any:
        if isinstance(arg, Ref):
            if arg == call.args[source]:
                return value
            array = call.array(arg)
            if array is None:
                raise call.unsupported(f"{call.node.op} with computed places")
            return torch.from_numpy(np.array(array))
        return [known(item) for item in arg] if isinstance(arg, tuple) else arg

    bound = {name: known(call.args[name] if isinstance(call.args[name], Ref) else call[name]) for name in call.args}
    if "indices" in call.args and source == "self":
        bound["indices"] = [None if item is None else known(item) for item in call.args["indices"]]  # type: ignore[union-attr]
    first, *others = bound.items()
    return function(call.node.op)(first[1], **dict(others))


def gathered(call: Call, source: str = "self") -> Laid:
    """Any op that only picks numbers of each sample, at places known now: one gather along all of a sample's numbers; borders are zeros."""
    shape, out = call.shape(source), call.out_shape
    count = prod(shape[1:])
    labels = torch.arange(1, 2 * count + 1, dtype=torch.float64).reshape(2, *shape[1:])
    found = run(call, source, labels)
    apart = found.shape[0] == 2 and bool((torch.where(found[0] > 0, found[0] + count, found[0]) == found[1]).all())
    if shape[0] != 1 or tuple(found.shape[1:]) != out[1:] or not apart:
        raise call.unsupported(f"{call.node.op} that does not move each sample alike")
    places = found[0].reshape(-1).to(torch.int64) - 1
    tape = Tape(call)
    rows = tape.reshape(tape.part(source), (1, count))
    if bool((places < 0).any()):
        table = call.values.draft.constant(np.asarray([[0, 0], [0, 1]], np.int32), "pads")
        rows = tape.add("PAD", (rows.number, table), (1, count + 1), rows.tensor.dtype, rows.tensor.batched, "PadOptions")
        places = torch.where(places < 0, count, places)
    return Laid(tape.reshape(tape.pick(rows, places.tolist(), 1), out).number, identity(len(out)))


def mapped_by_axis(call: Call, source: str = "self") -> Laid:
    """An op that is a matrix along each spatial axis, such as resizing and averaging: those matrices, one after another."""
    shape, out = call.shape(source), call.out_shape
    matrices = axis_matrices(call, source, shape[2:])
    tape = Tape(call)
    part = tape.part(source)
    for axis, matrix in enumerate(matrices, 2):
        part = _along(tape, part, axis, matrix.astype(np.float32))
    if part.shape != out:
        raise call.unsupported(call.node.op)
    return Laid(part.number, identity(len(out)))


def axis_matrices(call: Call, source: str, sizes: tuple[int, ...]) -> list[Array]:
    """The matrix (out, in) of each axis. Raises UnsupportedOp where the op is no such product."""
    every = _run_plain(call, source, torch.ones(1, 1, *sizes, dtype=torch.float64))[0, 0]
    place = np.unravel_index(int(every.abs().argmax()), every.shape)
    matrices = []
    for axis, size in enumerate(sizes):
        probes = torch.zeros(size, 1, *sizes, dtype=torch.float64)
        for position in range(size):
            probes[position].select(axis + 1, position).fill_(1.0)
        index = tuple(slice(None) if k == axis else int(place[k]) for k in range(len(sizes)))
        matrices.append(_run_plain(call, source, probes)[(slice(None), 0, *index)].T.numpy())
    matrices[0] = matrices[0] / float(every[place]) ** (len(sizes) - 1)
    value = torch.randn(1, 1, *sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected, found = _run_plain(call, source, value)[0, 0], value[0, 0]
    for axis, matrix in enumerate(matrices):
        found = torch.tensordot(torch.from_numpy(np.ascontiguousarray(matrix)), found, ([1], [axis])).movedim(0, axis)
    if not torch.allclose(found, expected, atol=1e-6):
        raise call.unsupported(f"{call.node.op} that is no product of its axes")
    return matrices


def _run_plain(call: Call, source: str, value: Tensor) -> Tensor:
    found = run(call, source, value)
    plain: Tensor = found[0] if isinstance(found, tuple) else found
    return plain


def _along(tape: Tape, part: Part, axis: int, matrix: Array) -> Part:
    """A matrix (out, in) along one axis."""
    rank = len(part.shape)
    order = [*(k for k in range(rank) if k != axis), axis]
    moved = part if axis == rank - 1 else tape.transpose(part, order)
    rows, inside = prod(moved.shape[:-1]), moved.shape[-1]
    flat = tape.reshape(moved, (rows, inside))
    made = tape.add(
        "FULLY_CONNECTED",
        (flat.number, tape.constant(matrix).number, tape.constant(np.zeros(len(matrix), np.float32)).number),
        (rows, len(matrix)),
        "float32",
        flat.tensor.batched,
        "FullyConnectedOptions",
        keepNumDims=False,
        fusedActivationFunction=0,
    )
    whole = tape.reshape(made, (*moved.shape[:-1], len(matrix)))
    return whole if axis == rank - 1 else tape.transpose(whole, [order.index(k) for k in range(rank)])


def mapped(call: Call, source: str = "self") -> Laid:
    """An op that is one matrix for all numbers of a sample. Raises UnsupportedOp where that would be too large."""
    shape, out = call.shape(source), call.out_shape
    count = prod(shape[1:])
    if count * prod(out[1:]) > MOST_NUMBERS:
        raise call.unsupported(f"{call.node.op} of so many numbers")
    columns = _run_plain(call, source, torch.eye(count, dtype=torch.float64).reshape(count, *shape[1:]))
    tape = Tape(call)
    rows = tape.reshape(tape.part(source), (1, count))
    found = _along(tape, rows, 1, np.ascontiguousarray(columns.reshape(count, -1).T.numpy().astype(np.float32)))
    return Laid(tape.reshape(found, out).number, identity(len(out)))
