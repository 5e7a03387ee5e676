"""Whole attention heads as units: where two values are contracted per head, all that belongs to a head goes together.

The other granularity, positions of the width that all heads share, is what coupling.contract does on its own. Here the
positions of a head are merged and the product carries one label per head on its batch axis, through softmax, masks and
position biases, up to the product with the values. A group of query heads that shares its key and value is one unit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from gossamer.coupling import labels as lab
from gossamer.coupling.context import Context
from gossamer.program.graph import Node

_IN_PART = "only a part of each head carries it, and the other part cannot shrink"


def head_product(context: Context, node: Node, left: Tensor, right: Tensor, shape: Sequence[int]) -> Tensor | None:
    """Labels of left @ right^T, left (*, M, K) and right (*, N, K), one per head; None where no axis of heads is met."""
    if context.heads is None:
        return None
    batch = _batch_axes(left), _batch_axes(right)
    if batch[0] & batch[1]:
        ours, theirs = np.broadcast_arrays(_per_head(context, left), _per_head(context, right))
        _couple(context, ours, theirs, f"{node.module or node.name} contracts it with what cannot shrink")
        return _spread(np.where(ours != 0, ours, theirs), shape)
    if bool(batch[0]) == bool(batch[1]):
        return None
    wide, narrow = (left, right) if batch[0] else (right, left)
    shared = all(axis < -narrow.dim() or narrow.shape[axis] == 1 for axis in batch[0] | batch[1])
    carries = bool(lab.essence(narrow).any())
    if not shared or not (carries or wide.dim() - 1 in lab.varying(wide)):
        return None
    context.freeze(narrow, f"all heads of {node.module or node.name} share it")
    return _spread(_per_head(context, wide), shape)


def head_mask(context: Context, node: Node, scores: Tensor, mask: Tensor) -> Tensor:
    """Labels of scores (*, H, T, S) behind a mask that is added to them: a mask per head goes with its head."""
    rows = [axis for axis in lab.varying(scores) if axis >= scores.dim() - 2]
    axes = [axis for axis in lab.varying(scores) if axis < scores.dim() - 2]
    offset = scores.dim() - mask.dim()
    if rows or not axes or any(axis < offset or mask.shape[axis - offset] == 1 for axis in axes):
        context.freeze(mask, f"it is the mask of attention in {node.module or node.name}")
        return scores
    ours, theirs = np.broadcast_arrays(lab.essence(scores), lab.essence(mask))
    _couple(context, ours, theirs, f"the mask of attention in {node.module or node.name} cannot shrink with it")
    return scores


def head_groups(context: Context, inside: np.ndarray, outside: np.ndarray) -> bool:
    """Whether the groups of a convolution, (G, I/G) inputs and (G, O/G) outputs, are parts of heads: then whole groups go."""
    if context.heads is None or not any(_of_one_head(labels) for labels in (inside, outside)):
        return False
    both = np.concatenate([inside, outside], axis=1)
    _couple(context, both, np.broadcast_to(both.max(axis=1, keepdims=True), both.shape), _IN_PART)
    return True


def _of_one_head(blocks: np.ndarray) -> bool:
    """Whether each block carries one label, and not all the same."""
    same = (blocks == blocks[:, :1]).all() and blocks.all() and blocks.shape[1] > 1
    return bool(same) and len(np.unique(blocks[:, 0])) > 1


def _batch_axes(labels: Tensor) -> set[int]:
    """Axes before the last two that carry labels, counted from the end."""
    return {axis - labels.dim() for axis in lab.varying(labels) if axis < labels.dim() - 2}


def _per_head(context: Context, labels: Tensor) -> np.ndarray:
    """Merge what each matrix carries; return one label for each, (*)."""
    essence = lab.essence(labels)
    inside = essence.reshape(*essence.shape[:-2], -1)
    first: np.ndarray = inside.max(axis=-1)
    _couple(context, inside, np.broadcast_to(first[..., None], inside.shape), _IN_PART)
    return first


def _couple(context: Context, left: np.ndarray, right: np.ndarray, reason: str) -> None:
    """Couple, and remember that it was for the sake of heads."""
    assert context.heads is not None
    context.atoms.couple(left, right, reason)
    context.heads.append((np.array(left), np.array(right)))


def _spread(heads: np.ndarray, shape: Sequence[int]) -> Tensor:
    return lab.squash(lab.tensor(heads)[..., None, None].expand(tuple(shape)))
