"""What a search for formats by layer is asked: limits, formats to choose from, and how damage and latency are found."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from gossamer.errors import ConfigError
from gossamer.plan.rules import FLOAT
from gossamer.plan.spec import TargetSpec
from gossamer.search.sensitivity import sensitivities

USUAL = ("int4", "int8", FLOAT)
_COSTS = ("max_size_bytes", "max_bits", "max_latency_ms", "min_speedup")
_DAMAGES = ("max_kl", "min_sqnr_db")
_UNITS = {
    "bits": ("max_bits", 1.0),
    "bytes": ("max_size_bytes", 1.0),
    "kb": ("max_size_bytes", 1e3),
    "mb": ("max_size_bytes", 1e6),
    "ms": ("max_latency_ms", 1.0),
    "x": ("min_speedup", 1.0),
    "nats": ("max_kl", 1.0),
    "db": ("min_sqnr_db", 1.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionBudget:
    """Limits on cost, within which damage is least; or one limit on damage, within which size is least.

    max_size_bytes  of the coded layers' weights with their scales, in the target's file
    max_bits        mean bits per weight of these layers, in the target's file
    max_latency_ms  of the network's file on the target, for one batch on this machine
    min_speedup     latency of the float network's file / latency of the network's file, measured in turns
    max_kl          mean KL divergence of the outputs from the float network's, in nats, for networks with classes
    min_sqnr_db     signal-to-quantization-noise ratio of the outputs, in dB

    Raises: ConfigError unless limits are on cost, or one is on damage, and for one that is not above 0.
    """

    max_size_bytes: int | None = None
    max_bits: float | None = None
    max_latency_ms: float | None = None
    min_speedup: float | None = None
    max_kl: float | None = None
    min_sqnr_db: float | None = None

    def __post_init__(self) -> None:
        given = self.to_json()
        damages = [name for name in given if name in _DAMAGES]
        if not given or len(damages) > 1 or (damages and len(given) > 1):
            raise ConfigError("PrecisionBudget", given, f"one or more of {', '.join(_COSTS)}, or one of {' and '.join(_DAMAGES)}")
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ConfigError(f"PrecisionBudget.{name}", value, "above 0")

    @property
    def on_latency(self) -> bool:
        """Whether latency is limited, so that it must be measured."""
        return self.max_latency_ms is not None or self.min_speedup is not None

    def to_json(self) -> dict[str, float]:
        """The limits that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @staticmethod
    def parse(text: str) -> PrecisionBudget:
        """From text such as "5 bits", "300 kB", "40 dB", "0.01 nats", or several limits on cost: "5 bits, 1.8x".

        Units: bits (a weight), bytes, kB, MB, ms, x (speed-up), nats (KL), dB. Raises: ConfigError for other text.
        """
        given: dict[str, Any] = {}
        for part in text.split(","):
            match = re.fullmatch(r"\s*([0-9.eE+-]*[0-9.])\s*([A-Za-z]+)\s*", part)
            name, factor = _UNITS.get(match[2].lower(), ("", 0.0)) if match else ("", 0.0)
            try:
                number = float(match[1]) * factor if match and name else math.nan
            except ValueError:
                number = math.nan
            if math.isnan(number) or name in given:
                raise ConfigError("budget of formats", text, "numbers with different units, such as '5 bits', '300 kB, 1.8x' or '40 dB'")
            given[name] = int(number) if name == "max_size_bytes" else number
        return PrecisionBudget(**given)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionSearch:
    """How formats are chosen by layer.

    budget       what the choice must keep to
    formats      to choose from: integer formats, "float", and floating-point formats for storage such as "fp16"; none for those of
                 int4, int8 and float that the target has
    sensitivity  how the damage of a layer's format is found, a name in search.sensitivity.sensitivities: "kl" (measured, one layer at
                 a time) or "hawq" (from curvature)
    samples      of the calibration data on which damage is found
    batch, threads  of the runtime where latency is limited

    Raises: ConfigError for a setting outside its rule.
    """

    budget: PrecisionBudget = field(default_factory=lambda: PrecisionBudget(max_bits=6))
    formats: tuple[str, ...] = ()
    sensitivity: str = "kl"
    samples: int = 64
    batch: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        if len(set(self.formats)) != len(self.formats) or len(self.formats) == 1:
            raise ConfigError("formats", tuple(self.formats), "two or more different formats")
        for name in ("samples", "batch", "threads"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "at least 1")
        sensitivities.entry(self.sensitivity)

    def formats_for(self, spec: TargetSpec, widest: str = USUAL[1]) -> tuple[str, ...]:
        """The formats to choose from on a target; `widest` takes the place of int8 where none were named."""
        known = {fmt.name for fmt in spec.weight_formats} | {FLOAT}
        return self.formats or tuple(widest if name == USUAL[1] else name for name in USUAL if name in known)

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON."""
        own = ("sensitivity", "samples", "batch", "threads")
        return {"budget": self.budget.to_json(), "formats": list(self.formats), **{name: getattr(self, name) for name in own}}
