"""Labels through normalizations.

Batch norm holds its statistics per channel. The others compute them from what they normalize: when part of that is
removed, the statistics are those of what stays (`renormalised`), and the proof of a removal uses them, too.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gossamer.coupling import labels as lab
from gossamer.coupling.context import Context, feature
from gossamer.program.graph import Node, Ref
from gossamer.program.ops import bind


def batch_norm(context: Context, node: Node) -> Tensor:
    """Weight, bias and both statistics belong to the channels."""
    bound = bind(node)
    labels = context.labels(bound["input"].name)
    channels = feature(context, labels, 1)
    context.tie_vectors((bound[key] for key in ("weight", "bias", "running_mean", "running_var")), channels)
    return labels


def statistics_norm(context: Context, node: Node) -> Any:
    """Layer, RMS, group and instance norm."""
    bound = bind(node)
    labels = context.labels(bound["input"].name)
    if "normalized_shape" in bound:
        return _trailing_axes(context, node, labels, len(bound["normalized_shape"]))
    channels = feature(context, labels, 1)
    if "num_groups" in bound:
        groups = bound["num_groups"]
        if groups < len(channels):  # else each channel has its own statistics, and there are as many groups as stay
            context.blocks.append(lab.tensor(channels.reshape(groups, -1)))
            context.renormalised.append((node.name, 1))
    context.tie_vectors((bound.get(key) for key in ("weight", "bias", "running_mean", "running_var")), channels)
    return labels


def _trailing_axes(context: Context, node: Node, labels: Tensor, count: int) -> Tensor:
    """Statistics over the last `count` axes; the affine parameters have their shape."""
    bound = bind(node)
    axes = [axis for axis in lab.varying(labels) if axis >= labels.dim() - count]
    if len(axes) > 1:
        context.freeze(labels, f"{node.module or node.name} computes statistics over several axes that carry it")
        return labels
    shape = bound["normalized_shape"]
    affine = lab.empty(shape)
    if axes:
        affine = lab.along(feature(context, labels, axes[0]), shape, axes[0] - (labels.dim() - count))
        context.renormalised.append((node.name, axes[0]))
    for key in ("weight", "bias"):
        found = bound.get(key)
        if isinstance(found, Ref) and (axes or len(context.graph.users[found.name]) > 1):  # it stays whole for all that share it
            context.tie_elements(found.name, affine)
    return labels
