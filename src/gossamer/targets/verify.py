"""Proof by running: the artifact's file and the original's, on the target's own runtime, side by side."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gossamer.batches import Batches, as_batches
from gossamer.errors import ConfigError, DataError, MissingRuntime
from gossamer.numerics.intervals import Interval
from gossamer.plan.budget import Budget
from gossamer.program.program import Program
from gossamer.progress import OnProgress, Progress, silent
from gossamer.targets.coded_ends import as_bare, open_artifact
from gossamer.targets.energy import Energy, estimate_energy, find_counter, measure_energy
from gossamer.targets.export import export
from gossamer.targets.limits import check_limits
from gossamer.targets.measure import Latencies, machine, measure_latency, not_measured, versions_of
from gossamer.targets.metrics import Comparison, Metric, Outputs, compare_accuracy, metric_name
from gossamer.targets.parity import check_parity, parity_problems, samples_to_compare
from gossamer.targets.results import Measurement, Parity, Report
from gossamer.targets.target import Artifact, Runner, Target, targets

Array = npt.NDArray[Any]
ORIGINAL, COMPRESSED = "original", "compressed"


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
    _check_budget(artifact.target, budget)
    name = metric_name(metric)
    fixed = artifact.program.inputs[0].shape[0]
    batch = batch if fixed is None else fixed
    batches = as_batches(data, what="validation", batch_size=batch)
    samples = _first_samples(artifact.program, batches, batch)
    with _as_artifact(reference, artifact.target) as original:
        runners = {ORIGINAL: open_artifact(original, threads=threads), COMPRESSED: open_artifact(artifact, threads=threads)}
        on_progress(Progress("verify", 0, 0, "parity with the simulation"))
        parity, problems = _parity(artifact, original, runners, samples)
        accuracy = compare_accuracy(metric, _outputs(artifact.program, batches, runners, on_progress), what="validation", seed=seed)
        on_progress(Progress("verify", 0, 0, "latency"))
        arrays = [tensor.numpy() for tensor in samples]
        timed = not targets[artifact.target].stand_in
        bare = {name: as_bare(runner, *arrays) for name, runner in runners.items()}
        latencies = measure_latency(bare, arrays) if timed else not_measured(bare)
        energy = _energies(original, artifact, bare, arrays)
        board = "" if budget is None else budget.board
        inspect = targets[artifact.target].inspect
        chip = None if inspect is None else inspect(artifact.path, [array[:1] for array in arrays], board)
        zeros = {ORIGINAL: original.sparsity(), COMPRESSED: artifact.sparsity()}
        before, after = _measurements(accuracy, latencies, zeros, energy, original, artifact)
    limits = check_limits(budget, before, after, accuracy.drop_points)
    return Report(
        original=before,
        compressed=after,
        size_ratio=before.size_bytes / after.size_bytes,
        speedup=latencies.speedup(ORIGINAL, COMPRESSED),
        paired_speedup=latencies.paired_speedup(ORIGINAL, COMPRESSED),
        drop_points=accuracy.drop_points,
        drop_interval=accuracy.drop_interval,
        parity=parity,
        budget=budget,
        budget_met=all(limit.met for limit in limits),
        problems=(*problems, *(limit.sentence for limit in limits if not limit.met)),
        target=artifact.target,
        threads=threads,
        batch=batch,
        seed=seed,
        seconds=time.perf_counter() - start,
        samples=accuracy.samples,
        metric=name,
        repeats=latencies.repeats if timed else 0,
        steady=latencies.steady,
        machine=machine(),
        versions=_versions(targets[artifact.target]),
        layer_sparsity={name: share for name, share in zeros[COMPRESSED].items() if name},
        notes=artifact.notes,
        chip=chip,
    )


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


def _check_budget(name: str, budget: Budget | None) -> None:
    """Raise MissingRuntime for limits on latency where the target's runtime cannot run: nothing else's speed would do."""
    target = targets[name]
    if budget is not None and (budget.min_speedup or budget.max_latency_ms) and target.stand_in:
        raise MissingRuntime(target.runtime, f"a budget with a limit on latency on {name}", target.install_command)
    if budget is not None and (budget.board or budget.max_ram_bytes) and target.inspect is None:
        fitting = ", ".join(entry.name for entry in targets if entry.value.inspect is not None)
        raise ConfigError(
            "budget", budget.board or budget.max_ram_bytes, f"without board and max_ram_bytes for {name}; {fitting} write for chips"
        )


def _energies(original: Artifact, artifact: Artifact, runners: Mapping[str, Runner], arrays: Sequence[Array]) -> dict[str, Energy]:
    """Estimates, and measurements where this machine has a counter and the runtime runs on it, not on an emulated chip."""
    found = {ORIGINAL: estimate_energy(original.program), COMPRESSED: estimate_energy(artifact.program)}
    target, counter = targets[artifact.target], find_counter()
    if counter is None or target.stand_in or target.inspect is not None:
        return found
    calls = {name: partial(runner.run, *arrays) for name, runner in runners.items()}
    measured = measure_energy(calls, counter, len(arrays[0]))
    return {name: replace(energy, measured_mj=measured[name], counter=counter.name) for name, energy in found.items()}


@contextmanager
def _as_artifact(reference: Program | Artifact, target: str) -> Iterator[Artifact]:
    """The reference as a file; one written here is gone afterwards."""
    if isinstance(reference, Artifact):
        yield reference
        return
    with tempfile.TemporaryDirectory(prefix="gossamer-") as folder:
        yield export(reference, Path(folder) / f"original{targets[target].suffix}", target)


def _first_samples(program: Program, batches: Batches, number: int) -> tuple[Tensor, ...]:
    """The first `number` samples, from the start again where the data has fewer."""
    parts: list[tuple[Tensor, ...]] = []
    found = 0
    for inputs, _ in batches:
        parts.append(_checked(program, inputs))
        found += len(inputs[0])
        if found >= number:
            break
    position = torch.arange(number) % found
    return tuple(torch.cat(column)[position].contiguous() for column in zip(*parts, strict=True))


def _checked(program: Program, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Inputs on the CPU if they fit in all but the batch axis."""
    if len(inputs) != len(program.inputs):
        wanted = ", ".join(map(str, program.inputs))
        raise DataError(f"the network takes {len(program.inputs)} inputs ({wanted}); the validation data gives {len(inputs)}.")
    for spec, tensor in zip(program.inputs, inputs, strict=True):
        replace(spec, shape=(None, *spec.shape[1:])).check(tensor)
    return tuple(tensor.detach().cpu() for tensor in inputs)


