"""How factors of channels pass through each class of ops: one rule per kind; kinds without a rule fix what they read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from gossamer.coupling import labels as lab
from gossamer.coupling.movement import ORDERLY, PADS, move
from gossamer.coupling.scaling import Part, ScaleContext, Scaling, fresh_context
from gossamer.coupling.unknown import nothing
from gossamer.program.clamps import clip_limits
from gossamer.program.graph import Node, Ref
from gossamer.program.ops import bind, op_of
from gossamer.program.ops import kinds as k
from gossamer.program.program import Program
from gossamer.program.shapes import TensorMeta, infer_shapes

_HOMOGENEOUS = frozenset(f"aten.{name}.default" for name in "relu leaky_relu abs neg prelu dropout feature_dropout".split())
_SAME = frozenset(
    f"aten.{name}" for name in "dropout.default feature_dropout.default to.dtype to.device _to_copy.default type_as.default".split()
)
_SUMS = frozenset(
    f"aten.{name}" for name in "add.Tensor sub.Tensor rsub.Tensor maximum.default minimum.default max.other min.other".split()
)
_PRODUCTS = frozenset(f"aten.{name}" for name in "mul.Tensor mul.Scalar div.Tensor div.Scalar".split())
_MOVES = ORDERLY | frozenset(
    f"aten.{name}"
    for name in (
        "slice.Tensor narrow.default select.int index_select.default index.Tensor roll.default flip.default repeat.default "
        "tile.default pixel_shuffle.default pixel_unshuffle.default channel_shuffle.default reshape_as.default view_as.default "
        "swapaxes.default _unsafe_view.default unfold.default"
    ).split()
)
_MEANS = frozenset(f"aten.{name}" for name in "mean.dim mean.default sum.dim_IntList sum.default amax.default amin.default".split())


def find_scaling(program: Program) -> Scaling:
    """The channels of a float program that can be scaled, and what follows them. Reads only; evaluation mode is assumed.

    Source: the equivalences of Nagel et al. 2019, arXiv:1906.04721, and Xiao et al. 2022, arXiv:2211.10438, for whole graphs.
    """
    metas = infer_shapes(program, batch=1)
    context = fresh_context(program, metas)
    for node in program.graph.nodes:
        rule = _RULES.get(type(op_of(node).kind), _stop)
        context.values[node.name] = rule(context, node)
        context.note_concrete(node)
    for name in program.graph.outputs:
        if name in context.values:
            context.fix(context.labels(name), "it reaches the network's output")
        else:
            context.odd.add(context.alias[name])
    return context.finish()


def _where(node: Node) -> str:
    return f"{op_of(node).onnx or node.op} in {node.module or node.name}"


def _stop(context: ScaleContext, node: Node) -> Any:
    """Whatever is read keeps its factor of 1."""
    for name in node.uses:
        value = context.values.get(name)
        items = value if isinstance(value, tuple) else (value,) if isinstance(value, Tensor) else ()
        for labels in items:
            if isinstance(labels, Tensor):
                context.fix(labels, f"{_where(node)} is not homogeneous")
        if name in context.alias:
            context.odd.add(context.alias[name])
    return nothing(context, node)


def _carries(labels: Tensor) -> bool:
    return bool(lab.essence(labels).any())


def _pointwise(context: ScaleContext, node: Node) -> Any:
    meta = context.metas[node.name]
    if not isinstance(meta, TensorMeta) or not meta.dtype.is_floating_point:
        return _stop(context, node)
    if node.op in _SUMS:
        return _sum(context, node, meta.shape)
    if node.op in _PRODUCTS:
        return _product(context, node, meta.shape)
    limits = clip_limits(node)
    homogeneous = limits is not None and all(limit is None or limit == 0 for limit in limits)
    if not (homogeneous or node.op in _HOMOGENEOUS | _SAME):
        return _stop(context, node)
    labels = context.labels(node.uses[0])
    for other in node.uses[1:]:  # a slope of PReLU, a model of the type
        context.fix(context.labels(other), _where(node))
    if node.op not in _SAME:
        context.keep_still(labels)
    return labels


def _sum(context: ScaleContext, node: Node, shape: tuple[int, ...]) -> Tensor:
    """Summands share their factors; a summand from the state follows."""
    bound = list(bind(node).values())[:2]
    carried = [context.values[arg.name] for arg in bound if isinstance(arg, Ref) and isinstance(context.values.get(arg.name), Tensor)]
    wide = [lab.squash(labels.expand(shape)) for labels in carried]
    for labels in wide:
        context.keep_still(labels)
    if len(wide) == 2:
        return context.equate(wide[0], wide[1], f"{_where(node)} joins it with what keeps its channels")
    other = next((arg for arg in bound if not (isinstance(arg, Ref) and arg.name in context.values)), None)
    if not wide or not _carries(wide[0]):
        return _stop(context, node)  # type: ignore[no-any-return]
    if isinstance(other, Ref) and context.is_state(other) and context.meta(other.name).dtype.is_floating_point:
        state = context.meta(other.name).shape
        context.use(other.name, Part(_folded(context, wide[0], state, _where(node)), 1, additive=True))
        return wide[0]
    return _stop(context, node)  # type: ignore[no-any-return]


def _folded(context: ScaleContext, wide: Tensor, shape: tuple[int, ...], reason: str) -> Tensor:
    """Labels of what is broadcast to `wide`: one factor for all positions that share an element. Shape: as given."""
    labels = wide
    for axis in range(wide.dim()):
        own = axis - (wide.dim() - len(shape))
        if (own < 0 or shape[own] == 1) and labels.shape[axis] > 1:
            essence = lab.essence(labels.movedim(axis, 0))
            if essence.shape[0] > 1:
                context.along(lab.tensor(essence.reshape(essence.shape[0], -1)), 1, reason)
            labels = labels.narrow(axis, 0, 1)
    return lab.squash(labels.reshape(shape))


def _product(context: ScaleContext, node: Node, shape: tuple[int, ...]) -> Tensor:
    """The factor of one operand passes; that of the other, or of a divisor, is 1."""
    table = _affine(context, node, shape)
    if table is not None:  # the last step of a norm that is written out
        out = context.atoms.fresh(shape[-1], node.name)
        context.made[node.name] = out
        context.keep_still(out)
        context.use(table, Part(lab.along(out, (shape[-1],), 0), 1))
        return lab.along(out, shape, len(shape) - 1)
    operands = [(name, lab.squash(context.labels(name).expand(shape))) for name in node.uses if isinstance(context.metas[name], TensorMeta)]
    if node.op.startswith("aten.div") and (len(operands) == 2 or not isinstance(node.args[0], Ref)):
        context.fix(operands[-1][1], f"{_where(node)} divides by it")
        operands = operands[:1] if isinstance(node.args[0], Ref) else []
    if not operands:
        return lab.empty(shape)
    carrying = [item for item in operands if _carries(item[1])] or operands[:1]
    if len(carrying) == 2 and carrying[0][0] == carrying[1][0]:  # a square
        context.fix(carrying[0][1], f"{_where(node)} multiplies it with itself")
        return lab.empty(shape)
    kept = max(carrying, key=lambda item: context.meta(item[0]).numel)
    for name, labels in carrying:
        context.keep_still(labels)
        if name != kept[0]:
            context.fix(labels, f"{_where(node)} multiplies it with another value")
    return kept[1]


def _affine(context: ScaleContext, node: Node, shape: tuple[int, ...]) -> str | None:
    """The name of the state vector over the last axis by which a value is multiplied that has no factors, as far as is known."""
    tables = [name for name in node.uses if name in context.alias and context.meta(name).shape == shape[-1:] and shape[-1] > 1]
    values = [name for name in node.uses if name in context.values]
    if len(tables) != 1 or len(values) != 1 or len(shape) < 2 or not node.op.startswith("aten.mul"):
        return None
    return tables[0] if context.stays(context.labels(values[0])) else None


def _movement(context: ScaleContext, node: Node) -> Any:
    names = [name for name in node.uses if name not in context.concrete]
    sources = {name: context.values[name] if name in context.values else context.labels(name) for name in names}
    tensors = [item for value in sources.values() for item in (value if isinstance(value, tuple) else (value,)) if isinstance(item, Tensor)]
    if not any(map(_carries, tensors)):
        return nothing(context, node)
    if node.op in PADS:
        return _pad(context, node, tensors[0])
    meta = context.metas[names[-1]]
    if node.op not in _MOVES or (len(names) > 1 and isinstance(meta, TensorMeta) and not meta.dtype.is_floating_point):
        return _stop(context, node)
    return move(context, node, sources)


def _pad(context: ScaleContext, node: Node, labels: Tensor) -> Tensor:
    bound = bind(node)
    amounts = bound["pad"]
    padded = {labels.dim() - 1 - place // 2 for place, amount in enumerate(amounts) if amount != 0}
    zeros = bound.get("mode", "constant") == "constant" and not bound.get("value")
    if not zeros or padded & set(lab.varying(labels)):
        return _stop(context, node)  # type: ignore[no-any-return]
    context.keep_still(labels)
    for axis in padded:
        labels = labels.narrow(axis, 0, 1)
    return lab.squash(labels.expand(context.meta(node.name).shape))


def _convolution(context: ScaleContext, node: Node) -> Any:
    """Every output channel has a factor of its own, those of depthwise convolutions, too."""
    bound = bind(node)
    weight, transposed = bound["weight"], op_of(node).kind == k.Convolution(transposed=True)
    shape, data = context.meta(node.name).shape, context.labels(bound["input"].name)
    if not context.is_state(weight) or len(shape) != len(context.meta(weight.name).shape):
        return _stop(context, node)
    channels = context.along(data, 1, _where(node))
    if transposed or any(bound["padding"] if isinstance(bound["padding"], tuple) else (bound["padding"] != "valid",)):
        context.keep_still(channels)
    out = _outputs(context, node, shape[1], bound["bias"])
    size, groups = context.meta(weight.name).shape, bound["groups"]
    inside, outside = channels.reshape(groups, -1), out.reshape(groups, -1)
    pairs = (groups, outside.shape[1], inside.shape[1])
    made = np.broadcast_to(outside[:, :, None], pairs)
    taken = np.broadcast_to(inside[:, None, :], pairs)
    if transposed:  # (I, O / groups, *K)
        made, taken = (part.swapaxes(1, 2) for part in (made, taken))
    context.use(weight.name, *(Part(_over(part.reshape(size[:2]), size), power) for part, power in ((made, 1), (taken, -1))))
    context.read[node.name] = channels
    return lab.along(out, shape, 1)


def _over(matrix: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    return lab.squash(lab.tensor(matrix).reshape(*matrix.shape, *[1] * (len(shape) - 2)).expand(shape))


def _linear(context: ScaleContext, node: Node) -> Any:
    bound = bind(node)
    weight, shape = bound["weight"], context.meta(node.name).shape
    if not context.is_state(weight):
        return _stop(context, node)
    channels = context.along(context.labels(bound["input"].name), -1, _where(node))
    out = _outputs(context, node, shape[-1], bound["bias"])
    size = context.meta(weight.name).shape
    context.use(weight.name, Part(lab.along(out, size, 0), 1), Part(lab.along(channels, size, 1), -1))
    context.read[node.name] = channels
    return lab.along(out, shape, len(shape) - 1)


def _outputs(context: ScaleContext, node: Node, count: int, bias: Any) -> np.ndarray:
    """Labels of what a layer or norm makes, followed by its bias."""
    out = context.atoms.fresh(count, node.name)
    context.made[node.name] = out
    if context.is_state(bias):
        context.use(bias.name, Part(lab.along(out, (count,), 0), 1, additive=True))
    else:
        context.keep_still(out)
        if bias is not None:
            context.fix(context.labels(bias.name), f"it is the bias of {node.module or node.name}")
            context.fix(out, f"the bias of {node.module or node.name} is computed")
    return out


def _embedding(context: ScaleContext, node: Node) -> Any:
    weight, shape = bind(node)["weight"], context.meta(node.name).shape
    if not context.is_state(weight):
        return _stop(context, node)
    out = context.atoms.fresh(shape[-1], node.name)
    context.made[node.name] = out
    context.use(weight.name, Part(lab.along(out, context.meta(weight.name).shape, 1), 1, additive=True))
    return lab.along(out, shape, len(shape) - 1)


def _batch_norm(context: ScaleContext, node: Node) -> Any:
    """The weight takes the factor back, so that running variances stay: exact with running statistics."""
    bound = bind(node)
    shape = context.meta(node.name).shape
    if not all(context.is_state(bound[key]) for key in ("weight", "bias", "running_mean")):
        return _stop(context, node)
    channels = context.along(context.labels(bound["input"].name), 1, _where(node))
    out = _outputs(context, node, shape[1], bound["bias"])
    context.keep_still(channels)
    context.use(bound["running_mean"].name, Part(lab.along(channels, (shape[1],), 0), 1, additive=True))
    context.use(bound["weight"].name, *(Part(lab.along(part, (shape[1],), 0), power) for part, power in ((out, 1), (channels, -1))))
    context.odd.add(context.alias[bound["running_var"].name])
    return lab.along(out, shape, 1)


def _statistics_norm(context: ScaleContext, node: Node) -> Any:
    """What goes into the statistics keeps its factor; the affine parameters make channels of their own."""
    bound, shape = bind(node), context.meta(node.name).shape
    context.fix(context.labels(bound["input"].name), f"{_where(node)} takes statistics over it")
    axis = len(shape) - 1 if "normalized_shape" in bound else 1
    weight = bound["weight"]
    if not context.is_state(weight) or context.meta(weight.name).shape != (shape[axis],):
        return _stop(context, node)
    out = _outputs(context, node, shape[axis], bound.get("bias"))
    context.use(weight.name, Part(lab.along(out, (shape[axis],), 0), 1))
    return lab.along(out, shape, axis)


def _pool(context: ScaleContext, node: Node) -> Any:
    kind = op_of(node).kind
    assert isinstance(kind, k.Pool)
    labels, meta = context.labels(node.uses[0]), context.metas[node.name]
    context.keep_still(labels)
    for axis in range(labels.dim() - kind.dims, labels.dim()):
        labels = _merged(context, labels, axis, _where(node))
    if isinstance(meta, tuple):  # with the places of the maxima
        return tuple(lab.squash(labels.expand(item.shape)) if item.dtype.is_floating_point else lab.empty(item.shape) for item in meta)
    return lab.squash(labels.expand(context.meta(node.name).shape))


def _merged(context: ScaleContext, labels: Tensor, axis: int, reason: str) -> Tensor:
    """One factor along an axis, which is cut to length 1."""
    essence = lab.essence(labels.movedim(axis, 0))
    if essence.shape[0] > 1:
        context.along(lab.tensor(essence.reshape(essence.shape[0], -1)), 1, reason)
    return labels.narrow(axis, 0, 1)


def _reduction(context: ScaleContext, node: Node) -> Any:
    if node.op not in _MEANS:
        return _stop(context, node)
    bound, labels = bind(node), context.labels(node.uses[0])
    context.keep_still(labels)
    dims = bound.get("dim")
    dims = tuple(range(labels.dim())) if dims is None or dims == () else dims if isinstance(dims, tuple) else (dims,)
    axes = sorted({axis % labels.dim() for axis in dims})
    for axis in axes:
        labels = _merged(context, labels, axis, _where(node))
    for axis in reversed(axes) if not bound.get("keepdim", False) else ():
        labels = labels.squeeze(axis)
    return lab.squash(labels)


def _matmul(context: ScaleContext, node: Node) -> Any:
    """Where only one side carries factors, those along the axis that stays pass."""
    kind = op_of(node).kind
    assert isinstance(kind, k.MatMul)
    bound, shape = bind(node), context.meta(node.name).shape
    left, right = context.labels(bound[kind.left].name), context.labels(bound[kind.right].name)
    if _carries(left) and not _carries(right) and left.dim() > 1 and right.dim() > 1:
        return _mix(context, node, left, -1, shape)
    if _carries(right) and not _carries(left) and left.dim() > 1 and right.dim() > 1:
        return _mix(context, node, right, -2, shape)
    return _stop(context, node)


def _mix(context: ScaleContext, node: Node, labels: Tensor, axis: int, shape: tuple[int, ...]) -> Tensor:
    context.keep_still(labels)
    return lab.squash(_merged(context, labels, axis % labels.dim(), _where(node)).expand(shape))


def _attention(context: ScaleContext, node: Node) -> Any:
    """Weights of attention sum values, whose factors pass; queries and keys keep theirs."""
    bound, shape = bind(node), context.meta(node.name).shape
    for key in ("query", "key", "attn_mask"):
        if isinstance(bound[key], Ref):
            context.fix(context.labels(bound[key].name), f"{_where(node)} multiplies queries with keys")
    value = context.labels(bound["value"].name)
    if bound["enable_gqa"] and value.shape[-3] not in (1, shape[-3]):
        value = lab.squash(value.repeat_interleave(shape[-3] // value.shape[-3], dim=-3))
    return _mix(context, node, value, -2, shape)


def _glu(context: ScaleContext, node: Node) -> Any:
    bound = bind(node)
    passed, gate = context.labels(bound["self"].name).chunk(2, bound["dim"])
    context.fix(lab.squash(gate), f"{_where(node)} is not homogeneous")
    context.keep_still(passed)
    return lab.squash(passed)


def _scalar(context: ScaleContext, node: Node) -> Any:
    if node.op == "scalar.getitem" and isinstance(node.args[0], Ref) and isinstance(context.values.get(node.args[0].name), tuple):
        return context.values[node.args[0].name][node.args[1]]
    return nothing(context, node)


_RULES: Mapping[type, Callable[[ScaleContext, Node], Any]] = {
    k.Pointwise: _pointwise,
    k.ChannelScale: _pointwise,
    k.Movement: _movement,
    k.Convolution: _convolution,
    k.Linear: _linear,
    k.MatMul: _matmul,
    k.Attention: _attention,
    k.Embedding: _embedding,
    k.BatchNorm: _batch_norm,
    k.StatisticsNorm: _statistics_norm,
    k.Pool: _pool,
    k.Reduction: _reduction,
    k.Glu: _glu,
    k.Factory: nothing,
    k.Scalar: _scalar,
}
