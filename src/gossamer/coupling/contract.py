"""Labels through layers that contract an axis: convolution, linear, matrix product, attention, embedding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from gossamer.coupling import labels as lab
from gossamer.coupling.context import Context, feature
from gossamer.coupling.heads import head_groups, head_mask, head_product
from gossamer.program.graph import Node
from gossamer.program.ops import bind, op_of
from gossamer.program.ops import kinds as k


def convolution(context: Context, node: Node) -> Tensor:
    """Output channels are new atoms, input channels meet the weight's second axis; depthwise ones pass through."""
    bound = bind(node)
    transposed = op_of(node).kind == k.Convolution(transposed=True)
    shape = context.meta(node.name).shape
    data = context.labels(bound["input"].name)
    groups = bound["groups"]
    if context.meta(bound["input"].name).shape != data.shape or any(axis > 1 for axis in lab.varying(data)):
        context.freeze(data, f"{node.module} convolves along the axis that carries it")
        data = lab.empty(data.shape)
    channels = feature(context, data, 1)
    weight = bound["weight"]
    if weight.name in context.values:
        return _computed_weight(context, node, channels, shape)
    weight_shape = context.meta(weight.name).shape
    out_count = shape[1]
    owner = _owner(context, node, weight.name)
    per_group = out_count // groups
    if groups > 1 and groups == len(channels):  # depthwise: outputs go with their input
        out = np.repeat(channels, per_group)
        context.blocks.append(lab.tensor(out))
    else:
        out = context.atoms.fresh(out_count, owner)
        inside, outside = channels.reshape(groups, -1), out.reshape(groups, -1)
        if groups > 1 and not head_groups(context, inside, outside):
            context.blocks += [lab.tensor(outside), lab.tensor(inside)]
    blocked = np.broadcast_to(channels.reshape(groups, 1, -1), (groups, per_group, len(channels) // groups))
    if transposed:  # weight (I, O/groups, *K)
        taken = lab.along(channels, weight_shape, 0)
        per_input = np.broadcast_to(out.reshape(groups, 1, per_group), (groups, len(channels) // groups, per_group))
        made = _two_axes(per_input.reshape(len(channels), per_group), weight_shape)
    else:
        taken = lab.along(channels, weight_shape, 1) if groups == 1 else _two_axes(blocked.reshape(out_count, -1), weight_shape)
        made = lab.along(out, weight_shape, 0)
    context.tie_axes(weight.name, made, taken)
    context.readers[weight.name] = taken
    context.tie_vector(bound["bias"], out)
    return lab.along(out, shape, 1)


def _owner(context: Context, node: Node, weight: str) -> str:
    """The module that a layer is in; of a module that multiplies with several weights itself (nn.MultiheadAttention), the weight for all but the first."""
    if not node.module:
        return weight.removesuffix(".weight")
    first = context.first_weights.setdefault(node.module, weight)
    return node.module if first == weight else weight.removesuffix(".weight")


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
    count = context.meta(bind(node)["weight"].name).shape[0]
    context.freeze(context.atoms.fresh(count, node.module or node.name), reason)
    return lab.empty(shape)


def linear(context: Context, node: Node) -> lab.Labels:
    """Output features are new atoms, input features meet the weight's columns. Atoms of another axis pass through."""
    bound = bind(node)
    shape = context.meta(node.name).shape
    data, beside = _sides(context, bound["input"].name, -1)
    weight = bound["weight"]
    if weight.name in context.values:
        context.labels(bound["input"].name)
        return _computed_weight(context, node, feature(context, data, -1), shape)
    weight_shape = context.meta(weight.name).shape
    out = context.atoms.fresh(weight_shape[0], _owner(context, node, weight.name))
    passes = lab.varying(data) != () and data.dim() - 1 not in lab.varying(data)
    taken = np.zeros(weight_shape[1], np.int64) if passes else feature(context, data, -1)
    factors = (lab.along(out, weight_shape, 0), lab.along(taken, weight_shape, 1))
    context.tie_axes(weight.name, *factors)
    context.readers[weight.name] = factors[1]
    context.tie_vector(bound["bias"], out)
    made = lab.along(out, shape, len(shape) - 1)
    through = data if passes else beside
    return made if through is None else lab.Pair(lab.squash(through.narrow(-1, 0, 1).expand(shape)), made)


def _sides(context: Context, name: str, axis: int) -> tuple[Tensor, Tensor | None]:
    """Of a value, what it carries along an axis that is contracted, and what it carries along another one beside it."""
    value = context.values.get(name)
    if isinstance(value, lab.Pair):
        inner = [side for side in lab.sides(value) if axis % value.dim() in lab.varying(side)]
        if len(inner) == 1:
            return inner[0], value.second if inner[0] is value.first else value.first
    return context.labels(name), None


def embedding(context: Context, node: Node) -> Tensor:
    """The columns of the table are new atoms; its rows stay."""
    weight = bind(node)["weight"].name
    shape = context.meta(weight).shape
    out = context.atoms.fresh(shape[1], _owner(context, node, weight))
    rows = np.zeros(shape[0], np.int64)
    context.tie_axes(weight, lab.along(rows, shape, 0), lab.along(out, shape, 1))
    result = context.meta(node.name).shape
    return lab.along(out, result, len(result) - 1)


def matmul(context: Context, node: Node) -> lab.Labels:
    """(*, M, K) x (*, K, N): what is carried along K is contracted, everything else passes through."""
    kind = op_of(node).kind
    assert isinstance(kind, k.MatMul)
    bound = bind(node)
    (left, rows), (right, columns) = _sides(context, bound[kind.left].name, -1), _sides(context, bound[kind.right].name, -2)
    shape = context.meta(node.name).shape
    if left.dim() < 2 or right.dim() < 2:
        return _give_up(context, node, (left, right), shape)
    context.contracted[node.name] = bound[kind.left].name
    result = _product(context, node, left, right.transpose(-1, -2), shape)
    for beside, axis in ((rows, -1), (columns, -2)):
        if beside is not None:
            passed = lab.squash(beside.narrow(axis, 0, 1).expand(shape))
            result = _beside(context, node, result, passed)
    return result


def _beside(context: Context, node: Node, result: lab.Labels, passed: Tensor) -> lab.Labels:
    """A result that carries one more axis; of three, the last to come stays."""
    if isinstance(result, lab.Pair):
        context.freeze(passed, f"{node.module or node.name} carries three axes that could be pruned")
        return result
    return passed if context.stays(result) else lab.Pair(result, passed)


def einsum(context: Context, node: Node) -> lab.Labels:
    """Two operands that a matrix product can stand for; whatever other sums touch stays."""
    bound = bind(node)
    terms, _, out = bound["equation"].replace(" ", "").partition("->")
    letters = terms.split(",")
    carriers = tuple(context.labels(ref.name) for ref in bound["tensors"])
    shape = context.meta(node.name).shape
    shared = [letter for letter in letters[0] if len(letters) == 2 and letter in letters[1]]
    inner = [letter for letter in shared if letter not in out]
    outer = [[letter for letter in term if letter not in shared] for term in letters]
    batch = [letter for letter in shared if letter in out]
    made = [*batch, *(letter for own in outer for letter in own)]
    plain = all(len(set(term)) == len(term) and term.isalpha() for term in (*letters, out))
    if not plain or len(letters) != 2 or len(inner) != 1 or sorted(made) != sorted(out):
        return _give_up(context, node, carriers, shape)
    size = dict(zip(out, shape, strict=True))
    rows, columns = (math.prod(size[letter] for letter in own) for own in outer)
    left, right = (
        lab.squash(labels.permute([term.index(letter) for letter in (*batch, *own, *inner)]).flatten(len(batch), -2))
        if own
        else lab.squash(labels.permute([term.index(letter) for letter in (*batch, *inner)]).unsqueeze(-2))
        for term, own, labels in zip(letters, outer, carriers, strict=True)
    )
    context.contracted[node.name] = bound["tensors"][0].name
    result = _product(context, node, left, right, [*(size[letter] for letter in batch), rows, columns])
    sizes, order = [size[letter] for letter in made], [made.index(letter) for letter in out]
    return lab.each(result, lambda labels: lab.squash(labels.reshape(sizes).permute(order)))


def attention(context: Context, node: Node) -> Tensor:
    """softmax(q k^T) v: queries and keys are contracted over their last axis, values pass through."""
    bound = bind(node)
    query, key, value = (context.labels(bound[name].name) for name in ("query", "key", "value"))
    mask = bound["attn_mask"]
    if mask is not None and context.heads is None:
        context.freeze(context.labels(mask.name), f"it is the mask of attention in {node.module or node.name}")
    shape = context.meta(node.name).shape
    if bound["enable_gqa"]:
        key, value = (_repeat_heads(labels, query.shape[-3]) for labels in (key, value))
    context.contracted[node.name] = bound["query"].name
    scores = _product(context, node, query, key, (*shape[:-1], key.shape[-2]))
    if isinstance(scores, lab.Pair):
        context.freeze(scores, f"attention in {node.module or node.name} couples the axes that carry it")
        scores = lab.empty(scores.shape)
    if context.heads is not None:
        scores = scores if mask is None else head_mask(context, node, scores, context.labels(mask.name))
        if not any(axis >= scores.dim() - 2 for axis in lab.varying(scores)):
            mixed = _product(context, node, scores, value.transpose(-1, -2), shape)
            assert isinstance(mixed, Tensor)  # scores carry heads only, so nothing lies beside what values carry
            return mixed
    context.freeze(scores, f"attention in {node.module or node.name} couples the axis that carries it")
    return _through(context, node, value, shape, along=-2)


def _repeat_heads(labels: Tensor, heads: int) -> Tensor:
    """One key and value for all queries broadcasts; otherwise each serves as many queries in a row."""
    if labels.shape[-3] == 1:
        return labels
    return lab.squash(labels.repeat_interleave(heads // labels.shape[-3], dim=-3))


def _product(context: Context, node: Node, left: Tensor, right: Tensor, shape: Sequence[int]) -> lab.Labels:
    """Labels of left @ right^T for left (*, M, K) and right (*, N, K)."""
    if (heads := head_product(context, node, left, right, shape)) is not None:
        return heads
    last = left.dim() - 1 in lab.varying(left), right.dim() - 1 in lab.varying(right)
    if all(last):
        ours, theirs = np.broadcast_arrays(_inner(context, left), _inner(context, right))
        context.atoms.couple(ours, theirs, f"{node.module or node.name} contracts it with what cannot shrink")
        return lab.empty(shape)
    for labels, varies in ((left, last[0]), (right, last[1])):
        if varies:
            context.freeze(labels, f"{node.module or node.name} contracts it with what cannot shrink")
    passing = [
        lab.empty(shape) if last[0] else lab.squash(left.narrow(-1, 0, 1).expand(tuple(shape))),
        lab.empty(shape) if last[1] else lab.squash(right.narrow(-1, 0, 1).transpose(-1, -2).expand(tuple(shape))),
    ]
    carrying = [labels for labels in passing if lab.varying(labels) or bool(lab.essence(labels).any())]
    if len(carrying) == 2:
        outer = [labels for labels in carrying if max(lab.varying(labels), default=0) >= len(shape) - 2]
        if [max(lab.varying(labels), default=0) for labels in carrying] == [len(shape) - 2, len(shape) - 1]:
            return lab.Pair(carrying[0], carrying[1])
        if len(outer) != 1:
            return _give_up(context, node, tuple(carrying), shape)
        _give_up(context, node, tuple(labels for labels in carrying if labels is not outer[0]), shape)
        return outer[0]
    if carrying and _is_stopped(carrying[0], right if carrying[0] is passing[0] else left):
        return _give_up(context, node, tuple(carrying), shape)
    return carrying[0] if carrying else lab.empty(shape)


def _is_stopped(labels: Tensor, other: Tensor) -> bool:
    """Whether labels of the result lie along a batch axis that the other operand fills without carrying them."""
    axis = max(lab.varying(labels), default=labels.dim())
    own = axis - (labels.dim() - other.dim())
    return axis < labels.dim() - 2 and own >= 0 and other.shape[own] > 1


def _inner(context: Context, labels: Tensor) -> np.ndarray:
    """One label per batch position and contracted position, merged over the rows: (*, K)."""
    essence = lab.essence(labels)
    context.atoms.merge_along(essence, essence.ndim - 2, "it meets values that cannot shrink in a product")
    inner: np.ndarray = essence.max(axis=-2)
    return inner


def _through(context: Context, node: Node, labels: Tensor, shape: Sequence[int], along: int) -> Tensor:
    """Labels that pass a mixing of the positions of one axis."""
    if along % labels.dim() in lab.varying(labels):
        context.freeze(labels, f"{node.module or node.name} mixes the axis that carries it")
        return lab.empty(shape)
    return lab.squash(labels.narrow(along, 0, 1).expand(tuple(shape)))


def _give_up(context: Context, node: Node, carriers: tuple[Tensor, ...], shape: Sequence[int]) -> Tensor:
    for labels in carriers:
        context.freeze(labels, f"{node.module or node.name} multiplies two values that carry different axes")
    return lab.empty(shape)
