"""What was measured of one network as its file runs on the target, as data and from JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gossamer.numerics.intervals import Interval
from gossamer.targets.energy import Energy


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One network as its file runs on the target.

    accuracy           value of the metric, with its 95 % interval
    latency_ms         median per batch; a tenth of the calls took less than latency_p10_ms, a tenth more than latency_p90_ms; NaN where
                       the target's runtime could not run here
    size_bytes         of the file
    macs, params       counted on the graph: multiply-accumulates for one input, elements of parameters
    peak_memory_bytes  of activations for one input, counted on the graph
    sparsity           share of zeros among the numbers of weights (two and more axes) in the file
    download_bytes     of the file when packed (deflate); 0 where it was not measured
    ram_bytes          that values, inputs and outputs take on a chip; 0 for targets that plan no chip's memory
    energy             of one inference: estimated from counts, and measured where the machine has a counter
    """

    accuracy: float
    accuracy_interval: Interval
    latency_ms: float
    latency_p10_ms: float
    latency_p90_ms: float
    size_bytes: int
    macs: int
    params: int
    peak_memory_bytes: int
    sparsity: float = 0.0
    download_bytes: int = 0
    ram_bytes: int = 0
    energy: Energy = field(default_factory=Energy)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Measurement:
        """Inverse of dataclasses.asdict. Raises KeyError, TypeError or ValueError for data of another form."""
        return Measurement(
            accuracy=number(data["accuracy"]),
            accuracy_interval=interval(data["accuracy_interval"]),
            latency_ms=_measured(data["latency_ms"]),
            latency_p10_ms=_measured(data["latency_p10_ms"]),
            latency_p90_ms=_measured(data["latency_p90_ms"]),
            size_bytes=int(data["size_bytes"]),
            macs=int(data["macs"]),
            params=int(data["params"]),
            peak_memory_bytes=int(data["peak_memory_bytes"]),
            sparsity=number(data.get("sparsity", 0.0)),
            download_bytes=int(data.get("download_bytes", 0)),
            ram_bytes=int(data.get("ram_bytes", 0)),
            energy=Energy.from_dict(data.get("energy", {})),
        )


def interval(data: Any) -> Interval:
    """Two numbers of JSON. Raises TypeError or ValueError for anything else."""
    low, high = data
    return number(low), number(high)


def _measured(value: Any) -> float:
    """JSON has no NaN: what was not measured is null there."""
    return math.nan if value is None else number(value)


def number(value: Any) -> float:
    """A number of JSON. Raises TypeError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is no number")
    return float(value)
