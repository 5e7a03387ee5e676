"""Which codes a candidate gets: one format for all layers, or formats chosen by layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gossamer.batches import Batches
from gossamer.pipeline.settings import AUTO, MIXED, Settings
from gossamer.plan.plan import Plan
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.spec import specs
from gossamer.program.program import Program
from gossamer.progress import OnProgress
from gossamer.search.precision import Precision, choose_precision
from gossamer.targets.target import INT8, targets


def plan_codes(program: Program, batches: Batches, settings: Settings, on_progress: OnProgress) -> tuple[Plan, Precision | None]:
    """The plan for a float program, and the choice of formats where there was one. Raises: like plan_quantization and choose_precision.

    Where nothing was said about formats, weights have the widest that the target's kernels compute exactly on this processor; the plan notes
    one that is narrower than int8.
    """
    kinds: dict[str, Any] = {"activations": settings.activations, "scheme": settings.scheme, "on_progress": on_progress}
    if settings.weights not in (AUTO, MIXED):
        return plan_quantization(program, batches, settings.target, weights=settings.weights, **kinds), None
    widest, chosen, rules = targets[settings.target].exact_weights(), None, {}
    if settings.weights == MIXED:
        search = settings.precision_search
        search = replace(search, formats=search.formats_for(specs[settings.target], widest))
        chosen = choose_precision(program, batches, settings.target, search=search, **kinds)
        rules = dict(chosen.rules)
    plan = plan_quantization(program, batches, settings.target, weights=widest, rules=rules, **kinds)
    return (plan if widest == INT8 else replace(plan, notes=(*plan.notes, narrower(settings.target, widest)))), chosen


def narrower(target: str, widest: str) -> str:
    """Why weights have fewer than 8 bits here."""
    return (
        f"weights of layers are {widest} where nothing else was asked for: this processor has no VNNI, and on such ones {target}'s kernels "
        f"add products of int8 weights wrongly; for processors with VNNI choose weights={INT8!r}"
    )
