"""Leaving out whole blocks: what read the block's end reads what it started from, and what nothing needs is dropped.

Proof: the network of full depth with the branch multiplied by zero computes the same as the one without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from gossamer.coupling.blocks import branch_of, bypass
from gossamer.errors import ParityError, PlanError
from gossamer.plan.edits import RemoveBlock
from gossamer.program.capture import relative_error
from gossamer.program.graph import Graph, Node, Ref
from gossamer.program.program import Program
from gossamer.program.shapes import TensorMeta, infer_shapes

TOLERANCE = 1e-5  # relative error of the proof, float32


def remove_blocks(program: Program, edits: Sequence[RemoveBlock]) -> Program:
    """Leave out the blocks. Returns a copy that shares no memory and holds only the weights that are still used.

    Raises: PlanError for values that this network does not have, or that are not of one shape; ParityError when the proof fails.
    """
    _check_edits(program, edits)
    copy = program.copy()
    small = copy.with_graph(bypass(copy.graph, {edit.node: edit.source for edit in edits}))
    _check_equals_silenced(small, silence(program, edits))
    return small


def silence(program: Program, edits: Sequence[RemoveBlock]) -> Program:
    """The network of full depth in which each block adds nothing to what it starts from: source + 0 * branch."""
    blocks = {edit.node: edit.source for edit in edits}
    nodes: list[Node] = []
    for node in program.graph.nodes:
        source = blocks.get(node.name)
        if source is None:
            nodes.append(node)
            continue
        branch = branch_of(node, source)
        if branch is None:  # a layer: what leaves it goes the same way
            branch = f"{node.name}.whole"
            nodes.append(replace(node, name=branch))
        silent = Node(f"{node.name}.silent", "aten.mul.Tensor", (Ref(branch), 0.0))
        nodes += [silent, Node(node.name, "aten.add.Tensor", (Ref(source), Ref(silent.name)))]
    copy = program.copy()
    return copy.with_graph(Graph(program.graph.inputs, tuple(nodes), program.graph.outputs))


def _check_edits(program: Program, edits: Sequence[RemoveBlock]) -> None:
    order = {name: place for place, name in enumerate([*program.graph.inputs, *program.graph.by_name])}
    metas = infer_shapes(program, batch=1)
    for edit in edits:
        for name in (edit.node, edit.source):
            if name not in order:
                raise PlanError(
                    f"the plan removes the block from {edit.source!r} to {edit.node!r}, but this network has no value {name!r}."
                )
        end, start = metas[edit.node], metas[edit.source]
        if order[edit.source] >= order[edit.node] or edit.node in program.graph.inputs:
            raise PlanError(f"the plan removes a block that ends with {edit.node!r} before it starts with {edit.source!r}.")
        if not isinstance(end, TensorMeta) or not isinstance(start, TensorMeta) or (end.shape, end.dtype) != (start.shape, start.dtype):
            raise PlanError(
                f"the block from {edit.source!r} to {edit.node!r} changes the shape of what it takes, so it cannot be left out; where "
                "channels were removed before, leave blocks out first, in a plan of their own."
            )


def _check_equals_silenced(small: Program, silenced: Program) -> None:
    inputs = small.example_inputs(batch=2)
    was = small.training
    with torch.no_grad():
        got, expected = small.eval()(*inputs), silenced.eval()(*inputs)
    small.train(was)
    pairs = zip(got, expected, strict=True) if isinstance(got, tuple) else [(got, expected)]
    error = max(relative_error(one, other) for one, other in pairs)
    if not error <= TOLERANCE:
        raise ParityError("outputs with blocks left out and with the same blocks silenced", error, TOLERANCE)
