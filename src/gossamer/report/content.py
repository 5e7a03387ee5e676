"""What a report shows, read from its JSON document: the verified Report and how it came about."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from gossamer.errors import DataError
from gossamer.search.diagnosis.findings import Diagnosis
from gossamer.targets.results import Report

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One network that was tried; None where something was not measured."""

    name: str
    removed_ratio: float | None = None
    accuracy: float | None = None
    latency_ms: float | None = None
    size_bytes: int | None = None
    drop_points: float | None = None
    speedup: float | None = None
    size_ratio: float | None = None
    budget_met: bool = False
    chosen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerChange:
    """One layer: output channels before and after, and the signal-to-noise ratio of its values in dB (40 is better than 20)."""

    name: str
    channels_before: int
    channels_after: int
    error_db: float | None = None

    @property
    def kept_ratio(self) -> float:
        """Share of channels kept, in [0, 1]."""
        return min(1.0, max(0.0, self.channels_after / max(self.channels_before, 1)))


@dataclass(frozen=True, slots=True)
class Untouched:
    """A reason for which something was left as it is, and all places it holds for."""

    reason: str
    where: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Everything that a report document holds. All but `report` may be empty."""

    report: Report
    model: str = ""
    statement: str = ""
    candidates: tuple[Candidate, ...] = ()
    layers: tuple[LayerChange, ...] = ()
    frozen: tuple[Untouched, ...] = ()
    diagnosis: Diagnosis | None = None

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> Content:
        """Check and read a document. Keys that it does not know are passed over.

        Raises: DataError for a document of another form, naming the part.
        """
        report = Report.from_dict(document)
        return Content(
            report=report,
            model=str(document.get("model") or ""),
            statement=str(document.get("statement") or ""),
            candidates=_items(document, "candidates", _candidate),
            layers=_items(document, "layers", _layer),
            frozen=_by_reason(_items(document, "frozen", lambda item: (str(item["where"]), str(item["reason"])))),
            diagnosis=Diagnosis.from_dict(document["diagnosis"]) if document.get("diagnosis") else None,
        )


def _items(document: Mapping[str, Any], key: str, read: Callable[[Mapping[str, Any]], T]) -> tuple[T, ...]:
    items = document.get(key) or []
    try:
        return tuple(read(item) for item in items)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"an entry has no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"the part {key!r} of this report cannot be read ({reason}); write the report with result.save.") from error


def _candidate(item: Mapping[str, Any]) -> Candidate:
    size = _number_or_none(item.get("size_bytes"))
    return Candidate(
        name=str(item["name"]),
        removed_ratio=_number_or_none(item.get("removed_ratio")),
        accuracy=_number_or_none(item.get("accuracy")),
        latency_ms=_number_or_none(item.get("latency_ms")),
        size_bytes=None if size is None else int(size),
        drop_points=_number_or_none(item.get("drop_points")),
        speedup=_number_or_none(item.get("speedup")),
        size_ratio=_number_or_none(item.get("size_ratio")),
        budget_met=bool(item.get("budget_met", False)),
        chosen=bool(item.get("chosen", False)),
    )


def _layer(item: Mapping[str, Any]) -> LayerChange:
    return LayerChange(
        name=str(item["name"]),
        channels_before=int(item["channels_before"]),
        channels_after=int(item["channels_after"]),
        error_db=_number_or_none(item.get("error_db")),
    )


def _number_or_none(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is no number")
    return float(value) if math.isfinite(value) else None


def _by_reason(items: Sequence[tuple[str, str]]) -> tuple[Untouched, ...]:
    places: dict[str, list[str]] = {}
    for where, reason in items:
        places.setdefault(reason, []).append(where)
    return tuple(Untouched(reason, tuple(where)) for reason, where in places.items())
