"""Rewriting the sizes that a graph holds as literals, from what stays of each value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from gossamer.coupling import Analysis
from gossamer.coupling import labels as lab
from gossamer.coupling.kept import axis_keeps, kept_shape
from gossamer.program.graph import Arg, Node, Ref
from gossamer.program.ops import bind, op_of, with_arguments
from gossamer.program.ops.kinds import Convolution


def resize(node: Node, analysis: Analysis, table: np.ndarray) -> Node:
    """The same node with its literal sizes as they are after the removal."""
    rule = _RULES.get(node.op)
    if rule is None and isinstance(op_of(node).kind, Convolution):
        rule = _convolution
    return node if rule is None else rule(node, analysis, table)


def _labels(analysis: Analysis, name: str) -> Any:
    return analysis.values[name]


def _output_sizes(argument: str) -> Callable[[Node, Analysis, np.ndarray], Node]:
    def rule(node: Node, analysis: Analysis, table: np.ndarray) -> Node:
        labels = _labels(analysis, node.name)
        sizes = bind(node)[argument]
        kept = kept_shape(labels, table)
        if kept == tuple(labels.shape):
            return node
        offset = labels.dim() - len(sizes)
        fresh = list(sizes)
        for axis, size in enumerate(sizes):
            if kept[axis + offset] == labels.shape[axis + offset] or size == -1:
                continue
            fresh[axis] = kept[axis + offset] if isinstance(size, int) else -1  # a product of the batch size: what is left over
        return with_arguments(node, **{argument: tuple(fresh)})

    return rule


def _unflatten(node: Node, analysis: Analysis, table: np.ndarray) -> Node:
    bound = bind(node)
    labels = _labels(analysis, node.name)
    first = bound["dim"] % (labels.dim() - len(bound["sizes"]) + 1)
    kept = kept_shape(labels, table)[first : first + len(bound["sizes"])]
    return with_arguments(node, sizes=tuple(size if size == -1 else new for size, new in zip(bound["sizes"], kept, strict=True)))


def _split(node: Node, analysis: Analysis, table: np.ndarray) -> Node:
    """Any way of splitting becomes one with explicit sizes when its axis shrinks."""
    bound = bind(node)
    parts: tuple[lab.Labels, ...] = _labels(analysis, node.name)
    source = bound["self"].name
    axis = bound["dim"] % parts[0].dim()
    sizes = tuple(kept_shape(part, table)[axis] for part in parts)
    if sizes == tuple(part.shape[axis] for part in parts):
        return node
    return replace(node, op="aten.split_with_sizes.default", args=(Ref(source), sizes, axis), kwargs=())


def _slice(node: Node, analysis: Analysis, table: np.ndarray) -> Node:
    bound = bind(node)
    labels = _source_labels(analysis, bound["self"])
    axis = bound["dim"] % labels.dim()
    vector = axis_keeps(labels, table).get(axis)
    if vector is None or bound["step"] != 1:  # a slice with steps takes the same of each block, up to the end
        return node

    def moved(position: Arg, default: int) -> Arg:
        if isinstance(position, Ref):
            return position
        absolute = default if position is None else position if position >= 0 else max(0, len(vector) + position)
        return int(vector[:absolute].sum())

    return with_arguments(node, start=moved(bound["start"], 0), end=moved(bound["end"], len(vector)))


def _narrow(node: Node, analysis: Analysis, table: np.ndarray) -> Node:
    bound = bind(node)
    labels = _source_labels(analysis, bound["self"])
    vector = axis_keeps(labels, table).get(bound["dim"] % labels.dim())
    if vector is None:
        return node
    start, length = bound["start"], bound["length"]
    return with_arguments(node, start=int(vector[:start].sum()), length=int(vector[start : start + length].sum()))


def _source_labels(analysis: Analysis, ref: Ref) -> lab.Labels:
    found = analysis.values.get(ref.name)
    if isinstance(found, (Tensor, lab.Pair)):
        return found
    factors = analysis.factors.get(ref.name)  # integer state, such as positions, carries nothing
    return factors[0] if factors else lab.empty(analysis.metas[ref.name].shape)  # type: ignore[union-attr]


def _convolution(node: Node, analysis: Analysis, table: np.ndarray) -> Node:
    """Groups of which no channel stays go: of a depthwise convolution one with each channel."""
    bound = bind(node)
    keep = axis_keeps(_labels(analysis, bound["input"].name), table).get(1)
    if bound["groups"] == 1 or keep is None:
        return node
    kept = int(keep.reshape(bound["groups"], -1).any(axis=1).sum())
    return node if kept == bound["groups"] else with_arguments(node, groups=kept)


def _group_norm(node: Node, analysis: Analysis, table: np.ndarray) -> Node:
    """A norm of each channel alone has as many groups as channels; any other keeps its groups and loses some of each."""
    labels = _labels(analysis, node.name)
    alone = bind(node)["num_groups"] == labels.shape[1]
    return with_arguments(node, num_groups=kept_shape(labels, table)[1]) if alone else node


def _layer_norm(node: Node, analysis: Analysis, table: np.ndarray) -> Node:
    labels = _labels(analysis, node.name)
    count = len(bind(node)["normalized_shape"])
    return with_arguments(node, normalized_shape=kept_shape(labels, table)[-count:])


def _attention(node: Node, analysis: Analysis, table: np.ndarray) -> Node:
    """The scale comes from the width of a head; it must stay what it was."""
    bound = bind(node)
    labels = _labels(analysis, bound["query"].name)
    width = labels.shape[-1]
    if bound["scale"] is not None or kept_shape(labels, table)[-1] == width:
        return node
    return with_arguments(node, scale=width**-0.5)


_RULES: Mapping[str, Callable[[Node, Analysis, np.ndarray], Node]] = {
    "aten.reshape.default": _output_sizes("shape"),
    "aten.view.default": _output_sizes("size"),
    "aten.expand.default": _output_sizes("size"),
    **dict.fromkeys(
        (f"aten.{name}.default" for name in "zeros ones full new_zeros new_ones new_full new_empty".split()), _output_sizes("size")
    ),
    "aten.unflatten.int": _unflatten,
    "aten.split.Tensor": _split,
    "aten.split_with_sizes.default": _split,
    "aten.chunk.default": _split,
    "aten.tensor_split.indices": _split,
    "aten.tensor_split.sections": _split,
    "aten.slice.Tensor": _slice,
    "aten.slice_scatter.default": _slice,
    "aten.narrow.default": _narrow,
    "aten.group_norm.default": _group_norm,
    "aten.layer_norm.default": _layer_norm,
    "aten.rms_norm.default": _layer_norm,
    "aten.scaled_dot_product_attention.default": _attention,
}
