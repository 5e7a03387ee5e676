"""Codes for embedding tables: each row has a scale of its own, and only the rows that are picked become floats."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch

from gossamer.numerics.ranges import choose_weight_quantizer
from gossamer.plan.edits import Edit, QuantizeValue
from gossamer.plan.spec import TargetSpec
from gossamer.program.graph import Node
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import Embedding
from gossamer.program.program import Program

SMALLEST = 2**15  # numbers in a table that is worth the two operators that read it


def table_edits(program: Program, spec: TargetSpec, skip: Collection[str] = ()) -> Iterator[Edit]:
    """Codes for the tables of a float program that only embeddings read; one scale for each row, from its largest number.

    skip  embedding nodes whose tables have no codes. Nothing for a target that has no such formats.
    """
    if not spec.table_formats:
        return
    tables: dict[str, list[Node]] = {}
    for node in program.graph.nodes:
        if isinstance(op_of(node).kind, Embedding):
            tables.setdefault(bind(node)["weight"].name, []).append(node)
    for name, nodes in tables.items():
        weight = program.state.get(name)
        alone = len(program.graph.users[name]) == len(nodes) and name not in program.graph.outputs
        asked = any(node.name in skip for node in nodes)
        if weight is not None and alone and not asked and weight.dtype == torch.float32 and weight.numel() >= SMALLEST:
            yield QuantizeValue(name, choose_weight_quantizer(weight.detach(), spec.table_formats[0], "min-max"))
