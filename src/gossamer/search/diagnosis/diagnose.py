"""Why did accuracy drop: each coded tensor measured by itself, a cause named, and cures tried."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from gossamer.batches import as_batches
from gossamer.errors import ConfigError, PlanError
from gossamer.numerics.distance import decibels
from gossamer.plan.plan import Plan
from gossamer.program.ops.own import ROUNDED
from gossamer.program.program import Program
from gossamer.progress import OnProgress, silent
from gossamer.search.diagnosis.causes import find_cause
from gossamer.search.diagnosis.clinic import Clinic
from gossamer.search.diagnosis.evidence import items_of
from gossamer.search.diagnosis.findings import Cure, Diagnosis, Finding
from gossamer.search.diagnosis.measure import Measured, measure_items
from gossamer.search.diagnosis.twin import check_twin, float_twin, sample_chunks

SAMPLES = 64
WORST = 5


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
    batches = as_batches(data, what="diagnosis", batch_size=quantized.at_once())
    quantized = quantized.copy().eval()
    twin = float_twin(quantized, original, plan)
    first = next(sample_chunks(twin, batches, 1, 1))
    check_twin(twin, original, quantized, tuple(tensor.to(twin.device) for tensor in first))
    measured = measure_items(quantized, twin, items_of(quantized), batches, samples, on_progress)
    clinic = Clinic(twin, quantized, batches, samples, measured, on_progress)
    notes: list[str] = []
    findings = [_finding(found) for found in measured.items]
    network: tuple[Cure, ...] = ()
    cured, chosen = measured.whole, None
    if worst:
        try:
            treated = clinic.treat(original, plan, {finding.name: finding.cause.label for finding in findings}, worst, keep_float)
            network, cured, chosen = tuple(cure for cure in treated.cures if not cure.where), treated.damage, treated.plan
            findings = [replace(finding, cures=tuple(cure for cure in treated.cures if cure.where == finding.name)) for finding in findings]
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
