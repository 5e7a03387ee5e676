"""Labels around ops of which nothing is known, and of those that make values from nothing."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gossamer.coupling import labels as lab
from gossamer.coupling.context import Context
from gossamer.program.graph import Node
from gossamer.program.shapes import Meta, TensorMeta


def opaque(context: Context, node: Node) -> Any:
    """All that the node reads stays; its result carries nothing."""
    for name in node.uses:
        for labels in _tensors_of(context, name):
            context.freeze(labels, f"no rule for {node.op} in {node.module or node.name}")
    return nothing(context, node)


def _tensors_of(context: Context, name: str) -> list[Tensor]:
    value = context.values.get(name)
    if isinstance(value, tuple):
        return [item for item in value if isinstance(item, Tensor)]
    return [context.labels(name)] if isinstance(context.metas.get(name), TensorMeta) else []


def nothing(context: Context, node: Node) -> Any:
    """A result that carries nothing."""

    def blank(meta: Meta) -> Any:
        if isinstance(meta, TensorMeta):
            return lab.empty(meta.shape)
        return tuple(blank(item) for item in meta) if isinstance(meta, tuple) else meta

    return blank(context.metas[node.name])
