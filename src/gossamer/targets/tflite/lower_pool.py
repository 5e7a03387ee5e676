"""Pools, reductions and resizing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gossamer.targets.tflite.layout import Laid, channels_last, identity, without
from gossamer.targets.tflite.lower_indices import place_of_extreme
from gossamer.targets.tflite.lowering import Call, lowerings
from gossamer.targets.tflite.padding import behind, is_same, pair
from gossamer.targets.tflite.probes import mapped_by_axis
from gossamer.targets.tflite.tape import Tape


@lowerings.add("MaxPool")
def max_pool(call: Call) -> Laid:
    """Over height and width; a border of the lowest number where SAME does not fit."""
    if len(call.shape("self")) != 4 or pair(call["dilation"]) != (1, 1):
        return _largest_by_axis(call)
    return _pool(call, "MAX_POOL_2D", pair(call["kernel_size"]), _strides(call), pair(call["padding"]), pair(call["dilation"]))


@lowerings.add("AveragePool")
def average_pool(call: Call) -> Laid:
    """Over height and width; as a matrix for each axis where the kernel would divide by another number."""
    if len(call.shape("self")) != 4 or call.get("divisor_override") is not None or call["ceil_mode"]:
        return mapped_by_axis(call)
    padding = pair(call["padding"])
    if any(padding) and not call["count_include_pad"] and not _same(call, pair(call["kernel_size"]), _strides(call), padding):
        return mapped_by_axis(call)
    return _pool(
        call, "AVERAGE_POOL_2D", pair(call["kernel_size"]), _strides(call), padding, (1, 1), counts_border=call["count_include_pad"]
    )


@lowerings.add("AdaptiveAveragePool")
def adaptive_average(call: Call) -> Laid:
    """Bins; as a matrix for each axis where they are not equal."""
    have, want = call.shape("self"), call.out_shape
    if len(have) != 4 or any(h % w for h, w in zip(have[2:], want[2:], strict=True)):
        return mapped_by_axis(call)
    if want[2:] == (1, 1):
        return _reduce(call, "MEAN", (2, 3), keep=True)
    kernel = tuple(h // w for h, w in zip(have[2:], want[2:], strict=True))
    return _pool(call, "AVERAGE_POOL_2D", kernel, kernel, (0, 0), (1, 1))


@lowerings.add("AdaptiveMaxPool")
def adaptive_largest(call: Call) -> tuple[Laid, ...]:
    """Bins along each axis; without the places."""
    _without_places(call)
    tape, shape, out = Tape(call), call.shape("self"), call.out_shapes[0]
    part = tape.part("self")
    for axis in range(2, len(shape)):
        ends = [(k * shape[axis] // out[axis], -(-(k + 1) * shape[axis] // out[axis])) for k in range(out[axis])]
        bins = [tape.reduce("REDUCE_MAX", tape.cut(part, axis, *end), (axis,)) for end in ends]
        part = tape.join(bins, axis)
    return (Laid(part.number, identity(len(shape))),)


def _without_places(call: Call) -> None:
    """Raises UnsupportedOp where anything reads the second result."""
    if any(user.args[1] == 1 for user in call.values.users(call.node.name)):
        raise call.unsupported(f"{call.node.op} with the places of its results")


def _largest_by_axis(call: Call) -> Laid:
    """The largest of the numbers that a window sees along each axis, one axis after another."""
    tape, shape, out = Tape(call), call.shape("self"), call.out_shape
    dims = len(shape) - 2
    kernels, paddings, dilations = (pair(call[name], dims) for name in ("kernel_size", "padding", "dilation"))
    strides = pair(call["stride"] or call["kernel_size"], dims)
    part = tape.part("self")
    for axis, kernel, stride, padding, dilation in zip(range(2, dims + 2), kernels, strides, paddings, dilations, strict=True):
        reach = (out[axis] - 1) * stride + (kernel - 1) * dilation + 1
        after = max(reach - padding - part.shape[axis], 0)
        if padding or after:
            table = [[padding, after] if k == axis else [0, 0] for k in range(len(shape))]
            sizes = [size + sum(ends) for size, ends in zip(part.shape, table, strict=True)]
            inputs = (part.number, call.values.draft.constant(np.asarray(table, np.int32), "pads"), call.number(np.finfo(np.float32).min))
            part = tape.add("PADV2", inputs, sizes, "float32", part.tensor.batched, "PadV2Options")
        seen = [tape.cut(part, axis, k * dilation, k * dilation + (out[axis] - 1) * stride + 1, stride) for k in range(kernel)]
        part = seen[0]
        for other in seen[1:]:
            part = tape.pair("MAXIMUM", part, other)
    return Laid(part.number, identity(len(shape)))


@lowerings.add("ReduceMean")
def mean(call: Call) -> Laid:
    """Over any axes."""
    return _reduction(call, "MEAN")


@lowerings.add("ReduceSum")
def total(call: Call) -> Laid:
    """Over any axes."""
    return _reduction(call, "SUM")


@lowerings.add("ReduceMax")
def largest(call: Call) -> Laid | tuple[Laid, ...]:
    """Over any axes; over one, with the places."""
    return _extreme(call, "MAX")


@lowerings.add("ReduceMin")
def smallest(call: Call) -> Laid | tuple[Laid, ...]:
    """Over any axes; over one, with the places."""
    return _extreme(call, "MIN")


@lowerings.add("ReduceProd")
def product(call: Call) -> Laid:
    """Over any axes."""
    return _reduction(call, "REDUCE_PROD")


def _extreme(call: Call, name: str) -> Laid | tuple[Laid, ...]:
    if not isinstance(call.values.metas[call.node.name], tuple):
        return _reduction(call, f"REDUCE_{name}")
    tape, axis, keep = Tape(call), call["dim"] % len(call.shape("self")), bool(call["keepdim"])
    part = tape.part("self")
    values, places = tape.reduce(f"REDUCE_{name}", part, (axis,), keep=keep), place_of_extreme(tape, part, axis, f"ARG_{name}")
    places = tape.reshape(places, values.shape) if keep else places
    return tuple(Laid(found.number, identity(len(values.shape))) for found in (values, places))


@lowerings.add("Resize")
def resize(call: Call) -> Laid:
    """Nearest and bilinear, over height and width; all others as a matrix for each axis."""
    nearest = "nearest" in call.node.op
    source = next(iter(call.args))
    if len(call.shape(source)) != 4 or not (nearest or "bilinear2d" in call.node.op) or "aa" in call.node.op:
        return mapped_by_axis(call, source)
    have, want = call.shape(source)[2:], call.out_shape[2:]
    factors = call.get("scale_factors")
    if factors and any(round(h * factor) != w or h * factor != w for h, w, factor in zip(have, want, factors, strict=True)):
        return mapped_by_axis(call, source)
    corners = bool(call.get("align_corners", False))
    laid = call.in_order(call.laid(source), call.shape(source), channels_last(4))
    inputs = (laid.tensor, call.ints(want))
    if nearest:
        middle = "exact" in call.node.op
        return call.op("RESIZE_NEAREST_NEIGHBOR", inputs, channels_last(4), "ResizeNearestNeighborOptions", halfPixelCenters=middle)
    return call.op("RESIZE_BILINEAR", inputs, channels_last(4), "ResizeBilinearOptions", alignCorners=corners, halfPixelCenters=not corners)


def _reduction(call: Call, code: str) -> Laid:
    shape = call.shape("self")
    dims = call.get("dim")
    axes = tuple(range(len(shape))) if dims is None or dims == () else (dims,) if isinstance(dims, int) else tuple(dims)
    return _reduce(call, code, [axis % len(shape) for axis in axes], keep=bool(call.get("keepdim", False)))


def _reduce(call: Call, code: str, axes: Sequence[int], *, keep: bool) -> Laid:
    laid = call.laid("self")
    if laid.columns:
        raise call.unsupported(f"{call.node.op} of flattened channels")
    order = laid.order if keep else without(laid.order, axes)
    places = call.ints(sorted(laid.order.index(axis) for axis in axes))
    number = call.cast(laid.tensor, str(call.values.metas[call.node.name].dtype).removeprefix("torch."))  # type: ignore[union-attr]
    return call.op(code, (number, places), order, "ReducerOptions", keepDims=keep)


def _strides(call: Call) -> tuple[int, ...]:
    return pair(call["stride"] or call["kernel_size"])


def _same(call: Call, kernel: Sequence[int], strides: Sequence[int], padding: Sequence[int]) -> bool:
    windows = zip(call.shape("self")[2:], call.out_shape[2:], kernel, strides, (1, 1), padding, strict=True)
    return all(is_same(*window) for window in windows)


def _pool(
    call: Call,
    code: str,
    kernel: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    *,
    counts_border: bool = False,
) -> Laid:
    shape, out = call.shape("self"), call.out_shape
    if len(shape) != 4 or tuple(dilation) != (1, 1):
        raise call.unsupported(f"{call.node.op} with dilation, or not over two axes")
    number = call.in_order(call.laid("self"), shape, channels_last(4)).tensor
    windows = list(zip(shape[2:], out[2:], kernel, strides, (1, 1), padding, strict=True))
    same = not any(padding) and not any(behind(*window) for window in windows)
    mode = 1
    if not same:
        if all(is_same(*window) for window in windows) and not counts_border:
            mode = 0
        else:
            number = _bordered(call, code, number, windows)
    fields = {"filterHeight": kernel[0], "filterWidth": kernel[1], "strideH": strides[0], "strideW": strides[1], "padding": mode}
    return call.op(code, (number,), channels_last(4), "Pool2DOptions", fusedActivationFunction=0, **fields)


def _bordered(call: Call, code: str, number: int, windows: Sequence[tuple[int, ...]]) -> int:
    """The input with a border: of the lowest number for a maximum, of zeros for a mean that counts them."""
    have = call.values.draft.tensors[number]
    if code != "MAX_POOL_2D" and any(behind(*window) > window[5] for window in windows):
        raise call.unsupported(f"{call.node.op} in ceil mode with padding")
    pads = [[0, 0], *([window[5], behind(*window)] for window in windows), [0, 0]]
    shape = [size + sum(pad) for size, pad in zip(have.shape, pads, strict=True)]
    table = call.values.draft.constant(np.asarray(pads, np.int32), "pads")
    if code != "MAX_POOL_2D" or _never_negative(call, number):
        return call.step("PAD", (number, table), shape, "PadOptions")  # the simpler operator where zeros lose against all
    if have.quantizer is None:
        lowest = call.number(np.finfo(np.float32).min)
    else:
        lowest = call.values.draft.constant(np.asarray([have.quantizer.format.lo], np.int8), "lowest", have.quantizer)
    return call.step("PADV2", (number, table, lowest), shape, "PadV2Options")


def _never_negative(call: Call, number: int) -> bool:
    have = call.values.draft.tensors[number]
    if have.quantizer is not None:
        return have.quantizer.zero_point[0] == have.quantizer.format.lo
    return any(number in op.outputs and op.code in ("RELU", "RELU6") for op in call.values.draft.ops)
