"""The rules at their thresholds; networks that really have the defects are in test_diagnose."""

from dataclasses import replace

import pytest
import torch

from gossamer.numerics.error_split import ErrorSplit
from gossamer.search.diagnosis import causes
from gossamer.search.diagnosis.causes import find_cause
from gossamer.search.diagnosis.evidence import BiasEvidence, Evidence, channel_sizes

HEALTHY = Evidence(
    depthwise=False,
    per_tensor=True,
    split=ErrorSplit(signal=1000.0, clipping=0.01, rounding=0.1, clipped=1, count=1000),
    channel_sizes=torch.ones(20),
    codes=(-1.0, 1.0),
    inner=(-0.9, 0.9),
)


def sizes(*large):
    return torch.cat([torch.tensor(large), torch.ones(20 - len(large))])


def test_nothing_stands_out():
    cause = find_cause(HEALTHY)
    assert cause.label == "rounding"
    assert cause.evidence["signal_to_noise"] == pytest.approx(1000 / 0.11)


@pytest.mark.parametrize(
    ("label", "sick", "almost"),
    [
        ("bias overflow", {"bias": BiasEvidence(2.0**30, 7.0, 3, 0.5)}, {"bias": BiasEvidence(0.99 * 2.0**30, 7.0, 3, 0.9)}),
        ("bias overflow", {"bias": BiasEvidence(2.0**30, 7.0, 3, 0.9)}, {"bias": BiasEvidence(2.0**30, 7.0, 3, 0.4)}),
        ("saturation", {"split": ErrorSplit(1e3, 0.6, 0.4, 6, 1000)}, {"split": ErrorSplit(1e3, 0.4, 0.6, 6, 1000)}),
        ("saturation", {"split": ErrorSplit(1e3, 0.6, 0.4, 5, 1000)}, {"split": ErrorSplit(1e3, 0.6, 0.4, 4, 1000)}),
        ("outlier channel", {"channel_sizes": sizes(8.0)}, {"channel_sizes": sizes(7.9)}),
        ("outlier channel", {"channel_sizes": sizes(9.0, 8.0)}, {"channel_sizes": sizes(9.0, 8.0), "per_tensor": False}),
        ("channel spread", {"channel_sizes": sizes(9.0, 8.0, 7.0)}, {"channel_sizes": sizes(7.9, 7.0, 7.0)}),
        ("depthwise spread", {"channel_sizes": sizes(9.0, 8.0, 7.0), "depthwise": True}, {"channel_sizes": sizes(7.9), "depthwise": True}),
        ("range", {"codes": (-4.0, 4.0), "inner": (-1.0, 1.0)}, {"codes": (-3.9, 4.0), "inner": (-1.0, 1.0)}),
    ],
)
def test_rules_hold_from_their_threshold_on(label, sick, almost):
    assert find_cause(replace(HEALTHY, **sick)).label == label
    assert find_cause(replace(HEALTHY, **almost)).label == "rounding"


def test_channels_that_are_always_zero_do_not_count():
    seen = replace(HEALTHY, channel_sizes=torch.tensor([0.0] * 15 + [1.0] * 5))
    assert find_cause(seen).label == "rounding"
    assert find_cause(replace(HEALTHY, channel_sizes=torch.zeros(4))).label == "rounding"


def test_every_rule_has_a_source():
    assert all(entry.source for entry in causes.rules)


def test_channels_are_the_second_axis_of_images_and_the_last_of_sequences():
    x = torch.zeros(2, 3, 5)
    x[1, 2, 4] = -7
    assert channel_sizes(x).tolist() == [0, 0, 0, 0, 7]
    assert channel_sizes(x.reshape(2, 3, 5, 1)).tolist() == [0, 0, 7]
    assert channel_sizes(x.reshape(2, 15))[14] == 7
    assert channel_sizes(torch.tensor([1.0, -2.0])).tolist() == [1, 2]
