"""Proof by running: the artifact's file and the original's, on the target's own runtime, side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from gossamer.batches import as_batches
from gossamer.errors import ConfigError, MissingRuntime
from gossamer.files import temporary_folder
from gossamer.plan.budget import Budget
from gossamer.program.program import Program
from gossamer.progress import OnProgress, Progress, silent
from gossamer.targets.coded_ends import open_artifact
from gossamer.targets.export import export
from gossamer.targets.limits import check_limits
from gossamer.targets.measure import machine, versions_of
from gossamer.targets.measurement import Measurement
from gossamer.targets.metrics import Comparison, Metric, compare_accuracy, metric_name
from gossamer.targets.pair import COMPRESSED, ORIGINAL, Costs, Pair, find_costs, measurements
from gossamer.targets.parity import check_parity, parity_problems, samples_to_compare
from gossamer.targets.results import Parity, Report
from gossamer.targets.samples import first_samples, outputs
from gossamer.targets.target import Artifact, Target, targets


def verify(
    artifact: Artifact,
    *,
    reference: Program | Artifact,
    data: Any,
    metric: str | Metric = "top1",
    budget: Budget | None = None,
    threads: int = 1,
    batch: int = 64,
    seed: int = 0,
    on_progress: OnProgress = silent,
) -> Report:
    """Run the artifact and the original on the artifact's target and compare them; nothing is taken on trust.

    reference  the uncompressed network: a Program (written as a float file for this run) or an Artifact of the same target
    data       validation data: an iterable of (inputs, target), a Dataset, or arrays; all of it is used
    metric     "top1", "top5", or a function (outputs, targets) of tensors with all samples -> float, higher is better
    threads    of the runtime. The default 1 is what holds on a machine that others use, too
    batch      samples per call when measuring latency (a network captured with a fixed batch keeps its own)
    seed       of the bootstrap, which functions as metric need

    What fails is in `report.problems`, and `report.passed` is False then: a code farther from the integer simulation
    than the target's stated tolerance, float outputs that differ by more than 1e-4, a limit of the budget missed.
    Raises: DataError for data that cannot be used; ConfigError for an argument outside its rule; FileError for an
    artifact that cannot be opened; MissingRuntime when the target's runtime is not installed. Where a target has a stand-in for a runtime
    that cannot run here (TensorRT without a GPU), that runs the files, latencies are NaN, and `report.notes` says so.
    """
    start = time.perf_counter()
    _check_arguments(artifact, reference, threads, batch)
    check_budget(artifact.target, budget)
    name = metric_name(metric)
    batch = artifact.program.at_once(batch)
    batches = as_batches(data, what="validation", batch_size=batch)
    samples = first_samples(artifact.program, batches, batch)
    with _as_artifact(reference, artifact.target) as original:
        pair = Pair(original, artifact, open_artifact(original, threads=threads), open_artifact(artifact, threads=threads))
        on_progress(Progress("verify", 0, 0, "parity with the simulation"))
        parity, problems = _parity(pair, samples)
        accuracy = compare_accuracy(
            metric, outputs(artifact.program, batches, pair.runners.values(), on_progress), what="validation", seed=seed
        )
        on_progress(Progress("verify", 0, 0, "latency"))
        costs = find_costs(pair, [tensor.numpy() for tensor in samples], "" if budget is None else budget.board)
        before, after = measurements(accuracy, costs, pair)
    missed = [limit.sentence for limit in check_limits(budget, before, after, accuracy.drop_points) if not limit.met]
    settings: dict[str, Any] = {"threads": threads, "batch": batch, "seed": seed, "metric": name, "budget": budget}
    return Report(
        parity=parity,
        budget_met=not missed,
        problems=(*problems, *missed),
        target=artifact.target,
        machine=machine(),
        versions=_versions(targets[artifact.target]),
        notes=artifact.notes,
        seconds=time.perf_counter() - start,
        **settings,
        **_compared(before, after, accuracy, costs),
    )


def _compared(before: Measurement, after: Measurement, accuracy: Comparison, costs: Costs) -> dict[str, Any]:
    """What a report says about both files, alone and together."""
    return {
        "original": before,
        "compressed": after,
        "size_ratio": before.size_bytes / after.size_bytes,
        "speedup": costs.latencies.speedup(ORIGINAL, COMPRESSED),
        "paired_speedup": costs.latencies.paired_speedup(ORIGINAL, COMPRESSED),
        "repeats": costs.repeats,
        "steady": costs.latencies.steady,
        "drop_points": accuracy.drop_points,
        "drop_interval": accuracy.drop_interval,
        "samples": accuracy.samples,
        "layer_sparsity": {name: share for name, share in costs.zeros[COMPRESSED].items() if name},
        "chip": costs.chip,
    }


def _versions(target: Target) -> dict[str, str]:
    found = target.runtime_version
    return versions_of("gossamer", "torch") | ({target.runtime: found} if found else {})


def _check_arguments(artifact: Artifact, reference: Program | Artifact, threads: int, batch: int) -> None:
    for name, value in (("threads", threads), ("batch", batch)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(name, value, "a whole number, at least 1")
    if isinstance(reference, Artifact) and reference.target != artifact.target:
        raise ConfigError("reference", reference.target, f"an artifact of the same target, {artifact.target!r}")
    program = reference.program if isinstance(reference, Artifact) else reference
    forms = [[(spec.shape, spec.dtype) for spec in network.inputs] for network in (program, artifact.program)]
    if forms[0] != forms[1]:
        raise ConfigError(
            "reference", ", ".join(map(str, program.inputs)), f"a network with the inputs {', '.join(map(str, artifact.program.inputs))}"
        )


def check_budget(name: str, budget: Budget | None) -> None:
    """Whether a target can be held against a budget.

    Raises: MissingRuntime for limits on latency where the target's runtime cannot run (nothing else's speed would do); ConfigError for a
    board where files are not for chips.
    """
    target = targets[name]
    if budget is not None and (budget.min_speedup or budget.max_latency_ms) and target.stand_in:
        raise MissingRuntime(target.runtime, f"a budget with a limit on latency on {name}", target.install_command)
    if budget is not None and (budget.board or budget.max_ram_bytes) and target.inspect is None:
        fitting = ", ".join(entry.name for entry in targets if entry.value.inspect is not None)
        raise ConfigError(
            "budget", budget.board or budget.max_ram_bytes, f"without board and max_ram_bytes for {name}; {fitting} write for chips"
        )


@contextmanager
def _as_artifact(reference: Program | Artifact, target: str) -> Iterator[Artifact]:
    """The reference as a file; one written here is gone afterwards."""
    if isinstance(reference, Artifact):
        yield reference
        return
    with temporary_folder() as folder:
        yield export(reference, folder / f"original{targets[target].suffix}", target)


def _parity(pair: Pair, samples: tuple[Tensor, ...]) -> tuple[Parity, list[str]]:
    """The artifact's parity, and the problems of both: a wrong original would make every comparison worthless."""
    number = samples_to_compare(pair.artifact.program, len(samples[0]))
    few = tuple(tensor[:number] for tensor in samples)
    parity = check_parity(pair.artifact, pair.runner, few)
    problems = parity_problems(parity, pair.artifact, "the artifact")
    if pair.original is not pair.artifact:
        problems += parity_problems(check_parity(pair.original, pair.original_runner, few), pair.original, "the original")
    return parity, problems
