"""An ONNX graph while it is being written: plain data, so that only `proto.py` needs the onnx package."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class DraftNode:
    """One operator call on named tensors; "" stands for an absent optional input. An op of another domain is DOMAIN::OP."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[tuple[str, Any], ...] = ()


class Draft:
    """Collects nodes and constants. Names are unique; equal constants are stored once."""

    def __init__(self) -> None:
        self.nodes: list[DraftNode] = []
        self.initializers: dict[str, Array] = {}
        self.stored: dict[str, str] = {}  # constant -> its type in the file, where that is not numpy's
        self._taken: dict[str, int] = {}  # name -> how often it was wished for
        self._constants: dict[tuple[str, str, str, tuple[int, ...], bytes], str] = {}

    def fresh(self, wish: str) -> str:
        """`wish`, with a number behind it where that is taken; a dot keeps them apart where the wish is a name, not just a letter."""
        name, dot = wish, "." if len(wish) > 1 else ""
        while name in self._taken:
            self._taken[wish] += 1
            name = f"{wish}{dot}{self._taken[wish]}"
        self._taken[name] = 0
        return name

    def emit(self, op: str, inputs: Sequence[str], *, name: str, outputs: int = 1, **attributes: Any) -> tuple[str, ...]:
        """Add a node; return the names of its results. Attributes that are None are left out."""
        names = tuple(self.fresh(name) for _ in range(outputs))
        self.append(op, inputs, names, **attributes)
        return names

    def append(self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        """Add a node whose results have the given names."""
        given = tuple((key, value) for key, value in attributes.items() if value is not None)
        self.nodes.append(DraftNode(op, tuple(inputs), tuple(outputs), given))

    def constant(self, value: Array, *, name: str = "c", stored: str = "", shared: bool = True, owner: str = "") -> str:
        """The name of an initializer with these contents; of an own one where it must not be `shared`, or only with the same `owner`.

        stored  its type in the file, where that is not numpy's
        """
        value = np.asarray(value)
        if not shared:
            own = self.fresh(name)
            self.initializers[own] = value
            return own
        content = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        key = (owner, stored, value.dtype.str, value.shape, hashlib.sha256(content.data).digest())
        if key not in self._constants:
            fresh = self.fresh(name)
            self.initializers[fresh] = value
            if stored:
                self.stored[fresh] = stored
            self._constants[key] = fresh
        return self._constants[key]

    def rename(self, old: str, new: str, *, since: int = 0) -> None:
        """Call a tensor by another name in the nodes from position `since` on."""

        def change(names: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(new if name == old else name for name in names)

        for position in range(since, len(self.nodes)):
            node = self.nodes[position]
            if old in node.inputs or old in node.outputs:
                self.nodes[position] = replace(node, inputs=change(node.inputs), outputs=change(node.outputs))

    def made_since(self, position: int) -> set[str]:
        """Results of the nodes from `position` on."""
        return {name for node in self.nodes[position:] for name in node.outputs}

    def without_dead_code(self, outputs: Sequence[str]) -> None:
        """Drop nodes and constants that reach no output."""
        live = set(outputs)
        kept: list[DraftNode] = []
        for node in reversed(self.nodes):
            if live.intersection(node.outputs):
                kept.append(node)
                live.update(node.inputs)
        self.nodes = list(reversed(kept))
        self.initializers = {name: value for name, value in self.initializers.items() if name in live}
