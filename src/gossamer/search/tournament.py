"""Choosing a criterion by what it does: each one's plan is applied, repaired, and its damage measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from gossamer.apply.engine import apply
from gossamer.apply.repair import repair as repaired
from gossamer.batches import Batch, Batches, as_batches
from gossamer.errors import ConfigError, DataError, PlanError
from gossamer.numerics.saliency import criteria as registry
from gossamer.plan.evidence import Loss
from gossamer.plan.plan import Frozen, Plan
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.score import Scores, score
from gossamer.program.program import Program
from gossamer.progress import OnProgress, Progress, silent
from gossamer.train.losses import distillation

ENTRANTS = ("l2", "lamp", "fpgm", "bn_scale", "activation", "taylor", "fisher", "stability", "obs", "lasso", "thinet")
NEED_LABELS = ("gradient", "squared gradient", "curvature")
MOST_INPUTS = 1024  # a difference between criteria that more of them would show is small
LEAST_SPLIT = 4  # samples of a batch from which on a quarter of it is held out


@dataclass(frozen=True, slots=True)
class Entrant:
    """One criterion: its plan, what the plan costs (see Tournament.measure), and the seconds it took, all steps together."""

    criterion: str
    damage: float
    seconds: float
    plan: Plan


@dataclass(frozen=True, slots=True, eq=False)
class Tournament:
    """What the criteria did to a network.

    measure   "kl", mean over samples of KL(softmax(original) || softmax(smaller)) in nats, for outputs (batch, classes); else
              "relative error", norm of the difference over norm of the original's outputs
    ranking   all that took part, least damage first
    left_out  criteria that could not take part, and why
    held_out  whether damage was measured on inputs that neither scoring nor repair had seen
    scores    of the winner
    program   the winner's smaller network, repaired (on all inputs) where that was asked for
    """

    measure: str
    ranking: tuple[Entrant, ...]
    left_out: tuple[Frozen, ...]
    held_out: bool
    scores: Scores
    program: Program

    @property
    def winner(self) -> Entrant:
        """The criterion with the least damage."""
        return self.ranking[0]

    @property
    def plan(self) -> Plan:
        """The winner's plan."""
        return self.winner.plan

    def __str__(self) -> str:
        lines = [f"{entrant.criterion:12} {entrant.damage:.4g} ({entrant.seconds:.1f} s)" for entrant in self.ranking]
        return "\n".join([f"damage: {self.measure}", *lines, *(f"{note.where:12} left out: {note.reason}" for note in self.left_out)])


def tournament(
    program: Program,
    batches: Any,
    removed_ratio: float | None = None,
    *,
    criteria: Sequence[str] = ENTRANTS,
    loss: Loss | None = None,
    repair: bool = True,
    on_progress: OnProgress = silent,
    **planning: Any,
) -> Tournament:
    """Remove channels by each criterion, repair without labels, measure, and hand out the best.

    batches   inputs, at most 1024 are used; a quarter of each batch is held out to measure on, unless batches have a fixed
              size or fewer than 4 samples. With targets, criteria that need them take part
    criteria  names from numerics.saliency.criteria
    loss      for criteria that need one; cross-entropy by default
    planning  budget, mode and constraints, as for plan_pruning

    Raises: ConfigError for no or unknown names; PlanError and DataError of the first criterion where none can take part, so
    for a budget out of reach.
    """
    if not criteria:
        raise ConfigError("criteria", criteria, "at least one name")
    for name in criteria:
        registry.entry(name)
    whole = _first(as_batches(batches, what="calibration"))
    fitting, measuring = _split(program, whole)
    truth = _outputs(program, measuring)
    classes = isinstance(truth[0], Tensor) and truth[0].dim() == 2 and truth[0].shape[1] > 1
    finished: list[tuple[Entrant, Scores]] = []
    failed: dict[str, PlanError | DataError] = {}
    for done, name in enumerate(criteria):
        on_progress(Progress("tournament", done, len(criteria), name))
        start = perf_counter()
        try:
            scores = _score(program, name, fitting, loss)
            plan = plan_pruning(program, scores, removed_ratio, **planning)
        except (DataError, PlanError) as error:
            failed[name] = error
            continue
        small = _smaller(program, plan, fitting if repair else [])
        seconds = perf_counter() - start
        finished.append((Entrant(name, _damage(truth, _outputs(small, measuring), classes), seconds, plan), scores))
    if not finished:
        raise next(iter(failed.values()))
    finished.sort(key=lambda pair: pair[0].damage)
    best, scores = finished[0]
    on_progress(Progress("tournament", len(criteria), len(criteria), best.criterion))
    ranking = tuple(entrant for entrant, _ in finished)
    left_out = tuple(Frozen(name, str(error)) for name, error in failed.items())
    small = _smaller(program, best.plan, whole if repair else [])
    return Tournament("kl" if classes else "relative error", ranking, left_out, measuring is not fitting, scores, small)


