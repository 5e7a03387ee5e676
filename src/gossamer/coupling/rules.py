"""How labels pass through each class of ops: one rule per kind in the op table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from gossamer.coupling import contract, norms
from gossamer.coupling import labels as lab
from gossamer.coupling.context import Context, aligned, feature
from gossamer.coupling.recurrent import recurrent
from gossamer.program.graph import Node, Ref, map_refs
from gossamer.program.ops import bind, function, op_of, with_arguments
from gossamer.program.ops import kinds as k
from gossamer.program.shapes import Meta, TensorMeta

# movements that keep the order of what they move, whatever part of it is removed
ORDERLY = frozenset(
    f"aten.{name}"
    for name in (
        "reshape.default view.default flatten.using_ints unflatten.int squeeze.dim squeeze.dims squeeze.default unsqueeze.default "
        "expand.default expand_as.default permute.default transpose.int t.default numpy_T.default movedim.int movedim.intlist "
        "cat.default concat.default stack.default split.Tensor split_with_sizes.default chunk.default unbind.int "
        "tensor_split.indices tensor_split.sections repeat_interleave.self_int"
    ).split()
)
_JOINS = ("aten.cat.default", "aten.concat.default")
PADS = ("aten.constant_pad_nd.default", "aten.pad.default")


def _pointwise(context: Context, node: Node) -> Any:
    meta = context.metas[node.name]
    shape = meta.shape if isinstance(meta, TensorMeta) else ()
    operands = [name for name in node.uses if isinstance(context.metas.get(name), TensorMeta)]
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
    a, b = aligned(left, right)
    context.atoms.merge(a, b)
    return lab.squash(lab.tensor(np.where(a != 0, a, b)).expand(left.shape))


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


def _movement(context: Context, node: Node) -> Any:
    carriers = [name for name in node.uses if isinstance(context.metas.get(name), (TensorMeta, tuple)) and name not in context.concrete]
    if not carriers:
        return _nothing(context, node)
    if any(_is_index(context, node, name) for name in carriers):
        return _opaque(context, node)
    sources: Mapping[str, Any] = {name: context.values[name] if name in context.values else context.labels(name) for name in carriers}
    if node.op in PADS and (padded := _pad_beside(context, node, sources)) is not None:
        return padded
    if node.op == "aten.im2col.default":
        return _im2col(context, node, next(iter(sources.values())))
    if node.op == "aten.expand_as.default":
        return _expand_as(*(sources.get(name, lab.empty(context.meta(name).shape)) for name in node.uses))
    if node.op in _JOINS:
        sources = _fill_beside(context, node, sources)
    result = _move(context, node, sources)
    if node.op not in ORDERLY:
        _check_order(context, node, sources)
    return result


def _pad_beside(context: Context, node: Node, sources: Mapping[str, Any]) -> Tensor | None:
    """Padding of axes that carry nothing leaves the labels as they are; None when it pads one that does."""
    labels = next(iter(sources.values()))
    amounts = bind(node)["pad"]
    padded = {labels.dim() - 1 - place // 2 for place, amount in enumerate(amounts) if amount != 0}
    if padded & set(lab.varying(labels)):
        return None
    for axis in padded:
        labels = labels.narrow(axis, 0, 1)
    return lab.squash(labels.expand(context.meta(node.name).shape))


def _fill_beside(context: Context, node: Node, sources: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a factory fills only to be joined with values carries what they do along all other axes, so that it shrinks, too."""
    axis = bind(node)["dim"] % len(context.meta(node.name).shape)
    carried = [labels for labels in sources.values() if isinstance(labels, Tensor) and lab.varying(labels)]
    if not carried or axis in lab.varying(carried[0]):
        return sources
    found = dict(sources)
    for name, labels in sources.items():
        if context.is_filled_for(name, (type(op_of(node).kind),)) and labels.shape[:axis] == carried[0].shape[:axis]:
            found[name] = context.values[name] = lab.squash(carried[0].narrow(axis, 0, 1).expand(labels.shape))
    return found


def _im2col(context: Context, node: Node, labels: Tensor) -> Tensor:
    """Patches as columns: (N, C * K, L). Borders carry what the inside carries, whatever the padding."""
    if set(lab.varying(labels)) & {labels.dim() - 1, labels.dim() - 2}:
        return _opaque(context, node)  # type: ignore[no-any-return]
    positions = math.prod(bind(node)["kernel_size"])
    columns = np.repeat(lab.vector(labels, labels.dim() - 3), positions)
    shape = context.meta(node.name).shape
    return lab.along(columns, shape, len(shape) - 2)


def _mixing(context: Context, node: Node) -> Any:
    """Columns summed back into an image, (N, C * K, L) to (N, C, H, W): positions of a channel go together. Others stay."""
    labels = context.labels(node.uses[0])
    if node.op != "aten.col2im.default" or labels.dim() - 1 in lab.varying(labels):
        return _opaque(context, node)
    shape = context.meta(node.name).shape
    return lab.along(feature(context, lab.tensor(lab.vector(labels, labels.dim() - 2).reshape(shape[-3], -1).T), 1), shape, len(shape) - 3)


