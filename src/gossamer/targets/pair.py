"""The original's file and the artifact's, side by side: what each costs to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy.typing as npt

from gossamer.numerics.intervals import Interval
from gossamer.targets.chip import ChipReport
from gossamer.targets.coded_ends import as_bare
from gossamer.targets.energy import Energy, estimate_energy, find_counter, measure_energy
from gossamer.targets.measure import Latencies, measure_latency, not_measured
from gossamer.targets.measurement import Measurement
from gossamer.targets.metrics import Comparison
from gossamer.targets.target import Artifact, Runner, Target, targets

Array = npt.NDArray[Any]
ORIGINAL, COMPRESSED = "original", "compressed"


@dataclass(frozen=True, slots=True)
class Pair:
    """Both files, opened."""

    original: Artifact
    artifact: Artifact
    original_runner: Runner
    runner: Runner

    @property
    def runners(self) -> dict[str, Runner]:
        """By name, the original first."""
        return {ORIGINAL: self.original_runner, COMPRESSED: self.runner}

    @property
    def target(self) -> Target:
        """Of both."""
        return targets[self.artifact.target]


@dataclass(frozen=True, slots=True)
class Costs:
    """What running both takes; the chip's figures are those of the artifact."""

    latencies: Latencies
    repeats: int
    energy: Mapping[str, Energy]
    zeros: Mapping[str, Mapping[str, float]]
    chip: ChipReport | None


def find_costs(pair: Pair, arrays: list[Array], board: str) -> Costs:
    """Measure both in turns on `arrays`; on the chip `board`, "" for any, where the target is one."""
    timed, inspect = not pair.target.stand_in, pair.target.inspect
    bare = {name: as_bare(runner, *arrays) for name, runner in pair.runners.items()}
    latencies = measure_latency(bare, arrays) if timed else not_measured(bare)
    return Costs(
        latencies=latencies,
        repeats=latencies.repeats if timed else 0,
        energy=_energies(pair, bare, arrays),
        zeros={ORIGINAL: pair.original.sparsity(), COMPRESSED: pair.artifact.sparsity()},
        chip=None if inspect is None else inspect(pair.artifact.path, [array[:1] for array in arrays], board),
    )


def _energies(pair: Pair, runners: Mapping[str, Runner], arrays: Sequence[Array]) -> dict[str, Energy]:
    """Estimates, and measurements where this machine has a counter and the runtime runs on it, not on an emulated chip."""
    found = {ORIGINAL: estimate_energy(pair.original.program), COMPRESSED: estimate_energy(pair.artifact.program)}
    target, counter = pair.target, find_counter()
    if counter is None or target.stand_in or target.inspect is not None:
        return found
    calls = {name: partial(runner.run, *arrays) for name, runner in runners.items()}
    measured = measure_energy(calls, counter, len(arrays[0]))
    return {name: replace(energy, measured_mj=measured[name], counter=counter.name) for name, energy in found.items()}


def measurements(accuracy: Comparison, costs: Costs, pair: Pair) -> tuple[Measurement, Measurement]:
    """Everything found about the original, and about the artifact."""

    def measurement(found: float, interval: Interval, name: str, of: Artifact) -> Measurement:
        cost = of.program.cost()
        return Measurement(
            accuracy=found,
            accuracy_interval=interval,
            latency_ms=costs.latencies.of[name].median_ms,
            latency_p10_ms=costs.latencies.of[name].p10_ms,
            latency_p90_ms=costs.latencies.of[name].p90_ms,
            size_bytes=of.size_bytes,
            macs=cost.macs,
            params=cost.params,
            peak_memory_bytes=cost.peak_memory_bytes,
            sparsity=costs.zeros[name].get("", 0.0),
            download_bytes=of.download_bytes,
            ram_bytes=of.ram_bytes,
            energy=costs.energy[name],
        )

    return (
        measurement(accuracy.original, accuracy.original_interval, ORIGINAL, pair.original),
        measurement(accuracy.compressed, accuracy.compressed_interval, COMPRESSED, pair.artifact),
    )
