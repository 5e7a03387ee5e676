"""Ops that only move numbers. Permuting moves nothing: it is read in another order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gossamer.program.forms import BatchSize, Form
from gossamer.program.graph import Ref
from gossamer.program.ops import op_of
from gossamer.targets.tflite.draft import DraftTensor
from gossamer.targets.tflite.layout import Laid, channels_last, identity, permuted, reshaped, stored, without
from gossamer.targets.tflite.lowering import Call, lowerings
from gossamer.targets.tflite.probes import gathered
from gossamer.targets.tflite.tape import Part, Tape
from gossamer.targets.tflite.whole import taken_whole

_MOST_CUTS = 32  # of one axis


@lowerings.add("Reshape")
def reshape(call: Call) -> Laid:
    """As it is stored where that is the same; flattened channels keep their order when only layers with weights read them."""
    source = next(iter(call.args))
    laid, have, want = call.laid(source), call.shape(source), call.out_shape
    if laid.columns:
        raise call.unsupported(f"{call.node.op} of flattened channels")
    order = reshaped(call.grown(call.args[source].name), call.grown(call.node.name), laid.order)  # type: ignore[union-attr]
    columns: tuple[int, ...] = ()
    if order is None and _only_columns(call, have, want, laid):
        order, columns = identity(2), tuple(have[1:])
    if order is None:
        laid = call.in_order(laid, have, identity(len(have)))
        order = identity(len(want))
    number = call.result_tensor(order)
    made = call.values.draft.tensors[number]
    vector = call.shape_vector(made.shape, made.batched)
    call.values.draft.op("RESHAPE", (laid.tensor, vector), (number,), "ReshapeOptions")
    return Laid(number, order, columns)


def _only_columns(call: Call, have: Sequence[int], want: Sequence[int], laid: Laid) -> bool:
    """Whether (N, C, H, W) stored channels last becomes (N, C*H*W) for linear layers alone."""
    users = call.values.users(call.result)
    layers = all(op_of(user).onnx == "Gemm" and user.args[0] == Ref(call.result) for user in users)
    return len(have) == 4 and len(want) == 2 and have[0] == want[0] and laid.order == (0, 2, 3, 1) and bool(users) and layers


@lowerings.add("Transpose")
def transpose(call: Call) -> Laid:
    """The same numbers under another order."""
    source = next(iter(call.args))
    laid, rank = call.laid(source), len(call.shape(source))
    return Laid(laid.tensor, permuted(laid.order, _dims(call, rank)))


def _dims(call: Call, rank: int) -> Sequence[int]:
    if "dims" in call.args:
        return [axis % rank for axis in call["dims"]]
    names = ("dim0", "dim1") if "dim0" in call.args else ("axis0", "axis1") if "axis0" in call.args else ()
    dims = list(range(rank))
    if names:
        one, two = (call[name] % rank for name in names)
        dims[one], dims[two] = dims[two], dims[one]
    elif call.node.op in ("aten.t.default", "aten.numpy_T.default"):
        dims.reverse()
    else:
        return _moved(call, rank)
    return dims


def _moved(call: Call, rank: int) -> Sequence[int]:
    """Of movedim."""
    source, destination = ((value,) if isinstance(value, int) else tuple(value) for value in (call["source"], call["destination"]))
    where = {to % rank: axis % rank for axis, to in zip(source, destination, strict=True)}
    others = iter(axis for axis in range(rank) if axis not in where.values())
    return [where[place] if place in where else next(others) for place in range(rank)]


@lowerings.add("Concat")
def concat(call: Call) -> Laid:
    """Parts in the order of the first."""
    parts = [part for part in call["tensors"] if call.shape(part) != (0,)]
    order = next((laid.order for laid in map(call.laid, parts) if laid.order != identity(len(laid.order))), call.laid(parts[0]).order)
    axis = order.index(call.get("dim", 0) % len(order))
    tensors = [call.in_order(call.laid(part), call.shape(part), order).tensor for part in parts]
    if call.integer:
        tensors = [_recoded(call, tensor) for tensor in tensors]
    return call.op("CONCATENATION", tensors, order, "ConcatenationOptions", axis=axis, fusedActivationFunction=0)


def _recoded(call: Call, tensor: int) -> int:
    """In the result's codes, since kernels join codes as they are."""
    have, quantizer = call.values.draft.tensors[tensor], call.values.program.quantizers[call.result]
    if have.quantizer == quantizer:
        return tensor
    number = call.values.draft.add(DraftTensor(f"{have.name}/recoded", have.shape, have.dtype, quantizer, None, have.batched))
    call.values.draft.op("QUANTIZE", (tensor,), (number,), "QuantizeOptions")
    return number


