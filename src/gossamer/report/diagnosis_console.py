"""A diagnosis on the console: tables of rich."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gossamer.report.diagnosis import cure_row, facts, finding_rows
from gossamer.report.tables import FittingTable
from gossamer.search.diagnosis.findings import Diagnosis

if TYPE_CHECKING:
    from rich.console import RenderableType

MOST_ROWS = 15


def diagnosis_view(diagnosis: Diagnosis) -> RenderableType:
    """What `rich.console.Console.print` shows: tensors, worst first, with cause; cures that were tried with their gain; facts."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [_findings(diagnosis)]
    if len(diagnosis.findings) > MOST_ROWS:
        parts.append(Text(f"... and {len(diagnosis.findings) - MOST_ROWS} more; --json and the page show all."))
    parts += [Text(f"{row.number}. {row.name}: {row.sentence}.") for row in finding_rows(diagnosis)[:MOST_ROWS] if row.cures]
    if any(finding.cures for finding in diagnosis.findings) or diagnosis.network:
        parts.append(_cures(diagnosis))
    parts += [Text(f"{name}: {text}") for name, text in facts(diagnosis)]
    return Group(*parts)


def _findings(diagnosis: Diagnosis) -> FittingTable:
    header = ("#", "tensor", "codes", "cause", "alone, dB", "KL", "gathered, dB", "own, dB", "clipping")
    rows = [
        (str(row.number), row.name, row.where.split(", of ")[0], row.cause, *row.cells[:5]) for row in finding_rows(diagnosis)[:MOST_ROWS]
    ]
    return FittingTable("coded tensors, worst first", header, rows, left=4)


def _cures(diagnosis: Diagnosis) -> FittingTable:
    tried = [*diagnosis.network, *(cure for finding in diagnosis.worst for cure in finding.cures)]
    rows = []
    for cure in tried:
        row = cure_row(cure)
        name = ("* " if row.chosen else "  ") + row.name
        rows.append((name, cure.where or "the whole network", row.gain, row.after, row.kl, row.cost))
    return FittingTable("tried (* chosen)", ("cure", "of", "gain", "outputs, dB", "KL", "cost in speed"), rows, left=2)
