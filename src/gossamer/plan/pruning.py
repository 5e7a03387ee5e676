"""Choosing which channels stay: from scores and a ratio or budget to a plan. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from gossamer.coupling import Analysis
from gossamer.coupling.kept import keep_table
from gossamer.coupling.predict import Predictor
from gossamer.errors import ConfigError, PlanError
from gossamer.plan.budget import Budget
from gossamer.plan.constraints import Constraints, Rules, named_groups
from gossamer.plan.edits import KeepChannels, KeepHeads, StoreWeight
from gossamer.plan.isomorphic import isomorphic_classes
from gossamer.plan.plan import Frozen, Plan
from gossamer.plan.ranking import Kept, Ranking
from gossamer.plan.score import Scores
from gossamer.program.constants import computed_weights, fold_weights
from gossamer.program.program import Program, check_program

MODES = ("global", "layerwise", "isomorphic")
PREDICTED = ("macs", "params", "max_size_bytes", "max_peak_memory_bytes")
_FREE = Constraints()


def plan_pruning(
    program: Program,
    scores: Scores,
    removed_ratio: float | Mapping[str, float] | None = None,
    *,
    budget: Budget | None = None,
    mode: str = "global",
    constraints: Constraints = _FREE,
) -> Plan:
    """Decide which channels stay. Give either a ratio, ratios per layer, or a budget.

    removed_ratio  share of the removable channels that goes, in [0, 1); or a share per layer ("*" in a name matches anything,
                   the last name that matches counts), then all other layers stay whole
    budget         remove the least important until these limits hold: Budget(macs=0.5), Budget(params=0.5),
                   Budget(max_size_bytes=...), Budget(max_peak_memory_bytes=...), or several
    mode           "global" ranks all groups together, "layerwise" takes the same share of each, "isomorphic" ranks together
                   what plays the same part in the network and takes the same share of each such class (Fang et al. 2024,
                   arXiv:2407.04616). Ratios per layer need no mode
    constraints    what must stay whatever the scores say

    A group about which the criterion says nothing (all its scores are infinite) stays whole; `plan.frozen` lists it.
    Raises: ConfigError for a ratio outside [0, 1), an unknown mode, or a budget that planning cannot predict; PlanError for a
    layer that does not exist (suggests the nearest), for scores of another network, and for a budget that cannot be
    reached (says the best that can).
    """
    check_program(program)
    if not isinstance(scores, Scores):
        raise ConfigError("scores", type(scores).__name__, "what gossamer.score(program, criterion) gives")
    _check_arguments(removed_ratio, budget, mode)
    analysis, stored = scores.analysis, computed_weights(program.graph)
    state = {*program.state, *stored}
    if {group.name for group in analysis.groups} != set(scores.values) or any(name not in state for name in analysis.factors):
        raise PlanError("the scores were made for another network; score this one.")
    rules = constraints.resolve(analysis)
    whole = {**_without_scores(scores, rules), **rules.whole}
    classes = {name: number for name, number in _classes(program, analysis, mode).items() if name not in whole}
    ranking = Ranking(analysis, scores.values, rules, classes)
    if isinstance(removed_ratio, Mapping):
        kept = ranking.keep_counts(_counts_by_layer(analysis, removed_ratio, classes))
    elif removed_ratio is not None:
        kept = ranking.keep(removed_ratio)
    else:
        assert budget is not None
        kept = _keep_for_budget(Predictor(program, analysis), analysis, ranking.keep, budget)
    edits = _edits(analysis, kept)
    first = tuple(StoreWeight(name) for name in stored) if edits else ()
    return Plan((*first, *edits), program.digest, frozen=_frozen(analysis, whole))


def _check_arguments(removed_ratio: float | Mapping[str, float] | None, budget: Budget | None, mode: str) -> None:
    if (removed_ratio is None) == (budget is None):
        raise ConfigError("plan_pruning", (removed_ratio, budget), "given either removed_ratio or budget")
    ratios = removed_ratio if isinstance(removed_ratio, Mapping) else {"": removed_ratio}
    for layer, ratio in ratios.items():
        if ratio is not None and not 0 <= ratio < 1:
            raise ConfigError(f"removed_ratio of {layer!r}" if layer else "removed_ratio", ratio, "a share in [0, 1)")
    if budget is not None and not set(budget.to_json()) & set(PREDICTED):
        raise ConfigError("budget", budget, f"one with {', '.join(PREDICTED)}: what planning can predict")
    if mode not in MODES:
        raise ConfigError("mode", mode, f"one of {', '.join(MODES)}")


def _without_scores(scores: Scores, rules: Rules) -> dict[str, str]:
    """Prunable groups that the criterion says nothing about, and why they stay."""
    groups = [group for group in scores.analysis.groups if group.prunable and group.size > 1 and group.name not in rules.whole]
    return {group.name: f"{scores.criterion} says nothing about it" for group in groups if np.isposinf(scores.values[group.name]).all()}


def _classes(program: Program, analysis: Analysis, mode: str) -> Mapping[str, int]:
    """Group name -> the class within which it is ranked."""
    if mode == "isomorphic":
        return isomorphic_classes(fold_weights(program), analysis)
    return {group.name: number if mode == "layerwise" else 0 for number, group in enumerate(analysis.groups)}


def _counts_by_layer(analysis: Analysis, ratios: Mapping[str, float], classes: Mapping[str, int]) -> Mapping[str, int]:
    counts: dict[str, int] = {}
    for name, ratio in ratios.items():
        for group in named_groups(analysis, name, "removed_ratio"):
            if group.prunable and group.name in classes:
                counts[group.name] = group.size - round(ratio * group.size)
    return counts


def _edits(analysis: Analysis, kept: Kept) -> tuple[KeepChannels | KeepHeads, ...]:
    kinds: Mapping[str, type[KeepChannels] | type[KeepHeads]] = {"channels": KeepChannels, "heads": KeepHeads}
    return tuple(
        kinds[analysis.group(name).unit](name, tuple(int(position) for position in positions), analysis.group(name).size)
        for name, positions in kept.items()
        if len(positions) < analysis.group(name).size
    )


def _frozen(analysis: Analysis, whole: Mapping[str, str]) -> tuple[Frozen, ...]:
    """What stays and why. A layer with a single output has nothing that could go, so it is not listed."""
    notes = [Frozen(name, reason) for name, reason in whole.items()]
    for group in analysis.groups:
        width = max(len(places) for places in group.places.values())
        together = f"all {width} channels of it are coupled and could only go together" if group.size == 1 else ""
        if width > 1 and (group.reason or together) and group.name not in whole:
            part = "" if not group.prunable or together else f"{int(group.fixed.sum())} of {group.size} channels: "
            notes.append(Frozen(group.name, part + (group.reason or together)))
    return tuple(notes)


def _keep_for_budget(predictor: Predictor, analysis: Analysis, keep: Callable[[float], Kept], budget: Budget) -> Kept:
    """What stays at the smallest ratio that meets every predicted limit, by bisection."""
    whole = np.ones(analysis.atom_count, dtype=bool)
    measures = {name: getattr(predictor, name.removeprefix("max_")) for name in budget.to_json() if name in PREDICTED}
    scale = {name: 1 if name.startswith("max_") else max(measure(whole), 1) for name, measure in measures.items()}

    def excess(ratio: float) -> dict[str, float]:
        table = keep_table(analysis, keep(ratio))
        found = {name: measure(table) / scale[name] for name, measure in measures.items()}
        return {name: value for name, value in found.items() if value > getattr(budget, name)}

    lowest, highest = 0.0, 1.0 - 1e-9
    missed = excess(highest)
    if missed:
        best = ", ".join(f"{name}={value:,.0f}" if name.startswith("max_") else f"{name}={value:.3f}" for name, value in missed.items())
        raise PlanError(
            f"the budget {budget.to_json()} cannot be reached; the least that can stay is {best} (see constraints and plan.frozen)."
        )
    if not excess(lowest):
        return keep(lowest)
    for _ in range(30):
        middle = (lowest + highest) / 2
        if excess(middle):
            lowest = middle
        else:
            highest = middle
    return keep(highest)
