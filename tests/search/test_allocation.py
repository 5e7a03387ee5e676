"""Allocation against trying everything."""

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import ConfigError
from gossamer.search import allocation
from gossamer.search.allocation import allocation_front

units = st.lists(
    st.lists(st.tuples(st.integers(0, 30), st.floats(0, 10, allow_subnormal=False)), min_size=1, max_size=3), min_size=1, max_size=5
)


def split(drawn):
    return [[cost for cost, _ in unit] for unit in drawn], [[damage for _, damage in unit] for unit in drawn]


@given(units)
def test_the_front_is_that_of_trying_everything(drawn):
    costs, damages = split(drawn)
    everything = []
    for choice in product(*(range(len(unit)) for unit in drawn)):
        everything.append(
            (sum(unit[k] for unit, k in zip(costs, choice, strict=True)), sum(unit[k] for unit, k in zip(damages, choice, strict=True)))
        )
    front = allocation_front(costs, damages)
    for cost, damage in everything:
        assert any(found.cost <= cost and found.damage <= damage + 1e-9 for found in front)
    for found in front:
        assert found.cost == sum(unit[k] for unit, k in zip(costs, found.choice, strict=True))
        assert found.damage == pytest.approx(sum(unit[k] for unit, k in zip(damages, found.choice, strict=True)))
    assert all(one.cost < two.cost and one.damage > two.damage for one, two in pairwise(front))


@given(units)
def test_coarse_steps_never_say_less_than_a_choice_costs(drawn):
    costs, damages = split(drawn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allocation, "MOST_STEPS", 7)
        for found in allocation_front(costs, damages):
            assert found.cost == sum(unit[k] for unit, k in zip(costs, found.choice, strict=True))


def test_numbers_that_do_not_match():
    for costs, damages in (([], []), ([[]], [[]]), ([[1, 2]], [[1.0]])):
        with pytest.raises(ConfigError, match="costs must be one or more numbers for each"):
            allocation_front(costs, damages)
