"""The limits of a budget, held against what was measured."""

from __future__ import annotations

from typing import NamedTuple

from gossamer.plan.budget import Budget
from gossamer.plan.chips import chips
from gossamer.targets.measurement import Measurement


def shown(value: float) -> str:
    """All digits of a whole number, six of another."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.6g}"


class Limit(NamedTuple):
    """One limit of a budget against what was measured."""

    name: str
    limit: float
    measured: float
    met: bool

    @property
    def rule(self) -> str:
        """ "at least 2.5" or "at most 0.5"."""
        return f"{'at least' if self.name.startswith('min_') else 'at most'} {shown(self.limit)}"

    @property
    def found(self) -> str:
        """What was measured."""
        return shown(self.measured)

    @property
    def sentence(self) -> str:
        """What failed, and by how much."""
        if " of " in self.name:
            return f"The budget is missed: the {self.name} is {self.measured - self.limit:,.0f} bytes too small."
        return f"The budget is missed: {self.name} is {shown(self.limit)}, measured {shown(self.measured)}."


def check_limits(budget: Budget | None, original: Measurement, compressed: Measurement, drop_points: float) -> tuple[Limit, ...]:
    """Every limit that the budget sets, in its order; none without a budget. `macs` and `params` are shares that stay."""
    measured = {
        "max_drop_points": drop_points,
        "min_speedup": original.latency_ms / compressed.latency_ms,
        "min_size_ratio": original.size_bytes / compressed.size_bytes,
        "max_latency_ms": compressed.latency_ms,
        "max_size_bytes": float(compressed.size_bytes),
        "max_peak_memory_bytes": float(compressed.peak_memory_bytes),
        "max_ram_bytes": float(compressed.ram_bytes),
        "macs": compressed.macs / max(original.macs, 1),
        "params": compressed.params / max(original.params, 1),
    }
    limits = {} if budget is None else budget.limits()
    if budget is not None and budget.board:
        chip = chips[budget.board]
        limits |= {f"flash of {chip.name}": chip.flash_bytes, f"RAM of {chip.name}": chip.ram_bytes}
        measured |= {f"flash of {chip.name}": compressed.size_bytes, f"RAM of {chip.name}": compressed.ram_bytes}
    return tuple(Limit(name, limit, measured[name], _holds(name, limit, measured[name])) for name, limit in limits.items())


def _holds(name: str, limit: float, value: float) -> bool:
    """Equality holds, also after rounding in the last bits of a metric's difference."""
    slack = 1e-9 * max(1.0, abs(limit))
    return value >= limit - slack if name.startswith("min_") else value <= limit + slack
