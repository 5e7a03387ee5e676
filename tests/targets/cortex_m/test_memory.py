"""The arena: nothing that is needed at the same time overlaps."""

from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.targets.cortex_m.memory import ALIGNMENT, Lifetime, place


@st.composite
def lifetimes(draw):
    count = draw(st.integers(0, 12))
    found = []
    for position in range(count):
        first = draw(st.integers(0, 10))
        found.append(Lifetime(f"v{position}", draw(st.integers(1, 100)), first, draw(st.integers(first, 11))))
    return found


@given(lifetimes())
@settings(deadline=None)
def test_values_that_live_together_lie_apart(values):
    offsets, size = place(values)
    assert set(offsets) == {value.name for value in values}
    for one in values:
        assert offsets[one.name] + one.size <= size
        assert offsets[one.name] % ALIGNMENT == 0
        for other in values:
            if one.name < other.name and one.first <= other.last and other.first <= one.last:
                first, second = sorted((one, other), key=lambda value: offsets[value.name])
                assert offsets[first.name] + first.size <= offsets[second.name]


@given(lifetimes())
@settings(deadline=None)
def test_the_arena_is_at_most_all_values_and_at_least_what_one_moment_needs(values):
    _, size = place(values)
    moments = [sum(value.size for value in values if value.first <= step <= value.last) for step in range(12)]
    assert max(moments, default=0) <= size <= sum(value.size + ALIGNMENT for value in values)


def test_a_chain_takes_its_two_largest_neighbours():
    chain = [Lifetime(str(step), size, step, step + 1) for step, size in enumerate((80, 40, 160, 16, 8))]
    assert place(chain)[1] == 200
