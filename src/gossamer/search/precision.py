"""Mixed precision: a format for each layer, so that costs do least damage, or a damage allows the least size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

from gossamer.apply.engine import apply
from gossamer.batches import as_batches
from gossamer.errors import ConfigError, PlanError
from gossamer.numerics.formats import IntFormat, parse_any_format
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.rules import FLOAT
from gossamer.plan.scheme import Scheme
from gossamer.plan.spec import TargetSpec, specs
from gossamer.program.program import Program
from gossamer.progress import OnProgress, Progress, silent
from gossamer.search.allocation import Allocation, allocation_front
from gossamer.search.diagnosis.findings import Damage, finite
from gossamer.search.latency import Stopwatch, stopwatch
from gossamer.search.precision_settings import PrecisionBudget, PrecisionSearch
from gossamer.search.sensitivity import (
    Candidates,
    Evidence,
    Sensitivity,
    candidates,
    outputs_damage,
    sensitivities,
    table_rows,
)

MOST_TRIED = 6  # choices that are planned and measured as a whole
TIGHTENINGS = 10  # of the price of one cost, until choices are predicted to be within both
NANOSECONDS = 1e6  # in a millisecond


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """A choice of formats.

    rules         for plan_quantization(..., rules=precision.rules): a format for each layer
    size_bytes    of these layers' weights with their scales, in the target's file
    bits          mean bits per weight there
    predicted     sum of the layers' own damages: KL in nats, or noise per signal where the outputs have no classes
    damage        measured with all layers at their formats together
    latency_ms    of its file, measured beside the float network's; predicted_ms: from the layers' own; None where it is not limited
    table         what each layer does at each format, alone
    tried         (size_bytes, damage) of each choice that was measured as a whole
    """

    rules: dict[str, str]
    size_bytes: int
    bits: float
    predicted: float
    damage: Damage
    latency_ms: float | None
    predicted_ms: float | None
    table: tuple[Sensitivity, ...]
    tried: tuple[tuple[int, Damage], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data; infinite figures become None."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain

    def __str__(self) -> str:
        counts: dict[str, int] = {}
        for name in self.rules.values():
            counts[name] = counts.get(name, 0) + 1
        kl = "" if self.damage.kl is None else f", KL {self.damage.kl:.3g}"
        found = ", ".join(f"{count} x {name}" for name, count in counts.items())
        time = "" if self.latency_ms is None else f", {self.latency_ms:.3g} ms"
        size = f"{self.size_bytes} bytes, {self.bits:.2f} bits per weight{time}"
        return f"Precision({found}; {size}; outputs {self.damage.output_db:.1f} dB{kl})"


@dataclass(frozen=True, slots=True)
class Tried:
    """A choice that was measured as a whole; latency_ms: of its file, None where latency is not limited."""

    allocation: Allocation
    damage: Damage
    latency_ms: float | None = None


Measure = Callable[[dict[str, str]], tuple[Damage, float | None]]


def choose_precision(
    program: Program,
    calibration: Any,
    target: str = "onnxruntime",
    *,
    search: PrecisionSearch,
    activations: str | None = None,
    scheme: Scheme | None = None,
    table: tuple[Sensitivity, ...] | None = None,
    on_progress: OnProgress = silent,
) -> Precision:
    """Choose a format for each layer of a float program that the target can run on codes.

    calibration  like that of plan_quantization; damage is found on its first `search.samples` samples, without labels
    search       limits, formats to choose from, and how damage is found
    activations, scheme  like those of plan_quantization
    table        of an earlier choice for the same network and settings (`precision.table`), so that another budget costs no second one

    Each layer's damage at each format is found alone, and where latency is limited its time on the target's runtime; the choices that
    are best if both add up come from dynamic programming; a few of them are then planned and measured as a whole, and the best
    that meets the budget is returned.
    Raises: ConfigError for formats that the target does not run (names the nearest), or a limit on KL for outputs without classes;
    PlanError for a budget that no choice meets (says what comes nearest); DataError as plan_quantization.
    Source: Dong et al. 2020 (HAWQ-V2), arXiv:1911.03852, and Cai et al. 2020 (ZeroQ), arXiv:2001.00281 (sensitivity by KL of one
    quantized layer); differs: candidates are verified jointly.
    """
    spec, budget = specs[target], search.budget
    search = replace(search, formats=search.formats_for(spec))
    evidence = Evidence(as_batches(calibration, what="calibration", batch_size=program.at_once()), search.samples, on_progress)
    settings = {"activations": activations, "scheme": scheme or Scheme()}

    def planned(**formats: Any) -> Program:
        return apply(program, plan_quantization(program, evidence.batches, target, **formats, **settings))  # type: ignore[arg-type]

    with ExitStack() as stack:
        watch = stack.enter_context(stopwatch(program, target, search.batch, search.threads)) if budget.on_latency else None
        if table is None:
            table = _table(
                candidates(program, evidence.batches, spec, search.formats, settings, on_progress), search, spec, watch, evidence
            )
        _check_table(table, search)
        first = next(name for name in search.formats if name != FLOAT and isinstance(parse_any_format(name), IntFormat))
        times = None if watch is None else _times(watch, planned(weights=first), [row for row in table if row.format == first])
        choice = _Search(table, len(search.formats), budget, times)

        def measure(rules: dict[str, str]) -> tuple[Damage, float | None]:
            on_progress(Progress("measure a choice", len(choice.tried), MOST_TRIED))
            if set(rules.values()) == {FLOAT}:
                return Damage(math.inf, None), None if watch is None else watch.float_ms
            changed = planned(rules=rules)
            damage = outputs_damage(changed, program, evidence.batches, search.samples)
            return damage, None if watch is None else watch.network_ms(changed)

        return choice.smallest(measure) if choice.limit is not None else choice.best(measure)


def _table(
    found: Candidates, search: PrecisionSearch, spec: TargetSpec, watch: Stopwatch | None, evidence: Evidence
) -> tuple[Sensitivity, ...]:
    damages = sensitivities[search.sensitivity](found, evidence)
    return table_rows(found, damages, spec, None if watch is None else watch.layers_ms(found, search.batch, evidence))


def _check_table(table: tuple[Sensitivity, ...], search: PrecisionSearch) -> None:
    if not table or tuple(row.format for row in table) != search.formats * (len(table) // len(search.formats)):
        raise ConfigError("table", [row.format for row in table][:4], f"one of the formats {', '.join(search.formats)} for each layer")
    if search.budget.on_latency and any(row.latency_ms is None for row in table):
        raise ConfigError("table", "one without latencies", "None, so that they are measured, where the budget limits them")


def _times(watch: Stopwatch, network: Program, rows: Sequence[Sensitivity]) -> tuple[float, float]:
    """The float network's latency, and what a network takes beside its layers: found on one with one format for all of them."""
    return watch.float_ms, watch.network_ms(network) - sum(row.latency_ms or 0.0 for row in rows)


