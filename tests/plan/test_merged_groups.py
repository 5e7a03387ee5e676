from hypothesis import given
from hypothesis import strategies as st

from gossamer.plan.merged_groups import merged_groups


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 100))
def test_no_other_way_to_merge_is_nearer(channels, groups, wanted):
    found = merged_groups(channels, groups, wanted)

    def factor(count):
        return max(channels * count / wanted, wanted / (channels * count))

    assert groups % found == 0
    assert all(factor(found) <= factor(count) * (1 + 1e-9) for count in range(1, groups + 1) if groups % count == 0)
