"""Ops that only move data."""

from __future__ import annotations

import math

import torch

from gossamer.numerics.affine import quantize
from gossamer.program.forms import Size, divided, product
from gossamer.targets.onnx.lowering import Call, lowerings

_FAR = 2**63 - 1  # beyond any position


def _source(call: Call) -> str:
    return next(iter(call.args))


@lowerings.add("Reshape")
def reshape(call: Call) -> str:
    """Any op whose result has the same numbers in the same order: view, flatten, squeeze and others."""
    name = _source(call)
    return call.reshape(call.tensor(name), call.form(name).sizes, call.result.sizes)


@lowerings.add("Shape")
def shape(call: Call) -> str:
    """A size as a tensor; most sizes never become one."""
    return call.op("Shape", call.tensor("self"), start=call.axis(), end=call.axis() + 1)


@lowerings.add("Transpose")
def transpose(call: Call) -> str:
    """Any permutation of axes."""
    order = _permutation(call)
    return call.tensor("self") if order == sorted(order) else call.op("Transpose", call.tensor("self"), perm=order)


def _permutation(call: Call) -> list[int]:
    """Result axis -> source axis."""
    rank = call.form("self").rank
    order = list(range(rank))
    match call.node.op.split(".")[1]:
        case "permute":
            return [dim % rank for dim in call["dims"]]
        case "transpose" | "swapaxes" as name:
            first, second = ("dim0", "dim1") if name == "transpose" else ("axis0", "axis1")
            a, b = call[first] % rank, call[second] % rank
            order[a], order[b] = order[b], order[a]
            return order
        case "movedim":
            source, target = (
                [arg % rank] if isinstance(arg, int) else [dim % rank for dim in arg] for arg in (call["source"], call["destination"])
            )
            rest = iter(axis for axis in range(rank) if axis not in source)
            moved = dict(zip(target, source, strict=True))
            return [moved[axis] if axis in moved else next(rest) for axis in range(rank)]
    return order[::-1]


@lowerings.add("Concat")
def concat(call: Call) -> str:
    """Empty one-dimensional tensors, which torch lets pass, are left out."""
    parts = [arg for arg in call["tensors"] if call.form_of(arg).shape != (0,) or call.result.rank == 1]
    axis = call["dim"] % call.result.rank
    return call.op("Concat", *(call.tensor_of(part, call.result.dtype) for part in parts), axis=axis)


@lowerings.add("Expand")
def expand(call: Call) -> str:
    """Broadcast to the result's shape."""
    form = call.form("self")
    return call.tensor("self") if form.sizes == call.result.sizes else call.op("Expand", call.tensor("self"), call.sizes(call.result.sizes))


@lowerings.add("Stack")
def stack(call: Call) -> str:
    """A new axis for each part, then Concat."""
    axis = call["dim"] % call.result.rank
    parts = [call.op("Unsqueeze", call.tensor_of(arg, call.result.dtype), call.ints(axis)) for arg in call["tensors"]]
    return call.op("Concat", *parts, axis=axis)


@lowerings.add("Split")
def split(call: Call) -> tuple[str, ...]:
    """split, split_with_sizes and chunk, whose sizes are known from their results."""
    axis = call.axis()
    sizes = [form.sizes[axis] for form in call.results]
    if len(sizes) == 1:
        return (call.tensor("self"),)
    return call.ops("Split", call.tensor("self"), call.sizes(sizes), outputs=len(sizes), axis=axis)


@lowerings.add("Unbind")
def unbind(call: Call) -> tuple[str, ...]:
    """One Gather a position: along the first axis that is a plain copy."""
    source, axis = call.tensor("self"), call.axis()
    return tuple(call.op("Gather", source, call.constant(i, torch.int64), axis=axis) for i in range(len(call.results)))


