"""What each layer's format costs and does: the table that mixed precision is chosen from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gossamer.apply.engine import apply
from gossamer.batches import Batches
from gossamer.errors import PlanError
from gossamer.numerics.affine import Quantizer, fake_quantize
from gossamer.numerics.formats import FloatFormat, IntFormat, parse_any_format
from gossamer.plan.placement import has_weight
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.rules import FLOAT, layer_name
from gossamer.plan.scheme import Scheme
from gossamer.plan.spec import TargetSpec
from gossamer.plan.stored_floats import stored_weights
from gossamer.program.execute import Step
from gossamer.program.graph import Node, Ref
from gossamer.program.ops import bind
from gossamer.program.program import Program
from gossamer.progress import OnProgress, Progress
from gossamer.search.diagnosis.damage import DamageMeter
from gossamer.search.diagnosis.findings import Damage
from gossamer.search.diagnosis.measure import samples_at_once
from gossamer.search.diagnosis.twin import Replay, float_twin, sample_chunks, steps_behind


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """One layer at one format, everything else float. `layers`: names that rules use; more than one where they share a weight.

    size_bytes  of the weight in the target's file, with its scales
    """

    layers: tuple[str, ...]
    format: str
    damage: Damage
    size_bytes: int
    weights: int


@dataclass(frozen=True, slots=True, eq=False)
class _Unit:
    """Layers that get one format: those of one name or of one weight."""

    layers: tuple[str, ...]
    nodes: tuple[Node, ...]
    weights: tuple[str, ...]


@dataclass(eq=False)
class _Trial:
    """A unit at a format: what changes in the float network, and what that was found to do."""

    unit: _Unit
    format: str
    state: Mapping[str, Tensor]
    values: Mapping[str, Quantizer]
    steps: tuple[Step, ...]
    meter: DamageMeter = field(default_factory=DamageMeter)

    def outputs(self, replay: Replay) -> tuple[Tensor, ...]:
        coded = {name: fake_quantize(replay.values[name], quantizer) for name, quantizer in self.values.items()}
        return replay.rerun({**self.state, **coded}, self.steps)


def sensitivity_table(
    program: Program, batches: Batches, spec: TargetSpec, formats: Sequence[str], scheme: Scheme, samples: int, on_progress: OnProgress
) -> tuple[Sensitivity, ...]:
    """Each layer that may run on codes at each format, layer by layer in order of execution, formats as given.

    An integer format also rounds what the layer reads. Damage is measured on the first `samples` samples.
    Raises: like plan_quantization.
    """
    planned = {}
    for place, name in enumerate(formats):
        if name != FLOAT and isinstance(parse_any_format(name), IntFormat):
            on_progress(Progress("plan formats", place, len(formats), name))
            plan = plan_quantization(program, batches, spec.name, weights=name, scheme=scheme)
            planned[name] = apply(program, plan), plan
    if not planned:
        raise PlanError("mixed precision needs at least one integer format among its formats; name one, such as int8.")
    quantized, plan = next(iter(planned.values()))
    twin = float_twin(quantized, program, plan)
    trials = [
        _trial(unit, name, twin, {key: pair[0] for key, pair in planned.items()}, quantized)
        for unit in _units(quantized)
        for name in formats
    ]
    parts = list(sample_chunks(twin, batches, samples, samples_at_once(twin)))
    with torch.inference_mode():
        for done, inputs in enumerate(parts):
            replay = Replay(twin, tuple(tensor.to(twin.device) for tensor in inputs))
            for place, trial in enumerate(trials):
                on_progress(Progress("sensitivity", done * len(trials) + place, len(parts) * len(trials), trial.unit.layers[0]))
                trial.meter.add(replay.outputs, trial.outputs(replay))
    on_progress(Progress("sensitivity", 1, 1))
    return tuple(_row(trial, twin, spec) for trial in trials)


def _units(quantized: Program) -> Iterator[_Unit]:
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
        yield _Unit(tuple(sorted(names)), tuple(members), tuple(sorted(weights)))


def _weight(node: Node) -> str:
    weight = bind(node)["weight"]
    return weight.name if isinstance(weight, Ref) else ""


def _trial(unit: _Unit, name: str, twin: Program, planned: Mapping[str, Program], first: Program) -> _Trial:
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
    return _Trial(unit, name, state, values, steps_behind(twin, (*state, *values)))


def _row(trial: _Trial, twin: Program, spec: TargetSpec) -> Sensitivity:
    tensors = [twin.state[name] for name in trial.unit.weights]
    numbers = sum(tensor.numel() for tensor in tensors)
    size = sum(weight_bytes(tensor, trial.format, spec) for tensor in tensors)
    return Sensitivity(trial.unit.layers, trial.format, trial.meter.damage(), size, numbers)


def weight_bytes(weight: Tensor, name: str, spec: TargetSpec) -> int:
    """Bytes of a weight in the target's file: what each number takes there, and a float32 for each scale."""
    if name == FLOAT:
        return 4 * weight.numel()
    fmt = parse_any_format(name)
    scales = 4 * weight.shape[0] if fmt.bits <= 8 else 0
    return -(-weight.numel() * stored_bits(name, spec) // 8) + scales


def stored_bits(name: str, spec: TargetSpec) -> int:
    """Bits that one weight of a format takes in the target's file."""
    if name == FLOAT:
        return 32
    fmt = parse_any_format(name)
    if isinstance(fmt, FloatFormat):
        return fmt.bits
    return min((bits for bits in spec.packed_bits if bits >= fmt.bits), default=fmt.bits)


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
