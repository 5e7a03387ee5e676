"""Pruning for users who keep their own training script: an eager module in, an eager module out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from gossamer.apply.engine import apply
from gossamer.apply.transplant import graft
from gossamer.errors import ConfigError, TransplantError
from gossamer.plan.budget import Budget
from gossamer.plan.constraints import Constraints
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.score import Scores, score
from gossamer.program.adapt import Adapter
from gossamer.program.capture import capture
from gossamer.program.program import Program

HARD_CODED = ("raise", "keep")
_FREE = Constraints()


def prune(
    model: nn.Module,
    example_inputs: Any,
    removed_ratio: float | None = None,
    *,
    budget: Budget | None = None,
    criterion: str | Callable[[Program], Scores] = "l2",
    constraints: Constraints = _FREE,
    hard_coded: str = "raise",
    output: Adapter | None = None,
) -> nn.Module:
    """Return a smaller copy of a module, of the same class: capture, score, plan, apply and transplant in one call.

    removed_ratio, budget, constraints   as for `plan_pruning`: a share of the channels, or Budget(macs=0.5)
    criterion   a name as for `score`, or a function from the program to scores, for criteria that need data:
                `lambda program: gs.score(program, "taylor", batches)`
    hard_coded  what to do where the class's own code fixes a size: "raise", or "keep" the groups that this line
                carries whole and take the channels elsewhere
    output      as for `capture`

    The result is proven twice: the pruned program against the masked one, the module against the program. For several
    ratios of one model make the scores once and use plan_pruning, apply and transplant.
    Raises: what these five raise; TransplantError for a hard-coded size, with the line.
    """
    if hard_coded not in HARD_CODED:
        raise ConfigError("hard_coded", hard_coded, f"one of {', '.join(HARD_CODED)}")
    program = capture(model, example_inputs, output=output)
    scores = score(program, criterion) if isinstance(criterion, str) else criterion(program)
    while True:
        small = apply(program, plan_pruning(program, scores, removed_ratio, budget=budget, constraints=constraints))
        try:
            return graft(small, model, example_inputs, output=output, original=program)
        except TransplantError as error:
            fresh = [group for group in error.groups if group not in constraints.skip]
            if hard_coded == "raise" or not fresh:
                raise
            constraints = replace(constraints, skip=(*constraints.skip, *fresh))
