"""Masks of a program: which single weights are zero and stay zero, whatever happens to the network afterwards.

A masked weight is zero in memory, so every file, simulation and copy holds the zero. Where gradients are computed, the weight
is read through its mask, so that the gradient of a masked weight is zero, too: any optimizer then leaves it where it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from gossamer.errors import ConfigError, PlanError
from gossamer.numerics.packing import pack_mask
from gossamer.program.network import Network


def checked_masks(masks: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks, on the weights' devices. Raises ConfigError for a mask that fits no weight."""
    for name, mask in masks.items():
        if name not in state or mask.dtype != torch.bool or mask.shape != state[name].shape or not state[name].is_floating_point():
            shape = tuple(state[name].shape) if name in state else None
            raise ConfigError("masks", f"{name}: {mask.dtype} {tuple(mask.shape)}", f"bool and of the shape of a weight ({name}: {shape})")
    return {name: mask.to(state[name].device) for name, mask in masks.items()}


def through_mask(tensor: Tensor, mask: Tensor) -> Tensor:
    """The tensor with zeros off the mask; no gradient flows to those."""
    return torch.where(mask, tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device))


def hold_zeros(program: Network) -> None:
    """Write zeros wherever the program's masks have them, in place: after anything that writes to weights directly."""
    state = program.state if program.masks else {}
    with torch.no_grad():
        for name, mask in program.masks.items():
            state[name].masked_fill_(~mask, 0.0)


def check_zeros(program: Network) -> None:
    """Raise PlanError when a weight is not zero where its mask says so."""
    state = program.state if program.masks else {}
    for name, mask in program.masks.items():
        wrong = int((state[name].detach()[~mask] != 0).sum())
        if wrong:
            raise PlanError(
                f"{name!r} has {wrong:,} numbers that its mask says are zero; call gossamer.program.masks.hold_zeros(program) "
                "after writing to weights."
            )


def masks_digest(program: Network) -> str:
    """Hash of the masks; "" without any."""
    if not program.masks:
        return ""
    text = "\n".join(f"{name} {tuple(mask.shape)} {pack_mask(mask)}" for name, mask in sorted(program.masks.items()))
    return hashlib.sha256(text.encode()).hexdigest()
