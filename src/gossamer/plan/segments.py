"""Cutting a network into parts that follow one another: between two of them there is one value, the same for each sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import takewhile

from gossamer.program.graph import Graph, Node
from gossamer.program.program import Program
from gossamer.program.shapes import Meta, TensorMeta, infer_shapes

MOST_LAYERS = 3  # of parts that are put together: those of an inverted residual


def cut(program: Program, layers: Set[str], most_layers: int = MOST_LAYERS) -> tuple[Graph, ...]:
    """Parts of the network, in order. `layers` are the nodes to be learned.

    A part reads what the one before it makes, and inputs of the network; it makes one value, and outputs of the network
    that lie in it. Parallel paths, such as a residual branch and its shortcut, are never cut. Short parts are put together up
    to `most_layers` layers, at the narrowest values. What does not depend on the inputs, and numbers such as a batch size, each
    part computes for itself.
    """
    return tuple(_Network(program, layers).parts(most_layers))


def join_front(graphs: Sequence[Graph], layers: Set[str]) -> tuple[Graph, ...]:
    """The same parts, those before the first that holds one of the nodes `layers` as one.

    What lies between them need not be kept then. The joined part makes only what later parts read.
    """
    front = list(takewhile(lambda graph: layers.isdisjoint(graph.by_name), graphs))
    behind = tuple(graphs[len(front) :])
    if len(front) < 2 or not behind:
        return tuple(graphs)
    nodes = {node.name: node for graph in front for node in graph.nodes}
    inputs = dict.fromkeys(name for graph in front for name in graph.inputs if name not in nodes)
    read = {name for graph in behind for name in graph.inputs}
    outputs = tuple(name for graph in front for name in graph.outputs if name in read)
    return Graph(tuple(inputs), tuple(nodes.values()), outputs), *behind


@dataclass(frozen=True, slots=True)
class _Place:
    """A cut behind the node at `position`: the value there, how many numbers it holds per sample."""

    position: int
    numel: int


class _Network:
    """A graph with what is needed where."""

    def __init__(self, program: Program, layers: Set[str]) -> None:
        self.graph = program.graph
        self.layers = layers
        fixed = bool(program.inputs) and program.inputs[0].shape[:1] not in {(None,), ()}
        self._metas: list[Mapping[str, Meta]] = [infer_shapes(program, 1)] if fixed else [infer_shapes(program, batch) for batch in (1, 2)]
        self.batch = program.inputs[0].shape[0] if fixed else 1
        inputs = set(self.graph.inputs)
        self.roots: dict[str, frozenset[str]] = {name: frozenset({name}) for name in inputs}  # value -> tensors that it has to be made from
        for node in self.graph.nodes:
            needed = frozenset().union(*(self.roots.get(name, frozenset()) for name in node.uses))
            is_tensor = isinstance(self._metas[0][node.name], (TensorMeta, tuple))
            self.roots[node.name] = frozenset({node.name}) if is_tensor and needed else needed

    def parts(self, most_layers: int) -> Iterator[Graph]:
        nodes = self.graph.nodes
        places = [*self._places(), _Place(len(nodes) - 1, 0)]
        start = 0
        while start < len(nodes):
            ahead = [place for place in places if place.position >= start]
            counts = [self._layers(start, place.position) for place in ahead]
            fits = [place for place, count in zip(ahead, counts, strict=True) if 1 <= count <= most_layers] or [
                next((place for place, count in zip(ahead, counts, strict=True) if count), ahead[-1])
            ]
            end = min(fits, key=lambda place: (place.numel, -place.position)).position
            if not any(self._layers(end + 1, place.position) for place in ahead if place.position > end):
                end = len(nodes) - 1  # what is behind the last layer goes with it
            yield self._part(start, end)
            start = end + 1

    def _layers(self, start: int, end: int) -> int:
        return sum(node.name in self.layers for node in self.graph.nodes[start : end + 1])

    def _places(self) -> Iterator[_Place]:
        """Where exactly one value is needed on the other side, one row of it for each sample."""
        last: dict[str, int] = {}
        for position, node in enumerate(self.graph.nodes):
            for used in node.uses:
                for root in self.roots.get(used, ()):
                    last[root] = position
        live: set[str] = set()
        for position, node in enumerate(self.graph.nodes):
            live = {name for name in live | (self.roots[node.name] & {node.name}) if last.get(name, -1) > position}
            if len(live) == 1 and self._is_row(next(iter(live))):
                (name,) = live
                yield _Place(position, self._meta(name).numel)

    def _meta(self, name: str) -> TensorMeta:
        meta = self._metas[0][name]
        assert isinstance(meta, TensorMeta)
        return meta

    def _is_row(self, name: str) -> bool:
        shapes = [
            meta.shape if isinstance(meta := metas[name], TensorMeta) and meta.dtype.is_floating_point else () for metas in self._metas
        ]
        wanted = [self.batch] if len(shapes) == 1 else [1, 2]
        return all(shape[:1] == (size,) and shape[1:] == shapes[0][1:] for shape, size in zip(shapes, wanted, strict=True))

    def _part(self, start: int, end: int) -> Graph:
        own = self.graph.nodes[start : end + 1]
        later = {root for node in self.graph.nodes[end + 1 :] for used in node.uses for root in self.roots.get(used, ())}
        outputs = tuple(node.name for node in own if node.name in later or node.name in self.graph.outputs)
        needed: list[Node] = []
        wanted, sources = set(outputs), []
        position = {node.name: place for place, node in enumerate(self.graph.nodes)}
        for node in reversed(self.graph.nodes[: end + 1]):
            if node.name not in wanted:
                continue
            if position[node.name] < start and self.roots[node.name] == frozenset({node.name}):
                sources.append(node.name)
                continue
            needed.append(node)
            wanted.update(node.uses)
        inputs = (*(name for name in self.graph.inputs if name in wanted), *reversed(sources))
        return Graph(inputs, tuple(reversed(needed)), outputs)
