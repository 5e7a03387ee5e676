"""Sums that a layer's kernel computes along with the layer: which values it then has to read as codes."""

from __future__ import annotations

from collections.abc import Collection

from gossamer.plan.spec import TargetSpec
from gossamer.program.graph import Graph, Node
from gossamer.program.ops import bind, op_of


def residual_inputs(graph: Graph, spec: TargetSpec, layers: Collection[str], coded: Collection[str]) -> set[str]:
    """Values that layers on codes add to their float results, where the sum is read as codes: without codes of their own, the kernel
    could not hand out codes either. Where both sides of a sum are such results, the one with fewer ops before it is the added one.

    layers  nodes of layers that run on codes
    coded   values that have codes so far
    Source: NVIDIA TensorRT documentation, "Q/DQ Layer-Placement Recommendations" (residual inputs of skip connections).
    """
    depth = _depths(graph)
    known = set(coded)
    found: set[str] = set()
    growing = True
    while growing:
        growing = False
        for node in graph.nodes:
            added = _added(graph, node, layers, depth)
            if added and added not in known and _read_as_codes(graph, spec, node.name, known):
                found.add(added)
                known.add(added)
                growing = True
    return found


def _added(graph: Graph, node: Node, layers: Collection[str], depth: dict[str, int]) -> str:
    """The value that is added to a layer's own result; "" where the node is no such sum."""
    sides = tuple(dict.fromkeys(node.uses))
    if op_of(node).onnx != "Add" or len(sides) != 2 or bind(node).get("alpha", 1) != 1:
        return ""
    if any(side in graph.state_names for side in sides):
        return ""
    own = [side for side in sides if side in layers and graph.sole_user(side) is not None]
    if not own:
        return ""
    main = max(own, key=lambda side: depth[side])
    return sides[1] if main == sides[0] else sides[0]


def _read_as_codes(graph: Graph, spec: TargetSpec, name: str, coded: Collection[str]) -> bool:
    """Whether a value, or what activations and moves make of it, has codes."""
    passing = (spec.fused_ops | spec.transparent_ops) - {"Add"}
    return name in coded or any(
        op_of(user).onnx in passing and _read_as_codes(graph, spec, user.name, coded) for user in graph.users.get(name, ())
    )


def _depths(graph: Graph) -> dict[str, int]:
    """How many ops a value is away from the inputs, at most."""
    depth = dict.fromkeys((*graph.inputs, *graph.state_names), 0)
    for node in graph.nodes:
        depth[node.name] = 1 + max((depth[name] for name in node.uses), default=0)
    return depth
