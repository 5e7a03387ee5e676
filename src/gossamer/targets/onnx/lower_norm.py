"""Normalization by statistics of the input, and attention."""

from __future__ import annotations

import numpy as np
import torch

from gossamer.program.forms import Size, product
from gossamer.program.graph import Ref
from gossamer.targets.onnx.lowering import Call, lowerings


@lowerings.add("LayerNormalization")
def layer_norm(call: Call) -> str:
    """Over the last axes; ONNX demands a scale."""
    form, shape = call.form("input"), call["normalized_shape"]
    scale = call.tensor("weight") if call["weight"] is not None else call.constant(np.ones(shape), form.dtype)
    bias = [] if call["bias"] is None else [call.tensor("bias")]
    return call.op("LayerNormalization", call.tensor("input"), scale, *bias, axis=-len(shape), epsilon=call["eps"])


@lowerings.add("RMSNormalization")
def rms_norm(call: Call) -> str:
    """x / sqrt(mean(x^2) + eps) * weight, in the pattern that ONNX Runtime knows as one kernel."""
    form, source = call.form("input"), call.tensor("input")
    eps = call["eps"] if call["eps"] is not None else torch.finfo(form.dtype).eps
    axes = call.ints(*range(-len(call["normalized_shape"]), 0))
    squares = call.op("Pow", source, call.constant(2, form.dtype))
    mean = call.op("ReduceMean", squares, axes, keepdims=1)
    root = call.op("Sqrt", call.op("Add", mean, call.constant(eps, form.dtype)))
    normed = call.op("Div", source, root)
    return normed if call["weight"] is None else call.op("Mul", normed, call.tensor("weight"))


@lowerings.add("GroupNormalization")
def group_norm(call: Call) -> str:
    """Each group is one channel of an instance norm; then one factor and one shift per channel."""
    form, groups = call.form("input"), call.number("num_groups")
    channels = form.sizes[1]
    flat: list[Size] = [form.sizes[0], groups, product([*form.sizes[1:]]) if groups == 1 else _per_group(form.sizes, groups)]
    source = call.reshape(call.tensor("input"), form.sizes, flat)
    ones, zeros = (call.constant(np.full(groups, value), form.dtype) for value in (1, 0))
    normed = call.op("InstanceNormalization", source, ones, zeros, epsilon=call["eps"])
    result = call.reshape(normed, flat, form.sizes)
    shape: list[Size] = [channels, *[1] * (form.rank - 2)]
    for name, op in (("weight", "Mul"), ("bias", "Add")):
        if call[name] is not None:
            result = call.op(op, result, call.reshape(call.tensor(name), [channels], shape))
    return result


def _per_group(sizes: tuple[Size, ...], groups: int) -> Size:
    inner = product(sizes[1:])
    return inner // groups if isinstance(inner, int) else inner


@lowerings.add("InstanceNormalization")
def instance_norm(call: Call) -> str:
    """Statistics of each sample and channel, or running ones where the layer keeps them."""
    form = call.form("input")
    channels = form.sizes[1]

    def vector(name: str, default: float) -> str:
        return call.constant(np.full(channels, default), form.dtype) if call[name] is None else call.tensor(name)  # type: ignore[arg-type]

    source, gamma, beta = call.tensor("input"), vector("weight", 1), vector("bias", 0)
    if call["use_input_stats"] or call["running_mean"] is None:
        return call.op("InstanceNormalization", source, gamma, beta, epsilon=call["eps"])
    return call.op("BatchNormalization", source, gamma, beta, vector("running_mean", 0), vector("running_var", 1), epsilon=call["eps"])


@lowerings.add("WeightNorm")
def weight_norm(call: Call) -> str:
    """v * g / ||v||, the norm over all axes but `dim`."""
    rank = call.form("v").rank
    axes = [axis for axis in range(rank) if axis != call["dim"] % rank]
    size = call.op("ReduceL2", call.tensor("v"), call.ints(*axes), keepdims=1)
    return call.op("Mul", call.tensor("v"), call.op("Div", call.tensor("g"), size))


@lowerings.add("Attention")
def attention(call: Call) -> str:
    """softmax(scale * q k^T + mask) v, with masks, causality and shared key heads."""
    query, keys = call.form("query"), call.form("key")
    dtype = call.result.dtype
    width = query.sizes[-1]
    assert isinstance(width, int)
    scale = call["scale"] if call["scale"] is not None else width**-0.5
    key, value = call.tensor("key"), call.tensor("value")
    if call["enable_gqa"]:
        key, value = (_repeat_heads(call, tensor, name) for tensor, name in ((key, "key"), (value, "value")))
    rank = keys.rank
    scaled = call.op("Mul", call.tensor("query"), call.constant(scale, dtype))
    scores = call.op("MatMul", scaled, call.op("Transpose", key, perm=[*range(rank - 2), rank - 1, rank - 2]))
    mask = call["attn_mask"]
    masked = False
    if call["is_causal"]:
        scores = call.op("Add", scores, _causal_mask(call, query.sizes[-2], keys.sizes[-2]))
    elif isinstance(mask, Ref) and call.form_of(mask).dtype == torch.bool:
        masked = True
        scores = call.op("Where", call.tensor_of(mask), scores, call.constant(-np.inf, dtype))
    elif isinstance(mask, Ref):
        scores = call.op("Add", scores, call.tensor_of(mask, dtype))
    weights = call.op("Softmax", scores, axis=-1)
    if masked:  # a row without any key is zero in torch
        weights = call.op("Where", call.op("IsNaN", weights), call.constant(0, dtype), weights)
    return call.op("MatMul", weights, value)


def _repeat_heads(call: Call, tensor: str, name: str) -> str:
    """(B, h, S, d) -> (B, H, S, d), each head H/h times in a row."""
    sizes, heads = call.form(name).sizes, call.form("query").sizes[-3]
    have = sizes[-3]
    assert isinstance(have, int) and isinstance(heads, int)
    if have == heads:
        return tensor
    times = heads // have
    wide = call.op("Unsqueeze", tensor, call.ints(len(sizes) - 2))
    tiled = call.op("Tile", wide, call.ints(*[1] * (len(sizes) - 2), times, 1, 1))
    return call.reshape(tiled, [*sizes[:-2], times, *sizes[-2:]], [*sizes[:-3], heads, *sizes[-2:]])


def _causal_mask(call: Call, rows: Size, columns: Size) -> str:
    if not (isinstance(rows, int) and isinstance(columns, int)):
        raise call.unsupported(f"causal {call.node.op} over a length that depends on the batch")
    return call.constant(np.triu(np.full((rows, columns), -np.inf), 1), call.result.dtype)
