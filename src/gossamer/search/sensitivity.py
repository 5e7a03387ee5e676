"""What each layer's format costs and does: the table that mixed precision is chosen from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gossamer.apply.engine import apply
from gossamer.batches import Batches
from gossamer.errors import PlanError
from gossamer.numerics.affine import Quantizer, fake_quantize
from gossamer.numerics.formats import FloatFormat, IntFormat, parse_any_format
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.rules import FLOAT, layer_name
from gossamer.plan.site import has_weight
from gossamer.plan.spec import TargetSpec
from gossamer.plan.stored_floats import stored_weights
from gossamer.program.execute import Step
from gossamer.program.graph import Node, Ref
from gossamer.program.ops import bind, op_of
from gossamer.program.program import Program
from gossamer.progress import OnProgress, Progress
from gossamer.registry import Registry
from gossamer.search.diagnosis.damage import DamageMeter
from gossamer.search.diagnosis.findings import Damage
from gossamer.search.diagnosis.measure import samples_at_once
from gossamer.search.diagnosis.twin import Replay, float_twin, sample_chunks, steps_behind


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """One layer at one format, everything else float. `layers`: names that rules use; more than one where they share a weight.

    damage      measured, or estimated, as the method has it
    size_bytes  of the weight in the target's file, with its scales
    bits        that one of its numbers takes there
    latency_ms  of the layer alone on the target; None where it was not measured
    """

    layers: tuple[str, ...]
    format: str
    damage: Damage
    size_bytes: int
    weights: int
    bits: int
    latency_ms: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """Layers that get one format: those of one name or of one weight."""

    layers: tuple[str, ...]
    nodes: tuple[Node, ...]
    weights: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Trial:
    """A unit at a format, and what it changes in the float network: weights and biases, rounded values; steps: what lies behind."""

    unit: Unit
    format: str
    state: Mapping[str, Tensor]
    values: Mapping[str, Quantizer]
    steps: tuple[Step, ...]

    def outputs(self, replay: Replay) -> tuple[Tensor, ...]:
        coded = {name: fake_quantize(replay.values[name], quantizer) for name, quantizer in self.values.items()}
        return replay.rerun({**self.state, **coded}, self.steps)


@dataclass(frozen=True, eq=False)
class Candidates:
    """Each unit at each format, layer by layer in order of execution, formats as given.

    twin     the float network as it is quantized: batch norms folded, scale moved
    planned  the whole network at each integer format
    """

    twin: Program
    planned: Mapping[str, Program]
    trials: tuple[Trial, ...]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a method finds damages by: the first `samples` samples."""

    batches: Batches
    samples: int
    on_progress: OnProgress

    def parts(self, program: Program) -> list[tuple[Tensor, ...]]:
        """The samples in parts whose values fit into memory."""
        parts = sample_chunks(program, self.batches, self.samples, samples_at_once(program))
        return [tuple(tensor.to(program.device) for tensor in inputs) for inputs in parts]


Method = Callable[[Candidates, Evidence], Sequence[Damage]]
sensitivities: Registry[Method] = Registry("sensitivity method", home="gossamer.search.curvature")


def candidates(
    program: Program, batches: Batches, spec: TargetSpec, formats: Sequence[str], settings: Mapping[str, Any], on_progress: OnProgress
) -> Candidates:
    """Plan each integer format for all layers, and take the layers one by one. `settings` are plan_quantization's others.

    An integer format also rounds what a layer reads. Raises: like plan_quantization.
    """
    planned = {}
    for place, name in enumerate(formats):
        if name != FLOAT and isinstance(parse_any_format(name), IntFormat):
            on_progress(Progress("plan formats", place, len(formats), name))
            plan = plan_quantization(program, batches, spec.name, weights=name, **settings)
            planned[name] = apply(program, plan), plan
    if not planned:
        raise PlanError("mixed precision needs at least one integer format among its formats; name one, such as int8.")
    quantized, plan = next(iter(planned.values()))
    twin = float_twin(quantized, program, plan)
    networks = {key: pair[0] for key, pair in planned.items()}
    trials = tuple(_trial(unit, name, twin, networks, quantized) for unit in _units(quantized) for name in formats)
    return Candidates(twin, networks, trials)


@sensitivities.add("kl", source="Cai et al. 2020 (ZeroQ), arXiv:2001.00281; differs: on codes rounded as in the final network")
def measured_damages(found: Candidates, evidence: Evidence) -> Sequence[Damage]:
    """Run the float network with one layer at one format."""
    parts, trials, meters = evidence.parts(found.twin), found.trials, [DamageMeter() for _ in found.trials]
    with torch.inference_mode():
        for done, inputs in enumerate(parts):
            replay = Replay(found.twin, inputs)
            for place, (trial, meter) in enumerate(zip(trials, meters, strict=True)):
                evidence.on_progress(Progress("sensitivity", done * len(trials) + place, len(parts) * len(trials), trial.unit.layers[0]))
                meter.add(replay.outputs, trial.outputs(replay))
    evidence.on_progress(Progress("sensitivity", 1, 1))
    return [meter.damage() for meter in meters]


