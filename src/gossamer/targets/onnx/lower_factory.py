"""Tensors made from sizes alone, and pointwise ops on whole numbers."""

from __future__ import annotations

import numpy as np
import torch

from gossamer.program.forms import BatchSize, Unknown
from gossamer.targets.onnx.lower_pointwise import common_dtype, operands
from gossamer.targets.onnx.lowering import Call, lowerings


@lowerings.add("Full")
def full(call: Call) -> str:
    """zeros, ones, full, empty, their _like and new_ forms, fill and zero: one number, broadcast to the result's shape."""
    base = call.node.op.split(".")[1]
    form, name = call.result, {"full": "fill_value", "fill": "value"}.get(base.removeprefix("new_")[:4], "")
    number = call.tensor(name, form.dtype) if name else call.constant(int("ones" in base), form.dtype)
    return number if form.rank == 0 else call.op("Expand", number, call.sizes(form.sizes))


@lowerings.add("Range")
def arange(call: Call) -> str:
    """arange(start, end, step): a constant unless a limit depends on the batch."""
    dtype = call.result.dtype
    start, end, step = call.get("start", 0), call["end"], call.get("step", 1)
    if any(isinstance(limit, (BatchSize, Unknown)) for limit in (start, end)):
        limits = [call.tensor_of(limit, dtype) if limit is not None else "" for limit in (start, end, step)]
        return call.op("Range", *limits)
    return call.constant(np.arange(start, end, step), dtype)


@lowerings.add("Constant")
def constant(call: Call) -> str:
    """scalar_tensor, eye, linspace with literal arguments: their numbers, computed now."""
    dtype = call.result.dtype
    match call.node.op.split(".")[1]:
        case "scalar_tensor":
            return call.tensor("s", dtype)
        case "eye":
            return call.constant(np.eye(call.number("n"), call.get("m")), dtype)
    values = torch.linspace(call.number("start"), call.number("end"), call.number("steps"), dtype=dtype)
    return call.constant(values.numpy(), dtype)


@lowerings.add("Modulo")
def floor_divide(call: Call) -> str:
    """floor_divide, remainder, fmod and div with rounding_mode; floor rounds down, trunc towards zero."""
    base, dtype = call.node.op.split(".")[1], common_dtype(call)
    left, right = operands(call)
    if base == "remainder":
        if not dtype.is_floating_point:
            return call.op("Mod", left, right)
        return call.op("Sub", left, call.op("Mul", call.op("Floor", call.op("Div", left, right)), right))
    if base == "fmod":
        return call.op("Mod", left, right, fmod=1)
    mode = "floor" if base == "floor_divide" else call["rounding_mode"]
    quotient = call.op("Div", left, right)
    if mode is None:
        raise call.unsupported(f"{call.node.op} without a rounding mode")
    if dtype.is_floating_point:
        if mode == "floor":
            return call.op("Floor", quotient)
        return call.op("Mul", call.op("Sign", quotient), call.op("Floor", call.op("Abs", quotient)))
    if mode == "trunc":  # ONNX divides whole numbers towards zero
        return quotient
    rest = call.op("Mod", left, right)  # with the sign of the divisor, as floor wants it
    return call.op("Div", call.op("Sub", left, rest), right)