class _Search:
    """The fronts of predicted choices, and which of them were measured.

    times  latency of the float network, and of what a network takes beside its layers; None where latency is not limited
    """

    def __init__(self, table: tuple[Sensitivity, ...], count: int, budget: PrecisionBudget, times: tuple[float, float] | None) -> None:
        self.table, self._budget, self._times = table, budget, times
        self._units = [table[start : start + count] for start in range(0, len(table), count)]
        self._by_kl = budget.max_kl is not None or (budget.min_sqnr_db is None and all(row.damage.kl is not None for row in table))
        if budget.max_kl is not None and any(row.damage.kl is None for row in table):
            raise ConfigError("PrecisionBudget.max_kl", budget.max_kl, "given only for outputs with classes; limit min_sqnr_db instead")
        self.front = self._front()
        self.tried: list[Tried] = []

    def _front(self, *, by_time: bool = False, price: float = 0.0) -> list[Allocation]:
        """The best choices for all sizes, where a millisecond counts as much as `price` of damage; or for all times, where a byte does."""

        def both(row: Sensitivity) -> tuple[int, float]:
            size, time = row.size_bytes, row.latency_ms or 0.0
            return (round(time * NANOSECONDS), size) if by_time else (size, time)

        costs = [[both(row)[0] for row in unit] for unit in self._units]
        scores = [[self.score(row.damage) + price * both(row)[1] for row in unit] for unit in self._units]
        return [self._allocation(found.choice) for found in allocation_front(costs, scores)]

    def _allocation(self, choice: tuple[int, ...]) -> Allocation:
        rows = [unit[place] for unit, place in zip(self._units, choice, strict=True)]
        return Allocation(choice, sum(row.size_bytes for row in rows), sum(self.score(row.damage) for row in rows))

    @property
    def limit(self) -> float | None:
        """On damage, as score() counts it; None for a budget of cost."""
        if self._budget.max_kl is not None:
            return self._budget.max_kl
        return None if self._budget.min_sqnr_db is None else 10 ** (-self._budget.min_sqnr_db / 10)

    @property
    def limit_ms(self) -> float:
        """On latency; infinite where it is not limited."""
        if self._times is None:
            return math.inf
        speedup = self._budget.min_speedup
        return min(self._budget.max_latency_ms or math.inf, math.inf if speedup is None else self._times[0] / speedup)

    def score(self, damage: Damage) -> float:
        """Damage as a number that adds up: KL, or noise per signal."""
        if self._by_kl and damage.kl is not None:
            return damage.kl
        return 10 ** (-damage.output_db / 10)

    def best(self, measure: Measure) -> Precision:
        """The measured choice with the least damage within the budget of cost."""
        aim = self.limit_ms
        self._check_size()
        while len(self.tried) < MOST_TRIED:
            known = {tried.allocation.choice for tried in self.tried}
            place = next((found for found in self._wanted(aim) if found.choice not in known), None)
            if place is None:
                break
            found = self._try(place, measure)
            if not self._met(found) and found.latency_ms is not None:
                aim *= min(0.98, self.limit_ms / found.latency_ms)  # files are slower than the sums of their layers
        if not any(self._met(tried) for tried in self.tried):
            self._try_uniform(measure)
        met = [tried for tried in self.tried if self._met(tried)]
        if not met:
            fastest = min((tried.latency_ms or 0.0 for tried in self.tried), default=math.nan)
            raise PlanError(
                f"no choice of these formats is within the budget; the fastest that was measured takes {fastest:.3g} ms, allowed are "
                f"{self.limit_ms:.3g} ms (float takes {self._times[0] if self._times else math.nan:.3g} ms); allow that much, or choose from formats that are faster."
            )
        return self._result(min(met, key=lambda tried: self.score(tried.damage)))

    def _try_uniform(self, measure: Measure) -> None:
        """Measure what is left of one format for all layers: whole networks can be faster than their layers alone, which convert at both ends."""
        known = {tried.allocation.choice for tried in self.tried}
        for place in self._uniform():
            if place.choice not in known and self._fits(place):
                self._try(place, measure)

    def _try(self, place: Allocation, measure: Measure) -> Tried:
        """Measure a choice as a whole and keep what was found."""
        found = Tried(place, *measure(self.rules(place)))
        self.tried.append(found)
        return found

    def _check_size(self) -> None:
        if not any(self._fits(allocation) for allocation in self.front):
            least = self.front[0]
            raise PlanError(
                f"no choice of these formats is within the budget; the smallest takes {least.cost} bytes, {self._bits(least):.2f} bits a weight; "
                "allow that much, or choose from formats that this target stores in fewer bits."
            )

    def _wanted(self, aim_ms: float) -> list[Allocation]:
        """Choices within the budget as predicted, the most promising first: the best, one format for all layers, the next best."""
        within = (
            [found for found in self.front if self._predicted(found, aim_ms)][::-1] if aim_ms == math.inf else self._fast_enough(aim_ms)
        )
        uniform = [found for found in self._uniform() if self._predicted(found, aim_ms)]
        if not within and not uniform and not self.tried:  # the sums of layers may be wrong: the fastest is measured all the same
            fitting = [found for found in self._front(by_time=True) if self._fits(found)]
            within = fitting[:1] or [next(found for found in self.front if self._fits(found))]
        return [*within[:1], *uniform, *within[1:3]]

    def _fast_enough(self, aim_ms: float) -> list[Allocation]:
        """Choices within both kinds of cost as predicted, least damage first: on the fronts by time and by size, each at the least price of
        the other cost at which there are any."""
        found: dict[tuple[int, ...], Allocation] = {}
        sized = self._budget.max_size_bytes is not None or self._budget.max_bits is not None
        worst = max(self.score(row.damage) for row in self.table)
        for by_time in (True, False) if sized else (True,):
            largest = max(row.size_bytes if by_time else row.latency_ms or 0.0 for row in self.table) or 1.0
            low, high = 1e-6 * worst / largest, 1e6 * worst / largest
            prices = [0.0]
            for _ in range(TIGHTENINGS):
                within = [item for item in self._front(by_time=by_time, price=prices[-1]) if self._predicted(item, aim_ms)]
                found.update((item.choice, item) for item in within)
                if within and prices[-1] == 0.0:
                    break  # nothing is better than without a price
                low, high = (low, prices[-1]) if within else (max(low, prices[-1]), high)
                prices.append(math.sqrt(low * high))
        return sorted(found.values(), key=lambda item: item.damage)

    def _predicted(self, allocation: Allocation, aim_ms: float) -> bool:
        """Whether a choice is within the budget if layers' times add up to at most `aim_ms`."""
        return self._fits(allocation) and self._predicted_ms(allocation) <= aim_ms

    def smallest(self, measure: Measure) -> Precision:
        """The smallest measured choice within the budget of damage, found by bisection that starts where prediction says."""
        limit = self.limit
        assert limit is not None
        low, high = -1, len(self.front)  # too much damage at and below, little enough at and above
        place = next((place for place, found in enumerate(self.front) if found.damage <= limit), len(self.front) - 1)
        met: Tried | None = None
        while low < high - 1 and len(self.tried) < MOST_TRIED:
            found = self._try(self.front[place], measure)
            if self.score(found.damage) <= limit:
                met, high = found, place
            else:
                low = place
            place = self._next(low, high, found, limit)
        if met is None and high == len(self.front) and low < high - 1:
            found = self._try(self.front[-1], measure)
            met = found if self.score(found.damage) <= limit else None
        if met is None:
            nearest = min((tried.damage for tried in self.tried), key=self.score)
            kl = "" if nearest.kl is None else f", KL {nearest.kl:.3g}"
            raise PlanError(f"no choice of these formats is within the budget; the nearest leaves {nearest.output_db:.1f} dB{kl}.")
        return self._result(met)

    def _next(self, low: int, high: int, last: Tried, limit: float) -> int:
        """Where the prediction, corrected by what was just measured, meets the limit; the middle where that lies outside."""
        ratio = self.score(last.damage) / max(last.allocation.damage, 1e-30)
        wanted = next((place for place, found in enumerate(self.front) if found.damage * ratio <= limit), high)
        return wanted if low < wanted < high else (low + high) // 2

    def _met(self, tried: Tried) -> bool:
        """Whether a measured choice is within the budget of cost."""
        return self._fits(tried.allocation) and (tried.latency_ms is None or tried.latency_ms <= self.limit_ms)

    def _fits(self, allocation: Allocation) -> bool:
        size, bits = self._budget.max_size_bytes, self._budget.max_bits
        return (size is None or allocation.cost <= size) and (bits is None or self._bits(allocation) <= bits)

    def _predicted_ms(self, allocation: Allocation) -> float:
        base = 0.0 if self._times is None else self._times[1]
        return base + sum(row.latency_ms or 0.0 for row in self._rows(allocation))

    def _bits(self, allocation: Allocation) -> float:
        rows = self._rows(allocation)
        return sum(row.bits * row.weights for row in rows) / sum(row.weights for row in rows)

    def _rows(self, allocation: Allocation) -> list[Sensitivity]:
        return [unit[place] for unit, place in zip(self._units, allocation.choice, strict=True)]

    def _uniform(self) -> list[Allocation]:
        """All layers at one format: what mixing has to beat."""
        found = [self._allocation((place,) * len(self._units)) for place in range(len(self._units[0]))]
        return sorted(found, key=lambda allocation: allocation.damage)

    def rules(self, allocation: Allocation) -> dict[str, str]:
        """Formats by layer."""
        return {layer: row.format for row in self._rows(allocation) for layer in row.layers}

    def _result(self, tried: Tried) -> Precision:
        rows = self._rows(tried.allocation)
        return Precision(
            rules=self.rules(tried.allocation),
            size_bytes=tried.allocation.cost,
            bits=self._bits(tried.allocation),
            predicted=sum(self.score(row.damage) for row in rows),
            damage=tried.damage,
            latency_ms=tried.latency_ms,
            predicted_ms=None if self._times is None else self._predicted_ms(tried.allocation),
            table=self.table,
            tried=tuple((other.allocation.cost, other.damage) for other in self.tried),
        )
