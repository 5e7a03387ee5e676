"""Comparisons and choices."""

from __future__ import annotations

from gossamer.targets.tflite.layout import Laid
from gossamer.targets.tflite.lowering import Call, aligned, lowerings
from gossamer.targets.tflite.tape import Part, Tape

_COMPARE = {
    "Equal": "EQUAL",
    "NotEqual": "NOT_EQUAL",
    "Greater": "GREATER",
    "GreaterOrEqual": "GREATER_EQUAL",
    "Less": "LESS",
    "LessOrEqual": "LESS_EQUAL",
    "And": "LOGICAL_AND",
    "Or": "LOGICAL_OR",
}
_OPTIONS = {
    "EQUAL": "EqualOptions",
    "NOT_EQUAL": "NotEqualOptions",
    "GREATER": "GreaterOptions",
    "GREATER_EQUAL": "GreaterEqualOptions",
    "LESS": "LessOptions",
    "LESS_EQUAL": "LessEqualOptions",
    "LOGICAL_AND": "LogicalAndOptions",
    "LOGICAL_OR": "LogicalOrOptions",
}


def _compare(call: Call) -> Laid:
    left, right = list(call.args)[:2]
    code = _COMPARE[call.row.onnx]
    tensors, order = aligned(call, left, right)
    tensors = [truth(call, number) for number in tensors] if code.startswith("LOGICAL") else tensors
    kinds = {call.values.draft.tensors[number].dtype for number in tensors}
    if len(kinds) > 1 or (code.startswith("LOGICAL") and kinds != {"bool"}):
        raise call.unsupported(f"{call.node.op} of {' and '.join(sorted(kinds))}")
    return call.op(code, tensors, order, _OPTIONS[code])


for _onnx in _COMPARE:
    lowerings.add(_onnx)(_compare)


@lowerings.add("Not")
def not_(call: Call) -> Laid:
    """Of booleans."""
    laid = call.laid("self")
    if call.values.draft.tensors[laid.tensor].dtype != "bool" and "bitwise" in call.node.op:
        raise call.unsupported(f"{call.node.op} of integers")
    return call.op("LOGICAL_NOT", (truth(call, laid.tensor),), laid.order, "LogicalNotOptions")


def truth(call: Call, number: int) -> int:
    """Whether each number is another than 0."""
    part = Part(Tape(call), number)
    return number if part.tensor.dtype == "bool" else part.tape.pair("NOT_EQUAL", part, 0).number


@lowerings.add("Where")
def where_(call: Call) -> Laid:
    """self where condition, else other."""
    return _chosen(call, "condition", "self", "other")


@lowerings.add("MaskedFill")
def masked_fill(call: Call) -> Laid:
    """value where mask, else self."""
    return _chosen(call, "mask", "value", "self")


def _chosen(call: Call, condition: str, one: str, other: str) -> Laid:
    (first, second), order = aligned(call, one, other)
    if call.values.draft.tensors[first].dtype != call.values.draft.tensors[second].dtype:
        raise call.unsupported(f"{call.node.op} between types")
    (mask,), have = aligned(call, condition)
    shape = (1,) * (len(call.out_shape) - len(call.shape(condition))) + call.shape(condition)
    moved = call.in_order(Laid(mask, have), shape, order)
    return call.op("SELECT_V2", (moved.tensor, first, second), order, "SelectV2Options")
