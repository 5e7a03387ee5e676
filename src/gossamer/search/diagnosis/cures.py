"""Cures: for each cause the changes of a plan that may help. Whether one does is measured, not assumed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from gossamer.batches import Batches
from gossamer.numerics.affine import Quantizer, dequantize, quantize
from gossamer.numerics.formats import IntFormat, PerAxis, PerTensor
from gossamer.numerics.packing import pack_steps, unpack_steps
from gossamer.numerics.ranges import choose_quantizer, choose_weight_quantizer, fit_clamp
from gossamer.numerics.rounding import second_order_codes
from gossamer.numerics.spread import merge
from gossamer.plan.edits import Edit, QuantizeValue, RoundWeight, ScaleChannels, ShiftBias
from gossamer.plan.plan import Plan
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.scheme import Scheme
from gossamer.plan.site import Layer
from gossamer.program.clamps import clip_limits
from gossamer.progress import OnProgress
from gossamer.search.diagnosis.causes import ROUNDING
from gossamer.search.diagnosis.evidence import Item
from gossamer.search.diagnosis.findings import VALUE
from gossamer.search.diagnosis.patient import Patient, with_quantizers, with_weight, without

RANGES = ("min-max", "mse", "percentile", "entropy")
KEEP_FLOAT = "keep float"
EQUALIZATIONS = ("cross-layer", "smoothquant", "repq")
UNEVEN = frozenset({"outlier channel", "depthwise spread", "channel spread"})  # causes that moving scale between channels helps against
_RANGE_OF = {  # cause -> range methods worth a try, for values
    "saturation": ("min-max", "mse"),
    "outlier channel": ("percentile", "entropy", "mse"),
    "depthwise spread": ("percentile", "mse"),
    "channel spread": ("percentile", "mse"),
    "range": ("mse", "percentile", "entropy"),
    ROUNDING: ("mse", "min-max"),
}
_WEIGHT_CURES = {  # cause -> cures worth a try, for weights
    "saturation": ("range: min-max", "second-order rounding"),
    "outlier channel": ("scale per channel", "range: mse"),
    "depthwise spread": ("scale per channel", "range: mse"),
    "channel spread": ("scale per channel", "range: mse"),
    "range": ("scale per channel", "range: mse"),
    ROUNDING: ("second-order rounding", "range: mse", "bias correction"),
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A change of the plan. `where`: the tensor that it is about, "" for the whole network. `replaces`: it is another plan altogether,
    whose values are not those of the old one, so other cures have to be found anew on top of it.
    """

    where: str
    name: str
    change: Callable[[Plan], Plan]
    replaces: bool = False


def cures_of(patient: Patient, item: Item, cause: str) -> Iterator[Candidate]:
    """What may help where this cause was found; what would change nothing is left out. Keeping float comes last."""
    if item.kind == VALUE:
        for method in _RANGE_OF.get(cause, ()):
            yield from _range_cure(patient, item, method)
        group = patient.group_of(item.name)
        yield Candidate(item.name, KEEP_FLOAT, lambda plan: without(plan, group))
        return
    for name in _WEIGHT_CURES.get(cause, ()):
        yield from _weight_cure(patient, item.name, name)
    yield Candidate(item.name, KEEP_FLOAT, lambda plan: without(plan, (item.name,), item.nodes))


def network_cures(patient: Patient) -> Iterator[Candidate]:
    """Changes of all values, or of all weights, at once."""
    quantizers = patient.quantizers
    for method in RANGES:
        changed = {name: found for name in quantizers if (found := value_quantizer(patient, name, method)) is not None}
        if any(changed[name] != quantizers[name] for name in changed):
            yield Candidate("", f"ranges of all values: {method}", _quantizers_changed(changed))
    weights = list(dict.fromkeys(layer.weight for layer in patient.placement.layers if layer.weight in quantizers))
    for name in ("second-order rounding", "range: mse", "bias correction"):
        changes = [found.change for weight in weights for found in _weight_cure(patient, weight, name)]
        if changes:
            yield Candidate("", f"all weights: {name}", _all_of(changes))


def equalizing_cures(patient: Patient, batches: Batches, causes: Collection[str], on_progress: OnProgress) -> Iterator[Candidate]:
    """Plans that first move scale between channels, where a cause is one that this can help against and none was moved yet."""
    if not UNEVEN.intersection(causes) or any(isinstance(edit, ScaleChannels) for edit in patient.plan.edits):
        return
    formats, activations = _weight_formats(patient), _value_format(patient)
    usual = max(set(formats.values()), key=list(formats.values()).count)
    rules = {layer: name for layer, name in formats.items() if name != usual}
    for method in EQUALIZATIONS:
        plan = plan_quantization(
            patient.original,
            batches,
            patient.plan.target,
            weights=usual,
            activations=activations,
            rules=rules,
            scheme=Scheme(equalization=method),
            on_progress=on_progress,
        )
        if any(isinstance(edit, ScaleChannels) for edit in plan.edits):
            yield Candidate("", f"equalization: {method}", lambda _, plan=plan: plan, replaces=True)  # type: ignore[misc]


def _weight_formats(patient: Patient) -> dict[str, str]:
    """Layer -> the format of its weight; "float" where it has no codes."""
    quantizers, nodes = patient.quantizers, patient.prepared.graph.by_name
    return {
        nodes[layer.node].module or layer.node: quantizers[layer.weight].format.name if layer.weight in quantizers else "float"
        for layer in patient.placement.layers
    }


def _value_format(patient: Patient) -> str:
    values = (quantizer for name, quantizer in patient.quantizers.items() if name not in patient.prepared.state)
    return next(values).format.name


def _all_of(changes: list[Callable[[Plan], Plan]]) -> Callable[[Plan], Plan]:
    return lambda plan: reduce(lambda known, change: change(known), changes, plan)


