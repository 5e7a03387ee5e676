"""Why did accuracy drop: each coded tensor measured by itself, a cause named, and cures tried."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gossamer.apply.engine import apply
from gossamer.batches import Batches, as_batches
from gossamer.errors import ConfigError, PlanError
from gossamer.numerics.distance import decibels
from gossamer.plan.plan import Plan
from gossamer.program.ops.own import ROUNDED
from gossamer.program.program import Program
from gossamer.progress import OnProgress, Progress, silent
from gossamer.search.diagnosis.causes import find_cause
from gossamer.search.diagnosis.cures import KEEP_FLOAT, Candidate, cures_of, network_cures
from gossamer.search.diagnosis.damage import DamageMeter
from gossamer.search.diagnosis.evidence import items_of
from gossamer.search.diagnosis.findings import VALUE, Cure, Damage, Diagnosis, Finding
from gossamer.search.diagnosis.measure import Measured, Measurements, measure_items, samples_at_once
from gossamer.search.diagnosis.patient import Patient, admit, fits_int32, float_macs_share, rebuilt_plan
from gossamer.search.diagnosis.twin import Inputs, check_twin, float_twin, sample_chunks

SAMPLES = 64
WORST = 5
LEAST_GAIN_DB = 0.1  # below it, a cure is not worth a change
MOST_ABOVE_DB = 16.4  # a tensor that alone makes so much less noise than all together is a 43rd of it: without it 0.1 dB are gained


def diagnose(
    quantized: Program,
    original: Program,
    data: Any,
    *,
    plan: Plan | None = None,
    samples: int = SAMPLES,
    worst: int = WORST,
    keep_float: bool = False,
    on_progress: OnProgress = silent,
) -> Diagnosis:
    """Find which coded tensors hurt a quantized network's outputs, why, and what helps.

    quantized   the network; original: the float one that was quantized
    data        samples without labels: an iterable of batches, a Dataset, or arrays
    plan        what quantized it; read off the two networks where it is not given
    samples     on which damage is measured: the first of the data. Cures are calibrated on all of it
    worst       how many of the tensors that hurt most get cures; 0 to try none
    keep_float  whether cures that leave layers in float, and so cost speed, may be chosen; they are tried in any case

    Cost: each coded tensor by itself costs a run of what lies behind it, about half a run of the network; each cure one run.
    Raises: PlanError for a network without quantizers, and for a float network that it was not made from; ConfigError for an argument
    outside its rule; DataError for data that cannot be used.
    """
    start = time.perf_counter()
    _check(quantized, samples, worst)
    batches = as_batches(data, what="diagnosis")
    quantized = quantized.copy().eval()
    twin = float_twin(quantized, original, plan)
    first = next(sample_chunks(twin, batches, 1, 1))
    check_twin(twin, original, quantized, tuple(tensor.to(twin.device) for tensor in first))
    measured = measure_items(quantized, twin, items_of(quantized), batches, samples, on_progress)
    clinic = _Clinic(twin, quantized, batches, samples, measured, on_progress)
    notes: list[str] = []
    findings = [_finding(found) for found in measured.items]
    network: tuple[Cure, ...] = ()
    cured, chosen = measured.whole, None
    if worst:
        try:
            network, findings, cured, chosen = clinic.treat(original, plan, findings, worst, keep_float)
        except PlanError as error:
            notes.append(f"No cures were tried: {error}")
    return Diagnosis(
        findings=tuple(findings),
        quantized=measured.whole,
        cured=cured,
        network=network,
        plan=chosen,
        samples=measured.samples,
        runs=measured.runs + clinic.runs,
        seconds=time.perf_counter() - start,
        notes=tuple(notes),
    )


def _check(quantized: Program, samples: int, worst: int) -> None:
    if not quantized.quantizers and not any(node.op in ROUNDED for node in quantized.graph.nodes):
        raise PlanError("the network is not quantized, so there is nothing to diagnose; give the quantized one.")
    if isinstance(samples, bool) or samples < 1:
        raise ConfigError("samples", samples, "at least 1")
    if isinstance(worst, bool) or worst < 0:
        raise ConfigError("worst", worst, "0 or more")


def _finding(found: Measured) -> Finding:
    item, split = found.item, found.evidence.split
    return Finding(
        name=item.name,
        kind=item.kind,
        layer=item.layer,
        format=item.format,
        isolated=found.isolated,
        own_db=decibels(split.signal, split.noise),
        cumulative_db=found.cumulative_db,
        clipping_share=split.clipping_share,
        clipped_share=split.clipped_share,
        cause=find_cause(found.evidence),
    )


class _Clinic:
    """Tries cures on the samples that damage was measured on."""

    def __init__(
        self, twin: Program, quantized: Program, batches: Batches, samples: int, measured: Measurements, on_progress: OnProgress
    ) -> None:
        self.runs = 0.0
        self._twin, self._quantized, self._batches = twin, quantized, batches
        self._parts = list(sample_chunks(twin, batches, samples, samples_at_once(twin)))
        self._measured, self._on_progress = measured, on_progress
        self._truth: list[tuple[Tensor, ...]] = []

    def treat(
        self, original: Program, plan: Plan | None, findings: list[Finding], worst: int, keep_float: bool
    ) -> tuple[tuple[Cure, ...], list[Finding], Damage, Plan | None]:
        """Cures of the network, findings with theirs, the damage with the chosen ones, and their plan."""
        if any(node.op in ROUNDED for node in self._quantized.graph.nodes) or not any(
            found.item.kind == VALUE for found in self._measured.items
        ):
            raise PlanError("cures are for static quantization; this network rounds values while it runs, or only its weights are coded.")
        patient = admit(original, plan or rebuilt_plan(self._quantized, original), self._batches, self._on_progress)
        hopeful = self._measured.whole.output_db + MOST_ABOVE_DB
        ranked = sorted(self._measured.items, key=lambda found: found.isolated.output_db)[:worst]
        ranked = [found for found in ranked if found.isolated.output_db < hopeful]
        causes = {finding.name: finding.cause.label for finding in findings}
        candidates = [
            *network_cures(patient),
            *(cure for found in ranked for cure in cures_of(patient, found.item, causes[found.item.name])),
        ]
        tried: list[tuple[Candidate, Cure]] = []
        for done, candidate in enumerate(candidates):
            self._on_progress(Progress("try cures", done, len(candidates), f"{candidate.where} {candidate.name}".strip()))
            cure = self._try(patient, candidate)
            tried += [] if cure is None else [(candidate, cure)]
        self._on_progress(Progress("try cures", len(candidates), len(candidates)))
        cured, chosen, names = self._combine(patient, tried, keep_float)
        cures = [replace(cure, chosen=(candidate.where, candidate.name) in names) for candidate, cure in tried]
        network = tuple(cure for cure in cures if not cure.where)
        treated = [replace(finding, cures=tuple(cure for cure in cures if cure.where == finding.name)) for finding in findings]
        return network, treated, cured, chosen

    def _try(self, patient: Patient, candidate: Candidate) -> Cure | None:
        """Make the change and measure; None where the changed network cannot be written."""
        changed = apply(patient.original, candidate.change(patient.plan))
        if not changed.quantizers or not fits_int32(changed):
            return None
        share = max(0.0, float_macs_share(changed, patient.spec) - float_macs_share(self._quantized, patient.spec))
        return Cure(where=candidate.where, name=candidate.name, before=self._measured.whole, after=self.damage(changed), float_share=share)

    def _combine(
        self, patient: Patient, tried: Sequence[tuple[Candidate, Cure]], keep_float: bool
    ) -> tuple[Damage, Plan | None, set[tuple[str, str]]]:
        """Add cures while they help, those that cost no speed first, the best one of each tensor."""
        helpful = [pair for pair in tried if pair[1].gain_db >= LEAST_GAIN_DB and (keep_float or pair[0].name != KEEP_FLOAT)]
        helpful.sort(key=lambda pair: (pair[0].name == KEEP_FLOAT, -pair[1].gain_db))
        plan, best, names = patient.plan, self._measured.whole, set[tuple[str, str]]()
        for candidate, _ in helpful:
            if candidate.name != KEEP_FLOAT and candidate.where and any(where == candidate.where for where, _ in names):
                continue
            changed = candidate.change(plan)
            program = apply(patient.original, changed)
            damage = self.damage(program)
            if fits_int32(program) and damage.output_db >= best.output_db + LEAST_GAIN_DB:
                plan, best = changed, damage
                names = {known for known in names if not candidate.where or known[0] != candidate.where} | {
                    (candidate.where, candidate.name)
                }
        return best, plan if names else None, names

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


def _outputs(program: Program, inputs: Inputs) -> tuple[Tensor, ...]:
    outputs = program(*(tensor.to(program.device) for tensor in inputs))
    return outputs if isinstance(outputs, tuple) else (outputs,)
