"""Measuring what each coded tensor does: alone, in the outputs, and all together, value by value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gossamer.batches import Batches
from gossamer.numerics.affine import fake_quantize
from gossamer.numerics.distance import decibels
from gossamer.program.execute import Step
from gossamer.program.graph import Ref
from gossamer.program.ops import bind
from gossamer.program.program import Program
from gossamer.program.shapes import TensorMeta, infer_shapes
from gossamer.progress import OnProgress, Progress
from gossamer.search.diagnosis.damage import DamageMeter
from gossamer.search.diagnosis.evidence import Evidence, Item, Watch, coded_weight, weight_evidence
from gossamer.search.diagnosis.findings import VALUE, Damage
from gossamer.search.diagnosis.twin import Inputs, Replay, sample_chunks, steps_behind

MEMORY_BYTES = 2**28  # for the kept values of one part of the samples
MOST_AT_ONCE = 16


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What was measured of one item."""

    item: Item
    isolated: Damage
    cumulative_db: float
    evidence: Evidence


@dataclass(frozen=True, slots=True, eq=False)
class Measurements:
    """Of all items, in order; whole: of the network with all of them; runs: cost in runs of the whole network."""

    items: tuple[Measured, ...]
    whole: Damage
    samples: int
    runs: float


def measure_items(
    quantized: Program, twin: Program, items: Sequence[Item], batches: Batches, samples: int, on_progress: OnProgress
) -> Measurements:
    """Quantize one item at a time, all else float, and run what lies behind it; then everything together."""
    job = _Job(quantized, twin, items)
    parts = list(sample_chunks(twin, batches, samples, samples_at_once(twin)))
    with torch.inference_mode():
        for done, inputs in enumerate(parts):
            job.add(inputs, lambda place, done=done: on_progress(Progress("diagnose", done * len(items) + place, len(parts) * len(items))))  # type: ignore[misc]
    on_progress(Progress("diagnose", len(parts) * len(items), len(parts) * len(items)))
    return job.found(sum(len(part[0]) for part in parts))


def samples_at_once(program: Program) -> int:
    """How many samples' values fit into MEMORY_BYTES."""
    metas = infer_shapes(program, batch=1).values()
    size = sum(meta.size_bytes for meta in metas if isinstance(meta, TensorMeta))
    return max(1, min(MOST_AT_ONCE, MEMORY_BYTES // max(size, 1)))


class _Job:
    """The sums of one measurement."""

    def __init__(self, quantized: Program, twin: Program, items: Sequence[Item]) -> None:
        self._quantized, self._twin, self._items = quantized, twin, items
        self._fixed = {item.name: weight_changes(quantized, item) for item in items if item.kind != VALUE}
        self._behind: dict[str, tuple[Step, ...]] = {
            item.name: steps_behind(twin, tuple(self._fixed.get(item.name, {item.name: None}))) for item in items
        }
        self._steps = {step.name: step for step in quantized.steps}
        self._meters = {item.name: DamageMeter() for item in items}
        self._watches = {item.name: Watch(item) for item in items if item.kind == VALUE}
        self._whole = DamageMeter()
        self._energies = {item.name: [0.0, 0.0] for item in items}

    def add(self, inputs: Inputs, step_done: Any) -> None:
        replay = Replay(self._twin, tuple(tensor.to(self._twin.device) for tensor in inputs))
        for place, item in enumerate(self._items):
            step_done(place)
            changes = self._fixed[item.name] if item.kind != VALUE else {item.name: self._coded(item, replay)}
            if item.kind == VALUE:
                self._watches[item.name].see(replay.values[item.name], changes[item.name])
            self._meters[item.name].add(replay.outputs, replay.rerun(changes, self._behind[item.name]))
        self._add_whole(inputs, replay)

    def _coded(self, item: Item, replay: Replay) -> Tensor:
        true: Tensor = replay.values[item.name]
        if item.quantizer is not None:
            return fake_quantize(true, item.quantizer)
        step = self._steps[item.name]
        coded: Tensor = step.call(true, *step.args[1:], **dict(step.kwargs))
        return coded

    def _add_whole(self, inputs: Inputs, replay: Replay) -> None:
        """Run the quantized network; each item's value (a weight's: its first layer's result) against the float one."""
        at: dict[str, list[str]] = {}
        for item in self._items:
            at.setdefault(item.name if item.kind == VALUE else item.nodes[0], []).append(item.name)

        def compare(name: str, value: Tensor) -> None:
            true = replay.values[name].to(torch.float64)
            signal, noise = float(true.square().sum()), float((value.to(torch.float64) - true).square().sum())
            for item in at[name]:
                self._energies[item][0] += signal
                self._energies[item][1] += noise

        outputs = self._quantized.run(*(tensor.to(self._quantized.device) for tensor in inputs), observe=dict.fromkeys(at, compare))
        self._whole.add(replay.outputs, outputs if isinstance(outputs, tuple) else (outputs,))

    def found(self, samples: int) -> Measurements:
        """Everything measured."""
        measured = tuple(
            Measured(item, self._meters[item.name].damage(), decibels(*self._energies[item.name]), self._evidence(item))
            for item in self._items
        )
        behind = sum(len(steps) for steps in self._behind.values()) / max(len(self._twin.steps), 1)
        return Measurements(measured, self._whole.damage(), samples, 2 + behind)

    def _evidence(self, item: Item) -> Evidence:
        if item.kind == VALUE:
            return self._watches[item.name].found()
        return weight_evidence(item, self._twin.state[item.name].detach(), coded_weight(self._quantized, item), self._quantized)


def weight_changes(quantized: Program, item: Item) -> Mapping[str, Tensor]:
    """A weight as its codes stand for it, with the biases that were shifted along with it."""
    changes = {item.name: coded_weight(quantized, item)}
    for name in item.nodes:
        bias = bind(quantized.graph.by_name[name])["bias"]
        if isinstance(bias, Ref) and bias.name in quantized.state:
            changes[bias.name] = quantized.state[bias.name].detach()
    return changes