@lowerings.add("Roll")
def roll(call: Call) -> str:
    """Cut each axis in two and swap the parts. Without axes the flattened tensor rolls."""
    form, source = call.form("self"), call.tensor("self")
    shifts = [call["shifts"]] if isinstance(call["shifts"], int) else list(call["shifts"])
    dims = [call["dims"]] if isinstance(call["dims"], int) else list(call["dims"])
    sizes: list[Size] = list(form.sizes) if dims else [product(form.sizes)]
    source = source if dims else call.reshape(source, form.sizes, sizes)
    for shift, dim in zip(shifts, dims or [0], strict=True):
        axis = dim % len(sizes)
        size = sizes[axis]
        if not isinstance(size, int):
            raise call.unsupported(f"{call.node.op} along an axis that depends on the batch")
        cut = (size - shift) % size if size else 0
        if cut:
            front = call.op("Slice", source, call.ints(0), call.ints(cut), call.ints(axis))
            back = call.op("Slice", source, call.ints(cut), call.ints(size), call.ints(axis))
            source = call.op("Concat", back, front, axis=axis)
    return source if dims else call.reshape(source, sizes, form.sizes)


@lowerings.add("Flip")
def flip(call: Call) -> str:
    """Slice backwards."""
    axes = [dim % call.form("self").rank for dim in call["dims"]]
    count = len(axes)
    if not count:
        return call.tensor("self")
    ends = call.ints(*[-_FAR] * count)
    return call.op("Slice", call.tensor("self"), call.ints(*[-1] * count), ends, call.ints(*axes), call.ints(*[-1] * count))


