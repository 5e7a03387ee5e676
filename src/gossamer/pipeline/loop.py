"""The loop: try a ratio, verify the artifact, relax or tighten, keep the best so far on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from torch import nn

from gossamer.coupling.analysis import analyse
from gossamer.coupling.kept import keep_table
from gossamer.coupling.predict import Predictor
from gossamer.data.source import as_data
from gossamer.errors import ConfigError, PlanError
from gossamer.files import write_json
from gossamer.pipeline.claim import claim
from gossamer.pipeline.first_look import first_look
from gossamer.pipeline.result import Result
from gossamer.pipeline.settings import Settings
from gossamer.pipeline.trial import ACCURACY, DONE, Job, Trial, artifact_name, calibration, plan_removal, run_trial, scorer
from gossamer.plan.budget import Budget
from gossamer.plan.edits import KeepChannels
from gossamer.plan.score import Scores
from gossamer.program.adapt import Adapter
from gossamer.program.bundle import save
from gossamer.program.capture import capture
from gossamer.program.program import Program
from gossamer.progress import OnProgress, Progress, silent
from gossamer.search.diagnosis.diagnose import diagnose
from gossamer.search.diagnosis.findings import Diagnosis
from gossamer.search.ratio import Tried, next_ratio
from gossamer.targets.export import export
from gossamer.targets.limits import check_limits
from gossamer.targets.results import Report

PLANNED_ONLY = "Where accuracy went is told of the planned codes, before they were trained."
DIAGNOSED_SAMPLES = 32  # enough to rank tensors in a report


def compress(
    model: nn.Module | Program,
    data: Any,
    target: str = "onnxruntime",
    budget: Budget | None = None,
    *,
    metric: str | Callable[..., float] = "top1",
    output: Adapter | None = None,
    work_dir: str | Path | None = None,
    settings: Settings | None = None,
    on_progress: OnProgress = silent,
) -> Result:
    """Make a trained network small and fast for a target, and prove it on the target's own runtime.

    model     any nn.Module that torch.export captures, or a Program; left as it is
    data      Data(train, calibration, validation) or a mapping with these keys; each part an iterable of
              (inputs, target) batches, a Dataset, or arrays. Without train, weights are refitted on calibration data
    budget    limits on the artifact; without one, quantization only is tried and reported
    metric    a name ("top1", "top5") or a function (outputs, targets) -> float, higher is better
    output    for a model that returns more than one tensor: key, index or function, see `capture`
    work_dir  where trials are kept; called again with the same arguments, a run goes on where it was interrupted
    settings  everything else

    Returns the best artifact found: one that meets the budget or, with `budget_met` False and a statement that
    says by how much, the one that comes closest.
    Raises: GossamerError in one sentence for models, data and arguments that cannot be used.
    """
    start = perf_counter()
    settings = replace(settings or Settings(), target=target)
    budget = budget or Budget()
    sources = as_data(data)
    if settings.qat.when == "always" and sources.train is None:
        raise ConfigError("Qat.when", "always", "'auto' or 'never' without training data")
    inputs, _ = calibration(sources).first()
    program = model if isinstance(model, Program) else capture(model, inputs, output=output)
    folder = Path(work_dir) if work_dir is not None else Path(tempfile.mkdtemp(prefix="gossamer-"))
    _claim(folder, program, metric, settings)
    original = export(program, folder / f"original-{artifact_name(target)}", target=target)
    save(program, folder / "original.gossamer")
    job = Job(original, sources, metric, budget, settings, on_progress)
    trials = _search(job, folder)
    best = choose_best(trials)
    diagnosis, notes = _diagnosis(job, best)
    return Result(
        best=best,
        trials=tuple(trials),
        original=original,
        settings=settings,
        notes=(*sources.notes, *notes),
        seconds=perf_counter() - start,
        model=type(model).__name__,
        data=sources.name,
        channels=_removable(program) if any(trial.removed_ratio for trial in trials) else 0,
        diagnosis=diagnosis,
    )


def _removable(program: Program) -> int:
    """Channels that nothing forbids to remove."""
    return sum(int((~group.fixed).sum()) for group in analyse(program).groups)


def _diagnosis(job: Job, best: Trial) -> tuple[Diagnosis | None, tuple[str, ...]]:
    """Where the accuracy went, if more of it went than the budget allows; or a note why that is not known."""
    if all(limit.met for limit in best.report.limits() if limit.name in ACCURACY):
        return None, ()
    plan = best.plans["quantization"]
    data = calibration(job.data)
    try:
        found = diagnose(best.planned, best.pruned, data, plan=plan, samples=DIAGNOSED_SAMPLES, worst=3, on_progress=job.on_progress)
    except PlanError as error:
        return None, (f"What quantization did to accuracy was not looked into: {error}",)
    return found, (PLANNED_ONLY,) if best.qat is not None and best.qat.kept else ()


def _claim(folder: Path, program: Program, metric: Any, settings: Settings) -> None:
    """Note in the folder which run it belongs to; refuse a folder of another run, so that nothing is mixed up."""
    key = {
        "program": program.digest,
        "weights": program.weights_digest(),
        "metric": metric if isinstance(metric, str) else getattr(metric, "__qualname__", repr(metric)),
        "settings": {name: value for name, value in settings.to_json().items() if name != "trials"},
    }
    claim(folder, key, "work_dir", kept=any(folder.glob("trial-*")))


def _search(job: Job, folder: Path) -> list[Trial]:
    scores = scorer(job)
    trials: list[Trial] = []
    tried: list[Tried] = []
    looked = False
    while len(trials) < job.settings.trials:
        ratio = next_ratio(tried, _predictor(job, trials, scores), push=_pushes(job.budget))
        if ratio is None or (ratio and job.budget == Budget()):
            break
        twin = _twin(job, trials, ratio, scores)
        if twin is not None:  # widths that suit the kernels are few: the same network would come out
            tried.append(replace(_tried(twin), removed_ratio=ratio))
            continue
        job.on_progress(Progress("trial", len(trials), job.settings.trials, f"removing {ratio:.0%} of the channels"))
        place = folder / f"trial-{round(ratio * 1000):03d}"
        if not looked and not (place / DONE).exists():
            first_look(job)
            looked = True
        trial = run_trial(job, ratio, place, scores)
        trial = replace(trial, report=_against(trial.report, job.budget))
        trials.append(trial)
        tried.append(_tried(trial))
        best = choose_best(trials)
        write_json(folder / "best.json", {"folder": best.folder.name, "budget_met": best.report.budget_met})
    return trials


def _twin(job: Job, trials: Sequence[Trial], ratio: float, scores: Callable[[], Scores]) -> Trial | None:
    """The trial that removed just what this ratio would."""
    if not trials:
        return None
    plan = plan_removal(job.program, scores(), ratio, job.settings)
    return next((trial for trial in trials if trial.plans["pruning"].edits == plan.edits), None)


def _against(report: Report, budget: Budget) -> Report:
    """The same measurements held against this run's budget (a resumed run may have another one)."""
    if report.budget == budget:
        return report
    limits = check_limits(budget, report.original, report.compressed, report.drop_points)
    other = tuple(text for text in report.problems if text not in {limit.sentence for limit in report.limits()})
    missed = tuple(limit.sentence for limit in limits if not limit.met)
    return replace(report, budget=budget, budget_met=not missed, problems=(*other, *missed))


