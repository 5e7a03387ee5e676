"""Copies of values that may get codes while the value itself stays float for whatever else reads it.

In a transformer the result of a layer norm is read by linear layers, on codes, and by a residual addition, in float: without a copy the addition
would read rounded numbers, and the target would turn codes back into floats for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from gossamer.errors import PlanError
from gossamer.program.graph import Node, Ref, rename_uses
from gossamer.program.ops.own import COPY
from gossamer.program.program import Program

Copies = Sequence[tuple[str, tuple[str, ...]]]  # value, and the nodes that read its copy


def with_copies(program: Program, copies: Copies) -> Program:
    """The program in which the named nodes read a copy of a value, called VALUE_coded; it computes the same, to the bit.

    Raises: PlanError for a value that the network does not have, and for a node that does not read it.
    """
    if not copies:
        return program
    taken = {*program.graph.inputs, *program.graph.by_name, *program.graph.state_names}
    copy_of: dict[str, Node] = {}
    changed: dict[str, dict[str, str]] = {}  # node -> value -> its copy
    for value, readers in copies:
        for reader in readers:
            node = program.graph.by_name.get(reader)
            if node is None or value not in node.uses:
                raise PlanError(f"the plan gives {reader!r} a copy of {value!r}, which it does not read in this network.")
        name = f"{value}_coded"
        while name in taken:
            name += "_"
        taken.add(name)
        maker = program.graph.by_name.get(value)
        copy_of[value] = Node(name, COPY, (Ref(value),), module=maker.module if maker else "", source=maker.source if maker else "")
        for reader in readers:
            changed.setdefault(reader, {})[value] = name
    nodes = [copy_of[name] for name in program.graph.inputs if name in copy_of]
    for node in program.graph.nodes:
        nodes.append(rename_uses(node, changed.get(node.name, {})))
        nodes += [copy_of[node.name]] if node.name in copy_of else []
    return program.with_graph(replace(program.graph, nodes=tuple(nodes)))


def copies_in(program: Program) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The copies that a program has: what with_copies was given."""
    for node in program.graph.nodes:
        if node.op == COPY:
            yield node.uses[0], tuple(user.name for user in program.graph.users.get(node.name, ()))