def _expand_as(narrow: Tensor, model: Tensor) -> Tensor:
    """What is repeated along an axis shrinks with the value whose shape it takes."""
    if lab.varying(narrow):
        return lab.squash(narrow.expand(model.shape))
    for axis in range(model.dim()):
        own = axis - (model.dim() - narrow.dim())
        if own >= 0 and narrow.shape[own] > 1:
            model = model.narrow(axis, 0, 1).expand(model.shape)
    return lab.squash(model)


def _move(context: Context, node: Node, sources: Mapping[str, Any]) -> Any:
    """Run the op itself on labels; sizes and indices are concrete."""
    values = {**context.concrete, **sources}
    if node.op in PADS:  # what is filled in carries nothing
        node = with_arguments(node, value=0)
    kwargs = {key: map_refs(value, values.__getitem__) for key, value in node.kwargs}
    result = function(node.op)(*map_refs(node.args, values.__getitem__), **kwargs)
    return tuple(lab.squash(item) for item in result) if isinstance(result, (tuple, list)) else lab.squash(result)


def _is_index(context: Context, node: Node, name: str) -> bool:
    """Whether a tensor argument holds positions, not data."""
    meta = context.metas[name]
    return (
        isinstance(meta, TensorMeta)
        and not meta.dtype.is_floating_point
        and not isinstance(node.args[0], tuple)
        and Ref(name) != node.args[0]
    )


def _check_order(context: Context, node: Node, sources: Mapping[str, Any]) -> None:
    """A movement along the axis that is pruned may reorder, drop or repeat its positions: then they must stay.

    Of several axes that carry labels, all but the last are merged in the end (see analysis): only the last counts.
    """
    if node.op in ("aten.slice.Tensor", "aten.narrow.default") and bind(node).get("step", 1) == 1:
        return
    if node.op == "aten.slice.Tensor" and _keeps_blocks(context, node, next(iter(sources.values()))):
        return
    merged = {name: _last_axis_only(labels) if isinstance(labels, Tensor) else labels for name, labels in sources.items()}
    before = [_sequence(item) for item in merged.values() if isinstance(item, Tensor)]
    result = _move(context, node, merged)
    for item in result if isinstance(result, tuple) else (result,):
        after = _sequence(item)
        if not any(np.array_equal(after, other) for other in before):
            for other in before:
                context.freeze(other, f"{node.op.split('.')[1]} moves its positions in {node.module or node.name}")


def _keeps_blocks(context: Context, node: Node, labels: Tensor) -> bool:
    """Every step-th position of whole blocks, as rotary embeddings take them: positions of one block stay together."""
    bound = bind(node)
    axis, step = bound["dim"] % labels.dim(), bound["step"]
    if axis not in lab.varying(labels):
        return True
    start, end, size = bound["start"] or 0, bound["end"], labels.shape[axis]
    if size % step or not isinstance(start, int) or not 0 <= start < step or not (end is None or (isinstance(end, int) and end >= size)):
        return False
    moved = np.moveaxis(lab.essence(labels), axis, -1)
    context.atoms.merge_along(moved.reshape(*moved.shape[:-1], size // step, step), moved.ndim)
    return True


def _sequence(labels: Tensor) -> np.ndarray:
    """The labels in order, without positions that carry nothing (such as padding)."""
    flat = lab.essence(labels).reshape(-1)
    carried: np.ndarray = flat[flat != 0]
    return carried


def _last_axis_only(labels: Tensor) -> Tensor:
    small = labels
    for axis in lab.varying(labels)[:-1]:
        small = small.narrow(axis, 0, 1)
    return lab.squash(small.expand(labels.shape))


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
    first, second = labels.chunk(2, bound["dim"])
    return _meet(context, lab.squash(first), lab.squash(second))


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
        written = _move(context, node, sources) if node.op == "aten.slice_scatter.default" and bound["step"] == 1 else None
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


def _opaque(context: Context, node: Node) -> Any:
    for name in node.uses:
        for labels in _tensors_of(context, name):
            context.freeze(labels, f"no rule for {node.op} in {node.module or node.name}")
    return _nothing(context, node)


def _tensors_of(context: Context, name: str) -> list[Tensor]:
    value = context.values.get(name)
    if isinstance(value, tuple):
        return [item for item in value if isinstance(item, Tensor)]
    return [context.labels(name)] if isinstance(context.metas.get(name), TensorMeta) else []


def _nothing(context: Context, node: Node) -> Any:
    def blank(meta: Meta) -> Any:
        if isinstance(meta, TensorMeta):
            return lab.empty(meta.shape)
        return tuple(blank(item) for item in meta) if isinstance(meta, tuple) else meta

    return blank(context.metas[node.name])


def _scalar(context: Context, node: Node) -> Any:
    if node.op == "scalar.getitem" and isinstance(node.args[0], Ref) and isinstance(context.values.get(node.args[0].name), tuple):
        return context.values[node.args[0].name][node.args[1]]
    return _nothing(context, node)


Rule = Callable[[Context, Node], Any]
RULES: Mapping[type, Rule] = {
    k.Pointwise: _pointwise,
    k.Movement: _movement,
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
    k.Factory: _nothing,
    k.Scalar: _scalar,
    k.Recurrent: recurrent,
    k.Mixing: _mixing,
    k.Opaque: _opaque,
}
