"""What to change in a network that has lost channels so that its outputs come back. Needs inputs, no labels; changes nothing.

The smaller network runs once, node by node over all data, so that each layer is repaired on what the repaired layers before it
give. What a layer should give comes from the original.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.batches import Batches
from gossamer.coupling import analyse
from gossamer.coupling.kept import keep_table, state_keeps
from gossamer.errors import ConfigError, DataError, PlanError
from gossamer.numerics.reconstruct import bias_only, refit_by_holdout
from gossamer.plan.columns import has_columns, layer_columns
from gossamer.plan.edits import KeepChannels, KeepHeads
from gossamer.plan.plan import Frozen, Plan
from gossamer.program.constants import fold_weights
from gossamer.program.cost import peak_memory_bytes
from gossamer.program.execute import DEVICE, TRAINING, run_steps
from gossamer.program.graph import Node, Ref
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import BatchNorm, Convolution, Linear
from gossamer.program.program import Program
from gossamer.program.shapes import infer_shapes
from gossamer.progress import OnProgress, Progress, silent

METHODS = ("least_squares", "mean", "batch_norm")
POSITIONS = 10  # sampled per input, at least
TIMES = 10  # samples for each number that a layer reads, where the data has them
MOST_SAMPLES = 4096  # input vectors per layer
Keeps = Mapping[str, Mapping[int, np.ndarray]]  # state tensor -> axis -> which positions stay, for axes that lose some
MEMORY_BYTES = 2**30  # of values that are held at once; data beyond it is not read


@dataclass(frozen=True, eq=False)
class Repair:
    """New state for a smaller network.

    state   new values of weights and buffers, by name
    shifts  per layer node, what to add to its bias (O,); a layer without one gets one
    left    layers that were left as they are, and why
    samples how many inputs were used
    """

    method: str
    state: Mapping[str, Tensor]
    shifts: Mapping[str, Tensor]
    left: tuple[Frozen, ...]
    samples: int


def plan_repair(
    small: Program, original: Program, plan: Plan, batches: Batches, method: str = "least_squares", *, on_progress: OnProgress = silent
) -> Repair:
    """Find the repair of `small`, which is `original` with the channels removed that `plan` does not keep.

    "least_squares"  new weights and bias for each layer behind a removal (He et al. 2017, arXiv:1707.06168); a layer with a
                     mask is solved row by row over the weights it keeps, zeros stay (Frantar and Alistarh 2022, arXiv:2208.11580)
    "mean"           new biases only: the mean of what each layer gives becomes what it was
    "batch_norm"     running statistics of all batch norms, moved as the removal moved those of the data

    Inputs are used up to 1 GiB of values held at once. Raises: ConfigError for an unknown method; PlanError when `small` is not
    `original` with that plan applied; DataError for data that is empty, or not finite, or makes NaN.
    """
    if method not in METHODS:
        raise ConfigError("method", method, f"one of {', '.join(METHODS)}")
    plan.check_fits(original)
    original = fold_weights(original)
    keeps = _keeps(small, original, plan)
    inputs = _inputs(small, original, batches)
    walk = _Walk(small, inputs)
    total = len(small.graph.nodes)
    if method == "batch_norm":
        norms, left = _norms(original)
        repairers: dict[str, Callable[[_Walk, Node], None]] = dict.fromkeys(norms, _Statistics(original, norms, keeps, inputs).repair)
    else:
        layers, left = _layers(small, original)
        targets = _Targets(original, layers, keeps, inputs, small.masks)
        repairers = {name: targets.repairer(method) for name in layers}
    for done, node in enumerate(small.graph.nodes):
        on_progress(Progress("repair", done, total))
        if node.name in repairers:
            repairers[node.name](walk, node)
        walk.step()
    on_progress(Progress("repair", total, total))
    return Repair(method, walk.changed, walk.shifts, left, sum(batch[0].shape[0] for batch in inputs))


class _Walk:
    """The smaller network's values over all data, up to the node that comes next."""

    def __init__(self, program: Program, inputs: Sequence[tuple[Tensor, ...]]) -> None:
        self.changed: dict[str, Tensor] = {}
        self.shifts: dict[str, Tensor] = {}
        self._steps = program.steps
        self._next = 0
        state = {name: tensor.detach() for name, tensor in program.state.items()} | {TRAINING: False, DEVICE: program.device}
        self.values: list[dict[str, Any]] = [
            {**state, **{spec.name: tensor for spec, tensor in zip(program.inputs, batch, strict=True)}} for batch in inputs
        ]
        self._shift: Tensor | None = None

    def read(self, name: str) -> list[Any]:
        """A value for each batch."""
        return [values[name] for values in self.values]

    def change(self, name: str, tensor: Tensor) -> None:
        """Give a weight or buffer its new value."""
        self.changed[name] = tensor = tensor.to(self.values[0][name].dtype)
        for values in self.values:
            values[name] = tensor

    def shift(self, node: Node, shift: Tensor) -> None:
        """Add to the bias of the node that comes next."""
        self.shifts[node.name] = shift
        self._shift = shift if isinstance(op_of(node).kind, Linear) else shift[(slice(None), *[None] * (self._dims(node) - 2))]

    def _dims(self, node: Node) -> int:
        return int(self.values[0][bind(node)["weight"].name].dim())

    def step(self) -> None:
        """Compute the next node."""
        step = self._steps[self._next : self._next + 1]
        self._next += 1
        shift, self._shift = self._shift, None

        def add(name: str, value: Any) -> Any:
            return None if shift is None else value + shift.to(value.dtype)

        with torch.inference_mode():
            for values in self.values:
                run_steps(step, values, add)


