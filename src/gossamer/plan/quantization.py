"""Planning static quantization: what gets codes, which range they cover, how weights are rounded. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from gossamer.batches import as_batches
from gossamer.errors import ConfigError, PlanError
from gossamer.numerics.affine import Quantizer, clips_like, dequantize, quantize
from gossamer.numerics.formats import IntFormat, PerAxis, PerTensor, parse_format
from gossamer.numerics.moments import Moments
from gossamer.numerics.packing import pack_steps
from gossamer.numerics.ranges import choose_quantizer, choose_weight_quantizer, fit_clamp, range_methods, weight_range_methods
from gossamer.numerics.rounding import second_order_codes
from gossamer.numerics.spread import merge
from gossamer.plan.calibrate import Calibration, calibrate
from gossamer.plan.edits import Edit, FoldBatchNorm, QuantizeValue, RoundWeight, ShiftBias, SplitGate
from gossamer.plan.placement import Layer, Placement, place_quantizers
from gossamer.plan.plan import Frozen, Plan
from gossamer.plan.spec import TargetSpec, specs
from gossamer.program.clamps import clip_limits
from gossamer.program.fold import fold_batch_norms, foldable_batch_norms
from gossamer.program.gates import gated_activations, split_gates
from gossamer.program.graph import Graph
from gossamer.program.ops import op_of
from gossamer.program.program import Program
from gossamer.progress import OnProgress, Progress, silent

ROUNDINGS = ("second-order", "nearest")
_BIAS_LIMIT = 2.0**30  # of int32 bias codes: leaves as much again for the sum of products


def plan_quantization(
    program: Program,
    calibration: Any,
    target: str = "onnxruntime",
    *,
    weights: str = "int8",
    activations: str = "uint8",
    ranges: str = "mse",
    weight_ranges: str = "min-max",
    rounding: str = "second-order",
    bias_correction: bool = True,
    on_progress: OnProgress = silent,
) -> Plan:
    """Plan static integer quantization of a float program for a target, from a few hundred samples without labels.

    calibration    samples like those the network will meet: an iterable of batches, a Dataset, or arrays
    weights        format of weights, symmetric, one scale for each output channel
    activations    format of values, one scale and zero point for each
    ranges         which range of each value the codes cover: a name in numerics.ranges.range_methods
    weight_ranges  likewise for weights: a name in numerics.ranges.weight_range_methods
    rounding       "second-order": weights are rounded so that the layer's output changes least; "nearest": one by one
    bias_correction  take the mean error that rounded weights make out of the bias

    What the target cannot compute on codes stays float and is listed in `plan.frozen`.
    Raises: PlanError for a program that is quantized, or has nothing to quantize; ConfigError for an unknown target or
    method and for a format that the target does not run; DataError for data that cannot be used.
    Source: Nagel et al. 2021, arXiv:2106.08295 (the pipeline); Nagel et al. 2019, arXiv:1906.04721 (bias correction);
    Frantar et al. 2022, arXiv:2210.17323 (second-order rounding).
    """
    if program.quantizers:
        raise PlanError(f"the network is quantized already (for {program.target!r}); plan from the float network.")
    spec = specs[target]
    formats = Formats(
        pick_format(weights, spec.weight_formats, "weights", target),
        pick_format(activations, spec.activation_formats, "activations", target),
    )
    _check_methods(ranges, weight_ranges, rounding)
    prepared, edits = _prepare(program, spec)
    placement = place_quantizers(prepared, spec)
    if not placement.layers:
        why = f": {placement.frozen[0].where}, {placement.frozen[0].reason}" if placement.frozen else ""
        raise PlanError(f"the network has no layer that {target} computes in integers{why}; export it as it is.")
    batches = as_batches(calibration, what="calibration")
    second = rounding == "second-order"
    seen = calibrate(prepared, batches, placement, ranges=ranges, second_moments=second, on_progress=on_progress)
    values = _value_quantizers(prepared.graph, placement, seen, formats.activations, ranges)
    rounded = _Rounding(prepared.state, values, seen.moments, formats.weights, weight_ranges, second, bias_correction, prepared.masks)
    layers = tuple(rounded.edits(placement.layers, on_progress))
    return Plan(
        edits=(*edits, *(QuantizeValue(name, quantizer) for name, quantizer in values.items()), *layers),
        model_digest=program.digest,
        weights_digest=program.weights_digest(),
        target=target,
        frozen=(*placement.frozen, *_not_absorbed(prepared.graph, placement, values)),
    )


@dataclass(frozen=True, slots=True)
class Formats:
    """Formats of weights and of values."""

    weights: IntFormat
    activations: IntFormat


def pick_format(name: str, known: tuple[IntFormat, ...], what: str, target: str) -> IntFormat:
    """The target's form of a named format. Raises ConfigError naming the nearest that it runs."""
    wanted = parse_format(name)
    for fmt in known:
        if fmt.name == wanted.name:
            return fmt
    near = min(known, key=lambda fmt: (abs(fmt.bits - wanted.bits), fmt.signed != wanted.signed))
    raise ConfigError(what, name, f"a format that {target} computes with (the nearest is {near.name!r})")


