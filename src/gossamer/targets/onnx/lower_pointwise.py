"""Pointwise ops: each output position from the same position of its inputs."""

from __future__ import annotations

import torch

from gossamer.program.graph import Node
from gossamer.program.ops import bind
from gossamer.targets.onnx.lowering import Call, lowerings

_UNARY = (
    "Relu Sigmoid Tanh Exp Log Sqrt Abs Neg Erf Sin Cos Floor Ceil Round Reciprocal Sign Mish"  # float in, float out
).split()
_BINARY = "Mul Div Max Min Pow".split()
_COMPARISONS = "Equal Greater GreaterOrEqual Less LessOrEqual".split()


def _unary(call: Call) -> str:
    return call.op(call.row.onnx, call.tensor("self", call.result.dtype))


def _binary(call: Call) -> str:
    left, right = list(call.args)[:2]
    return call.op(call.row.onnx, call.tensor(left, call.result.dtype), call.tensor(right, call.result.dtype))


def _comparison(call: Call) -> str:
    return call.op(call.row.onnx, *operands(call))


for _name in _UNARY:
    lowerings.add(_name)(_unary)
for _name in _BINARY:
    lowerings.add(_name)(_binary)
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


def clip_limits(node: Node) -> tuple[float | None, float | None] | None:
    """(low, high) of an op that only clamps to numbers, None for any other op. Shared by ReLU and its kin."""
    base = node.op.split(".")[1]
    match base:
        case "relu":
            return 0.0, None
        case "relu6":
            return 0.0, 6.0
        case "hardtanh":
            bound = bind(node)
            return bound["min_val"], bound["max_val"]
        case "clamp" | "clamp_min" | "clamp_max":
            bound = bind(node)
            limits = bound.get("min"), bound.get("max")
            if all(limit is None or isinstance(limit, (int, float)) for limit in limits):
                return limits
    return None


@lowerings.add("Clip")
def clip(call: Call) -> str:
    """Either limit may be absent."""
    limits = clip_limits(call.node)
    if limits is None:
        raise call.unsupported(f"{call.node.op} with limits that are computed")
    dtype = call.result.dtype
    names = ["" if limit is None else call.constant(limit, dtype) for limit in limits]
    return call.op("Clip", call.tensor("self", dtype), *(names if limits[1] is not None else names[:1]))


@lowerings.add("LeakyRelu")
def leaky_relu(call: Call) -> str:
    """x where positive, else slope * x."""
    return call.op("LeakyRelu", call.tensor("self"), alpha=float(call["negative_slope"]))


@lowerings.add("Elu")
def elu(call: Call) -> str:
    """scale and input_scale of the aten op have no place in ONNX's and are 1 in practice."""
    if call["scale"] != 1 or call["input_scale"] != 1:
        raise call.unsupported(f"{call.node.op} with a scale")
    return call.op("Elu", call.tensor("self"), alpha=float(call["alpha"]))


@lowerings.add("Selu")
def selu(call: Call) -> str:
    """torch's constants, in full."""
    return call.op("Selu", call.tensor("self"), alpha=1.6732632423543772, gamma=1.0507009873554805)


@lowerings.add("Gelu")
def gelu(call: Call) -> str:
    """Exact (erf) or by tanh."""
    return call.op("Gelu", call.tensor("self"), approximate=call["approximate"])


@lowerings.add("Silu")
def silu(call: Call) -> str:
    """x * sigmoid(x)."""
    source = call.tensor("self")
    return call.op("Mul", source, call.op("Sigmoid", source))


@lowerings.add("HardSigmoid")
def hard_sigmoid(call: Call) -> str:
    """clamp(x/6 + 1/2, 0, 1)."""
    return call.op("HardSigmoid", call.tensor("self"), alpha=1 / 6, beta=0.5)


@lowerings.add("HardSwish")
def hard_swish(call: Call) -> str:
    """x * clamp(x/6 + 1/2, 0, 1)."""
    return call.op("HardSwish", call.tensor("self"))


@lowerings.add("Softplus")
def softplus(call: Call) -> str:
    """log(1 + exp(beta * x)) / beta."""
    source, beta = call.tensor("self"), call["beta"]
    if beta == 1:
        return call.op("Softplus", source)
    scaled = call.op("Mul", source, call.constant(beta, call.result.dtype))
    return call.op("Div", call.op("Softplus", scaled), call.constant(beta, call.result.dtype))


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
    if call.node.op.startswith("aten.bitwise") and common_dtype(call) != torch.bool:
        raise call.unsupported(f"{call.node.op} of integers")
    return call.op(call.row.onnx, call.tensor(left, torch.bool), call.tensor(right, torch.bool))


for _name in ("And", "Or"):
    lowerings.add(_name)(_logical)


@lowerings.add("Cast")
def cast(call: Call) -> str:
    """To the result's type; a move between devices is nothing."""
    return call.tensor("self", call.result.dtype)


@lowerings.add("Identity")
def identity(call: Call) -> str:
    """Copies, and dropout while evaluating."""
    return call.tensor(next(iter(call.args)))
