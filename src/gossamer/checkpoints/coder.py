"""Bringing one tensor from its file into the new one, piece by piece."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gossamer.checkpoints.blocks import Coded, Piece, code, pieces
from gossamer.checkpoints.settings import CodeSettings, parts_of
from gossamer.checkpoints.shard_writer import Buffer, ShardWriter
from gossamer.checkpoints.tensor_file import BITS, Reader, StoredTensor
from gossamer.errors import DataError
from gossamer.numerics.packing import packed_size

TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
COPIED_BYTES = 8 << 20  # at once, of tensors that stay as they are


class TensorCoder:
    """Codes tensors within a given memory. What it finds is the same for any memory."""

    def __init__(self, settings: CodeSettings, memory_bytes: int) -> None:
        self._settings, self._memory_bytes = settings, memory_bytes

    def run(self, reader: Reader, writer: ShardWriter, tensor: StoredTensor, reason: str, tell: Callable[[int], None]) -> dict[str, Any]:
        """Code a tensor, or copy it when there is a reason to; returns its entry for the manifest.

        tell   is called with the bytes of the tensor that are done
        Raises: DataError for a weight that is NaN or infinite; FileError when a file cannot be read or written.
        """
        entry = {"shape": list(tensor.shape), "dtype": tensor.dtype, "float": reason, "bytes_before": tensor.size_bytes}
        if reason:
            return {**entry, **self._copied(reader, writer, tensor, tell)}
        return {**entry, **self._coded(reader, writer, tensor, tell)}

    def _copied(self, reader: Reader, writer: ShardWriter, tensor: StoredTensor, tell: Callable[[int], None]) -> dict[str, Any]:
        digest = hashlib.sha256()
        step = min(COPIED_BYTES, self._memory_bytes)
        for start in range(0, tensor.size_bytes, step):
            data = reader.read(tensor, start, min(start + step, tensor.size_bytes))
            digest.update(data)
            writer.write(tensor.name, start, data)
            tell(start)
        return {"bytes_after": tensor.size_bytes, "signal": 0.0, "noise": 0.0, "sha256": {tensor.name: digest.hexdigest()}}

    def _coded(self, reader: Reader, writer: ShardWriter, tensor: StoredTensor, tell: Callable[[int], None]) -> dict[str, Any]:
        settings, columns = self._settings, tensor.shape[-1]
        rows = math.prod(tensor.shape[:-1])
        names = [f"{tensor.name}.{part.suffix}" for part in parts_of(tensor.shape, settings)]
        digests = {name: hashlib.sha256() for name in names}
        signal = noise = 0.0
        for piece in pieces(rows, columns, settings.block, self._memory_bytes):
            start = (piece.row * columns + piece.column) * BITS[tensor.dtype] // 8
            coded = code(self._read(reader, tensor, piece), settings)
            for name, (place, data) in zip(names, _placed(coded, piece, columns, settings), strict=True):
                digests[name].update(data)
                writer.write(name, place, data)
            signal, noise = _plus(signal, coded.signal), _plus(noise, coded.noise)
            tell(start)
        size = sum(writer.layout.tensors[name].size_bytes for name in names)
        hexes = {name: digest.hexdigest() for name, digest in digests.items()}
        return {"bytes_after": size, "signal": signal, "noise": noise, "sha256": hexes}

    def _read(self, reader: Reader, tensor: StoredTensor, piece: Piece) -> Tensor:
        columns, each = tensor.shape[-1], BITS[tensor.dtype] // 8
        start = piece.row * columns + piece.column
        stop = (piece.row_stop - 1) * columns + piece.column_stop
        stored = torch.frombuffer(reader.read(tensor, start * each, stop * each), dtype=TORCH[tensor.dtype])
        weight = stored.to(torch.float32).reshape(piece.row_stop - piece.row, -1)
        if not math.isfinite(float(weight.sum())) and not bool(torch.isfinite(weight).all()):  # large numbers can add up to infinity
            row = piece.row + int((~torch.isfinite(weight)).any(1).nonzero()[0])
            raise DataError(
                f"{reader.file.path}: the weight {tensor.name!r} is NaN or infinite in row {row}; mend the checkpoint or skip the tensor."
            )
        return weight


def _placed(coded: Coded, piece: Piece, columns: int, settings: CodeSettings) -> list[tuple[int, Buffer]]:
    """Where the bytes of each part begin in its tensor, and the bytes."""
    bits, block = settings.format.bits, settings.block
    blocks = -(-columns // block)
    found: list[tuple[int, Buffer]] = [
        (piece.row * packed_size(columns, bits) + piece.column * bits // 8, coded.codes.tobytes()),
        ((piece.row * blocks + piece.column // block) * coded.scale.element_size(), coded.scale.view(torch.uint8).numpy().tobytes()),
    ]
    if coded.zero_point is not None:
        found.append((piece.row * packed_size(blocks, bits) + piece.column // block * bits // 8, coded.zero_point.tobytes()))
    return found


def _plus(total: float, numbers: npt.NDArray[np.float64]) -> float:
    """The sum in order, one by one, so that it does not depend on where pieces begin."""
    return float(np.add.accumulate(np.concatenate(([total], numbers)))[-1])
