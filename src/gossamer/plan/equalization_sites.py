"""Where scale can move: channels that are scaled together, the layers that read them, and what those read."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gossamer.batches import Batches
from gossamer.coupling.scaling import Scaling
from gossamer.errors import DataError
from gossamer.plan.calibrate import chunks
from gossamer.plan.columns import columns_at, has_columns
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import Convolution, Linear, StatisticsNorm
from gossamer.program.program import Program

SAMPLES = 64  # that are looked at; more change the choice of factors little
VECTORS = 384  # of each layer's input


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads channels: `places` holds, for each channel of its input, the place in the site's classes, or -1."""

    node: str
    weight: str
    source: str
    axis: int
    places: Tensor


@dataclass(frozen=True, eq=False)
class Site:
    """Channels that are scaled together: what makes them, their classes (C,), and the layers that read them.

    movable  whether all of them can be shifted, too
    norm     whether a norm over features makes them, and nothing else
    inserted  whether it takes a multiplication in front of the readers; `values` is then what they read
    """

    values: tuple[str, ...]
    classes: np.ndarray
    readers: tuple[Reader, ...]
    movable: bool
    norm: bool
    inserted: bool = False

    def of_channels(self, reader: Reader, numbers: Tensor, fixed: float) -> Tensor:
        """From one number for each class to one for each channel of what a reader reads."""
        return torch.cat([numbers, numbers.new_tensor([fixed])])[reader.places]

    def largest(self, found: Iterable[tuple[Reader, Tensor]], *, least: float = 0.0) -> Tensor:
        """The largest number of each class, from those of the readers' channels; not below `least`. Shape (C,)."""
        best = torch.full((len(self.classes) + 1,), least, dtype=torch.float64)
        for reader, numbers in found:
            places = torch.where(reader.places < 0, len(self.classes), reader.places)
            best.scatter_reduce_(0, places, numbers.to("cpu", torch.float64), "amax")
        return best[:-1]


def find_sites(program: Program, scaling: Scaling) -> tuple[Site, ...]:
    """All channels that can be scaled, by what ties them together, in order of execution."""
    leader: dict[str, str] = {}
    home: dict[int, str] = {}

    def find(name: str) -> str:
        while leader.get(name, name) != name:
            name = leader[name]
        return name

    for name, classes in scaling.made.items():
        for number in np.unique(classes[classes != 0]).tolist():
            leader[find(name)] = find(home.setdefault(number, name))
    members: dict[str, list[str]] = {}
    for name, classes in scaling.made.items():
        if classes.any():
            members.setdefault(find(name), []).append(name)
    return tuple(_site(program, scaling, tuple(names)) for names in members.values())


def find_inputs(program: Program, scaling: Scaling, coded: Collection[str]) -> tuple[Site, ...]:
    """Values whose channels all keep their factor, each with the `coded` linear layers that read it and share their weight with none."""
    readers: dict[str, list[Reader]] = {}
    for name, classes in scaling.read.items():
        node = program.graph.by_name[name]
        bound = bind(node)
        alone = isinstance(op_of(node).kind, Linear) and program.graph.sole_user(bound["weight"].name) is not None
        if name in coded and alone and not classes.any():
            made = Reader(name, bound["weight"].name, bound["input"].name, -1, torch.arange(len(classes)))
            readers.setdefault(made.source, []).append(made)
    return tuple(
        Site((source,), np.arange(len(found[0].places)), tuple(found), movable=False, norm=False, inserted=True)
        for source, found in readers.items()
    )


def _site(program: Program, scaling: Scaling, names: tuple[str, ...]) -> Site:
    together = np.unique(np.concatenate([scaling.made[name] for name in names]))
    classes = together[together != 0]
    readers = []
    for node, read in scaling.read.items():
        found = np.isin(read, classes)
        if found.any():
            bound = bind(program.graph.by_name[node])
            axis = 1 if isinstance(op_of(program.graph.by_name[node]).kind, Convolution) else -1
            places = torch.from_numpy(np.where(found, np.searchsorted(classes, np.where(found, read, classes[0])), -1))
            readers.append(Reader(node, bound["weight"].name, bound["input"].name, axis, places))
    nodes = [program.graph.by_name[name] for name in names]
    norm = all(isinstance(op_of(node).kind, StatisticsNorm) for node in nodes)
    return Site(names, classes, tuple(readers), bool(scaling.movable[classes].all()), norm)


