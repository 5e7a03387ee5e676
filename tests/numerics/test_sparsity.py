"""Masks and shares of zeros, each against a plain oracle."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from gossamer.errors import ConfigError
from gossamer.numerics.sparsity import (
    Block,
    NOfM,
    Unstructured,
    deviation,
    equal_damage_zeros,
    erk_zeros,
    even_zeros,
    keep_above,
    keep_largest,
    keep_largest_blocks,
    keep_n_of_m,
    parse_pattern,
    sparsity_at,
)

SCORES = arrays(np.float32, array_shapes(max_dims=3, max_side=6), elements=st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 7.0])).map(
    torch.from_numpy
)


@given(st.lists(SCORES, min_size=1, max_size=4), st.floats(0, 1))
def test_global_ranking_is_sorting_everything(scores, share):
    sizes = [score.numel() for score in scores]
    zeros = round(share * sum(sizes))
    everything = [value for score in scores for value in score.reshape(-1).tolist()]
    gone = sorted(range(len(everything)), key=lambda place: (everything[place], place))[:zeros]
    flat = torch.cat([mask.reshape(-1) for mask in keep_largest(scores, zeros)])
    assert (~flat).nonzero().reshape(-1).tolist() == sorted(gone)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.data())
def test_n_of_m_keeps_exactly_n_per_group(n, more, groups, rows, data):
    m = n + more
    kernel = data.draw(st.sampled_from([(), (3,), (2, 2)]))
    scores = torch.from_numpy(data.draw(arrays(np.float32, (rows, groups * m, *kernel), elements=st.floats(0, 9, width=32))))
    keep = keep_n_of_m(scores, n, m)
    assert keep.shape == scores.shape
    counts = keep.movedim(1, -1).reshape(-1, m).sum(1)
    assert (counts == n).all()
    kept, gone = (torch.where(part, scores, fill).movedim(1, -1).reshape(-1, m) for part, fill in ((keep, torch.inf), (~keep, -torch.inf)))
    assert (kept.min(1).values >= gone.max(1).values).all()


@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 3, 3), (4,)])
def test_n_of_m_needs_whole_groups(shape):
    with pytest.raises(ConfigError, match="'4:8'|pattern must be one whose M divides the input axis"):
        keep_n_of_m(torch.rand(shape), 4, 8)


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 4), st.integers(1, 4), st.floats(0, 1), st.integers(0, 99))
def test_blocks_go_together_smallest_norm_first(rows, columns, high, wide, share, seed):
    scores = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))
    zeros = round(share * scores.numel())
    keep = keep_largest_blocks([scores], zeros, Block(high, wide))[0]
    blocks = [
        (scores[r : r + high, c : c + wide].double().mean().item(), keep[r : r + high, c : c + wide])
        for r in range(0, rows, high)
        for c in range(0, columns, wide)
    ]
    assert all(bool(part.all()) or not bool(part.any()) for _, part in blocks)
    kept, gone = ([mean for mean, part in blocks if bool(part.all()) is whole] for whole in (True, False))
    assert not kept or not gone or min(kept) >= max(gone)
    assert abs(int((~keep).sum()) - zeros) <= high * wide / 2


def test_blocks_of_one_are_single_weights():
    scores = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(keep_largest_blocks([scores], 17, Block(1, 1))[0], keep_largest([scores], 17)[0])


SIZES = st.lists(st.integers(1, 500), min_size=1, max_size=6)


@given(SIZES, st.floats(0, 1))
def test_even_shares_sum_to_the_total(sizes, share):
    zeros = round(share * sum(sizes))
    counts = even_zeros(sizes, zeros)
    assert sum(counts) == zeros
    assert all(abs(count - size * zeros / sum(sizes)) <= 1 for count, size in zip(counts, sizes, strict=True))


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 3)), min_size=1, max_size=6), st.floats(0, 1))
def test_erk_sums_to_the_total_and_follows_the_formula(shapes, share):
    sizes = [int(np.prod(shape)) for shape in shapes]
    zeros = round(share * sum(sizes))
    counts = erk_zeros(shapes, zeros)
    assert sum(counts) == zeros
    assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))
    factors = [(size - count) / sum(shape) for shape, size, count in zip(shapes, sizes, counts, strict=True) if count > 1]
    slack = 2.0  # of counts, from rounding
    for one, shape in zip(factors, [shape for shape, count in zip(shapes, counts, strict=True) if count > 1], strict=True):
        assert abs(one - factors[0]) * sum(shape) <= slack + slack * sum(shape) / min(map(sum, shapes))


@given(SIZES, st.floats(0, 0.9), st.data())
def test_equal_damage_sums_to_the_total(sizes, share, data):
    ratios = (0.25, 0.5, 0.75, 0.95)
    damages = [data.draw(st.lists(st.floats(0, 5), min_size=4, max_size=4)) for _ in sizes]
    zeros = round(share * sum(sizes))
    counts = equal_damage_zeros(sizes, ratios, damages, zeros)
    assert sum(counts) == zeros
    assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))


def test_equal_damage_gives_sensitive_layers_fewer_zeros():
    ratios, line = (0.5, 1.0), (0.5, 1.0)
    counts = equal_damage_zeros([1000, 1000], ratios, [line, [3 * value for value in line]], 1000)
    assert counts == [750, 250]  # damage 0.75 in both


def test_thresholds():
    weight = torch.tensor([[-3.0, 1.0], [0.5, -0.1]])
    assert keep_above(weight, 1.0).tolist() == [[True, True], [False, False]]
    assert deviation(weight) == pytest.approx(np.std(weight.numpy()))


def test_schedule_rises_from_the_first_to_the_last():
    values = [sparsity_at(step, 10, final=0.9, initial=0.1) for step in range(11)]
    assert values[0] == pytest.approx(0.1)
    assert values[-1] == 0.9
    steps = np.diff(values)
    assert (steps >= 0).all()
    assert (np.diff(steps) <= 1e-12).all()  # fast at first
    assert sparsity_at(5, 10, final=0.8, power=1.0) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("step", "total", "settings", "match"),
    [
        (1, 2, {"final": 1.0}, "final must be a share"),
        (1, 2, {"final": 0.2, "initial": 0.5}, "at least the initial one"),
        (3, 2, {"final": 0.5}, "step must be"),
        (0, 0, {"final": 0.5}, "step must be"),
        (1, 2, {"final": 0.5, "power": 0.0}, "power must be"),
    ],
)
def test_bad_schedules(step, total, settings, match):
    with pytest.raises(ConfigError, match=match):
        sparsity_at(step, total, **settings)


def test_patterns():
    assert parse_pattern("unstructured") == parse_pattern("1x1") == Unstructured()
    assert parse_pattern("2:4") == NOfM(2, 4)
    assert parse_pattern("16x1") == Block(16, 1)


@pytest.mark.parametrize("text", ["2:2", "4:2", "0:4", "0x4", "2/4", "", "structured", None, 4])
def test_unknown_patterns(text):
    with pytest.raises(ConfigError, match="pattern must be 'unstructured', 'N:M'"):
        parse_pattern(text)
