"""Convolutions, linear layers, matrix products and embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gossamer.targets.tflite.layout import Laid, channels_last, identity
from gossamer.targets.tflite.lower_products import conv3d
from gossamer.targets.tflite.lowering import Call, lowerings
from gossamer.targets.tflite.padding import behind, is_same, pair
from gossamer.targets.tflite.tables import coded_rows
from gossamer.targets.tflite.weights import bias_of, weight_of

NONE = 0  # no fused activation: the codes of the result clip


@lowerings.add("Conv")
def conv(call: Call) -> Laid:
    """input (N, I, *S), weight (O, I/groups, *K), over one or two spatial axes."""
    rank = len(call.shape("input"))
    if rank == 5:
        return conv3d(call)
    if rank not in (3, 4):
        raise call.unsupported(f"{call.node.op} over {rank - 2} axes")
    source = _flat_to_image(call, call.in_order(call.laid("input"), call.shape("input"), channels_last(rank)))
    layer = weight_of(call)
    weight = layer.numbers[:, :, None] if rank == 3 else layer.numbers
    groups, channels = call["groups"], call.shape("input")[1]
    depthwise = groups == channels and groups > 1
    strides, dilations = (_image(pair(call[name], rank - 2), 1) for name in ("stride", "dilation"))
    number, padding = _padded(call, source.tensor, weight.shape[2:], strides, dilations)
    kernel = weight.transpose(1, 2, 3, 0) if depthwise else weight.transpose(0, 2, 3, 1)
    fields: dict[str, Any] = {
        "strideH": strides[0],
        "strideW": strides[1],
        "dilationHFactor": dilations[0],
        "dilationWFactor": dilations[1],
    }
    fields |= {"padding": padding, "fusedActivationFunction": NONE}
    if depthwise:
        fields["depthMultiplier"] = weight.shape[0] // groups
    axis = 3 if depthwise else 0
    inputs = (number, layer.stored(call, kernel, axis), bias_of(call, weight.shape[0], layer))
    code, options = ("DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions") if depthwise else ("CONV_2D", "Conv2DOptions")
    if rank == 4:
        return call.op(code, inputs, channels_last(4), options, **fields)
    return _image_to_flat(call, code, inputs, options, fields)


@lowerings.add("Gemm")
def linear(call: Call) -> Laid:
    """input (*, I), weight (O, I). Channels that were flattened as they were stored meet columns in that order."""
    source = call.laid("input")
    layer = weight_of(call)
    weight, rank = layer.numbers, len(call.shape("input"))
    if source.columns:
        channels, *spatial = source.columns
        weight = weight.reshape(-1, channels, *spatial).transpose(0, 2, 3, 1).reshape(weight.shape)
        order = identity(rank)
    else:
        order = source.order if source.order[-1] == rank - 1 else (*(axis for axis in source.order if axis != rank - 1), rank - 1)
        source = call.in_order(source, call.shape("input"), order)
    inputs = (source.tensor, layer.stored(call, weight, 0, halves=True), bias_of(call, weight.shape[0], layer))
    return call.op("FULLY_CONNECTED", inputs, order, "FullyConnectedOptions", keepNumDims=rank != 2, fusedActivationFunction=NONE)


@lowerings.add("DynamicRows")
def dynamic_rows(call: Call) -> Laid:
    """Done by the kernels that read it."""
    return call.laid("self")


@lowerings.add("MatMul")
def matmul(call: Call) -> Laid:
    """(*, M, K) x (*, K, N); a factor whose last two axes are stored the other way round is read so."""
    left, right = list(call.args)[:2]
    shapes = call.shape(left), call.shape(right)
    if min(map(len, shapes)) < 2:
        raise call.unsupported(f"{call.node.op} with a vector")
    (one, swap_one), (two, swap_two) = (_factor(call, name, shape) for name, shape in zip((left, right), shapes, strict=True))
    fields = {"adjX": swap_one, "adjY": swap_two}
    return call.op("BATCH_MATMUL", (one.tensor, two.tensor), identity(len(call.out_shape)), "BatchMatMulOptions", **fields)


@lowerings.add("Gather")
def embedding(call: Call) -> Laid:
    """Rows of weight (V, D) picked by indices."""
    if (rows := coded_rows(call)) is not None:
        return rows
    name = "weight" if "weight" in call.args else "self"
    axis = 0 if name == "weight" else call["dim"] % len(call.shape("self"))
    picked = "indices" if "indices" in call.args else "index"
    table = call.in_order(call.laid(name), call.shape(name), identity(len(call.shape(name))))
    places = call.in_order(call.laid(picked), call.shape(picked), identity(len(call.shape(picked))))
    return call.op("GATHER", (table.tensor, places.tensor), identity(len(call.out_shape)), "GatherOptions", axis=axis)


def _factor(call: Call, name: str, shape: Sequence[int]) -> tuple[Laid, bool]:
    plain = identity(len(shape))
    swapped = (*plain[:-2], plain[-1], plain[-2])
    laid = call.laid(name)
    if laid.order == swapped:
        return laid, True
    return call.in_order(laid, shape, plain), False


def _padded(call: Call, number: int, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> tuple[int, int]:
    """The tensor to read and its padding, 0 for SAME or 1 for VALID, with zeros written around it where neither fits."""
    size = call.values.draft.tensors[number].shape
    out = call.out_shape[2:] if len(call.out_shape) == 4 else (1, *call.out_shape[2:])
    dims = len(call.out_shape) - 2
    before: tuple[int, ...]
    if call["padding"] == "valid":
        before = (0, 0)
    elif call["padding"] == "same":
        total = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
        before = tuple(number // 2 for number in total)
    else:
        before = _image(pair(call["padding"], dims), 0)
    windows = list(zip(size[1:3], out, kernel, strides, dilations, before, strict=True))
    if not any(before) and not any(behind(*window) for window in windows):
        return number, 1
    if all(is_same(*window) for window in windows):
        return number, 0
    pads = [[0, 0], *([window[5], behind(*window)] for window in windows), [0, 0]]
    shape = [have + sum(pad) for have, pad in zip(size, pads, strict=True)]
    table = call.values.draft.constant(np.asarray(pads, np.int32), "pads")
    return call.step("PAD", (number, table), shape, "PadOptions"), 1


def _image(values: Sequence[int], filler: int) -> tuple[int, ...]:
    """Numbers of one spatial axis as those of height and width."""
    return tuple(values) if len(values) == 2 else (filler, *values)


def _flat_to_image(call: Call, source: Laid) -> Laid:
    """(N, L, C) as (N, 1, L, C)."""
    shape = call.values.draft.tensors[source.tensor].shape
    if len(shape) == 4:
        return source
    batch = None if call.values.draft.tensors[source.tensor].batched is None else 0
    image = (shape[0], 1, *shape[1:])
    sizes = call.shape_vector(image, batch)
    return Laid(call.step("RESHAPE", (source.tensor, sizes), image, "ReshapeOptions"), channels_last(4))


def _image_to_flat(call: Call, code: str, inputs: Sequence[int], options: str, fields: dict[str, Any]) -> Laid:
    """The result (N, 1, L, C) of a convolution over one axis as (N, L, C)."""
    final = call.result_tensor(channels_last(3))
    tensor = call.values.draft.tensors[final]
    image = (tensor.shape[0], 1, *tensor.shape[1:])
    number = call.values.draft.add(replace(tensor, name=f"{tensor.name}/image", shape=image))
    call.values.draft.op(code, inputs, (number,), options, **fields)
    call.values.draft.op("RESHAPE", (number, call.shape_vector(tensor.shape, tensor.batched)), (final,), "ReshapeOptions")
    return Laid(final, channels_last(3))
