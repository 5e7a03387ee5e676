"""Latency by the clock: several artifacts take turns, so that their ratios hold when the machine drifts."""

from __future__ import annotations

import gc
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from gossamer.errors import ConfigError
from gossamer.targets.target import Runner

FEWEST_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Latency:
    """Times of one artifact in milliseconds, in order of measurement. p10 and p90: a tenth is below, above."""

    times_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """The middle time."""
        return statistics.median(self.times_ms)

    @property
    def p10_ms(self) -> float:
        """The time that a tenth of the calls stay below."""
        return float(np.quantile(self.times_ms, 0.1))

    @property
    def p90_ms(self) -> float:
        """The time that a tenth of the calls exceed."""
        return float(np.quantile(self.times_ms, 0.9))


@dataclass(frozen=True, slots=True)
class Latencies:
    """What taking turns measured; every artifact has the same number of times, the i-th of each close together."""

    of: Mapping[str, Latency]

    @property
    def repeats(self) -> int:
        """Calls of each artifact that were timed."""
        return len(next(iter(self.of.values())).times_ms)

    def speedup(self, slow: str, fast: str) -> float:
        """Median time of `slow` / median time of `fast`."""
        return self.of[slow].median_ms / self.of[fast].median_ms

    def paired_speedup(self, slow: str, fast: str) -> float:
        """Median over the rounds of time of `slow` / time of `fast` in the same round: not moved by slow drift."""
        pairs = zip(self.of[slow].times_ms, self.of[fast].times_ms, strict=True)
        return statistics.median(first / second for first, second in pairs)


def measure_latency(
    runners: Mapping[str, Runner],
    inputs: Sequence[np.ndarray],
    *,
    repeats: int = 100,
    warmup: int = 3,
    seconds: float = 5.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Latencies:
    """Time `run(*inputs)` of each runner in turns: A B A B ...

    repeats  rounds, each of one call per runner
    warmup   rounds before them that are not timed
    seconds  after this time, warm-up included, no further round starts, but never fewer than 5 are timed
    clock    seconds, rising

    Batch size and threads are those of `inputs` and of the opened runners. Garbage collection waits meanwhile.
    Raises: ConfigError for no runner, repeats < 5, or warmup < 0.
    """
    if not runners:
        raise ConfigError("runners", runners, "at least one opened artifact")
    if repeats < FEWEST_REPEATS:
        raise ConfigError("repeats", repeats, f"at least {FEWEST_REPEATS}")
    if warmup < 0:
        raise ConfigError("warmup", warmup, "0 or more")
    times: dict[str, list[float]] = {name: [] for name in runners}
    with _no_garbage_collection():
        start = clock()
        for done in range(warmup):
            if done and clock() - start > seconds / 2:
                break
            for runner in runners.values():
                runner.run(*inputs)
        for done in range(repeats):
            if done >= FEWEST_REPEATS and clock() - start > seconds:
                break
            for name, runner in runners.items():
                before = clock()
                runner.run(*inputs)
                times[name].append((clock() - before) * 1e3)
    return Latencies({name: Latency(tuple(taken)) for name, taken in times.items()})


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def versions_of(*packages: str) -> dict[str, str]:
    """Versions of Python and of those packages that are installed, for the report."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """The processor in words, as figures of speed mean nothing without it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({platform.machine()})" if names else platform.processor() or platform.machine()
