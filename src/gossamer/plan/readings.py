"""What the layers behind each group do with its units, from runs of the network: evidence for criteria that need inputs alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.batches import Batches
from gossamer.coupling import Analysis
from gossamer.errors import DataError
from gossamer.numerics.moments import moments_of
from gossamer.numerics.selection import Reading, main_directions
from gossamer.plan.columns import columns_at, has_columns
from gossamer.plan.evidence import parts_that_fit
from gossamer.program.graph import Node, Ref
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import Convolution
from gossamer.program.program import Program

MOST_INPUTS = 1024  # of the network: second moments hardly change beyond
POSITIONS = 10  # sampled per input, at least
MOST_SAMPLES = 4096  # input vectors per layer
MOST_COLUMNS = 2304  # inputs per layer; units of layers with more are cut to their main directions
MEMORY_BYTES = 2**29  # of input vectors that are held at once; groups beyond wait for another run

Inputs = Sequence[tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class _Reader:
    """A layer that reads a group: for each block of a grouped convolution, the columns of each unit, (U, T), -1 for none."""

    node: Node
    columns: tuple[np.ndarray, ...]


def group_readings(program: Program, analysis: Analysis, batches: Batches, seed: int) -> Iterator[tuple[str, list[Reading]]]:
    """Name and readings of each group that layers read; over its units that may go, in their order.

    A depthwise convolution is no reader: it loses the channel together with its input, so the layer behind it tells. At most
    1024 inputs are run. Raises: DataError where the data makes NaN or infinite values.
    """
    readers = _readers(program, analysis)
    inputs = list(_first(program, batches))
    count = sum(batch[0].shape[0] for batch in inputs)
    nodes = {reader.node.name: reader.node for entries in readers.values() for reader in entries}
    wanted = {name: _samples(program, node, count) for name, node in nodes.items()}
    chunk: list[str] = []
    held: set[str] = set()
    for group, entries in readers.items():
        more = held | {reader.node.name for reader in entries}
        if chunk and sum(4 * wanted[name] * _length(program, nodes[name]) for name in more) > MEMORY_BYTES:
            yield from _of_chunk(program, chunk, readers, inputs, wanted, seed)
            chunk, more = [], {reader.node.name for reader in entries}
        chunk.append(group)
        held = more
    yield from _of_chunk(program, chunk, readers, inputs, wanted, seed)


def _readers(program: Program, analysis: Analysis) -> dict[str, list[_Reader]]:
    """The layers that read each group."""
    group_of, unit_of = np.full(analysis.atom_count, -1), np.zeros(analysis.atom_count, dtype=np.int64)
    for number, group in enumerate(analysis.groups):
        free = group.units[~group.fixed]
        group_of[free], unit_of[free] = number, np.arange(len(free))
    found: dict[str, list[_Reader]] = {}
    for node in program.graph.nodes:
        weight = bind(node)["weight"] if has_columns(node) else None
        if not isinstance(weight, Ref) or weight.name not in analysis.readers or _is_depthwise(node, program.state[weight.name]):
            continue
        labels = analysis.readers[weight.name]
        blocks = _blocks(node)
        rows = [labels[block * (labels.shape[0] // blocks)].reshape(-1).numpy() for block in range(blocks)]
        for number in np.unique(np.concatenate([group_of[row] for row in rows])).tolist():
            if number >= 0:
                group = analysis.groups[number]
                columns = [_columns_of(np.where(group_of[row] == number, unit_of[row], -1), int((~group.fixed).sum())) for row in rows]
                found.setdefault(group.name, []).append(_Reader(node, tuple(columns)))
    return {group.name: found[group.name] for group in analysis.groups if group.name in found}


def _columns_of(units: np.ndarray, count: int) -> np.ndarray:
    """Unit of each column, -1 for none -> columns of each unit, (count, T), padded with -1."""
    places = np.flatnonzero(units >= 0)
    order = places[np.argsort(units[places], kind="stable")]
    counts = np.bincount(units[order], minlength=count)
    table = np.full((count, int(counts.max(initial=0))), -1)
    table[np.arange(table.shape[1]) < counts[:, None]] = order
    return table


def _blocks(node: Node) -> int:
    return int(bind(node)["groups"]) if isinstance(op_of(node).kind, Convolution) else 1


def _is_depthwise(node: Node, weight: Tensor) -> bool:
    return _blocks(node) > 1 and weight.shape[1] == 1


def _length(program: Program, node: Node) -> int:
    """Numbers per sample of what a layer reads."""
    return _blocks(node) * program.state[bind(node)["weight"].name][0].numel()


def _samples(program: Program, node: Node, count: int) -> int:
    return min(MOST_SAMPLES, max(POSITIONS * count, 3 * program.state[bind(node)["weight"].name][0].numel()))


def _first(program: Program, batches: Batches) -> Iterator[tuple[Tensor, ...]]:
    count = 0
    for inputs, _ in parts_that_fit(program, batches):
        yield inputs
        count += inputs[0].shape[0]
        if count >= MOST_INPUTS:
            return


def _of_chunk(
    program: Program,
    chunk: Sequence[str],
    readers: Mapping[str, Sequence[_Reader]],
    inputs: Inputs,
    wanted: Mapping[str, int],
    seed: int,
) -> Iterator[tuple[str, list[Reading]]]:
    nodes = {reader.node.name: reader.node for group in chunk for reader in readers[group]}
    columns = _gather(program, list(nodes.values()), inputs, wanted, seed)
    for group in chunk:
        with torch.inference_mode(False), torch.no_grad():
            made = [
                _readings(reader, program.state[bind(reader.node)["weight"].name], columns[reader.node.name]) for reader in readers[group]
            ]
        yield group, [reading for entries in made for reading in entries]


def _gather(program: Program, nodes: Sequence[Node], inputs: Inputs, wanted: Mapping[str, int], seed: int) -> dict[str, Tensor]:
    """Input vectors of each layer without their means, (G, K, S)."""
    count = sum(batch[0].shape[0] for batch in inputs)
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        readers.setdefault(bind(node)["input"].name, []).append(node)
    found: dict[str, list[Tensor]] = {node.name: [] for node in nodes}
    number = 0

    def watch(name: str, value: Any) -> None:
        for node in readers[name]:
            limit = math.ceil(wanted[node.name] * inputs[number][0].shape[0] / count)
            generator = torch.Generator().manual_seed(seed + number)
            found[node.name].append(columns_at(node, program.state[bind(node)["weight"].name], value, limit, generator))

    copy = program.copy().eval()
    with torch.inference_mode(False), torch.no_grad():
        for batch in inputs:
            copy.run(*batch, observe=dict.fromkeys(readers, watch))
            number += 1
        made = {}
        for name in list(found):
            columns = torch.cat(found.pop(name), 2).float()
            made[name] = columns - columns.mean(2, keepdim=True)
            if not torch.isfinite(made[name]).all():
                raise DataError(f"the scoring data makes NaN or infinite values at {name!r}; clean the data or the weights.")
    return made


def _readings(reader: _Reader, weight: Tensor, columns: Tensor) -> list[Reading]:
    """One reading a block, all divided by the size of the layer's outputs; none of a layer whose outputs never change."""
    matrices = weight.detach().float().reshape(len(columns), -1, columns.shape[1])
    energy = float((matrices @ columns).double().square().sum()) / columns.shape[2]
    if not math.isfinite(energy):
        raise DataError(f"the scoring data makes NaN or infinite values at {reader.node.name!r}; clean the data or the weights.")
    if energy == 0:
        return []
    return [
        _reading(table, matrix / energy**0.5, x) for table, matrix, x in zip(reader.columns, matrices, columns, strict=True) if table.size
    ]


def _reading(table: np.ndarray, matrix: Tensor, x: Tensor) -> Reading:
    """Shapes: table (U, T), matrix (O, K), x (K, S)."""
    there = torch.from_numpy(table >= 0).to(x.device)
    index = torch.from_numpy(table.clip(min=0)).to(x.device)
    inputs = x[index] * there.unsqueeze(2)  # (U, T, S)
    inputs, own = main_directions(inputs, matrix[:, index] * there, max(1, MOST_COLUMNS // len(table)))
    units, taps, samples = inputs.shape
    second = moments_of(inputs.reshape(1, units * taps, samples), second=True).covariance(centred=False)
    return Reading(own, second.reshape(units, taps, units, taps))
