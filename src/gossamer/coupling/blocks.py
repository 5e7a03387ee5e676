"""Blocks that can be left out whole: residual branches, and layers that give what they take its shape back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gossamer.errors import ConfigError
from gossamer.program.graph import Graph, Node, Ref, rename_uses
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import Attention, Convolution, Einsum, Linear, MatMul, Recurrent
from gossamer.program.program import Program
from gossamer.program.shapes import Meta, TensorMeta, infer_shapes

KINDS = ("branches", "layers")
_WEIGHTY = (Convolution, Linear, MatMul, Einsum, Attention, Recurrent)


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a network without which it still runs: whatever reads `node` reads `source` instead.

    name    path of the module that it is, or that holds most of it
    kind    "branches": `node` is source + branch(source); "layers": `node` is all that leaves the module `name`,
            `source` what enters it, both of one shape
    node    the value that it ends with
    source  the value that it starts from
    nodes   what is not needed without it
    """

    name: str
    kind: str
    node: str
    source: str
    nodes: frozenset[str]


def find_blocks(program: Program, kind: str = "branches") -> tuple[Block, ...]:
    """All blocks of a kind, in order of execution. Reads only.

    "branches"  additions of which one operand is computed from the other by a branch that holds a layer: the sum without
                the branch is the other operand. A shortcut that is itself a layer is no such operand.
    "layers"    modules that hold a layer, with one floating-point value of one shape coming in and going out, such as a whole
                transformer layer or a repeated convolution. Of modules inside one another the outermost counts that is no mere
                chain of others; a module inside a branch does not count.

    Raises: ConfigError for another kind; UnsupportedOp for a network whose shapes depend on values.
    """
    if kind not in KINDS:
        raise ConfigError("kind", kind, f"one of {', '.join(KINDS)}")
    metas = infer_shapes(program, batch=1)
    branches = _branches(program.graph, metas)
    return branches if kind == "branches" else _layers(program.graph, metas, branches)


def bypass(graph: Graph, around: Mapping[str, str]) -> Graph:
    """The graph in which whatever reads a key of `around` reads its value, without what is then not needed.

    A value may itself be a key: then that one's value is read.
    """

    def final(name: str) -> str:
        while name in around:
            name = around[name]
        return name

    names = {name: final(name) for name in around}
    nodes = tuple(rename_uses(node, names) for node in graph.nodes)
    outputs = tuple(names.get(name, name) for name in graph.outputs)
    return Graph(graph.inputs, nodes, outputs).without_dead_code()


def branch_of(node: Node, source: str) -> str | None:
    """The other operand of an addition to `source`; None when the node is no such addition."""
    if node.op != "aten.add.Tensor" or Ref(source) not in node.args[:2]:
        return None
    bound = bind(node)
    others = [bound[key] for key in ("other", "self") if bound[key] != Ref(source)]
    if len(others) != 1 or not isinstance(others[0], Ref) or (bound["alpha"] != 1 and bound["other"] == Ref(source)):
        return None
    return others[0].name


def _branches(graph: Graph, metas: Mapping[str, Meta]) -> tuple[Block, ...]:
    above = _ancestors(graph)
    found = []
    for node in graph.nodes:
        for source in dict.fromkeys(node.uses):
            branch = branch_of(node, source)
            if branch is None or source not in above.get(branch, frozenset()) or not _same_shape(metas, node.name, source):
                continue
            lost = _lost(graph, node.name, source)
            if any(isinstance(op_of(graph.by_name[name]).kind, _WEIGHTY) for name in lost):
                found.append(Block("", "branches", node.name, source, lost))
    return _named(graph, found)


def _ancestors(graph: Graph, everything: bool = False) -> dict[str, frozenset[str]]:
    """For each input and result what it is computed from, itself included: all, or only what additions read."""
    interesting = {name for node in graph.nodes if everything or node.op == "aten.add.Tensor" for name in node.uses}
    above: dict[str, frozenset[str]] = {name: frozenset({name}) & interesting for name in graph.inputs}
    for node in graph.nodes:
        own = frozenset({node.name}) & interesting
        above[node.name] = own.union(*(above.get(name, frozenset()) for name in node.uses))
    return above


