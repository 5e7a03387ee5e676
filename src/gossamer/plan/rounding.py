"""Which codes weights get, and what their rounding shifts biases by: the table of methods, and the two that go layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.batches import Batches
from gossamer.numerics.affine import Quantizer, dequantize, quantize
from gossamer.numerics.formats import IntFormat, PerAxis
from gossamer.numerics.moments import Moments
from gossamer.numerics.packing import pack_steps
from gossamer.numerics.ranges import choose_weight_quantizer
from gossamer.numerics.rounding import second_order_codes
from gossamer.plan.edits import Edit, QuantizeValue, RoundWeight, ShiftBias
from gossamer.plan.placement import Placement
from gossamer.plan.scheme import Scheme
from gossamer.plan.site import Layer
from gossamer.program.program import Program
from gossamer.progress import OnProgress, Progress
from gossamer.registry import Registry

BIAS_LIMIT = 2.0**30  # of int32 bias codes: leaves as much again for the sum of products


@dataclass(frozen=True, eq=False)
class RoundingJob:
    """What a method gets to see.

    program    the float network with batch norms folded
    placement  which layers run on codes, and which values have some
    values     the quantizer of each value
    moments    of the inputs of each layer, by its node; with second moments where the method asks for them
    batches    the calibration data
    formats    format of each layer's weight, by its node
    """

    program: Program
    placement: Placement
    values: Mapping[str, Quantizer]
    moments: Mapping[str, Moments]
    batches: Batches
    formats: Mapping[str, IntFormat]
    scheme: Scheme

    def weight(self, layer: Layer) -> Tensor:
        """The float weight of a layer."""
        return self.program.state[layer.weight].detach()

    def quantizer(self, layer: Layer) -> Quantizer:
        """Scales from the weight, made larger where the bias would not fit into int32 codes of scale(source) * scale."""
        chosen = choose_weight_quantizer(self.weight(layer), self.formats[layer.node], self.scheme.weight_ranges)
        scale = torch.tensor(chosen.scale, dtype=torch.float64)
        for user in self.placement.layers:
            if user.weight == layer.weight and user.bias is not None:
                bias = self.program.state[user.bias].detach().abs().to("cpu", torch.float64)
                scale = torch.maximum(scale, bias / (self.values[user.source].scale[0] * BIAS_LIMIT))
        return Quantizer(chosen.format, PerAxis(0), tuple(scale.to(torch.float32).tolist()), chosen.zero_point)

    def shift(self, layer: Layer, quantizer: Quantizer, codes: Tensor) -> tuple[float, ...]:
        """What takes the mean error of the layer's output out of its bias: -(rounded weight - weight) E[x]."""
        weight, moments = self.weight(layer), self.moments[layer.node]
        error = (dequantize(codes, quantizer) - weight).to(torch.float64)
        groups, columns = moments.total.shape
        mean_error = error.reshape(groups, -1, columns) @ moments.mean.unsqueeze(2)
        return tuple((-mean_error).reshape(-1).tolist())


@dataclass(frozen=True, slots=True)
class Rounded:
    """What a method decides: quantizers of the values, which it may have changed, and the edits of weights and biases."""

    values: Mapping[str, Quantizer]
    edits: tuple[Edit, ...]


@dataclass(frozen=True, slots=True)
class Rounding:
    """One method: run(job, on_progress) -> Rounded. `second_moments`: of layers' inputs are collected for it."""

    run: Callable[[RoundingJob, OnProgress], Rounded]
    second_moments: bool = False


roundings: Registry[Rounding] = Registry("rounding", home="gossamer.plan.learned_rounding")

CodesOf = Callable[[RoundingJob, Layer, Quantizer], Tensor]


def _layer_by_layer(codes_of: CodesOf) -> Callable[[RoundingJob, OnProgress], Rounded]:
    return lambda job, on_progress: Rounded(job.values, tuple(_edits(job, codes_of, on_progress)))


def _edits(job: RoundingJob, codes_of: CodesOf, on_progress: OnProgress) -> Iterator[Edit]:
    """Edits of all layers; a weight that several layers share is rounded once, by the moments of the first."""
    done: dict[str, tuple[Quantizer, Tensor]] = {}
    layers = job.placement.layers
    for position, layer in enumerate(layers):
        on_progress(Progress("round weights", position, len(layers), layer.weight))
        if layer.weight not in done:
            quantizer = job.quantizer(layer)
            done[layer.weight] = quantizer, codes_of(job, layer, quantizer)
            yield from weight_edits(layer.weight, job.weight(layer), *done[layer.weight])
        if job.scheme.bias_correction:
            yield ShiftBias(layer.node, job.shift(layer, *done[layer.weight]))
    on_progress(Progress("round weights", len(layers), len(layers)))


def weight_edits(name: str, weight: Tensor, quantizer: Quantizer, codes: Tensor) -> Iterator[Edit]:
    """The edits that give a weight these codes."""
    yield QuantizeValue(name, quantizer)
    steps = codes - quantize(weight, quantizer)
    if steps.any():
        yield RoundWeight(name, pack_steps(steps))


def nearest_codes(job: RoundingJob, layer: Layer, quantizer: Quantizer) -> Tensor:
    """Each weight's nearest code."""
    return quantize(job.weight(layer), quantizer)


def least_change_codes(job: RoundingJob, layer: Layer, quantizer: Quantizer) -> Tensor:
    """Codes with which the layer's output changes least; the nearest where no second moments were collected."""
    weight, moments = job.weight(layer), job.moments.get(layer.node)
    if moments is None or moments.second is None:
        return quantize(weight, quantizer)
    groups, blocks = len(moments.total), len(moments.second) // len(moments.total)

    def split(numbers: Tensor) -> Tensor:
        """(O, *) -> (G * B, O / G, K / B)."""
        return numbers.reshape(groups, weight.shape[0] // groups, blocks, -1).transpose(1, 2).flatten(0, 1)

    scale, _ = quantizer.tensors(weight)
    covariance = moments.covariance(centred=job.scheme.bias_correction)
    masks = job.program.masks
    keep = split(masks[layer.weight]) if layer.weight in masks else None
    codes = second_order_codes(split(weight), split(scale.flatten(1).expand(-1, blocks)), covariance, quantizer.integers, keep=keep)
    return codes.reshape(groups, blocks, weight.shape[0] // groups, -1).transpose(1, 2).reshape(weight.shape)


roundings.add("second-order", source="Frantar et al. 2022, arXiv:2210.17323")(Rounding(_layer_by_layer(least_change_codes), True))
roundings.add("nearest", source="Jacob et al. 2018, arXiv:1712.05877")(Rounding(_layer_by_layer(nearest_codes)))
