"""LSTM, GRU and RNN, unrolled: every step with operators of its own, for as many steps as the input had when it was captured."""

from __future__ import annotations

from typing import Any

import numpy as np

from gossamer.targets.tflite.draft import Array
from gossamer.targets.tflite.layout import Laid, identity
from gossamer.targets.tflite.lowering import Call, lowerings
from gossamer.targets.tflite.tape import Part, Tape


def _recurrent(call: Call) -> tuple[Laid, ...]:
    """input (N, T, I) where batch_first, else (T, N, I); states (layers * ways, N, H)."""
    if len(call.shape("input")) != 3:
        raise call.unsupported(f"{call.node.op} of an input without a batch axis")
    tape, time = Tape(call), 1 if call["batch_first"] else 0
    ways = 2 if call["bidirectional"] else 1
    given = call.args["hx"]
    starts: list[Any] = list(given) if isinstance(given, tuple) else [given]
    states = [tape.part(start) for start in starts]
    source = tape.part("input")
    steps = [_step(tape, source, time, place) for place in range(source.shape[time])]
    ends: list[list[Part]] = [[] for _ in states]
    for layer in range(call["num_layers"]):
        both = []
        for way in range(ways):
            row = layer * ways + way
            made, last = _run(call, tape, steps, [_step(tape, state, 0, row) for state in states], row, way == 1)
            both.append(made)
            for end, value in zip(ends, last, strict=True):
                end.append(value)
        steps = [parts[0] if ways == 1 else tape.join(parts, 1) for parts in zip(*both, strict=True)]
    return tuple(Laid(part.number, identity(3)) for part in (_stack(tape, steps, time), *(_stack(tape, end, 0) for end in ends)))


for _kind in ("LSTM", "GRU", "RNN"):
    lowerings.add(_kind)(_recurrent)


def _step(tape: Tape, part: Part, axis: int, place: int) -> Part:
    """One position of an axis, without it: (N, features)."""
    thin = tape.cut(part, axis, place, place + 1)
    shape = [size for k, size in enumerate(thin.shape) if k != axis]
    return tape.reshape(thin, shape)


def _stack(tape: Tape, parts: list[Part], axis: int) -> Part:
    """(N, features) of each position along a new axis."""
    thick = [tape.reshape(part, (*part.shape[:axis], 1, *part.shape[axis:]), 1 if axis == 0 else 0) for part in parts]
    return thick[0] if len(thick) == 1 else tape.join(thick, axis)


def _run(call: Call, tape: Tape, steps: list[Part], states: list[Part], row: int, backwards: bool) -> tuple[list[Part], list[Part]]:
    """All steps of one layer in one direction: what it hands out at each, and its last states."""
    weights = _weights(call, row)
    made = []
    for part in reversed(steps) if backwards else steps:
        states = _cell(call, tape, part, states, weights)
        made.append(states[0])
    return (made[::-1] if backwards else made), states


def _weights(call: Call, row: int) -> list[Array]:
    """W (gates * H, I), R (gates * H, H) and their biases."""
    count = 4 if call["has_biases"] else 2
    params = call.args["params"]
    assert isinstance(params, tuple)
    if len(params) != count * call["num_layers"] * (2 if call["bidirectional"] else 1):
        raise call.unsupported(f"{call.node.op} with a projection")
    arrays = [call.array(arg) for arg in params[row * count : (row + 1) * count]]
    found = [array for array in arrays if array is not None and isinstance(array, np.ndarray)]
    if len(found) != count:
        raise call.unsupported(f"{call.node.op} with computed or quantized weights")
    return found if count == 4 else [*found, *(np.zeros(len(found[0]), np.float32) for _ in range(2))]


def _product(tape: Tape, part: Part, weight: Array, bias: Array) -> Part:
    """part (N, I) by weight (O, I)."""
    numbers = (part.number, tape.constant(weight).number, tape.constant(bias).number)
    return tape.add(
        "FULLY_CONNECTED",
        numbers,
        (part.shape[0], len(weight)),
        "float32",
        part.tensor.batched,
        "FullyConnectedOptions",
        keepNumDims=False,
        fusedActivationFunction=0,
    )


def _cell(call: Call, tape: Tape, part: Part, states: list[Part], weights: list[Array]) -> list[Part]:
    """The next states, what the cell hands out first."""
    hidden, size = states[0], weights[1].shape[1]
    one, two = _product(tape, part, weights[0], weights[2]), _product(tape, hidden, weights[1], weights[3])

    def gate(part: Part, position: int) -> Part:
        return tape.cut(part, 1, position * size, (position + 1) * size)

    match call.row.onnx:
        case "RNN":
            return [(one + two).one("RELU" if "rnn_relu" in call.node.op else "TANH")]
        case "GRU":
            reset, update = ((gate(one, k) + gate(two, k)).one("LOGISTIC") for k in range(2))
            new = (gate(one, 2) + reset * gate(two, 2)).one("TANH")
            return [new + update * (hidden - new)]
    both = one + two
    taken, kept, handed = (gate(both, k).one("LOGISTIC") for k in (0, 1, 3))
    cell = kept * states[1] + taken * gate(both, 2).one("TANH")
    return [handed * cell.one("TANH"), cell]