def _check_methods(ranges: str, weight_ranges: str, rounding: str) -> None:
    range_methods.entry(ranges)
    weight_range_methods.entry(weight_ranges)
    if rounding not in ROUNDINGS:
        raise ConfigError("rounding", rounding, f"one of {', '.join(map(repr, ROUNDINGS))}")


def _prepare(program: Program, spec: TargetSpec) -> tuple[Program, tuple[Edit, ...]]:
    """The network as it will be quantized: batch norms folded, gated activations split where that lets them run on codes."""
    folds = foldable_batch_norms(program)
    prepared = fold_batch_norms(program.copy().eval(), folds)
    edits: tuple[Edit, ...] = tuple(FoldBatchNorm(name) for name in folds)
    gates = [name for name in gated_activations(prepared) if op_of(prepared.graph.by_name[name]).onnx not in spec.integer_ops]
    if gates and spec.gate_ops <= spec.integer_ops and "Mul" in spec.integer_ops:
        integer = place_quantizers(split_gates(prepared, tuple(gates)), spec).integer
        useful = tuple(name for name in gates if name in integer)
        prepared = split_gates(prepared, useful)
        edits += tuple(SplitGate(name) for name in useful)
    return prepared, edits


def _value_quantizers(graph: Graph, placement: Placement, seen: Calibration, fmt: IntFormat, ranges: str) -> dict[str, Quantizer]:
    """The quantizer of each value, one for each group."""
    quantizers: dict[str, Quantizer] = {}
    for group in placement.groups:
        if placement.gates.intersection(group.values):
            quantizer = Quantizer(fmt, PerTensor(), (2.0**-fmt.bits,), (fmt.lo,))
        else:
            spread = reduce(merge, (seen.spreads[name] for name in group.roots))
            quantizer = choose_quantizer(spread, fmt, ranges, symmetric=False, what=f"the value {group.roots[0]!r}")
            limits = _absorbed_limits(graph, placement, group.roots[0])
            quantizer = fit_clamp(quantizer, *limits) if limits is not None and len(group.roots) == 1 else quantizer
        quantizers.update(dict.fromkeys(group.values, quantizer))
    return quantizers


def _absorbed_limits(graph: Graph, placement: Placement, name: str) -> tuple[float | None, float | None] | None:
    """Limits of a clamp whose result has the codes of the op before it; None for any other value."""
    node = graph.by_name.get(name)
    return clip_limits(node) if node is not None and node.uses and node.uses[0] in placement.integer else None


