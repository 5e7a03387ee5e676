"""Pieces cover a weight once, and a piece gets the codes that the whole weight's quantizer gives it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.checkpoints.blocks import BYTES_PER_BLOCK, BYTES_PER_WEIGHT, code, decode, pieces
from gossamer.checkpoints.settings import CodeSettings
from gossamer.errors import ConfigError
from gossamer.numerics.affine import dequantize, fake_quantize, quantize
from gossamer.numerics.packing import unpack_bits
from gossamer.numerics.ranges import choose_block_quantizer

FORMATS = [f"{sign}int{bits}" for bits in range(2, 9) for sign in ("", "u")]


@given(st.integers(1, 30), st.integers(1, 3000), st.integers(1, 70), st.integers(0, 200_000))
def test_pieces_cover_a_weight_once_and_in_order(rows, columns, block, spare):
    memory = (BYTES_PER_WEIGHT * block + BYTES_PER_BLOCK) * 8 + spare
    seen = []
    for piece in pieces(rows, columns, block, memory):
        count, width = piece.row_stop - piece.row, piece.column_stop - piece.column
        assert count == 1 or width == columns
        assert piece.column % (8 * block) == 0
        filled = -(-width // block)
        assert count * filled * (block * BYTES_PER_WEIGHT + BYTES_PER_BLOCK) <= memory
        seen += [row * columns + column for row in range(piece.row, piece.row_stop) for column in range(piece.column, piece.column_stop)]
        if len(seen) > 20_000:
            return
    assert seen == list(range(rows * columns))


def test_too_little_memory():
    with pytest.raises(ConfigError, match="memory_bytes must be at least 17408, what eight blocks of 32 weights need; got 10000"):
        list(pieces(4, 64, 32, 10_000))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(FORMATS),
    st.sampled_from(["min-max", "mse", "hqq"]),
    st.integers(1, 5),
    st.integers(1, 90),
    st.sampled_from([1, 3, 8, 32, 64]),
)
def test_codes_are_those_of_the_whole_weights_quantizer(name, ranges, rows, columns, block):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns))
    chosen = CodeSettings(name, block, ranges)
    coded = code(weight, chosen)
    oracle = choose_block_quantizer(weight, chosen.format, ranges, size=block)
    expected = quantize(weight, oracle)
    codes = unpack_bits(coded.codes, chosen.format.bits, columns).astype(np.int64) + chosen.format.lo
    assert np.array_equal(codes, expected.numpy().astype(np.int64))
    assert coded.scale.reshape(-1).tolist() == list(oracle.scale)
    back = decode(coded.codes, coded.scale, coded.zero_point, columns, chosen)
    assert torch.equal(back, dequantize(expected, oracle))
    assert torch.equal(back, fake_quantize(weight, oracle))
    assert coded.signal.sum() == pytest.approx(float(weight.double().square().sum()), rel=1e-6)
    assert coded.noise.sum() == pytest.approx(float((back - weight).double().square().sum()), rel=1e-4, abs=1e-12)
