"""What a compression did, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TensorResult:
    """One tensor of the checkpoint.

    reason     why it stayed as it was; "" for one that got codes
    signal     sum of the squares of its weights, noise that of their errors; both 0 for one that stayed
    """

    name: str
    shape: tuple[int, ...]
    reason: str
    bytes_before: int
    bytes_after: int
    signal: float = 0.0
    noise: float = 0.0

    @property
    def sqnr_db(self) -> float:
        """Signal over noise; infinite for what is exact."""
        return sqnr_db(self.signal, self.noise)


@dataclass(frozen=True, slots=True)
class CompressionReport:
    """Of one call.

    seconds          of this call; what an earlier, killed one did is not counted
    resumed_bytes    of the source that an earlier call had done
    peak_rss_bytes   the most memory that this process ever held, whatever it did before included
    """

    tensors: tuple[TensorResult, ...]
    source_bytes: int
    compressed_bytes: int
    resumed_bytes: int
    seconds: float
    peak_rss_bytes: int

    @property
    def coded(self) -> tuple[TensorResult, ...]:
        """The tensors that got codes."""
        return tuple(tensor for tensor in self.tensors if not tensor.reason)

    @property
    def size_ratio(self) -> float:
        """How many times smaller the files are."""
        return self.source_bytes / self.compressed_bytes

    @property
    def sqnr_db(self) -> float:
        """Of all weights that got codes together."""
        return sqnr_db(sum(tensor.signal for tensor in self.coded), sum(tensor.noise for tensor in self.coded))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; an infinite ratio is None."""
        return {
            "source_bytes": self.source_bytes,
            "compressed_bytes": self.compressed_bytes,
            "size_ratio": self.size_ratio,
            "sqnr_db": _finite(self.sqnr_db),
            "resumed_bytes": self.resumed_bytes,
            "seconds": self.seconds,
            "peak_rss_bytes": self.peak_rss_bytes,
            "tensors": [
                {
                    "name": tensor.name,
                    "shape": list(tensor.shape),
                    "bytes_before": tensor.bytes_before,
                    "bytes_after": tensor.bytes_after,
                    **({"float": tensor.reason} if tensor.reason else {"sqnr_db": _finite(tensor.sqnr_db)}),
                }
                for tensor in self.tensors
            ],
        }

    def facts(self) -> tuple[str, ...]:
        """Sentences for people."""
        worst = min(self.coded, key=lambda tensor: tensor.sqnr_db)
        kept = len(self.tensors) - len(self.coded)
        return (
            f"{self.source_bytes / 1e6:,.1f} MB became {self.compressed_bytes / 1e6:,.1f} MB ({self.size_ratio:.2f} times smaller).",
            f"{len(self.coded)} tensors got codes, {kept} stayed as they are.",
            f"Weights over their errors: {self.sqnr_db:.1f} dB, worst {worst.sqnr_db:.1f} dB in {worst.name}.",
            f"{self.seconds:.1f} s, at most {self.peak_rss_bytes / 1e6:,.0f} MB of memory in this process.",
        )


def sqnr_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise); infinite without noise."""
    return math.inf if not noise else 10 * math.log10(signal / noise) if signal else -math.inf


def result_of(name: str, entry: Mapping[str, Any]) -> TensorResult:
    """The result that an entry of the manifest tells of."""
    return TensorResult(
        name, tuple(entry["shape"]), entry["float"], entry["bytes_before"], entry["bytes_after"], entry["signal"], entry["noise"]
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
