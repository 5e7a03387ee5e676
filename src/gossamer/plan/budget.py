"""What the user can afford."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from gossamer.errors import ConfigError
from gossamer.plan.chips import chips


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits on the verified artifact; None means no limit. Ratios compare with the uncompressed network.

    max_drop_points  accuracy lost, in percentage points
    min_speedup      latency of the original / latency of the artifact, same runtime, same run
    min_size_ratio   bytes of the original's file / bytes of the artifact
    max_latency_ms   per batch, on this machine
    max_size_bytes   of the artifact file
    max_peak_memory_bytes  that inputs and results take at once, for one input
    max_ram_bytes    that a chip needs for values, inputs and outputs (targets that plan a chip's memory)
    macs, params     share that may stay, in (0, 1]
    board            a name in gossamer.plan.chips: its flash and its RAM must suffice (targets that write for chips)

    plan_pruning predicts macs, params, max_size_bytes (of parameters and buffers) and max_peak_memory_bytes; the others must be measured.
    """

    max_drop_points: float | None = None
    min_speedup: float | None = None
    min_size_ratio: float | None = None
    max_latency_ms: float | None = None
    max_size_bytes: int | None = None
    max_peak_memory_bytes: int | None = None
    max_ram_bytes: int | None = None
    macs: float | None = None
    params: float | None = None
    board: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None or field.name == "board":
                continue
            if not isinstance(value, (int, float)) or isinstance(value, bool) or value != value:
                raise ConfigError(f"Budget.{field.name}", value, "a number")
            if field.name in ("macs", "params"):
                if not 0 < value <= 1:
                    raise ConfigError(f"Budget.{field.name}", value, "a share in (0, 1]")
            elif value < 0 or (value == 0 and field.name != "max_drop_points"):
                raise ConfigError(f"Budget.{field.name}", value, "positive")

        if self.board:
            chips.entry(self.board)

    def limits(self) -> dict[str, float]:
        """The limits that are set, but for the board's."""
        return {key: value for key, value in asdict(self).items() if value is not None and key != "board"}

    def to_json(self) -> dict[str, Any]:
        """All that is set, as keyword arguments."""
        return {**self.limits(), **({"board": self.board} if self.board else {})}
