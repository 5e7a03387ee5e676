"""The chart: well-formed SVG whose marks stand where the figures say."""

import re
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from gossamer.plan.budget import Budget
from gossamer.report.charts import accuracy_latency_chart
from gossamer.report.content import Content
from reports import a_document, a_report


def chart(**changes):
    return accuracy_latency_chart(Content.from_dict(a_document(**changes)))


def marks(svg):
    """(x, y) of every scatter mark, in drawing order; the shaded area is a mark at x = 0."""
    found = re.findall(r'<use href="#\w+" x="([\d.]+)" y="([\d.]+)" style="fill', svg)
    return [(float(x), float(y)) for x, y in found if float(x) > 0]


def test_svg_is_well_formed_and_asks_for_nothing():
    svg = chart()
    root = ElementTree.fromstring(svg)
    assert root.tag == "svg"
    assert root.get("role") == "img"
    assert "http" not in svg
    assert "<script" not in svg
    assert not re.search(r"(fill|stroke): #", svg)  # every colour is a variable of the style sheet


def test_same_content_same_picture():
    assert chart() == chart()


def test_points_stand_where_the_figures_say():
    svg = chart(budget=None, budget_met=True)
    points = marks(svg)
    content = Content.from_dict(a_document())
    want = [(c.latency_ms, c.accuracy) for c in content.candidates] + [
        (content.report.original.latency_ms, content.report.original.accuracy)
    ]
    drawn = sorted(set(points))
    assert len(drawn) == len(want)
    want = sorted(want)
    scale = (drawn[-1][0] - drawn[0][0]) / (want[-1][0] - want[0][0])
    for (x, _), (latency, _) in zip(drawn, want, strict=True):
        assert x == pytest.approx(drawn[0][0] + scale * (latency - want[0][0]), abs=0.01)
    by_height = sorted(drawn, key=lambda point: -point[1])  # SVG counts downwards
    by_accuracy = sorted(want, key=lambda point: point[1])
    assert [round(y, 3) for _, y in by_height] == sorted((round(y, 3) for _, y in drawn), reverse=True)
    assert by_accuracy[0][1] == min(accuracy for _, accuracy in want)


def test_budget_lines_are_drawn():
    assert chart().count("stroke-dasharray: 6") == 2
    assert chart(budget={"max_drop_points": 0.5}).count("stroke-dasharray: 6") == 1
    assert chart(budget=None).count("stroke-dasharray: 6") == 0
    assert chart(budget={"max_latency_ms": 5000.0}).count("stroke-dasharray: 6") <= 1


def test_only_measured_candidates_are_drawn():
    assert chart(candidates=[]) == ""
    assert chart(candidates=[{"name": "failed"}]) == ""
    assert len(set(marks(chart(candidates=[{"name": "failed"}, {"name": "a", "accuracy": 0.9, "latency_ms": 1.0}])))) == 2


def test_a_metric_outside_shares_is_drawn():
    report = a_report(metric="minus_error", budget=Budget(max_latency_ms=1.0)).to_dict()
    report["original"]["accuracy"], report["original"]["accuracy_interval"] = -3.0, [-4.0, -2.0]
    svg = accuracy_latency_chart(Content.from_dict({**report, "candidates": [{"name": "a", "accuracy": -3.5, "latency_ms": 2.0}]}))
    assert "minus_error" in svg


def test_pyplot_stays_out():
    chart()
    assert "matplotlib.pyplot" not in sys.modules
