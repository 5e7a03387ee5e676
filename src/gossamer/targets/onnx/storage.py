"""Constants of types that numpy has no word for: how many bits they take in the file, and from which versions files may hold them.

ONNX Runtime reads codes of 4 and 2 bits but computes with none of them: behind a Cast to int8 they become int8 codes when the file is
loaded (measured on 1.32: the optimized graph is that of an int8 file, bit for bit), so the file is smaller, not the time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gossamer.numerics.formats import FloatFormat
from gossamer.targets.onnx.draft import Array


@dataclass(frozen=True, slots=True)
class Storage:
    """bits: of one number. opset, ir_version: the first that know the type."""

    bits: int
    opset: int
    ir_version: int


STORAGES = {
    "INT4": Storage(4, 21, 10),
    "INT2": Storage(2, 25, 13),
    "BFLOAT16": Storage(16, 20, 9),
    "FLOAT8E4M3FN": Storage(8, 20, 9),
    "FLOAT8E5M2": Storage(8, 20, 9),
}
FLOATS = {
    "fp16": ("", np.float16),
    "bf16": ("BFLOAT16", np.int16),
    "fp8_e4m3": ("FLOAT8E4M3FN", np.uint8),
    "fp8_e5m2": ("FLOAT8E5M2", np.uint8),
}
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


def bits_of_floats(codes: Tensor, fmt: FloatFormat) -> tuple[Array, str]:
    """Codes of a floating-point format as an array of as many bits, and the type by which files know it."""
    stored, carrier = FLOATS[fmt.name]
    bits: Array = codes.to(_DTYPES[fmt.name]).contiguous().view(torch.int16 if fmt.bits == 16 else torch.uint8).numpy()
    return bits.view(carrier), stored


def storage_of_codes(bits: int) -> str:
    """The narrowest type that holds signed codes of that many bits; "" where that is int8."""
    return "INT2" if bits == 2 else "INT4" if bits <= 4 else ""


def stored_size(value: Array, stored: str) -> int:
    """Bytes of a constant in the file."""
    return -(-value.size * STORAGES[stored].bits // 8) if stored else value.nbytes


def stored_bytes(value: Array, stored: str) -> bytes:
    """A constant as files hold it. Numbers of less than a byte are packed, the first in the lowest bits."""
    if not stored or STORAGES[stored].bits >= 8:
        return value.tobytes()
    bits = STORAGES[stored].bits
    each = 8 // bits
    flat = value.reshape(-1).astype(np.uint8) & (2**bits - 1)
    parts = np.pad(flat, (0, -len(flat) % each)).reshape(-1, each)
    packed = np.zeros(len(parts), np.uint8)
    for place in range(each):
        packed |= parts[:, place] << (bits * place)
    return packed.tobytes()
