"""How much of a network pruning can reach."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from gossamer.coupling import labels as lab
from gossamer.coupling.analysis import Analysis, flat_labels
from gossamer.program.constants import fold_weights
from gossamer.program.cost import node_macs
from gossamer.program.graph import Node
from gossamer.program.program import Program


def prunable_macs_share(program: Program, analysis: Analysis) -> float:
    """Share of the multiply-accumulates, in [0, 1], in ops of which at least one axis can be pruned: of what they read,
    of their weight, or of their result. 0 for a network without any. Raises UnsupportedOp for an op with no cost rule."""
    program = fold_weights(program)
    free = np.zeros(analysis.atom_count, dtype=bool)
    for group in analysis.groups:
        free[group.units[~group.fixed]] = True
    counted = [(node_macs(node, analysis.metas), node) for node in program.graph.nodes]
    total = sum(macs for macs, _ in counted)
    reached = sum(macs for macs, node in counted if macs and _touches(node, analysis, free))
    return reached / total if total else 0.0


def _touches(node: Node, analysis: Analysis, free: np.ndarray) -> bool:
    carried = [labels for name in (*node.uses, node.name) for labels in _labels(analysis, name)]
    return any(bool(free[lab.essence(labels)].any()) for labels in carried)


def _labels(analysis: Analysis, name: str) -> tuple[Tensor, ...]:
    return tuple(flat_labels(analysis.values.get(name, analysis.factors.get(name))))
