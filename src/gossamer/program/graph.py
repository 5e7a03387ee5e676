"""The graph of a program: frozen nodes in order of execution, naming each other's values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from gossamer.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Ref:
    """A use of the value `name`: an input, a parameter or buffer (its state_dict key), or a node's result."""

    name: str


# Ref | int | float | bool | str | None | torch.dtype | torch.device | torch.memory_format | torch.layout | tuple of these
Arg = Any


@dataclass(frozen=True)
class Node:
    """One op call. Its name is also the name of the value that it makes."""

    name: str
    op: str
    args: tuple[Arg, ...]
    kwargs: tuple[tuple[str, Arg], ...] = ()
    module: str = ""  # path of the user's module that made it, such as "layer1.0.conv1"
    source: str = ""  # the user's line, such as "model.py:12"

    @cached_property
    def uses(self) -> tuple[str, ...]:
        """Names of the values it reads, in order, repeats included."""
        found = refs_in(self.args)
        for _, value in self.kwargs:
            found += refs_in(value)
        return tuple(found)

    @property
    def where(self) -> str:
        """Its place in the user's words, for messages."""
        parts = [part for part in (self.module, self.source) if part]
        return f"{' at '.join(parts)} (value {self.name!r})" if parts else f"value {self.name!r}"


@dataclass(frozen=True)
class Graph:
    """Nodes in order of execution. `inputs` and `outputs` are value names; all other names are state or nodes."""

    inputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        """Node by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def users(self) -> Mapping[str, tuple[Node, ...]]:
        """The nodes that read a value, in order, each once."""
        users: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.uses):
                users.setdefault(name, []).append(node)
        return {name: tuple(nodes) for name, nodes in users.items()}

    @cached_property
    def state_names(self) -> tuple[str, ...]:
        """Names of the parameters and buffers that nodes or outputs read, in order of first use."""
        made = {*self.inputs, *(node.name for node in self.nodes)}
        used = [name for node in self.nodes for name in node.uses] + list(self.outputs)
        return tuple(dict.fromkeys(name for name in used if name not in made))

    @cached_property
    def from_state(self) -> frozenset[str]:
        """Names of the nodes that read no input, directly or through others."""
        found: set[str] = set()
        varying = set(self.inputs)
        for node in self.nodes:
            (varying if varying & set(node.uses) else found).add(node.name)
        return frozenset(found)

    def check_order(self) -> None:
        """Raise ConfigError unless every name is made once, and every node's result is made before it is read."""
        made = set(self.inputs)
        later = {node.name for node in self.nodes}
        if len(made) != len(self.inputs) or len(later) != len(self.nodes) or made & later:
            names = [*self.inputs, *(node.name for node in self.nodes)]
            raise ConfigError("graph", next(name for name in names if names.count(name) > 1), "free of values that are made twice")
        for node in self.nodes:
            for name in node.uses:
                if name in later:
                    raise ConfigError("graph", name, f"in order, but {node.name!r} reads this value before it is made")
            later.discard(node.name)

    def sole_user(self, name: str) -> Node | None:
        """The only node that reads `name`, or None when there are several or it is an output."""
        users = self.users.get(name, ())
        return users[0] if len(users) == 1 and name not in self.outputs else None

    def without_dead_code(self) -> Graph:
        """Drop nodes whose values reach no output."""
        live = set(self.outputs)
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if node.name in live:
                kept.append(node)
                live.update(node.uses)
        return replace(self, nodes=tuple(reversed(kept)))

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON."""
        nodes = [
            {
                "name": node.name,
                "op": node.op,
                "args": encode(node.args),
                "kwargs": {key: encode(value) for key, value in node.kwargs},
                "module": node.module,
                "source": node.source,
            }
            for node in self.nodes
        ]
        return {"inputs": list(self.inputs), "nodes": nodes, "outputs": list(self.outputs)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Graph:
        """Inverse of to_json."""
        nodes = tuple(
            Node(
                item["name"],
                item["op"],
                decode(item["args"]),
                tuple((key, decode(value)) for key, value in item["kwargs"].items()),
                item["module"],
                item["source"],
            )
            for item in data["nodes"]
        )
        return Graph(tuple(data["inputs"]), nodes, tuple(data["outputs"]))

    @cached_property
    def digest(self) -> str:
        """Hash of the structure: ops, arguments and names, not source lines."""
        plain = self.to_json()
        for node in plain["nodes"]:
            del node["module"], node["source"]
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    def __deepcopy__(self, memo: dict[int, Any]) -> Graph:
        return self


def refs_in(arg: Arg) -> list[str]:
    """Names of all values in an argument, in order."""
    if isinstance(arg, Ref):
        return [arg.name]
    found: list[str] = []
    if isinstance(arg, tuple):
        for item in arg:
            if isinstance(item, Ref):
                found.append(item.name)
            elif isinstance(item, tuple):
                found += refs_in(item)
    return found


def map_refs(arg: Arg, change: Callable[[str], Arg]) -> Arg:
    """Replace each Ref in an argument by what `change` returns for its name."""
    if isinstance(arg, Ref):
        return change(arg.name)
    if isinstance(arg, tuple):
        return tuple(map_refs(item, change) for item in arg)
    return arg


def rename_uses(node: Node, names: Mapping[str, str]) -> Node:
    """The same node reading `names[x]` wherever it read x."""
    if not any(name in names for name in node.uses):
        return node

    def change(name: str) -> Ref:
        return Ref(names.get(name, name))

    return replace(
        node,
        args=map_refs(node.args, change),
        kwargs=tuple((key, map_refs(value, change)) for key, value in node.kwargs),
    )


_TORCH_CONSTANTS: dict[str, type] = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}


def encode(arg: Arg) -> Any:
    """Turn an argument into plain JSON data; lists are tuples, everything special is a one-key object."""
    match arg:
        case None | bool() | int() | str():
            return arg
        case float():
            return arg if arg == arg and abs(arg) != float("inf") else {"float": str(arg)}
        case Ref(name=name):
            return {"ref": name}
        case tuple():
            return [encode(item) for item in arg]
        case torch.device():
            return {"device": arg.type}
    for kind, cls in _TORCH_CONSTANTS.items():
        if isinstance(arg, cls):
            return {kind: str(arg).removeprefix("torch.")}
    raise TypeError(f"no JSON form for {arg!r}")


def decode(data: Any) -> Arg:
    """Inverse of encode. Raises ValueError for a form that encode never writes."""
    if isinstance(data, list):
        return tuple(decode(item) for item in data)
    if not isinstance(data, dict):
        return data
    ((kind, value),) = data.items()
    match kind:
        case "ref":
            return Ref(value)
        case "float":
            return float(value)
        case "device":
            return torch.device(value)
    cls = _TORCH_CONSTANTS.get(kind)
    constant = getattr(torch, str(value), None)
    if cls is None or not isinstance(constant, cls):
        raise ValueError(f"an argument of unknown kind {kind!r}")
    return constant
