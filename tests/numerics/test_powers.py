"""Powers that do not depend on where a number stands."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.numerics.formats import parse_format
from gossamer.numerics.powers import power_in_eighths
from gossamer.numerics.ranges import choose_block_grid, weight_range_methods


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=40), st.integers(1, 30))
def test_equals_pow(numbers, eighths):
    sizes = torch.tensor(numbers, dtype=torch.float64)
    before = sizes.clone()
    assert torch.allclose(power_in_eighths(sizes, eighths), sizes.pow(eighths / 8), rtol=1e-12, atol=0)
    assert torch.equal(sizes, before)


@given(st.integers(1, 200), st.integers(1, 100), st.integers(1, 30))
def test_any_part_has_the_bits_of_the_whole(length, cut, eighths):
    sizes = torch.rand(length, generator=torch.Generator().manual_seed(length)) * 3
    parts = torch.cat([power_in_eighths(part.clone(), eighths) for part in sizes.split(cut)])
    assert torch.equal(parts, power_in_eighths(sizes, eighths))


@pytest.mark.parametrize("method", weight_range_methods.names())
@pytest.mark.parametrize("name", ["int3", "uint4"])
@pytest.mark.parametrize("size", [16, 33])
def test_ranges_of_blocks_do_not_depend_on_their_neighbours(method, name, size):
    rows = torch.randn(1500, size, generator=torch.Generator().manual_seed(1))
    whole = choose_block_grid(rows, parse_format(name), method)
    for count in (1, 7, 34, 555):
        parts = [choose_block_grid(part, parse_format(name), method) for part in rows[: 40 * count].split(count)]
        for place in (0, 1):
            assert torch.equal(torch.cat([part[place] for part in parts]), whole[place][: 40 * count])
