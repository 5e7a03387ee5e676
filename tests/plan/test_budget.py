import json

import pytest

from gossamer.errors import ConfigError
from gossamer.plan.budget import Budget

LIMITS = ("max_drop_points", "min_speedup", "min_size_ratio", "max_latency_ms", "max_size_bytes", "macs", "params")


def test_no_limit_by_default():
    assert Budget().to_json() == {}


def test_json_holds_what_is_set():
    budget = Budget(max_drop_points=0.5, min_speedup=2.5, macs=0.5)
    plain = json.loads(json.dumps(budget.to_json()))
    assert plain == {"max_drop_points": 0.5, "min_speedup": 2.5, "macs": 0.5}
    assert Budget(**plain) == budget


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("value", [-1, float("nan"), "half", True, [1]])
def test_limits_that_are_no_limits(name, value):
    with pytest.raises(ConfigError, match=rf"Budget\.{name} must be (positive|a number|a share in \(0, 1\])"):
        Budget(**{name: value})


@pytest.mark.parametrize("name", LIMITS)
def test_zero_only_makes_sense_for_the_drop(name):
    if name == "max_drop_points":
        assert Budget(max_drop_points=0).to_json() == {"max_drop_points": 0}
        return
    with pytest.raises(ConfigError, match=rf"Budget\.{name} must be"):
        Budget(**{name: 0})


@pytest.mark.parametrize("name", ["macs", "params"])
def test_shares_end_at_one(name):
    Budget(**{name: 1})
    with pytest.raises(ConfigError, match=rf"Budget\.{name} must be a share in \(0, 1\]; got 1.5"):
        Budget(**{name: 1.5})
