"""The network at full size with channels masked: what the proof of a removal compares with.

Whatever reads a removed channel reads zero. Norms that compute statistics take them from the channels that stay: that is
the one difference between masking and removing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from gossamer.apply.sizes import resize
from gossamer.coupling import Analysis
from gossamer.coupling.kept import axis_keeps, state_keeps, stays
from gossamer.program.graph import Node, Ref, rename_uses
from gossamer.program.ops import bind, op_of, with_arguments
from gossamer.program.ops.kinds import Reduction
from gossamer.program.program import Program


def mask_channels(program: Program, analysis: Analysis, table: np.ndarray) -> Program:
    """The network in which weights are zero wherever they read a removed channel, and so are the values that are
    contracted with other values. It shares its weights with the argument: they are masked anew at each run."""
    state = dict(program.state)
    nodes = program.graph.nodes
    for step in (_with_kept_statistics, _with_masked_weights, _with_masked_values):
        nodes = tuple(step(nodes, state, analysis, table))
    return program.with_graph(replace(program.graph, nodes=nodes), state)


def _with_masked_weights(given: Sequence[Node], state: dict[str, Tensor], analysis: Analysis, table: np.ndarray) -> list[Node]:
    """Multiply by zeros and ones in front of each layer that reads a removed channel."""
    nodes: list[Node] = []
    for node in given:
        for name in dict.fromkeys(name for name in node.uses if name in analysis.readers):
            keeps = axis_keeps(analysis.readers[name], table)
            if not keeps:
                continue
            mask = torch.ones((), dtype=state[name].dtype, device=state[name].device)
            for axis, keep in keeps.items():
                view = [1] * state[name].dim()
                view[axis] = -1
                mask = mask * torch.from_numpy(keep).to(mask).reshape(view)
            masked = f"{node.name}.{name}.masked"
            by = f"{masked}.by".replace(".", "/")  # a name without dots needs no modules to hold it
            state[by] = mask
            nodes.append(Node(masked, "aten.mul.Tensor", (Ref(name), Ref(by))))
            node = rename_uses(node, {name: masked})
        nodes.append(node)
    return nodes


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
