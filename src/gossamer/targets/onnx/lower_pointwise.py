"""Pointwise ops: each output position from the same position of its inputs."""

from __future__ import annotations

import torch

from gossamer.program.clamps import clip_limits
from gossamer.targets.onnx.lowering import Call, lowerings

_UNARY = (
    "Relu Sigmoid Tanh Exp Log Sqrt Abs Neg Erf Sin Cos Floor Ceil Round Reciprocal Sign Tan Atan Mish"  # float in, float out
).split()
_BINARY = "Mul Div Max Min Pow".split()
_TESTS = "IsNaN IsInf".split()
_COMPARISONS = "Equal Greater GreaterOrEqual Less LessOrEqual".split()


def _unary(call: Call) -> str:
    return call.op(call.row.onnx, call.tensor("self", call.result.dtype))


def _binary(call: Call) -> str:
    left, right = list(call.args)[:2]
    return call.op(call.row.onnx, call.tensor(left, call.result.dtype), call.tensor(right, call.result.dtype))


def _test(call: Call) -> str:
    return call.op(call.row.onnx, call.tensor("self"))


def _comparison(call: Call) -> str:
    return call.op(call.row.onnx, *operands(call))


for _name in _UNARY:
    lowerings.add(_name)(_unary)
for _name in _BINARY:
    lowerings.add(_name)(_binary)
for _name in _TESTS:
    lowerings.add(_name)(_test)
for _name in _COMPARISONS:
    lowerings.add(_name)(_comparison)


def operands(call: Call) -> tuple[str, str]:
    """The first two arguments in the type torch compares them in."""
    dtype = common_dtype(call)
    left, right = list(call.args)[:2]
    return call.tensor(left, dtype), call.tensor(right, dtype)


def common_dtype(call: Call) -> torch.dtype:
    """What torch promotes the first two arguments to; numbers yield to tensors of their own kind."""
    left, right = list(call.args)[:2]
    have = call.form(left).dtype
    other = call.dtype_of(right)
    if not isinstance(other, torch.dtype):  # a number
        return torch.result_type(torch.empty(1, dtype=have), other)
    return torch.promote_types(have, other)


@lowerings.add("NotEqual")
def not_equal(call: Call) -> str:
    """not (a == b)."""
    return call.op("Not", call.op("Equal", *operands(call)))


@lowerings.add("Add")
def add(call: Call) -> str:
    """self + alpha * other."""
    return call.op("Add", call.tensor("self", call.result.dtype), _times_alpha(call, "other"))


@lowerings.add("Sub")
def sub(call: Call) -> str:
    """self - alpha * other."""
    return call.op("Sub", call.tensor("self", call.result.dtype), _times_alpha(call, "other"))


@lowerings.add("Rsub")
def rsub(call: Call) -> str:
    """other - alpha * self."""
    return call.op("Sub", call.tensor("other", call.result.dtype), _times_alpha(call, "self"))


def _times_alpha(call: Call, name: str) -> str:
    tensor = call.tensor(name, call.result.dtype)
    return tensor if call["alpha"] == 1 else call.op("Mul", tensor, call.constant(call["alpha"], call.result.dtype))


@lowerings.add("Clip")
def clip(call: Call) -> str:
    """Either limit may be absent."""
    limits = clip_limits(call.node)
    if limits is None:
        raise call.unsupported(f"{call.node.op} with limits that are computed")
    dtype = call.result.dtype
    names = ["" if limit is None else call.constant(limit, dtype) for limit in limits]
    return call.op("Clip", call.tensor("self", dtype), *(names if limits[1] is not None else names[:1]))


@lowerings.add("Clamp")
def clamp(call: Call) -> str:
    """Limits that are tensors and broadcast."""
    dtype = call.result.dtype
    result = call.tensor("self", dtype)
    for name, op in (("min", "Max"), ("max", "Min")):
        if call.get(name) is not None:
            result = call.op(op, result, call.tensor(name, dtype))
    return result


@lowerings.add("AddProduct")
def add_product(call: Call) -> str:
    """self + value * tensor1 * tensor2, or / tensor2."""
    dtype = call.result.dtype
    op = "Mul" if "addcmul" in call.node.op else "Div"
    product = call.op(op, call.tensor("tensor1", dtype), call.tensor("tensor2", dtype))
    if call["value"] != 1:
        product = call.op("Mul", product, call.constant(call["value"], dtype))
    return call.op("Add", call.tensor("self", dtype), product)


@lowerings.add("Lerp")
def lerp(call: Call) -> str:
    """self + weight * (end - self)."""
    dtype = call.result.dtype
    source = call.tensor("self", dtype)
    step = call.op("Mul", call.tensor("weight", dtype), call.op("Sub", call.tensor("end", dtype), source))
    return call.op("Add", source, step)


@lowerings.add("Square")
def square(call: Call) -> str:
    """x * x."""
    source = call.tensor("self")
    return call.op("Mul", source, source)


@lowerings.add("Rsqrt")
def rsqrt(call: Call) -> str:
    """1 / sqrt(x)."""
    return call.op("Reciprocal", call.op("Sqrt", call.tensor("self")))


@lowerings.add("MaskedFill")
def masked_fill(call: Call) -> str:
    """value where mask, else self."""
    return call.op("Where", call.tensor("mask"), call.tensor("value", call.result.dtype), call.tensor("self"))


@lowerings.add("Where")
def where_(call: Call) -> str:
    """self where condition, else other."""
    dtype = call.result.dtype
    return call.op("Where", call.tensor("condition"), call.tensor("self", dtype), call.tensor("other", dtype))


@lowerings.add("Not")
def not_(call: Call) -> str:
    """Of booleans; integers would need their bits."""
    if call.node.op.startswith("aten.bitwise") and call.form("self").dtype != torch.bool:
        raise call.unsupported(f"{call.node.op} of integers")
    return call.op("Not", call.tensor("self", torch.bool))


def _logical(call: Call) -> str:
    left, right = list(call.args)[:2]
    if not call.node.op.startswith("aten.logical") and common_dtype(call) != torch.bool:
        raise call.unsupported(f"{call.node.op} of integers")
    return call.op(call.row.onnx, call.tensor(left, torch.bool), call.tensor(right, torch.bool))


for _name in ("And", "Or", "Xor"):
    lowerings.add(_name)(_logical)


@lowerings.add("Cast")
def cast(call: Call) -> str:
    """To the result's type; a move between devices is nothing."""
    return call.tensor("self", call.result.dtype)


@lowerings.add("CodedCopy")
@lowerings.add("Identity")
def identity(call: Call) -> str:
    """Copies, and dropout while evaluating."""
    return call.tensor(next(iter(call.args)))
