"""Sizes that the user's modules keep in attributes of their own (num_heads, head_dim, split sizes), found from what changed in the graph."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.program.graph import Arg, Graph, Node, Ref
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import Attention, Linear, Movement, StatisticsNorm
from gossamer.program.program import Program

_SPLITS = frozenset(f"aten.{name}" for name in "split.Tensor split_with_sizes.default chunk.default tensor_split.sections".split())
_NEAR = 3  # lines around the reported one that may belong to its statement
_LARGEST = 2**31  # larger literals stand for "to the end"


@dataclass(frozen=True, slots=True)
class Change:
    """A literal size in the graph (at the node of this number) that a removal changed, with the module and line whose code gave it."""

    module: str
    source: str
    old: int
    new: int
    place: int


@dataclass(frozen=True, slots=True)
class Setting:
    """An integer attribute of a module, or one entry of a tuple or list, and its new value."""

    module: nn.Module
    name: str
    entry: int | None
    new: int


def same_ops(old: Graph, new: Graph) -> str:
    """The first node by which two graphs differ in more than sizes, or ""."""
    for before, after in zip(old.nodes, new.nodes, strict=False):
        split = before.op in _SPLITS and after.op in _SPLITS
        if before.name != after.name or not (before.op == after.op or split):
            return after.name
    if len(old.nodes) != len(new.nodes):
        longer = max(old.nodes, new.nodes, key=len)
        return longer[min(len(old.nodes), len(new.nodes))].name
    return ""


def changes(old: Graph, new: Graph) -> tuple[Change, ...]:
    """All literals that differ, in order. The graphs have the same nodes."""
    return tuple(
        Change(after.module, after.source, *pair, place)
        for place, (before, after) in enumerate(zip(old.nodes, new.nodes, strict=True))
        for pair in _pairs(before, after)
        if pair[0] != pair[1] and max(pair) < _LARGEST
    )


def _pairs(before: Node, after: Node) -> Iterator[tuple[int, int]]:
    """Literal sizes of the old node beside those of the new one."""
    if before.op == after.op:
        yield from _integers(before.args, after.args)
        yield from _integers(tuple(value for _, value in before.kwargs), tuple(value for _, value in after.kwargs))
    elif before.op == "aten.split.Tensor" and after.op == "aten.split_with_sizes.default":
        yield bind(before)["split_size"], bind(after)["split_sizes"][0]
    elif before.op == "aten.chunk.default" and len(set(sizes := bind(after)["split_sizes"])) > 1:
        yield bind(before)["chunks"], sizes[0]


def _integers(before: Arg, after: Arg) -> Iterator[tuple[int, int]]:
    if isinstance(before, tuple) and isinstance(after, tuple):
        for left, right in zip(before, after, strict=False):
            yield from _integers(left, right)
    elif type(before) is int and type(after) is int:
        yield before, after


def settings(model: nn.Module, found: Sequence[Change], *, named: bool) -> tuple[Setting, ...]:
    """Attributes to set for these changes; with `named`, the ones that the line of code mentions go before all others.

    An attribute that would need two values at once is left as it is.
    """
    chosen: dict[tuple[int, str, int | None], set[int]] = {}
    modules: dict[int, nn.Module] = {}
    for change in found:
        for owner in _owners(model, change.module):
            fitting = [(name, entry) for name, entry, value in _sizes(owner) if value == change.old]
            text = _statement(owner, change.source) if named else ""
            fitting = [(name, entry) for name, entry in fitting if name in text] or fitting
            for name, entry in fitting:
                chosen.setdefault((id(owner), name, entry), set()).add(change.new)
                modules[id(owner)] = owner
            if fitting:
                break
    return tuple(Setting(modules[at], name, entry, min(new)) for (at, name, entry), new in chosen.items() if len(new) == 1)


def _owners(model: nn.Module, path: str) -> Iterator[nn.Module]:
    """The module of that path and those around it, nearest first."""
    modules = dict(model.named_modules(remove_duplicate=False))
    parts = path.split(".") if path else []
    for length in range(len(parts), -1, -1):
        owner = modules.get(".".join(parts[:length]))
        if owner is not None:
            yield owner


def _sizes(module: nn.Module) -> Iterator[tuple[str, int | None, int]]:
    """(attribute, entry, value) for each integer the user's code put on a module; torch's own layers have been fitted already."""
    if type(module).__module__.startswith("torch.nn."):
        return
    for name, value in vars(module).items():
        if type(value) is int:
            yield name, None, value
        elif isinstance(value, (tuple, list)):
            yield from ((name, entry, item) for entry, item in enumerate(value) if type(item) is int)


def _statement(module: nn.Module, source: str) -> str:
    """The text around a line such as "model.py:12", when the module's class comes from that file."""
    name, _, line = source.rpartition(":")
    for cls in type(module).__mro__:
        path = getattr(sys.modules.get(cls.__module__), "__file__", None) or ""
        if name and Path(path).name == name:
            return "".join(linecache.getline(path, number) for number in range(int(line) - _NEAR, int(line) + _NEAR + 1) if number > 0)
    return ""


