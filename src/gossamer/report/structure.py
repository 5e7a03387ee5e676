"""What a network is made of, as data: its layers with their costs, and the groups of channels that go together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from gossamer.coupling.analysis import analyse
from gossamer.coupling.groups import Group
from gossamer.program.constants import fold_weights
from gossamer.program.cost import Cost, node_macs
from gossamer.program.graph import Node
from gossamer.program.program import Program
from gossamer.program.shapes import Meta, TensorMeta, infer_shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """One node that holds weights or multiplies.

    output_shape  for one input; params  elements of its parameters, counted where they are used first;
    macs  multiply-accumulates for one input; weight_format  "float32", or "int8 per channel" where quantized
    """

    name: str
    op: str
    output_shape: tuple[int, ...]
    params: int
    macs: int
    weight_format: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSummary:
    """Channels that can only be removed together, in all `layers` at once; `reason` says why some must stay."""

    name: str
    layers: tuple[str, ...]
    channels: int
    removable: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """Inputs, total cost, layers in order of execution, groups."""

    inputs: tuple[str, ...]
    cost: Cost
    layers: tuple[LayerCost, ...]
    groups: tuple[GroupSummary, ...]
    target: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def describe(program: Program) -> Structure:
    """Count and analyse a program; reads only. Raises UnsupportedOp for an op whose cost is not known."""
    metas = infer_shapes(program, batch=1)
    seen: set[int] = set()
    layers = (_layer(program, node, metas, seen) for node in program.graph.nodes)
    return Structure(
        inputs=tuple(map(str, program.inputs)),
        cost=program.cost(),
        layers=tuple(layer for layer in layers if layer is not None),
        groups=tuple(_group(group, program) for group in analyse(fold_weights(program)).groups),
        target=program.target,
    )


def _layer(program: Program, node: Node, metas: Mapping[str, Meta], seen: set[int]) -> LayerCost | None:
    """The row of a node; None for one without weights and multiplications. `seen` holds parameters counted before."""
    state = program.state
    used = [name for name in dict.fromkeys(node.uses) if isinstance(state.get(name), nn.Parameter)]
    macs = node_macs(node, metas)
    if not used and not macs:
        return None
    fresh = [name for name in used if id(state[name]) not in seen]
    seen.update(id(state[name]) for name in fresh)
    meta = metas[node.name]
    return LayerCost(
        name=node.module or node.name,
        op=node.op.removeprefix("aten.").split(".")[0],
        output_shape=meta.shape if isinstance(meta, TensorMeta) else (),
        params=sum(state[name].numel() for name in fresh),
        macs=macs,
        weight_format=_format(program, used[0]) if used else "",
    )


def _format(program: Program, name: str) -> str:
    quantizer = program.quantizers.get(name)
    if quantizer is None:
        return str(program.state[name].dtype).removeprefix("torch.")
    return quantizer.format.name + (" per channel" if len(quantizer.scale) > 1 else "")


def _group(group: Group, program: Program) -> GroupSummary:
    modules = {node.name: node.module or node.name for node in program.graph.nodes}
    return GroupSummary(
        name=group.name,
        layers=tuple(modules.get(owner, owner) for owner in group.owners),
        channels=group.size,
        removable=int((~group.fixed).sum()),
        reason=group.reason,
    )
