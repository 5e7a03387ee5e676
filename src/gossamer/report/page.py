"""report.html: one file that needs no network and no script, made from the report document alone.

The template page.html says what is shown and escapes every text; page.css says how. This file prepares the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gossamer.report.charts import accuracy_latency_chart
from gossamer.report.content import Candidate, Content, LayerChange
from gossamer.report.diagnosis import section
from gossamer.report.templates import render
from gossamer.targets.chip import BOARD_HEADER, LAYER_HEADER
from gossamer.targets.energy import energy_facts
from gossamer.targets.measurement import Measurement
from gossamer.targets.results import Report, count

_DASH = "-"


@dataclass(frozen=True, slots=True)
class Tile:
    """One large figure with its explanation."""

    value: str
    text: str


@dataclass(frozen=True, slots=True)
class CandidateRow:
    """One candidate as text; `cells` from channels removed to size ratio."""

    name: str
    cells: tuple[str, ...]
    budget_met: bool
    chosen: bool


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer as text and bar lengths in per cent of their track."""

    name: str
    kept_percent: str
    channels: str
    error_percent: str | None
    error: str


def render_page(content: Content) -> str:
    """The HTML of a report. Same content, same text."""
    from markupsafe import Markup

    report = content.report
    return render(
        "page.html",
        title=content.model or "Compressed network",
        chart=Markup(accuracy_latency_chart(content)),
        content=content,
        report=report,
        tiles=tiles(report),
        limits=report.limits(),
        candidates=[candidate_row(candidate, percent=report.percent) for candidate in content.candidates],
        layers=layer_rows(content.layers),
        with_errors=any(layer.error_db is not None for layer in content.layers),
        facts=verification_facts(report),
        **(
            {}
            if report.chip is None
            else {"boards": (BOARD_HEADER, report.chip.board_rows()), "steps": (LAYER_HEADER, report.chip.layer_rows())}
        ),
        **({} if content.diagnosis is None else section(content.diagnosis)),
    )


def tiles(report: Report) -> tuple[Tile, ...]:
    """The figures a reader looks for first."""
    low, high = report.drop_interval
    steps = report.parity.max_steps
    return (
        _ratio_tile(report.size_ratio, "smaller file", "larger file"),
        _ratio_tile(report.speedup, *(f"{word} (batch {report.batch}, {count(report.threads, 'thread')})" for word in ("faster", "slower")))
        if report.timed
        else Tile(_DASH, "latency was not measured"),
        Tile(f"{report.drop_points:.2f}", f"points of accuracy lost [{low:.2f}, {high:.2f}]"),
        Tile(f"{steps}", f"code step{'' if steps == 1 else 's'} between file and simulation, at most"),
    )


def _ratio_tile(ratio: float, gained: str, lost: str) -> Tile:
    """A ratio below 1 is told the other way round."""
    return Tile(f"{ratio:.1f}x", gained) if ratio >= 1 else Tile(f"{1 / ratio:.1f}x", lost)


def candidate_row(candidate: Candidate, *, percent: bool) -> CandidateRow:
    """One line of the table of candidates; a dash where something was not measured."""

    def shown(value: float | None, form: str) -> str:
        return _DASH if value is None else form.format(value)

    cells = (
        shown(None if candidate.removed_ratio is None else 100 * candidate.removed_ratio, "{:.0f} %"),
        shown(candidate.accuracy, "{:.2%}" if percent else "{:.4g}").replace("%", " %"),
        shown(candidate.drop_points, "{:.2f}"),
        shown(candidate.latency_ms, "{:.3g}"),
        shown(candidate.speedup, "{:.2f}x"),
        shown(candidate.size_bytes, "{:,}"),
        shown(candidate.size_ratio, "{:.2f}x"),
    )
    return CandidateRow(candidate.name, cells, candidate.budget_met, candidate.chosen)


def layer_rows(layers: Sequence[LayerChange]) -> list[LayerRow]:
    """Bars of channels are shares of each layer's own; bars of dB share one scale, from 0 to 60 or to the best layer."""
    top = max([60.0, *(layer.error_db for layer in layers if layer.error_db is not None)])
    return [
        LayerRow(
            name=layer.name,
            kept_percent=f"{100 * layer.kept_ratio:.1f}",
            channels=f"{layer.channels_after:,} / {layer.channels_before:,}",
            error_percent=None if layer.error_db is None else f"{100 * max(0.0, layer.error_db / top):.1f}",
            error=_DASH if layer.error_db is None else f"{layer.error_db:.1f}",
        )
        for layer in layers
    ]


def _spread(measured: Measurement) -> str:
    """The median with the range of the middle 80 % of the calls."""
    return f"{measured.latency_ms:.3g} [p10 {measured.latency_p10_ms:.3g}, p90 {measured.latency_p90_ms:.3g}]"


def _latency_facts(report: Report) -> list[tuple[str, str]]:
    calls = f"{count(report.repeats, 'call')} each" + (
        " that no other program disturbed" if report.steady else ", many disturbed by other programs"
    )
    both = f"{_spread(report.original)} before, {_spread(report.compressed)} after"
    return [
        ("latency in ms", f"{both}; speed-up call by call {report.paired_speedup:.2f}x"),
        ("latency is", f"median of {calls}, in turns, batch {report.batch}, {count(report.threads, 'thread')}"),
    ]


def verification_facts(report: Report) -> list[tuple[str, str]]:
    """Names and values of everything that decides what the figures mean."""
    parity = report.parity
    facts = [
        ("samples", f"{report.samples:,} of the validation data, the same for both networks"),
        ("metric", report.metric),
        (
            "accuracy lost",
            "{:.2f} points, 95 % interval [{:.2f}, {:.2f}] of the paired difference".format(report.drop_points, *report.drop_interval),
        ),
        *(_latency_facts(report) if report.timed else [("latency", "not measured, since the runtime cannot run here")]),
        ("parity", f"{parity.values_compared:,} values compared, at most {count(parity.max_steps, 'step')} apart"),
        ("output error", f"{parity.output_error:.1e} relative to the simulation's output"),
        ("runtime", report.target),
        ("versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())),
        ("machine", report.machine),
        ("seed", str(report.seed)),
        ("time taken", f"{report.seconds:.1f} s"),
        *(("note", note) for note in report.notes),
        *(("energy", fact) for fact in energy_facts(report.original.energy, report.compressed.energy)),
    ]
    return [(name, text) for name, text in facts if text]
