"""Running one part of a network again and again on inputs kept in memory, with weights, biases and values replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gossamer.plan.site import Layer
from gossamer.program.execute import DEVICE, TRAINING, Observe, Step, run_steps, schedule
from gossamer.program.graph import Graph, Ref
from gossamer.program.ops import with_arguments
from gossamer.program.program import Program
from gossamer.program.shapes import Meta, TensorMeta


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a network. Each of its layers reads a bias of its own, zeros where it had none.

    graph   reads the inputs of the part, state, and the biases that `bias_of` names
    layers  layers of the part that run on codes, in order
    state   what the graph reads that no input is: the float network's weights, and the biases
    """

    graph: Graph
    layers: tuple[Layer, ...]
    state: Mapping[str, Tensor]
    device: torch.device

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The prepared calls of the graph."""
        return schedule(self.graph)

    def until(self, output: str) -> Part:
        """What of this part makes the value `output`."""
        graph = replace(self.graph, outputs=(output,)).without_dead_code()
        read = {name for node in graph.nodes for name in node.uses}
        graph = replace(graph, inputs=tuple(name for name in graph.inputs if name in read))
        return Part(graph, tuple(layer for layer in self.layers if layer.node in graph.by_name), self.state, self.device)

    def run(
        self, inputs: Mapping[str, Tensor], given: Mapping[str, Tensor] | None = None, observe: Mapping[str, Observe] | None = None
    ) -> dict[str, Tensor]:
        """The part's outputs by name. `given` replaces weights and biases, `observe` sees values and may replace them."""
        values: dict[str, Any] = {**self.state, **(given or {}), **inputs, TRAINING: False, DEVICE: self.device}
        run_steps(self.steps, values, observe)
        return {name: values[name] for name in self.graph.outputs}

    def elements(self, metas: Mapping[str, Meta]) -> int:
        """Numbers in all values that its nodes make, by shapes `metas`."""
        made = (metas[node.name] for node in self.graph.nodes)
        return sum(meta.numel for meta in made if isinstance(meta, TensorMeta))


def bias_of(node: str) -> str:
    """What a part calls the bias of a layer."""
    return f"<bias> {node}"


def make_part(program: Program, graph: Graph, layers: Mapping[str, Layer]) -> Part:
    """The part of a program whose nodes are `graph`; `layers` by node are those that run on codes."""
    state = {name: tensor.detach() for name, tensor in program.state.items()}
    nodes = []
    for node in graph.nodes:
        if node.name in layers:
            layer = layers[node.name]
            weight = state[layer.weight]
            state[bias_of(node.name)] = weight.new_zeros(weight.shape[0]) if layer.bias is None else state[layer.bias]
            node = with_arguments(node, bias=Ref(bias_of(node.name)))
        nodes.append(node)
    graph = replace(graph, nodes=tuple(nodes))
    own = tuple(layers[node.name] for node in nodes if node.name in layers)
    return Part(graph, own, {name: state[name] for name in graph.state_names}, program.device)


def to_rows(value: Tensor) -> Tensor:
    """A value as it is kept: images with channels last, so that picking samples keeps the order in which layers are fastest."""
    return value.movedim(1, -1).contiguous() if value.dim() == 4 else value.contiguous()


def pick(rows: Tensor, places: Tensor) -> Tensor:
    """The samples at `places` of a value that `to_rows` made."""
    picked = rows.index_select(0, places)
    return picked.movedim(-1, 1) if picked.dim() == 4 else picked
