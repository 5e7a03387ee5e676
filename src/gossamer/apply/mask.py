"""The network at full size with channels masked: what the proof of a removal compares with.

Whatever reads a removed channel reads zero. Norms that compute statistics take them from the channels that stay: that is
the one difference between masking and removing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.apply.sizes import resize
from gossamer.coupling import Analysis
from gossamer.coupling.kept import axis_keeps, state_keeps, stays
from gossamer.program.execute import DEVICE, TRAINING, Observe, Step, run_steps, schedule
from gossamer.program.graph import Graph, Node, Ref, rename_uses
from gossamer.program.ops import bind, op_of, with_arguments
from gossamer.program.ops.kinds import Convolution, Linear, Reduction
from gossamer.program.program import Program


@dataclass(frozen=True, eq=False)
class Masked:
    """A network that runs and nothing else: plain tensors by name, shared with the program that it was made from."""

    graph: Graph
    state: Mapping[str, Tensor]
    device: torch.device

    def __call__(self, *inputs: Tensor, observe: Observe | None = None) -> Any:
        """Run it on inputs in the order of the graph's; `observe(name, value)` sees every result."""
        values = {**self.state, **dict(zip(self.graph.inputs, inputs, strict=True)), TRAINING: False, DEVICE: self.device}
        with torch.no_grad():
            run_steps(self._steps, values, observe)
        results = tuple(values[name] for name in self.graph.outputs)
        return results[0] if len(results) == 1 else results

    @cached_property
    def _steps(self) -> tuple[Step, ...]:
        return schedule(self.graph)


def mask_channels(program: Program, analysis: Analysis, table: np.ndarray) -> Masked:
    """The network in which every layer reads zeros for the removed channels, in its weight or in its input, and so do
    products of two values. It shares its weights with the argument: they are masked anew at each run, one at a time."""
    state = dict(program.state)
    nodes = program.graph.nodes
    for step in (_with_kept_statistics, _with_masked_readers, _with_masked_values):
        nodes = tuple(step(nodes, state, analysis, table))
    return Masked(replace(program.graph, nodes=nodes), state, program.device)


def _with_masked_readers(given: Sequence[Node], state: dict[str, Tensor], analysis: Analysis, table: np.ndarray) -> list[Node]:
    """Multiply by zeros and ones in front of each layer that reads a removed channel: its weight or its input, whichever is smaller."""
    nodes: list[Node] = []
    made: dict[tuple[str, bytes], str] = {}  # inputs that several layers read
    for node in given:
        for name in dict.fromkeys(name for name in node.uses if name in analysis.readers):
            keeps = axis_keeps(analysis.readers[name], table)
            if not keeps:
                continue
            source, rank = name, state[name].dim()
            axis = _input_axis(node, name, keeps, analysis)
            if axis is not None:
                source, rank = bind(node)["input"].name, analysis.values[bind(node)["input"].name].dim()
                keeps = {axis: keeps[1]}
            known = (source, b"".join(bytes([axis]) + keep.tobytes() for axis, keep in keeps.items()))
            if known not in made:
                made[known] = masked = f"{node.name}.{source}.masked"
                state[f"{masked}.by"] = _zeros_and_ones(keeps, rank, state[name])
                nodes.append(Node(masked, "aten.mul.Tensor", (Ref(source), Ref(f"{masked}.by"))))
            node = rename_uses(node, {source: made[known]})
        nodes.append(node)
    return nodes


def _input_axis(node: Node, weight: str, keeps: Mapping[int, np.ndarray], analysis: Analysis) -> int | None:
    """The axis of a layer's input that its weight's second axis reads, where the input is the smaller of both."""
    kind = op_of(node).kind
    if not isinstance(kind, (Convolution, Linear)) or set(keeps) != {1}:
        return None
    bound = bind(node)
    source = bound["input"]
    labels = analysis.values.get(source.name)
    plain = bound["weight"] == Ref(weight) and (isinstance(kind, Linear) or (bound["groups"] == 1 and not kind.transposed))
    if not isinstance(labels, Tensor) or not plain or labels.numel() > analysis.readers[weight].numel():
        return None
    axis = labels.dim() - 1 if isinstance(kind, Linear) else 1
    return axis if labels.shape[axis] == len(keeps[1]) else None


