"""Making single weights zero: the masks of a plan become masks of the program."""

from __future__ import annotations

from collections.abc import Sequence

from gossamer.apply.quantize import check_float
from gossamer.errors import PlanError
from gossamer.numerics.packing import unpack_mask
from gossamer.plan.edits import SparsifyWeight
from gossamer.program.masks import hold_zeros
from gossamer.program.program import Program


def sparsify(program: Program, edits: Sequence[SparsifyWeight]) -> Program:
    """A copy whose named weights are zero off their masks. Zeros that were masked before stay zero; tied weights share a mask.

    Raises: PlanError for a quantized program, a weight that does not exist, and a mask of another size.
    """
    check_float(program)
    sparse = program.copy()
    state, masks = sparse.state, dict(sparse.masks)
    for edit in edits:
        if edit.value not in state or not state[edit.value].is_floating_point():
            raise PlanError(f"the plan makes numbers of {edit.value!r} zero, which is no weight of this network.")
        weight = state[edit.value]
        keep = unpack_mask(edit.mask, tuple(weight.shape)).to(weight.device)
        for name, tensor in state.items():
            if tensor is weight:
                masks[name] = masks[name] & keep if name in masks else keep
    sparse = sparse.with_graph(sparse.graph, masks=masks)
    hold_zeros(sparse)
    return sparse
