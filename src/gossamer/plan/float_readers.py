"""Values that a target computes in float and reads both on codes and in float: the codes are of a copy, so that floats stay what they are."""

from __future__ import annotations

from collections.abc import Iterator

from gossamer.plan.placement import Placement
from gossamer.plan.site import site_of
from gossamer.plan.spec import TargetSpec
from gossamer.program.graph import Graph
from gossamer.program.ops import op_of
from gossamer.program.program import Program


def values_read_both_ways(program: Program, placement: Placement, spec: TargetSpec) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(value, the nodes that read it on codes) of each value with codes that only a rounding makes, and that something reads in float.

    Where a kernel makes the codes, floats would cost a kernel more; there they stay what the codes stand for.
    """
    site = site_of(program, spec)
    made = {result for node in site.graph.nodes if node.name in placement.integer for result in site.results(node)}
    ends = (*site.graph.inputs, *site.graph.outputs)  # their codes may be asked for
    found: list[tuple[str, tuple[str, ...]]] = []
    for group in placement.groups:
        for name in group.values:
            users = site.graph.users.get(name, ())
            on_codes = {user.name for user in users if user.name in placement.integer and name in site.inputs(user)}
            if name not in {*made, *ends} and 0 < len(on_codes) < len(users):
                found += _by_name(program.graph, name, on_codes)
    return tuple(found)


def _by_name(graph: Graph, name: str, readers: set[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The readers of a value by the name under which they read it: its own, or that of a dropout behind it."""
    users = graph.users.get(name, ())
    direct = tuple(user.name for user in users if user.name in readers)
    if direct:
        yield name, direct
    for user in users:
        if op_of(user).onnx == "Identity" and user.uses[0] == name:
            yield from _by_name(graph, user.name, readers)
