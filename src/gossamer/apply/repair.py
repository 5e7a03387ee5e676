"""Repairing a network after a removal, with inputs alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.batches import as_batches
from gossamer.errors import PlanError
from gossamer.plan.plan import Plan
from gossamer.plan.repair import Repair, plan_repair
from gossamer.program.graph import Node, Ref
from gossamer.program.masks import check_zeros
from gossamer.program.ops import bind, op_of, with_arguments
from gossamer.program.ops.kinds import BatchNorm
from gossamer.program.program import Program
from gossamer.progress import OnProgress, silent


def repair(
    small: Program, original: Program, plan: Plan, batches: Any, method: str = "least_squares", *, on_progress: OnProgress = silent
) -> Program:
    """Return a copy of `small` whose outputs are closer to the original's; no labels, no training.

    small     what `apply(original, plan)` gave
    batches   inputs in any form that gossamer takes; targets are not looked at
    method    "least_squares", "mean" or "batch_norm", see plan.repair.plan_repair

    Raises: ConfigError, PlanError and DataError as plan_repair does.
    """
    found = plan_repair(
        small, original, plan, as_batches(batches, what="calibration", batch_size=small.at_once()), method, on_progress=on_progress
    )
    return apply_repair(small, found)


def apply_repair(small: Program, found: Repair) -> Program:
    """A copy with the new weights and statistics; shifts go into a layer's bias, or the batch norm right behind it.

    Raises: PlanError for a repair of another network.
    """
    copy = small.copy()
    state = copy.state
    for name, tensor in found.state.items():
        if name not in state or state[name].shape != tensor.shape:
            raise PlanError(f"the repair changes {name!r}, which this network does not have; make the repair for this network.")
        with torch.no_grad():
            state[name].copy_(tensor)
    check_zeros(copy)
    nodes = dict(copy.graph.by_name)
    for name, shift in found.shifts.items():
        if name not in nodes:
            raise PlanError(f"the repair shifts {name!r}, which this network does not have; make the repair for this network.")
        nodes[name] = _shifted(copy, nodes[name], shift, state)
    return copy.with_graph(replace(copy.graph, nodes=tuple(nodes[node.name] for node in copy.graph.nodes)), state)


def _shifted(program: Program, node: Node, shift: Tensor, state: dict[str, Tensor]) -> Node:
    """Add a shift to the bias; without one, take it from the mean of a batch norm that follows, or make a bias."""
    bias = bind(node)["bias"]
    if isinstance(bias, Ref) and program.graph.sole_user(bias.name) is not None:
        with torch.no_grad():
            state[bias.name].add_(shift.to(state[bias.name]))
        return node
    user = program.graph.sole_user(node.name)
    if bias is None and user is not None and isinstance(op_of(user).kind, BatchNorm):
        mean = bind(user)["running_mean"]
        if isinstance(mean, Ref) and program.graph.sole_user(mean.name) is not None:
            with torch.no_grad():
                state[mean.name].sub_(shift.to(state[mean.name]))
            return node
    weight = bind(node)["weight"].name
    name = weight.removesuffix("weight") + "bias"
    while name in state:
        name += "_own"
    old = state[bias.name].detach().to(torch.float64) if isinstance(bias, Ref) else torch.zeros_like(shift)
    state[name] = nn.Parameter((old + shift).to(state[weight].dtype))
    return with_arguments(node, bias=Ref(name))
