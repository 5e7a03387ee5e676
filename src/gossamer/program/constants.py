"""Storing what is computed from weights alone: standardized weights, weight norm, tables of position biases.

A runtime does the same when it loads a file; done here, such weights can be quantized, too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from gossamer.errors import PlanError
from gossamer.program.graph import Graph, Node, Ref
from gossamer.program.ops import bind, function, op_of
from gossamer.program.ops.kinds import Convolution, Linear, Scalar
from gossamer.program.program import Program

SMALL_BYTES = 2**16  # a result larger than this is stored only if it is no larger than the weights it is made from


def computed_weights(graph: Graph) -> tuple[str, ...]:
    """Names of the nodes whose results depend on no input and are read as the weights of layers and nowhere else."""
    constant = _sources(graph, dict.fromkeys(graph.state_names))
    found = []
    for name in constant:
        users = graph.users.get(name, ())
        if name not in graph.outputs and users and all(_is_weight(user, name) for user in users):
            found.append(name)
    return tuple(found)


def fold_weights(program: Program) -> Program:
    """The program with its computed weights (standardized ones, weight norm) stored as plain parameters.

    Same outputs. Channels can be removed from plain weights only. Trained further, a stored weight is a plain weight: it
    is no longer standardized at every step. The argument itself is returned when no weight is computed.
    """
    names = computed_weights(program.graph)
    return fold_constants(program, names) if names else program


def _is_weight(node: Node, name: str) -> bool:
    return isinstance(op_of(node).kind, (Convolution, Linear)) and bind(node)["weight"] == Ref(name) and node.uses.count(name) == 1


def fold_constants(program: Program, names: Collection[str] | None = None) -> Program:
    """A copy of a float program whose state holds the results of all nodes that depend on no input; same outputs.

    The copy is for inference: trained further, the stored results would not follow the weights they were made from.
    Each keeps its name. Results much larger than their weights stay computed. With `names`, exactly these are stored.
    Raises: PlanError for a name that is no such node.
    """
    graph, state = program.graph, program.state
    sources = _sources(graph, state)
    constant = [node for node in graph.nodes if node.name in sources]
    frontier = [node.name for node in constant if (_is_read_outside(graph, node, sources) if names is None else node.name in names)]
    if names is not None and (missing := [name for name in names if name not in frontier]):
        raise PlanError(f"{missing[0]!r} is no value that this network computes from weights alone, so it cannot be stored.")
    if not frontier:
        return program.with_graph(graph)
    made = Program(Graph((), tuple(constant), tuple(frontier)), (), state).eval()
    with torch.no_grad():
        values = made.run()
    results = dict(zip(frontier, values if isinstance(values, tuple) else (values,), strict=True))
    stored = {
        name: value
        for name, value in results.items()
        if isinstance(value, Tensor) and (names is not None or _is_worth_storing(value, sources[name], state))
    }
    nodes = tuple(node for node in graph.nodes if node.name not in stored)
    fresh = {name: _as_state(value) for name, value in stored.items()}
    return program.with_graph(replace(graph, nodes=nodes).without_dead_code(), {**state, **fresh})


def _sources(graph: Graph, state: Mapping[str, object]) -> dict[str, set[str]]:
    """Node that depends on no input -> the weights it is made from. Sizes and random numbers are none."""
    sources: dict[str, set[str]] = {}
    for node in graph.nodes:
        known = all(name in sources or name in state for name in node.uses)
        if known and not _is_random(node) and not (isinstance(op_of(node).kind, Scalar) and not node.op.endswith("getitem")):
            sources[node.name] = {weight for name in node.uses for weight in sources.get(name, {name})}
    return sources


def _is_random(node: Node) -> bool:
    """Whether an op draws random numbers while evaluating; dropout does not."""
    tags = getattr(function(node.op), "tags", ())
    return torch.Tag.nondeterministic_seeded in tags and not op_of(node).training


def _is_read_outside(graph: Graph, node: Node, sources: dict[str, set[str]]) -> bool:
    return node.name in graph.outputs or any(user.name not in sources for user in graph.users.get(node.name, ()))


def _is_worth_storing(value: Tensor, weights: set[str], state: dict[str, Tensor]) -> bool:
    size = value.numel() * value.element_size()
    return size <= max(SMALL_BYTES, sum(state[name].numel() * state[name].element_size() for name in weights))


def _as_state(value: Tensor) -> Tensor:
    value = value.detach().clone()
    return nn.Parameter(value) if value.is_floating_point() else value
