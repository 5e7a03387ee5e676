"""How labels pass through each class of ops: one rule per kind in the op table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from gossamer.coupling import contract, norms
from gossamer.coupling import labels as lab
from gossamer.coupling.context import Context, aligned, feature
from gossamer.coupling.movement import mixing, move, movement
from gossamer.coupling.recurrent import recurrent
from gossamer.coupling.unknown import nothing, opaque
from gossamer.program.graph import Node, Ref
from gossamer.program.ops import bind, op_of
from gossamer.program.ops import kinds as k
from gossamer.program.shapes import TensorMeta


def _pointwise(context: Context, node: Node) -> Any:
    meta = context.metas[node.name]
    shape = meta.shape if isinstance(meta, TensorMeta) else ()
    operands = [name for name in node.uses if isinstance(context.metas.get(name), TensorMeta)]
    if len(set(operands)) == 1 and (alone := context.labels(operands[0])).shape == shape:
        return lab.squash(alone)
    carried = sorted(((name, context.labels(name)) for name in operands), key=lambda item: -item[1].numel())  # the widest names the result
    wide = [(name, labels, lab.squash(labels.expand(shape))) for name, labels in carried]
    last = {max(lab.varying(labels)) for _, _, labels in wide if lab.varying(labels)}
    result = lab.empty(shape)
    for name, narrow, labels in wide:
        if any(_repeats(narrow, len(shape), axis) for axis in last):
            context.freeze(narrow, f"{node.module or node.name} repeats it along the axis that carries another value")
        else:
            result = _meet(context, result, labels)
        _require_carrier(context, node, name, narrow, [other for _, _, other in wide])
    return result


def _repeats(narrow: Tensor, rank: int, axis: int) -> bool:
    """Whether broadcasting repeats one position of an operand along that axis of the result."""
    own = axis - (rank - narrow.dim())
    return own < 0 or narrow.shape[own] == 1


def _meet(context: Context, left: Tensor, right: Tensor) -> Tensor:
    """Merge equal positions; where one side carries nothing, the other's labels stay."""
    if not lab.varying(left) and not lab.essence(left).any():
        return right
    a, b = aligned(left, right)
    context.atoms.merge(a, b)
    if context.heads is None and b.all() and set(lab.varying(right)) < set(lab.varying(left)):
        return right  # the same, said along fewer axes
    return left if a.all() else lab.squash(lab.tensor(np.where(a != 0, a, b)).expand(left.shape))


def _require_carrier(context: Context, node: Node, name: str, narrow: Tensor, others: list[Tensor]) -> None:
    """An operand that fills an axis without carrying its atoms cannot shrink with them, so they must stay.

    Of several axes that carry labels, all but the last are merged in the end: only the last counts.
    """
    for other in others:
        axes = lab.varying(other)[-1:]
        offset = other.dim() - narrow.dim()
        fills = [axis for axis in axes if axis >= offset and narrow.shape[axis - offset] > 1]
        if not fills:
            continue
        a, b = aligned(lab.squash(narrow.expand(other.shape)), other)
        context.freeze(b[a == 0], f"it meets {name}, which cannot shrink, in {node.module or node.name}")


def _pool(context: Context, node: Node) -> Any:
    kind = op_of(node).kind
    assert isinstance(kind, k.Pool)
    labels = context.labels(node.uses[0])
    first = labels.dim() - kind.dims
    if any(axis >= first for axis in lab.varying(labels)):
        context.freeze(labels, f"{node.module or node.name} pools along the axis that carries it")
        labels = lab.empty(labels.shape)
    small = labels
    for axis in range(first, labels.dim()):
        small = small.narrow(axis, 0, 1)
    meta = context.metas[node.name]
    if isinstance(meta, tuple):  # with the places of the maxima
        return tuple(lab.squash(small.expand(item.shape)) if isinstance(item, TensorMeta) else item for item in meta)
    return lab.squash(small.expand(context.meta(node.name).shape))


# reductions to which zeros add nothing, and those whose statistics are then taken over what stays
_SUMS = ("aten.sum.dim_IntList", "aten.linalg_vector_norm.default")
_MEANS = tuple(f"aten.{name}" for name in "mean.dim var.correction std.correction amax.default amin.default logsumexp.default".split())