def _zeros_and_ones(keeps: Mapping[int, np.ndarray], rank: int, like: Tensor) -> Tensor:
    mask = torch.ones((), dtype=like.dtype, device=like.device)
    for axis, keep in keeps.items():
        view = [1] * rank
        view[axis] = -1
        mask = mask * torch.from_numpy(keep).to(mask).reshape(view)
    return mask


def _with_masked_values(given: Sequence[Node], state: dict[str, Tensor], analysis: Analysis, table: np.ndarray) -> list[Node]:
    """Multiply by zeros and ones in front of each product of two values."""
    nodes: list[Node] = []
    for node in given:
        source = analysis.contracted.get(node.name)
        if source is not None and axis_keeps(analysis.values[source], table):
            mask = stays(analysis.values[source], table)
            state[f"{node.name}.mask"] = torch.from_numpy(mask.astype(np.float32))
            nodes.append(Node(f"{node.name}.masked", "aten.mul.Tensor", (Ref(source), Ref(f"{node.name}.mask"))))
            node = rename_uses(node, {source: f"{node.name}.masked"})
        nodes.append(node)
    return nodes


def _with_kept_statistics(given: Sequence[Node], state: dict[str, Tensor], analysis: Analysis, table: np.ndarray) -> list[Node]:
    """Pick the kept positions in front of each renormalised op; behind a norm, put zeros back in their places."""
    nodes: list[Node] = []
    axes = dict(analysis.renormalised)
    for node in given:
        source = node.uses[0] if node.name in axes else ""
        keep = axis_keeps(analysis.values[source], table).get(axes[node.name]) if source in analysis.values else None
        if keep is None:
            nodes.append(node)
        elif isinstance(op_of(node).kind, Reduction):
            state[f"{node.name}.kept"] = torch.from_numpy(np.flatnonzero(keep))
            nodes.append(Node(f"{node.name}.picked", "aten.index_select.default", (Ref(source), axes[node.name], Ref(f"{node.name}.kept"))))
            nodes.append(rename_uses(node, {source: f"{node.name}.picked"}))
        else:
            nodes += _pick_norm_scatter(resize(node, analysis, table), axes[node.name], keep, analysis, table, state)
    return nodes


def _pick_norm_scatter(
    node: Node, axis: int, keep: np.ndarray, analysis: Analysis, table: np.ndarray, state: dict[str, Tensor]
) -> list[Node]:
    """index_select - norm (or softmax) with sliced affine parameters - pad with a zero slice - index_select back."""
    name = node.name
    bound = bind(node)
    places = np.where(keep, np.cumsum(keep) - 1, int(keep.sum()))  # removed positions read the zero slice at the end
    state[f"{name}.kept"] = torch.from_numpy(np.flatnonzero(keep))
    state[f"{name}.places"] = torch.from_numpy(places)
    source = "input" if "input" in bound else "self"
    changes = {source: Ref(f"{name}.picked")}
    nodes: list[Node] = []
    for key in ("weight", "bias"):
        if isinstance(bound.get(key), Ref):
            picked, changes[key] = _picked(bound[key].name, f"{name}.{key}", analysis, table, state)
            nodes += picked
    rank = analysis.values[bound[source].name].dim()
    pad = (*(0,) * (2 * (rank - 1 - axis)), 0, 1)
    return [
        *nodes,
        Node(f"{name}.picked", "aten.index_select.default", (bound[source], axis, Ref(f"{name}.kept"))),
        replace(with_arguments(node, **changes), name=f"{name}.normed"),
        Node(f"{name}.padded", "aten.constant_pad_nd.default", (Ref(f"{name}.normed"), pad)),
        Node(name, "aten.index_select.default", (Ref(f"{name}.padded"), axis, Ref(f"{name}.places"))),
    ]


def _picked(source: str, name: str, analysis: Analysis, table: np.ndarray, state: dict[str, Tensor]) -> tuple[list[Node], Ref]:
    """What stays of a state tensor or of one computed from it: the nodes that select it, and the result."""
    computed = source in analysis.values
    keeps = axis_keeps(analysis.values[source], table) if computed else state_keeps(analysis.factors[source], table)
    nodes: list[Node] = []
    for axis, keep in keeps.items():
        state[f"{name}.{axis}.kept"] = torch.from_numpy(np.flatnonzero(keep))
        nodes.append(Node(f"{name}.{axis}", "aten.index_select.default", (Ref(source), axis, Ref(f"{name}.{axis}.kept"))))
        source = nodes[-1].name
    return nodes, Ref(source)
