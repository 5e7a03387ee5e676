"""Transposed convolutions and their pixels, convolutions over three axes, and products named by letters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np

from gossamer.numerics.formats import PerAxis
from gossamer.program.graph import Ref
from gossamer.targets.tflite.draft import Array
from gossamer.targets.tflite.layout import Laid, channels_last
from gossamer.targets.tflite.lowering import Call, lowerings
from gossamer.targets.tflite.padding import pair
from gossamer.targets.tflite.tape import Part, Tape
from gossamer.targets.tflite.weights import Weight, weight_of

_VALID = 1


def conv3d(call: Call) -> Laid:
    """input (N, I, D, H, W), weight (O, I, *K), without groups; the border is written."""
    layer = weight_of(call)
    if call["groups"] != 1 or isinstance(call["padding"], str):
        raise call.unsupported(f"{call.node.op} with groups or a named padding")
    tape, paddings = Tape(call), pair(call["padding"], 3)
    source = Part(tape, call.in_order(call.laid("input"), call.shape("input"), channels_last(5)).tensor)
    source = _bordered(tape, source, [(0, 0), *((size, size) for size in paddings), (0, 0)])
    strides, dilations = pair(call["stride"], 3), pair(call["dilation"], 3)
    fields = dict(zip(("strideD", "strideH", "strideW"), strides, strict=True))
    fields |= dict(zip(("dilationDFactor", "dilationHFactor", "dilationWFactor"), dilations, strict=True))
    kernel = layer.stored(call, np.ascontiguousarray(layer.numbers.transpose(2, 3, 4, 1, 0)), 4)
    inputs = (source.number, kernel, _bias(call, tape, len(layer.numbers)).number)
    return call.op("CONV_3D", inputs, channels_last(5), "Conv3DOptions", padding=_VALID, fusedActivationFunction=0, **fields)


@lowerings.add("ConvTranspose")
def conv_transpose(call: Call) -> Laid:
    """A convolution that makes all pixels between two of its input at once, as channels, which then become pixels.

    weight (I, O / groups, *K). Unlike TRANSPOSE_CONV, this works at any batch size, with groups and with dilation.
    """
    dims = len(call.shape("input")) - 2
    if dims not in (1, 2):
        raise call.unsupported(f"{call.node.op} over {dims} axes")
    layer, groups = weight_of(call), call["groups"]
    weight = layer.numbers
    strides, paddings, dilations = (
        _image(pair(call[name], dims), filler) for name, filler in (("stride", 1), ("padding", 0), ("dilation", 1))
    )
    weight = _spread(weight if dims == 2 else weight[:, :, None], dilations)
    if strides[0] != strides[1] and strides[0] != 1:
        raise call.unsupported(f"{call.node.op} with strides that differ")
    tape = Tape(call)
    source = Part(tape, call.in_order(call.laid("input"), call.shape("input"), channels_last(dims + 2)).tensor)
    if dims == 1:
        source = tape.reshape(source, (source.shape[0], 1, *source.shape[1:]))
    out = call.out_shape[1], *_image(call.out_shape[2:], 1)
    kernel, starts, pads = _kernel(weight, groups, strides, paddings, source.shape[1:3], out[1:])
    source = _bordered(tape, source, [(0, 0), *pads, (0, 0)])
    made = _convolved(call, tape, source, kernel, _repeated(call, layer, len(kernel)))
    pixels = _pixels(tape, made, strides, out[0])
    for axis in (1, 2):
        if (starts[axis - 1], pixels.shape[axis]) != (0, out[axis]):
            pixels = tape.cut(pixels, axis, starts[axis - 1], starts[axis - 1] + out[axis])
    if dims == 1:
        pixels = tape.reshape(pixels, (pixels.shape[0], *pixels.shape[2:]))
    return Laid(pixels.number, channels_last(dims + 2))


@lowerings.add("Pixels")
def pixels(call: Call) -> Laid:
    """Channels (*strides, O) become pixels, of which a part is kept."""
    shape, strides, starts, size = call.shape("self"), call["strides"], call["start"], call["size"]
    laid = call.in_order(call.laid("self"), shape, channels_last(len(shape)))
    tape = Tape(call)
    source = Part(tape, laid.tensor)
    places = tuple(have * stride for have, stride in zip(source.shape[1:-1], strides, strict=True))
    whole = (source.shape[0], *places, call.out_shape[1])
    kept = (*size, call.out_shape[1])
    cut = whole[1:] != kept
    if len(strides) == 2 and strides[0] != strides[1]:
        raise call.unsupported(f"{call.node.op} with strides that differ")
    inputs = [source.number]
    code, options, fields = "DEPTH_TO_SPACE", "DepthToSpaceOptions", {"blockSize": strides[0]}
    if len(strides) == 1:
        code, options, fields = "RESHAPE", "ReshapeOptions", {}
        inputs.append(call.shape_vector(whole, source.tensor.batched))
    if set(strides) != {1}:
        if not cut:
            return call.op(code, inputs, channels_last(len(shape)), options, **fields)
        source = Part(tape, call.step(code, inputs, whole, options, **fields))
    ends = call.ints([0, *starts, 0]), call.ints([-1, *kept])
    return call.op("SLICE", (source.number, *ends), channels_last(len(shape)), "SliceOptions")


def _spread(weight: Array, dilations: Sequence[int]) -> Array:
    """A kernel with the zeros that dilation puts between its numbers."""
    sizes = [(size - 1) * dilation + 1 for size, dilation in zip(weight.shape[2:], dilations, strict=True)]
    wide = np.zeros((*weight.shape[:2], *sizes), weight.dtype)
    wide[:, :, :: dilations[0], :: dilations[1]] = weight
    return wide


def _kernel(
    weight: Array, groups: int, strides: Sequence[int], paddings: Sequence[int], have: Sequence[int], want: Sequence[int]
) -> tuple[Array, list[int], list[tuple[int, int]]]:
    """Kernel (groups * rows * columns * O/groups, *taps, I/groups) of the convolution, where its pixels begin, and its border."""
    inside, outside = weight.shape[0] // groups, weight.shape[1]
    taps = [-(-size // stride) for size, stride in zip(weight.shape[2:], strides, strict=True)]
    full = np.zeros((*weight.shape[:2], taps[0] * strides[0], taps[1] * strides[1]), weight.dtype)
    full[:, :, : weight.shape[2], : weight.shape[3]] = weight
    cut = full.reshape(groups, inside, outside, taps[0], strides[0], taps[1], strides[1])[:, :, :, ::-1, :, ::-1]
    kernel = cut.transpose(0, 4, 6, 2, 3, 5, 1).reshape(-1, *taps, inside)
    starts, pads = [], []
    for size, wanted, stride, padding, tap in zip(have, want, strides, paddings, taps, strict=True):
        first = min(padding // stride, tap - 1)
        starts.append(padding - first * stride)
        pads.append((tap - 1 - first, max(-(-(padding + wanted) // stride) - size, 0)))
    return np.ascontiguousarray(kernel), starts, pads


def _repeated(call: Call, layer: Weight, count: int) -> Weight:
    """The weight of a transposed convolution with scales for `count` channels: those of its own for each pixel that they make."""
    if layer.quantizer is None:
        return layer
    if call["groups"] != 1:
        raise call.unsupported(f"{call.node.op} with groups and codes for weights")
    times = count // len(layer.quantizer.scale)
    scales, zeros = layer.quantizer.scale * times, layer.quantizer.zero_point * times
    return replace(layer, quantizer=replace(layer.quantizer, granularity=PerAxis(0), scale=scales, zero_point=zeros))


def _convolved(call: Call, tape: Tape, source: Part, kernel: Array, layer: Weight) -> Part:
    """Pixels as channels, those of one place together: (N, Q, P, rows * columns * O)."""
    count, groups = len(kernel), call["groups"]
    per_group = call.out_shape[1] // groups
    bias = _array(call, "bias") if call.args["bias"] is not None else np.zeros(call.out_shape[1], np.float32)
    biases = np.repeat(bias.reshape(groups, 1, per_group), count // len(bias), 1).reshape(-1)
    shape = [1, *(size - tap + 1 for size, tap in zip(source.shape[1:3], kernel.shape[1:3], strict=True)), count]
    made = tape.add(
        "CONV_2D",
        (source.number, layer.stored(call, kernel, 0), tape.constant(np.ascontiguousarray(biases, np.float32), "bias").number),
        shape,
        "float32",
        source.tensor.batched,
        "Conv2DOptions",
        strideH=1,
        strideW=1,
        dilationHFactor=1,
        dilationWFactor=1,
        padding=_VALID,
        fusedActivationFunction=0,
    )
    if groups == 1 or count == len(bias):
        return made
    apart = tape.reshape(made, (1, shape[1] * shape[2], groups, count // (groups * per_group), per_group))
    return tape.reshape(tape.transpose(apart, (0, 1, 3, 2, 4)), shape)


def _pixels(tape: Tape, part: Part, strides: Sequence[int], channels: int) -> Part:
    """Channels (rows, columns, O) become pixels."""
    _, rows, columns, _ = part.shape
    shape = (1, rows * strides[0], columns * strides[1], channels)
    if tuple(strides) == (1, 1):
        return part
    if strides[0] == 1:
        return tape.reshape(part, shape)
    return tape.add("DEPTH_TO_SPACE", (part.number,), shape, "float32", part.tensor.batched, "DepthToSpaceOptions", blockSize=strides[0])


def _bordered(tape: Tape, part: Part, pads: Sequence[tuple[int, int]]) -> Part:
    """With zeros around it."""
    if not any(map(any, pads)):
        return part
    shape = [size + sum(ends) for size, ends in zip(part.shape, pads, strict=True)]
    table = tape.constant(np.asarray(pads, np.int32), "pads")
    return tape.add("PAD", (part.number, table.number), shape, "float32", part.tensor.batched, "PadOptions")


@lowerings.add("Einsum")
def einsum(call: Call) -> Laid:
    """Two factors: letters of both and of the result are batches, those of both alone are summed over."""
    sides, _, out = call["equation"].replace(" ", "").partition("->")
    letters, tensors = sides.split(","), call.args["tensors"]
    assert isinstance(tensors, tuple)
    repeated = any(len(set(text)) != len(text) for text in (*letters, out))
    if len(letters) != 2 or "." in sides or repeated or any(c not in out and sides.count(c) == 1 for c in sides if c != ","):
        raise call.unsupported(f"{call.node.op} {call['equation']!r}")
    left, right = letters
    batch = [c for c in left if c in right and c in out]
    inner = [c for c in left if c in right and c not in out]
    rows, columns = [c for c in left if c not in right], [c for c in right if c not in left]
    tape = Tape(call)
    sizes = {c: size for text, arg in zip(letters, tensors, strict=True) for c, size in zip(text, call.shape(arg), strict=True)}

    def factor(text: str, arg: Ref, *groups: list[str]) -> Part:
        moved = tape.transpose(tape.part(arg), [text.index(c) for group in groups for c in group])
        return tape.reshape(moved, [prod(sizes[c] for c in group) for group in groups])

    one, two = factor(left, tensors[0], batch, rows, inner), factor(right, tensors[1], batch, inner, columns)
    order = [*batch, *rows, *columns]
    found = tape.reshape(tape.product(one, two), [sizes[c] for c in order])
    return Laid(found.number, tuple(out.index(c) for c in order))


def _array(call: Call, name: str) -> Array:
    found = call.array(name)
    if found is None:
        raise call.unsupported(f"{call.node.op} with a computed {name}, or one of codes")
    return np.asarray(found, np.float32)


def _bias(call: Call, tape: Tape, channels: int) -> Part:
    return tape.constant(_array(call, "bias") if call.args["bias"] is not None else np.zeros(channels, np.float32), "bias")


def _image(values: Sequence[int], filler: int) -> tuple[int, ...]:
    """Numbers of one spatial axis as those of height and width."""
    return tuple(values) if len(values) == 2 else (filler, *values)
