"""Labels through LSTM, GRU and plain recurrent layers: the features they read and the width of their state.

The gates of a layer are blocks of rows of its weights; a unit of the state owns one row in every block, a column of the
weights that read the state, and its place in the initial and final states. All layers and directions of one op have one
width, so their units go together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from gossamer.coupling import labels as lab
from gossamer.coupling.context import Context, feature
from gossamer.program.graph import Node, Ref
from gossamer.program.ops import bind
from gossamer.program.ops import kinds as k


def recurrent(context: Context, node: Node) -> Any:
    """Input features meet the columns of the first layer; the units of the state are new atoms."""
    bound = bind(node)
    states = bound["hx"] if isinstance(bound["hx"], tuple) else (bound["hx"],)
    data = context.labels(bound["input"].name)
    metas = context.metas[node.name]
    assert isinstance(metas, tuple)
    why = _unknown_form(context, bound, states, data)
    if why:
        for labels in (data, *map(context.labels, node.uses)):
            context.freeze(labels, f"{node.module or node.name} {why}")
        return tuple(lab.empty(meta.shape) for meta in metas)
    width = context.meta(states[0].name).shape[-1]
    hidden = context.atoms.fresh(width, node.module or node.name)
    directions = 1 + bool(bound["bidirectional"])
    each = 4 if bound["has_biases"] else 2
    incoming = feature(context, data, -1)
    for place in range(0, len(bound["params"]), each):
        if place == each * directions:  # all layers but the first read the state below
            incoming = np.tile(hidden, directions)
        _tie_layer(context, bound["params"][place : place + each], incoming, hidden)
    for state in states:
        _tie_state(context, node, state.name, hidden)
    vectors = (np.tile(hidden, directions), hidden, hidden)
    return tuple(lab.along(vector, meta.shape, len(meta.shape) - 1) for vector, meta in zip(vectors, metas, strict=False))


def _unknown_form(context: Context, bound: dict[str, Any], states: Sequence[Ref], data: Tensor) -> str:
    """Why nothing around the layer can be removed, or ""."""
    if any(param.name in context.values for param in bound["params"]):
        return "has computed weights"
    directions = 1 + bool(bound["bidirectional"])
    if len(bound["params"]) != bound["num_layers"] * directions * (4 if bound["has_biases"] else 2):
        return "projects its state"
    return "runs along the axis that carries it" if set(lab.varying(data)) - {data.dim() - 1} else ""


def _tie_layer(context: Context, params: Sequence[Ref], incoming: np.ndarray, hidden: np.ndarray) -> None:
    """One layer in one direction: weight_ih (gates * H, I), weight_hh (gates * H, H) and two biases (gates * H,)."""
    for param, columns in zip(params[:2], (incoming, hidden), strict=True):
        shape = context.meta(param.name).shape
        rows = np.tile(hidden, shape[0] // len(hidden))
        taken = lab.along(columns, shape, 1)
        context.tie_axes(param.name, lab.along(rows, shape, 0), taken)
        context.readers[param.name] = taken
        for bias in params[2:]:
            context.tie_vector(bias, rows)


def _tie_state(context: Context, node: Node, name: str, hidden: np.ndarray) -> None:
    """An initial state has the width of the state. One that a factory fills for recurrent layers alone shrinks with them."""
    shape = context.meta(name).shape
    if context.is_filled_for(name, (k.Recurrent,)):
        context.values[name] = lab.along(hidden, shape, len(shape) - 1)
        return
    found = feature(context, context.labels(name), -1)
    context.atoms.couple(found, hidden, f"it meets {name}, which cannot shrink, in {node.module or node.name}")
