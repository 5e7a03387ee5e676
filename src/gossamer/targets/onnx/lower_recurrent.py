"""Recurrent layers: LSTM, GRU and plain RNN, any number of layers, one or two directions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gossamer.program.forms import Form, Size
from gossamer.program.graph import Ref
from gossamer.targets.onnx.draft import Array
from gossamer.targets.onnx.lowering import Call, lowerings

# ONNX's order of gates as positions in torch's: LSTM (input, forget, cell, output), GRU (reset, update, new)
_ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}


def _recurrent(call: Call) -> tuple[str, ...]:
    """torch: (N, T, I) where batch_first, else (T, N, I); ONNX: (T, N, I), directions as an axis of their own."""
    kind = call.row.onnx
    if call.form("input").rank != 3:
        raise call.unsupported(f"{call.node.op} of an input without a batch axis")
    swap = [1, 0, 2]
    sequence = call.tensor("input")
    sequence = call.op("Transpose", sequence, perm=swap) if call["batch_first"] else sequence
    ways = 2 if call["bidirectional"] else 1
    starts = call["hx"] if isinstance(call["hx"], tuple) else (call["hx"],)
    ends: list[list[str]] = [[] for _ in starts]
    for layer in range(call.number("num_layers")):
        states = [_layer_state(call, arg, layer, ways) for arg in starts]
        weights = [call.constant(array, call.result.dtype) for array in _layer_weights(call, kind, layer, ways)]
        inputs = [sequence, *weights, *([] if len(weights) == 3 else [""]), "", *states]
        hidden, *last = call.ops(kind, *inputs, outputs=1 + len(states), **_attributes(call, kind, ways))
        for position, end in enumerate(last):
            ends[position].append(end)
        sequence = _join_ways(call, hidden, ways)
    result = call.op("Transpose", sequence, perm=swap) if call["batch_first"] else sequence
    return result, *(parts[0] if len(parts) == 1 else call.op("Concat", *parts, axis=0) for parts in ends)


for _kind in _ORDER:
    lowerings.add(_kind)(_recurrent)


def _attributes(call: Call, kind: str, ways: int) -> dict[str, object]:
    state = call.results[1].sizes[2]
    return {
        "hidden_size": state,
        "direction": "bidirectional" if ways == 2 else "forward",
        "linear_before_reset": 1 if kind == "GRU" else None,
        "activations": ["Relu"] * ways if "rnn_relu" in call.node.op else None,
    }


def _layer_state(call: Call, arg: Ref, layer: int, ways: int) -> str:
    """(layers * ways, N, H) -> (ways, N, H) of one layer."""
    tensor = call.tensor_of(arg)
    if call["num_layers"] == 1:
        return tensor
    return call.op("Slice", tensor, call.ints(layer * ways), call.ints((layer + 1) * ways), call.ints(0))


def _layer_weights(call: Call, kind: str, layer: int, ways: int) -> list[Array]:
    """W (ways, gates*H, I), R (ways, gates*H, H) and, where there are biases, B (ways, 2*gates*H)."""
    count = 4 if call["has_biases"] else 2
    arrays = [_array(call, arg) for arg in call["params"]]
    start = layer * ways * count
    per_way = [arrays[start + way * count : start + (way + 1) * count] for way in range(ways)]
    if any(len(parts) != count for parts in per_way) or len(arrays) != count * ways * call["num_layers"]:
        raise call.unsupported(f"{call.node.op} with a projection")
    ordered = [[_ordered(array, kind) for array in parts] for parts in per_way]
    stacked = [np.stack([parts[position] for parts in ordered]) for position in range(2)]
    return stacked + ([np.stack([np.concatenate(parts[2:]) for parts in ordered])] if count == 4 else [])


def _array(call: Call, arg: Ref) -> Array:
    array = call.values.state_array(arg.name)
    if array is None:
        raise call.unsupported(f"{call.node.op} with computed or quantized weights")
    return array


def _ordered(array: Array, kind: str) -> Array:
    """The gates' blocks in ONNX's order."""
    order = _ORDER[kind]
    blocks = np.split(array, len(order))
    return np.concatenate([blocks[position] for position in order])


def _join_ways(call: Call, hidden: str, ways: int) -> str:
    """(T, ways, N, H) -> (T, N, ways * H)."""
    if ways == 1:
        return call.op("Squeeze", hidden, call.ints(1))
    joined = call.op("Transpose", hidden, perm=[0, 2, 1, 3])
    form = call.result
    time, batch = _time_and_batch(call, form)
    wide = form.sizes[2]
    assert isinstance(wide, int)
    return call.reshape(joined, [time, batch, ways, wide // ways], [time, batch, wide])


def _time_and_batch(call: Call, form: Form) -> Sequence[Size]:
    first, second = form.sizes[:2]
    return (second, first) if call["batch_first"] else (first, second)
