"""Latency by the clock: several artifacts take turns, and calls during which other programs had the processor do not count.

So figures hold on a machine that is busy or drifts. Measured at a load of 8 on 2 cores: the median of all calls swung
between 3.3 and 11.6 ms from minute to minute, that of undisturbed calls between 3.31 and 3.37 ms.
"""

from __future__ import annotations

import gc
import math
import platform
import statistics
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from gossamer.errors import ConfigError
from gossamer.targets.target import Runner

FEWEST_REPEATS = 5
SLACK = 1.05  # a call that took no longer than this times its processor time, and SLACK_MS, was not disturbed
SLACK_MS = 0.05


@dataclass(frozen=True, slots=True)
class Latency:
    """Times of one artifact in milliseconds, in order of measurement.

    disturbed  whether the processor was taken away during a call: it waited while other programs ran. With one thread
               that is seen exactly, with several only where it cost more than the other threads' work.
    """

    times_ms: tuple[float, ...]
    disturbed: tuple[bool, ...]

    @property
    def steady(self) -> bool:
        """Whether enough calls were left alone, so that only those count; else all do."""
        return self.disturbed.count(False) >= FEWEST_REPEATS

    @property
    def counted(self) -> tuple[int, ...]:
        """Positions of the calls that count, rising."""
        return tuple(position for position, disturbed in enumerate(self.disturbed) if not (self.steady and disturbed))

    @property
    def counted_ms(self) -> tuple[float, ...]:
        """The times that count."""
        return tuple(self.times_ms[position] for position in self.counted)

    @property
    def median_ms(self) -> float:
        """The middle time."""
        return statistics.median(self.counted_ms)

    @property
    def p10_ms(self) -> float:
        """The time that a tenth of the calls stay below."""
        return float(np.quantile(self.counted_ms, 0.1))

    @property
    def p90_ms(self) -> float:
        """The time that a tenth of the calls exceed."""
        return float(np.quantile(self.counted_ms, 0.9))


@dataclass(frozen=True, slots=True)
class Latencies:
    """What taking turns measured; every artifact has the same number of times, the i-th of each close together."""

    of: Mapping[str, Latency]

    @property
    def repeats(self) -> int:
        """Calls that count, of the artifact with the fewest."""
        return min(len(latency.counted_ms) for latency in self.of.values())

    @property
    def steady(self) -> bool:
        """Whether every artifact had enough calls that were left alone."""
        return all(latency.steady for latency in self.of.values())

    def speedup(self, slow: str, fast: str) -> float:
        """Median time of `slow` / median time of `fast`."""
        return self.of[slow].median_ms / self.of[fast].median_ms

    def paired_speedup(self, slow: str, fast: str) -> float:
        """Median of the ratios of neighbouring calls: each of `slow` that counts over the nearest of `fast` that counts."""
        one, two = self.of[slow], self.of[fast]
        positions = two.counted
        ratios = []
        for position in one.counted:
            nearest = positions[min(bisect_left(positions, position), len(positions) - 1)]
            ratios.append(one.times_ms[position] / two.times_ms[nearest])
        return statistics.median(ratios)


def measure_latency(
    runners: Mapping[str, Runner],
    inputs: Sequence[np.ndarray],
    *,
    repeats: int = 100,
    warmup: int = 3,
    seconds: float = 5.0,
    clock: Callable[[], float] = time.perf_counter,
    processor_clock: Callable[[], float] = time.process_time,
) -> Latencies:
    """Time `run(*inputs)` of each runner in turns: A B A B ...

    repeats  undisturbed calls wanted of each runner; a round is one call of each
    warmup   rounds before them that are not timed
    seconds  after this time, warm-up included, no further round starts, but never fewer than 5 are timed
    clock, processor_clock  seconds, rising: of the wall, and of work done by this process

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
    disturbed: dict[str, list[bool]] = {name: [] for name in runners}

    def enough(done: int) -> bool:
        late = done >= FEWEST_REPEATS and clock() - start > seconds
        return late or min(flags.count(False) for flags in disturbed.values()) >= repeats

    with _no_garbage_collection():
        start = clock()
        for done in range(warmup):
            if done and clock() - start > seconds / 2:
                break
            for runner in runners.values():
                runner.run(*inputs)
        done = 0
        while not enough(done):
            for name, runner in runners.items():
                worked, before = processor_clock(), clock()
                runner.run(*inputs)
                taken, worked = (clock() - before) * 1e3, (processor_clock() - worked) * 1e3
                times[name].append(taken)
                disturbed[name].append(taken > SLACK * worked + SLACK_MS)
            done += 1
    return Latencies({name: Latency(tuple(times[name]), tuple(disturbed[name])) for name in runners})


def not_measured(names: Iterable[str]) -> Latencies:
    """What stands where nothing may be timed: times that are NaN."""
    return Latencies({name: Latency((math.nan,) * FEWEST_REPEATS, (False,) * FEWEST_REPEATS) for name in names})


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
