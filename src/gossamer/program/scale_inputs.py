"""Layers whose input is multiplied, channel by channel, with their weight divided by the same factors: for scale that nothing upstream
can take, such as behind a GELU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from gossamer.errors import PlanError
from gossamer.program.graph import Node, Ref
from gossamer.program.ops import bind, op_of, with_arguments
from gossamer.program.ops.kinds import Linear
from gossamer.program.program import Program


def scale_inputs(program: Program, factors: Mapping[str, Tensor]) -> Program:
    """A copy in which the named linear layers read factors * x; same outputs up to rounding. Factors: (I,) by node, positive.

    Layers that read one value with the same factors share one new node, called VALUE_scaled.
    Raises: PlanError for a node that is no linear layer with a weight of its own, for another count, and for factors that are not positive.
    """
    graph, state = program.graph, dict(program.state)
    for name, factor in factors.items():
        _check(program, name, factor)
        weight = bind(graph.by_name[name])["weight"].name
        old = state[weight].detach()
        state[weight] = (old.to(torch.float64) / factor.to(old.device, torch.float64)).to(old.dtype)
    taken = {*graph.inputs, *graph.by_name, *graph.state_names}
    made: dict[tuple[str, tuple[float, ...]], str] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.name in factors:
            factor, source = factors[node.name], bind(node)["input"].name
            key = (source, tuple(factor.tolist()))
            if key not in made:
                made[key] = _fresh(f"{source}_scaled", taken)
                table = _fresh(f"{source}_factors", taken)
                like = state[bind(node)["weight"].name]
                state[table] = factor.to(like.device, like.dtype)
                nodes.append(Node(made[key], "aten.mul.Tensor", (Ref(source), Ref(table)), module=node.module, source=node.source))
            node = with_arguments(node, input=Ref(made[key]))
        nodes.append(node)
    return program.with_graph(replace(graph, nodes=tuple(nodes)), state)


def _check(program: Program, name: str, factor: Tensor) -> None:
    node = program.graph.by_name.get(name)
    weight = bind(node)["weight"] if node is not None and isinstance(op_of(node).kind, Linear) else None
    if not isinstance(weight, Ref) or weight.name not in program.state or program.graph.sole_user(weight.name) is None:
        raise PlanError(f"the plan scales the input of {name!r}, which is no linear layer with a weight of its own.")
    columns = program.state[weight.name].shape[1]
    if factor.shape != (columns,):
        raise PlanError(f"the plan scales {len(factor)} inputs of {name!r}, which has {columns}.")
    if not bool((factor > 0).all() and torch.isfinite(factor).all()):
        raise PlanError(f"the plan scales inputs of {name!r} by factors that are not positive and finite; make it again.")


def _fresh(wish: str, taken: set[str]) -> str:
    name = wish
    while name in taken:
        name += "_"
    taken.add(name)
    return name
