"""Running a float network over calibration data to see what its values hold. Memory does not grow with the samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gossamer.batches import Batches
from gossamer.errors import DataError
from gossamer.numerics.moments import Moments, add_moments, blocks_within, moments_of_patches
from gossamer.numerics.ranges import BY_TOKENS, range_methods
from gossamer.numerics.spread import Spread, check_spread, extremes
from gossamer.plan.columns import patches_at
from gossamer.plan.placement import Placement
from gossamer.plan.site import Layer
from gossamer.program.graph import Graph
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import Linear
from gossamer.program.program import Program
from gossamer.progress import OnProgress, Progress, silent

CHUNK_ELEMENTS = 5 * 2**16  # of the inputs of one run: values then stay in the processor's cache, which pays for more calls
WIDEST = 1536  # inputs of a layer's weight up to which second moments are collected: their cost grows with the square
SAMPLES_PER_COLUMN = 2  # input vectors that moments are taken from, for each number in one, spread over the data
FEWEST_SAMPLES = 256
TOKENS = 512  # that are kept of each value which linear layers read token by token, spread over the data
PENDING_ELEMENTS = 2**20  # input vectors of a layer that wait to be multiplied, since large products are faster


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What was seen: the spread of each root value, the moments of each layer's inputs, in how many samples, and, where ranges are chosen
    by them, tokens (n, K) that each linear layer reads."""

    spreads: Mapping[str, Spread]
    moments: Mapping[str, Moments]
    samples: int = 0
    tokens: Mapping[str, Tensor] = field(default_factory=dict)


def calibrate(
    program: Program,
    batches: Batches,
    placement: Placement,
    *,
    ranges: str,
    second_moments: bool,
    wide: Collection[str] = (),
    on_progress: OnProgress = silent,
) -> Calibration:
    """Run the network once over the data. `ranges` names a range method; `second_moments` serve second-order rounding.

    wide  nodes of layers with second moments however much they read: beyond WIDEST inputs in blocks of at most that many, for which
          a layer with K inputs needs 4 K * WIDEST bytes

    Raises: DataError for data that is empty, of the wrong shape, or never varies, and where the network makes NaN.
    """
    total = len(batches)
    expected = total * batches.first()[0][0].shape[0] or 128
    blocks = {
        layer.node: blocks_within(program.state[layer.weight][0].numel(), WIDEST)
        for layer in placement.layers
        if second_moments and (layer.node in wide or program.state[layer.weight][0].numel() <= WIDEST)
    }
    watch = _Watch(program, placement, ranges, blocks, expected)
    program = program.copy().eval()
    for parameter in program.parameters():
        parameter.data = _channels_last(parameter.data)
    with torch.inference_mode():
        for done, (inputs, _) in enumerate(batches):
            on_progress(Progress("calibrate", done, total))
            for chunk in chunks(program, inputs):
                watch.note_inputs(program, chunk)
                program.run(*chunk, observe=watch.observers)
    on_progress(Progress("calibrate", total, total))
    seen = watch.finish()
    _check(program, watch.inputs, seen.spreads)
    return seen


