"""The normal form: functional ops only, no copies that compute nothing, views as reshapes, no dead code.

One rewrite a function, each from graph to graph.
"""

from __future__ import annotations

from dataclasses import replace

from gossamer.errors import CaptureError
from gossamer.program.graph import Graph, Node, Ref, rename_uses

# ops that return their argument's numbers unchanged
_COPIES = frozenset(
    f"aten.{name}.default" for name in ("contiguous", "clone", "detach", "detach_", "alias", "lift_fresh_copy", "lift_fresh")
)
_CHECKS = ("aten._assert", "aten.sym_constrain", "aten._guard")
_VIEWS = frozenset(
    f"aten.{name}"
    for name in (
        "view.default reshape.default flatten.using_ints unflatten.int squeeze.dim squeeze.dims squeeze.default unsqueeze.default "
        "expand.default expand_as.default permute.default transpose.int t.default numpy_T.default slice.Tensor narrow.default "
        "select.int split.Tensor split_with_sizes.default chunk.default unbind.int"
    ).split()
)


def normalize(graph: Graph) -> Graph:
    """Bring a graph from torch.export into the normal form. Raises CaptureError for writes through a view."""
    return without_copies(views_as_reshapes(functional(without_checks(graph)))).without_dead_code()


def without_checks(graph: Graph) -> Graph:
    """Drop assertions about sizes; the program checks its input shapes itself."""
    return replace(graph, nodes=tuple(node for node in graph.nodes if not node.op.startswith(_CHECKS)))


def functional(graph: Graph) -> Graph:
    """Replace each in-place op by its functional twin; later readers of the written value read the result instead."""
    current: dict[str, str] = {}  # written value -> the value that holds its new content
    viewed = _bases_of_views(graph)
    nodes = []
    for node in graph.nodes:
        node = rename_uses(node, current)
        twin = _functional_twin(node.op)
        if twin is not None:
            assert isinstance(node.args[0], Ref)
            written = node.args[0].name
            _check_not_viewed(node, written, viewed, graph)
            node = _as_functional(node, twin)
            current = {old: node.name if new == written else new for old, new in current.items()} | {written: node.name}
        nodes.append(node)
    outputs = tuple(current.get(name, name) for name in graph.outputs)
    return Graph(graph.inputs, tuple(nodes), outputs)


def written_values(graph: Graph) -> dict[str, str]:
    """Inputs, parameters and buffers that in-place ops write to, directly or through a view -> line of the first write."""
    viewed = _bases_of_views(graph)
    made = {node.name for node in graph.nodes}
    written: dict[str, str] = {}
    for node in graph.nodes:
        if _functional_twin(node.op) is not None and isinstance(node.args[0], Ref):
            for name in {node.args[0].name} | viewed.get(node.args[0].name, set()):
                if name not in made:
                    written.setdefault(name, node.source)
    return written


def _as_functional(node: Node, twin: str) -> Node:
    if node.op == "aten.copy_.default":  # x.copy_(y) is y, broadcast to x
        return replace(node, op="aten.expand_as.default", args=(node.args[1], node.args[0]), kwargs=())
    if node.op in ("aten.zero_.default", "aten.fill_.Scalar"):
        value = 0 if node.op == "aten.zero_.default" else node.args[1]
        return replace(node, op="aten.full_like.default", args=(node.args[0], value), kwargs=())
    return replace(node, op=twin)


def _functional_twin(op: str) -> str | None:
    """ "aten.relu_.default" -> "aten.relu.default"; None for an op that does not write."""
    namespace, _, rest = op.partition(".")
    base, _, overload = rest.partition(".")
    if namespace != "aten" or not base.endswith("_") or base.endswith("__"):
        return None
    return f"aten.{base[:-1]}.{overload}"


def _bases_of_views(graph: Graph) -> dict[str, set[str]]:
    """For each value, the values that may share its memory through views (itself excluded)."""
    family: dict[str, set[str]] = {}
    for node in graph.nodes:
        shares = node.op in _VIEWS or node.op == "scalar.getitem"
        if shares and isinstance(node.args[0], Ref):
            members = family.setdefault(node.args[0].name, {node.args[0].name})
            members.add(node.name)
            family[node.name] = members
    return {name: members - {name} for name, members in family.items()}


def _check_not_viewed(node: Node, written: str, viewed: dict[str, set[str]], graph: Graph) -> None:
    """Writing to memory that a view shares is only harmless when no other member of the family is read later."""
    position = next(i for i, other in enumerate(graph.nodes) if other.name == node.name)
    later = {name for other in graph.nodes[position + 1 :] for name in other.uses} | set(graph.outputs)
    # views taken after the write see the new content anyway: only those made before it count
    before = {other.name for other in graph.nodes[:position]} | set(graph.inputs)
    clash = sorted((viewed.get(written, set()) & later & before) - {written})
    if clash:
        raise CaptureError(
            f"{node.op.split('.')[1]} writes into memory that {clash[0]!r} also shows",
            line=node.source,
            way_out="use the form of that operation that returns a new tensor",
        )


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