def _tried(trial: Trial) -> Tried:
    limits = trial.report.limits()
    return Tried(
        trial.removed_ratio,
        fast_enough=all(limit.met for limit in limits if limit.name not in ACCURACY),
        accurate_enough=all(limit.met for limit in limits if limit.name in ACCURACY),
    )


def _pushes(budget: Budget) -> bool:
    """Only accuracy is limited: then the fastest artifact within it is wanted."""
    return budget.max_drop_points is not None and budget == Budget(max_drop_points=budget.max_drop_points)


def choose_best(trials: Sequence[Trial]) -> Trial:
    """Among those that meet the budget the fastest; if none does, the one with the smallest excess."""

    def excess(trial: Trial) -> float:
        total = 0.0
        for limit in trial.report.limits():
            if not limit.met:
                total += abs(limit.measured - limit.limit) / max(abs(limit.limit), 1e-9 if limit.limit else 1.0)
        return total

    return min(trials, key=lambda trial: (not trial.report.passed, excess(trial), -trial.report.speedup))


def _predictor(job: Job, trials: Sequence[Trial], scores: Callable[[], Scores]) -> Callable[[float], bool]:
    """Whether a ratio should be small and fast enough: the last trial's figures scaled by predicted parameters and MACs."""
    if not trials:
        return lambda ratio: True
    budget = job.budget
    last = max(trials, key=lambda trial: trial.removed_ratio).report

    def enough(ratio: float) -> bool:
        params, macs = _predicted_cost(job, scores(), ratio)
        saved = (last.compressed.params - params) * _bytes_per_parameter(last)
        size_bytes = last.compressed.size_bytes - saved
        latency_ms = last.compressed.latency_ms * (macs / max(last.compressed.macs, 1)) ** 0.8  # latency falls slower than MACs
        ram_bytes = int(last.compressed.ram_bytes * (macs / max(last.compressed.macs, 1)) ** 0.5)  # values have one width, MACs two
        guess = replace(
            last.compressed, size_bytes=max(int(size_bytes), 1), latency_ms=latency_ms, params=params, macs=macs, ram_bytes=ram_bytes
        )
        checked = check_limits(budget, last.original, guess, last.drop_points)
        return all(limit.met for limit in checked if limit.name not in ACCURACY)

    return enough


def _bytes_per_parameter(report: Report) -> float:
    return min(report.compressed.size_bytes / max(report.compressed.params, 1), 1.0)


def _predicted_cost(job: Job, scores: Scores, ratio: float) -> tuple[int, int]:
    plan = plan_removal(job.program, scores, ratio, job.settings)
    kept = {edit.group: np.array(edit.keep) for edit in plan.edits if isinstance(edit, KeepChannels)}
    table = keep_table(scores.analysis, kept)
    predictor = Predictor(job.program, scores.analysis)
    return predictor.params(table), predictor.macs(table)
