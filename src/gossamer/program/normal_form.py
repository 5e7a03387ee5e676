"""The normal form: functional ops only, no copies that compute nothing, views as reshapes, no dead code.

One rewrite a function, each from graph to graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from gossamer.errors import CaptureError
from gossamer.program.graph import Arg, Graph, Node, Ref, rename_uses
from gossamer.program.ops.table import SCALAR_FUNCTIONS
from gossamer.program.write_back import Views, functional_twin

# ops that return their argument's numbers unchanged
_COPIES = frozenset(
    f"aten.{name}.default" for name in ("contiguous", "clone", "detach", "detach_", "alias", "lift_fresh_copy", "lift_fresh")
)
_CHECKS = ("aten._assert", "aten.sym_constrain", "aten._guard")
# ops that return their argument itself while evaluating, though their schema does not say so
_PASSING = ("aten.dropout.", "aten.feature_dropout.", "aten.alpha_dropout.")
_SPLITS = frozenset(f"aten.{name}" for name in "split.Tensor split_with_sizes.default chunk.default unbind.int".split())


def normalize(graph: Graph) -> Graph:
    """Bring a graph from torch.export into the normal form. Raises CaptureError for writes that cannot be made functional."""
    return without_copies(views_as_reshapes(functional(without_checks(graph)))).without_dead_code()


def without_checks(graph: Graph) -> Graph:
    """Drop assertions about sizes; the program checks its input shapes itself."""
    return replace(graph, nodes=tuple(node for node in graph.nodes if not node.op.startswith(_CHECKS)))


def functional(graph: Graph) -> Graph:
    """Replace each in-place op by its functional twin; later readers of the written value read the result instead.

    A write through a view also goes into its base, and the other views of that base are taken anew.
    """
    current: dict[str, str] = {}  # written value -> the value that holds its new content
    memory = _places(graph)
    views = Views(graph)
    made = set(graph.inputs)
    nodes = []
    last_read = {name: position for position, node in enumerate(graph.nodes) for name in node.uses}
    last_read |= dict.fromkeys(graph.outputs, len(graph.nodes))
    for position, raw in enumerate(graph.nodes):
        node = rename_uses(raw, current)
        twin = functional_twin(node.op)
        if twin is not None:
            written = raw.args[0].name
            same = {old for old, new in current.items() if new == node.args[0].name} | {written, node.args[0].name}
            place = memory[written]
            shown = sorted(n for n in made if last_read.get(n, -1) > position and n not in same and memory[n].overlaps(place))
            node = _as_functional(node, twin)
            current |= dict.fromkeys(same, node.name)
            if shown:
                nodes.append(node)
                nodes += _write_back(raw, shown, memory, views, current)
                made.add(raw.name)
                continue
        made.add(raw.name)
        nodes.append(node)
    outputs = tuple(current.get(name, name) for name in graph.outputs)
    return Graph(graph.inputs, tuple(nodes), outputs)


def _write_back(raw: Node, shown: list[str], memory: Mapping[str, _Place], views: Views, current: dict[str, str]) -> list[Node]:
    """Bring the base of a written view, and all other views of it that are read later, up to date."""
    written = raw.args[0].name
    root = memory[written].root
    chain = views.chain(written, root)
    others = {name: views.chain(name, root) for name in shown if name != root}
    if chain is None or None in others.values():
        raise CaptureError(
            f"{raw.op.split('.')[1]} writes into memory that {shown[0]!r} also shows",
            line=raw.source,
            way_out="use the form of that operation that returns a new tensor",
        )
    nodes = views.put(chain, current.get(root, root), current[written], raw.source) if chain else []
    current[root] = nodes[-1].name if nodes else current[written]
    for name, other in others.items():
        again = views.take(other or (), current[root])
        current[name] = again[-1].name if again else current[root]
        nodes += again
    return nodes


def written_values(graph: Graph) -> dict[str, str]:
    """Inputs, parameters and buffers that in-place ops write to, directly or through a view -> line of the first write."""
    memory = _places(graph)
    made = {node.name for node in graph.nodes}
    written: dict[str, str] = {}
    for node in graph.nodes:
        if functional_twin(node.op) is not None and (root := memory[node.args[0].name].root) not in made:
            written.setdefault(root, node.source)
    return written


def _as_functional(node: Node, twin: str) -> Node:
    if node.op == "aten.copy_.default":  # x.copy_(y) is y, broadcast to x; torch's own twin, aten.copy, has no gradient
        return replace(node, op="aten.expand_as.default", args=(node.args[1], node.args[0]), kwargs=())
    if node.op in ("aten.zero_.default", "aten.fill_.Scalar"):
        value = 0 if node.op == "aten.zero_.default" else node.args[1]
        return replace(node, op="aten.full_like.default", args=(node.args[0], value), kwargs=())
    return replace(node, op=twin)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a value's memory is: the value that owns it, and which part of which split."""

    root: str
    parts: tuple[tuple[str, Arg], ...] = ()

    def overlaps(self, other: _Place) -> bool:
        """Whether both may show the same memory; parts of one split never do."""
        disjoint = any(mine[0] == theirs[0] and mine[1] != theirs[1] for mine, theirs in zip(self.parts, other.parts, strict=False))
        return self.root == other.root and not disjoint


def _places(graph: Graph) -> dict[str, _Place]:
    """The memory that each value may share."""
    places = {name: _Place(name) for name in (*graph.inputs, *graph.state_names)}
    splits = {node.name for node in graph.nodes if node.op in _SPLITS}
    for node in graph.nodes:
        base = node.args[0] if node.args else None
        if not isinstance(base, Ref) or not _shares_memory(node.op):
            places[node.name] = _Place(node.name)
        elif node.op == "scalar.getitem" and base.name in splits:
            places[node.name] = _Place(places[base.name].root, (*places[base.name].parts, (base.name, node.args[1])))
        else:
            places[node.name] = places[base.name]
    return places


def _shares_memory(op: str) -> bool:
    """Whether the result may be a view of the first argument, or that argument itself."""
    if op in SCALAR_FUNCTIONS:
        return op == "scalar.getitem"
    namespace, _, rest = op.partition(".")
    base, _, overload = rest.partition(".")
    schema = getattr(getattr(getattr(torch.ops, namespace), base), overload)._schema
    return op.startswith(_PASSING) or (schema.arguments[:1] != [] and schema.arguments[0].alias_info is not None)


def views_as_reshapes(graph: Graph) -> Graph:
    """A view demands a memory layout that rewritten neighbours may not give; a reshape does not."""

    def change(node: Node) -> Node:
        return replace(node, op="aten.reshape.default") if node.op == "aten.view.default" else node

    return replace(graph, nodes=tuple(change(node) for node in graph.nodes))


def without_copies(graph: Graph) -> Graph:
    """Drop copies, identical casts and assertions' leftovers; their readers read the original."""
    current: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        node = rename_uses(node, current)
        if node.op in _COPIES and isinstance(node.args[0], Ref):
            current[node.name] = node.args[0].name
        else:
            nodes.append(node)
    outputs = tuple(current.get(name, name) for name in graph.outputs)
    return Graph(graph.inputs, tuple(nodes), outputs)
