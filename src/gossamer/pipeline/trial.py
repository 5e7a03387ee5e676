"""One trial: remove a share of the channels, fine-tune, quantize, export, verify. Everything is kept in its folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gossamer.apply.engine import apply
from gossamer.apply.repair import repair
from gossamer.batches import Batches, as_batches
from gossamer.data.source import Data
from gossamer.errors import DataError, TrainingError
from gossamer.files import read_json, write_json
from gossamer.pipeline.coding import plan_codes
from gossamer.pipeline.quantized_training import QatOutcome, train_quantized
from gossamer.pipeline.settings import TOURNAMENT, Settings
from gossamer.plan.budget import Budget
from gossamer.plan.plan import Plan
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.score import Scores, score
from gossamer.plan.spec import specs
from gossamer.program.bundle import load, save
from gossamer.program.program import Program
from gossamer.progress import OnProgress
from gossamer.search.tournament import tournament
from gossamer.targets.export import export
from gossamer.targets.limits import check_limits
from gossamer.targets.results import Report
from gossamer.targets.target import Artifact, targets
from gossamer.targets.value_errors import value_errors
from gossamer.targets.verify import verify
from gossamer.train.fit import fit
from gossamer.train.recipe import Recipe

Metric = Any
ACCURACY = ("max_drop_points",)  # limits of a budget on it
DONE = "report.json"  # what a finished trial has in its folder
TOURNAMENT_RATIO = 0.5  # of the channels, at which criteria are compared


@dataclass(frozen=True, slots=True)
class Job:
    """What all trials of a run share."""

    original: Artifact
    data: Data
    metric: Metric
    budget: Budget
    settings: Settings
    on_progress: OnProgress

    @property
    def program(self) -> Program:
        """The uncompressed network."""
        return self.original.program


@dataclass(frozen=True, slots=True)
class Trial:
    """A finished trial: its ratio, what verifying found, and the folder with its files."""

    removed_ratio: float
    report: Report
    folder: Path

    @property
    def pruned(self) -> Program:
        """The pruned (and fine-tuned) float program."""
        return load(self.folder / "pruned.gossamer")

    @property
    def quantized(self) -> Program:
        """The program that the artifact was written from."""
        return load(self.folder / "model.gossamer")

    @property
    def planned(self) -> Program:
        """The program with planned codes, before it was trained through their rounding, if it was."""
        return apply(self.pruned, self.plans["quantization"])

    @property
    def precision(self) -> dict[str, Any] | None:
        """The formats by layer and what they were chosen by, as plain data; None where all layers have one format."""
        path = self.folder / "precision.json"
        return dict(read_json(path, "choice of formats")) if path.exists() else None

    @property
    def qat(self) -> QatOutcome | None:
        """What training through the rounding did; None where it was not tried."""
        path = self.folder / "qat.json"
        return QatOutcome.from_json(read_json(path, "outcome of training")) if path.exists() else None

    @property
    def errors_db(self) -> dict[str, float]:
        """Signal to quantization error in decibels of each quantized value on calibration data."""
        return dict(read_json(self.folder / "errors.json", "table of errors"))

    @property
    def plans(self) -> dict[str, Plan]:
        """The plans that led there, by step."""
        return {name: Plan.load(self.folder / f"{name}.json") for name in ("pruning", "quantization")}


def artifact_name(target: str) -> str:
    """File name of the artifact."""
    return f"model{targets[target].suffix}"


def run_trial(job: Job, removed_ratio: float, folder: Path, scores: Callable[[], Scores]) -> Trial:
    """Run a trial, or read it from its folder when it was finished before."""
    done = folder / DONE
    if done.exists():
        trial = Trial(removed_ratio, Report.from_dict(read_json(done, "report")), folder)
        if trial.qat is not None or not _should_train(job, trial.report):  # another budget may ask for it
            return trial
    program, settings = job.program, job.settings
    pruning = plan_removal(program, scores(), removed_ratio, settings) if removed_ratio else Plan((), program.digest)
    pruned = _recover(job, apply(program, pruning), pruning, folder) if pruning.edits else program
    quantization, precision = plan_codes(pruned, calibration(job.data), settings, job.on_progress)
    quantized, report = _proven(job, apply(pruned, quantization), folder)
    save(pruned, folder / "pruned.gossamer")
    save(quantized, folder / "model.gossamer")
    pruning.save(folder / "pruning.json")
    quantization.save(folder / "quantization.json")
    if precision is not None:
        write_json(folder / "precision.json", precision.to_json())
    write_json(folder / "errors.json", value_errors(quantized, pruned, calibration(job.data), plan=quantization))
    write_json(done, report.to_dict())  # last: a folder with a report is a finished trial
    return Trial(removed_ratio, report, folder)


def _proven(job: Job, planned: Program, folder: Path) -> tuple[Program, Report]:
    """The network with its planned codes, or trained through their rounding where that is asked for and better, as its file runs."""
    report = _verified(job, planned, folder)
    settings = job.settings
    if not _should_train(job, report):
        return planned, report
    outcome = QatOutcome(epochs=settings.qat.epochs, planned_drop_points=report.drop_points)
    kept, better = planned, report
    try:
        trained = train_quantized(
            planned,
            job.program,
            job.data.train,
            settings.qat,
            tuned=settings.recipe,
            checkpoint=folder / "qat.safetensors",
            seed=settings.seed,
            on_progress=job.on_progress,
        )
    except (DataError, TrainingError) as error:
        if settings.qat.when == "always":
            raise
        outcome = replace(outcome, problem=str(error))
    else:
        found = _verified(job, trained, folder / "trained")
        outcome = replace(outcome, trained_drop_points=found.drop_points, kept=found.drop_points < report.drop_points)
        if outcome.kept:
            kept, better = trained, found
            _written(job, trained, folder)
    write_json(folder / "qat.json", outcome.to_json())
    return kept, better


def _should_train(job: Job, report: Report) -> bool:
    """Whether a file with planned codes is to be trained through its rounding."""
    when = job.settings.qat.when
    limits = check_limits(job.budget, report.original, report.compressed, report.drop_points)
    missed = any(limit.name in ACCURACY and not limit.met for limit in limits)
    return job.data.train is not None and (when == "always" or (when == "auto" and missed))


def _written(job: Job, quantized: Program, folder: Path) -> Artifact:
    return export(quantized, folder / artifact_name(job.settings.target), target=job.settings.target)


def _verified(job: Job, quantized: Program, folder: Path) -> Report:
    settings = job.settings
    return verify(
        _written(job, quantized, folder),
        reference=job.original,
        data=validation(job.data),
        metric=job.metric,
        budget=job.budget,
        threads=settings.threads,
        batch=settings.batch,
        seed=settings.seed,
        on_progress=job.on_progress,
    )


def plan_removal(program: Program, scores: Scores, removed_ratio: float, settings: Settings) -> Plan:
    """A pruning plan within the constraints. Widths suit the target's kernels as far as the network is wide enough to have a choice."""
    constraints = settings.constraints
    if constraints.multiple == 1:
        sizes = [group.size for group in scores.analysis.groups if group.prunable]
        multiple = specs[settings.target].width_multiple
        while multiple > 1 and sum(size for size in sizes if size >= 2 * multiple) < 0.75 * sum(sizes):
            multiple //= 2
        constraints = replace(constraints, multiple=multiple)
    return plan_pruning(program, scores, removed_ratio, mode=settings.mode, constraints=constraints)


