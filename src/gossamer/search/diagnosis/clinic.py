"""Trying cures: each change of the plan is made, the network run, and those that help together become a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gossamer.apply.engine import apply
from gossamer.batches import Batches
from gossamer.plan.plan import Plan
from gossamer.program.ops.own import ROUNDED
from gossamer.program.program import Program
from gossamer.progress import OnProgress, Progress
from gossamer.search.diagnosis.block_cures import admit_blocks, block_cures
from gossamer.search.diagnosis.cures import KEEP_FLOAT, Candidate, cures_of, equalizing_cures, network_cures
from gossamer.search.diagnosis.damage import DamageMeter
from gossamer.search.diagnosis.evidence import Item
from gossamer.search.diagnosis.findings import VALUE, Cure, Damage
from gossamer.search.diagnosis.measure import Measurements, samples_at_once
from gossamer.search.diagnosis.patient import Patient, admit, fits_int32, float_macs_share, rebuilt_plan
from gossamer.search.diagnosis.twin import Inputs, sample_chunks

LEAST_GAIN_DB = 0.1  # below it, a cure is not worth a change
MOST_ABOVE_DB = 16.4  # a tensor that alone makes so much less noise than all together is a 43rd of it: without it 0.1 dB are gained

Key = tuple[str, str]  # where and name of a cure


@dataclass(frozen=True, slots=True, eq=False)
class Treated:
    """All cures that were tried, the damage with the chosen ones, and their plan (None where none is chosen)."""

    cures: tuple[Cure, ...]
    damage: Damage
    plan: Plan | None


@dataclass(frozen=True, slots=True, eq=False)
class _Course:
    """Cures that were added one by one: what is left of the damage, the plan, and which they are."""

    damage: Damage
    plan: Plan
    names: frozenset[Key]


class Clinic:
    """Tries cures on the samples that damage was measured on. `runs` counts runs of the whole network over them."""

    def __init__(
        self, twin: Program, quantized: Program, batches: Batches, samples: int, measured: Measurements, on_progress: OnProgress
    ) -> None:
        self.runs = 0.0
        self._twin, self._quantized, self._batches = twin, quantized, batches
        self._parts = list(sample_chunks(twin, batches, samples, samples_at_once(twin)))
        self._measured, self._on_progress = measured, on_progress
        self._truth: list[tuple[Tensor, ...]] = []

    def treat(self, original: Program, plan: Plan | None, causes: Mapping[str, str], worst: int, keep_float: bool) -> Treated:
        """Try the cures of the `worst` tensors and those of the whole network; `causes` by tensor.

        Raises: PlanError for a network whose values are all rounded while it runs, or whose plan cannot be read off.
        """
        items = self._worst(worst)
        if self._static():
            patient = admit(original, plan or rebuilt_plan(self._quantized, original), self._batches, self._on_progress)
            candidates = _candidates(patient, items, causes)
            candidates += equalizing_cures(patient, self._batches, {causes[item.name] for item in items}, self._on_progress)
        else:
            patient = admit_blocks(original, plan, self._quantized)
            candidates = list(block_cures(original, self._quantized, items, self._batches))
        tried: list[tuple[Candidate, Cure]] = []
        for done, candidate in enumerate(candidates):
            self._on_progress(Progress("try cures", done, len(candidates), f"{candidate.where} {candidate.name}".strip()))
            cure = self._try(patient, candidate)
            tried += [] if cure is None else [(candidate, cure)]
        self._on_progress(Progress("try cures", len(candidates), len(candidates)))
        course = self._combine(patient, tried, items, causes, keep_float)
        cures = tuple(replace(cure, chosen=(cure.where, cure.name) in course.names) for _, cure in tried)
        return Treated(cures, course.damage, course.plan if course.names else None)

    def _static(self) -> bool:
        """Whether values have codes, too, and none is rounded while the network runs."""
        coded_values = any(found.item.kind == VALUE for found in self._measured.items)
        return coded_values and not any(node.op in ROUNDED for node in self._quantized.graph.nodes)

    def _worst(self, number: int) -> list[Item]:
        """The tensors that hurt most, as far as a cure of one of them could be seen at all."""
        hopeful = self._measured.whole.output_db + MOST_ABOVE_DB
        ranked = sorted(self._measured.items, key=lambda found: found.isolated.output_db)[:number]
        return [found.item for found in ranked if found.isolated.output_db < hopeful]

    def _try(self, patient: Patient, candidate: Candidate) -> Cure | None:
        """Make the change and measure; None where the changed network cannot be written."""
        changed = apply(patient.original, candidate.change(patient.plan))
        if not changed.quantizers or not fits_int32(changed):
            return None
        share = max(0.0, float_macs_share(changed, patient.spec) - float_macs_share(self._quantized, patient.spec))
        return Cure(where=candidate.where, name=candidate.name, before=self._measured.whole, after=self.damage(changed), float_share=share)

    def _combine(
        self, patient: Patient, tried: Sequence[tuple[Candidate, Cure]], items: list[Item], causes: Mapping[str, str], keep_float: bool
    ) -> _Course:
        """Add cures while they help, on the old plan and on the best of those that replace it; the better outcome."""
        helpful = [pair for pair in tried if pair[1].gain_db >= LEAST_GAIN_DB and (keep_float or pair[0].name != KEEP_FLOAT)]
        helpful.sort(key=lambda pair: (pair[0].name == KEEP_FLOAT, -pair[1].gain_db))
        plain = [candidate for candidate, _ in helpful if not candidate.replaces]
        course = self._add(patient.original, _Course(self._measured.whole, patient.plan, frozenset()), plain)
        new = next(((candidate, cure) for candidate, cure in helpful if candidate.replaces), None)
        if new is None:
            return course
        candidate, cure = new
        if not self._static():
            return _Course(cure.after, candidate.change(patient.plan), frozenset({(candidate.where, candidate.name)}))
        changed = admit(patient.original, candidate.change(patient.plan), self._batches, self._on_progress)
        start = _Course(cure.after, changed.plan, frozenset({(candidate.where, candidate.name)}))
        known = {(found.where, found.name) for found in plain}
        again = [found for found in _candidates(changed, items, causes) if (found.where, found.name) in known]
        other = self._add(patient.original, start, again)
        return other if other.damage.output_db > course.damage.output_db else course

    def _add(self, original: Program, course: _Course, candidates: Sequence[Candidate]) -> _Course:
        """Cures in this order, each kept where it helps on top of those before; one for each tensor, but float beats any other."""
        for candidate in candidates:
            taken = {key for key in course.names if key[0] and key[0] == candidate.where}
            if taken and candidate.name != KEEP_FLOAT:
                continue
            changed = candidate.change(course.plan)
            program = apply(original, changed)
            damage = self.damage(program)
            if fits_int32(program) and damage.output_db >= course.damage.output_db + LEAST_GAIN_DB:
                course = _Course(damage, changed, (course.names - taken) | {(candidate.where, candidate.name)})
        return course

    def damage(self, program: Program) -> Damage:
        """Of a changed network, over all samples."""
        meter = DamageMeter()
        program = program.eval()
        self.runs += 1
        with torch.inference_mode():
            for true, inputs in zip(self._true_outputs(), self._parts, strict=True):
                meter.add(true, _outputs(program, inputs))
        return meter.damage()

    def _true_outputs(self) -> list[tuple[Tensor, ...]]:
        if not self._truth:
            self.runs += 1
            self._truth = [_outputs(self._twin, inputs) for inputs in self._parts]
        return self._truth


def _candidates(patient: Patient, items: Sequence[Item], causes: Mapping[str, str]) -> list[Candidate]:
    return [*network_cures(patient), *(cure for item in items for cure in cures_of(patient, item, causes[item.name]))]


def _outputs(program: Program, inputs: Inputs) -> tuple[Tensor, ...]:
    outputs = program(*(tensor.to(program.device) for tensor in inputs))
    return outputs if isinstance(outputs, tuple) else (outputs,)
