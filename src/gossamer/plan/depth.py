"""Choosing which whole blocks go: each is judged by what its absence does, on calibration data. Changes nothing."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from gossamer.batches import Batches, as_batches
from gossamer.coupling import labels as lab
from gossamer.coupling.analysis import analyse, flat_labels
from gossamer.coupling.blocks import Block, bypass, find_blocks
from gossamer.errors import ConfigError, PlanError, nearest
from gossamer.plan.edits import RemoveBlock
from gossamer.plan.plan import Frozen, Plan
from gossamer.program.program import Program
from gossamer.progress import OnProgress, Progress, silent

MEASURES = ("output_change", "divergence", "influence")


def measure_blocks(
    program: Program, batches: Any, *, measure: str = "output_change", kind: str = "branches", on_progress: OnProgress = silent
) -> Mapping[str, float]:
    """What the absence of each block would do, by block name, in order of execution; larger matters more.

    batches  data in any form that gossamer takes; targets are not looked at
    measure  "output_change"  norm2(y' - y) / norm2(y) over all outputs y of the data, y' without the block; one run per block
             "divergence"     mean of KL(softmax(y) || softmax(y')), in nats; one run per block
             "influence"      1 - mean cosine of what the block starts from and what it ends with, over the channels of each
                              position; one run for all blocks (Men et al. 2024, ShortGPT, arXiv:2403.03853)
    kind     "branches" or "layers", see coupling.blocks.find_blocks

    Raises: ConfigError for an unknown measure or kind; DataError for data that cannot be used.
    """
    _check_measure(measure)
    blocks = find_blocks(program, kind)
    return dict(zip([block.name for block in blocks], _changes(program, blocks, {}, batches, measure, on_progress), strict=True))


def plan_depth(
    program: Program,
    batches: Any,
    remove: int | float,
    *,
    measure: str = "output_change",
    kind: str = "branches",
    skip: Collection[str] = (),
    only: Collection[str] = (),
    on_progress: OnProgress = silent,
) -> Plan:
    """Decide which blocks are left out: the one whose absence does least, then the next, measured again without the first.

    remove         how many blocks go, or which share of them, in (0, 1)
    measure, kind  see measure_blocks
    skip, only     names of blocks that stay, or of the only ones that may go ("*" in a name matches anything)

    Raises: ConfigError for a count or share outside its limits, an unknown measure or kind; PlanError for a name that no block
    has (suggests the nearest), and when there are fewer blocks than shall go; DataError for data that cannot be used.
    """
    _check_measure(measure)
    blocks = find_blocks(program, kind)
    kept = _kept_as_asked(blocks, skip, only)
    free = [block for block in blocks if block.name not in kept]
    count = _count(remove, len(free), kind)
    around: dict[str, str] = {}
    for step in range(count):
        there = bypass(program.graph, around).by_name
        free = [block for block in free if block.node in there and block.node not in around]
        if not free:
            raise PlanError(f"only {step} of the {count} blocks can go: the others are parts of these; remove fewer.")
        changes = _changes(program, free, around, batches, measure, silent)
        least = free[min(range(len(free)), key=changes.__getitem__)]
        around[least.node] = least.source
        on_progress(Progress("depth", step + 1, count, least.name))
    frozen = tuple(Frozen(name, reason) for name, reason in kept.items())
    return Plan(tuple(RemoveBlock(node, source) for node, source in around.items()), program.digest, frozen=frozen)


def _check_measure(measure: str) -> None:
    if measure not in MEASURES:
        raise ConfigError("measure", measure, f"one of {', '.join(MEASURES)} ({nearest(measure, MEASURES)})")


def _count(remove: int | float, available: int, kind: str) -> int:
    if isinstance(remove, bool) or not isinstance(remove, (int, float)) or remove <= 0 or (isinstance(remove, float) and remove >= 1):
        raise ConfigError("remove", remove, "a count of blocks, at least 1, or a share in (0, 1)")
    count = remove if isinstance(remove, int) else round(remove * available)
    if count > available or not available:
        raise PlanError(f"the network has {available} {kind} that may go, fewer than {max(count, 1)}; ask for fewer or another kind.")
    return count


def _kept_as_asked(blocks: Sequence[Block], skip: Collection[str], only: Collection[str]) -> dict[str, str]:
    """Name of each block that stays -> why."""
    for what, names in (("skip", skip), ("only", only)):
        if isinstance(names, str):
            raise ConfigError(what, names, "a list of block names")
        for name in names:
            if not any(fnmatchcase(block.name, name) for block in blocks):
                raise PlanError(f"{what} names {name!r}, which is no block; {nearest(name, [block.name for block in blocks])}")
    kept = {}
    for block in blocks:
        if any(fnmatchcase(block.name, name) for name in skip):
            kept[block.name] = "skipped as asked"
        elif only and not any(fnmatchcase(block.name, name) for name in only):
            kept[block.name] = "not among the blocks asked for"
    return kept


def _changes(
    program: Program, blocks: Sequence[Block], around: Mapping[str, str], batches: Any, measure: str, on_progress: OnProgress
) -> list[float]:
    """What the absence of each block does to the network in which `around` is bypassed already."""
    data = as_batches(batches, what="calibration", batch_size=program.at_once())
    with torch.inference_mode():
        if measure == "influence":
            return _influences(program, blocks, around, data)
        return _output_changes(program, blocks, around, data, measure, on_progress)


def _output_changes(
    program: Program, blocks: Sequence[Block], around: Mapping[str, str], data: Batches, measure: str, on_progress: OnProgress
) -> list[float]:
    """Always compared with the whole network, so that changes add up over steps."""
    whole = program.with_graph(program.graph).eval()
    without = [program.with_graph(bypass(program.graph, {**around, block.node: block.source})).eval() for block in blocks]
    totals = [0.0] * len(blocks)
    weight = 0.0
    for number, (inputs, _) in enumerate(data):
        inputs = tuple(tensor.to(program.device) for tensor in inputs)
        expected = _outputs(whole(*inputs))
        weight += sum(_energy(out) if measure == "output_change" else out.numel() / out.shape[_channels(out)] for out in expected)
        for place, other in enumerate(without):
            pairs = zip(expected, _outputs(other(*inputs)), strict=True)
            totals[place] += sum(_energy(got - out) if measure == "output_change" else _divergence(out, got) for out, got in pairs)
        on_progress(Progress("blocks", number + 1, len(data)))
    shares = [total / weight if weight else total for total in totals]
    found = [math.sqrt(share) if measure == "output_change" else share for share in shares]
    return [value if value == value else math.inf for value in found]  # a network that then overflows needs the block


def _outputs(result: Any) -> list[Tensor]:
    return [out for out in (result if isinstance(result, tuple) else (result,)) if out.is_floating_point()]


def _energy(tensor: Tensor) -> float:
    return float(tensor.to(torch.float64).square().sum())


def _channels(tensor: Tensor) -> int:
    """The axis of classes or channels: the second of images and volumes, else the last."""
    return 1 if tensor.dim() >= 4 else -1


def _divergence(expected: Tensor, got: Tensor) -> float:
    """Sum of KL(softmax(expected) || softmax(got)) over all positions."""
    axis = _channels(expected)
    p, q = (torch.log_softmax(out.to(torch.float64), dim=axis) for out in (expected, got))
    return float((p.exp() * (p - q)).sum())


def _influences(program: Program, blocks: Sequence[Block], around: Mapping[str, str], data: Batches) -> list[float]:
    """1 - mean cosine of each block's two ends."""
    here = program.with_graph(bypass(program.graph, around)).eval()
    ends = [(_resolved(block.source, around), block.node) for block in blocks]
    axes = list(_feature_axes(program, [node for _, node in ends]))
    seen: dict[str, Tensor] = {}
    totals = [0.0] * len(blocks)
    counts = [0] * len(blocks)
    watched = {name for pair in ends for name in pair}
    for inputs, _ in data:
        here.run(*(tensor.to(program.device) for tensor in inputs), observe=dict.fromkeys(watched, seen.__setitem__))
        for place, ((start, end), axis) in enumerate(zip(ends, axes, strict=True)):
            cosine = torch.cosine_similarity(seen[start].to(torch.float64), seen[end].to(torch.float64), dim=axis)
            totals[place] += float((1 - cosine).sum())
            counts[place] += cosine.numel()
    return [total / count for total, count in zip(totals, counts, strict=True)]


def _resolved(name: str, around: Mapping[str, str]) -> str:
    while name in around:
        name = around[name]
    return name


def _feature_axes(program: Program, names: Sequence[str]) -> Iterator[int]:
    """The axis of each value along which its channels lie, as coupling knows it."""
    values = analyse(program).values
    for name in names:
        labels = flat_labels(values[name])[0]
        axes = lab.varying(labels)
        yield axes[-1] if axes else _channels(labels)
