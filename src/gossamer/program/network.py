"""What a program is to all that only reads one: its inputs, its graph, its tensors. `Program` is the class that has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gossamer.errors import DataError
from gossamer.numerics.affine import Quantizer
from gossamer.program.execute import Step
from gossamer.program.graph import Graph


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input: shape with None for the batch axis."""

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        sizes = ", ".join("batch" if size is None else str(size) for size in self.shape)
        return f"{self.name} ({sizes}) {str(self.dtype).removeprefix('torch.')}"

    def check(self, value: object) -> Tensor:
        """Return the tensor if it fits. Raises DataError naming both shapes."""
        if not isinstance(value, Tensor):
            raise DataError(f"input {self.name!r} must be a tensor; got {type(value).__name__}.")
        fits = value.dim() == len(self.shape) and all(
            want is None or want == have for want, have in zip(self.shape, value.shape, strict=True)
        )
        if not fits:
            raise DataError(
                f"input {self} got a tensor of shape {tuple(value.shape)}; reshape the data, or capture with an example of that shape."
            )
        if value.dtype != self.dtype:
            raise DataError(f"input {self} got a tensor of {value.dtype}; convert it with .to({self.dtype}).")
        return value

    def example(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """A random input: standard normal for floats, zeros and ones for integers."""
        shape = [batch if size is None else size for size in self.shape]
        if self.dtype.is_floating_point:
            return torch.randn(shape, generator=generator).to(self.dtype)
        return torch.randint(0, 2, shape, generator=generator).to(self.dtype)


class Network(Protocol):
    """The parts of a `Program`, described there, that functions read on which `Program` itself is built."""

    @property
    def graph(self) -> Graph: ...
    @property
    def inputs(self) -> tuple[InputSpec, ...]: ...
    @property
    def state(self) -> Mapping[str, Tensor]: ...
    @property
    def steps(self) -> tuple[Step, ...]: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def quantizers(self) -> Mapping[str, Quantizer]: ...
    @property
    def masks(self) -> Mapping[str, Tensor]: ...
