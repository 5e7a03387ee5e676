"""Small whole numbers and masks as short text, so that a plan in JSON can hold one per weight; codes of a few bits as bytes."""

from __future__ import annotations

import base64
import binascii
import zlib

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gossamer.errors import PlanError

Bytes = npt.NDArray[np.uint8]


def pack_steps(steps: Tensor) -> str:
    """Text for whole numbers in [-128, 127]: int8 in order, deflated, base64. One or two bits for each when most are 0.

    Raises: PlanError for numbers outside that range.
    """
    whole = steps.to(torch.int8)
    if not torch.equal(whole.to(steps.dtype), steps):
        raise PlanError("code steps of a plan must be whole numbers in [-128, 127]; choose larger scales.")
    return base64.b64encode(zlib.compress(whole.cpu().contiguous().numpy().tobytes(), 1)).decode()


def unpack_steps(text: str, shape: tuple[int, ...]) -> Tensor:
    """Inverse of pack_steps: int8 of this shape. Raises PlanError for text that holds anything else."""
    size = int(np.prod(shape, dtype=np.int64))
    data = _inflate(text, size, "code steps")
    if len(data) != size:
        raise PlanError(f"the plan holds {len(data)} code steps for a weight of shape {tuple(shape)}; make it again.")
    return torch.from_numpy(np.frombuffer(data, dtype=np.int8).reshape(shape).copy())


def pack_mask(mask: Tensor) -> str:
    """Text for a boolean tensor: bits in order, deflated, base64. At most one bit for each, about half at 90 % of one kind."""
    bits = np.packbits(mask.detach().cpu().numpy().astype(bool).reshape(-1))
    return base64.b64encode(zlib.compress(bits.tobytes(), 6)).decode()


def unpack_mask(text: str, shape: tuple[int, ...]) -> Tensor:
    """Inverse of pack_mask: bool of this shape. Raises PlanError for text that holds anything else."""
    size = int(np.prod(shape, dtype=np.int64))
    data = _inflate(text, (size + 7) // 8, "masks")
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    if len(data) != (size + 7) // 8 or bits[size:].any():
        raise PlanError(f"the plan holds a mask of {len(data)} bytes for a weight of shape {tuple(shape)}; make it again.")
    return torch.from_numpy(bits[:size].astype(bool).reshape(shape))


def pack_floats(numbers: Tensor) -> str:
    """Text for a vector of real numbers: float32 in order, base64."""
    return base64.b64encode(numbers.detach().cpu().to(torch.float32).contiguous().numpy().astype("<f4").tobytes()).decode()


def unpack_floats(text: str) -> Tensor:
    """Inverse of pack_floats: (N,), float32. Raises PlanError for text that holds anything else."""
    try:
        return torch.from_numpy(np.frombuffer(base64.b64decode(text.encode("ascii"), validate=True), dtype="<f4").astype(np.float32))
    except (ValueError, AttributeError, binascii.Error) as error:
        raise PlanError(f"the plan holds damaged factors of channels ({error}); make it again.") from error


def _inflate(text: str, size: int, what: str) -> bytes:
    """At most one byte more than `size`, whatever the text says."""
    try:
        return zlib.decompressobj().decompress(base64.b64decode(text.encode("ascii"), validate=True), size + 1)
    except (ValueError, AttributeError, zlib.error, binascii.Error) as error:
        raise PlanError(f"the plan holds damaged {what} ({error}); make it again.") from error


def pack_bits(codes: Bytes, bits: int) -> Bytes:
    """Rows of codes in [0, 2^bits) as bytes without gaps: the first code in the lowest bits, each row begins a new byte.

    Shapes: (*, K) uint8 -> (*, ceil(K * bits / 8)); 1 to 8 bits. What the codes do not fill is 0. For 4 bits this is the order of
    ONNX Runtime's MatMulNBits.
    """
    length = codes.shape[-1]
    if bits == 8:
        return codes.copy()
    filled = np.zeros((*codes.shape[:-1], -(-length // 8) * 8), np.uint8)
    filled[..., :length] = codes
    packed = np.zeros((*codes.shape[:-1], filled.shape[-1] // 8, bits), np.uint8)
    for place in range(8):  # eight codes fill `bits` bytes
        byte, shift = divmod(place * bits, 8)
        code = filled[..., place::8]
        packed[..., byte] |= code << shift  # what leaves the byte at the top comes into the next one
        if shift + bits > 8:
            packed[..., byte + 1] |= code >> (8 - shift)
    return packed.reshape(*codes.shape[:-1], packed.shape[-2] * bits)[..., : packed_size(length, bits)]


def unpack_bits(packed: Bytes, bits: int, length: int) -> Bytes:
    """Inverse of pack_bits for rows of `length` codes. Shapes: (*, ceil(length * bits / 8)) uint8 -> (*, length)."""
    if bits == 8:
        return packed.copy()
    groups = -(-length // 8)
    filled = np.zeros((*packed.shape[:-1], groups * bits), np.uint8)
    filled[..., : packed.shape[-1]] = packed
    grouped = filled.reshape(*packed.shape[:-1], groups, bits)
    codes = np.empty((*packed.shape[:-1], groups * 8), np.uint8)
    for place in range(8):
        byte, shift = divmod(place * bits, 8)
        code = grouped[..., byte] >> shift
        if shift + bits > 8:
            code = code | grouped[..., byte + 1] << (8 - shift)
        codes[..., place::8] = code & ((1 << bits) - 1)
    return codes[..., :length]


def packed_size(length: int, bits: int) -> int:
    """Bytes of a row of `length` codes."""
    return -(-length * bits // 8)
