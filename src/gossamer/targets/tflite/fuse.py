"""Activations that the operator before them computes along the way: one pass over memory less, and one range less to find for quantizers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from gossamer.targets.tflite.draft import Draft, DraftOp

_FUSED = {"RELU": 1, "RELU6": 3}  # operator -> number in the format's ActivationFunctionType


def fuse_activations(draft: Draft, outputs: Sequence[int]) -> None:
    """Join ReLU and ReLU6 to the operator that makes what they alone read. `outputs` are tensors that stay. Edits the draft in place."""
    reads = Counter(number for op in draft.ops for number in op.inputs)
    made_by: dict[int, int] = {}
    ops: list[DraftOp] = []
    for op in draft.ops:
        source = op.inputs[0] if op.inputs else -1
        maker = made_by.get(source)
        alone = reads[source] == 1 and source not in outputs
        if maker is not None and op.code in _FUSED and alone and ops[maker].fields.get("fusedActivationFunction") == 0:
            ops[maker] = replace(ops[maker], outputs=op.outputs, fields={**ops[maker].fields, "fusedActivationFunction": _FUSED[op.code]})
            made_by[op.outputs[0]] = maker
            continue
        made_by |= dict.fromkeys(op.outputs, len(ops))
        ops.append(op)
    draft.ops = ops


def clamp_result(draft: Draft, limits: object) -> None:
    """Let the operator that was written last and can clamp do so, at 0 or at 0 and 6."""
    place = max(place for place, op in enumerate(draft.ops) if "fusedActivationFunction" in op.fields)
    code = _FUSED["RELU" if limits == (0, None) else "RELU6"]
    draft.ops[place] = replace(draft.ops[place], fields={**draft.ops[place].fields, "fusedActivationFunction": code})