def _reduction(context: Context, node: Node) -> Any:
    bound = bind(node)
    source = Ref(node.uses[0])
    labels = context.labels(source.name)
    dims = bound.get("dim")
    dims = tuple(range(labels.dim())) if dims is None or dims == () else dims if isinstance(dims, tuple) else (dims,)
    axes = sorted({axis % labels.dim() for axis in dims})
    last = max(lab.varying(labels), default=-1)  # the only axis that carries labels once rectangles are made
    if last in axes:
        if node.op in _SUMS and bound.get("ord", 2) != 0:
            context.contracted[node.name] = source.name
        elif node.op in _MEANS:
            context.renormalised.append((node.name, last))
        else:
            context.freeze(labels, f"{node.op.split('.')[1]} runs along the axis that carries it in {node.module or node.name}")
        labels = lab.empty(labels.shape)
    for axis in axes:
        labels = labels.narrow(axis, 0, 1)
    if not bound.get("keepdim", False):
        for axis in reversed(axes):
            labels = labels.squeeze(axis)
    meta = context.metas[node.name]
    if isinstance(meta, tuple):
        return tuple(labels.expand(item.shape) if isinstance(item, TensorMeta) else item for item in meta)
    return lab.squash(labels)


_OF_WHAT_STAYS = ("aten.softmax.int", "aten._softmax.default")


def _softmax(context: Context, node: Node) -> Tensor:
    labels = context.labels(node.uses[0])
    axis = bind(node)["dim"] % labels.dim()
    if axis != max(lab.varying(labels), default=-1):  # along other axes all positions stay or go together
        return labels
    if node.op in _OF_WHAT_STAYS:
        context.renormalised.append((node.name, axis))
    else:
        context.freeze(labels, f"{node.op.split('.')[1]} couples it along the axis that carries it in {node.module or node.name}")
    return labels


def _glu(context: Context, node: Node) -> Tensor:
    """Both halves lose the same positions."""
    bound = bind(node)
    labels = context.labels(bound["self"].name)
    first, second = (lab.squash(half) for half in labels.chunk(2, bound["dim"]))
    context.atoms.couple(*aligned(first, second), f"{node.module or node.name} multiplies it with what cannot shrink")
    return _meet(context, first, second)


def _channel_scale(context: Context, node: Node) -> Tensor:
    bound = bind(node)
    labels = context.labels(bound["self"].name)
    if context.meta(bound["weight"].name).numel > 1:
        context.tie_vector(bound["weight"], feature(context, labels, 1))
    return labels


def _insert(context: Context, node: Node) -> Tensor:
    """Part of one axis replaced: along all other axes both carry the same."""
    bound = bind(node)
    base, part = (context.labels(bound[name].name) for name in ("self", "src"))
    axis = bound["dim"] % base.dim()
    if part.dim() < base.dim():
        part = part.unsqueeze(axis)
    shape = base.shape
    if any(axis in lab.varying(labels) for labels in (base, part)):
        sources = {bound["self"].name: base, bound["src"].name: part}
        written = move(context, node, sources) if node.op == "aten.slice_scatter.default" and bound["step"] == 1 else None
        after, before = aligned(base if written is None else written, base)
        if written is not None and np.array_equal(context.atoms.find(after), context.atoms.find(before)):
            return base  # what is written goes where its own positions are, such as zeros in a part of a bias
        for labels in (base, part):
            context.freeze(labels, f"{node.op.split('.')[1]} writes along the axis that carries it in {node.module or node.name}")
        return lab.empty(shape)
    base, part = (lab.squash(labels.narrow(axis, 0, 1).expand(shape)) for labels in (base, part))
    _require_carrier(context, node, bound["src"].name, part, [base])
    _require_carrier(context, node, bound["self"].name, base, [part])
    return _meet(context, base, part)


def _scalar(context: Context, node: Node) -> Any:
    if node.op == "scalar.getitem" and isinstance(node.args[0], Ref) and isinstance(context.values.get(node.args[0].name), tuple):
        return context.values[node.args[0].name][node.args[1]]
    return nothing(context, node)


Rule = Callable[[Context, Node], Any]
RULES: Mapping[type, Rule] = {
    k.Pointwise: _pointwise,
    k.Movement: movement,
    k.Convolution: contract.convolution,
    k.Linear: contract.linear,
    k.MatMul: contract.matmul,
    k.Einsum: contract.einsum,
    k.Attention: contract.attention,
    k.Embedding: contract.embedding,
    k.BatchNorm: norms.batch_norm,
    k.StatisticsNorm: norms.statistics_norm,
    k.Pool: _pool,
    k.Reduction: _reduction,
    k.Softmax: _softmax,
    k.Insert: _insert,
    k.Glu: _glu,
    k.ChannelScale: _channel_scale,
    k.Factory: nothing,
    k.Scalar: _scalar,
    k.Recurrent: recurrent,
    k.Mixing: mixing,
    k.Opaque: opaque,
}
