"""A float network with some of its channels scaled and shifted; what it computes stays the same up to rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.coupling.scale_rules import find_scaling
from gossamer.coupling.scaling import Part, Scaling, first_names
from gossamer.errors import PlanError
from gossamer.program.graph import Graph, Ref
from gossamer.program.ops import bind, op_of, with_arguments
from gossamer.program.ops.kinds import Convolution
from gossamer.program.program import Program


@dataclass(frozen=True, eq=False)
class ChannelChange:
    """The new channels of a value: factor * old + shift. Shapes: (channels,), float64; shift None for none."""

    value: str
    factor: Tensor
    shift: Tensor | None = None


def rescaled(program: Program, changes: tuple[ChannelChange, ...], scaling: Scaling | None = None) -> Program:
    """A copy with the channels of the named values changed, and all that makes or reads them made to fit.

    Each value is the result of a layer, a norm or an embedding. Channels that are tied to others (a residual sum) change with
    them. Weights are computed in float64. Exact in evaluation mode, except for rounding to the weights' own type.
    scaling  what find_scaling says of this program, where it is known
    Raises: PlanError for values without channels of their own, counts that differ, factors that are not positive, and changes that
    what is computed would not survive.
    """
    scaling = scaling or find_scaling(program)
    factor, shift = class_changes(scaling, changes)
    first, old = first_names(program), program.state
    state = dict(old)
    for name in old:
        parts = scaling.parts.get(first[name])
        if parts is not None and _touches(parts, factor, shift):
            same = state[first[name]] if first[name] != name else None
            state[name] = same if same is not None else _follow(old[name].detach(), parts, factor, shift)
    graph, state = _shift_readers(program.graph, state, scaling, shift)
    return program.with_graph(graph, state)


def class_changes(scaling: Scaling, changes: tuple[ChannelChange, ...]) -> tuple[Tensor, Tensor]:
    """Factor and shift of each class. Raises PlanError as `rescaled`."""
    factor, shift = torch.ones(scaling.classes, dtype=torch.float64), torch.zeros(scaling.classes, dtype=torch.float64)
    for change in changes:
        classes = scaling.made.get(change.value)
        if classes is None:
            raise PlanError(f"the plan scales channels of {change.value!r}, which is no layer, norm or embedding of this network.")
        moved = torch.zeros_like(change.factor) if change.shift is None else change.shift
        if change.factor.shape != (len(classes),) or moved.shape != (len(classes),):
            raise PlanError(f"the plan scales {len(change.factor)} channels of {change.value!r}, which has {len(classes)}.")
        if not bool((change.factor > 0).all() and torch.isfinite(change.factor).all() and torch.isfinite(moved).all()):
            raise PlanError(f"the plan scales channels of {change.value!r} by factors that are not positive and finite; make it again.")
        own_factor, own_shift = _of_classes(classes, change.factor, 1.0), _of_classes(classes, moved, 0.0)
        places = torch.from_numpy(classes)
        fits = torch.equal(own_factor[places], change.factor) and torch.equal(own_shift[places], moved)
        if not fits or bool(moved[torch.from_numpy(~scaling.movable[classes])].any()):
            why = scaling.made_fixed.get(change.value, "some of them are tied to each other")
            raise PlanError(f"the channels of {change.value!r} cannot be changed like this: {why}; make the plan for this network.")
        unique = torch.unique(places)
        factor[unique] *= own_factor[unique]
        shift[unique] = shift[unique] * own_factor[unique] + own_shift[unique]
    return factor, shift


def _of_classes(classes: np.ndarray, numbers: Tensor, fixed: float) -> Tensor:
    """The number of each class, from those of its channels."""
    found = torch.full((int(classes.max(initial=0)) + 1,), fixed, dtype=torch.float64)
    found[torch.from_numpy(classes)] = numbers.to(torch.float64)
    found[0] = fixed
    return found


def _touches(parts: tuple[Part, ...], factor: Tensor, shift: Tensor) -> bool:
    return any(bool((factor[part.labels] != 1).any()) or (part.additive and bool(shift[part.labels].any())) for part in parts)


def _follow(tensor: Tensor, parts: tuple[Part, ...], factor: Tensor, shift: Tensor) -> Tensor:
    made = tensor.to(torch.float64)
    for part in parts:
        own = factor[part.labels].to(tensor.device)
        made = made * own if part.power > 0 else made / own
        if part.additive:
            made = made + shift[part.labels].to(tensor.device)
    return made.to(tensor.dtype)


def _shift_readers(graph: Graph, state: dict[str, Tensor], scaling: Scaling, shift: Tensor) -> tuple[Graph, dict[str, Tensor]]:
    """Take out of each reader's bias what its weight makes of the shifts."""
    nodes = []
    for node in graph.nodes:
        classes = scaling.read.get(node.name)
        if classes is not None and bool(shift[classes].any()):
            bound = bind(node)
            weight = state[bound["weight"].name].detach().to(torch.float64)
            groups = bound["groups"] if isinstance(op_of(node).kind, Convolution) else 1
            moved = shift[classes].to(weight.device).reshape(groups, 1, -1, 1)
            made = (weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1) * moved).sum((2, 3)).reshape(-1)
            old = bound["bias"]
            own = isinstance(old, Ref) and graph.sole_user(old.name) is not None
            name = old.name if own else _fresh(bound["weight"].name.removesuffix("weight") + "bias", state)
            before = state[old.name].detach().to(torch.float64) if isinstance(old, Ref) else torch.zeros_like(made)
            state[name] = nn.Parameter((before - made).to(state[bound["weight"].name].dtype))
            node = with_arguments(node, bias=Ref(name))
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes)), state


def _fresh(wish: str, taken: Mapping[str, Tensor]) -> str:
    name = wish
    while name in taken:
        name = f"{name}_"
    return name
