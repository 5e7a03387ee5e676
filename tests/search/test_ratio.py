"""The loop against simulated networks: a drop that grows with the ratio, a speed that grows with it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.search.ratio import MOST, STEP, Tried, next_ratio


def run(needs, allows, guess=None, push=False, limit=40):
    """Search where ratios from `needs` on are fast enough and ratios up to `allows` accurate enough."""
    tried = []
    while len(tried) < limit:
        ratio = next_ratio(tried, guess or (lambda r: r >= needs), push=push)
        if ratio is None:
            return tried
        tried.append(Tried(ratio, ratio >= needs, ratio <= allows))
    raise AssertionError("the search does not end")


def test_starts_without_removal():
    assert next_ratio([], lambda ratio: False, push=False) == 0.0


def test_stops_at_once_when_nothing_need_be_removed():
    assert len(run(needs=0.0, allows=1.0)) == 1


def test_a_good_prediction_needs_two_trials():
    tried = run(needs=0.43, allows=0.7)
    assert [entry.removed_ratio for entry in tried] == [0.0, 0.43]


@given(st.floats(0.05, 0.8), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_finds_what_meets_both_wherever_the_window_is_wide(needs, width, wrong):
    """Even when the prediction is off, a window of ratios that meets both limits is found."""
    allows = needs + 2 * STEP + width
    tried = run(needs, allows, guess=lambda ratio: ratio >= wrong)
    assert any(entry.fast_enough and entry.accurate_enough for entry in tried)


@given(st.floats(0.3, 0.8), st.floats(0.01, 0.2))
def test_ends_when_no_ratio_meets_both(needs, gap):
    tried = run(needs, allows=needs - gap)
    assert not any(entry.fast_enough and entry.accurate_enough for entry in tried)
    assert len(tried) <= 12


@given(st.floats(0.0, 1.0))
def test_pushing_ends_near_the_most_that_accuracy_allows(allows):
    tried = run(needs=0.0, allows=allows, push=True)
    best = max(entry.removed_ratio for entry in tried if entry.accurate_enough)
    assert best >= min(allows, MOST) - 2 * STEP


def test_gives_up_when_even_nothing_removed_is_too_inaccurate():
    assert len(run(needs=0.5, allows=-1.0)) == 1


@pytest.mark.parametrize("push", [True, False])
def test_no_ratio_is_tried_twice(push):
    ratios = [entry.removed_ratio for entry in run(needs=0.5, allows=0.52, push=push)]
    assert len(set(ratios)) == len(ratios)
