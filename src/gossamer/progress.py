"""Progress of long work as data: functions report records, callers decide how to show them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` units of `stage` are finished (total 0: not known)."""

    stage: str
    done: int
    total: int = 0
    note: str = ""


OnProgress = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Show nothing."""
