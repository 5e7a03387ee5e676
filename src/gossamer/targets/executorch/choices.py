"""Choices between what XNNPACK's graph computes and a known number, where kernels know which: as limits that leave one result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import inf

import numpy as np

from gossamer.targets.executorch.leading import Leading
from gossamer.targets.tflite.draft import Draft, DraftOp, DraftTensor


def with_limits(draft: Draft) -> Draft:
    """The same draft, where each such choice is max(min(x, high), low): both limits are the known number where that is chosen, and else none.

    The result is exact, but for numbers that are none (NaN). XNNPACK has no node that chooses.
    """
    made, leading = Draft(), Leading(draft)
    made.tensors = list(draft.tensors)
    for op in draft.ops:
        computed = _computed_branch(draft, leading, op)
        if computed:
            _write(made, op, computed)
        else:
            made.ops.append(op)
    return made


def _computed_branch(draft: Draft, leading: Leading, op: DraftOp) -> int:
    """The place of the branch that the graph computes; 0 for what is no such choice."""
    if op.code != "SELECT_V2" or draft.tensors[op.outputs[0]].dtype != "float32":
        return 0
    known, one, other = (leading.is_ahead(number) for number in op.inputs)
    return (2 if one else 1) if known and one != other else 0


def _write(draft: Draft, op: DraftOp, computed: int) -> None:
    result, number = draft.tensors[op.outputs[0]], op.inputs[computed]
    for code, limit in (("MINIMUM", inf), ("MAXIMUM", -inf)):
        limits = _limits(draft, op, computed, limit)
        made = op.outputs[0] if code == "MAXIMUM" else draft.add(replace(result, name=f"{result.name}/limited"))
        draft.op(code, (number, limits), (made,), "MaximumMinimumOptions")
        number = made


def _limits(draft: Draft, op: DraftOp, computed: int, none: float) -> int:
    """The known number where it is chosen, else `none`."""
    known = [draft.tensors[op.inputs[place]] for place in (0, 3 - computed)]
    condition, number = (tensor.data for tensor in known)
    if condition is not None and number is not None:
        chosen = condition if computed == 2 else ~condition
        return draft.constant(np.where(chosen, number, np.float32(none)))
    branches = [draft.constant(np.asarray([none], np.float32)) if place == computed else op.inputs[place] for place in (1, 2)]
    made = draft.add(DraftTensor(f"{draft.tensors[op.outputs[0]].name}/limits", _broadcast(known), "float32", None, None, _batched(known)))
    draft.op("SELECT_V2", (op.inputs[0], *branches), (made,), op.options)
    return made


def _broadcast(tensors: Iterable[DraftTensor]) -> tuple[int, ...]:
    return tuple(np.broadcast_shapes(*(tensor.shape for tensor in tensors)))


def _batched(tensors: list[DraftTensor]) -> int | None:
    """The axis of the batch after broadcasting."""
    rank = max(len(tensor.shape) for tensor in tensors)
    return next((tensor.batched + rank - len(tensor.shape) for tensor in tensors if tensor.batched is not None), None)
