"""Joins of many parts as joins of joins: the interpreter for microcontrollers takes ten parts at once."""

from __future__ import annotations

from dataclasses import replace

from gossamer.targets.tflite.draft import Draft, DraftOp

JOIN = "CONCATENATION"
MOST_PARTS = 10


def split_long_joins(draft: Draft) -> None:
    """Let no join have more than MOST_PARTS. Edits the draft in place."""
    ops: list[DraftOp] = []
    for op in draft.ops:
        while op.code == JOIN and len(op.inputs) > MOST_PARTS:
            runs = [op.inputs[start : start + MOST_PARTS] for start in range(0, len(op.inputs), MOST_PARTS)]
            joins = [_join(draft, op, run) for run in runs if len(run) > 1]
            ops += joins
            op = replace(op, inputs=(*(join.outputs[0] for join in joins), *(run[0] for run in runs if len(run) == 1)))
        ops.append(op)
    draft.ops = ops


def _join(draft: Draft, whole: DraftOp, parts: tuple[int, ...]) -> DraftOp:
    """The join of some parts, in the codes of the whole."""
    result, axis = draft.tensors[whole.outputs[0]], whole.fields["axis"]
    shape = list(result.shape)
    shape[axis] = sum(draft.tensors[number].shape[axis] for number in parts)
    made = draft.add(replace(result, name=f"{result.name}/part", shape=tuple(shape)))
    return replace(whole, inputs=parts, outputs=(made,), fields={**whole.fields, "fusedActivationFunction": 0})
