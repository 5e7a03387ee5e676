"""Applying a plan: the one entrance through which networks change."""

from __future__ import annotations

from gossamer.apply.depth import remove_blocks
from gossamer.apply.quantize import quantize_program
from gossamer.apply.shrink import shrink
from gossamer.apply.sparsify import sparsify
from gossamer.errors import ConfigError, PlanError
from gossamer.plan.edits import KeepChannels, KeepHeads, RemoveBlock, SparsifyWeight, StoreWeight
from gossamer.plan.plan import Plan
from gossamer.program.program import Program, check_program

Removal = RemoveBlock | KeepHeads | KeepChannels | StoreWeight


def apply(program: Program, plan: Plan) -> Program:
    """Return a changed copy of the network; the argument stays as it is, to the byte.

    Removal of channels, heads and blocks is proven on random inputs before the result is handed out.
    Raises: PlanError when the plan was made for another network; ParityError when a proof fails.
    """
    check_program(program)
    if not isinstance(plan, Plan):
        raise ConfigError("plan", type(plan).__name__, "a Plan, as gossamer.plan_pruning and others give, or Plan.from_json")
    plan.check_fits(program)
    masks = tuple(edit for edit in plan.edits if isinstance(edit, SparsifyWeight))
    if masks:
        if len(masks) < len(plan.edits):
            raise PlanError("the plan makes weights zero and changes the network otherwise; make one plan for each.")
        return sparsify(program, masks)
    removals = tuple(edit for edit in plan.edits if isinstance(edit, Removal))
    others = tuple(edit for edit in plan.edits if not isinstance(edit, Removal))
    if removals and others:
        raise PlanError("the plan both removes channels and quantizes; make one plan for each, in that order.")
    if removals:
        return _remove(program, removals)
    return quantize_program(program, others, plan.target) if others else program.copy()


def _remove(program: Program, edits: tuple[Removal, ...]) -> Program:
    """Whole heads first, then channels, then whole blocks: each step leaves the names that the next one uses as they are."""
    stored = tuple(edit for edit in edits if isinstance(edit, StoreWeight))
    heads = tuple(edit for edit in edits if isinstance(edit, KeepHeads))
    channels = tuple(edit for edit in edits if isinstance(edit, KeepChannels))
    blocks = tuple(edit for edit in edits if isinstance(edit, RemoveBlock))
    if heads:
        program = shrink(program, (*stored, *heads), "heads")
        stored = ()
    if channels or stored:
        program = shrink(program, (*stored, *channels))
    return remove_blocks(program, blocks) if blocks else program
