"""One pass over a graph with labels instead of numbers: what it carries where, and which parameters it touches."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor

from gossamer.coupling import labels as lab
from gossamer.coupling.atoms import Atoms
from gossamer.coupling.context import Context
from gossamer.coupling.groups import Group, find_groups
from gossamer.coupling.pairs import apply_rule
from gossamer.coupling.rules import RULES
from gossamer.errors import ConfigError
from gossamer.program.graph import Graph, Node, Ref
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import Convolution, Linear
from gossamer.program.program import Program
from gossamer.program.shapes import Meta, TensorMeta, infer_shapes

GRANULARITIES = ("width", "heads")
_WALKS = 8  # at most, until all that belongs to each head is known: two or three do in all networks that we know


@dataclass(frozen=True, eq=False)
class Analysis:
    """What label propagation found in a program.

    groups      atoms that may be removed, in groups whose units live and die together
    values      final labels of inputs and results, by name (batch 1)
    factors     per state tensor, label tensors of its shape: an element goes when any of its labels goes
    readers     per weight of a contraction, the labels of what it reads; zeroing there equals removal
    renormalised  norms (with the axis of their input) whose statistics change with a removal
    contracted  products of two values -> the operand to mask, so that a removal equals zeroing
    """

    groups: tuple[Group, ...]
    values: Mapping[str, Any]
    factors: Mapping[str, tuple[Tensor, ...]]
    readers: Mapping[str, Tensor]
    metas: Mapping[str, Meta]
    atom_count: int
    renormalised: tuple[tuple[str, int], ...] = ()
    contracted: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def axes(self) -> tuple[np.ndarray, ...]:
        """The distinct sets of units along the axes of values that carry nothing else: of each, one must stay."""
        found: dict[bytes, np.ndarray] = {}
        shared = {id(labels): labels for value in self.values.values() for labels in flat_labels(value)}
        for labels in shared.values():
            for axis in lab.varying(labels) or range(labels.dim() if labels.numel() else 0):
                units = lab.distinct(lab.vector(labels, axis))
                if units[0] != 0:
                    found[units.tobytes()] = units
        return tuple(found.values())

    def group(self, name: str) -> Group:
        """The group of that name. Raises KeyError."""
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> Mapping[str, Group]:
        return {group.name: group for group in self.groups}


# scoring, planning and applying look at the same program: its analysis is kept as long as it lives
_KNOWN: WeakKeyDictionary[Program, dict[str, tuple[Graph, tuple[Any, ...], Analysis]]] = WeakKeyDictionary()


def analyse(program: Program, attention: str = "width") -> Analysis:
    """Find the coupled groups of a program. Reads only; takes well under a second for common networks.

    attention  what the units of attention are: "width", positions of the width that all heads of a layer share, or
               "heads", whole heads (a key and value shared by several query heads goes with all of them)

    Raises: ConfigError for another granularity.
    """
    if attention not in GRANULARITIES:
        raise ConfigError("attention", attention, f"one of {', '.join(GRANULARITIES)}")
    mark = _fingerprint(program)
    known = _KNOWN.setdefault(program, {}).get(attention)
    if known is not None and known[0] is program.graph and known[1] == mark:
        return known[2]
    collecting = gc.isenabled()  # many small objects live until the end: collections on the way would walk all of torch for nothing
    gc.disable()
    try:
        found = _analyse(program, attention)
    finally:
        if collecting:
            gc.enable()
    _KNOWN[program][attention] = (program.graph, mark, found)
    return found


def _fingerprint(program: Program) -> tuple[Any, ...]:
    """What an analysis depends on beside the graph: shapes, and the numbers of integer state, which may index others."""
    return tuple(
        (tensor.shape, tensor.dtype, () if tensor.is_floating_point() else tuple(tensor.reshape(-1).tolist()))
        for tensor in program.state.values()
    )


def _analyse(program: Program, attention: str) -> Analysis:
    metas = infer_shapes(program, batch=1)
    context = _propagate(program, metas) if attention == "width" else _propagate_heads(program, metas)
    _make_rectangles(context)
    atoms, roots = context.atoms, context.atoms.roots()
    known: dict[int, Tensor] = {}  # many values share their labels; all of them live as long as the context

    def relabel(labels: Tensor) -> Tensor:
        if id(labels) not in known:
            known[id(labels)] = _relabel(labels, roots.__getitem__)
        return known[id(labels)]

    def final(value: Any) -> Any:
        if isinstance(value, (Tensor, lab.Pair)):
            return lab.each(value, relabel)
        return tuple(final(item) for item in value) if isinstance(value, tuple) else value

    return Analysis(
        groups=find_groups(atoms, context.heads),
        values={name: final(value) for name, value in context.values.items()},
        factors={name: final(value) for name, value in context.factors.items()},
        readers={name: final(value) for name, value in context.readers.items()},
        metas=context.metas,
        atom_count=atoms.count,
        renormalised=tuple(context.renormalised),
        contracted=context.contracted,
    )


def _propagate_heads(program: Program, metas: Mapping[str, Meta]) -> Context:
    """Walk until all that belongs to a head is known, each time with the heads found so far merged from the start: rules
    that look at the width of a head (rotary embeddings, norms of queries) then find nothing there to couple heads by.
    The last walk starts from all that the one before merged, so that tables of biases are one with their heads when moved."""
    context = _propagate(program, metas, Atoms(), heads=[])
    if not context.heads:  # without heads both granularities are the same, to what is merged from the start
        return _propagate(program, metas)
    for _ in range(_WALKS):
        assert context.heads is not None
        merged = context.atoms.as_made()
        before = merged.classes()
        for left, right in context.heads:
            merged.merge(left, right)
        if all(np.array_equal(old, new) for (_, old), (_, new) in zip(before, merged.classes(), strict=True)):
            break
        context = _propagate(program, metas, Atoms(merged.classes()), heads=[])
    return _propagate(program, metas, Atoms(context.atoms.classes()), heads=[])


def _propagate(
    program: Program,
    metas: Mapping[str, Meta],
    atoms: Atoms | None = None,
    heads: list[tuple[np.ndarray, np.ndarray]] | None = None,
) -> Context:
    context = Context(atoms or Atoms(), program.graph, metas, {}, {}, {}, dict(_integer_state(program)), heads=heads)
    context.computing = _sources_of_weights(program.graph)
    for spec in program.inputs:
        meta = metas[spec.name]
        assert isinstance(meta, TensorMeta)
        context.values[spec.name] = lab.empty(meta.shape)
    for node in program.graph.nodes:
        context.values[node.name] = apply_rule(context, node, RULES[type(op_of(node).kind)])
        context.note_concrete(node)
    for name in program.graph.outputs:
        context.freeze(context.labels(name), "it reaches the network's output")
    return context


def _sources_of_weights(graph: Graph) -> frozenset[str]:
    """State read only on the way to weights that other nodes compute from state alone, such as standardized ones."""
    inside: set[str] = set()  # results that need no input and are read only inside or as a weight
    constant = {*graph.state_names}
    for node in graph.nodes:
        if node.uses and all(name in constant for name in node.uses):
            constant.add(node.name)
    nodes = [node for node in graph.nodes if node.name in constant]
    for name in [*(node.name for node in reversed(nodes)), *graph.state_names]:
        users = graph.users.get(name, ())
        if name not in graph.outputs and all(user.name in inside or (name in graph.by_name and _weighs(user, name)) for user in users):
            inside.add(name)
    return frozenset(inside & set(graph.state_names))


def _weighs(node: Node, name: str) -> bool:
    kind = op_of(node).kind
    return isinstance(kind, (Convolution, Linear)) and bind(node)["weight"] == Ref(name) != bind(node)["input"]


def _integer_state(program: Program) -> Mapping[str, Tensor]:
    return {name: tensor for name, tensor in program.state.items() if not tensor.is_floating_point()}


def _make_rectangles(context: Context) -> None:
    """Where labels vary along several axes, merge across all but the last, so that what is kept is a rectangle.

    It keeps equal counts per block wherever a view, a grouped convolution or attention heads split an axis. Tables of the
    state of which only some rows are read lose the same columns of all.
    """
    tables = [factors[0] for factors in context.factors.values() if len(factors) == 1]
    values = [*context.values.values(), *context.blocks, *tables]
    pending = [labels for value in values for labels in flat_labels(value) if len(lab.varying(labels)) > 1]
    for labels in (_relabel(labels, context.atoms.find) for labels in pending):  # merged positions vary no more
        essence = lab.essence(labels)
        for axis in lab.varying(labels)[:-1]:
            context.atoms.merge_along(essence, axis, "only a part of an axis carries it, and another part cannot shrink")


def flat_labels(value: Any) -> list[Tensor]:
    """The label tensors of a result, in order."""
    if isinstance(value, (Tensor, lab.Pair)):
        return list(lab.sides(value))
    return [inner for item in value for inner in flat_labels(item)] if isinstance(value, tuple) else []


def _relabel(labels: Tensor, find: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    axes = lab.varying(labels)
    if len(axes) == 1 and labels.numel():
        return lab.along(find(lab.vector(labels, axes[0])), labels.shape, axes[0])
    return lab.squash(lab.tensor(find(lab.essence(labels))).expand(labels.shape))
