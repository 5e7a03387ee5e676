"""Ops that only move data."""

from __future__ import annotations

from gossamer.targets.onnx.lowering import Call, lowerings


def _source(call: Call) -> str:
    return next(iter(call.args))


@lowerings.add("Reshape")
def reshape(call: Call) -> str:
    """Any op whose result has the same numbers in the same order: view, flatten, squeeze and others."""
    name = _source(call)
    return call.reshape(call.tensor(name), call.form(name).sizes, call.result.sizes)


@lowerings.add("Shape")
def shape(call: Call) -> str:
    """A size as a tensor; most sizes never become one."""
    return call.op("Shape", call.tensor("self"), start=call.axis(), end=call.axis() + 1)


@lowerings.add("Transpose")
def transpose(call: Call) -> str:
    """Any permutation of axes."""
    order = _permutation(call)
    return call.tensor("self") if order == sorted(order) else call.op("Transpose", call.tensor("self"), perm=order)


def _permutation(call: Call) -> list[int]:
    """Result axis -> source axis."""
    rank = call.form("self").rank
    order = list(range(rank))
    match call.node.op.split(".")[1]:
        case "permute":
            return [dim % rank for dim in call["dims"]]
        case "transpose":
            a, b = call["dim0"] % rank, call["dim1"] % rank
            order[a], order[b] = order[b], order[a]
            return order
        case "movedim":
            source, target = (
                [arg % rank] if isinstance(arg, int) else [dim % rank for dim in arg] for arg in (call["source"], call["destination"])
            )
            rest = iter(axis for axis in range(rank) if axis not in source)
            moved = dict(zip(target, source, strict=True))
            return [moved[axis] if axis in moved else next(rest) for axis in range(rank)]
    return order[::-1]


@lowerings.add("Concat")
def concat(call: Call) -> str:
    """Empty one-dimensional tensors, which torch lets pass, are left out."""
    parts = [arg for arg in call["tensors"] if call.form_of(arg).shape != (0,) or call.result.rank == 1]
    axis = call["dim"] % call.result.rank
    return call.op("Concat", *(call.tensor_of(part, call.result.dtype) for part in parts), axis=axis)


@lowerings.add("Expand")
def expand(call: Call) -> str:
    """Broadcast to the result's shape."""
    form = call.form("self")
    return call.tensor("self") if form.sizes == call.result.sizes else call.op("Expand", call.tensor("self"), call.sizes(call.result.sizes))