class _Targets:
    """What the original's layers give at sampled positions, restricted to the outputs that are kept."""

    def __init__(
        self,
        original: Program,
        layers: Sequence[str],
        keeps: Keeps,
        inputs: Sequence[tuple[Tensor, ...]],
        masks: Mapping[str, Tensor],
    ) -> None:
        self._masks = masks
        self._graph = original.graph
        self._state = original.state
        self._keeps = keeps
        self._count = sum(batch[0].shape[0] for batch in inputs)
        self._found: dict[str, list[Tensor]] = {name: [] for name in layers}
        readers: dict[str, list[str]] = {}
        for name in layers:
            readers.setdefault(bind(self._graph.by_name[name])["input"].name, []).append(name)
        self._batch = 0

        def watch(value_name: str, value: Tensor) -> None:
            for name in readers[value_name]:
                self._found[name].append(self._outputs(self._graph.by_name[name], value))

        copy = original.copy().eval()
        with torch.inference_mode():
            for number, batch in enumerate(inputs):
                self._batch = number
                copy.run(*batch, observe=dict.fromkeys(readers, watch))

    def _columns(self, node: Node, weight: Tensor, value: Tensor, number: int) -> Tensor:
        whole = self._state[bind(node)["weight"].name]
        wanted = min(MOST_SAMPLES, max(POSITIONS * self._count, TIMES * whole[0].numel()))
        return layer_columns(node, weight, value, limit=math.ceil(wanted * value.shape[0] / self._count), seed=number)

    def _outputs(self, node: Node, value: Tensor) -> Tensor:
        """W X of what is kept, (O', samples); the bias comes back as a shift of it."""
        weight = self._state[bind(node)["weight"].name].detach()
        columns = self._columns(node, weight, value, self._batch)
        rows = (weight.reshape(len(columns), -1, columns.shape[1]) @ columns).flatten(0, 1)
        keep = self._keeps[bind(node)["weight"].name].get(0)
        return rows if keep is None else rows[torch.from_numpy(np.flatnonzero(keep)).to(rows.device)]

    def repairer(self, method: str) -> Callable[[_Walk, Node], None]:
        """A function that repairs one layer."""

        def run(walk: _Walk, node: Node) -> None:
            name = bind(node)["weight"].name
            weight = walk.values[0][name]
            with torch.inference_mode(False), torch.no_grad():
                columns = [
                    self._columns(node, weight, value, number).clone() for number, value in enumerate(walk.read(bind(node)["input"].name))
                ]
                x, y = torch.cat(columns, 2), torch.cat(self._found.pop(node.name), 1).clone()
                matrix = weight.clone().reshape(len(x), -1, x.shape[1])
                y = y.reshape(len(x), matrix.shape[1], -1)
                if not torch.isfinite(x).all() or not torch.isfinite(y).all():
                    raise DataError(f"the calibration data makes NaN or infinite values at {node.name!r}; clean the data or the weights.")
                if method == "least_squares":
                    keep = self._masks[name].reshape(matrix.shape) if name in self._masks else None
                    new, shift = refit_by_holdout(matrix, x, y, keep)
                    walk.change(name, new.reshape(weight.shape))
                else:
                    _, shift = bias_only(matrix, x, y)
                walk.shift(node, shift.flatten())

        return run


