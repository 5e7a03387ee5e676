"""The layers whose weights get codes while values stay float, and what is needed to round them well."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gossamer.batches import as_batches
from gossamer.errors import DataError
from gossamer.numerics.affine import Quantizer, quantize
from gossamer.numerics.moments import Moments
from gossamer.numerics.packing import pack_steps
from gossamer.numerics.rounding import second_order_codes
from gossamer.plan.calibrate import calibrate
from gossamer.plan.edits import Edit, QuantizeValue, RoundWeight
from gossamer.plan.integer_cases import why_float_weight
from gossamer.plan.placement import Placement
from gossamer.plan.plan import Frozen
from gossamer.plan.rules import Choice, layer_name
from gossamer.plan.site import Layer, site_of
from gossamer.plan.spec import TargetSpec
from gossamer.program.graph import Node, Ref
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import Convolution, Linear
from gossamer.program.program import Program


def weighted_layers(
    program: Program, choices: Mapping[str, Choice], spec: TargetSpec, *, convolutions: bool
) -> tuple[tuple[Layer, ...], tuple[Frozen, ...]]:
    """Linear layers (and convolutions, if asked for) with a weight of their own that may have codes, and the layers that stay float.

    choices  of rules.layer_choices
    """
    layers, frozen, site = [], [], site_of(program, spec)
    for node in program.graph.nodes:
        if not isinstance(op_of(node).kind, (Linear, Convolution)):
            continue
        name = layer_name(node)
        reason = choices[node.name].why_float or _why_float(program, node, convolutions=convolutions) or why_float_weight(site, node)
        if reason:
            frozen.append(Frozen(name, reason))
        else:
            bound = bind(node)
            layers.append(Layer(node.name, bound["input"].name, bound["weight"].name, bound["bias"] and bound["bias"].name))
    return tuple(layers), tuple(frozen)


def _why_float(program: Program, node: Node, *, convolutions: bool) -> str:
    if not isinstance(op_of(node).kind, Linear) and not convolutions:
        return "only matrix products have kernels for weights in blocks"
    weight = bind(node)["weight"]
    if not isinstance(weight, Ref) or weight.name not in program.state:
        return "its weight is computed, not stored"
    for user in program.graph.users[weight.name]:
        alone = isinstance(op_of(user).kind, (Linear, Convolution)) and bind(user)["weight"] == weight and user.uses.count(weight.name) == 1
        if not alone:
            return f"its weight is also used by {user.module or user.name}, which needs the float numbers"
    return "" if weight.name not in program.graph.outputs else "its weight is an output of the network"


def layer_moments(program: Program, layers: Sequence[Layer], calibration: Any) -> Mapping[str, Moments]:
    """Second moments of each layer's inputs, or none without data. Raises DataError for data that cannot be used."""
    if calibration is None:
        return {}
    batches = as_batches(calibration, what="calibration", batch_size=program.at_once())
    nothing: Placement = Placement(groups=(), gates=frozenset(), layers=tuple(layers), integer=frozenset(), frozen=())
    seen = calibrate(program, batches, nothing, ranges="min-max", second_moments=True).moments
    for layer in layers:
        found = seen.get(layer.node)
        if found is None or not bool(torch.isfinite(found.total).all()):
            raise DataError(f"the calibration data makes NaN or infinite values at {layer.node!r}; clean the data or the weights.")
    return seen


def coded_weights(
    program: Program, layers: Sequence[Layer], calibration: Any, choose: Callable[[Node, Tensor], Quantizer]
) -> Iterator[tuple[Node, tuple[Edit, ...]]]:
    """Each layer's node with the edits for its weight; a weight that several layers share is coded once, with the first.

    choose  the quantizer of a layer's weight. Raises DataError for calibration data that cannot be used.
    """
    moments = layer_moments(program, layers, calibration)
    done: set[str] = set()
    for layer in layers:
        node, name = program.graph.by_name[layer.node], layer.weight
        if name in done:
            yield node, ()
            continue
        done.add(name)
        weight = program.state[name].detach()
        yield node, tuple(weight_edits(weight, name, choose(node, weight), moments.get(layer.node), program.masks.get(name)))


def weight_edits(weight: Tensor, name: str, quantizer: Quantizer, moments: Moments | None, keep: Tensor | None) -> Iterator[Edit]:
    """Codes for a weight: with moments the ones that change the layer's output least, else the nearest. `keep` is its mask, if any."""
    yield QuantizeValue(name, quantizer)
    if moments is not None and moments.second is not None:
        steps = _second_order(weight, quantizer, moments, keep) - quantize(weight, quantizer)
        if steps.any():
            yield RoundWeight(name, pack_steps(steps))


def _second_order(weight: Tensor, quantizer: Quantizer, moments: Moments, keep: Tensor | None) -> Tensor:
    assert moments.second is not None
    groups = moments.second.shape[0]

    def rows(tensor: Tensor) -> Tensor:
        return tensor.expand_as(weight).reshape(groups, weight.shape[0] // groups, -1)

    scale, zero = quantizer.tensors(weight)
    covariance = moments.covariance(centred=False)
    kept = None if keep is None else rows(keep)
    codes = second_order_codes(rows(weight), rows(scale), covariance, quantizer.format, zero_point=rows(zero), keep=kept)
    return codes.reshape(weight.shape)
