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
    schema = function(node.op)._schema  # type: ignore[attr-defined]
    given = dict(node.kwargs)
    bound: dict[str, Arg] = {}
    for position, argument in enumerate(schema.arguments):
        if position < len(node.args) and not argument.kwarg_only:
            bound[argument.name] = node.args[position]
        elif argument.name in given:
            bound[argument.name] = given[argument.name]
        elif argument.has_default_value():
            default = argument.default_value
            bound[argument.name] = tuple(default) if isinstance(default, list) else default
        else:
            raise ValueError(f"{node.name}: {node.op} lacks argument {argument.name}")
    return bound


def with_arguments(node: Node, **changes: Arg) -> Node:
    """The same node with some arguments replaced by name."""
    bound = bind(node)
    unknown = changes.keys() - bound.keys()
    if unknown:
        raise ValueError(f"{node.op} has no argument {unknown}")
    arguments = function(node.op)._schema.arguments  # type: ignore[attr-defined]
    bound.update(changes)
    positional = tuple(bound[a.name] for a in arguments if not a.kwarg_only)
    named = tuple((a.name, bound[a.name]) for a in arguments if a.kwarg_only)
    return replace(node, args=positional, kwargs=named)
