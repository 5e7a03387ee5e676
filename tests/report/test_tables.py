"""Tables on a console: whatever the width, no letter is lost, and nothing is wider than the console."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from gossamer.report.tables import FittingTable

CELLS = st.text("abcdefgh_[]/%.0123456789", min_size=1, max_size=24)


def printed(table, width):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.lists(CELLS, min_size=5, max_size=5), min_size=1, max_size=4), width=st.integers(60, 140))
def test_no_letter_is_lost_and_no_line_is_too_wide(rows, width):
    table = FittingTable("a [b]title[/b]", ("name", "size_bytes", "budget met", "x", "why"), rows, last_left=True, note="a note")
    shown = printed(table, width)
    assert max(map(len, shown.splitlines())) <= width
    for letter in "abcdefgh_[]/%.0123456789":
        wanted = sum(cell.count(letter) for row in (*rows, table.header) for cell in row) + (table.title + table.note).count(letter)
        assert shown.count(letter) == wanted


def test_headings_break_only_where_the_console_is_too_narrow():
    table = FittingTable(None, ("candidate", "latency_ms", "size_bytes"), [("first candidate", "1.25", "1,000,000")])
    assert "latency_ms" in printed(table, 80)
    narrow = printed(table, 35)
    assert "latency_ms" not in narrow
    assert "latency_" in narrow
    assert "1,000,000" in narrow


def test_short_names_stay_whole():
    rows = 30
    table = FittingTable("t", ("target", "runtime", "values"), [("onnxruntime", "a runtime of a long name 1.0", "uint2-8, int2-8")] * rows)
    assert printed(table, 50).count("onnxruntime") == rows


@pytest.mark.parametrize("width", [20, 500])
def test_a_table_without_rows_is_printed(width):
    assert "name" in printed(FittingTable("t", ("name", "value"), ()), width)