def _recover(job: Job, pruned: Program, pruning: Plan, folder: Path) -> Program:
    """Win accuracy back: by fine-tuning with training data, else by refitting weights on calibration data."""
    if job.data.train is None or not job.settings.epochs:
        return repair(pruned, job.program, pruning, calibration(job.data), on_progress=job.on_progress)
    recipe = job.settings.recipe or Recipe()
    return fit(
        pruned,
        as_batches(job.data.train, what="training", batch_size=recipe.batch_size, shuffle=True),
        teacher=job.program,
        epochs=job.settings.epochs,
        recipe=recipe,
        checkpoint=folder / "fit.safetensors",
        seed=job.settings.seed,
        on_progress=job.on_progress,
    )


def calibration(data: Data) -> Batches:
    """The calibration part as batches."""
    return as_batches(data.calibration, what="calibration")


def validation(data: Data) -> Batches:
    """The validation part as batches."""
    return as_batches(data.validation, what="validation")


def _play(job: Job) -> Scores:
    """Scores of the criterion that does least damage at a middle ratio, after repair, on calibration data."""
    settings = job.settings
    played = tournament(
        job.program,
        calibration(job.data),
        TOURNAMENT_RATIO,
        mode=settings.mode,
        constraints=settings.constraints,
        on_progress=job.on_progress,
    )
    return played.scores


def scorer(job: Job) -> Callable[[], Scores]:
    """Scores of the original's channels, computed when first needed."""
    found: list[Scores] = []

    def scores() -> Scores:
        if not found and job.settings.criterion == TOURNAMENT:
            found.append(_play(job))
        elif not found:
            labelled = job.data.train is not None and as_batches(job.data.train, what="training").first()[1] is not None
            name = job.settings.criterion or ("taylor" if labelled else "l2")
            batches = as_batches(job.data.train, what="training") if labelled else calibration(job.data)
            loss = None if job.settings.recipe is None else job.settings.recipe.loss
            found.append(score(job.program, name, batches, loss, seed=job.settings.seed))
        return found[0]

    return scores
