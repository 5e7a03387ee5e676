"""Classes of groups that play the same part in a network: their scores can be compared, others' cannot.

Source: Fang et al. 2024 (isomorphic pruning), arXiv:2407.04616.
"""

from __future__ import annotations

from collections.abc import Mapping

from gossamer.coupling import Analysis
from gossamer.plan.members import weight_members
from gossamer.program.graph import Ref
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import Scalar
from gossamer.program.program import Program


def isomorphic_classes(program: Program, analysis: Analysis) -> Mapping[str, int]:
    """Group name -> number of its class. Groups are isomorphic when the same ops, as often, make and read their channels."""
    roles = _roles(program)
    members = weight_members(program, analysis)
    numbers: dict[tuple[object, ...], int] = {}
    classes = {}
    for group in analysis.groups:
        signature = tuple(sorted((*roles.get(member.name, ()), member.axis) for member in members[group.name]))
        classes[group.name] = numbers.setdefault((group.unit, signature), len(numbers))
    return classes


def _roles(program: Program) -> Mapping[str, tuple[str, str]]:
    """For each parameter the op that reads it first, and as what."""
    roles: dict[str, tuple[str, str]] = {}
    for node in program.graph.nodes:
        if isinstance(op_of(node).kind, Scalar):  # arithmetic on sizes and parts of tuples: no parameters, no schema
            continue
        for argument, value in bind(node).items():
            if isinstance(value, Ref) and value.name not in roles:
                roles[value.name] = (node.op, argument)
    return roles