class _Statistics:
    """Mean and variance of what each batch norm of the original reads, restricted to the channels that are kept.

    The statistics that a network was trained with are seldom those of the calibration data, so they are not replaced by them:
    mean' = mean + m - m0, variance' = variance * v / v0, where m and v are the data's in the smaller network, m0 and v0 in the
    original. Where the original's statistics are the data's, this is re-estimation.
    """

    def __init__(self, original: Program, norms: Sequence[str], keeps: Keeps, inputs: Sequence[tuple[Tensor, ...]]) -> None:
        self._graph = original.graph
        self._keeps = keeps
        seen: dict[str, list[Tensor]] = {bind(self._graph.by_name[name])["input"].name: [] for name in norms}
        copy = original.copy().eval()
        with torch.inference_mode():
            for batch in inputs:
                copy.run(*batch, observe=dict.fromkeys(seen, lambda name, value: seen[name].append(_sums(value))))
        self._before = {name: _mean_and_variance(parts) for name, parts in seen.items()}

    def repair(self, walk: _Walk, node: Node) -> None:
        """Move the statistics of one batch norm."""
        bound = bind(node)
        mean, variance = _mean_and_variance([_sums(value) for value in walk.read(bound["input"].name)])
        mean_before, variance_before = self._before[bind(self._graph.by_name[node.name])["input"].name]
        keep = self._keeps.get(bound["running_mean"].name, {}).get(0)
        if keep is not None:
            kept = torch.from_numpy(np.flatnonzero(keep)).to(mean.device)
            mean_before, variance_before = mean_before[kept], variance_before[kept]
        old_mean, old_variance = (walk.values[0][bound[name].name].to(torch.float64) for name in ("running_mean", "running_var"))
        epsilon = bound["eps"]
        walk.change(bound["running_mean"].name, old_mean + mean - mean_before)
        walk.change(bound["running_var"].name, (old_variance + epsilon) * (variance + epsilon) / (variance_before + epsilon) - epsilon)


def _sums(value: Tensor) -> Tensor:
    """Count, sum and sum of squares of each channel, (3, C) float64."""
    rows = value.detach().to(torch.float64).movedim(1, 0).flatten(1)
    return torch.stack([torch.full_like(rows[:, 0], rows.shape[1]), rows.sum(1), rows.square().sum(1)])


