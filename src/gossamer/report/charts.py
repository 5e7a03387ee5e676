"""Charts as inline SVG, made by matplotlib without pyplot. Colours are CSS variables, so dark mode and print just work."""

from __future__ import annotations

import io
import re
from typing import Any

from gossamer.report.content import Candidate, Content
from gossamer.targets.results import count

# colours that matplotlib is given -> what the page's style sheet calls them
_INK = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--line)",
    "#040404": "var(--accent)",
    "#050505": "var(--good)",
    "#060606": "var(--bad)",
    "#070707": "var(--surface)",
    "#080808": "var(--accent-faint)",
}
_NAMES = ("ink", "muted", "line", "accent", "good", "bad", "surface", "faint")
COLOR = dict(zip(_NAMES, _INK, strict=True))


def accuracy_latency_chart(content: Content) -> str:
    """SVG of accuracy against latency of all candidates that have both; "" when there is none.

    The original is a square, a candidate a circle with its number in the table (filled where the budget is met),
    the chosen one has a ring. Dashed lines are limits of the budget.
    """
    points = [
        (number, candidate, candidate.latency_ms, candidate.accuracy)
        for number, candidate in enumerate(content.candidates, start=1)
        if candidate.latency_ms is not None and candidate.accuracy is not None
    ]
    if not points:
        return ""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "gossamer", "font.size": 11}):
        figure = Figure(figsize=(9.2, 4.0), layout="constrained")
        axes = figure.add_subplot()
        original = content.report.original
        scale = _scale(content)
        axes.scatter([original.latency_ms], [original.accuracy * scale], marker="s", s=64, color=COLOR["ink"], zorder=4)
        _label(axes, "original", original.latency_ms, original.accuracy * scale, weight="normal")
        for number, candidate, latency_ms, accuracy in points:
            _draw_candidate(axes, candidate, number, latency_ms, accuracy * scale)
        _frame(axes, content)
        _draw_limits(axes, content)
        return svg_text(figure, f"Accuracy against latency of {count(len(points), 'candidate')} and the original")


def _limits(content: Content) -> tuple[float | None, float | None]:
    """The most latency_ms and the least accuracy (on the chart's scale) that the budget allows."""
    budget, original = content.report.budget, content.report.original
    if budget is None:
        return None, None
    latencies = [] if budget.min_speedup is None else [original.latency_ms / budget.min_speedup]
    latencies += [] if budget.max_latency_ms is None else [budget.max_latency_ms]
    accuracy = None if budget.max_drop_points is None else (original.accuracy - budget.max_drop_points / 100) * _scale(content)
    return min(latencies, default=None), accuracy


def _draw_limits(axes: Any, content: Content) -> None:
    """Lines that a candidate must be to the left of (latency) and above (accuracy); the area that is allowed is shaded."""
    latency_ms, accuracy = _limits(content)
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    style = {"color": COLOR["accent"], "linewidth": 1.2, "linestyle": (0, (5, 4)), "zorder": 1}
    if latency_ms is not None:
        right = min(latency_ms, right)
        axes.axvline(latency_ms, **style)
    if accuracy is not None:
        bottom = max(accuracy, bottom)
        axes.axhline(accuracy, **style)
    if latency_ms is not None or accuracy is not None:
        axes.fill_between([left, right], bottom, top, color=COLOR["faint"], linewidth=0, zorder=0)


def _scale(content: Content) -> float:
    """Shares are shown as per cent."""
    return 100.0 if content.report.percent else 1.0


def _draw_candidate(axes: Any, candidate: Candidate, number: int, latency_ms: float, accuracy: float) -> None:
    color = COLOR["good"] if candidate.budget_met else COLOR["bad"]
    face = color if candidate.budget_met else COLOR["surface"]
    axes.scatter([latency_ms], [accuracy], marker="o", s=64, facecolor=face, edgecolor=color, linewidth=1.8, zorder=3)
    if candidate.chosen:
        axes.scatter([latency_ms], [accuracy], marker="o", s=220, facecolor="none", edgecolor=COLOR["accent"], linewidth=2.2, zorder=2)
    _label(axes, str(number), latency_ms, accuracy, weight="bold" if candidate.chosen else "normal")


def _label(axes: Any, text: str, x: float, y: float, *, weight: str) -> None:
    axes.annotate(
        text, (x, y), xytext=(0, 11), textcoords="offset points", ha="center", va="bottom", color=COLOR["ink"], weight=weight, fontsize=10
    )


def _frame(axes: Any, content: Content) -> None:
    """Axes from latency 0, with room for the labels and for the budget's lines."""
    report = content.report
    latency_ms, accuracy = _limits(content)
    if latency_ms is not None and latency_ms < 1.5 * axes.get_xlim()[1]:  # a limit far off would squeeze the points together
        axes.update_datalim([(latency_ms, report.original.accuracy * _scale(content))])
    if accuracy is not None:
        axes.update_datalim([(report.original.latency_ms, accuracy)])
    axes.margins(x=0.08, y=0.22)
    axes.autoscale_view()
    axes.set_xlim(0, axes.get_xlim()[1])
    axes.set_ylim(*axes.get_ylim())
    axes.set_xlabel(
        f"latency in ms (batch {report.batch}, {report.threads} thread{'s' if report.threads > 1 else ''})", color=COLOR["muted"]
    )
    axes.set_ylabel("accuracy in %" if report.percent else report.metric, color=COLOR["muted"])
    axes.grid(color=COLOR["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=COLOR["muted"], length=0, labelsize=10)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(COLOR["line"])


def svg_text(figure: Any, title: str) -> str:
    """One <svg> element for an HTML page: no prolog, no metadata, no addresses, colours by name."""
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'(<svg[^>]*?)\s+width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?)\s+height="[^"]*"', r"\1", text, count=1)
    text = re.sub("|".join(_INK), lambda match: _INK[match.group()], text)
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1).strip()