def _quantizers_changed(changed: dict[str, Quantizer]) -> Callable[[Plan], Plan]:
    return lambda plan: with_quantizers(plan, changed)


def _range_cure(patient: Patient, item: Item, method: str) -> Iterator[Candidate]:
    found = value_quantizer(patient, item.name, method)
    if found is not None and found != patient.quantizers[item.name]:
        yield Candidate(item.name, f"range: {method}", _quantizers_changed(dict.fromkeys(patient.group_of(item.name), found)))


def value_quantizer(patient: Patient, name: str, method: str) -> Quantizer | None:
    """The quantizer of a value by another range method; None where the target prescribes it, and for weights."""
    group = next((group for group in patient.placement.groups if name in group.values), None)
    known = patient.quantizers.get(name)
    if group is None or known is None or patient.placement.gates.intersection(group.values):
        return None
    symmetric = known.format.signed and set(known.zero_point) == {0}
    spread = reduce(merge, (patient.seen.spreads[root] for root in group.roots))
    found = choose_quantizer(spread, known.integers, method, symmetric=symmetric, what=f"the value {name!r}")
    node = patient.prepared.graph.by_name.get(group.roots[0])
    limits = clip_limits(node) if node is not None and node.uses and node.uses[0] in patient.placement.integer else None
    return fit_clamp(found, *limits) if limits is not None and len(group.roots) == 1 else found


def _weight_cure(patient: Patient, weight: str, name: str) -> Iterator[Candidate]:
    """One cure of a weight by name; nothing where it does not apply."""
    layers = patient.layers_of(weight)
    if not layers or weight not in patient.quantizers or not isinstance(patient.quantizers[weight].format, IntFormat):
        return
    quantizer, numbers = patient.quantizers[weight], patient.prepared.state[weight].detach()
    by_axis = isinstance(quantizer.granularity, PerAxis)
    if name == "scale per channel":
        if not isinstance(quantizer.granularity, PerTensor):
            return
        quantizer = choose_weight_quantizer(numbers, quantizer.integers, "min-max")
    elif name.startswith("range: ") and by_axis:
        quantizer = choose_weight_quantizer(numbers, quantizer.integers, name.removeprefix("range: "))
        if quantizer == patient.quantizers[weight]:
            return
    codes = codes_in(patient.plan, weight, numbers, quantizer) if name == "bias correction" else _rounded(patient, layers[0], quantizer)
    nodes = tuple(layer.node for layer in layers)
    edits: list[Edit] = [QuantizeValue(weight, quantizer)]
    steps = codes - quantize(numbers, quantizer)
    edits += [RoundWeight(weight, pack_steps(steps))] if steps.any() else []
    edits += [ShiftBias(layer.node, _shift(patient, layer, quantizer, codes)) for layer in layers]
    if not _already(patient.plan, edits):
        yield Candidate(weight, name, lambda plan: with_weight(plan, weight, edits, nodes))


def codes_in(plan: Plan, weight: str, numbers: Tensor, quantizer: Quantizer) -> Tensor:
    """The codes that a plan gives a weight."""
    codes = quantize(numbers, quantizer)
    for edit in plan.edits:
        if isinstance(edit, RoundWeight) and edit.value == weight:
            codes = (codes + unpack_steps(edit.steps, tuple(numbers.shape)).to(codes)).clamp(quantizer.format.lo, quantizer.format.hi)
    return codes


def _rounded(patient: Patient, layer: Layer, quantizer: Quantizer) -> Tensor:
    """The codes of `_codes`, computed once."""
    key = (layer.weight, quantizer)
    if key not in patient.rounded:
        patient.rounded[key] = _codes(patient, layer, quantizer)
    return patient.rounded[key]


def _codes(patient: Patient, layer: Layer, quantizer: Quantizer) -> Tensor:
    """Codes with which the layer's output changes least, on top of a corrected bias; the nearest where moments are not known."""
    numbers, moments = patient.prepared.state[layer.weight].detach(), patient.seen.moments.get(layer.node)
    if moments is None or moments.second is None or not isinstance(quantizer.granularity, PerAxis):
        return quantize(numbers, quantizer)
    groups = moments.second.shape[0]
    rows = numbers.reshape(groups, numbers.shape[0] // groups, -1)
    scale, _ = quantizer.tensors(numbers)
    mask = patient.prepared.masks.get(layer.weight)
    keep = None if mask is None else mask.reshape(rows.shape)
    found = second_order_codes(rows, scale.reshape(groups, -1, 1), moments.covariance(centred=True), quantizer.format, keep=keep)
    return found.reshape(numbers.shape)


def _shift(patient: Patient, layer: Layer, quantizer: Quantizer, codes: Tensor) -> tuple[float, ...]:
    """What takes the mean error of the layer's output out of its bias: -(coded weight - weight) E[x]."""
    moments = patient.seen.moments[layer.node]
    error = (dequantize(codes, quantizer) - patient.prepared.state[layer.weight].detach()).to(torch.float64)
    groups, columns = moments.total.shape
    return tuple((-(error.reshape(groups, -1, columns) @ moments.mean.unsqueeze(2))).reshape(-1).tolist())


def _already(plan: Plan, edits: list[Edit]) -> bool:
    """Whether a plan holds these edits; shifts of biases count as the same when they are nearly so."""
    for edit in edits:
        if isinstance(edit, ShiftBias):
            known = [other for other in plan.edits if isinstance(other, ShiftBias) and other.node == edit.node]
            if not known or not torch.allclose(torch.tensor(known[0].shift), torch.tensor(edit.shift), rtol=1e-3, atol=1e-9):
                return False
        elif edit not in plan.edits:
            return False
    return True