@lowerings.add("Pad")
def pad(call: Call) -> str:
    """torch counts pairs from the last axis; ONNX lists all fronts, then all backs."""
    rank = call.form("self").rank
    pairs = [call["pad"][i : i + 2] for i in range(0, len(call["pad"]), 2)]
    if any(not isinstance(size, int) for pair in pairs for size in pair):
        raise call.unsupported(f"{call.node.op} by a size that depends on the batch")
    pairs = [(0, 0)] * (rank - len(pairs)) + pairs[::-1]
    modes = {"constant": None, "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    mode = modes[call.get("mode", "constant")]
    amounts = call.ints(*(pair[0] for pair in pairs), *(pair[1] for pair in pairs))
    source, value = call.tensor("self"), float(call.get("value") or 0)
    quantizer = call.values.coded.get(source)
    if quantizer is not None and quantizer == call.values.result_quantizer(call.node):
        # ONNX Runtime would pad in float: pad the codes themselves
        filler = torch.full((), value)
        code = call.constant(quantize(filler, quantizer).item(), torch.int8 if quantizer.format.signed else torch.uint8)
        codes = call.op("Pad", call.values.codes[source], amounts, *([] if mode else [code]), mode=mode)
        return call.define_codes(codes, quantizer)
    fill = [] if mode else [call.constant(value, call.result.dtype)]
    return call.op("Pad", source, amounts, *fill, mode=mode)


@lowerings.add("Tile")
def tile(call: Call) -> str:
    """repeat and tile may add axes in front; repeat_interleave repeats each position in place."""
    form, source = call.form("self"), call.tensor("self")
    if "repeat_interleave" in call.node.op:
        return _repeat_each(call)
    repeats = list(call.get("repeats") or call.get("dims"))
    rank = max(len(repeats), form.rank)
    repeats = [1] * (rank - len(repeats)) + repeats
    wide: list[Size] = [1] * (rank - form.rank) + list(form.sizes)
    return call.op("Tile", call.reshape(source, form.sizes, wide), call.sizes(repeats))


def _repeat_each(call: Call) -> str:
    form, count = call.form("self"), call.number("repeats")
    sizes: list[Size] = list(form.sizes)
    flat = call["dim"] is None
    sizes = [product(sizes)] if flat else sizes
    source = call.reshape(call.tensor("self"), form.sizes, sizes)
    axis = 0 if flat else call["dim"] % form.rank
    wide = call.op("Unsqueeze", source, call.ints(axis + 1))
    tiled = call.op("Tile", wide, call.ints(*(count if a == axis + 1 else 1 for a in range(len(sizes) + 1))))
    return call.reshape(tiled, [*sizes[: axis + 1], count, *sizes[axis + 1 :]], call.result.sizes)


@lowerings.add("DepthToSpace")
def pixel_shuffle(call: Call) -> str:
    """(N, C*r*r, H, W) -> (N, C, H*r, W*r)."""
    if call.form("self").rank != 4:
        raise call.unsupported(f"{call.node.op} of other than four axes")
    return call.op("DepthToSpace", call.tensor("self"), blocksize=call.number("upscale_factor"), mode="CRD")


@lowerings.add("Pixels")
def pixels(call: Call) -> str:
    """Channels (*strides, O) become pixels, of which a part is kept; codes are moved as they are."""
    source, strides = call.tensor("self"), call["strides"]
    quantizer = call.values.coded.get(source)
    codes = call.values.codes.get(source) if quantizer == call.values.program.quantizers.get(call.node.name) else None
    moved = _pixels(call, source if codes is None else codes)
    starts, size = call["start"], call["size"]
    have = [place * stride for place, stride in zip(call.form("self").sizes[2:], strides, strict=True)]  # type: ignore[operator]
    if [*size] != have:
        ends = [first + length for first, length in zip(starts, size, strict=True)]
        moved = call.op("Slice", moved, call.ints(*starts), call.ints(*ends), call.ints(*range(2, 2 + len(size))))
    return moved if codes is None or quantizer is None else call.define_codes(moved, quantizer)


def _pixels(call: Call, source: str) -> str:
    """All pixels."""
    strides, (batch, channels, *places) = call["strides"], call.form("self").sizes
    dims, count = len(strides), math.prod(strides)
    if count == 1:
        return source
    if strides == (strides[0],) * 2:
        return call.op("DepthToSpace", source, blocksize=strides[0], mode="DCR")
    split = [batch, *strides, divided(channels, count), *places]
    moved = call.op(
        "Transpose",
        call.reshape(source, call.form("self").sizes, split),
        perm=[0, dims + 1, *(axis for k in range(dims) for axis in (dims + 2 + k, 1 + k))],
    )
    pairs = list(zip(places, strides, strict=True))
    have = [batch, split[dims + 1], *(size for pair in pairs for size in pair)]
    return call.reshape(moved, have, [batch, split[dims + 1], *(product(pair) for pair in pairs)])


@lowerings.add("SpaceToDepth")
def pixel_unshuffle(call: Call) -> str:
    """(N, C, H*r, W*r) -> (N, C*r*r, H, W); ONNX's own operator orders the channels otherwise."""
    r, (*lead, c, h, w) = call.number("downscale_factor"), call.form("self").sizes
    n = len(lead)
    blocks = [*lead, c, divided(h, r), r, divided(w, r), r]
    split = call.reshape(call.tensor("self"), call.form("self").sizes, blocks)
    moved = call.op("Transpose", split, perm=[*range(n + 1), n + 2, n + 4, n + 1, n + 3])
    return call.reshape(moved, [*blocks[: n + 1], r, r, blocks[n + 1], blocks[n + 3]], call.result.sizes)


@lowerings.add("ChannelShuffle")
def channel_shuffle(call: Call) -> str:
    """(N, g*C, *S) -> channels of the groups interleaved."""
    groups, sizes = call.number("groups"), call.form("self").sizes
    wide: list[Size] = [sizes[0], groups, divided(sizes[1], groups), *sizes[2:]]
    split = call.reshape(call.tensor("self"), sizes, wide)
    moved = call.op("Transpose", split, perm=[0, 2, 1, *range(3, len(wide))])
    return call.reshape(moved, [wide[0], wide[2], wide[1], *wide[3:]], sizes)


@lowerings.add("Meshgrid")
def meshgrid(call: Call) -> tuple[str, ...]:
    """Vectors, each repeated along the axes of the others; "xy" swaps the first two axes."""
    swapped = call.get("indexing", "ij") == "xy"
    made = []
    for position, (source, result) in enumerate(zip(call["tensors"], call.results, strict=True)):
        axis = (1, 0)[position] if swapped and position < 2 else position
        shape = [1] * result.rank
        shape[axis] = -1
        made.append(call.op("Expand", call.op("Reshape", call.tensor_of(source), call.ints(*shape)), call.sizes(result.sizes)))
    return tuple(made)
