"""How far two tensors are apart."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gossamer.errors import ConfigError


def sqnr_db(reference: Tensor, approximate: Tensor) -> float:
    """Signal-to-quantization-noise ratio 10 log10(sum reference² / sum (reference - approximate)²), in decibels.

    Infinite where both are equal; -infinity where the reference is all zero and the other is not.
    Raises: ConfigError for different shapes.
    """
    if reference.shape != approximate.shape:
        raise ConfigError("approximate", tuple(approximate.shape), f"of the reference's shape {tuple(reference.shape)}")
    signal = float(torch.linalg.vector_norm(reference.to(torch.float64)))
    noise = float(torch.linalg.vector_norm(reference.to(torch.float64) - approximate.to(torch.float64)))
    return decibels(signal**2, noise**2)


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise), both energies."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
