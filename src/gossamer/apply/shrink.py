"""Removing channels for good: every parameter is sliced, every literal size rewritten, and the result proven.

Proof: the original with zeros wherever a layer reads a removed channel computes the same as the smaller network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.apply.mask import mask_channels
from gossamer.apply.sizes import resize
from gossamer.coupling import Analysis, analyse
from gossamer.coupling.kept import keep_table, kept_shape, state_keeps
from gossamer.coupling.labels import Pair
from gossamer.errors import ParityError, PlanError
from gossamer.plan.edits import KeepChannels, KeepHeads, StoreWeight
from gossamer.program.capture import relative_error
from gossamer.program.constants import fold_constants
from gossamer.program.program import Program
from gossamer.program.shapes import TensorMeta, infer_shapes

TOLERANCE = 1e-5  # relative error of the proof, float32


def shrink(program: Program, edits: tuple[KeepChannels | KeepHeads | StoreWeight, ...], attention: str = "width") -> Program:
    """Remove all channels that the edits do not keep, after storing computed weights. A smaller copy that shares no memory.

    attention  granularity of the groups that the edits name; "heads" where they are KeepHeads
    Raises: PlanError for a group that does not exist or has another size; ParityError when the proof fails.
    """
    stored = {edit.node for edit in edits if isinstance(edit, StoreWeight)}
    program = fold_constants(program, stored) if stored else program
    analysis = analyse(program, attention)
    table = keep_table(analysis, _kept_positions(analysis, [edit for edit in edits if not isinstance(edit, StoreWeight)]))
    if any(not table[units].any() for units in analysis.axes):
        raise PlanError("the plan removes every channel that some layer reads; keep at least one of each.")
    state = {name: _slice_state(tensor, analysis.factors.get(name, ()), table) for name, tensor in program.state.items()}
    nodes = tuple(resize(node, analysis, table) for node in program.graph.nodes)
    masks = {name: _slice_state(mask, analysis.factors.get(name, ()), table) for name, mask in program.masks.items()}
    small = program.with_graph(replace(program.graph, nodes=nodes), state, masks=masks)
    _check_shapes(small, analysis, table)
    _check_equals_masked(small, mask_channels(program, analysis, table))
    return small


def _kept_positions(analysis: Analysis, edits: Iterable[KeepChannels | KeepHeads]) -> Mapping[str, np.ndarray]:
    sizes = {group.name: group.size for group in analysis.groups}
    for edit in edits:
        if sizes.get(edit.group) != edit.size:
            raise PlanError(f"the plan keeps channels of group {edit.group!r} of size {edit.size}, which this network does not have.")
    return {edit.group: np.array(edit.keep) for edit in edits}


def _slice_state(tensor: Tensor, factors: tuple[Tensor, ...], table: np.ndarray) -> Tensor:
    small = tensor.detach()
    for axis, keep in state_keeps(factors, table).items():
        small = small.index_select(axis, torch.from_numpy(keep.nonzero()[0]).to(small.device))
    small = small.clone(memory_format=torch.contiguous_format)
    return nn.Parameter(small, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else small


def _check_shapes(small: Program, analysis: Analysis, table: np.ndarray) -> None:
    """Every value of the smaller network has the shape that its labels predict."""
    try:
        metas = infer_shapes(small, batch=1)
    except RuntimeError as error:
        raise PlanError(
            f"after the removal the network does not run ({str(error).splitlines()[0]}); please report this network."
        ) from error
    for name, labels in analysis.values.items():
        meta = metas.get(name)
        if not isinstance(labels, (Tensor, Pair)) or not isinstance(meta, TensorMeta) or not meta.numel:  # nothing has no labels
            continue
        if meta.shape != kept_shape(labels, table):
            raise PlanError(
                f"after the removal {name} has shape {meta.shape}, expected {kept_shape(labels, table)}; please report this network."
            )


def _check_equals_masked(small: Program, masked: Program) -> None:
    """On one input, since the masked network is as slow as the original; the smaller one runs it as the first of two."""
    two = small.example_inputs(batch=2)
    one = tuple(value[:1] if None in spec.shape else value for spec, value in zip(small.inputs, two, strict=True))
    was, small.training, masked.training = small.training, False, False  # what runs reads; eval() would walk all containers
    with torch.no_grad():
        expected = masked(*one)
        got = small(*two)
        if got.shape != expected.shape:  # a free batch axis
            got = got[:1] if got.shape == (2, *expected.shape[1:]) else small(*one)
    small.training = was
    error = relative_error(got, expected)
    if not error <= TOLERANCE:
        raise ParityError("outputs with channels removed and with the same channels masked", error, TOLERANCE)
