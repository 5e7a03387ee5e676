"""Reductions that need more than their axes, and running sums."""

from __future__ import annotations

import numpy as np
import torch

from gossamer.program.forms import product
from gossamer.targets.onnx.lower_pool import reduce, reduced_axes
from gossamer.targets.onnx.lowering import Call, lowerings


def _extreme(call: Call) -> str | tuple[str, ...]:
    """amax over axes; max over one axis gives positions, too; max over all."""
    op = call.row.onnx
    if call.node.op.split(".")[2] != "dim":
        return _away_from_codes(call, op, reduced_axes(call))
    positions = call.op(
        {"ReduceMax": "ArgMax", "ReduceMin": "ArgMin"}[op], call.tensor("self"), axis=call.axis(), keepdims=int(call["keepdim"])
    )
    return _away_from_codes(call, op, [call.axis()]), positions


def _away_from_codes(call: Call, op: str, axes: list[int]) -> str:
    """The reduction, with a Reshape behind it where the runtime must not make codes in the same kernel."""
    form, source = call.form("self"), call.tensor("self")
    if not call.values.program.quantizers or "extremes" not in call.values.spec.written_otherwise or not axes:
        return reduce(call, op, source, axes)
    kept = bool(call.get("keepdim", False))
    result = call.op(op, source, call.ints(*axes), keepdims=int(not kept))
    sizes = [size for axis, size in enumerate(form.sizes) if axis not in axes]
    whole = [1 if axis in axes else size for axis, size in enumerate(form.sizes)]
    return call.reshape(result, sizes if kept else whole, whole if kept else sizes)


for _name in ("ReduceMax", "ReduceMin"):
    lowerings.add(_name)(_extreme)


@lowerings.add("ReduceProd")
def reduce_prod(call: Call) -> str:
    """The product over one axis or all."""
    return reduce(call, "ReduceProd", call.tensor("self", call.result.dtype), reduced_axes(call))


def _arg_extreme(call: Call) -> str:
    form, source = call.form("self"), call.tensor("self")
    if call["dim"] is not None:
        return call.op(call.row.onnx, source, axis=call.axis(), keepdims=int(call["keepdim"]))
    if call["keepdim"]:
        raise call.unsupported(f"{call.node.op} over all axes with keepdim")
    flat = call.reshape(source, form.sizes, [product(form.sizes)])
    return call.op(call.row.onnx, flat, axis=0, keepdims=0)


for _name in ("ArgMax", "ArgMin"):
    lowerings.add(_name)(_arg_extreme)


def _quantified(call: Call) -> str:
    """any and all, by maximum and minimum of zeros and ones."""
    numbers = call.op("Cast", call.tensor("self", torch.bool), to=6)
    op = {"Any": "ReduceMax", "All": "ReduceMin"}[call.row.onnx]
    return call.cast(reduce(call, op, numbers, reduced_axes(call)), torch.bool)


for _name in ("Any", "All"):
    lowerings.add(_name)(_quantified)


@lowerings.add("LogSumExp")
def log_sum_exp(call: Call) -> str:
    """log(sum(exp(x)))."""
    return reduce(call, "ReduceLogSumExp", call.tensor("self", call.result.dtype), reduced_axes(call))


@lowerings.add("TopK")
def top_k(call: Call) -> tuple[str, ...]:
    """Values and positions of the k largest or smallest."""
    return call.ops(
        "TopK",
        call.tensor("self"),
        call.sizes([call["k"]]),
        outputs=2,
        axis=call.axis(),
        largest=int(call["largest"]),
        sorted=int(call["sorted"]),
    )


@lowerings.add("CumSum")
def cumsum(call: Call) -> str:
    """Along one axis."""
    return call.op("CumSum", call.tensor("self", call.result.dtype), call.constant(call.axis(), torch.int64))


@lowerings.add("Variance")
def variance(call: Call) -> str | tuple[str, ...]:
    """var, std, and var_mean, divided by n - correction."""
    form, axes = call.form("self"), reduced_axes(call)
    correction = 1 if call.get("correction") is None else call["correction"]
    if "unbiased" in call.args:
        correction = int(call["unbiased"])
    count = product(form.sizes[axis] for axis in axes)
    if not isinstance(count, int):
        raise call.unsupported(f"{call.node.op} over an axis that depends on the batch")
    source = call.tensor("self")
    mean = call.op("ReduceMean", source, call.ints(*axes), keepdims=1)
    centred = call.op("Sub", source, mean)
    spread = reduce(call, "ReduceMean", call.op("Mul", centred, centred), axes)
    if correction:
        spread = call.op("Mul", spread, call.constant(count / (count - correction), form.dtype))
    if call.node.op.startswith("aten.std"):
        return call.op("Sqrt", spread)
    if not call.node.op.startswith("aten.var_mean"):
        return spread
    return spread, mean if call["keepdim"] else call.op("Squeeze", mean, call.ints(*axes))


@lowerings.add("VectorNorm")
def vector_norm(call: Call) -> str:
    """(sum |x|^p)^(1/p)."""
    axes, order = reduced_axes(call), float(call.get("ord", call.get("p", 2)) or 0)
    source, dtype = call.tensor("self", call.result.dtype), call.result.dtype
    if order == 2:
        return reduce(call, "ReduceL2", source, axes)
    if order == 1:
        return reduce(call, "ReduceL1", source, axes)
    size = call.op("Abs", source)
    if np.isinf(order):
        return reduce(call, "ReduceMax" if order > 0 else "ReduceMin", size, axes)
    if order == 0:
        raise call.unsupported(f"{call.node.op} that counts non-zeros")
    total = reduce(call, "ReduceSum", call.op("Pow", size, call.constant(order, dtype)), axes)
    return call.op("Pow", total, call.constant(1 / order, dtype))
