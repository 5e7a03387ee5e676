import io
import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
from rich.console import Console

from diagnoses import a_cure, a_diagnosis, a_finding
from gossamer.plan.plan import Plan
from gossamer.report.diagnosis import cure_row, facts, finding_rows, kl_text, render_diagnosis, write_diagnosis
from gossamer.report.diagnosis_charts import depth_chart, worst_names
from gossamer.report.diagnosis_console import MOST_ROWS, diagnosis_view
from gossamer.search.diagnosis.findings import Damage, Diagnosis
from reports import HOSTILE


def text_of(view):
    console = Console(width=240, file=io.StringIO())
    console.print(view)
    return console.file.getvalue()


def test_rows_are_worst_first_and_numbered_by_depth():
    rows = finding_rows(a_diagnosis())
    assert [(row.number, row.name) for row in rows] == [(3, "relu"), (2, "conv.weight"), (1, "x"), (4, HOSTILE)]
    assert rows[0].cells == ("19.0", "0.01", "25.0", "30.0", "25 %", "0.1 %")
    assert rows[-1].cells[0] == "exact"
    assert [cure.gain for cure in rows[0].cures] == ["+6.5 dB", "+0.0 dB", "+12.0 dB"]


def test_what_a_cure_costs_is_said():
    assert cure_row(a_cure()).cost == "none"
    assert cure_row(a_cure(name="keep float", float_share=0.125)).cost == "12 % of the MACs in float"
    assert cure_row(a_cure(name="keep float")).cost == "little"
    assert kl_text(Damage(3.0)) == "-"
    assert ("note", "Something was left out.") in facts(a_diagnosis())


def test_the_chart_has_a_bar_for_each_tensor_and_marks_the_worst():
    findings = a_diagnosis().findings
    svg = depth_chart(findings)
    assert ElementTree.fromstring(svg).get("aria-label") == "Damage of 4 coded tensors along the depth of the network"
    assert not re.search(r"(fill|stroke): #", svg)
    assert "http" not in svg
    assert worst_names(findings) == {"relu", "conv.weight"}  # x is 23 dB better than the worst
    assert svg == depth_chart(findings)
    assert depth_chart(()) == ""


def test_bars_are_as_high_as_the_figures():
    """Bars of one colour: their paths end at heights in proportion to the decibels."""
    findings = [a_finding(f"v{place}", level) for place, level in enumerate((20.0, 40.0, 60.0))]
    paths = re.findall(r'<path d="([^"]+)" clip-path[^>]*style="fill: var\(--(?:bad|line)\)"', depth_chart(findings))[:3]
    heights = []
    for path in paths:
        ys = [float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", path)]
        heights.append(max(ys) - min(ys))
    assert heights[1] / heights[0] == pytest.approx(2, abs=0.02)
    assert heights[2] / heights[0] == pytest.approx(3, abs=0.02)


def test_the_page_is_offline_escaped_and_complete():
    page = render_diagnosis(a_diagnosis(), HOSTILE)
    assert "<script" not in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert "&lt;script&gt;" in page
    for text in (
        "Where accuracy went",
        "outlier channel",
        "Channel 5 is 20 times",
        "range: mse",
        "+6.5 dB",
        "keep float",
        "12 % of the MACs",
    ):
        assert text in page
    assert page == render_diagnosis(a_diagnosis(), HOSTILE)


def test_files_hold_everything(tmp_path):
    plan = Plan((), "digest")
    written = write_diagnosis(a_diagnosis(plan=plan), tmp_path, "net")
    assert [path.name for path in written] == ["diagnosis.json", "diagnosis.html", "cured-plan.json"]
    data = json.loads(written[0].read_text())
    assert data["model"] == "net"
    assert Diagnosis.from_dict(data).to_dict() == a_diagnosis().to_dict()
    assert Plan.load(written[2]) == plan
    assert len(write_diagnosis(a_diagnosis(), tmp_path, "net")) == 2
    assert not written[2].exists()  # of another diagnosis


def test_the_console_shows_cause_and_cures():
    text = text_of(diagnosis_view(a_diagnosis()))
    assert re.search(r"3 +relu +value, uint8 +outlier channel +19\.0 +0\.01 +25\.0 +30\.0 +25 %", text)
    assert re.search(r"\* range: mse +relu +\+6\.5 dB +24\.5 +0\.004 +none", text)
    assert "the whole network" in text
    assert HOSTILE in text
    many = a_diagnosis(findings=tuple(a_finding(f"v{place}", 20.0 + place) for place in range(MOST_ROWS + 3)), network=())
    text = text_of(diagnosis_view(many))
    assert "and 3 more" in text
    assert "tried" not in text