@dataclass(frozen=True, eq=False)
class Observed:
    """What was seen: of each value the lowest, highest and mean size of its channels, (C,); input vectors of layers, (G, K, S)."""

    low: Mapping[str, Tensor]
    high: Mapping[str, Tensor]
    size: Mapping[str, Tensor]
    columns: Mapping[str, Tensor]


def observe(program: Program, sites: Iterable[Site], samples: Batches, coded: Collection[str]) -> Observed:
    """Run a float program over samples and look at what the readers of sites read; vectors only for `coded` layers.

    Raises: DataError where a value is NaN or infinite.
    """
    readers = [reader for site in sites for reader in site.readers]
    watch = _Watch(program, readers, coded)
    program = program.copy().eval()
    total = sum(inputs[0].shape[0] if inputs[0].dim() else 1 for inputs, _ in samples)
    with torch.inference_mode():
        for inputs, _ in samples:
            for chunk in chunks(program, inputs):
                watch.limit = math.ceil(VECTORS * (chunk[0].shape[0] if chunk[0].dim() else 1) / total)
                program.run(*chunk, observe=dict.fromkeys(watch.sources, watch.see))
    return watch.finish()


class _Watch:
    """Collects while the network runs."""

    def __init__(self, program: Program, readers: list[Reader], coded: Collection[str]) -> None:
        self.sources: dict[str, list[Reader]] = {}
        for reader in readers:
            known = self.sources.setdefault(reader.source, [])
            if all(other.node != reader.node for other in known):
                known.append(reader)
        self.limit = VECTORS
        self._program, self._coded = program, coded
        self._random = torch.Generator().manual_seed(0)
        self._low: dict[str, Tensor] = {}
        self._high: dict[str, Tensor] = {}
        self._size: dict[str, Tensor] = {}
        self._count: dict[str, int] = {}
        self._columns: dict[str, list[Tensor]] = {}

    def see(self, name: str, value: Tensor) -> None:
        readers = self.sources[name]
        rows = value.detach().movedim(readers[0].axis, 0).flatten(1)
        low, high, size = rows.amin(1), rows.amax(1), rows.abs().sum(1, dtype=torch.float64)
        self._low[name] = torch.minimum(self._low.get(name, low), low)
        self._high[name] = torch.maximum(self._high.get(name, high), high)
        self._size[name] = self._size.get(name, torch.zeros_like(size)) + size
        self._count[name] = self._count.get(name, 0) + rows.shape[1]
        for reader in readers:
            node = self._program.graph.by_name[reader.node]
            if reader.node in self._coded and has_columns(node):
                weight = self._program.state[reader.weight]
                self._columns.setdefault(reader.node, []).append(columns_at(node, weight, value, self.limit, self._random))

    def finish(self) -> Observed:
        for name in self.sources:
            found = self._low.get(name)
            if found is None or not bool(torch.isfinite(found).all() and torch.isfinite(self._high[name]).all()):
                raise DataError(f"the calibration data makes NaN or infinite values at {name!r}; clean the data or the weights.")
        return Observed(
            self._low,
            self._high,
            {name: size / self._count[name] for name, size in self._size.items()},
            {name: torch.cat(parts, 2) for name, parts in self._columns.items()},
        )


def few_samples(program: Program, batches: Batches, count: int = SAMPLES) -> Batches:
    """The first `count` samples; whole batches for a program that was captured with a fixed batch."""
    free = all(spec.shape and spec.shape[0] is None for spec in program.inputs)
    taken: list[tuple[tuple[Tensor, ...], None]] = []
    done = 0
    for inputs, _ in batches:
        taken.append((tuple(tensor[: count - done] for tensor in inputs) if free else inputs, None))
        done += taken[-1][0][0].shape[0] if free else 1
        if done >= count:
            break
    return Batches(taken, what=batches.what)


def input_axis_weight(program: Program, reader: Reader) -> Tensor:
    """The largest |weight| that each channel of a reader's input meets. Shape (channels,)."""
    node = program.graph.by_name[reader.node]
    weight = program.state[reader.weight].detach().abs()
    kind = op_of(node).kind
    if isinstance(kind, Convolution) and kind.transposed:
        return weight.flatten(1).amax(1)
    groups = bind(node)["groups"] if isinstance(kind, Convolution) else 1
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).amax((1, 3)).reshape(-1)
