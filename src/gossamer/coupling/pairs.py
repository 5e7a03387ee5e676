"""Values with atoms of their own along two axes: products of channels with channels, hidden layers that mix positions.

The rules know one label tensor per value. Where they treat the axes apart, they run once for each; elsewhere only the
first stays removable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from gossamer.coupling import labels as lab
from gossamer.coupling.context import Context
from gossamer.coupling.labels import Pair
from gossamer.program.graph import Node
from gossamer.program.ops import bind, op_of
from gossamer.program.ops import kinds as k
from gossamer.program.shapes import TensorMeta

Rule = Callable[[Context, Node], Any]


def apply_rule(context: Context, node: Node, rule: Rule) -> Any:
    """The rule's result for a node, whether what it reads carries atoms along one axis or along two."""
    pairs = {name: value for name in dict.fromkeys(node.uses) if isinstance(value := context.values.get(name), Pair)}
    kind = op_of(node).kind
    if not pairs or isinstance(kind, (k.MatMul, k.Linear, k.Scalar)):
        return rule(context, node)
    others = [name for name in dict.fromkeys(node.uses) if name not in pairs and isinstance(context.metas.get(name), TensorMeta)]
    if isinstance(kind, k.Pointwise):
        return _twice(context, node, rule, pairs, _sides(context, node, pairs, others))
    apart = isinstance(kind, (k.Movement, k.Softmax, k.Reduction)) or "normalized_shape" in _arguments(node)
    if apart and not (others and isinstance(kind, k.Movement)):
        return _twice(context, node, rule, pairs, {})
    for name in pairs:
        context.labels(name)
    return rule(context, node)


def _arguments(node: Node) -> Mapping[str, Any]:
    return bind(node) if isinstance(op_of(node).kind, k.StatisticsNorm) else {}


def _sides(context: Context, node: Node, pairs: Mapping[str, Pair], others: list[str]) -> dict[str, int | None]:
    """For each other operand the axis of the pair that it carries: 0, 1, or None for one that must stay as it is."""
    meta = context.metas[node.name]
    assert isinstance(meta, TensorMeta)
    axes: tuple[set[int], set[int]] = set(), set()
    for pair in pairs.values():
        for found, side in zip(axes, (pair.first, pair.second), strict=True):
            found.update(_last(side, meta.shape))
    sides: dict[str, int | None] = {}
    for name in others:
        own = lab.squash(context.labels(name).expand(meta.shape))
        carried = [bool(found & set(lab.varying(own))) for found in axes]
        sides[name] = None if all(carried) else int(carried[1])
        if all(carried):
            context.freeze(own, f"it meets a product of two axes in {node.module or node.name}")
    return sides


def _last(side: Tensor, shape: tuple[int, ...]) -> list[int]:
    return list(lab.varying(lab.squash(side.expand(shape)))[-1:])


def _twice(context: Context, node: Node, rule: Rule, pairs: Mapping[str, Pair], sides: Mapping[str, int | None]) -> Any:
    """Run the rule for each axis, with nothing carried along the other."""
    before = {name: context.values[name] for name in (*pairs, *sides) if name in context.values}
    results = []
    for side in (0, 1):
        for name, pair in pairs.items():
            context.values[name] = pair.second if side else pair.first
        for name, own in sides.items():
            if own != side:
                context.values[name] = lab.empty(context.meta(name).shape)
        known = len(context.renormalised)
        results.append(rule(context, node))
        for name in sides:
            context.values.pop(name, None)
        context.values.update(before)
        if side and len(context.renormalised) > known and any(name == node.name for name, _ in context.renormalised[:known]):
            del context.renormalised[known:]  # statistics over both axes: the second stays
            for pair in pairs.values():
                context.freeze(pair.second, f"{node.module or node.name} computes statistics over two axes that could be pruned")
    return join(context, *results)


def join(context: Context, first: Any, second: Any) -> Any:
    """Both label tensors as one value; only one of them where the other carries nothing that could be removed."""
    if isinstance(first, tuple):
        return tuple(join(context, one, two) for one, two in zip(first, second, strict=True))
    if not isinstance(first, Tensor) or context.stays(second):
        return first
    return second if context.stays(first) else Pair(first, second)
