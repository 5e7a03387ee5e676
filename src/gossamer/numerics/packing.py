"""Small whole numbers as short text, so that a plan in JSON can hold one per weight."""

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
    try:
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(text.encode("ascii"), validate=True), size + 1)  # never more, whatever the text says
    except (ValueError, zlib.error, binascii.Error) as error:
        raise PlanError(f"the plan holds damaged code steps ({error}); make it again.") from error
    if len(data) != size:
        raise PlanError(f"the plan holds {len(data)} code steps for a weight of shape {tuple(shape)}; make it again.")
    return torch.from_numpy(np.frombuffer(data, dtype=np.int8).reshape(shape).copy())
