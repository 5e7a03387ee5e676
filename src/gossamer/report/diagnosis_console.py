"""A diagnosis on the console: tables of rich."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gossamer.report.diagnosis import cure_row, facts, finding_rows
from gossamer.search.diagnosis.findings import Diagnosis

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

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


def _findings(diagnosis: Diagnosis) -> Table:
    table = _table(
        "coded tensors, worst first", ("#", "tensor", "codes", "cause"), ("alone, dB", "KL", "gathered, dB", "own, dB", "clipping")
    )
    for row in finding_rows(diagnosis)[:MOST_ROWS]:
        _add(table, (str(row.number), row.name, row.where.split(", of ")[0], row.cause, *row.cells[:5]))
    return table


def _cures(diagnosis: Diagnosis) -> Table:
    table = _table("tried (* chosen)", ("cure", "of"), ("gain", "outputs, dB", "KL", "cost in speed"))
    tried = [*diagnosis.network, *(cure for finding in diagnosis.worst for cure in finding.cures)]
    for cure in tried:
        row = cure_row(cure)
        _add(table, (("* " if row.chosen else "  ") + row.name, cure.where or "the whole network", row.gain, row.after, row.kl, row.cost))
    return table


def _table(title: str, left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in left:
        table.add_column(Text(name))
    for name in right:
        table.add_column(Text(name), justify="right")
    return table


def _add(table: Table, cells: tuple[str, ...]) -> None:
    from rich.text import Text

    table.add_row(*map(Text, cells))
