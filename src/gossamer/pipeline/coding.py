"""Which codes a candidate gets: one format for all layers, or formats chosen by layer."""

from __future__ import annotations

from gossamer.batches import Batches
from gossamer.pipeline.settings import MIXED, Settings
from gossamer.plan.plan import Plan
from gossamer.plan.quantization import plan_quantization
from gossamer.program.program import Program
from gossamer.progress import OnProgress
from gossamer.search.precision import Precision, choose_precision


def plan_codes(program: Program, batches: Batches, settings: Settings, on_progress: OnProgress) -> tuple[Plan, Precision | None]:
    """The plan for a float program, and the choice of formats where there was one. Raises: like plan_quantization and choose_precision."""
    target, kinds = settings.target, {"activations": settings.activations, "scheme": settings.scheme}
    if settings.weights != MIXED:
        return plan_quantization(program, batches, target, weights=settings.weights, on_progress=on_progress, **kinds), None  # type: ignore[arg-type]
    chosen = choose_precision(program, batches, target, search=settings.precision_search, on_progress=on_progress, **kinds)  # type: ignore[arg-type]
    return plan_quantization(program, batches, target, rules=chosen.rules, on_progress=on_progress, **kinds), chosen  # type: ignore[arg-type]
