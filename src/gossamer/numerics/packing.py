"""Small whole numbers and masks as short text, so that a plan in JSON can hold one per weight."""

from __future__ import annotations

import base64
import binascii
import zlib

import numpy as np
import torch
from torch import Tensor

from gossamer.errors import PlanError


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


def _inflate(text: str, size: int, what: str) -> bytes:
    """At most one byte more than `size`, whatever the text says."""
    try:
        return zlib.decompressobj().decompress(base64.b64decode(text.encode("ascii"), validate=True), size + 1)
    except (ValueError, AttributeError, zlib.error, binascii.Error) as error:
        raise PlanError(f"the plan holds damaged {what} ({error}); make it again.") from error
