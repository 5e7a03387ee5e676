"""What lowerings of every file format read of the node that they write: its arguments, by the names of the aten schema."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gossamer.program.graph import Arg, Node, map_refs
from gossamer.program.ops import Op, op_of


@dataclass(frozen=True, slots=True)
class NodeCall(ABC):
    """One node to lower; `call["stride"]` is an argument's value."""

    node: Node
    args: Mapping[str, Arg]

    def __getitem__(self, name: str) -> Any:
        return self.known(self.args[name])

    def get(self, name: str, default: Any = None) -> Any:
        """An argument's value, or `default` where the schema has no such argument."""
        return self[name] if name in self.args else default

    def known(self, arg: Arg) -> Any:
        """An argument with what is known before the network runs in place of its Refs; those to tensors stay."""
        return map_refs(arg, self.resolve)

    @abstractmethod
    def resolve(self, name: str) -> Any:
        """What stands for a value in arguments: a Ref, or its number where the value is one."""

    @property
    def row(self) -> Op:
        """The op's row in the op table."""
        return op_of(self.node)
