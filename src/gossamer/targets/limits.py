"""The limits of a budget, held against what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gossamer.plan.budget import Budget
from gossamer.plan.chips import chips

if TYPE_CHECKING:
    from gossamer.targets.results import Measurement


class Limit(NamedTuple):
    """One limit of a budget against what was measured."""

    name: str
    limit: float
    measured: float
    met: bool

    @property
    def rule(self) -> str:
        """ "at least 2.5" or "at most 0.5"."""
        return f"{'at least' if self.name.startswith('min_') else 'at most'} {self.limit:,.6g}"

    @property
    def sentence(self) -> str:
        """What failed, and by how much."""
        if " of " in self.name:
            return f"The budget is missed: the {self.name} is {self.measured - self.limit:,.0f} bytes too small."
        return f"The budget is missed: {self.name} is {self.limit:,.6g}, measured {self.measured:,.6g}."


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
