"""The one table of ops: how each runs, its class, its ONNX name. Everything about an op is in its row."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from gossamer.errors import UnsupportedOp
from gossamer.program.graph import Arg, Node
from gossamer.program.ops.kinds import Kind, Opaque, Scalar


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """A row: `onnx` is the ONNX operator that computes it, `training` the argument that is True while training."""

    name: str
    kind: Kind
    onnx: str = ""
    training: str = ""


_ROWS: dict[str, Op] = {}

SCALAR_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "scalar.getitem": operator.getitem,
    "scalar.add": operator.add,
    "scalar.sub": operator.sub,
    "scalar.mul": operator.mul,
    "scalar.floordiv": operator.floordiv,
    "scalar.truediv": operator.truediv,
    "scalar.mod": operator.mod,
    "scalar.neg": operator.neg,
    "scalar.pow": operator.pow,
    "scalar.int": torch.sym_int,
    "scalar.float": torch.sym_float,
    "scalar.max": torch.sym_max,
    "scalar.min": torch.sym_min,
}


def add(names: str, kind: Kind, *, onnx: str = "", training: str = "") -> None:
    """Add rows for ops given as "relu.default add.Tensor" (of the aten namespace unless they name another)."""
    for short in names.split():
        name = short if short.startswith(("scalar.", "gossamer.")) else f"aten.{short}"
        if name in _ROWS:
            raise ValueError(f"op {name} has two rows")
        _ROWS[name] = Op(name=name, kind=kind, onnx=onnx, training=training)


for _name in SCALAR_FUNCTIONS:
    add(_name, Scalar())


def op_of(node: Node) -> Op:
    """The row of a node's op; ops without a row are Opaque, so that nothing is ever guessed about them."""
    return _ROWS.get(node.op) or Op(name=node.op, kind=Opaque())


def rows() -> tuple[Op, ...]:
    """All rows."""
    return tuple(_ROWS.values())


@cache
def function(name: str) -> Callable[..., Any]:
    """The callable of an op name. Only pure aten ops and our own resolve; others raise UnsupportedOp, so files cannot run code."""
    if name in SCALAR_FUNCTIONS:
        return SCALAR_FUNCTIONS[name]
    namespace, _, rest = name.partition(".")
    base, _, overload = rest.partition(".")
    known = namespace == "aten" or (namespace == "gossamer" and name in _ROWS)
    packet = getattr(getattr(torch.ops, namespace), base, None) if known and base.isidentifier() else None
    found = getattr(packet, overload, None) if packet is not None and overload.isidentifier() else None
    if not isinstance(found, torch._ops.OpOverload) or not (name in _ROWS or _is_harmless(found)):
        raise UnsupportedOp(
            name, "", needed="execution", way_out="only pure aten ops can be part of a program; rewrite that part of the model"
        )
    return found


def _is_harmless(op: torch._ops.OpOverload) -> bool:
    """Without a row, an op must neither write to its arguments nor take text (which could be a file name)."""
    return not op._schema.is_mutable and not any("str" in str(argument.type) for argument in op._schema.arguments)


def bind(node: Node) -> dict[str, Arg]:
    """All arguments of an aten node by schema name, defaults filled in."""
    given = dict(node.kwargs)
    bound: dict[str, Arg] = {}
    for position, (name, by_name_only, default) in enumerate(_arguments(node.op)):
        if position < len(node.args) and not by_name_only:
            bound[name] = node.args[position]
        elif name in given:
            bound[name] = given[name]
        elif default is _REQUIRED:
            raise ValueError(f"{node.name}: {node.op} lacks argument {name}")
        else:
            bound[name] = default
    return bound


_REQUIRED = object()


@cache
def _arguments(op: str) -> tuple[tuple[str, bool, Arg], ...]:
    """Name, whether it goes by name only, and default of each argument."""
    found = []
    for argument in function(op)._schema.arguments:  # type: ignore[attr-defined]
        default = argument.default_value if argument.has_default_value() else _REQUIRED
        found.append((argument.name, argument.kwarg_only, tuple(default) if isinstance(default, list) else default))
    return tuple(found)


def with_arguments(node: Node, **changes: Arg) -> Node:
    """The same node with some arguments replaced by name."""
    bound = bind(node)
    unknown = changes.keys() - bound.keys()
    if unknown:
        raise ValueError(f"{node.op} has no argument {unknown}")
    bound.update(changes)
    positional = tuple(bound[name] for name, by_name_only, _ in _arguments(node.op) if not by_name_only)
    named = tuple((name, bound[name]) for name, by_name_only, _ in _arguments(node.op) if by_name_only)
    return replace(node, args=positional, kwargs=named)
