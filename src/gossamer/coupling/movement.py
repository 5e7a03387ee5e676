"""Labels through ops that move data: the op itself runs on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from gossamer.coupling import labels as lab
from gossamer.coupling.context import Context, feature
from gossamer.coupling.unknown import nothing, opaque
from gossamer.program.graph import Node, Ref, map_refs
from gossamer.program.ops import bind, function, with_arguments
from gossamer.program.ops.kinds import Movement
from gossamer.program.shapes import TensorMeta

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
_REPEATS = ("aten.repeat.default", "aten.tile.default")
_JOINS = ("aten.cat.default", "aten.concat.default")
PADS = ("aten.constant_pad_nd.default", "aten.pad.default")


def movement(context: Context, node: Node) -> Any:
    """Labels move as the data does; where that would reorder or repeat what is pruned, it stays."""
    carriers = [name for name in node.uses if isinstance(context.metas.get(name), (TensorMeta, tuple)) and name not in context.concrete]
    if not carriers:
        return nothing(context, node)
    if any(_is_index(context, node, name) for name in carriers):
        return opaque(context, node)
    sources: Mapping[str, Any] = {name: context.values[name] if name in context.values else context.labels(name) for name in carriers}
    if node.op in PADS and (padded := _pad_beside(context, node, sources)) is not None:
        return padded
    if node.op == "aten.im2col.default":
        return _im2col(context, node, next(iter(sources.values())))
    if node.op == "aten.expand_as.default":
        return _expand_as(*(sources.get(name, lab.empty(context.meta(name).shape)) for name in node.uses))
    if node.op in _REPEATS:
        sources = _merge_repeated(context, node, sources)
    if node.op in _JOINS:
        sources = _fill_beside(context, node, sources)
    result = move(context, node, sources)
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


def _merge_repeated(context: Context, node: Node, sources: Mapping[str, Any]) -> Mapping[str, Any]:
    """Positions of an axis that is repeated, such as a window of a position embedding, go together if another axis carries atoms, too."""
    ((name, labels),) = sources.items()
    counts = bind(node)["repeats" if "repeats" in bind(node) else "dims"]
    first = labels.dim() - len(counts)  # of an axis that is there; new ones come in front
    axes = [axis for axis in lab.varying(labels) if axis - first < 0 or counts[axis - first] == 1]
    if not axes:
        return sources
    for axis in set(lab.varying(labels)) - set(axes):
        context.atoms.merge_along(lab.essence(labels), axis, f"{name} is repeated, and a part of it cannot shrink")
        labels = labels.narrow(axis, 0, 1).expand(labels.shape)
    return {name: lab.squash(labels)}


def _fill_beside(context: Context, node: Node, sources: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a factory fills only to be joined with values carries what they do along all other axes, so that it shrinks, too."""
    axis = bind(node)["dim"] % len(context.meta(node.name).shape)
    carried = [labels for labels in sources.values() if isinstance(labels, Tensor) and lab.varying(labels)]
    if not carried or axis in lab.varying(carried[0]):
        return sources
    found = dict(sources)
    for name, labels in sources.items():
        if context.is_filled_for(name, (Movement,)) and labels.shape[:axis] == carried[0].shape[:axis]:
            found[name] = context.values[name] = lab.squash(carried[0].narrow(axis, 0, 1).expand(labels.shape))
    return found


def _im2col(context: Context, node: Node, labels: Tensor) -> Tensor:
    """Patches as columns: (N, C * K, L). Borders carry what the inside carries, whatever the padding."""
    if set(lab.varying(labels)) & {labels.dim() - 1, labels.dim() - 2}:
        return opaque(context, node)  # type: ignore[no-any-return]
    positions = math.prod(bind(node)["kernel_size"])
    columns = np.repeat(lab.vector(labels, labels.dim() - 3), positions)
    shape = context.meta(node.name).shape
    return lab.along(columns, shape, len(shape) - 2)


def mixing(context: Context, node: Node) -> Any:
    """Columns summed back into an image, (N, C * K, L) to (N, C, H, W): positions of a channel go together. Others stay."""
    labels = context.labels(node.uses[0])
    if node.op != "aten.col2im.default" or labels.dim() - 1 in lab.varying(labels):
        return opaque(context, node)
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


def move(context: Context, node: Node, sources: Mapping[str, Any]) -> Any:
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
    result = move(context, node, merged)
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
    reason = f"{node.module or node.name} takes every {step}. position of blocks that cannot shrink in part"
    context.atoms.merge_along(moved.reshape(*moved.shape[:-1], size // step, step), moved.ndim, reason)
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
