"""Norms, softmax and attention, written as the operators that they are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod, sqrt

import numpy as np

from gossamer.targets.tflite.draft import Array
from gossamer.targets.tflite.layout import Laid, identity
from gossamer.targets.tflite.lowering import Call, lowerings
from gossamer.targets.tflite.tape import Part, Tape


@lowerings.add("BatchNormalization")
def batch_norm(call: Call) -> Laid:
    """By the statistics held; without any, by those of the batch."""
    held = call.args["running_mean"] is not None
    return _by_statistics(call) if held else _normalised(call, (0, *range(2, len(call.shape("input")))))


def _by_statistics(call: Call) -> Laid:
    """A scale and a shift for each channel."""
    mean, variance = call.array("running_mean"), call.array("running_var")
    if mean is None or variance is None:
        raise call.unsupported(f"{call.node.op} with computed statistics")
    scale = (1 / np.sqrt(variance + call["eps"])).astype(np.float32)
    weight = call.array("weight") if call.args["weight"] is not None else None
    bias = call.array("bias") if call.args["bias"] is not None else None
    scale = scale if weight is None else scale * weight
    shift = (0 if bias is None else bias) - mean * scale
    laid = call.laid("input")
    rank = len(call.shape("input"))
    sizes = [1] * rank
    sizes[1] = scale.size
    scale, shift = (np.asarray(part, np.float32).reshape(sizes).transpose(laid.order) for part in (scale, shift))
    product = call.step("MUL", (laid.tensor, _constant(call, scale)), _sizes(call, laid), "MulOptions", fusedActivationFunction=0)
    return call.op("ADD", (product, _constant(call, shift)), laid.order, "AddOptions", fusedActivationFunction=0)


@lowerings.add("LayerNormalization")
def layer_norm(call: Call) -> Laid:
    """Over the last axes."""
    laid, shape = call.laid("input"), call.shape("input")
    axes = range(len(shape) - len(call["normalized_shape"]), len(shape))
    places = call.ints([laid.order.index(axis) for axis in axes])
    centred = _centred(call, laid, places)
    scaled = _over_deviation(call, centred, laid, places)
    return _affine(call, scaled, laid, call["normalized_shape"])


@lowerings.add("RMSNormalization")
def rms_norm(call: Call) -> Laid:
    """Over the last axes, without a mean."""
    laid, shape = call.laid("input"), call.shape("input")
    axes = range(len(shape) - len(call["normalized_shape"]), len(shape))
    places = call.ints([laid.order.index(axis) for axis in axes])
    return _affine(call, _over_deviation(call, laid.tensor, laid, places), laid, call["normalized_shape"])


@lowerings.add("GroupNormalization")
def group_norm(call: Call) -> Laid:
    """Over the channels of each group and all positions, as one axis."""
    shape = call.shape("input")
    plain = call.in_order(call.laid("input"), shape, identity(len(shape)))
    rows = (shape[0], call["num_groups"], prod(shape[1:]) // call["num_groups"])
    batch = None if call.values.draft.tensors[plain.tensor].batched is None else 0
    flat = Laid(call.step("RESHAPE", (plain.tensor, call.shape_vector(rows, batch)), rows, "ReshapeOptions"), identity(3))
    places = call.ints([2])
    scaled = _over_deviation(call, _centred(call, flat, places), flat, places)
    back = call.step("RESHAPE", (scaled, call.shape_vector(shape, batch)), shape, "ReshapeOptions")
    return _affine(call, back, plain, (shape[1], *(1 for _ in shape[2:])))


def _centred(call: Call, laid: Laid, places: int) -> int:
    sizes = _sizes(call, laid)
    mean = call.step("MEAN", (laid.tensor, places), _reduced(call, sizes, places), "ReducerOptions", keepDims=True)
    return call.step("SUB", (laid.tensor, mean), sizes, "SubOptions", fusedActivationFunction=0)


def _over_deviation(call: Call, centred: int, laid: Laid, places: int) -> int:
    """x / sqrt(mean(x^2) + eps)."""
    sizes = _sizes(call, laid)
    small = _reduced(call, sizes, places)
    epsilon = call["eps"] if call["eps"] is not None else float(np.finfo(np.float32).eps)
    square = call.step("MUL", (centred, centred), sizes, "MulOptions", fusedActivationFunction=0)
    variance = call.step("MEAN", (square, places), small, "ReducerOptions", keepDims=True)
    above = call.step("ADD", (variance, call.number(epsilon)), small, "AddOptions", fusedActivationFunction=0)
    factor = call.step("RSQRT", (above,), small)
    return call.step("MUL", (centred, factor), sizes, "MulOptions", fusedActivationFunction=0)


def _affine(call: Call, scaled: int, laid: Laid, shape: Sequence[int]) -> Laid:
    """The result, with weight and bias where there are any."""
    rank = len(call.shape("input"))
    factors: list[tuple[str, str, int]] = []
    for name, code, options in (("weight", "MUL", "MulOptions"), ("bias", "ADD", "AddOptions")):
        if call.args.get(name) is None:
            continue
        array = call.array(name)
        if array is None:
            raise call.unsupported(f"{call.node.op} with a computed {name}")
        full = array.reshape((1,) * (rank - len(shape)) + tuple(shape)).transpose(laid.order)
        factors.append((code, options, _constant(call, full)))
    if not factors:
        factors = [("MUL", "MulOptions", call.number(1.0))]
    for code, options, constant in factors[:-1]:
        scaled = call.step(code, (scaled, constant), _sizes(call, laid), options, fusedActivationFunction=0)
    code, options, constant = factors[-1]
    return call.op(code, (scaled, constant), laid.order, options, fusedActivationFunction=0)


@lowerings.add("Softmax")
def softmax(call: Call) -> Laid:
    """Along any axis, which is stored last for it."""
    shape = call.shape("self")
    axis = call["dim"] % len(shape)
    laid = call.laid("self")
    if laid.order[-1] != axis:
        laid = call.in_order(laid, shape, (*(other for other in laid.order if other != axis), axis))
    return call.op("SOFTMAX", (laid.tensor,), laid.order, "SoftmaxOptions", beta=1.0)


@lowerings.add("LogSoftmax")
def log_softmax(call: Call) -> Laid:
    """Along the axis that is stored last."""
    shape = call.shape("self")
    axis = call["dim"] % len(shape)
    laid = call.laid("self")
    if laid.order[-1] != axis:
        laid = call.in_order(laid, shape, (*(other for other in laid.order if other != axis), axis))
    return call.op("LOG_SOFTMAX", (laid.tensor,), laid.order, "LogSoftmaxOptions")


@lowerings.add("Attention")
def attention(call: Call) -> Laid:
    """softmax(scale q k^T + mask) v; shared keys are repeated."""
    tape = Tape(call)
    q, k, v = (tape.part(name) for name in ("query", "key", "value"))
    if call.get("enable_gqa", False) and q.shape[-3] != k.shape[-3]:
        heads = [head * k.shape[-3] // q.shape[-3] for head in range(q.shape[-3])]
        k, v = (tape.pick(part, heads, len(part.shape) - 3) for part in (k, v))
    scale = call["scale"] if call.get("scale") is not None else 1 / sqrt(q.shape[-1])
    weights = tape.product(q * float(scale), k, transposed=True)
    if call.get("is_causal", False):
        ahead = np.triu(np.full(weights.shape[-2:], -np.inf, np.float32), 1)
        weights = weights + tape.constant(ahead)
    mask = None if call.get("attn_mask") is None else Part(tape, _mask(call, len(q.shape)))
    if mask is not None:
        weights = weights + Part(tape, _added(call, mask.number))
    shares = tape.add("SOFTMAX", (weights.number,), weights.shape, "float32", weights.tensor.batched, "SoftmaxOptions", beta=1.0)
    if mask is not None and mask.tensor.dtype == "bool":  # where all is masked, shares are 0
        shares = shares * mask.to("float32")
    return Laid(tape.product(shares, v).number, identity(len(q.shape)))


@lowerings.add("InstanceNormalization")
def instance_norm(call: Call) -> Laid:
    """Over the positions of each sample, or by the statistics held."""
    return _normalised(call, range(2, len(call.shape("input")))) if call["use_input_stats"] else _by_statistics(call)


def _normalised(call: Call, axes: Iterable[int]) -> Laid:
    """By the mean and deviation over these axes, then a factor and a shift for each channel."""
    tape, axes = Tape(call), tuple(axes)
    x = tape.part("input")
    away = x - tape.reduce("MEAN", x, axes)
    x = away * (tape.reduce("MEAN", away * away, axes) + float(call["eps"])).one("RSQRT")
    sizes = (1, -1, *(1 for _ in x.shape[2:]))
    for name, code in (("weight", "MUL"), ("bias", "ADD")):
        if call.args.get(name) is not None:
            array = call.array(name)
            if array is None:
                raise call.unsupported(f"{call.node.op} with a computed {name}")
            x = tape.pair(code, x, tape.constant(np.ascontiguousarray(array.reshape(sizes), np.float32)))
    return Laid(x.number, identity(len(x.shape)))


def _mask(call: Call, rank: int) -> int:
    """The mask with as many axes as the products."""
    shape = call.shape("attn_mask")
    number = call.in_order(call.one_row("attn_mask"), shape, identity(len(shape))).tensor
    if len(shape) == rank:
        return number
    if call.values.draft.tensors[number].batched is not None:
        raise call.unsupported(f"{call.node.op} with such a mask")
    shape = (1,) * (rank - len(shape)) + shape
    return call.step("RESHAPE", (number, call.ints(shape)), shape, "ReshapeOptions")


def _added(call: Call, mask: int) -> int:
    """What a mask adds to the products: itself, or for one of booleans 0 where it is true and the lowest number elsewhere."""
    have = call.values.draft.tensors[mask]
    if have.dtype != "bool":
        return mask
    made = call.values.draft.add(replace(have, name=f"{call.node.name}/mask", dtype="float32", data=None))
    lowest = call.number(np.finfo(np.float32).min)
    call.values.draft.op("SELECT_V2", (mask, call.number(0.0), lowest), (made,), "SelectV2Options")
    return made


def _constant(call: Call, array: Array) -> int:
    return call.values.draft.constant(np.ascontiguousarray(array, np.float32), "constant")


def _sizes(call: Call, laid: Laid) -> tuple[int, ...]:
    return call.values.draft.tensors[laid.tensor].shape


def _reduced(call: Call, sizes: Sequence[int], places: int) -> tuple[int, ...]:
    axes = call.values.draft.tensors[places].data
    assert axes is not None
    gone = set(axes.tolist())
    return tuple(1 if place in gone else size for place, size in enumerate(sizes))
