"""Reshapes that say nothing new, taken out of a drafted graph: ONNX Runtime runs each of them as a kernel call of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gossamer.targets.onnx.draft import Array, Draft, DraftNode


def join_reshapes(draft: Draft) -> None:
    """Let each Reshape read what the Reshape before it reads, wherever its shape can be said without that one. Edits the draft in place.

    What is then read by nobody is left to Draft.without_dead_code.
    """
    made: dict[str, DraftNode] = {}
    for place, node in enumerate(draft.nodes):
        if node.op != "Reshape":
            continue
        before = made.get(node.inputs[0])
        shape = _own_shape(draft, node)
        if before is not None and shape is not None:
            node = replace(node, inputs=(before.inputs[0], draft.constant(shape)))
            draft.nodes[place] = node
        made[node.outputs[0]] = node


def _own_shape(draft: Draft, node: DraftNode) -> Array | None:
    """The shape as a constant that takes no size from the input, None where there is none: a size kept (0) becomes the rest (-1)."""
    shape = draft.initializers.get(node.inputs[1])
    if shape is None or node.attributes:  # allowzero: 0 is a size
        return None
    kept = shape == 0
    if kept.sum() + (shape == -1).sum() > 1:
        return None
    return np.where(kept, -1, shape)
