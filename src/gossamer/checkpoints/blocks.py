"""Coding a piece of a weight: what `numerics.affine.quantize` does with a whole one, block by block, packed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gossamer.checkpoints.settings import CodeSettings
from gossamer.errors import ConfigError
from gossamer.numerics.packing import Bytes, pack_bits, unpack_bits
from gossamer.numerics.ranges import choose_block_grid, in_blocks

BYTES_PER_WEIGHT, BYTES_PER_BLOCK = 64, 128  # of working memory, measured with the method that takes most (hqq)
PIECE_WEIGHTS = 1 << 16  # for each thread; more is slower: a search goes over a piece many times, which should stay in the cache


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows [row, row_stop) of a weight (R, K), and of these the columns [column, column_stop): all of them, or those of one row."""

    row: int
    row_stop: int
    column: int
    column_stop: int


def pieces(rows: int, columns: int, block: int, memory_bytes: int) -> Iterator[Piece]:
    """Pieces of whole blocks of a weight, in order, such that coding one takes at most `memory_bytes`.

    Several rows where they fit, else eight blocks of one row or a multiple of it, so that packed codes begin with a byte.
    Raises: ConfigError when not even eight blocks fit.
    """
    fitting = min(PIECE_WEIGHTS * torch.get_num_threads(), weights_within(block, memory_bytes))
    filled = -(-columns // block) * block
    if filled <= fitting:
        step = fitting // max(1, filled)
        for row in range(0, rows, step):
            yield Piece(row, min(row + step, rows), 0, columns)
        return
    step = max(1, fitting // (8 * block)) * 8 * block
    for row in range(rows):
        for column in range(0, columns, step):
            yield Piece(row, row + 1, column, min(column + step, columns))


def weights_within(block: int, memory_bytes: int) -> int:
    """How many weights can be coded at once. Raises ConfigError when it is less than eight blocks."""
    each = BYTES_PER_WEIGHT + BYTES_PER_BLOCK / block
    if memory_bytes < each * 8 * block:
        raise ConfigError("memory_bytes", memory_bytes, f"at least {each * 8 * block:.0f}, what eight blocks of {block} weights need")
    return int(memory_bytes / each)


@dataclass(frozen=True, slots=True)
class Coded:
    """A coded piece.

    Shapes: codes (R, bytes), scale (R, blocks) as it is stored, zero_point (R, bytes) or None for signed formats.
    signal, noise   sums of squares of the weights and of their errors, for each block
    """

    codes: Bytes
    scale: Tensor
    zero_point: Bytes | None
    signal: np.ndarray[tuple[int], np.dtype[np.float64]]
    noise: np.ndarray[tuple[int], np.dtype[np.float64]]


def code(weight: Tensor, settings: CodeSettings) -> Coded:
    """Code a piece. Shape: weight (R, K) in float32, finite."""
    fmt, rows, length = settings.format, weight.shape[0], weight.shape[1]
    blocks = in_blocks(weight, settings.block)
    scale, zero = choose_block_grid(blocks, fmt, settings.ranges)
    stored = scale.to(getattr(torch, settings.scales))
    scale = stored.to(torch.float32)
    steps, zero = scale.unsqueeze(1), zero.to(torch.float32).unsqueeze(1)
    codes = blocks.div(steps).round_().add_(zero).clamp_(fmt.lo, fmt.hi)
    signal = blocks.to(torch.float64).square_().sum(1)
    whole = codes.sub(fmt.lo).to(torch.uint8).reshape(rows, -1)[:, :length]
    noise = codes.sub_(zero).mul_(steps).sub_(blocks).to(torch.float64).square_().sum(1)  # zeros that fill a block have no error
    zeros = None
    if not fmt.signed:
        zeros = pack_bits(zero.sub(fmt.lo).to(torch.uint8).reshape(rows, -1).numpy(), fmt.bits)
    return Coded(pack_bits(whole.numpy(), fmt.bits), stored.reshape(rows, -1), zeros, signal.numpy(), noise.numpy())


def decode(codes: Bytes, scale: Tensor, zero_point: Bytes | None, length: int, settings: CodeSettings) -> Tensor:
    """The weights that a piece stands for. Shapes: codes (R, bytes), scale (R, blocks), zero_point (R, bytes) -> (R, length) in float32."""
    fmt, blocks = settings.format, scale.shape[1]
    found = torch.from_numpy(unpack_bits(codes, fmt.bits, length)).to(torch.float32)
    wide = scale.to(torch.float32).repeat_interleave(settings.block, 1)[:, :length]
    if zero_point is None:
        return found.add_(fmt.lo).mul_(wide)
    zero = torch.from_numpy(unpack_bits(zero_point, fmt.bits, blocks)).to(torch.float32)
    return found.sub_(zero.repeat_interleave(settings.block, 1)[:, :length]).mul_(wide)
