"""Folding batch norm into the convolution or linear layer before it, for inference.

Source: Jacob et al. 2018, arXiv:1712.05877, section 3.2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gossamer.errors import ConfigError
from gossamer.program.graph import Graph, Node, Ref, rename_uses
from gossamer.program.ops import bind, op_of, with_arguments
from gossamer.program.ops.kinds import BatchNorm, Convolution, Linear
from gossamer.program.program import Program
from gossamer.program.shapes import infer_shapes, tensor_meta


def foldable_batch_norms(program: Program) -> tuple[str, ...]:
    """Names of the batch norms whose input is the only use of a convolution or linear layer with its own weights."""
    producers = {node.name: _producer(program.graph, node) for node in program.graph.nodes}
    found = {name: producer for name, producer in producers.items() if producer is not None}
    if not any(isinstance(op_of(producer).kind, Linear) for producer in found.values()):
        return tuple(found)
    metas = infer_shapes(program)  # of (batch, tokens, features), the norm takes axis 1 and the layer makes the last
    return tuple(
        name
        for name, producer in found.items()
        if not isinstance(op_of(producer).kind, Linear) or len(tensor_meta(metas, producer.name).shape) == 2
    )


def fold_batch_norms(program: Program, names: tuple[str, ...] | None = None) -> Program:
    """A copy without the named (default: all foldable) batch norms; same outputs up to rounding, computed in float64.

    The copy is for inference: its weights hold the running statistics of this moment.
    Raises: ConfigError for a name that is no batch norm that can be folded.
    """
    foldable = foldable_batch_norms(program)
    wanted = foldable if names is None else names
    for name in wanted:
        if name not in foldable:
            raise ConfigError("name of a batch norm", name, "one that can be folded into the layer before it")
    graph, state = program.graph, dict(program.state)
    nodes: dict[str, Node] = dict(graph.by_name)
    gone: dict[str, str] = {}
    for name in wanted:
        norm = nodes[name]
        producer = _producer(graph, norm)
        assert producer is not None
        producer = nodes[producer.name]
        nodes[producer.name] = _fold(producer, norm, state)
        gone[name] = producer.name
    kept = tuple(rename_uses(nodes[node.name], gone) for node in graph.nodes if node.name not in gone)
    outputs = tuple(gone.get(name, name) for name in graph.outputs)
    return program.with_graph(Graph(graph.inputs, kept, outputs), state)


def _producer(graph: Graph, norm: Node) -> Node | None:
    """The convolution or linear node that a batch norm can be folded into."""
    if not isinstance(op_of(norm).kind, BatchNorm):
        return None
    bound = bind(norm)
    source = bound["input"]
    node = graph.by_name.get(source.name) if isinstance(source, Ref) else None
    if node is None or bound["running_mean"] is None or not isinstance(op_of(node).kind, (Convolution, Linear)):
        return None
    inner = bind(node)
    weights = [inner[key] for key in ("weight", "bias") if inner[key] is not None]
    owned = all(isinstance(w, Ref) and w.name in graph.state_names and graph.sole_user(w.name) is not None for w in weights)
    return node if owned and graph.sole_user(node.name) is not None else None


def _fold(producer: Node, norm: Node, state: dict[str, Tensor]) -> Node:
    """Write the folded weight and bias into `state`; return the producer reading them."""
    inner, outer = bind(producer), bind(norm)

    def tensor(arg: Any) -> Tensor | None:
        return state[arg.name].detach().to(torch.float64) if isinstance(arg, Ref) else None

    weight, bias = tensor(inner["weight"]), tensor(inner["bias"])
    mean, variance = tensor(outer["running_mean"]), tensor(outer["running_var"])
    assert weight is not None and mean is not None and variance is not None
    gamma, beta = tensor(outer["weight"]), tensor(outer["bias"])
    factor = torch.rsqrt(variance + outer["eps"]) * (1.0 if gamma is None else gamma)
    folded_bias = ((0.0 if bias is None else bias) - mean) * factor + (0.0 if beta is None else beta)
    old = state[inner["weight"].name]
    kind = op_of(producer).kind
    if isinstance(kind, Convolution) and kind.transposed:
        groups = inner["groups"]
        split = weight.reshape(groups, -1, *weight.shape[1:]) * factor.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))
        folded = split.reshape(weight.shape)
    else:
        folded = weight * factor.reshape(-1, *[1] * (weight.dim() - 1))
    state[inner["weight"].name] = nn.Parameter(folded.to(old.dtype))
    bias_name = inner["bias"].name if isinstance(inner["bias"], Ref) else _bias_name(inner["weight"].name, state)
    state[bias_name] = nn.Parameter(folded_bias.to(old.dtype))
    return with_arguments(producer, bias=Ref(bias_name))


def _bias_name(weight_name: str, state: dict[str, Tensor]) -> str:
    prefix = weight_name.removesuffix("weight")
    name = f"{prefix}bias"
    while name in state:
        name = f"{name}_folded"
    return name