def put(setting: Setting) -> int:
    """Set the attribute and return what it was."""
    value: Any = getattr(setting.module, setting.name)
    if setting.entry is None:
        setattr(setting.module, setting.name, setting.new)
        return int(value)
    items = list(value)
    before = int(items[setting.entry])
    items[setting.entry] = setting.new
    fresh = items if isinstance(value, list) else tuple(items) if type(value) is tuple else type(value)(*items)
    setattr(setting.module, setting.name, fresh)
    return before


def fold_scales(model: nn.Module, original: Program, program: Program) -> bool:
    """Move the scale that attention keeps when its heads get narrower into the weights that make the queries, in place.

    torch's attention divides by the square root of the width that it sees; the program keeps the original's scale.
    Returns whether anything was changed; an attribute that holds the old scale gets the new one.
    """
    makers: dict[str, tuple[Node, Node]] = {}
    for before, after in zip(original.graph.nodes, program.graph.nodes, strict=True):
        if isinstance(op_of(after).kind, Attention) and bind(before)["scale"] is None and bind(after)["scale"] is not None:
            maker = _maker(program.graph, bind(after)["query"].name)
            if maker is None:
                return False
            makers[after.name] = (after, maker)
    rows = _rows_read(program, makers)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    modules = dict(model.named_modules(remove_duplicate=False))
    with torch.no_grad():
        for name, (node, maker) in makers.items():
            width, scale = rows[name][1], bind(node)["scale"]
            bound = bind(maker)
            for key in ("weight", "bias"):
                if isinstance(bound[key], Ref):
                    parameters[bound[key].name][rows[name][0]] *= scale * width**0.5
            owner = modules.get(node.module)
            for key, value in list(vars(owner).items()) if owner is not None else ():
                if isinstance(value, float) and abs(value - scale) < 1e-12:
                    setattr(owner, key, width**-0.5)
    return bool(makers)


def _maker(graph: Graph, name: str) -> Node | None:
    """The layer or norm whose outputs reach a value by movement alone."""
    node = graph.by_name.get(name)
    while node is not None and (isinstance(op_of(node).kind, Movement) or node.op == "scalar.getitem") and isinstance(node.args[0], Ref):
        node = graph.by_name.get(node.args[0].name)
    if node is None or not isinstance(op_of(node).kind, (Linear, StatisticsNorm)):
        return None
    return node if isinstance(bind(node).get("weight"), Ref) else None


def _rows_read(program: Program, makers: dict[str, tuple[Node, Node]]) -> dict[str, tuple[Tensor, int]]:
    """For each attention, the output positions of the maker that its queries come from, and their width."""
    queries = {bind(node)["query"].name: name for name, (node, _) in makers.items()}
    layers = {maker.name for _, maker in makers.values()}
    found: dict[str, tuple[Tensor, int]] = {}

    def watch(name: str, value: Any) -> Any:
        if name in layers:
            value = torch.arange(value.shape[-1], dtype=torch.float32, device=value.device).expand(value.shape)
        if name in queries:
            found[queries[name]] = (value.unique().long(), value.shape[-1])
        return value if name in layers else None

    was = program.training
    with torch.no_grad():
        program.eval().run(*program.example_inputs(1), observe=watch)
    program.train(was)
    return found
