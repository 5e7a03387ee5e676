"""How labels pass through each class of ops: one rule per kind in the op table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from gossamer.coupling import labels as lab
from gossamer.coupling.atoms import Atoms
from gossamer.program.graph import Arg, Graph, Node, Ref, map_refs
from gossamer.program.ops import bind, function, op_of
from gossamer.program.ops import kinds as k
from gossamer.program.shapes import Meta, TensorMeta

# movements that keep the order of what they move, whatever part of it is removed
ORDERLY = frozenset(
    f"aten.{name}"
    for name in (
        "reshape.default view.default flatten.using_ints unflatten.int squeeze.dim squeeze.dims squeeze.default unsqueeze.default "
        "expand.default expand_as.default permute.default transpose.int t.default numpy_T.default movedim.int movedim.intlist "
        "cat.default concat.default stack.default split.Tensor split_with_sizes.default chunk.default unbind.int"
    ).split()
)


@dataclass
class Context:
    """What the pass knows so far. `blocks` are labels of axes that a grouped op splits, for the rectangle rule."""

    atoms: Atoms
    graph: Graph
    metas: Mapping[str, Meta]
    values: dict[str, Any]
    factors: dict[str, tuple[Tensor, ...]]
    readers: dict[str, Tensor]
    concrete: dict[str, Any]
    blocks: list[Tensor] = field(default_factory=list)

    def meta(self, name: str) -> TensorMeta:
        """Shape and dtype of a tensor value."""
        meta = self.metas[name]
        assert isinstance(meta, TensorMeta), name
        return meta

    def labels(self, name: str) -> Tensor:
        """Labels of a value; state that is used position by position gets atoms of its own on first use."""
        if name in self.values:
            found = self.values[name]
            assert isinstance(found, Tensor), f"{name} is not one tensor"
            return found
        meta = self.meta(name)
        if name in self.factors and len(self.factors[name]) > 1:  # also the weight of a contraction
            for factor in self.factors[name]:
                self.freeze(factor, "its weight is also used in another way")
            return lab.empty(meta.shape)
        if name not in self.factors:
            made = self.atoms.fresh(meta.numel, f"state {name}") if meta.dtype.is_floating_point else np.zeros(meta.numel, np.int64)
            self.factors[name] = (lab.squash(lab.tensor(made).reshape(meta.shape)),)
        return self.factors[name][0]

    def freeze(self, labels: Tensor | np.ndarray, reason: str) -> None:
        """All atoms in these labels must stay."""
        self.atoms.freeze(lab.essence(labels) if isinstance(labels, Tensor) else labels, reason)

    def note_concrete(self, node: Node) -> None:
        """Compute results that depend on sizes and integer constants only: they index and shape other values."""
        meta = self.metas[node.name]
        if not isinstance(meta, (TensorMeta, tuple)):
            self.concrete[node.name] = meta
        elif isinstance(meta, TensorMeta) and not meta.dtype.is_floating_point and all(name in self.concrete for name in node.uses):
            self.concrete[node.name] = self.call(node)

    def call(self, node: Node) -> Any:
        """Run a node on concrete values."""
        get = self.concrete.__getitem__
        kwargs = {key: map_refs(value, get) for key, value in node.kwargs}
        return function(node.op)(*map_refs(node.args, get), **kwargs)

    def tie_axes(self, weight: str, *factors: Tensor) -> None:
        """Give a contraction's weight its labels per axis, or merge them with those it has (a tied weight)."""
        present = self.factors.setdefault(weight, factors)
        if present is factors:
            return
        if len(present) != len(factors):
            for labels in (*present, *factors):
                self.freeze(labels, f"{weight} is shared between layers of different kinds")
            return
        for old, new in zip(present, factors, strict=True):
            self.atoms.merge(*_aligned(old, new))

    def tie_vector(self, name: Arg, vector: np.ndarray) -> None:
        """Couple a state vector (bias, norm weight, statistic) with the channels it belongs to."""
        if not isinstance(name, Ref):
            return
        if name.name in self.values:  # computed, not state: it must be as long as the channels
            self.freeze(vector, f"{name.name} is computed")
            return
        present = self.factors.setdefault(name.name, (lab.squash(lab.tensor(vector)),))
        self.atoms.merge(*_aligned(present[0], lab.tensor(vector)))


def node_kind(node: Node) -> k.Kind:
    """The class of a node's op."""
    return op_of(node).kind