class _Watch:
    """Collects states while the network runs."""

    def __init__(self, program: Program, placement: Placement, ranges: str, blocks: Mapping[str, int], expected: int) -> None:
        self.spreads = {name: Spread() for group in placement.groups for name in group.roots}
        self.inputs: dict[str, Spread] = {}
        self.samples = 0
        self.moments: dict[str, Moments] = {}
        self._pending: dict[str, list[Tensor]] = {}
        self.observers: dict[str, Callable[[str, Any], None]] = {}
        self._graph: Graph = program.graph
        self._state = program.state
        self._blocks, self._expected = blocks, expected  # blocks of second moments by layer, where they are collected
        self._update = range_methods[ranges].update
        self._tokens: dict[str, list[Tensor]] | None = {} if ranges == BY_TOKENS else None
        self._random = torch.Generator().manual_seed(0)
        self._readers: dict[str, list[Layer]] = {}
        for layer in placement.layers:
            self._readers.setdefault(bind(self._graph.by_name[layer.node])["input"].name, []).append(layer)
        for name in {*self.spreads, *self._readers}:
            self.observers[name] = self._observe

    def note_inputs(self, program: Program, chunk: tuple[Tensor, ...]) -> None:
        """See how many samples there are, and whether they vary at all."""
        self.samples += chunk[0].shape[0] if chunk[0].dim() else 1
        for spec, tensor in zip(program.inputs, chunk, strict=False):
            if tensor.is_floating_point():
                self.inputs[spec.name] = extremes(self.inputs.get(spec.name, Spread()), tensor)

    def _observe(self, name: str, value: Any) -> None:
        if name in self.spreads:
            self.spreads[name] = self._update(self.spreads[name], value)
        for layer in self._readers.get(name, ()):
            pending = self._pending.setdefault(layer.node, [])
            patches = self._patches(layer, value)
            pending.append(patches)
            self._keep_tokens(layer, value, patches)
            if sum(part.numel() for part in pending) > PENDING_ELEMENTS:
                self._add(layer)

    def finish(self) -> Calibration:
        """What was seen."""
        for layer in [layer for layers in self._readers.values() for layer in layers]:
            self._add(layer)
        tokens = {name: torch.cat(parts) for name, parts in (self._tokens or {}).items()}
        return Calibration(self.spreads, self.moments, self.samples, tokens)

    def _keep_tokens(self, layer: Layer, value: Tensor, patches: Tensor) -> None:
        """Keep some of the vectors of a linear layer whose input has tokens: more axes than samples and features."""
        if self._tokens is None or value.dim() < 3 or not isinstance(op_of(self._graph.by_name[layer.node]).kind, Linear):
            return
        count = math.ceil(TOKENS * value.shape[0] / self._expected)
        self._tokens.setdefault(layer.node, []).append(patches[:count, 0, 0].to("cpu", copy=True))

    def _add(self, layer: Layer) -> None:
        pending = self._pending.pop(layer.node, [])
        if pending:
            blocks = self._blocks.get(layer.node)
            seen = moments_of_patches(torch.cat(pending), second=blocks is not None, blocks=blocks or 1)
            known = self.moments.get(layer.node)
            self.moments[layer.node] = seen if known is None else add_moments(known, seen)

    def _patches(self, layer: Layer, value: Tensor) -> Tensor:
        node = self._graph.by_name[layer.node]
        share = value.shape[0] / self._expected  # of all samples
        width = self._columns_of(layer) // self._blocks.get(layer.node, 1)
        limit = math.ceil(max(FEWEST_SAMPLES, SAMPLES_PER_COLUMN * width) * share)
        return patches_at(node, self._state[layer.weight], value, limit, self._random)

    def _columns_of(self, layer: Layer) -> int:
        return self._state[layer.weight][0].numel()


def chunks(program: Program, inputs: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """Parts of a batch; a network captured with a fixed batch gets all of it."""
    inputs = tuple(tensor.to(program.device) for tensor in inputs)
    number = inputs[0].shape[0] if inputs and inputs[0].dim() else 0
    size = max(1, CHUNK_ELEMENTS * number // max(1, sum(tensor.numel() for tensor in inputs)))
    splits = number > size and all(spec.shape and spec.shape[0] is None for spec in program.inputs)
    if not splits or any(tensor.shape[:1] != (number,) for tensor in inputs):
        yield tuple(map(_channels_last, inputs))
        return
    for start in range(0, number, size):
        yield tuple(_channels_last(tensor[start : start + size]) for tensor in inputs)


def _channels_last(tensor: Tensor) -> Tensor:
    """The same numbers, in the memory order in which layers and samples of positions are fastest."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _check(program: Program, inputs: Mapping[str, Spread], spreads: Mapping[str, Spread]) -> None:
    for name, seen in inputs.items():
        if seen.low == seen.high:
            raise DataError(f"the calibration data never varies (every number of {name!r} is {seen.low:g}); give real samples.")
    for name, seen in spreads.items():
        node = program.graph.by_name.get(name)
        place = f" of {node.module}" if node is not None and node.module else ""
        check_spread(seen, f"the value {name!r}{place}")
