"""Mixed precision: a format for each layer, so that a size does least damage, or a damage allows the least size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gossamer.apply.engine import apply
from gossamer.batches import as_batches
from gossamer.errors import ConfigError, PlanError
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.rules import FLOAT
from gossamer.plan.scheme import Scheme
from gossamer.plan.spec import TargetSpec, specs
from gossamer.program.program import Program
from gossamer.progress import OnProgress, Progress, silent
from gossamer.search.allocation import Allocation, allocation_front
from gossamer.search.diagnosis.findings import Damage
from gossamer.search.sensitivity import Sensitivity, outputs_damage, sensitivity_table, stored_bits

MOST_TRIED = 6  # choices that are planned and measured as a whole


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionBudget:
    """One limit: either on size, which is used up for the least damage, or on damage, which is used up for the least size.

    max_size_bytes  of the coded layers' weights with their scales, in the target's file
    max_bits        mean bits per weight of these layers, in the target's file
    max_kl          mean KL divergence of the outputs from the float network's, in nats, for networks with classes
    min_sqnr_db     signal-to-quantization-noise ratio of the outputs, in dB

    Raises: ConfigError unless exactly one is given, and for one that is not above 0.
    """

    max_size_bytes: int | None = None
    max_bits: float | None = None
    max_kl: float | None = None
    min_sqnr_db: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if len(given) != 1:
            raise ConfigError("PrecisionBudget", given, "exactly one of max_size_bytes, max_bits, max_kl and min_sqnr_db")
        ((name, value),) = given.items()
        if not 0 < value < math.inf:
            raise ConfigError(f"PrecisionBudget.{name}", value, "above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """A choice of formats.

    rules         for plan_quantization(..., rules=precision.rules): a format for each layer
    size_bytes    of these layers' weights with their scales, in the target's file
    bits          mean bits per weight there
    predicted     sum of the layers' own damages: KL in nats, or noise per signal where the outputs have no classes
    damage        measured with all layers at their formats together
    table         what each layer does at each format, alone
    tried         (size_bytes, damage) of each choice that was measured as a whole
    """

    rules: dict[str, str]
    size_bytes: int
    bits: float
    predicted: float
    damage: Damage
    table: tuple[Sensitivity, ...]
    tried: tuple[tuple[int, Damage], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        counts: dict[str, int] = {}
        for name in self.rules.values():
            counts[name] = counts.get(name, 0) + 1
        kl = "" if self.damage.kl is None else f", KL {self.damage.kl:.3g}"
        found = ", ".join(f"{count} x {name}" for name, count in counts.items())
        return f"Precision({found}; {self.size_bytes} bytes, {self.bits:.2f} bits per weight; outputs {self.damage.output_db:.1f} dB{kl})"


def choose_precision(
    program: Program,
    calibration: Any,
    target: str = "onnxruntime",
    *,
    budget: PrecisionBudget,
    formats: Sequence[str] = ("int4", "int8", "float"),
    scheme: Scheme | None = None,
    samples: int = 64,
    on_progress: OnProgress = silent,
) -> Precision:
    """Choose a format for each layer of a float program that the target can run on codes.

    calibration  like that of plan_quantization; damage is measured on its first `samples` samples, without labels
    formats      to choose from: integer formats, "float", and floating-point formats for storage such as "fp16"

    Each layer's damage at each format is measured alone; dynamic programming finds the choices that are best if damages add up; a few
    of them are then planned and measured as a whole, and the best that meets the budget is returned.
    Raises: ConfigError for formats that the target does not run (names the nearest), fewer than two of them, or a limit on KL for
    outputs without classes; PlanError for a budget that no choice meets (says what comes nearest); DataError as plan_quantization.
    Source: Dong et al. 2020 (HAWQ-V2), arXiv:1911.03852, and Cai et al. 2020 (ZeroQ), arXiv:2001.00281 (sensitivity by KL of one
    quantized layer); differs: measured on codes rounded as in the final network, and candidates verified jointly.
    """
    if len(set(formats)) != len(formats) or len(formats) < 2:
        raise ConfigError("formats", tuple(formats), "two or more different formats")
    if samples < 1:
        raise ConfigError("samples", samples, "at least 1")
    batches, spec, scheme = as_batches(calibration, what="calibration"), specs[target], scheme or Scheme()
    table = sensitivity_table(program, batches, spec, formats, scheme, samples, on_progress)
    search = _Search(table, len(formats), budget, spec)

    def measure(rules: dict[str, str]) -> Damage:
        if set(rules.values()) == {FLOAT}:
            return Damage(math.inf, None)
        on_progress(Progress("measure a choice", len(search.tried), MOST_TRIED))
        plan = plan_quantization(program, batches, target, rules=rules, scheme=scheme)
        return outputs_damage(apply(program, plan), program, batches, samples)

    return search.smallest(measure) if search.limit is not None else search.best(measure)


class _Search:
    """The front of predicted choices, and which of them were measured."""

    def __init__(self, table: tuple[Sensitivity, ...], count: int, budget: PrecisionBudget, spec: TargetSpec) -> None:
        self.table, self._budget, self._spec = table, budget, spec
        self._units = [table[start : start + count] for start in range(0, len(table), count)]
        self._by_kl = budget.max_kl is not None or (budget.min_sqnr_db is None and all(row.damage.kl is not None for row in table))
        if budget.max_kl is not None and any(row.damage.kl is None for row in table):
            raise ConfigError("PrecisionBudget.max_kl", budget.max_kl, "given only for outputs with classes; limit min_sqnr_db instead")
        scores = [[self.score(row.damage) for row in unit] for unit in self._units]
        self.front = allocation_front([[row.size_bytes for row in unit] for unit in self._units], scores)
        self.tried: list[tuple[Allocation, Damage]] = []

    @property
    def limit(self) -> float | None:
        """On damage, as score() counts it; None for a budget of size."""
        if self._budget.max_kl is not None:
            return self._budget.max_kl
        return None if self._budget.min_sqnr_db is None else 10 ** (-self._budget.min_sqnr_db / 10)

    def score(self, damage: Damage) -> float:
        """Damage as a number that adds up: KL, or noise per signal."""
        if self._by_kl and damage.kl is not None:
            return damage.kl
        return 10 ** (-damage.output_db / 10)

    def best(self, measure: Callable[[dict[str, str]], Damage]) -> Precision:
        """The measured choice with the least damage within the budget of size."""
        sizes = [allocation.cost for allocation in self.front]
        within = [allocation for allocation in self.front if self._fits(allocation)]
        if not within:
            raise PlanError(
                f"no choice of these formats is within the budget; the smallest takes {sizes[0]} bytes, {self._bits(self.front[0]):.2f} bits a weight."
            )
        for allocation in dict.fromkeys([within[-1], *self._uniform(), *within[-2::-1][:2]]):
            if self._fits(allocation) and len(self.tried) < MOST_TRIED:
                self.tried.append((allocation, measure(self.rules(allocation))))
        return self._result(min(self.tried, key=lambda pair: self.score(pair[1])))

    def smallest(self, measure: Callable[[dict[str, str]], Damage]) -> Precision:
        """The smallest measured choice within the budget of damage, found by bisection that starts where prediction says."""
        limit = self.limit
        assert limit is not None
        low, high = -1, len(self.front)  # too much damage at and below, little enough at and above
        place = next((place for place, found in enumerate(self.front) if found.damage <= limit), len(self.front) - 1)
        met: tuple[Allocation, Damage] | None = None
        while low < high - 1 and len(self.tried) < MOST_TRIED:
            pair = self.front[place], measure(self.rules(self.front[place]))
            self.tried.append(pair)
            if self.score(pair[1]) <= limit:
                met, high = pair, place
            else:
                low = place
            place = self._next(low, high, pair, limit)
        if met is None and high == len(self.front) and low < high - 1:
            pair = self.front[-1], measure(self.rules(self.front[-1]))
            self.tried.append(pair)
            met = pair if self.score(pair[1]) <= limit else None
        if met is None:
            nearest = min((damage for _, damage in self.tried), key=self.score)
            kl = "" if nearest.kl is None else f", KL {nearest.kl:.3g}"
            raise PlanError(f"no choice of these formats is within the budget; the nearest leaves {nearest.output_db:.1f} dB{kl}.")
        return self._result(met)

    def _next(self, low: int, high: int, last: tuple[Allocation, Damage], limit: float) -> int:
        """Where the prediction, corrected by what was just measured, meets the limit; the middle where that lies outside."""
        ratio = self.score(last[1]) / max(last[0].damage, 1e-30)
        wanted = next((place for place, found in enumerate(self.front) if found.damage * ratio <= limit), high)
        return wanted if low < wanted < high else (low + high) // 2

    def _fits(self, allocation: Allocation) -> bool:
        if self._budget.max_size_bytes is not None:
            return allocation.cost <= self._budget.max_size_bytes
        return self._budget.max_bits is None or self._bits(allocation) <= self._budget.max_bits

    def _bits(self, allocation: Allocation) -> float:
        rows = self._rows(allocation)
        return sum(stored_bits(row.format, self._spec) * row.weights for row in rows) / sum(row.weights for row in rows)

    def _rows(self, allocation: Allocation) -> list[Sensitivity]:
        return [unit[place] for unit, place in zip(self._units, allocation.choice, strict=True)]

    def _uniform(self) -> list[Allocation]:
        """All layers at one format: what mixing has to beat."""
        found = []
        for place in range(len(self._units[0])):
            rows = [unit[place] for unit in self._units]
            cost = sum(row.size_bytes for row in rows)
            found.append(Allocation((place,) * len(rows), cost, sum(self.score(row.damage) for row in rows)))
        return sorted(found, key=lambda allocation: allocation.damage)

    def rules(self, allocation: Allocation) -> dict[str, str]:
        """Formats by layer."""
        return {layer: row.format for row in self._rows(allocation) for layer in row.layers}

    def _result(self, pair: tuple[Allocation, Damage]) -> Precision:
        allocation, damage = pair
        return Precision(
            rules=self.rules(allocation),
            size_bytes=allocation.cost,
            bits=self._bits(allocation),
            predicted=allocation.damage,
            damage=damage,
            table=self.table,
            tried=tuple((tried.cost, found) for tried, found in self.tried),
        )