def _same_shape(metas: Mapping[str, Meta], left: str, right: str) -> bool:
    one, other = metas[left], metas[right]
    return (
        isinstance(one, TensorMeta)
        and isinstance(other, TensorMeta)
        and (one.shape, one.dtype) == (other.shape, other.dtype)
        and one.dtype.is_floating_point
    )


def _lost(graph: Graph, node: str, source: str) -> frozenset[str]:
    """Nodes that nothing needs when `node` is bypassed."""
    stays = bypass(graph, {node: source}).by_name
    return frozenset(other.name for other in graph.nodes if other.name not in stays)


def _layers(graph: Graph, metas: Mapping[str, Meta], branches: Sequence[Block]) -> tuple[Block, ...]:
    inside: dict[str, list[Node]] = {}
    for node in graph.nodes:
        parts = node.module.split(".") if node.module else []
        for count in range(1, len(parts) + 1):
            inside.setdefault(".".join(parts[:count]), []).append(node)
    made = _ancestors(graph, everything=True)
    found = {}
    for path, nodes in inside.items():
        names = {node.name for node in nodes}
        in_branch = any(names <= block.nodes - {block.node} for block in branches)
        if not in_branch and any(isinstance(op_of(node).kind, _WEIGHTY) for node in nodes):
            ends = _ends(graph, metas, nodes, made)
            if ends is not None:
                found[path] = Block(path, "layers", *ends, _lost(graph, *ends))
    single: list[str] = []
    for path in sorted(found, key=lambda path: -path.count(".")):  # the innermost first
        below = [other for other in single if other.startswith(f"{path}.")]
        if len(below) < 2:
            single = [path, *(other for other in single if other not in below)]
    order = {node.name: place for place, node in enumerate(graph.nodes)}
    return tuple(sorted((found[path] for path in single), key=lambda block: order[block.node]))


def _ends(graph: Graph, metas: Mapping[str, Meta], nodes: Sequence[Node], made: Mapping[str, frozenset[str]]) -> tuple[str, str] | None:
    """(what leaves, what enters) of a module with one value of each; None for any other.

    Others may enter or leave, such as masks and sizes, when they are not on the way from the one to the other.
    """
    names = {node.name for node in nodes}
    tensors = {name for name in made if isinstance(metas[name], TensorMeta)}
    leaving = [
        node.name
        for node in nodes
        if node.name in tensors and (node.name in graph.outputs or any(user.name not in names for user in graph.users.get(node.name, ())))
    ]
    entering = {name for node in nodes for name in node.uses if name in tensors and name not in names}
    ends = []
    for source in sorted(entering):
        last = [name for name in leaving if source in made[name]]
        if len(last) == 1 and _same_shape(metas, last[0], source) and not any(source in made[other] for other in entering - {source}):
            ends.append((last[0], source))
    return ends[0] if len(ends) == 1 else None


def _named(graph: Graph, blocks: Sequence[Block]) -> tuple[Block, ...]:
    """Name each branch by the module that holds all of it where that holds no other, else by the part with most of its layers."""
    common = [_common_path([graph.by_name[name].module for name in block.nodes - {block.node}]) for block in blocks]
    counts = Counter(common)
    names: list[str] = []
    for block, path in zip(blocks, common, strict=True):
        name = path if path and counts[path] == 1 else _main_part(graph, block, path) or block.node
        names.append(name if name not in names else f"{name}#{block.node}")
    return tuple(replace(block, name=name) for block, name in zip(blocks, names, strict=True))


def _common_path(paths: Sequence[str]) -> str:
    split = [path.split(".") for path in paths if path]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _main_part(graph: Graph, block: Block, path: str) -> str:
    """The module right below `path` with most layers of the block, then with most nodes."""
    depth = len(path.split(".")) if path else 0
    weights: Counter[str] = Counter()
    for name in sorted(block.nodes):
        node = graph.by_name[name]
        parts = node.module.split(".")
        if len(parts) > depth:
            weights[".".join(parts[: depth + 1])] += 1000 * isinstance(op_of(node).kind, _WEIGHTY) + 1
    return max(sorted(weights), key=lambda part: weights[part]) if weights else path