def _aligned(left: Tensor, right: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Both label tensors (of one shape) as arrays of one shape, without axes on which both are constant."""
    small_left, small_right = lab.essence(left), lab.essence(right)
    return tuple(np.broadcast_arrays(small_left, small_right))  # type: ignore[return-value]


def _feature(context: Context, labels: Tensor, axis: int) -> np.ndarray:
    """Merge all labels that meet at one position of `axis`; return one label per position."""
    essence = lab.essence(labels)
    axis %= labels.dim()
    merged = np.moveaxis(essence, axis, -1).reshape(-1, essence.shape[axis])
    context.atoms.merge_along(merged, 0)
    vector = merged.max(axis=0)
    return np.ascontiguousarray(np.broadcast_to(vector, (labels.shape[axis],)))


def _pointwise(context: Context, node: Node) -> Any:
    meta = context.metas[node.name]
    shape = meta.shape if isinstance(meta, TensorMeta) else ()
    operands = [name for name in node.uses if isinstance(context.metas.get(name), TensorMeta)]
    carried = [(name, context.labels(name)) for name in operands]
    wide = [(name, labels, lab.squash(labels.expand(shape))) for name, labels in carried]
    result = lab.empty(shape)
    for name, narrow, labels in wide:
        result = _meet(context, result, labels)
        _require_carrier(context, node, name, narrow, [other for _, _, other in wide])
    return result


def _meet(context: Context, left: Tensor, right: Tensor) -> Tensor:
    """Merge equal positions; where one side carries nothing, the other's labels stay."""
    a, b = _aligned(left, right)
    context.atoms.merge(a, b)
    return lab.squash(lab.tensor(np.where(a != 0, a, b)).expand(left.shape))


def _require_carrier(context: Context, node: Node, name: str, narrow: Tensor, others: list[Tensor]) -> None:
    """An operand that fills an axis without carrying its atoms cannot shrink with them, so they must stay."""
    for other in others:
        axes = lab.varying(other)
        offset = other.dim() - narrow.dim()
        fills = [axis for axis in axes if axis >= offset and narrow.shape[axis - offset] > 1]
        if not fills:
            continue
        a, b = _aligned(lab.squash(narrow.expand(other.shape)), other)
        context.freeze(b[a == 0], f"it meets {name}, which cannot shrink, in {node.module or node.name}")


def _movement(context: Context, node: Node) -> Any:
    tensors = [name for name in node.uses if isinstance(context.metas.get(name), (TensorMeta, tuple)) and name not in context.concrete]

    def get(name: str) -> Any:
        if name in context.concrete:
            return context.concrete[name]
        return context.values[name] if name in context.values else context.labels(name)

    if any(name not in context.concrete and _is_index(context, node, name) for name in tensors):
        return _opaque(context, node)
    if node.op == "aten.reshape.default" and not isinstance(bind(node)["shape"], tuple):
        return _opaque(context, node)
    kwargs = {key: map_refs(value, get) for key, value in node.kwargs}
    result = function(node.op)(*map_refs(node.args, get), **kwargs)
    result = tuple(lab.squash(item) for item in result) if isinstance(result, (tuple, list)) else lab.squash(result)
    if node.op not in ORDERLY:
        _check_order(context, node, [get(name) for name in tensors], result)
    return result


def _is_index(context: Context, node: Node, name: str) -> bool:
    """Whether a tensor argument holds positions, not data."""
    meta = context.metas[name]
    return (
        isinstance(meta, TensorMeta)
        and not meta.dtype.is_floating_point
        and not isinstance(node.args[0], tuple)
        and Ref(name) != node.args[0]
    )


def _check_order(context: Context, node: Node, sources: list[Any], result: Any) -> None:
    """A movement along an axis that carries atoms may reorder or repeat them: then they must stay."""
    if node.op in ("aten.slice.Tensor", "aten.narrow.default") and bind(node).get("step", 1) == 1:
        return
    before = [lab.essence(item).reshape(-1) for item in sources if isinstance(item, Tensor)]
    for item in result if isinstance(result, tuple) else (result,):
        after = lab.essence(item).reshape(-1)
        if not any(np.array_equal(after, other) for other in before):
            for other in before:
                context.freeze(other, f"{node.op.split('.')[1]} moves its positions in {node.module or node.name}")


def _convolution(context: Context, node: Node) -> Tensor:
    bound = bind(node)
    transposed = node_kind(node) == k.Convolution(transposed=True)
    shape = context.meta(node.name).shape
    data = context.labels(bound["input"].name)
    groups = bound["groups"]
    if context.meta(bound["input"].name).shape != data.shape or any(axis > 1 for axis in lab.varying(data)):
        context.freeze(data, f"{node.module} convolves along the axis that carries it")
        data = lab.empty(data.shape)
    channels = _feature(context, data, 1)
    weight = bound["weight"]
    if weight.name in context.values:
        return _computed_weight(context, node, channels, shape)
    weight_shape = context.meta(weight.name).shape
    out_count = shape[1]
    owner = node.module or weight.name.removesuffix(".weight")
    per_group = out_count // groups
    if groups > 1 and groups == len(channels):  # depthwise: outputs go with their input
        out = np.repeat(channels, per_group)
        context.blocks.append(lab.tensor(out))
    else:
        out = context.atoms.fresh(out_count, owner)
        if groups > 1:
            context.blocks += [lab.tensor(out.reshape(groups, -1)), lab.tensor(channels.reshape(groups, -1))]
    blocked = np.broadcast_to(channels.reshape(groups, 1, -1), (groups, per_group, len(channels) // groups))
    if transposed:  # weight (I, O/groups, *K)
        taken = lab.along(channels, weight_shape, 0)
        per_input = np.broadcast_to(out.reshape(groups, 1, per_group), (groups, len(channels) // groups, per_group))
        made = _two_axes(per_input.reshape(len(channels), per_group), weight_shape)
    else:
        taken = _two_axes(blocked.reshape(out_count, -1), weight_shape)
        made = lab.along(out, weight_shape, 0)
    context.tie_axes(weight.name, made, taken)
    context.readers[weight.name] = taken
    context.tie_vector(bound["bias"], out)
    return lab.along(out, shape, 1)


def _two_axes(matrix: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    view = lab.tensor(matrix).reshape(*matrix.shape, *[1] * (len(shape) - 2))
    return lab.squash(view.expand(shape))


def _computed_weight(context: Context, node: Node, channels: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """A weight that other nodes compute: nothing around it is removed."""
    reason = f"the weight of {node.module or node.name} is computed"
    context.freeze(channels, reason)
    for name in node.uses:
        if isinstance(context.values.get(name), Tensor):
            context.freeze(context.values[name], reason)
    return lab.empty(shape)


def _linear(context: Context, node: Node) -> Tensor:
    bound = bind(node)
    shape = context.meta(node.name).shape
    data = context.labels(bound["input"].name)
    weight = bound["weight"]
    if weight.name in context.values:
        return _computed_weight(context, node, _feature(context, data, -1), shape)
    weight_shape = context.meta(weight.name).shape
    out = context.atoms.fresh(weight_shape[0], node.module or weight.name.removesuffix(".weight"))
    passes = lab.varying(data) != () and data.dim() - 1 not in lab.varying(data)  # atoms of another axis pass through
    taken = np.zeros(weight_shape[1], np.int64) if passes else _feature(context, data, -1)
    factors = (lab.along(out, weight_shape, 0), lab.along(taken, weight_shape, 1))
    context.tie_axes(weight.name, *factors)
    context.readers[weight.name] = factors[1]
    context.tie_vector(bound["bias"], out)
    if passes:
        context.freeze(out, f"{node.module or node.name} works along another axis than the one that is pruned")
        return lab.squash(data.narrow(-1, 0, 1).expand(shape))
    return lab.along(out, shape, len(shape) - 1)


def _batch_norm(context: Context, node: Node) -> Tensor:
    bound = bind(node)
    labels = context.labels(bound["input"].name)
    channels = _feature(context, labels, 1)
    for key in ("weight", "bias", "running_mean", "running_var"):
        context.tie_vector(bound[key], channels)
    return labels


def _pool(context: Context, node: Node) -> Any:
    kind = node_kind(node)
    assert isinstance(kind, k.Pool)
    labels = context.labels(node.uses[0])
    first = labels.dim() - kind.dims
    if any(axis >= first for axis in lab.varying(labels)):
        context.freeze(labels, f"{node.module or node.name} pools along the axis that carries it")
        labels = lab.empty(labels.shape)
    small = labels
    for axis in range(first, labels.dim()):
        small = small.narrow(axis, 0, 1)
    return lab.squash(small.expand(context.meta(node.name).shape))


def _reduction(context: Context, node: Node) -> Any:
    bound = bind(node)
    labels = context.labels(bound.get("self", Ref(node.uses[0])).name)
    dims = bound.get("dim")
    dims = tuple(range(labels.dim())) if dims is None or dims == () else dims if isinstance(dims, tuple) else (dims,)
    axes = sorted({axis % labels.dim() for axis in dims})
    if set(axes) & set(lab.varying(labels)):
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


def _softmax(context: Context, node: Node) -> Tensor:
    labels = context.labels(node.uses[0])
    if bind(node)["dim"] % labels.dim() in lab.varying(labels):
        context.freeze(labels, f"{node.op.split('.')[1]} couples it along the axis that carries it in {node.module or node.name}")
    return labels


def _frozen_norm(context: Context, node: Node) -> Any:
    for name in node.uses:
        if isinstance(context.metas.get(name), TensorMeta):
            context.freeze(context.labels(name), f"{node.op.split('.')[1]} computes statistics over it in {node.module or node.name}")
    return _nothing(context, node)


def _embedding(context: Context, node: Node) -> Tensor:
    weight = bind(node)["weight"].name
    shape = context.meta(weight).shape
    out = context.atoms.fresh(shape[1], node.module or weight)
    rows = np.zeros(shape[0], np.int64)
    context.tie_axes(weight, lab.along(rows, shape, 0), lab.along(out, shape, 1))
    result = context.meta(node.name).shape
    return lab.along(out, result, len(result) - 1)


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
    k.Convolution: _convolution,
    k.Linear: _linear,
    k.MatMul: _opaque,
    k.Attention: _opaque,
    k.Embedding: _embedding,
    k.BatchNorm: _batch_norm,
    k.StatisticsNorm: _frozen_norm,
    k.Pool: _pool,
    k.Reduction: _reduction,
    k.Softmax: _softmax,
    k.Factory: _nothing,
    k.Scalar: _scalar,
    k.Opaque: _opaque,
}
