"""Latency: a fake clock that runners move makes every figure known beforehand."""

import gc
import itertools
import time

import numpy as np
import pytest

from gossamer.errors import ConfigError
from gossamer.targets.measure import Latencies, Latency, machine, measure_latency, versions_of


class Clock:
    """Seconds that pass only when a runner runs; `worked` are those of the processor."""

    def __init__(self):
        self.now, self.worked = 100.0, 3.0

    def __call__(self):
        return self.now


class Timed:
    """A runner that takes the given seconds, call by call; a pair is (seconds of work, seconds of waiting)."""

    def __init__(self, name, clock, seconds, log):
        self.name, self.clock, self.log = name, clock, log
        self.seconds = itertools.cycle([seconds] if isinstance(seconds, float) else seconds)

    def run(self, *inputs):
        self.log.append(self.name)
        taken = next(self.seconds)
        work, wait = taken if isinstance(taken, tuple) else (taken, 0.0)
        self.clock.now += work + wait
        self.clock.worked += work
        return np.zeros(1)


def measure(first, second, **options):
    clock, log = Clock(), []
    runners = {"a": Timed("a", clock, first, log), "b": Timed("b", clock, second, log)}
    return measure_latency(runners, [np.zeros(1)], clock=clock, processor_clock=lambda: clock.worked, **options), log


def test_runners_take_turns_and_warm_up_is_not_timed():
    found, log = measure(0.002, 0.001, repeats=10, warmup=4)
    assert "".join(log) == "ab" * 14
    assert found.repeats == 10
    assert found.of["a"].median_ms == pytest.approx(2.0)
    assert found.speedup("a", "b") == pytest.approx(2.0)


def test_drift_moves_both_and_leaves_the_ratio():
    drift = [0.001 * (1 + step / 10) for step in range(40)]
    found, _ = measure([2.5 * t for t in drift], drift, repeats=40, warmup=0)
    assert found.speedup("a", "b") == pytest.approx(2.5)
    assert found.paired_speedup("a", "b") == pytest.approx(2.5)


def test_one_slow_call_moves_neither_median():
    found, _ = measure([0.002] * 9 + [5.0], 0.001, repeats=20, warmup=0, seconds=100)
    assert found.speedup("a", "b") == pytest.approx(2.0)
    assert found.of["a"].p90_ms > 2.0


def test_calls_that_other_programs_disturbed_do_not_count():
    found, log = measure([0.002, (0.002, 0.008), (0.002, 0.004)], [0.001, 0.001, (0.001, 0.008)], repeats=10, warmup=0)
    assert found.steady
    assert (found.of["a"].median_ms, found.of["b"].median_ms) == pytest.approx((2.0, 1.0))
    assert (found.of["a"].p10_ms, found.of["a"].p90_ms) == pytest.approx((2.0, 2.0))
    assert found.paired_speedup("a", "b") == pytest.approx(2.0)
    assert found.repeats == 10  # of a only every third call counts
    assert len(log) == 2 * 28


def test_all_calls_count_where_too_few_were_left_alone():
    found, _ = measure([(0.002, 0.002)], [*[(0.001, 0.001)] * 20, 0.001], repeats=10, warmup=0, seconds=0.3)
    assert not found.steady
    assert found.of["a"].median_ms == pytest.approx(4.0)
    assert found.repeats == len(found.of["a"].times_ms)


def test_the_time_limit_ends_it_but_never_before_five_rounds():
    found, log = measure(1.0, 1.0, repeats=1000, warmup=2, seconds=21.0)
    assert found.repeats == 9  # 2 + 9 rounds of two seconds reach 22 s
    assert len(log) == 22
    slow, log = measure(60.0, 60.0, repeats=1000, warmup=3, seconds=1.0)
    assert slow.repeats == 5
    assert len(log) == 12  # one round of warm-up is enough of it


def test_quantiles():
    latency = Latency(tuple(float(t) for t in range(101)), (False,) * 101)
    assert (latency.p10_ms, latency.median_ms, latency.p90_ms) == (10, 50, 90)
    assert latency.p10_ms <= latency.median_ms <= latency.p90_ms


def test_paired_ratio_differs_from_the_ratio_of_medians():
    calm = (False,) * 3
    found = Latencies({"a": Latency((2.0, 4.0, 40.0), calm), "b": Latency((1.0, 4.0, 10.0), calm)})
    assert found.speedup("a", "b") == 1.0
    assert found.paired_speedup("a", "b") == 2.0


def test_the_real_clock_sees_a_sleep():
    class Sleeper:
        def run(self, *inputs):
            time.sleep(0.003)

    found = measure_latency({"a": Sleeper()}, [], repeats=5, warmup=0, seconds=0.05)
    assert 2.9 <= found.of["a"].median_ms < 100
    assert not found.steady  # it waited


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_waits_and_comes_back(enabled):
    class Fails:
        def run(self, *inputs):
            assert not gc.isenabled()
            raise ZeroDivisionError

    was = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(ZeroDivisionError):
            measure_latency({"a": Fails()}, [])
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was else gc.disable)()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"repeats": 4}, "repeats must be at least 5; got 4"), ({"warmup": -1}, "warmup must be 0 or more; got -1")],
)
def test_refusals(options, message):
    with pytest.raises(ConfigError, match=message):
        measure(0.1, 0.1, **options)


def test_no_runner_is_refused():
    with pytest.raises(ConfigError, match="runners must be at least one opened artifact"):
        measure_latency({}, [])


def test_versions_and_machine_say_something():
    found = versions_of("torch", "no-such-package-anywhere")
    assert set(found) == {"python", "torch"}
    assert machine()
