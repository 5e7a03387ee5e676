"""Writes through views, made functional: the base gets the new content where the view lies, other views are taken anew.

The idea is torch's functionalization (functorch, Zou et al. 2022), here for the views whose inverse is one op.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from gossamer.program.graph import Arg, Graph, Node, Ref

_PLAIN = frozenset(f"aten.{name}.default" for name in ("detach", "alias"))


def _same_order(base: Ref, new: Ref, node: Node) -> tuple[str, tuple[Arg, ...]]:
    return "aten.reshape_as.default", (new, base)


def _slice(base: Ref, new: Ref, node: Node) -> tuple[str, tuple[Arg, ...]]:
    return "aten.slice_scatter.default", (base, new, *node.args[1:])


def _select(base: Ref, new: Ref, node: Node) -> tuple[str, tuple[Arg, ...]]:
    return "aten.select_scatter.default", (base, new, *node.args[1:])


def _transpose(base: Ref, new: Ref, node: Node) -> tuple[str, tuple[Arg, ...]]:
    return node.op, (new, *node.args[1:])


def _permute(base: Ref, new: Ref, node: Node) -> tuple[str, tuple[Arg, ...]]:
    order = [axis % len(node.args[1]) for axis in node.args[1]]
    return node.op, (new, tuple(order.index(axis) for axis in range(len(order))))


# op of a view -> what its base becomes when the view gets new content
_INVERSES: Mapping[str, Callable[[Ref, Ref, Node], tuple[str, tuple[Arg, ...]]]] = {
    "aten.slice.Tensor": _slice,
    "aten.select.int": _select,
    "aten.transpose.int": _transpose,
    "aten.t.default": _transpose,
    "aten.permute.default": _permute,
    "aten.view.default": _same_order,
    "aten.unsqueeze.default": _same_order,
    "aten.squeeze.dim": _same_order,
    **dict.fromkeys(_PLAIN, _same_order),
}


def functional_twin(op: str) -> str | None:
    """ "aten.relu_.default" -> "aten.relu.default"; None for an op that does not write."""
    namespace, _, rest = op.partition(".")
    base, _, overload = rest.partition(".")
    if namespace != "aten" or not base.endswith("_") or base.endswith("__"):
        return None
    return f"aten.{base[:-1]}.{overload}"


class Views:
    """The views of a graph that can be written through and taken anew."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._taken = {*graph.inputs, *graph.state_names, *(node.name for node in graph.nodes)}

    def chain(self, name: str, root: str) -> tuple[Node, ...] | None:
        """The view nodes from the root's memory to a value, or None when one of them has no inverse."""
        found: list[Node] = []
        while name != root:
            node = self._graph.by_name[name]
            if functional_twin(node.op) is not None and isinstance(node.args[0], Ref):  # its result is its argument
                name = node.args[0].name
                continue
            if node.op not in _INVERSES or node.kwargs or not isinstance(node.args[0], Ref):
                return None
            found.append(node)
            name = node.args[0].name
        return tuple(reversed(found))

    def take(self, chain: Iterable[Node], base: str) -> list[Node]:
        """The nodes that take a view from another base; the last one is the view."""
        made: list[Node] = []
        for node in chain:
            made.append(replace(node, name=self._fresh(node.name), args=(Ref(base), *node.args[1:])))
            base = made[-1].name
        return made

    def put(self, chain: tuple[Node, ...], base: str, new: str, source: str) -> list[Node]:
        """The nodes that give `base` the content `new` where the view at the end of the chain lies; the last one is the base."""
        made = self.take(chain[:-1], base)
        bases = [base, *(node.name for node in made)]
        for view, below in zip(reversed(chain), reversed(bases), strict=True):
            op, args = _INVERSES[view.op](Ref(below), Ref(new), view)
            made.append(Node(self._fresh(view.args[0].name), op, args, module=view.module, source=source))
            new = made[-1].name
        return made

    def _fresh(self, name: str) -> str:
        number = next(count for count in itertools.count(1) if f"{name}_again{count}" not in self._taken)
        self._taken.add(f"{name}_again{number}")
        return f"{name}_again{number}"
