"""Moving scale between the channels of a float network before it is quantized: the table of methods and what they get to see."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from gossamer.batches import Batches
from gossamer.coupling.rescale import ChannelChange, rescaled
from gossamer.coupling.scale_rules import find_scaling
from gossamer.coupling.scaling import Scaling
from gossamer.errors import ConfigError
from gossamer.numerics.packing import pack_floats, unpack_floats
from gossamer.plan.edits import Edit, FoldBatchNorm, ScaleChannels, ScaleInput
from gossamer.plan.equalization_sites import Observed, Reader, Site, find_inputs, find_sites, observe
from gossamer.plan.plan import Frozen, Plan
from gossamer.program.fold import fold_batch_norms, foldable_batch_norms
from gossamer.program.program import Program, check_float
from gossamer.program.scale_inputs import scale_inputs
from gossamer.progress import OnProgress, Progress, silent
from gossamer.registry import Registry

Move = ScaleChannels | ScaleInput
ROWS = 64  # outputs of a layer by which its error is judged


class Coder(Protocol):
    """How weights and inputs of layers will be rounded, in float."""

    def weight(self, node: str, weight: Tensor) -> Tensor:
        """The weight of a layer at the numbers that its codes hold."""

    def columns(self, columns: Tensor) -> Tensor:
        """Input vectors (G, K, S) of a layer at the numbers that the codes of its input hold."""


@dataclass(frozen=True, eq=False)
class EqualizationJob:
    """What a method gets to see.

    program   the float network with batch norms folded
    coded     the layers that will be quantized
    samples   calibration data, a little of it, or None
    coder     how their weights and inputs will be rounded; None where nothing is quantized
    trial     the error of the network's outputs once a float program is quantized, for methods that compare whole networks
    centred   whether the mean of a layer's error will be taken out of its bias
    """

    program: Program
    coded: Collection[str] = ()
    samples: Batches | None = None
    coder: Coder | None = None
    trial: Callable[[Program], float] | None = None
    centred: bool = False
    on_progress: OnProgress = field(default=silent)

    @cached_property
    def scaling(self) -> Scaling:
        """Which channels can be scaled."""
        return find_scaling(self.program)

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """The same, by what is scaled together and read by layers."""
        return tuple(site for site in find_sites(self.program, self.scaling) if site.readers)

    @cached_property
    def inputs(self) -> tuple[Site, ...]:
        """Values read by quantized linear layers whose channels nothing upstream can scale; a multiplication in front of those can."""
        return find_inputs(self.program, self.scaling, self.coded)

    @cached_property
    def seen(self) -> Observed:
        """What layers read, from a few samples."""
        if self.samples is None:
            raise ConfigError("calibration", None, "given for this equalization, which looks at values")
        return observe(self.program, (*self.sites, *self.inputs), self.samples, self.coded)

    def coded_readers(self, site: Site) -> tuple[Reader, ...]:
        """The readers of a site whose error can be measured."""
        return tuple(reader for reader in site.readers if reader.node in self.seen.columns)

    def error(self, site: Site, factor: Tensor, shift: Tensor | None = None) -> float:
        """Sum over the readers of a site of their output's squared error beside its energy. Shapes: (C,) for the site's classes."""
        return sum(self._reader_error(site, reader, factor, shift) for reader in self.coded_readers(site))

    def _reader_error(self, site: Site, reader: Reader, factor: Tensor, shift: Tensor | None) -> float:
        assert self.coder is not None, "nothing is quantized"
        columns = self.seen.columns[reader.node]
        weight = self.program.state[reader.weight].detach()
        groups = columns.shape[0]
        rows = weight.reshape(groups, weight.shape[0] // groups, -1)

        def spread(numbers: Tensor, fixed: float) -> Tensor:
            channels = site.of_channels(reader, numbers.to(torch.float64), fixed).to(weight.dtype).to(weight.device)
            return channels.reshape(groups, -1).repeat_interleave(rows.shape[2] * groups // len(channels), 1)

        if groups == 1 and rows.shape[1] > ROWS:  # outputs are alike, and each has scales of its own
            rows = rows[:, torch.linspace(0, rows.shape[1] - 1, ROWS, device=rows.device).long()]
        factors = spread(factor, 1.0)
        shifts = torch.zeros_like(factors) if shift is None else spread(shift, 0.0)
        scaled = rows / factors.unsqueeze(1)
        coded = self.coder.weight(reader.node, scaled.reshape(-1, *weight.shape[1:])).reshape(rows.shape)
        values = self.coder.columns(columns * factors.unsqueeze(2) + shifts.unsqueeze(2))
        wanted = rows @ columns
        difference = coded @ values - scaled @ shifts.unsqueeze(2) - wanted
        if self.centred:
            difference = difference - difference.mean(2, keepdim=True)
        return float(difference.square().sum() / wanted.square().sum().clamp_min(torch.finfo(wanted.dtype).tiny))


@dataclass(frozen=True, slots=True)
class Equalization:
    """One method: run(job) -> edits. `data`: whether it needs calibration samples."""

    run: Callable[[EqualizationJob], tuple[Move, ...]]
    data: bool = True


equalizations: Registry[Equalization] = Registry("equalization", home="gossamer.plan.equalization_methods")
equalizations.add("none")(Equalization(lambda job: (), data=False))


def kept_scales(job: EqualizationJob) -> Iterator[Frozen]:
    """The layers, norms and embeddings none of whose channels can be scaled, and why."""
    for name, reason in job.scaling.made_fixed.items():
        if not job.scaling.made[name].any():
            node = job.program.graph.by_name[name]
            yield Frozen(f"{node.module or node.name} (scale)", f"its channels keep their scale: {reason}")


def equalized(job: EqualizationJob, name: str) -> tuple[Program, tuple[Move, ...]]:
    """The program with scale moved by a method, and the edits that do it. Raises ConfigError for an unknown method."""
    method = equalizations[name]
    job.on_progress(Progress("equalize", 0, 1, name))
    edits = method.run(job)
    job.on_progress(Progress("equalize", 1, 1, name))
    return (with_moves(job.program, edits, job.scaling) if edits else job.program), edits


def plan_equalization(program: Program, method: str = "cross-layer") -> Plan:
    """Plan to move scale between channels of a float network, without codes: what it computes stays the same.

    method  a name in `equalizations` that looks at weights alone: "cross-layer"

    Raises: PlanError for a program that is quantized; ConfigError for an unknown method, and one that needs a format of codes.
    """
    check_float(program)
    if equalizations[method].data:
        raise ConfigError("method", method, "'cross-layer', which looks at weights alone; the others are for Scheme(equalization=)")
    folds = foldable_batch_norms(program)
    job = EqualizationJob(fold_batch_norms(program.copy().eval(), folds))
    _, edits = equalized(job, method)
    every: tuple[Edit, ...] = (*(FoldBatchNorm(name) for name in folds), *edits)
    return Plan(every, program.digest, weights_digest=program.weights_digest(), frozen=tuple(kept_scales(job)))


def with_moves(program: Program, edits: Sequence[Move], scaling: Scaling | None = None) -> Program:
    """A float program with the edits made; `scaling` is what find_scaling says of it, where it is known. Raises: PlanError."""
    changes = channel_changes(edit for edit in edits if isinstance(edit, ScaleChannels))
    factors = {edit.node: unpack_floats(edit.factors) for edit in edits if isinstance(edit, ScaleInput)}
    moved = rescaled(program, changes, scaling) if changes else program
    return scale_inputs(moved, factors) if factors else moved


def channel_changes(edits: Iterable[ScaleChannels]) -> tuple[ChannelChange, ...]:
    """The numbers in edits. Raises PlanError for damaged ones."""
    return tuple(
        ChannelChange(
            edit.value,
            unpack_floats(edit.factors).to(torch.float64),
            unpack_floats(edit.shifts).to(torch.float64) if edit.shifts else None,
        )
        for edit in edits
    )


def edits_of(scaling: Scaling, changes: Iterable[tuple[Site, Tensor, Tensor | None]]) -> tuple[Move, ...]:
    """Edits for factors and shifts of whole sites, each class named once. Shapes: (C,) for a site's classes."""
    changes = tuple(changes)
    ours = tuple(change for change in changes if not change[0].inserted)
    inserted = (ScaleInput(reader.node, pack_floats(factors)) for site, factors, _ in changes if site.inserted for reader in site.readers)
    return (*_channel_edits(scaling, ours), *inserted)


def _channel_edits(scaling: Scaling, changes: Iterable[tuple[Site, Tensor, Tensor | None]]) -> Iterator[ScaleChannels]:
    factor, shift = torch.ones(scaling.classes, dtype=torch.float64), torch.zeros(scaling.classes, dtype=torch.float64)
    for site, factors, shifts in changes:
        places = torch.from_numpy(site.classes)
        factor[places] = factors.to("cpu", torch.float64)
        if shifts is not None:
            shift[places] = shifts.to("cpu", torch.float64)
    for value, classes in scaling.made.items():
        places = torch.from_numpy(classes)
        factors, shifts = factor[places], shift[places]
        if bool((factors != 1).any() or shifts.any()):
            yield ScaleChannels(value, pack_floats(factors), pack_floats(shifts) if bool(shifts.any()) else "")
        factor[places], shift[places] = 1.0, 0.0
