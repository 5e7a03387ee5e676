"""The network that is to be cured: its plan as edits that can be changed one by one, and what calibration saw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gossamer.apply.engine import apply
from gossamer.apply.quantize import restructure
from gossamer.batches import Batches
from gossamer.errors import PlanError
from gossamer.numerics.affine import Quantizer, quantize
from gossamer.numerics.packing import pack_steps
from gossamer.plan.calibrate import Calibration, calibrate
from gossamer.plan.edits import (
    ConvolveBatchNorm,
    CopyForCodes,
    Edit,
    FoldBatchNorm,
    QuantizeValue,
    RoundWeight,
    ShiftBias,
    SplitAttention,
    SplitGate,
    SplitTransposed,
)
from gossamer.plan.placement import Placement, place_quantizers
from gossamer.plan.plan import Plan
from gossamer.plan.site import Layer, has_weight
from gossamer.plan.spec import TargetSpec, specs
from gossamer.program.attention import ATTENTION, whole_attention
from gossamer.program.coded_copies import copies_in
from gossamer.program.cost import node_macs
from gossamer.program.fold import foldable_batch_norms
from gossamer.program.gates import gated_activations
from gossamer.program.graph import Ref
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import BatchNorm
from gossamer.program.program import Program
from gossamer.program.shapes import infer_shapes
from gossamer.program.transposed import transposed_convolutions
from gossamer.progress import OnProgress
from gossamer.search.diagnosis.evidence import largest_bias_codes
from gossamer.targets.value_errors import aligned

BIAS_END = 2.0**31 - 1
_SAME = 1e-5  # how far a rebuilt plan's weights may be from the quantized network's, in code steps


@dataclass(frozen=True, slots=True, eq=False)
class Patient:
    """original  the float network; plan: what quantizes it; prepared: float, with batch norms folded as the plan says;
    placement, seen  which values and layers can run on codes, and what calibration saw of them
    rounded  codes of weights by second-order rounding that were computed already
    """

    original: Program
    plan: Plan
    prepared: Program
    placement: Placement
    seen: Calibration
    spec: TargetSpec
    rounded: dict[tuple[str, Quantizer], Tensor] = field(default_factory=dict)

    @property
    def quantizers(self) -> Mapping[str, Quantizer]:
        """Those of the plan."""
        return {edit.value: edit.quantizer for edit in self.plan.edits if isinstance(edit, QuantizeValue)}

    def layers_of(self, weight: str) -> tuple[Layer, ...]:
        """The layers that hold a weight."""
        return tuple(layer for layer in self.placement.layers if layer.weight == weight)

    def group_of(self, value: str) -> tuple[str, ...]:
        """The values that share the quantizer of a value."""
        for group in self.placement.groups:
            if value in group.values:
                return tuple(name for name in group.values if name in self.quantizers)
        return (value,)


def admit(original: Program, plan: Plan, batches: Batches, on_progress: OnProgress) -> Patient:
    """Calibrate once, for all cures. Raises: PlanError for a plan that quantizes no layer statically."""
    prepared = restructure(original, plan.edits).eval()
    spec = specs[plan.target]
    placement = place_quantizers(prepared, spec)
    if not placement.layers:
        raise PlanError(f"{plan.target} computes no layer of this network in integers.")
    seen = calibrate(prepared, batches, placement, ranges="mse", second_moments=True, on_progress=on_progress)
    return Patient(original, plan, prepared, placement, seen, spec)


def rebuilt_plan(quantized: Program, original: Program) -> Plan:
    """The plan that makes `quantized` of `original`, read off the two.

    Raises: PlanError where there is none: the network was trained or equalized in between.
    """
    reference = aligned(original.copy().eval(), quantized)
    folds = [FoldBatchNorm(name) for name in foldable_batch_norms(original) if name not in quantized.graph.by_name]
    lone = [
        ConvolveBatchNorm(node.name)
        for node in original.graph.nodes
        if isinstance(op_of(node).kind, BatchNorm) and node.name in reference.graph.by_name and _was_split(original, reference, node.name)
    ]
    whole = transposed_convolutions(quantized)
    transposed = [SplitTransposed(name) for name in transposed_convolutions(original) if name not in whole]
    gates = [
        (SplitAttention if original.graph.by_name[name].op == ATTENTION else SplitGate)(name)
        for name in (*gated_activations(original), *whole_attention(original))
        if _was_split(original, reference, name)
    ]
    copies = [CopyForCodes(value, readers) for value, readers in copies_in(quantized)]
    edits: list[Edit] = [*folds, *lone, *transposed, *gates, *copies]
    edits += (QuantizeValue(name, quantizer) for name, quantizer in quantized.quantizers.items())
    for name in quantized.quantizers:
        if name in quantized.state and name in reference.state:
            codes = quantize(quantized.state[name].detach(), quantized.quantizers[name])
            steps = codes - quantize(reference.state[name].detach(), quantized.quantizers[name])
            edits += [RoundWeight(name, pack_steps(steps))] if steps.any() else []
    edits += _shifts(quantized, reference)
    plan = Plan(tuple(edits), original.digest, original.weights_digest(), quantized.target)
    _check_rebuilt(apply(original, plan), quantized)
    return plan


def _was_split(original: Program, reference: Program, name: str) -> bool:
    return op_of(original.graph.by_name[name]) != op_of(reference.graph.by_name[name])


def _shifts(quantized: Program, reference: Program) -> list[ShiftBias]:
    shifts = []
    for node in quantized.graph.nodes:
        bias = bind(node)["bias"] if has_weight(node) else None
        if not isinstance(bias, Ref) or bias.name not in quantized.state or node.name not in reference.graph.by_name:
            continue
        now = quantized.state[bias.name].detach().to(torch.float64)
        old = bind(reference.graph.by_name[node.name])["bias"]
        before = reference.state[old.name].detach().to(torch.float64) if isinstance(old, Ref) else torch.zeros_like(now)
        if not torch.equal(now, before):
            shifts.append(ShiftBias(node.name, tuple((now - before).tolist())))
    return shifts


def _check_rebuilt(found: Program, quantized: Program) -> None:
    same = found.graph.digest == quantized.graph.digest and found.state.keys() == quantized.state.keys()
    for name, parameter in quantized.state.items() if same else ():
        tensor = parameter.detach()
        step = max(quantized.quantizers[name].scale) if name in quantized.quantizers else max(float(tensor.abs().max()), 1e-12)
        same = same and bool(((found.state[name].detach() - tensor).abs() <= _SAME * step).all())
    if not same:
        raise PlanError("the quantized network is not the float one plus quantization (it was trained or equalized); give its plan=.")


def with_quantizers(plan: Plan, changed: Mapping[str, Quantizer]) -> Plan:
    """The plan with other quantizers of these values or weights."""
    edits = tuple(
        replace(edit, quantizer=changed[edit.value]) if isinstance(edit, QuantizeValue) and edit.value in changed else edit
        for edit in plan.edits
    )
    return replace(plan, edits=edits)


def without(plan: Plan, tensors: Iterable[str], layers: Iterable[str] = ()) -> Plan:
    """The plan without codes of these values or weights, and without shifted biases of these layers."""
    gone, shifted = set(tensors), set(layers)
    edits = tuple(
        edit
        for edit in plan.edits
        if not (isinstance(edit, (QuantizeValue, RoundWeight)) and edit.value in gone)
        and not (isinstance(edit, ShiftBias) and edit.node in shifted)
    )
    return replace(plan, edits=edits)


def with_weight(plan: Plan, name: str, edits: Iterable[Edit], layers: Iterable[str]) -> Plan:
    """The plan with these edits of a weight and of its layers' biases instead of its own."""
    bare = without(plan, (name,), layers)
    return replace(bare, edits=(*bare.edits, *edits))


def fits_int32(program: Program) -> bool:
    """Whether every bias fits the codes of its layer's accumulator."""
    for node in program.graph.nodes:
        codes: Tensor | None = largest_bias_codes(program, node, program.quantizers) if has_weight(node) else None
        if codes is not None and float(codes.max()) > BIAS_END:
            return False
    return True


def float_macs_share(program: Program, spec: TargetSpec) -> float:
    """Share of the network's MACs that are computed in float: of layers whose weight, input or result has no codes."""
    metas, total, in_float = infer_shapes(program, batch=1), 0, 0
    for node in program.graph.nodes:
        macs = node_macs(node, metas)
        total += macs
        if has_weight(node):
            bound = bind(node)
            user = program.graph.sole_user(node.name)
            result = node.name in program.quantizers or (user is not None and user.name in program.quantizers)
            coded = bound["input"].name in program.quantizers and bound["weight"].name in program.quantizers
            in_float += 0 if coded and (result or op_of(node).onnx in spec.float_result_ops) else macs
    return in_float / max(total, 1)