def _mean_and_variance(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    count, total, squares = torch.stack(list(parts)).sum(0)
    mean = total / count
    return mean, (squares / count - mean.square()).clamp_min(0)


def _norms(original: Program) -> tuple[list[str], tuple[Frozen, ...]]:
    """Batch norms with statistics of their own, and those that share them."""
    norms = [node for node in original.graph.nodes if isinstance(op_of(node).kind, BatchNorm)]
    means = {node.name: bind(node)["running_mean"] for node in norms}
    own = {name: original.graph.sole_user(mean.name) is not None for name, mean in means.items() if isinstance(mean, Ref)}
    shared = tuple(Frozen(name, "its statistics serve several places") for name, alone in own.items() if not alone)
    return [name for name, alone in own.items() if alone], shared


def _keeps(small: Program, original: Program, plan: Plan) -> Keeps:
    """What stays of each state tensor. Checks that `small` has the shapes of the plan."""
    edits = [edit for edit in plan.edits if isinstance(edit, (KeepChannels, KeepHeads))]
    analysis = analyse(original, "heads" if any(isinstance(edit, KeepHeads) for edit in edits) else "width")
    sizes = {group.name: group.size for group in analysis.groups}
    if any(sizes.get(edit.group) != edit.size for edit in edits):
        raise PlanError("the plan removes heads and makes heads narrower; make one plan for each, and repair after each.")
    table = keep_table(analysis, {edit.group: np.array(edit.keep) for edit in edits})
    before, after = original.state, small.state
    keeps = {name: state_keeps(analysis.factors.get(name, ()), table) for name in before}
    same = [(node.name, node.op) for node in small.graph.nodes] == [(node.name, node.op) for node in original.graph.nodes]
    for name, tensor in before.items():
        expected = tuple(int(keeps[name][axis].sum()) if axis in keeps[name] else size for axis, size in enumerate(tensor.shape))
        same = same and name in after and tuple(after[name].shape) == expected
    if not same:
        raise PlanError("the smaller network is not the original with this plan applied; repair it before anything else is changed.")
    return keeps


def _layers(small: Program, original: Program) -> tuple[list[str], tuple[Frozen, ...]]:
    """Layers whose inputs the removal changes, or that have new zeros, and those of them that cannot be repaired."""
    shrunk = {name for name, tensor in original.state.items() if tensor.shape != small.state[name].shape}
    before = original.masks
    zeroed = {name for name, mask in small.masks.items() if name not in before or not torch.equal(before[name], mask)}
    touched: set[str] = set()
    layers, left = [], []
    times: dict[int, int] = {}
    for node in small.graph.nodes:
        for name in set(node.uses) & set(small.state):
            times[id(small.state[name])] = times.get(id(small.state[name]), 0) + 1
    for node in small.graph.nodes:
        behind = any(name in touched or name in zeroed for name in node.uses)
        if behind or any(name in shrunk for name in node.uses):
            touched.add(node.name)
        weight = bind(node)["weight"] if isinstance(op_of(node).kind, (Convolution, Linear)) and behind else None
        if weight is None:
            continue
        if not has_columns(node):
            left.append(Frozen(node.name, "transposed convolutions are not repaired"))
            continue
        if not isinstance(weight, Ref) or weight.name not in small.state or times[id(small.state[weight.name])] > 1:
            left.append(Frozen(node.name, "its weight is computed, or serves several layers"))
        else:
            layers.append(node.name)
    return layers, tuple(left)


def _inputs(small: Program, original: Program, batches: Batches) -> list[tuple[Tensor, ...]]:
    """Checked batches, as many as fit into memory while all of them are worked on at once."""
    peak = max(peak_memory_bytes(original, infer_shapes(original)), 1)
    wanted = max(1, MEMORY_BYTES // peak)
    found: list[tuple[Tensor, ...]] = []
    count = 0
    for inputs, _ in batches:
        batch = tuple(spec.check(tensor.to(small.device)) for spec, tensor in zip(small.inputs, inputs, strict=True))
        fixed = any(not spec.shape or spec.shape[0] is not None for spec in small.inputs)
        found.append(batch if fixed else tuple(tensor[: wanted - count] for tensor in batch))
        count += found[-1][0].shape[0]
        if count >= wanted:
            break
    return found