@lowerings.add("Stack")
def stack(call: Call) -> Laid:
    """Along a new axis."""
    rank = len(call.out_shape)
    axis = call["dim"] % rank
    tensors = [call.in_order(call.laid(part), call.shape(part), identity(rank - 1)).tensor for part in call["tensors"]]
    return call.op("PACK", tensors, identity(rank), "PackOptions", axis=axis, valuesCount=len(tensors))


@lowerings.add("Split")
def split(call: Call) -> tuple[Laid, ...]:
    """Parts along an axis, each a slice."""
    laid = call.laid("self")
    axis = call.get("dim", 0) % len(call.shape("self"))
    metas: Any = call.values.metas[call.node.name]
    results, start = [], 0
    for position, meta in enumerate(metas):
        length = meta.shape[axis]
        begin = tuple(start if at == axis else 0 for at in laid.order)
        size = tuple(length if at == axis else -1 for at in laid.order)
        form: Any = call.values.forms[call.node.name]
        quantizer = call.values.draft.tensors[laid.tensor].quantizer
        number = call.tensor(f"{call.node.name}.{position}", meta.shape, laid.order, form[position], quantizer)
        call.values.draft.op("SLICE", (laid.tensor, call.ints(begin), call.ints(size)), (number,), "SliceOptions")
        results.append(Laid(number, laid.order))
        start += length
    return tuple(results)


@lowerings.add("Unbind")
def unbind(call: Call) -> tuple[Laid, ...]:
    """Each position of an axis, without it."""
    laid, shape = call.laid("self"), call.shape("self")
    axis = call["dim"] % len(shape)
    return tuple(_picked(call, laid, shape, axis, place, f"{call.node.name}.{place}") for place in range(shape[axis]))


@lowerings.add("Select")
def select(call: Call) -> Laid:
    """One position of an axis, without it."""
    laid, shape = call.laid("self"), call.shape("self")
    axis = call["dim"] % len(shape)
    return _picked(call, laid, shape, axis, call["index"] % shape[axis], call.result)


def _picked(call: Call, laid: Laid, shape: Sequence[int], axis: int, place: int, name: str) -> Laid:
    have = call.values.draft.tensors[laid.tensor]
    sizes = stored(shape, laid.order)
    at = laid.order.index(axis)
    begin = [place if k == at else 0 for k in range(len(sizes))]
    size = [1 if k == at else -1 for k in range(len(sizes))]
    thin = [1 if k == at else length for k, length in enumerate(sizes)]
    number = call.values.draft.add(DraftTensor(f"{name}/slice", tuple(thin), have.dtype, have.quantizer, None, have.batched))
    call.values.draft.op("SLICE", (laid.tensor, call.ints(begin), call.ints(size)), (number,), "SliceOptions")
    batched = None if have.batched in (None, at) else have.batched - (at < have.batched)  # type: ignore[operator]
    left = tuple(length for k, length in enumerate(sizes) if k != at)
    final = call.values.draft.add(DraftTensor(name, left, have.dtype, have.quantizer, None, batched))
    call.values.draft.op("RESHAPE", (number, call.shape_vector(left, batched)), (final,), "ReshapeOptions")
    return Laid(final, without(laid.order, (axis,)))