def _outputs(program: Program, batches: Batches, runners: dict[str, Runner], on_progress: OnProgress) -> Iterator[Outputs]:
    """Outputs of both networks and the target, batch by batch."""
    fixed = program.inputs[0].shape[0]
    total = len(batches)
    for done, (inputs, target) in enumerate(batches):
        on_progress(Progress("verify", done, total, "accuracy"))
        arrays = [tensor.numpy() for tensor in _checked(program, inputs)]
        before, after = (run_batch(runners[name], arrays, fixed) for name in (ORIGINAL, COMPRESSED))
        yield before, after, None if target is None else target.detach().cpu()
    on_progress(Progress("verify", total, total, "accuracy"))


def run_batch(runner: Runner, arrays: list[Array], fixed_batch: int | None) -> Tensor:
    """The output for any number of samples; a runner of a fixed batch gets chunks, the last one filled up."""
    number = len(arrays[0])
    if fixed_batch is None or fixed_batch == number:
        return torch.from_numpy(np.ascontiguousarray(runner.run(*arrays)))
    position = np.arange(-(-number // fixed_batch) * fixed_batch) % number
    chunks = position.reshape(-1, fixed_batch)
    return torch.from_numpy(np.concatenate([runner.run(*(array[chunk] for array in arrays)) for chunk in chunks])[:number])


def _parity(artifact: Artifact, original: Artifact, runners: dict[str, Runner], samples: tuple[Tensor, ...]) -> tuple[Parity, list[str]]:
    """The artifact's parity, and the problems of both: a wrong original would make every comparison worthless."""
    number = samples_to_compare(artifact.program, len(samples[0]))
    few = tuple(tensor[:number] for tensor in samples)
    parity = check_parity(artifact, runners[COMPRESSED], few)
    problems = parity_problems(parity, artifact, "the artifact")
    if original is not artifact:
        problems += parity_problems(check_parity(original, runners[ORIGINAL], few), original, "the original")
    return parity, problems


def _measurements(
    accuracy: Comparison,
    latencies: Latencies,
    zeros: Mapping[str, Mapping[str, float]],
    energy: Mapping[str, Energy],
    original: Artifact,
    artifact: Artifact,
) -> tuple[Measurement, Measurement]:
    def measurement(found: float, interval: Interval, name: str, of: Artifact) -> Measurement:
        cost = of.program.cost()
        return Measurement(
            accuracy=found,
            accuracy_interval=interval,
            latency_ms=latencies.of[name].median_ms,
            latency_p10_ms=latencies.of[name].p10_ms,
            latency_p90_ms=latencies.of[name].p90_ms,
            size_bytes=of.size_bytes,
            macs=cost.macs,
            params=cost.params,
            peak_memory_bytes=cost.peak_memory_bytes,
            sparsity=zeros[name].get("", 0.0),
            download_bytes=of.download_bytes,
            ram_bytes=of.ram_bytes,
            energy=energy[name],
        )

    return (
        measurement(accuracy.original, accuracy.original_interval, ORIGINAL, original),
        measurement(accuracy.compressed, accuracy.compressed_interval, COMPRESSED, artifact),
    )
