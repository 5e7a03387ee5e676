"""The vectors that a layer multiplies its weight with, at a sample of its output positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gossamer.numerics.patches import as_columns, conv_patches, linear_patches
from gossamer.program.graph import Node
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import Convolution, Linear


def has_columns(node: Node) -> bool:
    """Whether the node is a layer that `layer_columns` knows: a linear one or a convolution that is not transposed."""
    kind = op_of(node).kind
    return isinstance(kind, Linear) or (isinstance(kind, Convolution) and not kind.transposed)


def layer_columns(node: Node, weight: Tensor, value: Tensor, *, limit: int, seed: int) -> Tensor:
    """Input vectors (G, K, samples), about `limit` of them. The same seed picks the same positions at any width."""
    return columns_at(node, weight, value, limit, torch.Generator().manual_seed(seed))


def columns_at(node: Node, weight: Tensor, value: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """Input vectors (G, K, samples), about `limit` of them, at positions that `generator` picks."""
    return as_columns(patches_at(node, weight, value, limit, generator))


def patches_at(node: Node, weight: Tensor, value: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """The same vectors as patches (samples, taps, G, channels of a group), which are made with fewer copies."""
    if not isinstance(op_of(node).kind, Convolution):
        return linear_patches(value, limit, generator)
    bound, kernel = bind(node), weight.shape[2:]
    dims = len(kernel)
    return conv_patches(
        value,
        kernel,
        stride=_per_axis(bound["stride"], dims),
        padding=_padding(bound, kernel),
        dilation=_per_axis(bound["dilation"], dims),
        groups=bound["groups"],
        limit=limit,
        generator=generator,
    )


def _padding(bound: Mapping[str, Any], kernel: torch.Size) -> tuple[int, ...]:
    """Zeros in front of each axis; "same" in torch puts an odd one behind."""
    padding = bound["padding"]
    if padding == "valid":
        return (0,) * len(kernel)
    if padding == "same":
        return tuple(d * (k - 1) // 2 for d, k in zip(_per_axis(bound["dilation"], len(kernel)), kernel, strict=True))
    return _per_axis(padding, len(kernel))


def _per_axis(value: Any, dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values
