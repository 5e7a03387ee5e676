"""Reports as data: JSON round trip, and the table's figures against the report's own."""

import json
from dataclasses import replace

import pytest

from gossamer.errors import DataError
from gossamer.plan.budget import Budget
from gossamer.targets.limits import Limit, check_limits
from gossamer.targets.results import Report, Row, aligned
from reports import a_report


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
    assert rows["latency_ms"] == Row("latency_ms", "12.50", "1.25", "10.00x")
    assert rows["size_bytes"] == Row("size_bytes", "421,000", "42,100", "10.00x")
    assert rows["macs"].ratio == "2.00x"
    assert rows["params"].ratio == "2.00x"
    assert rows["drop"] == Row("drop", "", "0.20 points [-0.31, 0.78]", "")


def test_a_metric_outside_shares_is_shown_as_it_is():
    report = a_report(original=replace(a_report().original, accuracy=-12.5, accuracy_interval=(-13, -12)), metric="minus_error")
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


ONE = a_report()


@pytest.mark.parametrize(
    ("budget", "met"),
    [
        (None, []),
        (Budget(), []),
        (Budget(max_drop_points=0.2), [True]),
        (Budget(max_drop_points=0.19), [False]),
        (Budget(min_speedup=10.0), [True]),
        (Budget(min_speedup=10.1), [False]),
        (Budget(min_size_ratio=10.0, max_latency_ms=1.25, max_size_bytes=42_100), [True] * 3),
        (Budget(min_size_ratio=10.1, max_latency_ms=1.24, max_size_bytes=42_099), [False] * 3),
        (Budget(macs=0.5, params=0.5), [True, True]),
        (Budget(macs=0.49, params=0.49), [False, False]),
    ],
)
def test_limits_hold_up_to_equality(budget, met):
    limits = check_limits(budget, ONE.original, ONE.compressed, ONE.drop_points)
    assert [limit.met for limit in limits] == met


def test_a_missed_limit_says_by_how_much():
    (limit,) = check_limits(Budget(min_speedup=12), ONE.original, ONE.compressed, 0.2)
    assert limit.sentence == "The budget is missed: min_speedup is 12, measured 10."
    assert limit.rule == "at least 12"
    (limit,) = check_limits(Budget(max_size_bytes=10_000), ONE.original, ONE.compressed, 0.2)
    assert limit.sentence == "The budget is missed: max_size_bytes is 10,000, measured 42,100."
    assert limit.rule == "at most 10,000"


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


def test_whole_limits_are_told_to_the_last_byte():
    limit = Limit("max_size_bytes", 1_048_576, 1_234_567.0, False)
    assert limit.rule == "at most 1,048,576"
    assert limit.sentence == "The budget is missed: max_size_bytes is 1,048,576, measured 1,234,567."
    assert Limit("min_speedup", 2.5, 1.9876543, False).found == "1.98765"
