"""How far the outputs of a quantized network are from those of the float one, on a few calibration samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gossamer.batches import Batches
from gossamer.program.program import Program


@dataclass(frozen=True, eq=False)
class Trial:
    """Trials of changed copies of one float program; `quantize(program, samples)` gives them codes."""

    program: Program
    samples: Batches
    quantize: Callable[[Program, Batches], Program]

    def error(self, changed: Program) -> float:
        """Sum over the outputs of squared error beside energy, once `changed` is quantized."""
        return sum(
            float((got - want).square().sum() / want.square().sum().clamp_min(torch.finfo(want.dtype).tiny))
            for got, want in zip(self._outputs(self.quantize(changed, self.samples)), self._wanted, strict=True)
        )

    @cached_property
    def _wanted(self) -> list[Tensor]:
        return self._outputs(self.program)

    def _outputs(self, program: Program) -> list[Tensor]:
        found: list[list[Tensor]] = []
        program = program.copy().eval()
        with torch.inference_mode():
            for inputs, _ in self.samples:
                results = program(*inputs)
                found.append([item for item in (results if isinstance(results, tuple) else (results,)) if item.is_floating_point()])
        return [torch.cat([item.reshape(-1) for item in items]).to(torch.float64) for items in zip(*found, strict=True)]
