"""The chart of a diagnosis: damage along the depth of the network, and what each tensor's error is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gossamer.report.charts import COLOR, svg_text
from gossamer.search.diagnosis.findings import VALUE, Finding

TOP_DB = 100.0  # more is not told apart
_MOST_MARKED = 5
_NEAR_DB = 12.0  # of the worst: what is farther off makes less than a 16th of its noise


def depth_chart(findings: Sequence[Finding]) -> str:
    """SVG with one column per coded tensor, in order of execution; "" without any.

    Above: bars of the outputs' SQNR with that tensor alone coded (values light, weights dark, the worst in the colour of
    trouble), and a line of the SQNR that has gathered up to there. Below: clipping and rounding as shares of each tensor's error.
    """
    if not findings:
        return ""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "gossamer", "font.size": 11}):
        figure = Figure(figsize=(9.2, 5.0), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        _draw_damage(upper, findings)
        _draw_shares(lower, findings)
        return svg_text(figure, f"Damage of {len(findings)} coded tensors along the depth of the network")


def worst_names(findings: Sequence[Finding]) -> set[str]:
    """The tensors that the chart marks: at most five, all of about the same weight."""
    ranked = sorted(findings, key=lambda finding: finding.isolated.output_db)
    return {finding.name for finding in ranked[:_MOST_MARKED] if finding.isolated.output_db <= ranked[0].isolated.output_db + _NEAR_DB}


def _draw_damage(axes: Any, findings: Sequence[Finding]) -> None:
    marked = worst_names(findings)
    places = range(1, len(findings) + 1)
    heights = [_shown(finding.isolated.output_db) for finding in findings]
    colors = [
        COLOR["bad"] if finding.name in marked else COLOR["line"] if finding.kind == VALUE else COLOR["muted"] for finding in findings
    ]
    axes.bar(places, heights, width=0.8, color=colors, linewidth=0, zorder=2)
    values = [(place, finding) for place, finding in zip(places, findings, strict=True) if finding.kind == VALUE]
    line = values or list(zip(places, findings, strict=True))
    axes.plot(
        [place for place, _ in line],
        [_shown(finding.cumulative_db) for _, finding in line],
        color=COLOR["accent"],
        linewidth=1.8,
        marker="o",
        markersize=3.5,
        zorder=3,
    )
    for place, finding, height in zip(places, findings, heights, strict=True):
        if finding.name in marked:
            axes.annotate(
                str(place),
                (place, height),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                color=COLOR["bad"],
                fontsize=9,
                zorder=4,
            )
    axes.set_ylim(0, max(10.0, 1.12 * max(heights)))
    axes.set_ylabel("signal to noise in dB", color=COLOR["muted"])
    _frame(axes)


def _draw_shares(axes: Any, findings: Sequence[Finding]) -> None:
    places = list(range(1, len(findings) + 1))
    clipping = [100 * finding.clipping_share for finding in findings]
    axes.bar(places, clipping, width=0.8, color=COLOR["accent"], linewidth=0, zorder=2)
    axes.bar(places, [100 - share for share in clipping], bottom=clipping, width=0.8, color=COLOR["line"], linewidth=0, zorder=2)
    axes.set_ylim(0, 100)
    axes.set_xlim(0.4, len(findings) + 0.6)
    axes.set_ylabel("% of error", color=COLOR["muted"])
    axes.set_xlabel("coded tensors in order of execution (numbers as in the table)", color=COLOR["muted"])
    _frame(axes)


def _shown(decibels: float) -> float:
    return min(max(decibels, 0.0), TOP_DB)


def _frame(axes: Any) -> None:
    axes.grid(axis="y", color=COLOR["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=COLOR["muted"], length=0, labelsize=10)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(COLOR["line"])
