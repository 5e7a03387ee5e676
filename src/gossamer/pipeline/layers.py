"""Per layer of the original: channels before and after, and the error of its values after quantization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gossamer.pipeline.trial import Trial
from gossamer.program.graph import Graph, Node, Ref
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import Convolution, Linear
from gossamer.program.program import Program


def layer_rows(original: Program, trial: Trial) -> list[dict[str, Any]]:
    """One row a convolution or linear layer: name, channels_before, channels_after, error_db (None where not quantized)."""
    pruned, quantized = trial.pruned, trial.quantized
    errors = trial.errors_db
    rows = []
    for node in original.graph.nodes:
        weight = bind(node)["weight"] if isinstance(op_of(node).kind, (Convolution, Linear)) else None
        if not isinstance(weight, Ref) or weight.name not in original.graph.state_names:
            continue
        rows.append(
            {
                "name": node.module or node.name,
                "channels_before": _outputs(original, node, weight.name),
                "channels_after": _outputs(pruned, node, weight.name),
                "error_db": _error(quantized.graph, node.name, errors),
            }
        )
    return rows


def _outputs(program: Program, node: Node, weight: str) -> int:
    transposed = op_of(node).kind == Convolution(transposed=True)
    current = program.graph.by_name[node.name]
    return program.state[weight].shape[1] * bind(current)["groups"] if transposed else program.state[weight].shape[0]


def _error(graph: Graph, name: str, errors: Mapping[str, float]) -> float | None:
    """The error of the first quantized value on the way from the layer's result."""
    while name not in errors:
        user = graph.sole_user(name)
        if user is None:
            return None
        name = user.name
    return errors[name]
