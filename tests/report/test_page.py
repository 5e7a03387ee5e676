"""report.html, read back with a parser: figures, escaping, and that it needs nothing from outside."""

import re
import time
from html.parser import HTMLParser

import pytest

from gossamer.report.content import Candidate, Content, LayerChange
from gossamer.report.page import Tile, candidate_row, layer_rows, render_page, tiles
from reports import HOSTILE, a_document, a_report

VOID = {"meta", "link", "br", "wbr"}


class Page(HTMLParser):
    """Collects table cells and attributes, and checks that every element is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.attributes, self.tags, self.text = [], [], [], set(), ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data.replace("\xa0", " ")


def page(**changes):
    return render_page(Content.from_dict(a_document(**changes)))


def test_the_table_is_the_report_s_own_rows():
    rows = [tuple(cell.strip() for cell in row) for row in Page(page()).rows]
    for row in a_report().rows():
        assert tuple(row) in rows


def test_every_part_is_shown():
    text = Page(page()).text
    for words in (
        "my.module:factory",
        "The budget is met.",
        "int8, step 3",
        "conv1",
        "8 / 32",
        "35.5",
        "it makes the output",
        "onnxruntime 1.2.3",
    ):
        assert words in text
    assert "a machine" in text
    assert "max_drop_points" in text.replace("\u200b", "")


def test_hostile_names_stay_text():
    html = page(model=HOSTILE, statement=HOSTILE, problems=[HOSTILE], candidates=[{"name": HOSTILE, "accuracy": 0.5, "latency_ms": 1.0}])
    parsed = Page(html)
    assert "script" not in parsed.tags
    assert "<script" not in html
    assert parsed.text.count(HOSTILE) >= 7  # title, heading, statement, problem, candidate, layer, parity, frozen


def test_nothing_comes_from_outside():
    html = page()
    assert "http" not in re.sub(r"http-equiv", "", html)
    assert "@import" not in html
    assert "url(" not in re.sub(r"url\(#\w+\)", "", html)
    assert "default-src 'none'" in html
    for name, value in Page(html).attributes:
        assert not name.startswith("on")
        if name in ("src", "href"):
            assert value.startswith(("#", "data:"))


def test_problems_come_first_and_only_where_there_are_some():
    assert "What did not pass" not in page()
    failed = page(problems=["The speedup is too low."], budget_met=False)
    assert "The speedup is too low." in failed
    assert "not passed" in failed


def test_a_bare_report_makes_a_page():
    text = Page(render_page(Content.from_dict(a_report(budget=None).to_dict()))).text
    assert "Before and after" in text
    for heading in ("What was tried", "Layer by layer", "Left as it was", "Budget"):
        assert heading not in text


def test_candidate_without_figures_has_dashes():
    assert candidate_row(Candidate(name="x"), percent=True).cells == ("-",) * 7
    row = candidate_row(Candidate(name="x", removed_ratio=0.5, accuracy=0.98765, size_bytes=12345), percent=True)
    assert row.cells[:2] == ("50 %", "98.77 %")
    assert row.cells[5] == "12,345"


def test_bars_are_shares_of_their_track():
    layers = [LayerChange(name=str(db), channels_before=10, channels_after=4, error_db=db) for db in (80.0, 40.0, 0.0, -5.0, None)]
    rows = layer_rows(layers)
    assert [row.error_percent for row in rows] == ["100.0", "50.0", "0.0", "0.0", None]
    assert {row.kept_percent for row in rows} == {"40.0"}


@pytest.mark.parametrize("count", [400])
def test_a_deep_network_makes_a_small_page_fast(count):
    layers = [{"name": f"blocks.{i}.conv", "channels_before": 64, "channels_after": i % 64 + 1, "error_db": 30.0} for i in range(count)]
    parity = {**a_document()["parity"], "layers": [{"name": f"blocks.{i}", "max_steps": 0, "values": 1000} for i in range(count)]}
    page()  # imports
    start = time.perf_counter()
    html = page(layers=layers, parity=parity)
    assert time.perf_counter() - start < 2
    assert len(html.encode()) < 500_000


def test_ratios_below_one_are_told_the_other_way_round():
    size, speed, *_ = tiles(a_report(size_ratio=0.5, speedup=0.8))
    assert size == Tile("2.0x", "larger file")
    assert speed.value == "1.2x"
    assert speed.text.startswith("slower (batch ")
    assert tiles(a_report())[0].text == "smaller file"
