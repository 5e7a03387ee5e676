"""What coding a tensor costs, split into clipping and rounding: exactly, since each number belongs to one of the two."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.numerics.affine import Quantizer, fake_quantize
from gossamer.numerics.formats import IntFormat

_FAR = 2.0**120  # beyond every range, and still a number when divided by a small scale


@dataclass(frozen=True, slots=True)
class ErrorSplit:
    """Energies (sums of squares) of a tensor and of its error; energies and counts of several parts of a tensor add up.

    signal    of the true numbers
    clipping  of the error of numbers that no code reaches: their nearest code would lie beyond the format's
    rounding  of the error of all others
    clipped   how many numbers no code reaches, of `count`
    """

    signal: float = 0.0
    clipping: float = 0.0
    rounding: float = 0.0
    clipped: int = 0
    count: int = 0

    @property
    def noise(self) -> float:
        """Energy of the whole error."""
        return self.clipping + self.rounding

    @property
    def clipping_share(self) -> float:
        """Share of the error's energy that clipping makes; 0 without an error."""
        return self.clipping / self.noise if self.noise else 0.0

    @property
    def clipped_share(self) -> float:
        """Share of the numbers that no code reaches."""
        return self.clipped / self.count if self.count else 0.0

    def __add__(self, other: ErrorSplit) -> ErrorSplit:
        return ErrorSplit(
            self.signal + other.signal,
            self.clipping + other.clipping,
            self.rounding + other.rounding,
            self.clipped + other.clipped,
            self.count + other.count,
        )


def split_error(true: Tensor, coded: Tensor, quantizer: Quantizer) -> ErrorSplit:
    """Split the error `coded` - `true` of codes of `quantizer`, whichever codes were chosen (the nearest, or others nearby).

    Shapes: true and coded alike, broadcasting as for the quantizer.
    """
    error = (coded.to(torch.float64) - true.to(torch.float64)).square()
    beyond = _beyond(true, quantizer)
    total, clipping = float(error.sum()), float((error * beyond).sum())
    signal = float(true.to(torch.float64).square().sum())
    return ErrorSplit(signal, clipping, total - clipping, int(beyond.sum()), true.numel())


def code_limits(quantizer: Quantizer, like: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest number that codes stand for, broadcasting against `like`."""
    low, high = (fake_quantize(torch.full_like(like, far), quantizer) for far in (-_FAR, _FAR))
    return low, high


def _beyond(true: Tensor, quantizer: Quantizer) -> Tensor:
    if isinstance(quantizer.format, IntFormat):
        scale, zero = quantizer.tensors(true)
        codes = torch.round(true / scale) + zero
        return (codes < quantizer.format.lo) | (codes > quantizer.format.hi)
    low, high = code_limits(quantizer, true)
    return (true < low) | (true > high)
