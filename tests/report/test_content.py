"""Reading the parts of a report document."""

import json

import pytest

from gossamer.errors import DataError
from gossamer.report.content import Candidate, Content, LayerChange, Untouched
from reports import HOSTILE, a_document, a_report


def test_content_is_what_the_document_says():
    content = Content.from_dict(json.loads(json.dumps(a_document())))
    assert content.report == a_report()
    assert content.model == "my.module:factory"
    assert [candidate.chosen for candidate in content.candidates] == [False, False, True, False]
    assert content.candidates[1].size_bytes == 90_000
    assert content.layers[0] == LayerChange(name="conv1", channels_before=32, channels_after=8, error_db=35.5)
    assert content.frozen == (Untouched("it makes the output", ("fc", HOSTILE)), Untouched(HOSTILE, ("conv9",)))


def test_all_parts_but_the_report_may_be_missing():
    assert Content.from_dict(a_report().to_dict()) == Content(report=a_report())


def test_what_was_not_measured_is_none():
    content = Content.from_dict(a_document(candidates=[{"name": "failed"}]))
    assert content.candidates == (Candidate(name="failed"),)


def test_kept_ratio_stays_a_share():
    assert LayerChange(name="a", channels_before=8, channels_after=2).kept_ratio == 0.25
    assert LayerChange(name="a", channels_before=0, channels_after=2).kept_ratio == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": [{"accuracy": 1.0}]}, "part 'candidates' .*an entry has no 'name'"),
        ({"candidates": [{"name": "a", "accuracy": "high"}]}, "part 'candidates' .*'high' is no number"),
        ({"layers": [3]}, "part 'layers'"),
        ({"layers": 3}, "part 'layers'"),
        ({"frozen": [{"where": "x"}]}, "part 'frozen' .*an entry has no 'reason'"),
        ({"speedup": None}, "this is no report of ours"),
    ],
)
def test_foreign_parts_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        Content.from_dict(a_document(**changes))