def _score(program: Program, name: str, batches: list[Batch], loss: Loss | None) -> Scores:
    if registry[name].needs in NEED_LABELS and batches[0][1] is None:
        raise DataError("it needs targets, and the data has none.")
    return score(program, name, Batches(batches, what="calibration"), loss)


def _first(batches: Batches) -> list[Batch]:
    """The first MOST_INPUTS inputs, batch by batch."""
    found: list[Batch] = []
    count = 0
    for inputs, target in batches:
        found.append((inputs, target))
        count += inputs[0].shape[0] if inputs[0].dim() else 1
        if count >= MOST_INPUTS:
            break
    return found


def _split(program: Program, whole: list[Batch]) -> tuple[list[Batch], list[Batch]]:
    """What to fit on and what to measure on: three quarters and one quarter of each batch, or twice the same list."""
    fixed = any(not spec.shape or spec.shape[0] is not None for spec in program.inputs)
    if fixed or any(inputs[0].shape[0] < LEAST_SPLIT for inputs, _ in whole):
        return whole, whole
    cuts = [inputs[0].shape[0] - inputs[0].shape[0] // 4 for inputs, _ in whole]
    fitting = [_part(batch, slice(cut)) for batch, cut in zip(whole, cuts, strict=True)]
    return fitting, [_part(batch, slice(cut, None)) for batch, cut in zip(whole, cuts, strict=True)]


def _part(batch: Batch, which: slice) -> Batch:
    inputs, target = batch
    return tuple(tensor[which] for tensor in inputs), None if target is None else target[which]


def _smaller(program: Program, plan: Plan, batches: list[Batch]) -> Program:
    """The plan applied, and repaired where there are batches to do it on."""
    small = apply(program, plan)
    return repaired(small, program, plan, Batches(batches, what="calibration")) if batches and plan.edits else small


def _outputs(program: Program, batches: list[Batch]) -> list[Any]:
    copy = program.copy().eval()
    with torch.inference_mode():
        return [copy(*(tensor.to(program.device) for tensor in inputs)) for inputs, _ in batches]


def _damage(truth: list[Any], outputs: list[Any], classes: bool) -> float:
    if classes:
        divergence = sum(float(distillation(small, true, 1.0)) * len(true) for true, small in zip(truth, outputs, strict=True))
        return _or_infinite(divergence / sum(len(true) for true in truth))
    pairs = [pair for true, small in zip(truth, outputs, strict=True) for pair in zip(_flat(true), _flat(small), strict=True)]
    error = sum(float((small.double() - true.double()).square().sum()) for true, small in pairs)
    size = sum(float(true.double().square().sum()) for true, _ in pairs)
    return _or_infinite((error / size) ** 0.5 if size else float(error > 0))


def _or_infinite(damage: float) -> float:
    return math.inf if math.isnan(damage) else damage


def _flat(value: Any) -> tuple[Tensor, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
