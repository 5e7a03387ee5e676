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
from gossamer.apply.proof import check_removal
from gossamer.apply.quantize import check_float
from gossamer.apply.sizes import resize
from gossamer.coupling import Analysis, analyse
from gossamer.coupling.kept import keep_table, state_keeps
from gossamer.errors import PlanError
from gossamer.plan.edits import KeepChannels, KeepHeads, StoreWeight
from gossamer.program.constants import fold_constants
from gossamer.program.program import Program

_PART = 2**18  # elements that are sliced at a time


def shrink(program: Program, edits: tuple[KeepChannels | KeepHeads | StoreWeight, ...], attention: str = "width") -> Program:
    """Remove all channels that the edits do not keep, after storing computed weights. A smaller copy that shares no memory.

    attention  granularity of the groups that the edits name; "heads" where they are KeepHeads
    Raises: PlanError for a group that does not exist or has another size; ParityError when the proof fails.
    """
    check_float(program)
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
    check_removal(small, mask_channels(program, analysis, table), analysis, table)
    return small


def _kept_positions(analysis: Analysis, edits: Iterable[KeepChannels | KeepHeads]) -> Mapping[str, np.ndarray]:
    sizes = {group.name: group.size for group in analysis.groups}
    for edit in edits:
        if sizes.get(edit.group) != edit.size:
            raise PlanError(f"the plan keeps channels of group {edit.group!r} of size {edit.size}, which this network does not have.")
    return {edit.group: np.array(edit.keep) for edit in edits}


def _slice_state(tensor: Tensor, factors: tuple[Tensor, ...], table: np.ndarray) -> Tensor:
    keeps = state_keeps(factors, table)
    places = {axis: torch.from_numpy(keep.nonzero()[0]).to(tensor.device) for axis, keep in keeps.items()}
    small = _pick(tensor.detach(), places) if places else tensor.detach().clone(memory_format=torch.contiguous_format)
    return nn.Parameter(small, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else small


def _pick(tensor: Tensor, places: Mapping[int, Tensor]) -> Tensor:
    """What stays along each axis; along the first a few positions at a time, so that no large copy lies between."""
    first, *others = places
    if not others:
        return tensor.index_select(first, places[first]).contiguous()
    shape = [len(places[axis]) if axis in places else size for axis, size in enumerate(tensor.shape)]
    small = tensor.new_empty(shape)
    count = max(1, _PART * tensor.shape[first] // max(tensor.numel(), 1))
    for start in range(0, shape[first], count):
        part = tensor.index_select(first, places[first][start : start + count])
        for axis in others[:-1]:
            part = part.index_select(axis, places[axis])
        torch.index_select(part, others[-1], places[others[-1]], out=small.narrow(first, start, part.shape[first]))
    return small
