"""Reports as data: JSON round trip, and the table's figures against the report's own."""

import json
from dataclasses import replace

import pytest

from gossamer.errors import DataError
from gossamer.plan.budget import Budget
from gossamer.targets.results import LayerParity, Measurement, Parity, Report, Row, aligned

ORIGINAL = Measurement(
    accuracy=0.987,
    accuracy_interval=(0.978, 0.9924),
    latency_ms=12.5,
    size_bytes=421_000,
    macs=3_800_000,
    params=105_000,
    peak_memory_bytes=200_704,
)
COMPRESSED = Measurement(
    accuracy=0.985,
    accuracy_interval=(0.9754, 0.9909),
    latency_ms=0.5,
    size_bytes=42_100,
    macs=1_900_000,
    params=52_500,
    peak_memory_bytes=50_176,
)


def a_report(**changes):
    report = Report(
        original=ORIGINAL,
        compressed=COMPRESSED,
        size_ratio=10.0,
        speedup=25.0,
        drop_points=0.2,
        drop_interval=(-0.31, 0.78),
        parity=Parity(
            max_steps=1, values_compared=12345, output_error=2.5e-7, layers=(LayerParity("conv1", 0, 12000), LayerParity("add", 1, 345))
        ),
        budget=Budget(max_drop_points=0.5, min_speedup=2.5),
        budget_met=True,
        problems=(),
        target="onnxruntime",
        threads=1,
        batch=64,
        seed=0,
        seconds=4.2,
        samples=1000,
        metric="top1",
        repeats=100,
        machine="a machine",
        versions={"onnxruntime": "1.2.3"},
    )
    return replace(report, **changes)


def test_report_survives_json():
    report = a_report()
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    bare = a_report(budget=None, problems=("It is late.",), budget_met=False)
    assert Report.from_dict(bare.to_dict()) == bare


def test_fixed_keys_are_there():
    data = a_report().to_dict()
    keys = "original compressed size_ratio speedup drop_points drop_interval parity budget_met target threads batch seed seconds"
    assert set(keys.split()) <= set(data)
    for side in ("original", "compressed"):
        assert {"accuracy", "latency_ms", "size_bytes", "macs", "params"} <= set(data[side])
    assert {"max_steps", "values_compared"} <= set(data["parity"])


def test_from_dict_passes_over_other_parts():
    assert Report.from_dict({**a_report().to_dict(), "candidates": [], "statement": "Fine."}) == a_report()


def test_rows_show_the_figures():
    rows = {row.name: row for row in a_report().rows()}
    assert rows["accuracy"] == Row("accuracy", "98.70 % [97.80, 99.24]", "98.50 % [97.54, 99.09]", "-0.20 points")
    assert rows["latency_ms"] == Row("latency_ms", "12.50", "0.5000", "25.00x")
    assert rows["size_bytes"] == Row("size_bytes", "421,000", "42,100", "10.00x")
    assert rows["macs"].ratio == "2.00x"
    assert rows["params"].ratio == "2.00x"
    assert rows["drop"] == Row("drop", "", "0.20 points", "[-0.31, 0.78]")


def test_a_metric_outside_shares_is_shown_as_it_is():
    report = a_report(original=replace(ORIGINAL, accuracy=-12.5, accuracy_interval=(-13, -12)), metric="minus_error")
    assert report.rows()[0].before == "-12.5 [-13, -12]"


def test_text_is_an_aligned_table_with_facts():
    text = str(a_report())
    lines = text.splitlines()
    assert lines[0].split() == ["before", "after", "ratio"]
    assert len({len(line) for line in lines[:8] if line.endswith("x")}) == 1
    for row in a_report().rows():
        assert all(cell in text for cell in row)
    assert "onnxruntime, batch 64, 1 thread, 1,000 samples, metric top1, 95 % intervals" in text
    assert "12,345 values compared, at most 1 step apart" in text
    assert "The budget is met." in text


def test_problems_fail_the_report_and_are_shown():
    report = a_report(problems=("The speedup is 2.00, below 2.5.",), budget_met=False)
    assert not report.passed
    assert a_report().passed
    assert str(report).endswith("The speedup is 2.00, below 2.5.")


def test_columns_line_up():
    assert aligned([Row("", "b", "after", "r"), Row("name", "10", "2", "")]) == ["       b  after  r", "name  10      2"]


def without(key):
    return {name: value for name, value in a_report().to_dict().items() if name != key}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (without("compressed"), "this is no report of ours .*it has no 'compressed'"),
        ({**a_report().to_dict(), "format": 2}, "it has format 2, this version reads 1"),
        ({**a_report().to_dict(), "speedup": "fast"}, "'fast' is no number"),
        ({**a_report().to_dict(), "original": 3}, "this is no report of ours"),
        ({**a_report().to_dict(), "drop_interval": [1]}, "this is no report of ours"),
        ({**a_report().to_dict(), "budget": {"max_price": 3}}, "this is no report of ours"),
        ([], "this is no report of ours"),
    ],
)
def test_foreign_data_is_refused(data, message):
    with pytest.raises(DataError, match=message):
        Report.from_dict(data)
