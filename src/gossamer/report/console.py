"""A report on the console: tables of rich, made from the report document alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gossamer.report.content import Content
from gossamer.report.diagnosis_console import diagnosis_view
from gossamer.report.page import candidate_row, layer_rows
from gossamer.report.tables import FittingTable
from gossamer.targets.chip import BOARD_HEADER, LAYER_HEADER
from gossamer.targets.energy import energy_facts
from gossamer.targets.results import Report

if TYPE_CHECKING:
    from rich.console import RenderableType

MOST_LAYERS = 24
_CANDIDATE_COLUMNS = ("candidate", "removed", "accuracy", "drop", "latency_ms", "speedup", "size_bytes", "size_ratio", "budget met")


def console_view(document: Mapping[str, Any]) -> RenderableType:
    """What `rich.console.Console.print` shows: before and after, budget, candidates, layers, what was left and why.

    Names from the document are printed as they are, never read as markup. Raises: DataError for no report.
    """
    from rich.console import Group
    from rich.text import Text

    content = Content.from_dict(document)
    parts: list[RenderableType] = []
    if content.model or content.statement:
        parts.append(Text(": ".join(text for text in (content.model, content.statement) if text)))
    parts.append(result_table(content.report))
    parts += [Text(fact) for fact in (*content.report.facts()[:2], *content.report.notes)]
    parts += [Text(fact) for fact in energy_facts(content.report.original.energy, content.report.compressed.energy)]
    parts += chip_view(content.report)
    parts += _budget(content.report)
    parts += _candidates(content)
    parts += _layers(content)
    parts += [] if content.diagnosis is None else [diagnosis_view(content.diagnosis)]
    parts += _frozen(content)
    parts += [Text(problem, style="bold red") for problem in content.report.problems]
    return Group(*parts)


def result_table(report: Report) -> FittingTable:
    """The table of a report alone, for `gossamer verify`."""
    return FittingTable(None, ("", "before", "after", "ratio"), report.rows())


def chip_view(report: Report) -> list[RenderableType]:
    """Sizes, instructions by step, and estimates for boards; nothing for targets that do not write for chips."""
    from rich.text import Text

    if report.chip is None:
        return []
    steps = report.chip.layer_rows()
    shown = sorted(steps, key=lambda row: -int(row[2].replace(",", "")))[:MOST_LAYERS]
    return [
        *(Text(fact) for fact in report.chip.facts()),
        FittingTable("boards", BOARD_HEADER, report.chip.board_rows()),
        FittingTable("steps, most instructions first", LAYER_HEADER, shown),
    ]


def _budget(report: Report) -> list[RenderableType]:
    limits = report.limits()
    if not limits:
        return []
    rows = [(limit.name, limit.rule, limit.found, _yes(limit.met)) for limit in limits]
    return [FittingTable("budget", ("limit", "allowed", "measured", "met"), rows)]


def _candidates(content: Content) -> list[RenderableType]:
    if not content.candidates:
        return []
    rows = []
    for candidate in content.candidates:
        row = candidate_row(candidate, percent=content.report.percent)
        rows.append((("* " if row.chosen else "  ") + row.name, *row.cells, _yes(row.budget_met)))
    return [FittingTable("tried (* chosen)", _CANDIDATE_COLUMNS, rows)]


def _layers(content: Content) -> list[RenderableType]:
    from rich.text import Text

    if not content.layers:
        return []
    shown = layer_rows(content.layers)[:MOST_LAYERS]
    parts: list[RenderableType] = [
        FittingTable("layers", ("layer", "channels kept", "signal to noise, dB"), [(row.name, row.channels, row.error) for row in shown])
    ]
    if len(content.layers) > MOST_LAYERS:
        parts.append(Text(f"... and {len(content.layers) - MOST_LAYERS} more layers; report.html shows all."))
    return parts


def _frozen(content: Content) -> list[RenderableType]:
    if not content.frozen:
        return []
    rows = []
    for item in content.frozen:
        more = f" and {len(item.where) - 4} more" if len(item.where) > 4 else ""
        rows.append((item.reason, ", ".join(item.where[:4]) + more))
    return [FittingTable("left as it was", ("why", "where"), rows, left=2)]


def _yes(value: bool) -> str:
    return "yes" if value else "no"
