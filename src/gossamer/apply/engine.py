"""Applying a plan: the one entrance through which networks change."""

from __future__ import annotations

from gossamer.apply.quantize import quantize_program
from gossamer.apply.shrink import shrink
from gossamer.apply.sparsify import sparsify
from gossamer.errors import PlanError
from gossamer.plan.edits import KeepChannels, SparsifyWeight, StoreWeight
from gossamer.plan.plan import Plan
from gossamer.program.program import Program


def apply(program: Program, plan: Plan) -> Program:
    """Return a changed copy of the network; the argument stays as it is, to the byte.

    Removal of channels is proven on random inputs before the result is handed out.
    Raises: PlanError when the plan was made for another network; ParityError when a proof fails.
    """
    plan.check_fits(program)
    masks = tuple(edit for edit in plan.edits if isinstance(edit, SparsifyWeight))
    if masks:
        if len(masks) < len(plan.edits):
            raise PlanError("the plan makes weights zero and changes the network otherwise; make one plan for each.")
        return sparsify(program, masks)
    channels = tuple(edit for edit in plan.edits if isinstance(edit, (KeepChannels, StoreWeight)))
    others = tuple(edit for edit in plan.edits if not isinstance(edit, (KeepChannels, StoreWeight)))
    if channels and others:
        raise PlanError("the plan both removes channels and quantizes; make one plan for each, in that order.")
    if channels:
        return shrink(program, channels)
    return quantize_program(program, others, plan.target) if others else program.copy()