def table_rows(
    found: Candidates, damages: Sequence[Damage], spec: TargetSpec, latencies: Sequence[float] | None
) -> tuple[Sensitivity, ...]:
    """The table: one row for each trial."""
    times: Sequence[float | None] = latencies if latencies is not None else [None] * len(damages)
    return tuple(_row(trial, damage, time, found.twin, spec) for trial, damage, time in zip(found.trials, damages, times, strict=True))


def _units(quantized: Program) -> Iterator[Unit]:
    """Layers whose weights have integer codes, grouped."""
    nodes = [node for node in quantized.graph.nodes if has_weight(node) and _weight(node) in quantized.quantizers]
    left = list(nodes)
    while left:
        names, weights = {layer_name(left[0])}, {_weight(left[0])}
        while True:
            members = [node for node in left if layer_name(node) in names or _weight(node) in weights]
            grown = names | {layer_name(node) for node in members}, weights | {_weight(node) for node in members}
            if grown == (names, weights):
                break
            names, weights = grown
        left = [node for node in left if node not in members]
        yield Unit(tuple(sorted(names)), tuple(members), tuple(sorted(weights)))


def _weight(node: Node) -> str:
    weight = bind(node)["weight"]
    return weight.name if isinstance(weight, Ref) else ""


def _trial(unit: Unit, name: str, twin: Program, planned: Mapping[str, Program], first: Program) -> Trial:
    state: dict[str, Tensor] = {}
    values: dict[str, Quantizer] = {}
    if name in planned:
        quantized = planned[name]
        for weight in unit.weights:
            state[weight] = fake_quantize(quantized.state[weight].detach(), quantized.quantizers[weight])
        for node in unit.nodes:
            bias = bind(quantized.graph.by_name[node.name])["bias"]
            if isinstance(bias, Ref) and bias.name in quantized.state:
                state[bias.name] = quantized.state[bias.name].detach()
            if node.uses[0] in first.quantizers:
                values[node.uses[0]] = first.quantizers[node.uses[0]]
    elif name != FLOAT:
        fmt = parse_any_format(name)
        assert isinstance(fmt, FloatFormat)
        for edit in stored_weights(twin, {node.name: fmt for node in unit.nodes}):
            state[edit.value] = fake_quantize(twin.state[edit.value].detach(), edit.quantizer)
    return Trial(unit, name, state, values, steps_behind(twin, (*state, *values)))


def _row(trial: Trial, damage: Damage, latency_ms: float | None, twin: Program, spec: TargetSpec) -> Sensitivity:
    tensors = [twin.state[name] for name in trial.unit.weights]
    numbers = sum(tensor.numel() for tensor in tensors)
    ops = {op_of(node).onnx for node in trial.unit.nodes}
    columns = {tensor.shape[-1] for tensor in tensors}
    bits = max(stored_bits(trial.format, spec, op, width) for op in ops for width in columns)
    size = sum(weight_bytes(tensor, trial.format, bits) for tensor in tensors)
    return Sensitivity(trial.unit.layers, trial.format, damage, size, numbers, bits, latency_ms)


def weight_bytes(weight: Tensor, name: str, bits: int) -> int:
    """Bytes of a weight in the target's file: the bits that each number takes there, and a float32 for each scale."""
    scales = 4 * weight.shape[0] if name != FLOAT and parse_any_format(name).bits <= 8 else 0
    return -(-weight.numel() * bits // 8) + scales


def stored_bits(name: str, spec: TargetSpec, op: str, columns: int) -> int:
    """Bits that one weight of a format takes in the target's file, in a layer with that op whose rows have so many weights."""
    if name == FLOAT:
        return 32
    fmt = parse_any_format(name)
    if isinstance(fmt, FloatFormat):
        return fmt.bits
    bits = min((bits for bits in spec.packed_bits if bits >= fmt.bits), default=fmt.bits)
    packed = not spec.packed_ops or (op in spec.packed_ops and columns * bits % 8 == 0)
    return bits if packed else max(bits, 8)


def outputs_damage(changed: Program, program: Program, batches: Batches, samples: int) -> Damage:
    """What a changed network's outputs lose against a float one's, on the first `samples` samples."""
    meter = DamageMeter()
    pair = [item.copy().eval() for item in (program, changed)]
    with torch.inference_mode():
        for inputs in sample_chunks(program, batches, samples, samples_at_once(program)):
            true, got = (_outputs(item(*(tensor.to(item.device) for tensor in inputs))) for item in pair)
            meter.add(true, got)
    return meter.damage()


def _outputs(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)
