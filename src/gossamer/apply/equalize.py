"""Applying ScaleChannels and ScaleInput edits: scale moves between channels of a float network, and what it computes stays."""

from __future__ import annotations

from collections.abc import Sequence

from gossamer.errors import PlanError
from gossamer.plan.edits import ScaleChannels, ScaleInput
from gossamer.plan.equalization import with_moves
from gossamer.program.program import Program


def scale_channels(program: Program, edits: Sequence[ScaleChannels | ScaleInput]) -> Program:
    """A copy of a float program with the channels of the named values scaled and shifted, then the named inputs scaled; same outputs up to rounding.

    Raises: PlanError for a program that is quantized already, and for edits that do not fit it: values without channels of their
    own, other counts, factors that are not positive, and channels that something other than a homogeneous op reads.
    """
    if not edits:
        return program
    if program.quantizers:
        raise PlanError(f"the network is quantized already (for {program.target!r}); scale channels of the float network.")
    return with_moves(program, edits)
