"""Where quantizers can go: the graph that a target runs, with the questions that planning, simulation and emitters ask about its nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from gossamer.plan.spec import TargetSpec
from gossamer.program.clamps import clip_limits
from gossamer.program.graph import Graph, Node, Ref, rename_uses
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import Convolution, Linear, Scalar
from gossamer.program.program import Program
from gossamer.program.shapes import Meta, TensorMeta, infer_shapes

FUSED_CLAMPS = ((0, None), (0, 6))
MOST_OPERAND = 1e4
WITH_PARAMETERS = frozenset({"PRelu"})  # their kernels on codes take all but the first argument from the file


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or linear layer that runs on codes of the value `source`."""

    node: str
    source: str
    weight: str
    bias: str | None


def inference_graph(graph: Graph) -> Graph:
    """The graph without dropout; the values keep their names."""
    same: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        node = rename_uses(node, same)
        if op_of(node).onnx == "Identity" and isinstance(node.args[0], Ref):
            same[node.name] = node.args[0].name
        else:
            nodes.append(node)
    return replace(graph, nodes=tuple(nodes), outputs=tuple(same.get(name, name) for name in graph.outputs))


def has_weight(node: Node) -> bool:
    """Whether a node is a layer that multiplies its input with a weight of its own."""
    return isinstance(op_of(node).kind, (Convolution, Linear))


@dataclass(frozen=True)
class Site:
    """A graph without dropout, its shapes at batch 1 and the target, with the questions asked about them.

    operands  parameters and buffers that may be codes in place of a second value
    """

    graph: Graph
    metas: Mapping[str, Meta]
    spec: TargetSpec
    operands: frozenset[str] = frozenset()

    def inputs(self, node: Node) -> tuple[str, ...]:
        """Values with codes of their own that an integer op reads."""
        if has_weight(node) or op_of(node).onnx in WITH_PARAMETERS:
            return node.uses[:1]
        own = self.parameter(node)
        return tuple(dict.fromkeys(name for name in node.uses if name != own and self.is_float(name)))

    def parameter(self, node: Node) -> str:
        """The parameter or buffer that an op on codes reads in place of a second value, no larger than the first; "" where there is none."""
        own = [name for name in node.uses if name in self.operands]
        others = [name for name in node.uses if name not in self.operands]
        if op_of(node).onnx not in self.spec.parameter_ops or len(own) != 1 or len(others) != 1 or not self.is_float(others[0]):
            return ""
        return own[0] if self.is_float(node.name) and self.shape(others[0]) == self.shape(node.name) else ""

    def results(self, node: Node) -> tuple[str, ...]:
        """Values that carry the codes of an integer op's results: of the activation behind it where that is free."""
        if isinstance(self.metas[node.name], tuple):
            return tuple(user.name for user in self.graph.users.get(node.name, ()) if user.op == "scalar.getitem")
        name = op_of(node).onnx
        user = self.graph.sole_user(node.name)
        codes_of_its_own = self.spec.same_scale_ops | self.spec.gate_ops | self.spec.signed_gate_ops | self.spec.absorbed_ops
        if user is None or name in codes_of_its_own or op_of(user).onnx not in self.spec.absorbed_ops:
            return (node.name,)
        limits = clip_limits(user)
        # codes always hold 0, so only a clamp around 0 is the same as a range of codes
        free = limits is not None and (limits[0] is None or limits[0] <= 0) and (limits[1] is None or limits[1] >= 0)
        free = limits in FUSED_CLAMPS if self.spec.fused_clamps else free
        return (user.name,) if free else (node.name,)

    def is_float(self, name: str) -> bool:
        """Whether a value is one float tensor."""
        meta = self.metas.get(name)
        return isinstance(meta, TensorMeta) and meta.dtype == torch.float32

    def is_factored(self, node: Node) -> bool:
        """Whether a node multiplies two values whose codes the target wants to have around 0, next to a layer or not."""
        return self.spec.code_products and op_of(node).onnx == "MatMul"

    def is_sole_part(self, node: Node) -> bool:
        """Whether one value is all that comes of what a node reads: parts of a value keep codes of their own, made where they are read."""
        return not isinstance(self.metas[node.name], tuple) and all(map(self._is_read_once, self.inputs(node)))

    def _is_read_once(self, name: str) -> bool:
        readers = [user for user in self.graph.users.get(name, ()) if not isinstance(op_of(user).kind, Scalar)]  # sizes are no numbers
        return len(readers) == 1 and name not in self.graph.outputs

    def is_state(self, arg: Any) -> bool:
        """Whether an argument is a parameter or buffer."""
        return isinstance(arg, Ref) and arg.name in self.graph.state_names

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a float tensor."""
        meta = self.metas[name]
        assert isinstance(meta, TensorMeta)
        return meta.shape

    def layer(self, node: Node) -> Layer:
        """The layer of an integer convolution or linear node."""
        bound = bind(node)
        return Layer(node.name, node.uses[0], bound["weight"].name, bound["bias"] and bound["bias"].name)


def site_of(program: Program, spec: TargetSpec) -> Site:
    """The site of a program."""
    return Site(inference_graph(program.graph), infer_shapes(program), spec, operands_of(program, spec))


def operands_of(program: Program, spec: TargetSpec) -> frozenset[str]:
    """Parameters and buffers that a target can have as codes in place of a second value: float32, and of numbers that codes can tell apart.

    Masks of attention are not: next to -1e9 or minus infinity all other numbers are one code.
    """
    read = {name for node in program.graph.nodes if op_of(node).onnx in spec.parameter_ops for name in node.uses}
    state = program.state if read else {}
    tensors = {name: tensor.detach() for name, tensor in state.items() if name in read and tensor.dtype == torch.float32 and tensor.numel()}
    return frozenset(name for name, tensor in tensors.items() if float(tensor.abs().max()) < MOST_OPERAND)
