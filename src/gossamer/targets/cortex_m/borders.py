"""Borders that need not be written: convolutions and pools read around the edge of an image by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gossamer.targets.tflite.draft import Draft, DraftOp

_VALID = 1  # of the .tflite format's paddings
BEFORE = "before"  # field of an operator: rows and columns in front of the image, instead of the format's padding


def without_borders(draft: Draft, ops: Sequence[DraftOp], outputs: Sequence[int]) -> list[DraftOp]:
    """The operators without those that only write a border for the next one, which starts that far outside of its input instead."""
    makers = {op.outputs[0]: op for op in ops if op.code in ("PAD", "PADV2")}
    readers: dict[int, int] = {}
    for number in (number for op in ops for number in op.inputs):
        readers[number] = readers.get(number, 0) + 1
    gone: list[DraftOp] = []
    kept: list[DraftOp] = []
    for op in ops:
        border = makers.get(op.inputs[0]) if op.inputs else None
        if border is not None and readers[op.inputs[0]] == 1 and op.inputs[0] not in outputs and _can_start_outside(draft, op, border):
            table = draft.tensors[border.inputs[1]].data
            assert table is not None
            fields = {**op.fields, BEFORE: (int(table[1][0]), int(table[2][0]))}
            gone.append(border)
            op = replace(op, inputs=(border.inputs[0], *op.inputs[1:]), fields=fields)
        kept.append(op)
    return [op for op in kept if all(op is not border for border in gone)]


def _can_start_outside(draft: Draft, op: DraftOp, border: DraftOp) -> bool:
    """Whether the operator's own idea of what lies outside is what the border holds."""
    table = draft.tensors[border.inputs[1]].data
    if table is None or len(table) != 4 or table[0].any() or table[3].any() or op.fields.get("padding") != _VALID:
        return False
    if op.code in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        return border.code == "PAD"  # zeros
    if op.code != "MAX_POOL_2D" or border.code != "PADV2":
        return False
    filler = draft.tensors[border.inputs[2]].data
    return filler is not None and bool(filler.reshape(-1)[0] <= (-128 if filler.dtype == np.int8 else np.finfo(np.float32).min))
