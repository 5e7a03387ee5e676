"""Pruning in rounds: score, remove a little, fine-tune against the original, again. Every round is kept and a run can go on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from gossamer.apply.engine import apply
from gossamer.apply.repair import repair
from gossamer.batches import as_batches
from gossamer.data.source import calibration_from
from gossamer.errors import ConfigError, FileError
from gossamer.files import read_json, write_json
from gossamer.pipeline.claim import claim
from gossamer.pipeline.cumulative import Goal, Start, local_plan
from gossamer.pipeline.round_settings import RoundSettings
from gossamer.plan.budget import Budget
from gossamer.plan.plan import Plan
from gossamer.plan.score import score
from gossamer.program.bundle import load, save
from gossamer.program.program import Program
from gossamer.progress import OnProgress, Progress, silent
from gossamer.targets.metrics import Metric, Outputs, compare_accuracy, metric_name
from gossamer.train.fit import fit
from gossamer.train.penalty import GrowingPenalty
from gossamer.train.randomness import seeded
from gossamer.train.recipe import Recipe

_DEFAULT = RoundSettings()
_DONE = "round.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One finished round. The figures with validation data are None when none was given.

    removed_ratio    share of the removable channels of the network at the start that has gone
    accuracy         the metric of this round's network, with its interval
    drop_points      metric of the network at the start minus this, times 100, with its paired interval
    path             the network as a bundle, beside plan.json, which leads there from the start
    """

    number: int
    removed_ratio: float
    params: int
    macs: int
    seconds: float
    path: Path
    accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    drop_points: float | None = None
    drop_interval: tuple[float, float] | None = None

    @property
    def program(self) -> Program:
        """This round's network, fine-tuned."""
        return load(self.path)

    @property
    def plan(self) -> Plan:
        """Which channels of the network at the start are left."""
        return Plan.load(self.path.parent / "plan.json")

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the path."""
        names = ("number", "removed_ratio", "params", "macs", "seconds", "accuracy", "drop_points")
        intervals = {
            name: None if getattr(self, name) is None else list(getattr(self, name)) for name in ("accuracy_interval", "drop_interval")
        }
        return {name: getattr(self, name) for name in names} | intervals


@dataclass(frozen=True, slots=True)
class Rounds:
    """All rounds in order, and the folder that holds them."""

    rounds: tuple[Round, ...]
    folder: Path

    @property
    def program(self) -> Program:
        """The network after the last round."""
        return self.rounds[-1].program

    @property
    def plan(self) -> Plan:
        """Which channels of the network at the start are left after the last round."""
        return self.rounds[-1].plan

    def __str__(self) -> str:
        return "\n".join(_line(entry) for entry in self.rounds)


def prune_rounds(
    program: Program,
    train_data: Any,
    goal: Goal,
    *,
    settings: RoundSettings = _DEFAULT,
    validation: Any = None,
    metric: str | Metric = "top1",
    folder: str | Path | None = None,
    on_progress: OnProgress = silent,
) -> Rounds:
    """Remove channels in rounds, fine-tuning after each with the network at the start as teacher; the argument stays as it is.

    train_data  an iterable of (inputs, target) batches, a Dataset, or arrays; without targets the teacher alone teaches
    goal        share of the removable channels that goes in all, in [0, 1), shares by layer as in plan_pruning, or what may be
                left: Budget(params=0.2, macs=0.3)
    settings    how many rounds, by which criterion, how they are trained
    validation  labelled samples on which every round is compared with the start; None to leave that out
    metric      "top1", "top5", or a function (outputs, targets) -> float, higher is better
    folder      where every finished round is kept; a temporary one by default. Called again with the same arguments, a run goes
                on after its last finished round (and inside a round after the last epoch), with the same result to the bit

    Raises: ConfigError for a goal or setting outside its rule and a folder of another run; PlanError when the goal cannot be
    reached (before anything is trained); DataError and TrainingError as score and fit do; FileError for a damaged folder.
    """
    for share in () if isinstance(goal, Budget) else goal.values() if isinstance(goal, Mapping) else (goal,):
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
            raise ConfigError("goal", goal, "a share in [0, 1), shares by layer, or a Budget")
    place = Path(folder) if folder is not None else Path(tempfile.mkdtemp(prefix="gossamer-"))
    train_data = list(train_data) if isinstance(train_data, Iterator) else train_data  # it is read many times
    claim(place, _identify(program, goal, settings, metric), "folder")
    run = _Run(program, Start.of(program), train_data, goal, settings, validation, metric, on_progress)
    done: list[Round] = []
    for number in range(1, settings.rounds + 1):
        on_progress(Progress("rounds", number - 1, settings.rounds, _line(done[-1]) if done else ""))
        done.append(run.one(number, place / f"round-{number}", done[-1] if done else None))
    on_progress(Progress("rounds", settings.rounds, settings.rounds, _line(done[-1])))
    return Rounds(tuple(done), place)


def _identify(program: Program, goal: Goal, settings: RoundSettings, metric: str | Metric) -> dict[str, Any]:
    return {
        "program": program.digest,
        "weights": program.weights_digest(),
        "goal": goal.to_json() if isinstance(goal, Budget) else dict(goal) if isinstance(goal, Mapping) else goal,
        "metric": metric_name(metric),
        "settings": settings.to_json(),
    }


@dataclass(frozen=True, slots=True)
class _Run:
    """What all rounds share."""

    program: Program
    start: Start
    train_data: Any
    goal: Goal
    settings: RoundSettings
    validation: Any
    metric: str | Metric
    on_progress: OnProgress

    def one(self, number: int, folder: Path, last: Round | None) -> Round:
        """Do a round, or read it from its folder when it was finished before."""
        path = folder / "pruned.gossamer"
        if (folder / _DONE).exists():
            return _read(folder / _DONE, path)
        began = perf_counter()
        # a network that was read from its file, so that a run that goes on starts from the same bits
        current, before = (self.program, Plan((), self.program.digest)) if last is None else (last.program, last.plan)
        samples = self._samples(number)
        plan = self._plan(number, current, before, samples)
        smaller = self._remove(number, current, local_plan(current, before, plan), samples, folder)
        tuned = self._fit(smaller, self.settings.epochs, self.settings.recipe, folder / "fit.safetensors", number)
        save(tuned, path)
        plan.save(folder / "plan.json")
        cost = tuned.cost()
        finished = Round(
            number=number,
            removed_ratio=self.start.removed_ratio(plan),
            params=cost.params,
            macs=cost.macs,
            seconds=perf_counter() - began,
            path=path,
        )
        finished = self._compared(finished, tuned)
        write_json(folder / _DONE, finished.to_json())  # last: a folder with this file is a finished round
        for name in ("fade", "fit"):
            (folder / f"{name}.safetensors").unlink(missing_ok=True)
        return finished

    def _samples(self, number: int) -> Any:
        """Training samples for scoring and repair, the same whenever this round is done."""
        with seeded(self.settings.seed, number, device=torch.device("cpu"), data=self.train_data):
            chosen, _ = calibration_from(self.train_data, self.settings.samples)
            return list(as_batches(chosen, what="training"))

    def _plan(self, number: int, current: Program, before: Plan, samples: Any) -> Plan:
        chosen = self.settings
        scores = score(current, chosen.criterion, samples, chosen.recipe.loss, seed=chosen.seed)
        plan_to = partial(self.start.plan, scores, before, mode=chosen.mode, constraints=chosen.constraints)
        if number == 1:
            plan_to(goal=self.goal)  # raises now rather than after hours when the goal cannot be reached
        return plan_to(goal=self.start.goal_at(self.goal, chosen.progress(number)))

    def _remove(self, number: int, current: Program, step: Plan, samples: Any, folder: Path) -> Program:
        """The network without the channels of this step; faded first and repaired after if that was asked for."""
        if not step.edits:
            return current
        if self.settings.fade_epochs:
            current = self._fit(current, self.settings.fade_epochs, self._fading(step), folder / "fade.safetensors", number)
        smaller = apply(current, step)
        return repair(smaller, current, step, samples, on_progress=self.on_progress) if self.settings.repair else smaller

    def _fading(self, step: Plan) -> Recipe:
        """The recipe with a penalty on what will go that reaches its ceiling half-way."""
        recipe = self.settings.recipe
        batches = as_batches(self.train_data, what="training", batch_size=recipe.batch_size)
        updates = (len(batches) or sum(1 for _ in batches)) * self.settings.fade_epochs
        every = 5
        ceiling = self.settings.fade_ceiling
        penalty = GrowingPenalty(step, delta=ceiling / max(updates // 2 // every, 1), every=every, ceiling=ceiling)
        return replace(recipe, penalty=penalty)

    def _fit(self, program: Program, epochs: int, recipe: Recipe, checkpoint: Path, number: int) -> Program:
        return fit(
            program,
            self.train_data,
            teacher=self.program,
            epochs=epochs,
            recipe=recipe,
            checkpoint=checkpoint,
            seed=self.settings.seed + number,
            on_progress=self.on_progress,
        )

    def _compared(self, entry: Round, tuned: Program) -> Round:
        if self.validation is None:
            return entry
        found = compare_accuracy(self.metric, self._outputs(tuned), what="validation", seed=self.settings.seed)
        return replace(
            entry,
            accuracy=found.compressed,
            accuracy_interval=found.compressed_interval,
            drop_points=found.drop_points,
            drop_interval=found.drop_interval,
        )

    def _outputs(self, tuned: Program) -> Iterator[Outputs]:
        with torch.inference_mode():
            for inputs, target in as_batches(self.validation, what="validation", batch_size=256):
                yield self.program(*inputs), tuned(*inputs), target


def _read(path: Path, bundle: Path) -> Round:
    found = read_json(path, "finished round")
    try:
        for name in ("accuracy_interval", "drop_interval"):
            found[name] = None if found[name] is None else tuple(found[name])
        return Round(**found, path=bundle)
    except (KeyError, TypeError) as error:
        raise FileError(path, f"is no finished round (missing or wrong: {error})", "delete its folder and run again") from error


def _line(entry: Round) -> str:
    text = f"round {entry.number}: {entry.removed_ratio:.0%} of the channels removed, {entry.params:,} params, {entry.macs:,} macs"
    return text if entry.accuracy is None else f"{text}, accuracy {entry.accuracy:.2%} ({-(entry.drop_points or 0):+.2f} points)"