@lowerings.add("Slice")
def slice_(call: Call) -> Laid:
    """start:end:step of an axis."""
    laid, shape = call.laid("self"), call.shape("self")
    axis = call["dim"] % len(shape)
    if call.node.op == "aten.narrow.default":
        start, end, step = call["start"] % shape[axis], call["start"] % shape[axis] + call["length"], 1
    else:
        start, end, _ = slice(call["start"], call["end"]).indices(shape[axis])
        step = call["step"]
    form = call.values.forms[call.node.name]
    assert isinstance(form, Form)
    if isinstance(form.sizes[axis], BatchSize):
        if (start, step) == (0, 1) and call.out_shape[axis] == shape[axis]:
            return laid
        raise call.unsupported(f"{call.node.op} of the batch")
    at = laid.order.index(axis)
    ranks = range(len(shape))
    if step == 1:
        begin = call.ints([start if k == at else 0 for k in ranks])
        size = call.ints([end - start if k == at else -1 for k in ranks])
        return call.op("SLICE", (laid.tensor, begin, size), laid.order, "SliceOptions")
    ends = [call.ints([value if k == at else other for k in ranks]) for value, other in ((start, 0), (end, 0), (step, 1))]
    mask = sum(1 << k for k in ranks if k != at)
    inputs = (laid.tensor, *ends)
    return call.op("STRIDED_SLICE", inputs, laid.order, "StridedSliceOptions", beginMask=mask, endMask=mask)


