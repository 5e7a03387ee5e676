import base64
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from gossamer.errors import PlanError
from gossamer.numerics.packing import pack_bits, pack_mask, pack_steps, packed_size, unpack_bits, unpack_mask, unpack_steps


@given(arrays(np.int8, array_shapes(max_dims=4, max_side=6)))
def test_packed_and_unpacked_is_the_same(values):
    steps = torch.from_numpy(values).to(torch.float32)
    text = pack_steps(steps)
    assert text.isascii()
    assert torch.equal(unpack_steps(text, tuple(steps.shape)).to(torch.float32), steps)


def test_mostly_zero_steps_take_less_than_two_bits_each():
    steps = (torch.rand(100_000, generator=torch.Generator().manual_seed(0)) < 0.05).float()
    assert len(pack_steps(steps)) < 100_000 / 4


@pytest.mark.parametrize("value", [0.5, 200.0, float("nan")])
def test_only_small_whole_numbers_are_packed(value):
    with pytest.raises(PlanError, match="whole numbers in \\[-128, 127\\]"):
        pack_steps(torch.tensor([value]))


@pytest.mark.parametrize("text", ["not base64 at all!", "AAAA", "ü"])
def test_damaged_text_is_refused(text):
    with pytest.raises(PlanError, match="damaged code steps"):
        unpack_steps(text, (3,))


def test_other_shapes_are_refused():
    with pytest.raises(PlanError, match="holds 4 code steps for a weight of shape \\(2, 3\\)"):
        unpack_steps(pack_steps(torch.zeros(4)), (2, 3))


def test_a_text_that_inflates_without_end_is_not_inflated():
    bomb = base64.b64encode(zlib.compress(bytes(10_000_000))).decode()
    with pytest.raises(PlanError, match="holds 4 code steps"):
        unpack_steps(bomb, (3,))


@given(arrays(np.bool_, array_shapes(max_dims=4, max_side=6)))
def test_masks_come_back(values):
    mask = torch.from_numpy(values)
    text = pack_mask(mask)
    assert text.isascii()
    assert torch.equal(unpack_mask(text, tuple(mask.shape)), mask)


def test_a_mask_takes_at_most_about_a_bit_each():
    random = torch.Generator().manual_seed(0)
    for share, bits in ((0.5, 1.4), (0.9, 0.8)):
        assert len(pack_mask(torch.rand(100_000, generator=random) < share)) * 8 < 100_000 * bits


@pytest.mark.parametrize("text", ["not base64 at all!", "AAAA", "ü", 7])
def test_damaged_masks_are_refused(text):
    with pytest.raises(PlanError, match="damaged masks"):
        unpack_mask(text, (3,))


def test_masks_of_other_sizes_are_refused():
    for text, shape in ((pack_mask(torch.ones(9)), (8,)), (pack_mask(torch.ones(3)), (9,)), (pack_mask(torch.ones(8)), (3,))):
        with pytest.raises(PlanError, match="bytes for a weight of shape"):
            unpack_mask(text, shape)


def test_a_mask_that_would_unpack_to_very_much_is_refused():
    bomb = base64.b64encode(zlib.compress(bytes(10_000_000))).decode()
    with pytest.raises(PlanError, match="a mask of 2 bytes"):
        unpack_mask(bomb, (8,))


@given(st.integers(1, 8), st.integers(0, 40), st.sampled_from([(), (3,), (2, 2), (0,)]), st.integers(0, 9))
def test_packed_codes_come_back(bits, length, leading, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, (*leading, length), dtype=np.uint8)
    packed = pack_bits(codes, bits)
    assert packed.shape == (*leading, packed_size(length, bits))
    assert packed_size(length, bits) == (length * bits + 7) // 8
    assert np.array_equal(unpack_bits(packed, bits, length), codes)
    for code, row in zip(rows_of(codes), rows_of(packed), strict=True):
        assert int.from_bytes(row.tobytes(), "little") == sum(int(number) << bits * place for place, number in enumerate(code))


def rows_of(array):
    return array.reshape(int(np.prod(array.shape[:-1])), array.shape[-1])


def test_packing_leaves_its_argument():
    for bits in (3, 8):
        codes = np.arange(8, dtype=np.uint8)
        packed = pack_bits(codes, bits)
        packed[:] = 0
        assert codes.tolist() == list(range(8))
