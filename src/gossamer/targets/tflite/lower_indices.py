"""Picking, inserting, sorting and counting along axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from gossamer.targets.tflite.draft import DraftTensor
from gossamer.targets.tflite.layout import Laid, identity
from gossamer.targets.tflite.lowering import Call, lowerings
from gossamer.targets.tflite.probes import gathered, mapped
from gossamer.targets.tflite.tape import Part, Tape

for _onnx in ("ChannelShuffle", "SpaceToDepth", "Im2col", "Windows"):
    lowerings.add(_onnx)(gathered)


@lowerings.add("Col2Im")
def fold(call: Call) -> Laid:
    """Sums of overlapping windows."""
    return mapped(call)


@lowerings.add("CumSum")
def running_sum(call: Call) -> Laid:
    """Along an axis."""
    laid = call.laid("self")
    place = call.values.draft.constant(np.asarray(laid.order.index(call["dim"] % len(laid.order)), np.int32), "axis")
    return call.op("CUMSUM", (laid.tensor, place), laid.order, "CumsumOptions", exclusive=False, reverse=False)


@lowerings.add("Difference")
def difference(call: Call) -> Laid:
    """Of neighbours along an axis, n times."""
    tape, axis = Tape(call), call["dim"] % len(call.shape("self"))
    parts = [tape.part(name) for name in ("prepend", "self", "append") if call.args.get(name) is not None]
    found = parts[0] if len(parts) == 1 else tape.join(parts, axis)
    for _ in range(call["n"]):
        size = found.shape[axis]
        found = tape.cut(found, axis, 1, size) - tape.cut(found, axis, 0, size - 1)
    return Laid(found.number, identity(len(found.shape)))


@lowerings.add("Insert")
def insert(call: Call) -> Laid:
    """self with a part of an axis replaced."""
    tape, shape = Tape(call), call.shape("self")
    axis = call["dim"] % len(shape)
    size, source, new = shape[axis], tape.part("self"), tape.part("src")
    if "index" in call.args:
        places = [call["index"] % size]
        thin = [1 if k == axis else length for k, length in enumerate(shape)]
        new = tape.reshape(new, thin)
    else:
        places = list(range(*slice(call["start"], call["end"], call["step"]).indices(size)))
        if call.grown(call.args["src"].name)[axis] == call.grown(call.args["self"].name)[axis] and len(places) == size:
            return Laid(new.number, identity(len(shape)))  # all of the batch, too
    both = tape.join([source, new], axis)
    chosen = [size + places.index(k) if k in places else k for k in range(size)]
    return Laid(tape.pick(both, chosen, axis).number, identity(len(shape)))


@lowerings.add("GatherElements")
def gather_elements(call: Call) -> Laid:
    """self at places that are computed for each position of the other axes."""
    tape, shape, places = Tape(call), call.shape("self"), call.shape("index")
    rank, axis = len(shape), call["dim"] % len(shape)
    if any(shape[k] != places[k] for k in range(rank) if k != axis):
        raise call.unsupported(f"{call.node.op} at fewer positions than there are")
    order = [*(k for k in range(rank) if k != axis), axis]
    table, index = tape.transpose(tape.part("self"), order), tape.transpose(tape.part("index"), order).to("int32")
    rows = prod(table.shape[:-1])
    flat = [tape.reshape(part, (rows, part.shape[-1])) for part in (table, index)]
    found = tape.add(
        "GATHER",
        [part.number for part in flat],
        flat[1].shape,
        table.tensor.dtype,
        flat[0].tensor.batched,
        "GatherOptions",
        axis=1,
        batchDims=1,
    )
    back = tape.transpose(tape.reshape(found, index.shape), [order.index(k) for k in range(rank)])
    return Laid(back.number, identity(rank))


@lowerings.add("OneHot")
def one_hot(call: Call) -> Laid:
    """A new last axis."""
    tape, index = Tape(call), Tape(call).part("self").to("int32")
    depth = call.values.draft.constant(np.asarray(call.out_shape[-1], np.int32), "depth")
    on, off = (tape.constant(np.asarray(value, np.int64), "number").number for value in (1, 0))
    made = tape.add("ONE_HOT", (index.number, depth, on, off), call.out_shape, "int64", index.tensor.batched, "OneHotOptions", axis=-1)
    return Laid(made.number, identity(len(call.out_shape)))


@lowerings.add("TopK")
def top(call: Call) -> tuple[Laid, ...]:
    """The largest or smallest numbers along an axis, and their places."""
    tape, shape = Tape(call), call.shape("self")
    axis, rank = call["dim"] % len(shape), len(shape)
    order = [*(k for k in range(rank) if k != axis), axis]
    source = tape.part("self") if axis == rank - 1 else tape.transpose(tape.part("self"), order)
    source = source if call["largest"] else source.one("NEG")
    draft, batched = call.values.draft, source.tensor.batched
    size = (*source.shape[:-1], call["k"])
    made = [draft.add(DraftTensor(f"{call.node.name}/{kind}", size, kind, None, None, batched)) for kind in ("float32", "int32")]
    count = call.ints([call["k"]])
    draft.op("TOPK_V2", (source.number, count), made, "TopKV2Options")
    values, places = Part(tape, made[0]), Part(tape, made[1]).to("int64")
    values = values if call["largest"] else values.one("NEG")
    stored = tuple(order)
    return Laid(values.number, stored), Laid(places.number, stored)


@lowerings.add("Trilu")
def triangle(call: Call) -> Laid:
    """The upper or lower triangle of the last two axes."""
    shape, name = call.shape("self"), call.node.op.split(".")[1]
    mask = (np.triu if name == "triu" else np.tril)(np.ones(shape[-2:], bool), call["diagonal"])
    tape = Tape(call)
    found = tape.choose(tape.constant(mask), tape.part("self"), 0.0)
    return Laid(found.number, identity(len(shape)))


@lowerings.add("Meshgrid")
def meshgrid(call: Call) -> tuple[Laid, ...]:
    """Each vector along an axis of its own."""
    tape = Tape(call)
    parts = [tape.part(part) for part in call.args["tensors"]]  # type: ignore[union-attr]
    sizes = [part.shape[0] if part.shape else 1 for part in parts]
    rank, found = len(parts), []
    for axis, part in enumerate(parts):
        thin = [size if k == axis else 1 for k, size in enumerate(sizes)]
        wide = [1 if k == axis else size for k, size in enumerate(sizes)]
        tall = tape.reshape(part, thin, None)
        made = tape.add("TILE", (tall.number, call.ints(wide)), sizes, part.tensor.dtype, None, "TileOptions")
        swapped = call.get("indexing", "ij") == "xy" and rank >= 2
        found.append(Laid(made.number, (1, 0, *range(2, rank)) if swapped else identity(rank)))
    return tuple(found)


def _extreme_place(code: str) -> Callable[[Call], Laid]:
    def lower(call: Call) -> Laid:
        if call["dim"] is None:
            raise call.unsupported(f"{call.node.op} over all axes")
        tape, shape = Tape(call), call.shape("self")
        axis = call["dim"] % len(shape)
        found = place_of_extreme(tape, tape.part("self"), axis, code)
        if call["keepdim"]:
            found = tape.reshape(found, [1 if k == axis else size for k, size in enumerate(shape)])
        return Laid(found.number, identity(len(found.shape)))

    return lower


def place_of_extreme(tape: Tape, part: Part, axis: int, code: str) -> Part:
    """ARG_MAX or ARG_MIN along an axis, as int64, without that axis."""
    shape = [size for k, size in enumerate(part.shape) if k != axis]
    batched = part.tensor.batched
    batched = None if batched in (None, axis) else batched - (axis < batched)  # type: ignore[operator]
    options = "ArgMaxOptions" if code == "ARG_MAX" else "ArgMinOptions"
    return tape.add(code, (part.number, tape.call.ints([axis])), shape, "int64", batched, options, outputType=4)


lowerings.add("ArgMax")(_extreme_place("ARG_MAX"))
lowerings.add("ArgMin")(_extreme_place("ARG_MIN"))


def _truth(code: str) -> Callable[[Call], Laid]:
    def lower(call: Call) -> Laid:
        tape, shape = Tape(call), call.shape("self")
        dims: Any = call.get("dim")
        axes: Sequence[int] = tuple(range(len(shape))) if dims is None else (dims,) if isinstance(dims, int) else tuple(dims)
        part = tape.part("self")
        part = part if part.tensor.dtype == "bool" else tape.pair("NOT_EQUAL", part, 0)
        found = tape.reduce(code, part, axes, keep=bool(call.get("keepdim", False)))
        return Laid(found.number, identity(len(found.shape)))

    return lower


lowerings.add("Any")(_truth("REDUCE_ANY"))
lowerings.add("All")(_truth("REDUCE_ALL"))
