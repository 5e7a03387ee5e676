"""Which operators of a draft XNNPACK's graph takes, and which run in portable kernels in front of it and behind it."""

from __future__ import annotations

from dataclasses import dataclass

from gossamer.targets.executorch.leading import Leading, computed_types, is_kernel
from gossamer.targets.executorch.step import OutsideXnnpack
from gossamer.targets.executorch.writing import rows
from gossamer.targets.tflite.draft import Draft, DraftOp

_HELD = ("float32", "int8")  # types of computed values in XNNPACK's graph


@dataclass(frozen=True, slots=True)
class Split:
    """Operators in the order in which they run: kernels, XNNPACK, kernels."""

    front: tuple[DraftOp, ...]
    graph: tuple[DraftOp, ...]
    back: tuple[DraftOp, ...]


def split(draft: Draft) -> Split:
    """One graph with all that has nodes there, but for what only kernels need. Raises OutsideXnnpack where one graph is not enough.

    Kernels compute what has no node there, and what leads to it where they know all of that: then it lies in front. Else it lies
    behind, with all that reads it, which kernels must know, too.
    """
    leading = Leading(draft)
    front: set[int] = set()
    back: dict[int, str] = {}  # and why
    for place, op in enumerate(draft.ops):
        behind = next((back[leading.makers[number]] for number in op.inputs if leading.makers.get(number) in back), "")
        missing = _missing(draft, op)
        if not behind and missing:
            needed = leading.operators(place)
            if leading.are_kernels(needed):
                front |= needed
                continue
        if behind or missing:
            back[place] = behind or missing
            if not is_kernel(draft, op):
                raise OutsideXnnpack(f"{back[place]} has no node there")
    parts = [(place in front, place in back, op) for place, op in enumerate(draft.ops)]
    return Split(
        tuple(op for ahead, _, op in parts if ahead),
        tuple(op for ahead, behind, op in parts if not ahead and not behind),
        tuple(op for _, behind, op in parts if behind),
    )


def _missing(draft: Draft, op: DraftOp) -> str:
    """The operator's name where XNNPACK has no node for it, with the type that it cannot hold; "" where it has one."""
    if op.code not in rows:
        return op.code
    return next((f"{op.code} of {dtype}" for dtype in computed_types(draft, op) if dtype not in _HELD), "")
