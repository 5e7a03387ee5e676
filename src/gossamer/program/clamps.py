"""Ops that only clamp their input: ReLU and its kin."""

from __future__ import annotations

from gossamer.program.graph import Node
from gossamer.program.ops import bind


def clip_limits(node: Node) -> tuple[float | None, float | None] | None:
    """(low, high) of an op that only clamps to numbers, None for any other op; a limit that is absent is None."""
    match node.op.split(".")[1]:
        case "relu":
            return 0.0, None
        case "relu6":
            return 0.0, 6.0
        case "hardtanh":
            bound = bind(node)
            return bound["min_val"], bound["max_val"]
        case "clamp" | "clamp_min" | "clamp_max":
            bound = bind(node)
            limits = bound.get("min"), bound.get("max")
            if all(limit is None or isinstance(limit, (int, float)) for limit in limits):
                return limits
    return None
