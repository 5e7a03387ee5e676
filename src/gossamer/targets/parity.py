"""Parity: the numbers inside an artifact, as its runtime computes them, against what they must be."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gossamer.program.capture import relative_error
from gossamer.program.program import Program
from gossamer.targets.results import Parity
from gossamer.targets.target import Artifact, Runner

Array = npt.NDArray[Any]
FLOAT_TOLERANCE = 1e-4  # relative; kernels may add in another order
MACS_TO_COMPARE = 4e9  # the exact simulation computes in float64, so a large network is compared on fewer samples


def samples_to_compare(program: Program, given: int) -> int:
    """How many of the given samples the simulation can afford; all of them where the batch is fixed."""
    if program.inputs[0].shape[0] is not None:
        return given
    return max(1, min(given, int(MACS_TO_COMPARE / max(program.cost().macs, 1))))


def float_parity(program: Program, runner: Runner, samples: tuple[Tensor, ...]) -> Parity:
    """Outputs of a float file against the program that it was written from, on all samples given."""
    program = program.copy().eval() if program.training else program
    with torch.no_grad():
        expected = program(*(tensor.to(program.device) for tensor in samples))
    expected = (expected[0] if isinstance(expected, tuple) else expected).cpu()
    got = torch.from_numpy(np.ascontiguousarray(runner.run(*(tensor.numpy() for tensor in samples))))
    return Parity(max_steps=0, values_compared=got.numel(), output_error=relative_error(got, expected))


def check_parity(artifact: Artifact, runner: Runner, samples: tuple[Tensor, ...]) -> Parity:
    """Compare an artifact's inner numbers with what they must be; `runner` has the file open as users run it."""
    return float_parity(artifact.program, runner, samples)


def parity_problems(parity: Parity, artifact: Artifact, whose: str) -> list[str]:
    """What is farther apart than allowed, one sentence each."""
    problems = []
    if not parity.output_error <= FLOAT_TOLERANCE:
        problems.append(
            f"The outputs of {whose} differ from the program by {parity.output_error:.2g} (relative), allowed is {FLOAT_TOLERANCE:.2g}."
        )
    return problems
