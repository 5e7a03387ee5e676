"""Batch norms that stop learning while the rest of a network trains on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gossamer.program.execute import TRAINING
from gossamer.program.graph import Ref, map_refs
from gossamer.program.ops import op_of
from gossamer.program.ops.kinds import BatchNorm
from gossamer.program.program import Program


def freeze_batch_norms(program: Program) -> None:
    """From now on this object's batch norms normalise with their running statistics and keep them, in training mode, too.

    Their scales and shifts go on learning. Programs made from this one are not frozen.
    Source: section 3.2 of Krishnamoorthi 2018, arXiv:1806.08342.
    """
    norms = {node.name for node in program.graph.nodes if isinstance(op_of(node).kind, BatchNorm)}

    def evaluating(name: str) -> Any:
        return False if name == TRAINING else Ref(name)

    program.steps = tuple(
        replace(
            step,
            args=map_refs(step.args, evaluating),
            kwargs=tuple((key, map_refs(value, evaluating)) for key, value in step.kwargs),
        )
        if step.name in norms
        else step
        for step in program.steps
    )
