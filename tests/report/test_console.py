"""The console view shows the same rows as the report, and reads no markup from names."""

import io

import pytest
from rich.console import Console

from gossamer.errors import DataError
from gossamer.report.console import MOST_LAYERS, console_view, result_table
from reports import HOSTILE, a_document, a_report


def shown(renderable):
    console = Console(file=io.StringIO(), width=220, color_system=None)
    console.print(renderable)
    return console.file.getvalue()


def test_the_table_is_the_report_s_own_rows():
    lines = [" ".join(line.split()) for line in shown(result_table(a_report())).splitlines()]
    for row in a_report().rows():
        assert " ".join(" ".join(row).split()) in lines


def test_every_part_is_shown():
    text = shown(console_view(a_document()))
    for words in (
        "my.module:factory: The budget is met.",
        "at most 0.5",
        "* int8, step 2",
        "8 / 32",
        "35.5",
        "it makes the output",
        "12,345 values",
    ):
        assert words in text


def test_names_are_not_markup():
    assert HOSTILE in shown(console_view(a_document()))


def test_problems_end_it():
    assert shown(console_view(a_document(problems=["It is late."]))).rstrip().endswith("It is late.")


def test_many_layers_are_cut_and_it_says_so():
    layers = [{"name": f"l{i}", "channels_before": 4, "channels_after": 4} for i in range(MOST_LAYERS + 7)]
    assert "... and 7 more layers; report.html shows all." in shown(console_view(a_document(layers=layers)))


def test_many_places_are_cut():
    frozen = [{"where": f"conv{i}", "reason": "too narrow"} for i in range(9)]
    assert "conv3 and 5 more" in shown(console_view(a_document(frozen=frozen)))


def test_a_foreign_document_is_refused():
    with pytest.raises(DataError, match="no report of ours"):
        console_view({})