def _not_absorbed(graph: Graph, placement: Placement, quantizers: Mapping[str, Quantizer]) -> Iterator[Frozen]:
    """Clamps that codes shared with other values cannot replace: they and the op before them stay float."""
    for name, quantizer in quantizers.items():
        limits = _absorbed_limits(graph, placement, name)
        if limits is not None and not clips_like(quantizer, *limits) and graph.by_name[name].uses[0] not in quantizers:
            node = graph.by_name[graph.by_name[name].uses[0]]
            yield Frozen(f"{node.module or node.name} ({op_of(node).onnx})", f"the codes of {name!r} do not clip like it")


@dataclass(frozen=True)
class _Rounding:
    """Chooses codes of weights and shifts of biases, one layer at a time."""

    state: Mapping[str, Tensor]
    values: Mapping[str, Quantizer]
    moments: Mapping[str, Moments]
    fmt: IntFormat
    weight_ranges: str
    second_order: bool
    bias_correction: bool
    masks: Mapping[str, Tensor]

    def edits(self, layers: tuple[Layer, ...], on_progress: OnProgress) -> Iterator[Edit]:
        """Edits of all layers; a weight that several layers share is rounded once, by the moments of the first."""
        done: dict[str, tuple[Quantizer, Tensor]] = {}
        for position, layer in enumerate(layers):
            on_progress(Progress("round weights", position, len(layers), layer.weight))
            if layer.weight not in done:
                quantizer = self._quantizer(layer, [other for other in layers if other.weight == layer.weight])
                codes = self._codes(layer, quantizer)
                done[layer.weight] = quantizer, codes
                yield QuantizeValue(layer.weight, quantizer)
                steps = codes - quantize(self._weight(layer), quantizer)
                if steps.any():
                    yield RoundWeight(layer.weight, pack_steps(steps))
            if self.bias_correction:
                yield ShiftBias(layer.node, self._shift(layer, *done[layer.weight]))
        on_progress(Progress("round weights", len(layers), len(layers)))

    def _weight(self, layer: Layer) -> Tensor:
        return self.state[layer.weight].detach()

    def _quantizer(self, layer: Layer, sharers: list[Layer]) -> Quantizer:
        """Scales from the weight, made larger where the bias would not fit into int32 codes of scale(source) * scale."""
        chosen = choose_weight_quantizer(self._weight(layer), self.fmt, self.weight_ranges)
        scale = torch.tensor(chosen.scale, dtype=torch.float64)
        for user in sharers:
            if user.bias is not None:
                bias = self.state[user.bias].detach().abs().to("cpu", torch.float64)
                scale = torch.maximum(scale, bias / (self.values[user.source].scale[0] * _BIAS_LIMIT))
        return Quantizer(self.fmt, PerAxis(0), tuple(scale.to(torch.float32).tolist()), chosen.zero_point)

    def _codes(self, layer: Layer, quantizer: Quantizer) -> Tensor:
        weight, moments = self._weight(layer), self.moments.get(layer.node)
        if not self.second_order or moments is None or moments.second is None:
            return quantize(weight, quantizer)
        groups = moments.second.shape[0]
        rows = weight.reshape(groups, weight.shape[0] // groups, -1)
        scale, _ = quantizer.tensors(weight)
        covariance = moments.covariance(centred=self.bias_correction)
        keep = self.masks[layer.weight].reshape(rows.shape) if layer.weight in self.masks else None
        return second_order_codes(rows, scale.reshape(groups, -1, 1), covariance, self.fmt, keep=keep).reshape(weight.shape)

    def _shift(self, layer: Layer, quantizer: Quantizer, codes: Tensor) -> tuple[float, ...]:
        """Minus the mean error of the layer's output: -(rounded weight - weight) E[x]."""
        weight, moments = self._weight(layer), self.moments[layer.node]
        error = (dequantize(codes, quantizer) - weight).to(torch.float64)
        groups, columns = moments.total.shape
        mean_error = error.reshape(groups, -1, columns) @ moments.mean.unsqueeze(2)
        return tuple((-mean_error).reshape(-1).tolist())
