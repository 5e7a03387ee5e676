"""What `compress` returns: the best artifact with everything that proves it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer.errors import FileError
from gossamer.files import write_json, write_with
from gossamer.pipeline.layers import layer_rows
from gossamer.pipeline.settings import Settings
from gossamer.pipeline.trial import Trial, artifact_name
from gossamer.plan.budget import Budget
from gossamer.plan.edits import KeepChannels
from gossamer.program.program import Program
from gossamer.report.document import write_report
from gossamer.search.diagnosis.findings import Diagnosis
from gossamer.targets.results import Report
from gossamer.targets.target import Artifact


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The best trial, all trials, and the original as it ran beside them. `print(result)` shows the table.

    channels   of the original that could be removed
    diagnosis  where the accuracy of the best artifact went when it was quantized; None where it lost no more than the budget allows
    """

    best: Trial
    trials: tuple[Trial, ...]
    original: Artifact
    settings: Settings
    notes: tuple[str, ...]
    seconds: float
    model: str
    data: str = ""
    channels: int = 0
    diagnosis: Diagnosis | None = None

    @property
    def report(self) -> Report:
        """What verifying the best artifact found."""
        return self.best.report

    @property
    def budget_met(self) -> bool:
        """Whether every limit holds for the best artifact."""
        return self.report.budget_met

    @property
    def program(self) -> Program:
        """The program of the best artifact, quantized."""
        return self.best.quantized

    @property
    def artifact(self) -> Artifact:
        """The best artifact's file, in the work folder until `save` copies it."""
        return Artifact(self.best.folder / artifact_name(self.settings.target), self.settings.target, self.program)

    @property
    def statement(self) -> str:
        """In one or two sentences: was the budget met, and if not, what comes closest."""
        tried = f"{len(self.trials)} candidate{'s' if len(self.trials) > 1 else ''} tried"
        gone = self._removed(self.best)
        share = f"removing {gone:.0%} of the channels" if gone else "keeping all channels"
        qat = self.best.qat
        trained = "" if qat is None else f" {qat.sentence[0].upper()}{qat.sentence[1:]}"
        trained = self._formats + trained
        if self.report.passed and self.report.budget == Budget():
            return f"Quantized, all channels kept: no budget was given.{trained}"
        if self.report.passed:
            return f"Met by {share} ({tried}).{trained}"
        problems = " ".join(self.report.problems)
        return f"Not met after {tried}; the closest comes from {share}. {problems}{trained} Relax the budget, allow more epochs, or give more training data."

    def to_dict(self) -> dict[str, Any]:
        """The report document: what --json prints and report.json holds."""
        document = self.report.to_dict()
        document |= {
            "seconds": self.seconds,
            "statement": self.statement,
            "model": self.model,
            "data": self.data,
            "settings": self.settings.to_json(),
            "candidates": [self._candidate(trial) for trial in self.trials],
            "layers": layer_rows(self.original.program, self.best),
            "notes": [*self.report.notes, *(note for plan in self.best.plans.values() for note in plan.notes)],
            "frozen": [*self._frozen(), *({"where": "data", "reason": note} for note in self.notes)],
        }
        if self.best.precision is not None:
            document["precision"] = self.best.precision
        return document | ({} if self.diagnosis is None else {"diagnosis": self.diagnosis.to_dict()})

    def save(self, folder: str | Path) -> Path:
        """Write the artifact, the FP32 original beside it, the bundle, plan.json, report.json and report.html.

        Raises: FileError when the folder cannot be written; the work folder keeps everything.
        """
        folder = Path(folder)
        copies = {
            **{path.relative_to(self.original.path.parent).as_posix(): path for path in self.original.files},
            **{
                path.relative_to(self.artifact.path.parent).as_posix(): path for path in self.artifact.files
            },  # what both have is for the artifact
            "original.gossamer": self.original.path.parent / "original.gossamer",
            "model.gossamer": self.best.folder / "model.gossamer",
            "pruned.gossamer": self.best.folder / "pruned.gossamer",
        }
        for to, source in copies.items():
            _copy(source, folder / to)
        write_json(folder / "plan.json", {step: plan.to_json() for step, plan in self.best.plans.items()})
        write_report(self.to_dict(), folder)
        return folder

    def __str__(self) -> str:
        return f"{self.report}\n{self.statement}"

    @property
    def _formats(self) -> str:
        """The formats by layer, counted."""
        precision = self.best.precision
        if precision is None:
            return ""
        counts = Counter(precision["rules"].values())
        return f" Weights by layer: {', '.join(f'{count} x {name}' for name, count in counts.items())}, {precision['bits']:.2f} bits each."

    def _removed(self, trial: Trial) -> float:
        """Share of the removable channels that is gone; widths that suit the kernels make it another one than was asked for."""
        edits = trial.plans["pruning"].edits
        gone = sum(edit.size - len(edit.keep) for edit in edits if isinstance(edit, KeepChannels))
        return gone / self.channels if self.channels else 0.0

    def _candidate(self, trial: Trial) -> Mapping[str, Any]:
        report = trial.report
        gone, qat = self._removed(trial), trial.qat
        name = f"{gone:.1%} removed" if gone else "quantized only"
        return {
            "name": f"{name}, codes trained" if qat is not None and qat.kept else name,
            "qat": None if qat is None else qat.to_json(),
            "removed_ratio": gone,
            "accuracy": report.compressed.accuracy,
            "latency_ms": report.compressed.latency_ms,
            "size_bytes": report.compressed.size_bytes,
            "drop_points": report.drop_points,
            "speedup": report.speedup,
            "size_ratio": report.size_ratio,
            "budget_met": report.budget_met,
            "chosen": trial is self.best,
        }

    def _frozen(self) -> list[dict[str, str]]:
        return [{"where": item.where, "reason": item.reason} for plan in self.best.plans.values() for item in plan.frozen]


def _copy(source: Path, target: Path) -> None:
    if source.resolve() == target.resolve():
        return
    if not source.exists():
        raise FileError(source, "is gone", "run compress again with a work_dir that stays")

    def copy(temporary: Path) -> None:
        shutil.copyfile(source, temporary)

    write_with(target, copy)