@lowerings.add("Expand")
def expand(call: Call) -> Laid:
    """Repeated along axes of size 1."""
    source = next(iter(call.args))
    shape, want = call.shape(source), call.out_shape
    rank = len(want)
    laid = call.in_order(call.laid(source), shape, identity(len(shape)))
    number = laid.tensor
    if len(shape) < rank:
        shape = (1,) * (rank - len(shape)) + shape
        number = call.step("RESHAPE", (number, call.ints(shape)), shape, "ReshapeOptions")
    form = call.values.forms[call.node.name]
    assert isinstance(form, Form)
    grows = isinstance(form.sizes[0], BatchSize) and call.values.draft.tensors[number].batched is None
    if grows and (form.sizes[0] != BatchSize(1, 0) or form.dtype != torch.float32):
        raise call.unsupported(f"{call.node.op} of such a value to a free batch size")
    if shape != want:
        factors = [w // h for w, h in zip(want, shape, strict=True)]
        if not grows:
            return call.op("TILE", (number, call.ints(factors)), identity(rank), "TileOptions")
        number = call.step("TILE", (number, call.ints(factors)), want, "TileOptions")
    if not grows:
        return Laid(number, identity(rank))
    return call.op("ADD", (number, call.values.batch_of_zeros(rank)), identity(rank), "AddOptions", fusedActivationFunction=0)


@lowerings.add("Pad")
def pad(call: Call) -> Laid:
    """A border of one number, or of the value's own numbers; what negative amounts cut off goes first."""
    laid, tape = call.laid("self"), Tape(call)
    amounts = {laid.order.index(axis): ends for axis, ends in _borders(call["pad"], len(laid.order))}
    part = Part(tape, laid.tensor)
    if call.get("mode", "constant") != "constant":
        for axis, ends in amounts.items():
            part = _padded_with_own(tape, part, axis, _places(part.shape[axis], ends, call["mode"]))
        return Laid(part.number, laid.order)
    for axis, (before, after) in amounts.items():
        if before < 0 or after < 0:
            part = tape.cut(part, axis, max(-before, 0), part.shape[axis] - max(-after, 0))
    left = [[max(end, 0) for end in amounts.get(axis, (0, 0))] for axis in range(len(laid.order))]
    if part.number != laid.tensor and not any(map(any, left)):
        return Laid(part.number, laid.order)
    table = call.values.draft.constant(np.asarray(left, np.int32), "pads")
    value = call.get("value") or 0.0
    if call.integer or value == 0:
        return call.op("PAD", (part.number, table), laid.order, "PadOptions")
    filler = call.values.draft.constant(np.asarray([value], np.float32), "filler")
    return call.op("PADV2", (part.number, table, filler), laid.order, "PadV2Options")


def _borders(pad: Sequence[int], rank: int) -> list[tuple[int, tuple[int, int]]]:
    """Axis, and how much comes before and behind it; where there is anything."""
    found = [(rank - 1 - place // 2, (int(pad[place]), int(pad[place + 1]))) for place in range(0, len(pad), 2)]
    return [(axis, ends) for axis, ends in found if any(ends)]


def _places(size: int, ends: tuple[int, int], mode: str) -> list[int]:
    """Which numbers of an axis a border of its own numbers picks."""
    line = torch.arange(size, dtype=torch.float64).reshape(1, 1, size)
    return [int(place) for place in torch.nn.functional.pad(line, ends, mode=mode).reshape(-1)]


def _padded_with_own(tape: Tape, part: Part, axis: int, places: Sequence[int]) -> Part:
    """These places of an axis: neighbours are cut out together and joined, which more runtimes know than picking one by one."""
    starts = [k for k, place in enumerate(places) if k == 0 or place != places[k - 1] + 1]
    if len(starts) > _MOST_CUTS:
        return tape.pick(part, places, axis)
    runs = zip(starts, [*starts[1:], len(places)], strict=True)
    cuts = [tape.cut(part, axis, places[start], places[start] + stop - start) for start, stop in runs]
    return cuts[0] if len(cuts) == 1 else tape.join(cuts, axis)


@lowerings.add("Tile")
def tile(call: Call) -> Laid:
    """Repeated as a whole."""
    repeats, shape = call.get("repeats", call.get("dims")), call.shape("self")
    if isinstance(repeats, int):
        return gathered(call)
    repeats = (1,) * (len(shape) - len(repeats)) + tuple(repeats)
    laid = call.laid("self")
    if len(repeats) != len(shape):
        raise call.unsupported(f"{call.node.op} to more axes")
    return call.op("TILE", (laid.tensor, call.ints([repeats[axis] for axis in laid.order])), laid.order, "TileOptions")


@lowerings.add("Roll")
def roll(call: Call) -> Laid:
    """Around the ends of axes: two slices joined, for each axis."""
    laid, shape = call.laid("self"), call.shape("self")
    if not call["dims"]:
        raise call.unsupported(f"{call.node.op} of all axes as one")
    have = call.values.draft.tensors[laid.tensor]
    number = laid.tensor
    for shift, dim in zip(call["shifts"], call["dims"], strict=True):
        at = laid.order.index(dim % len(shape))
        cut = -shift % have.shape[at]
        parts = []
        for start, length in ((cut, have.shape[at] - cut), (0, cut)):
            begin = [start if k == at else 0 for k in range(len(shape))]
            size = [length if k == at else -1 for k in range(len(shape))]
            part = [length if k == at else whole for k, whole in enumerate(have.shape)]
            parts.append(call.step("SLICE", (number, call.ints(begin), call.ints(size)), part, "SliceOptions"))
        number = call.step("CONCATENATION", parts, have.shape, "ConcatenationOptions", axis=at, fusedActivationFunction=0)
    return Laid(number, laid.order)


@lowerings.add("Flip")
def flip(call: Call) -> Laid:
    """The other way round."""
    laid = call.laid("self")
    places = call.ints([laid.order.index(axis % len(laid.order)) for axis in call["dims"]])
    return call.op("REVERSE_V2", (laid.tensor, places), laid.order, "ReverseV2Options")


@lowerings.add("Index")
def index(call: Call) -> Laid:
    """Constant places along one axis, or along several; or everything as it is."""
    whole = taken_whole(call)
    if whole is not None:
        return whole
    shape = call.shape("self")
    given = [(axis, places) for axis, places in enumerate(call["indices"]) if places is not None]
    places = call.array(given[0][1]) if len(given) == 1 else None
    if places is None or places.ndim != 1 or places.dtype == bool:
        return gathered(call)
    axis = given[0][0]
    laid = call.laid("self")
    numbers = call.ints((places % shape[axis]).tolist())
    return call.op("GATHER", (laid.tensor, numbers), laid.order, "GatherOptions", axis=laid.order.index(axis))


@lowerings.add("DepthToSpace")
def pixel_shuffle(call: Call) -> Laid:
    """Channels (C, r, r) become pixels; the kernel takes (r, r, C), so channels are put in that order first."""
    factor, shape = call["upscale_factor"], call.shape("self")
    if len(shape) != 4:
        raise call.unsupported(f"{call.node.op} of {len(shape)} axes")
    laid = call.in_order(call.laid("self"), shape, channels_last(4))
    places = np.arange(shape[1]).reshape(-1, factor, factor).transpose(1, 2, 0).reshape(-1)
    have = call.values.draft.tensors[laid.tensor]
    sorted_ = call.step("GATHER", (laid.tensor, call.ints(places.tolist())), have.shape, "GatherOptions", axis=3)
    return call.op("DEPTH_TO_SPACE", (sorted_,), channels_last(4), "DepthToSpaceOptions", blockSize=factor)
