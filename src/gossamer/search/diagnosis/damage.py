"""How far the outputs of a changed network are from the float network's: energies and divergences, part by part."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gossamer.numerics.distance import decibels
from gossamer.search.diagnosis.findings import Damage
from gossamer.train.losses import distillation

_WORST_DB = -300.0  # of outputs that are all zero in the float network


class DamageMeter:
    """Sums over the parts of the data."""

    def __init__(self) -> None:
        self._signal = self._noise = self._divergence = 0.0
        self._positions = 0

    def add(self, true: Sequence[Tensor], got: Sequence[Tensor]) -> None:
        """Outputs of the float and of the changed network for the same samples."""
        for one, other in zip(true, got, strict=True):
            one, other = one.detach().to("cpu", torch.float64), other.detach().to("cpu", torch.float64)
            self._signal += float(one.square().sum())
            self._noise += float((one - other).square().sum())
        first, second = with_classes(true[0]), with_classes(got[0])
        if first is not None and second is not None:
            positions = first.numel() // first.shape[1]
            self._divergence += positions * float(distillation(second, first, 1.0))
            self._positions += positions

    def damage(self) -> Damage:
        """Of everything added."""
        kl = max(0.0, self._divergence / self._positions) if self._positions else None
        return Damage(max(decibels(self._signal, self._noise), _WORST_DB), kl)


def with_classes(outputs: Tensor) -> Tensor | None:
    """Outputs with classes along axis 1: scores (N, C), maps (N, C, H, W), sequences (N, T, C); None for anything else."""
    outputs = outputs.detach().movedim(-1, 1) if outputs.dim() == 3 else outputs.detach()
    fits = outputs.dim() in (2, 3, 4) and outputs.shape[1] > 1 and outputs.is_floating_point()
    return outputs.to("cpu", torch.float64) if fits else None
